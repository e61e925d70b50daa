//! Exactness: the same seed names the same victims, and only those that were named are hit.

use std::{collections::BTreeSet, fs, process::Command};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    harness::{Stage, experiment, kill_step, story},
    worker::Worker,
};

/// Six workers of which all but one may go, two at a time and soon again.
fn six(stage: &mut Stage) {
    stage.workers("shop", 8001..=8006);
    let group = stage.group("shop", 1, "100ms").replace("at_once = 1", "at_once = 2");
    stage.policy("leashed = false", "", &group);
    stage.start();
    stage.calm("shop", 6);
}

fn targets(steps: &Value) -> Vec<String> {
    let lines = steps[0]["targets"].as_array().expect("targets").iter();
    lines.map(|line| line.as_str().expect("a line").to_owned()).collect()
}

fn planned(stage: &Stage, text: &str, seed: u64) -> Value {
    stage.call("POST", &format!("/v1/plans?seed={seed}"), text).expect(200)
}

#[test]
fn the_same_seed_names_the_same_victims_in_the_same_order() {
    story("the_same_seed_names_the_same_victims_in_the_same_order", |stage| {
        six(stage);
        // A signal that nobody dies of: the second run finds what the first one found.
        let harmless = "signal = \"SIGCONT\"\nduration = \"200ms\"\n";
        let text = experiment("\"shop\"", &format!("{}{harmless}", kill_step("shop", 2)));
        let first = planned(stage, &text, 7);
        let again = planned(stage, &text, 7);
        assert_eq!(first["digest"], again["digest"]);
        assert_eq!(targets(&first["steps"]), targets(&again["steps"]));
        let orders: BTreeSet<_> =
            (0..20).map(|seed| targets(&planned(stage, &text, seed)["steps"])).collect();
        assert!(orders.len() > 2, "seeds make no difference: {orders:?}");

        for _ in 0..2 {
            let answer = stage.call("POST", "/v1/runs?seed=7", &text).expect(202);
            let run = stage.finished(answer["id"].as_str().expect("an id"));
            assert_eq!(targets(&run["steps"]), targets(&first["steps"]), "{run:#}");
            stage.calm("shop", 6);
        }
        // Another life of the agent draws the same.
        stage.agent().kill();
        stage.start();
        stage.calm("shop", 6);
        assert_eq!(planned(stage, &text, 7)["digest"], first["digest"]);

        // And those that were named are those that die.
        let text = experiment("\"shop\"", &kill_step("shop", 2));
        let named = targets(&planned(stage, &text, 7)["steps"]).join("\n");
        let answer = stage.call("POST", "/v1/runs?seed=7", &text).expect(202);
        let run = stage.finished(answer["id"].as_str().expect("an id"));
        assert_eq!(run["verdict"], "passed", "{run:#}");
        for worker in &mut stage.workers {
            let is_named = words(&named).contains(&worker.pid());
            assert_eq!(worker.lives(), !is_named, "{} of {named}", worker.pid());
        }
    });
}

