//! The library, played: against a shop of good habits each experiment passes, its effect proven; against
//! one of bad habits the experiment about them fails, by the probe that is meant to see it.

use serde_json::Value;

use crate::{
    cgroup::Cgroup,
    harness::{Stage, story},
    instance,
    rows::{ROWS, Row, Scene},
    shop::{self, Habit, INSTANCES, Shop},
    systemd_support::{self, MockUnit},
};

/// Four instances with a floor of two, a budget for the experiments that take two, and the agent.
fn policy(stage: &mut Stage, members: Option<&str>) {
    let group = stage.group("checkout", 2, "1s").replace("at_once = 1", "at_once = 2");
    let group = group.replace("stale_after = \"1s\"", "stale_after = \"5s\"");
    let ready =
        "ready = { http = \"http://127.0.0.1:{port}/healthz\", within = \"1500ms\" }\nmonkey = true\n";
    let marker = format!("cmdline = \"{}\"", stage.marker("checkout"));
    let group = group.replace(&marker, members.unwrap_or(&marker));
    stage.policy("leashed = false", "wait = \"10s\"", &format!("{group}{ready}"));
    stage.start();
}

fn processes(stage: &mut Stage, habit: Habit) -> Shop {
    let mut shop = Shop::open(habit);
    shop.staff(stage, habit);
    policy(stage, None);
    shop
}

fn play(stage: &mut Stage, row: &Row, text: &str) -> Value {
    stage.calm("checkout", 4);
    // Nothing is left of the run before: not even a breaker that is still open.
    stage.until("the shop serves", |_| (0..10).all(|_| shop::serves()).then_some(()));
    let run = stage.play(text);
    assert_eq!(run["cleanup"], "clean", "{}: {run:#}", row.name);
    run
}

fn passes(stage: &mut Stage, row: &Row) {
    let run = play(stage, row, &row.text());
    assert_eq!(run["verdict"], "passed", "{}: {run:#}\n{}", row.name, stage.log());
    for step in run["steps"].as_array().expect("steps") {
        assert_eq!(step["effect"]["proven"], true, "{}: {step:#}", row.name);
    }
    eprintln!("{}: passed", row.name);
}

fn all_pass(name: &str, folder: &str) {
    story(name, |stage| {
        let _shop = processes(stage, Habit::Good);
        let rows = ROWS.iter().filter(|row| row.name.starts_with(folder));
        for row in rows.filter(|row| row.scene == Scene::Processes) {
            passes(stage, row);
        }
    });
}

#[test]
fn losses_pass() {
    all_pass("losses_pass", "loss/");
}

#[test]
fn the_monkey_passes() {
    all_pass("the_monkey_passes", "monkey");
}

#[test]
fn hangs_pass() {
    all_pass("hangs_pass", "hang/");
}

#[test]
fn slowness_passes() {
    all_pass("slowness_passes", "slow/");
}

#[test]
fn full_houses_pass() {
    all_pass("full_houses_pass", "full/");
}

#[test]
fn mixtures_pass() {
    all_pass("mixtures_pass", "together/");
}

/// With a service manager of the test's own; on a real one, a booted host plays them: tests/vm/units.rs.
#[test]
fn units_pass() {
    const NAME: &str = "units_pass";
    story(NAME, |stage| {
        let Some(cgroup) = Cgroup::new(NAME) else { return };
        let Some(systemd) = systemd_support::start(NAME) else { return };
        let marker = stage.marker("checkout");
        let _shop = Shop::open(Habit::Good);
        for (number, port) in (1..).zip(INSTANCES) {
            let unit = format!("checkout@{number}.service");
            let words = instance::command(&marker, port, false);
            let mut mock = MockUnit::new(&words.iter().map(String::as_str).collect::<Vec<_>>());
            (mock.cgroup, mock.cgroup_dir) = (cgroup.path_of(&unit), Some(cgroup.unit(&unit)));
            systemd.add(&unit, mock);
        }
        stage.bus = Some(systemd.address.clone());
        policy(stage, Some("unit = \"checkout@*.service\""));
        for row in ROWS.iter().filter(|row| row.scene == Scene::Units) {
            passes(stage, row);
        }
        // Its processes go before their cgroups do.
        stage.agent = None;
        drop(systemd);
    });
}

/// Every scene is played by one of the tests above.
#[test]
fn no_row_is_without_a_test() {
    let folders = ["monkey", "loss/", "hang/", "slow/", "full/", "together/"];
    for row in ROWS {
        let played = folders.iter().any(|folder| row.name.starts_with(folder));
        assert!(played || row.scene == Scene::Units, "{}", row.name);
    }
}

fn found(name: &str, habit: Habit) {
    story(name, |stage| {
        let rows = ROWS.iter().filter_map(|row| row.finds.map(|(bad, probe)| (row, bad, probe)));
        let rows: Vec<_> = rows.filter(|(_, bad, _)| *bad == habit).collect();
        assert!(!rows.is_empty());
        let _shop = processes(stage, habit);
        for (row, _, probe) in rows {
            let run = play(stage, row, &row.longer());
            assert_eq!(run["verdict"], "failed", "{}: {run:#}\n{}", row.name, stage.log());
            let why = run["why"]["message"].as_str().unwrap_or_default();
            assert!(why.contains(probe), "{}: {why}", row.name);
            eprintln!("{}: failed: {why}", row.name);
        }
    });
}

#[test]
fn a_brittle_balancer_is_found() {
    found("a_brittle_balancer_is_found", Habit::Brittle);
}

#[test]
fn waiting_without_a_limit_is_found() {
    found("waiting_without_a_limit_is_found", Habit::Trusting);
}

#[test]
fn that_nobody_starts_instances_is_found() {
    found("that_nobody_starts_instances_is_found", Habit::Unattended);
}

/// What `vervet new` writes runs as it is.
#[test]
fn first_experiments_pass() {
    story("first_experiments_pass", |stage| {
        let _shop = processes(stage, Habit::Good);
        for kind in ["kill", "pause", "latency", "connections"] {
            let file = stage.path(&format!("first {kind}.toml")).display().to_string();
            let mut args = vec!["new", "--kind", kind, "--group", "checkout", "--duration", "2s"];
            args.extend(["--url", "http://127.0.0.1:8080/checkout", "-o", &file]);
            if matches!(kind, "latency" | "connections") {
                args.extend(["--listen", "8080", "--max", "10"]);
            }
            let output = stage.cli(&args);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
            assert!(!said.contains("[[group]]"), "the agent has that group: {said}");
            stage.calm("checkout", 4);
            stage.until("the shop serves", |_| (0..10).all(|_| shop::serves()).then_some(()));
            let output = stage.cli(&["run", &file]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(0), "{kind}: {said}\n{}", stage.log());
        }
    });
}
