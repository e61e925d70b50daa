//! `pause`: a worker hangs and goes on, whoever ends it; a unit freezes and thaws.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    cgroup::Cgroup,
    harness::{PROMPT, Stage, experiment, is_warden, send, story},
    worker::Worker,
};

pub fn pause_step(duration: &str) -> String {
    format!(
        "[[step]]\nname = \"hang\"\nfault = \"pause\"\ntarget = {{ group = \"shop\", pick = 1 }}\n\
         duration = \"{duration}\"\n"
    )
}

/// The letter of field 3 of /proc/PID/stat.
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('-')
}

fn paused(stage: &Stage) -> Vec<u32> {
    stage.workers.iter().map(Worker::pid).filter(|pid| state(*pid) == 'T').collect()
}

fn until_continued(stage: &mut Stage, within: Duration) {
    let since = Instant::now();
    stage.until("the worker goes on", |stage| paused(stage).is_empty().then_some(()));
    assert!(since.elapsed() < within, "only after {:?}", since.elapsed());
    assert!(stage.workers.iter_mut().all(Worker::lives));
}

#[test]
fn a_worker_hangs_and_goes_on_at_the_deadline() {
    story("a_worker_hangs_and_goes_on_at_the_deadline", |stage| {
        stage.four_workers("1s");
        let id = stage.in_force(&experiment("\"shop\"", &pause_step("2s")));
        assert_eq!(paused(stage).len(), 1);
        let fault = stage.get("/v1/faults")["faults"][0].clone();
        assert_eq!(fault["fault"], "pause", "{fault:#}");
        assert_eq!(fault["lease"], "warden", "{fault:#}");
        assert!(fault["deadline"].is_string(), "{fault:#}");
        let group = stage.group_now("shop");
        assert_eq!(group["effective"], 3, "it is charged while it hangs: {group:#}");
        let run = stage.finished(&id);
        assert_eq!(run["verdict"], "passed", "{run:#}");
        assert_eq!(run["steps"][0]["effect"]["proven"], true, "{run:#}");
        assert_eq!(run["steps"][0]["effect"]["summary"], "1 process stopped", "{run:#}");
        assert_eq!(run["cleanup"], "clean", "{run:#}");
        assert!(paused(stage).is_empty());
        stage.calm("shop", 4);
    });
}

#[test]
fn a_pause_ends_on_abort_and_on_halt() {
    story("a_pause_ends_on_abort_and_on_halt", |stage| {
        stage.four_workers("1s");
        let id = stage.in_force(&experiment("\"shop\"", &pause_step("30s")));
        stage.call("DELETE", &format!("/v1/runs/{id}"), "").expect(200);
        assert!(paused(stage).is_empty(), "answered when it was undone");
        stage.calm("shop", 4);
        stage.in_force(&experiment("\"shop\"", &pause_step("30s")));
        stage.call("PUT", "/v1/halt", "{\"reason\":\"enough\"}").expect(200);
        assert!(paused(stage).is_empty(), "answered when it was undone");
        until_continued(stage, PROMPT);
    });
}

#[test]
fn a_pause_that_would_breach_the_floor_is_refused() {
    story("a_pause_that_would_breach_the_floor_is_refused", |stage| {
        stage.workers("shop", 8001..=8004);
        stage.policy("leashed = false", "", &stage.group("shop", 4, "1s"));
        stage.start();
        stage.calm("shop", 4);
        let run = stage.play(&experiment("\"shop\"", &pause_step("2s")));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        let why = run["why"]["message"].as_str().unwrap_or_default();
        assert!(why.contains("pausing 1 more would leave 3"), "{why}");
        assert!(paused(stage).is_empty());
        let undeclared = stage.play(&experiment("", &pause_step("2s").replace("group", "name")));
        assert_eq!(undeclared["verdict"], "refused", "{undeclared:#}");
    });
}

#[test]
fn who_hangs_already_is_left_alone() {
    story("who_hangs_already_is_left_alone", |stage| {
        stage.workers("shop", 8001..=8002);
        stage.policy("leashed = false", "", &stage.group("shop", 0, "1s"));
        stage.start();
        stage.calm("shop", 2);
        let pid = stage.workers[0].pid();
        send(pid, Signal::SIGSTOP);
        let step = pause_step("2s").replace("pick = 1", "cmdline = \"PORT\"");
        let step = step.replace("PORT", &stage.marker("shop")).replace("}\n", ", pick = 2 }\n");
        let step = step.replace("duration", "charge = 0\nduration");
        let run = stage.play(&experiment("\"shop\"", &step));
        assert_ne!(run["verdict"], "passed", "{run:#}");
        assert_eq!(state(pid), 'T', "it is somebody else's to continue");
        send(pid, Signal::SIGCONT);
    });
}

