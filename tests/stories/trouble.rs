//! Something else goes wrong under way: a worker dies by itself, or the source of readings does.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use crate::harness::{
    SLOW, Stage, cap_step, experiment, guests, kill_step, slow_step, snapshot, story, visit,
};

/// From a death to the last undo. 10 ms on an idle machine (a benchmark shows that); machines that
/// run tests are not idle.
const SOON: Duration = Duration::from_millis(250);

fn both_steps(port: u16) -> String {
    format!("{}{}start = \"with previous\"\n", slow_step(port, "30s"), cap_step(port, "30s"))
}

fn time_of(value: &Value) -> Timestamp {
    value.as_str().expect("a time").parse().expect("a time")
}

#[test]
fn a_death_below_the_floor_ends_every_fault_at_once() {
    story("a_death_below_the_floor_ends_every_fault_at_once", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &both_steps(8001)));
        assert!(visit(8001).expect("answers") > SLOW);
        // At the floor is not below it.
        stage.workers[3].crash();
        stage.until("three are ready", |stage| (stage.group_now("shop")["ready"] == 3).then_some(()));
        assert_eq!(stage.run(&id)["state"], "running");

        let died = Timestamp::now();
        stage.workers[2].crash();
        let run = stage.finished(&id);
        assert_eq!(run["verdict"], "aborted", "{run:#}");
        assert_eq!(run["aborted_by"], "limiter", "{run:#}");
        assert_eq!(run["why"]["reason"], "below_floor", "{run:#}");
        assert_eq!(run["cleanup"], "clean", "{run:#}");
        let undone =
            run["steps"].as_array().expect("steps").iter().map(|step| time_of(&step["undone_at"]));
        let took = undone.max().expect("two steps").duration_since(died);
        eprintln!("from the death to the last undo: {:.1} ms", took.as_secs_f64() * 1e3);
        assert!(took.unsigned_abs() < SOON, "from the death to the last undo: {took}");
        assert!(visit(8001).expect("answers") < SLOW);
        assert_eq!(guests(8001, 4).len(), 4);
        assert_eq!(stage.active(), 0);

        // Nothing begins in a group that is below its floor.
        let run = stage.play(&experiment("\"shop\"", &slow_step(8001, "1s")));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        stage.assert_as_before(&before);
    });
}

/// Four workers whose count comes from a program that the story controls.
fn counted(stage: &mut Stage) {
    stage.workers("shop", 8001..=8004);
    stage.write("count", "4\n");
    let group = stage.group("shop", 3, "1h");
    let file = stage.path("count");
    let ready = format!(
        "expected = 4\nready = {{ command = [\"/bin/cat\", \"{}\"], within = \"500ms\" }}\n",
        file.display()
    );
    stage.policy("leashed = false", "", &format!("{group}{ready}"));
    stage.start();
    stage.calm("shop", 4);
}

/// With a fault in force the source breaks; the run ends for `reason`, and no other one begins.
fn breaks(stage: &mut Stage, within: Duration, reasons: &[&str], break_it: impl FnOnce(&mut Stage)) {
    let before = snapshot();
    let id = stage.in_force(&experiment("\"shop\"", &slow_step(8001, "30s")));
    let broken = Timestamp::now();
    break_it(stage);
    let run = stage.finished(&id);
    assert_eq!(run["verdict"], "aborted", "{run:#}");
    assert_eq!(run["aborted_by"], "limiter", "{run:#}");
    let reason = run["why"]["reason"].as_str().expect("a reason");
    assert!(reasons.contains(&reason), "{run:#}");
    let took = time_of(&run["steps"][0]["undone_at"]).duration_since(broken).unsigned_abs();
    eprintln!("{reason}: undone after {} ms", took.as_millis());
    assert!(took < within, "undone after {took:?}, {within:?} is the limit");
    assert!(visit(8001).expect("answers") < SLOW);
    for step in [slow_step(8001, "1s"), kill_step("shop", 1)] {
        let run = stage.play(&experiment("\"shop\"", &step));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        eprintln!("then: {}", run["why"]["message"]);
    }
    assert!(stage.workers.iter_mut().all(|worker| worker.lives()));
    stage.assert_as_before(&before);
}

/// `stale_after` of the stories' groups is 1 s.
const STALE: Duration = Duration::from_millis(1500);

#[test]
fn a_source_that_hangs_ends_the_run() {
    story("a_source_that_hangs_ends_the_run", |stage| {
        counted(stage);
        breaks(stage, STALE, &["reading_overdue", "source_failed"], |stage| {
            // Nobody ever writes to this pipe.
            let pipe = stage.path("pipe");
            nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
            fs::rename(pipe, stage.path("count")).expect("moved");
        });
    });
}

#[test]
fn a_source_that_errs_ends_the_run() {
    story("a_source_that_errs_ends_the_run", |stage| {
        counted(stage);
        breaks(stage, STALE, &["source_failed"], |stage| {
            fs::remove_file(stage.path("count")).expect("removed");
        });
    });
}

#[test]
fn a_source_that_talks_nonsense_ends_the_run() {
    story("a_source_that_talks_nonsense_ends_the_run", |stage| {
        counted(stage);
        breaks(stage, STALE, &["source_failed"], |stage| {
            let fresh = stage.write("fresh", "plenty\n");
            fs::rename(fresh, stage.path("count")).expect("moved");
        });
    });
}

#[test]
fn a_source_that_says_all_down_is_not_believed() {
    story("a_source_that_says_all_down_is_not_believed", |stage| {
        counted(stage);
        breaks(stage, STALE, &["all_unready"], |stage| {
            let fresh = stage.write("fresh", "0\n");
            fs::rename(fresh, stage.path("count")).expect("moved");
        });
    });
}

/// What the endpoint that all workers are asked at says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Well,
    Down,
    Nothing,
}

/// Serves every worker's health from one place, so that the story can break all of it at once.
fn endpoint(port: u16) -> Arc<Mutex<Says>> {
    let says = Arc::new(Mutex::new(Says::Well));
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("bound");
    let shared = says.clone();
    std::thread::spawn(move || {
        // Those that get no answer are kept open.
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let word = *shared.lock().expect("not poisoned");
            let text = match word {
                Says::Well => "200 OK",
                Says::Down => "503 Service Unavailable",
                Says::Nothing => {
                    kept.push(stream);
                    continue;
                }
            };
            let _ = write!(stream, "HTTP/1.1 {text}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    says
}

fn asked(stage: &mut Stage) -> Arc<Mutex<Says>> {
    let says = endpoint(9000);
    stage.workers("shop", 8001..=8004);
    let group = stage.group("shop", 3, "1h");
    let ready = "ready = { http = \"http://127.0.0.1:9000/of/{port}\", within = \"500ms\" }\n";
    stage.policy("leashed = false", "", &format!("{group}{ready}"));
    stage.start();
    stage.calm("shop", 4);
    says
}

#[test]
fn an_endpoint_that_hangs_ends_the_run() {
    story("an_endpoint_that_hangs_ends_the_run", |stage| {
        let says = asked(stage);
        let reasons = ["all_unready", "below_floor", "reading_overdue"];
        breaks(stage, STALE, &reasons, |_| *says.lock().expect("not poisoned") = Says::Nothing);
    });
}

#[test]
fn an_endpoint_that_says_all_down_is_not_believed() {
    story("an_endpoint_that_says_all_down_is_not_believed", |stage| {
        let says = asked(stage);
        breaks(stage, STALE, &["all_unready"], |_| *says.lock().expect("not poisoned") = Says::Down);
    });
}
