//! The client of systemd, against a real message bus.

#[path = "systemd_support/mod.rs"]
mod systemd_support;

use std::time::{Duration, Instant};

use systemd_support::{MockSystemd, MockUnit};
use vervet::host::{
    HostError, UnitVerb,
    linux::systemd::{JobEnd, Systemd},
};

fn two_workers(test: &str) -> Option<(MockSystemd, Systemd)> {
    let mock = systemd_support::start(test)?;
    for at in 1..=2 {
        let mut unit = MockUnit::new(&["sleep", "600"]);
        unit.cgroup = format!("/system.slice/checkout@{at}.service");
        mock.add(&format!("checkout@{at}.service"), unit);
    }
    mock.add("other.service", MockUnit::default());
    let systemd = Systemd::at(mock.addresses());
    Some((mock, systemd))
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

#[test]
fn units_are_listed_by_glob_with_what_they_run() {
    let Some((mock, systemd)) = two_workers("units_are_listed_by_glob_with_what_they_run") else {
        return;
    };
    systemd.check().unwrap();
    let units = systemd.units(&["checkout@*.service"]).unwrap();
    let names: Vec<_> = units.iter().map(|unit| unit.name.as_str()).collect();
    assert_eq!(names, ["checkout@1.service", "checkout@2.service"]);
    for unit in &units {
        assert_eq!((&*unit.load, &*unit.active, &*unit.sub), ("loaded", "active", "running"));
        assert_eq!(unit.main_pid, Some(mock.with(|state| state.units[&unit.name].pid())));
        assert_eq!(unit.cgroup, Some(format!("/system.slice/{}", unit.name)));
        assert_eq!(unit.invocation.len(), 32);
    }
    assert_eq!(systemd.units(&["nothing*"]).unwrap(), []);
}

#[test]
fn many_units_are_listed_in_one_go() {
    let Some((mock, systemd)) = two_workers("many_units_are_listed_in_one_go") else { return };
    for at in 100..400 {
        let unit = MockUnit { cgroup: format!("/x/{at}"), ..MockUnit::default() };
        mock.add(&format!("many@{at}.service"), unit);
    }
    let units = systemd.units(&["many@*"]).unwrap();
    assert_eq!(units.len(), 300);
    assert!(units.iter().all(|unit| unit.cgroup == Some(format!("/x/{}", &unit.name[5..8]))));
}

#[test]
fn a_unit_says_what_its_stop_would_mean() {
    let Some((mock, systemd)) = two_workers("a_unit_says_what_its_stop_would_mean") else { return };
    mock.with(|state| {
        let unit = state.units.get_mut("checkout@1.service").unwrap();
        unit.required_by = vec!["other.service".to_owned()];
    });
    let detail = systemd.unit("checkout@1.service").unwrap().unwrap();
    assert_eq!(detail.stopped_with, ["other.service"]);
    assert!(detail.can_start && detail.can_stop && !detail.transient && !detail.job);
    assert!(detail.unit.is_up() && detail.unit.main_pid.is_some());
    assert_eq!(systemd.unit("nobody.service"), Ok(None));
}

#[test]
fn a_job_is_queued_or_waited_for() {
    let Some((mock, systemd)) = two_workers("a_job_is_queued_or_waited_for") else { return };
    let name = "checkout@1.service";
    assert_eq!(systemd.job(name, UnitVerb::Stop, soon()), Ok(JobEnd::Done));
    assert!(!systemd.unit(name).unwrap().unwrap().unit.is_up());
    assert_eq!(systemd.job(name, UnitVerb::Start, soon()), Ok(JobEnd::Done));
    assert!(systemd.unit(name).unwrap().unwrap().unit.is_up());
    assert_eq!(systemd.job(name, UnitVerb::Restart, None), Ok(JobEnd::Pending));
    assert_eq!(mock.with(|state| state.jobs.len()), 3);
    mock.with(|state| state.units.get_mut(name).unwrap().broken = true);
    let error = systemd.job(name, UnitVerb::Restart, soon()).unwrap_err();
    assert!(error.to_string().contains("systemd says: failed"), "{error}");
}

#[test]
fn who_is_not_permitted_is_told_what_to_do() {
    let Some((mock, systemd)) = two_workers("who_is_not_permitted_is_told_what_to_do") else { return };
    mock.with(|state| state.denied = true);
    let error = systemd.job("checkout@1.service", UnitVerb::Stop, None).unwrap_err();
    let HostError::Unavailable(text) = &error else { panic!("{error:?}") };
    assert!(text.starts_with("systemd refused to stop checkout@1.service"), "{text}");
    assert!(text.contains("polkit") && text.contains("manage-units"), "{text}");
    let error = systemd.job("nobody.service", UnitVerb::Start, None);
    assert!(matches!(error, Err(HostError::Unavailable(_))), "{error:?}");
    mock.with(|state| state.denied = false);
    let error = systemd.job("nobody.service", UnitVerb::Start, None).unwrap_err();
    assert_eq!(error, HostError::NotFound("Unit nobody.service not found.".to_owned()));
}

#[test]
fn a_silent_manager_keeps_nobody_and_a_new_bus_is_found() {
    const TEST: &str = "a_silent_manager_keeps_nobody_and_a_new_bus_is_found";
    let Some((mut mock, systemd)) = two_workers(TEST) else { return };
    assert_eq!(systemd.units(&["checkout@*"]).unwrap().len(), 2);
    mock.with(|state| state.mute = true);
    let asked = Instant::now();
    let error = systemd.units(&["checkout@*"]).unwrap_err();
    assert!(error.to_string().contains("no answer within 5000 ms"), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    mock.with(|state| state.mute = false);
    assert_eq!(systemd.units(&["checkout@*"]).unwrap().len(), 2, "on a new connection");
    mock.kill_bus();
    let error = systemd.units(&["checkout@*"]).unwrap_err();
    assert!(error.to_string().starts_with("systemd cannot be reached"), "{error}");
}