#[test]
fn the_agent_dies_and_the_warden_continues() {
    story("the_agent_dies_and_the_warden_continues", |stage| {
        stage.four_workers("1h");
        let id = stage.in_force(&experiment("\"shop\"", &pause_step("30s")));
        let warden = stage.agent().warden();
        stage.agent().kill();
        until_continued(stage, PROMPT * 2);
        stage.until("the warden is done", |_| (!is_warden(warden)).then_some(()));
        stage.start();
        let run = stage.run(&id);
        assert_eq!(run["aborted_by"], "crash", "{run:#}");
        assert_eq!(run["cleanup"], "clean", "{run:#}");
    });
}

/// Agent and warden die together: nothing continues the worker before somebody of vervet comes.
fn both_die(stage: &mut Stage) -> String {
    stage.four_workers("1h");
    let id = stage.in_force(&experiment("\"shop\"", &pause_step("30s")));
    let warden = stage.agent().warden();
    send(warden, Signal::SIGSTOP);
    stage.agent().kill();
    send(warden, Signal::SIGKILL);
    stage.until("the warden is gone", |_| (!is_warden(warden)).then_some(()));
    assert_eq!(paused(stage).len(), 1, "nobody was left to continue it");
    id
}

#[test]
fn both_die_and_the_next_start_continues() {
    story("both_die_and_the_next_start_continues", |stage| {
        let id = both_die(stage);
        stage.start();
        assert!(paused(stage).is_empty(), "before it served");
        let run = stage.run(&id);
        assert_eq!(run["aborted_by"], "crash", "{run:#}");
        assert_eq!(run["cleanup"], "clean", "{run:#}");
    });
}

#[test]
fn both_die_and_recover_continues() {
    story("both_die_and_recover_continues", |stage| {
        both_die(stage);
        let config = stage.path("vervet.toml");
        let output = stage.cli(&["recover", "--config", config.to_str().expect("a path")]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(paused(stage).is_empty(), "{said}");
    });
}

fn is_frozen(unit: &std::path::Path) -> bool {
    let events = fs::read_to_string(unit.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "frozen 1")
}

/// Two workers, each in a unit of its own.
fn two_units(stage: &mut Stage, cgroup: &Cgroup) -> Vec<PathBuf> {
    stage.workers("shop", 8001..=8002);
    let units = (1..=2).map(|at| cgroup.unit(&format!("shop@{at}.service"))).collect::<Vec<_>>();
    for (worker, unit) in stage.workers.iter().zip(&units) {
        fs::write(unit.join("cgroup.procs"), worker.pid().to_string()).expect("moved");
    }
    stage.policy("leashed = false", "", &stage.group("shop", 1, "1s"));
    stage.start();
    stage.calm("shop", 2);
    units
}

fn freeze_step(duration: &str) -> String {
    pause_step(duration).replace("group = \"shop\"", "unit = \"shop@*.service\"")
}

#[test]
fn a_unit_freezes_and_thaws() {
    const NAME: &str = "a_unit_freezes_and_thaws";
    story(NAME, |stage| {
        let Some(cgroup) = Cgroup::new(NAME) else { return };
        let units = two_units(stage, &cgroup);
        let id = stage.in_force(&experiment("\"shop\"", &freeze_step("2s")));
        stage.until("one is frozen", |_| {
            (units.iter().filter(|unit| is_frozen(unit)).count() == 1).then_some(())
        });
        assert_eq!(stage.group_now("shop")["effective"], 1, "its process is charged");
        let run = stage.finished(&id);
        assert_eq!(run["verdict"], "passed", "{run:#}");
        assert_eq!(run["steps"][0]["effect"]["summary"], "1 unit frozen", "{run:#}");
        assert!(!units.iter().any(|unit| is_frozen(unit)));
        stage.workers.clear();
    });
}

#[test]
fn the_agent_dies_and_the_warden_thaws() {
    const NAME: &str = "the_agent_dies_and_the_warden_thaws";
    story(NAME, |stage| {
        let Some(cgroup) = Cgroup::new(NAME) else { return };
        let units = two_units(stage, &cgroup);
        let id = stage.in_force(&experiment("\"shop\"", &freeze_step("30s")));
        stage.until("one is frozen", |_| units.iter().any(|unit| is_frozen(unit)).then_some(()));
        stage.agent().kill();
        stage.until("it is thawed", |_| (!units.iter().any(|unit| is_frozen(unit))).then_some(()));
        stage.start();
        assert_eq!(stage.run(&id)["cleanup"], "clean");
        // A unit that would take the last of an undeclared group is refused as a kill would be.
        let run = stage.play(&experiment("", &freeze_step("1s")));
        assert_eq!(run["why"]["reason"], "undeclared_group", "{run:#}");
        stage.workers.clear();
    });
}
