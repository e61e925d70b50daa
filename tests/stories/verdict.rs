//! Honesty: what had an effect passes, what had none proves nothing, and what broke has failed; each
//! with its exit code.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use crate::harness::{
    Stage, cap_step, experiment, guests, kill_step, slow_step, snapshot, story, visit,
};

/// Runs an experiment by the command line while customers come and go; its exit code and report.
fn run_with(stage: &Stage, text: &str, customers: impl Fn() + Send + 'static) -> (i32, Value) {
    let file = stage.write("experiment.toml", text);
    let mut command = stage.cli_command(&["run", "--json", file.to_str().expect("UTF-8")]);
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let over = Arc::new(AtomicBool::new(false));
    let until = over.clone();
    let crowd = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            customers();
        }
    });
    let output = run.wait_with_output().expect("ended");
    over.store(true, Ordering::Relaxed);
    crowd.join().expect("customers");
    let report =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().expect("a code"), report)
}

fn nobody() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn what_is_felt_passes_and_what_nobody_felt_proves_nothing() {
    story("what_is_felt_passes_and_what_nobody_felt_proves_nothing", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let slow = experiment("\"shop\"", &slow_step(8001, "800ms"));
        let (code, report) = run_with(stage, &slow, || drop(visit(8001)));
        assert_eq!((code, &report["run"]["verdict"]), (0, &"passed".into()), "{report:#}");
        assert_eq!(report["run"]["steps"][0]["effect"]["proven"], true, "{report:#}");
        let (code, report) = run_with(stage, &slow, nobody);
        assert_eq!((code, &report["run"]["verdict"]), (5, &"inconclusive".into()), "{report:#}");
        assert_eq!(report["run"]["why"]["reason"], "effect_unproven", "{report:#}");

        let cap = experiment("\"shop\"", &cap_step(8001, "800ms"));
        let (code, report) = run_with(stage, &cap, || {
            drop(guests(8001, 4));
            nobody();
        });
        assert_eq!((code, &report["run"]["verdict"]), (0, &"passed".into()), "{report:#}");
        let (code, report) = run_with(stage, &cap, nobody);
        assert_eq!((code, &report["run"]["verdict"]), (5, &"inconclusive".into()), "{report:#}");
        stage.assert_as_before(&before);
    });
}

#[test]
fn a_hypothesis_that_does_not_hold_fails() {
    story("a_hypothesis_that_does_not_hold_fails", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let probe = "[[probe]]\nname = \"fast\"\nhttp = \"http://127.0.0.1:8001/\"\n\
                     expect = { status = 200, within = \"100ms\" }\nevery = \"50ms\"\ntolerate = 1\n";
        let text = experiment("\"shop\"", &format!("{probe}{}", slow_step(8001, "10s")));
        let (code, report) = run_with(stage, &text, nobody);
        assert_eq!((code, &report["run"]["verdict"]), (1, &"failed".into()), "{report:#}");
        assert_eq!(report["run"]["why"]["reason"], "hypothesis_failed", "{report:#}");
        assert_eq!(report["run"]["cleanup"], "clean", "{report:#}");
        stage.assert_as_before(&before);

        // What does not hold before the first step never begins.
        stage.workers[0].crash();
        stage.until("three are ready", |stage| (stage.group_now("shop")["ready"] == 3).then_some(()));
        let text = experiment("\"shop\"", &format!("{probe}{}", kill_step("shop", 1)));
        let (code, report) = run_with(stage, &text, nobody);
        assert!(code != 0 && report["run"]["steps"][0]["state"] == "skipped", "{code} {report:#}");
        assert_eq!(
            stage.workers.iter_mut().filter_map(|worker| worker.lives().then_some(())).count(),
            3
        );
    });
}

#[test]
fn a_step_ends_at_its_time() {
    story("a_step_ends_at_its_time", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let run = stage.play(&experiment("\"shop\"", &slow_step(8001, "700ms")));
        let time = |key: &str| -> jiff::Timestamp {
            run["steps"][0][key].as_str().expect("a time").parse().expect("a time")
        };
        let lasted = time("undone_at").duration_since(time("injected_at")).as_millis();
        assert!((600..1200).contains(&lasted), "it lasted {lasted} ms, not 700: {run:#}");
        stage.assert_as_before(&before);

        // And nobody may ask for longer than the owner allows.
        let run = stage.play(&experiment("\"shop\"", &slow_step(8001, "16m")));
        assert_eq!(run["why"]["reason"], "step_too_long", "{run:#}");
    });
}