/// Every number in a text.
fn words(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn a_plan_does_not_outlive_those_it_names() {
    story("a_plan_does_not_outlive_those_it_names", |stage| {
        six(stage);
        let text = experiment("\"shop\"", &kill_step("shop", 1));
        let plan = planned(stage, &text, 7);
        let digest = plan["digest"].as_str().expect("a digest").to_owned();
        let named = words(&targets(&plan["steps"]).join(" "));
        let victim = stage.workers.iter().position(|worker| named.contains(&worker.pid()));
        let victim = victim.expect("one of them");
        let port = stage.workers[victim].port;
        drop(stage.workers.remove(victim));
        let marker = stage.marker("shop");
        stage.workers.push(Worker::start(&marker, port, false));
        stage.calm("shop", 6);
        let answer = stage.call("POST", &format!("/v1/runs?seed=7&plan={digest}"), &text).expect(202);
        let run = stage.finished(answer["id"].as_str().expect("an id"));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        assert_eq!(run["why"]["reason"], "plan_differs", "{run:#}");
        assert!(stage.workers.iter_mut().all(Worker::lives));
        // What it would do now may be done.
        let digest = planned(stage, &text, 7)["digest"].as_str().expect("a digest").to_owned();
        let answer = stage.call("POST", &format!("/v1/runs?seed=7&plan={digest}"), &text).expect(202);
        let run = stage.finished(answer["id"].as_str().expect("an id"));
        assert_eq!(run["verdict"], "passed", "{run:#}");
    });
}

const INSIDE: &str = "VVSTORY_INSIDE";

/// Plays a story in a pid namespace as well, where it can choose the next pid.
fn with_own_pids(name: &str, play: impl FnOnce(&mut Stage) + Send) {
    if std::env::var(INSIDE).is_ok() {
        return story(name, play);
    }
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", &format!("repeat::{name}"), "--nocapture"])
        .env(INSIDE, "1")
        .output();
    let output = match output {
        Err(error) => return eprintln!("SKIPPED: {name}: unshare: {error}"),
        Ok(output) => output,
    };
    let error = String::from_utf8_lossy(&output.stderr);
    if error.starts_with("unshare: ") {
        return eprintln!("SKIPPED: {name}: {error}");
    }
    eprint!("{error}");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

/// A process that takes over a pid which has just become free.
fn take_over(stage: &Stage, name: &str, pid: u32, port: u16) -> Option<Worker> {
    for _ in 0..50 {
        // The kernel gives the next free one.
        if let Err(error) = fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()) {
            eprintln!("SKIPPED: {name}: ns_last_pid: {error}");
            return None;
        }
        let worker = Worker::start(&stage.marker("shop"), port, false);
        if worker.pid() == pid {
            return Some(worker);
        }
    }
    panic!("pid {pid} is not to be had");
}

#[test]
fn a_plan_does_not_hit_another_process_of_the_same_pid() {
    let name = "a_plan_does_not_hit_another_process_of_the_same_pid";
    with_own_pids(name, |stage| {
        six(stage);
        let text = experiment("\"shop\"", &kill_step("shop", 1));
        let plan = planned(stage, &text, 7);
        let digest = plan["digest"].as_str().expect("a digest").to_owned();
        let named = words(&targets(&plan["steps"]).join(" "));
        let victim = stage.workers.iter().position(|worker| named.contains(&worker.pid()));
        let victim = stage.workers.remove(victim.expect("one of them"));
        let (pid, port) = (victim.pid(), victim.port);
        drop(victim);
        let Some(other) = take_over(stage, name, pid, port) else { return };
        stage.workers.push(other);
        stage.calm("shop", 6);
        let answer = stage.call("POST", &format!("/v1/runs?seed=7&plan={digest}"), &text).expect(202);
        let run = stage.finished(answer["id"].as_str().expect("an id"));
        assert_eq!(run["why"]["reason"], "plan_differs", "{run:#}");
        assert!(stage.workers.iter_mut().all(Worker::lives));
    });
}

#[test]
fn a_second_signal_does_not_hit_another_process_of_the_same_pid() {
    let name = "a_second_signal_does_not_hit_another_process_of_the_same_pid";
    with_own_pids(name, |stage| {
        six(stage);
        let then =
            "signal = \"SIGTERM\"\nthen = { signal = \"SIGKILL\", after = \"1s\" }\nduration = \"2s\"\n";
        let id = stage.begin(&experiment("\"shop\"", &format!("{}{then}", kill_step("shop", 1))));
        let victim = stage.until("one worker has ended", |stage| {
            stage.workers.iter_mut().position(|worker| !worker.lives())
        });
        let victim = stage.workers.remove(victim);
        let Some(other) = take_over(stage, name, victim.pid(), victim.port) else { return };
        stage.workers.push(other);
        let run = stage.finished(&id);
        eprintln!("{}", run["steps"][0]);
        assert!(stage.workers.iter_mut().all(Worker::lives), "the second signal hit another process");
    });
}

#[test]
fn the_same_key_begins_one_run() {
    story("the_same_key_begins_one_run", |stage| {
        six(stage);
        let text = experiment("\"shop\"", &kill_step("shop", 1));
        let post = |stage: &Stage, text: &str| {
            let headers = [("Content-Type", "application/toml"), ("Idempotency-Key", "build-42")];
            stage.call_with("POST", "/v1/runs", &headers, text)
        };
        let first = post(stage, &text);
        let id = first.expect(202)["id"].as_str().expect("an id").to_owned();
        assert!(!first.head.to_ascii_lowercase().contains("idempotent-replayed"), "{first:?}");
        let again = post(stage, &text);
        assert_eq!(again.expect(202)["id"], *id);
        stage.finished(&id);
        assert_eq!(post(stage, &text).expect(202)["id"], *id);

        // The same agent, one after a SIGKILL, one after an orderly stop.
        for restart in [None, Some(Signal::SIGKILL), Some(Signal::SIGTERM)] {
            if let Some(signal) = restart {
                stage.agent().signal(signal);
                stage.agent().wait();
                stage.start();
                stage.calm("shop", 5);
            }
            let again = post(stage, &text);
            assert_eq!(again.expect(202)["id"], *id);
            assert!(again.head.to_ascii_lowercase().contains("idempotent-replayed: true"), "{again:?}");
            let other = post(stage, &experiment("\"shop\"", &kill_step("shop", 2)));
            assert_eq!(other.expect(422)["reason"], "idempotency_key_reused", "{other:?}");
        }
        assert_eq!(stage.get("/v1/runs")["runs"].as_array().map(Vec::len), Some(1));
        let alive = stage.workers.iter_mut().filter_map(|worker| worker.lives().then_some(())).count();
        assert_eq!(alive, 5);
    });
}
