//! `unit`: a service manager (a small one, on a real message bus) stops a unit and starts it again.

use nix::sys::signal::Signal;

use crate::{
    cgroup::Cgroup,
    harness::{Stage, experiment, is_warden, send, story},
    systemd_support::{self, MockSystemd, MockUnit},
};

const PROGRAM: &str = "sleep";

/// Everything of one story: units of one process each in cgroups of their own, and the agent.
struct Scene {
    systemd: MockSystemd,
    _cgroup: Cgroup,
}

fn set(stage: &mut Stage, name: &str, floor: u32) -> Option<Scene> {
    let cgroup = Cgroup::new(name)?;
    let systemd = systemd_support::start(name)?;
    // Found by how long it sleeps: nobody else's sleep is so odd.
    let seconds = format!("{}.{}", 4_000, std::process::id());
    for at in 1..=3 {
        let unit = format!("shop@{at}.service");
        let mut mock = MockUnit::new(&[PROGRAM, &seconds]);
        mock.cgroup = cgroup.path_of(&unit);
        mock.cgroup_dir = Some(cgroup.unit(&unit));
        systemd.add(&unit, mock);
    }
    stage.bus = Some(systemd.address.clone());
    let marker = stage.marker("shop");
    let group = stage.group("shop", floor, "1s").replace(&marker, &format!("{PROGRAM} {seconds}"));
    stage.policy("leashed = false", "", &group);
    stage.start();
    stage.calm("shop", 3);
    Some(Scene { systemd, _cgroup: cgroup })
}

fn unit_step(action: &str, duration: &str) -> String {
    format!(
        "[[step]]\nname = \"unit\"\nfault = \"unit\"\naction = \"{action}\"\n\
         target = {{ unit = \"shop@*\", pick = 1 }}\nduration = \"{duration}\"\n"
    )
}

impl Scene {
    fn active(&self) -> usize {
        self.systemd.with(|state| state.units.values().filter(|unit| unit.active).count())
    }

    fn jobs(&self) -> Vec<String> {
        self.systemd.with(|state| state.jobs.iter().map(|(job, _)| job.clone()).collect())
    }
}

#[test]
fn a_unit_is_stopped_and_started_again() {
    const NAME: &str = "a_unit_is_stopped_and_started_again";
    story(NAME, |stage| {
        let Some(scene) = set(stage, NAME, 2) else { return };
        let id = stage.in_force(&experiment("\"shop\"", &unit_step("stop", "2s")));
        assert_eq!(scene.active(), 2);
        let fault = stage.get("/v1/faults")["faults"][0].clone();
        assert_eq!((&fault["fault"], &fault["lease"]), (&"unit".into(), &"warden".into()), "{fault:#}");
        let run = stage.finished(&id);
        assert_eq!(run["verdict"], "passed", "{run:#}");
        assert_eq!(scene.active(), 3);
        assert_eq!(scene.jobs(), ["StopUnit", "StartUnit"]);
        stage.calm("shop", 3);
        let run = stage.play(&experiment("\"shop\"", &unit_step("restart", "1s")));
        assert_eq!(run["verdict"], "passed", "{run:#}");
        assert_eq!(scene.jobs(), ["StopUnit", "StartUnit", "RestartUnit"], "nothing to undo");
    });
}

#[test]
fn whoever_started_it_meanwhile_is_left_alone() {
    const NAME: &str = "whoever_started_it_meanwhile_is_left_alone";
    story(NAME, |stage| {
        let Some(scene) = set(stage, NAME, 0) else { return };
        let id = stage.in_force(&experiment("\"shop\"", &unit_step("stop", "30s")));
        scene.systemd.with(|state| {
            let unit = state.units.values_mut().find(|unit| !unit.active).expect("one is stopped");
            unit.start();
        });
        stage.call("DELETE", &format!("/v1/runs/{id}"), "").expect(200);
        assert_eq!(scene.jobs(), ["StopUnit"]);
        assert_eq!(stage.finished(&id)["cleanup"], "clean");
    });
}

#[test]
fn what_depends_on_a_unit_protects_it_and_so_does_the_floor() {
    const NAME: &str = "what_depends_on_a_unit_protects_it_and_so_does_the_floor";
    story(NAME, |stage| {
        let Some(scene) = set(stage, NAME, 3) else { return };
        let run = stage.play(&experiment("\"shop\"", &unit_step("stop", "1s")));
        let why = run["why"]["message"].as_str().unwrap_or_default();
        assert!(why.contains("stopping 1 more would leave 2"), "{run:#}");
        scene.systemd.with(|state| {
            let idle = MockUnit { active: true, ..MockUnit::default() };
            state.units.insert("web.service".to_owned(), idle);
            for unit in state.units.values_mut().filter(|unit| unit.child.is_some()) {
                unit.required_by = vec!["web.service".to_owned()];
            }
        });
        let run = stage.play(&experiment("\"shop\"", &unit_step("stop", "1s")));
        assert_eq!(run["why"]["reason"], "unit_unfit", "{run:#}");
        let why = run["why"]["message"].as_str().unwrap_or_default();
        assert!(why.contains("systemd would stop web.service with it"), "{why}");
        assert_eq!(scene.jobs(), [""; 0]);
    });
}

#[test]
fn systemd_refuses_and_says_what_to_do() {
    const NAME: &str = "systemd_refuses_and_says_what_to_do";
    story(NAME, |stage| {
        let Some(scene) = set(stage, NAME, 0) else { return };
        scene.systemd.with(|state| state.denied = true);
        let run = stage.play(&experiment("\"shop\"", &unit_step("stop", "1s")));
        assert_eq!(run["verdict"], "inconclusive", "{run:#}");
        let why = run["why"]["message"].as_str().unwrap_or_default();
        assert!(why.contains("polkit"), "{why}");
        assert_eq!(run["cleanup"], "clean", "{run:#}");
        assert_eq!(scene.active(), 3);
    });
}

#[test]
fn the_agent_dies_and_the_warden_starts_the_unit() {
    const NAME: &str = "the_agent_dies_and_the_warden_starts_the_unit";
    story(NAME, |stage| {
        let Some(scene) = set(stage, NAME, 0) else { return };
        let id = stage.in_force(&experiment("\"shop\"", &unit_step("stop", "30s")));
        stage.until("it is stopped", |_| (scene.active() == 2).then_some(()));
        stage.agent().kill();
        stage.until("it is started", |_| (scene.active() == 3).then_some(()));
        stage.start();
        assert_eq!(stage.run(&id)["cleanup"], "clean");
        assert_eq!(scene.jobs(), ["StopUnit", "StartUnit"]);
    });
}

#[test]
fn agent_and_warden_die_and_the_next_start_starts_the_unit() {
    const NAME: &str = "agent_and_warden_die_and_the_next_start_starts_the_unit";
    story(NAME, |stage| {
        let Some(scene) = set(stage, NAME, 0) else { return };
        let id = stage.in_force(&experiment("\"shop\"", &unit_step("stop", "30s")));
        stage.until("it is stopped", |_| (scene.active() == 2).then_some(()));
        let warden = stage.agent().warden();
        send(warden, Signal::SIGSTOP);
        stage.agent().kill();
        send(warden, Signal::SIGKILL);
        stage.until("the warden is gone", |_| (!is_warden(warden)).then_some(()));
        assert_eq!(scene.active(), 2);
        stage.start();
        assert_eq!(scene.active(), 3, "before it served");
        assert_eq!(stage.run(&id)["cleanup"], "clean");
    });
}
