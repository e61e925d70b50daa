//! Programs as probes: what they print and how they end; and that nothing of them stays behind.

#[path = "process_support/mod.rs"]
mod support;

use std::{
    fs,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use support::real;
use vervet::{
    host::{ProcessId, linux::exits::Exits},
    probe::command::{Count, run},
};

const LONG: Duration = Duration::from_secs(30);

fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

async fn count(script: &str) -> Result<Count, String> {
    run(&sh(script), LONG).await?.count()
}

#[tokio::test]
async fn counts_are_one_number_or_two() {
    assert_eq!(count("echo 3").await, Ok(Count { ready: 3, total: None }));
    assert_eq!(count("printf '3 4'").await, Ok(Count { ready: 3, total: Some(4) }));
    assert_eq!(count("echo 0 0").await, Ok(Count { ready: 0, total: Some(0) }));
    for bad in [
        "true",
        "echo -1",
        "echo three",
        "echo 1 2 3",
        "echo 5 4",
        "echo 3.0",
        "echo +3",
        "echo 99999999999",
    ] {
        assert!(count(bad).await.is_err(), "{bad}");
    }
    assert!(count("yes 1 | head -c 100000").await.is_err(), "a flood");
}

#[tokio::test]
async fn failures_say_how_and_quote_the_complaint() {
    let error = count("echo 4; echo cannot reach the balancer >&2; exit 3").await.expect_err("failed");
    assert!(error.contains("status 3") && error.contains("cannot reach the balancer"), "{error}");
    assert!(count("kill -9 $$").await.expect_err("killed").contains("signal 9"));
    assert!(run(&["/nonexistent/program".to_owned()], LONG).await.is_err());
    assert!(run(&[], LONG).await.is_err());
}

/// Runs a script that writes the pids of itself and of a child of its own into a file and then
/// hangs, and returns when both have ended.
async fn hang_and_vanish(cancel: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("pids");
    let script = format!("sleep 600 & echo $$ $! > {0}.new; mv {0}.new {0}; wait", file.display());
    let within = if cancel { LONG } else { Duration::from_secs(2) };
    let began = Instant::now();
    let running = tokio::spawn(async move { run(&sh(&script), within).await });
    let ids: Vec<ProcessId> = loop {
        if let Ok(pids) = fs::read_to_string(&file) {
            let identify = |pid: &str| real().identify(pid.parse().expect("pid")).expect("identify");
            break pids.split_whitespace().map(|pid| identify(pid).expect("alive")).collect();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(ids.len(), 2);
    let (sender, ends) = mpsc::channel();
    let exits =
        Exits::start(Arc::new(real()), move |id, _| sender.send(id).expect("listening")).expect("exits");
    for id in &ids {
        exits.watch(*id).expect("watched");
    }
    if cancel {
        running.abort();
    } else {
        let error = running.await.expect("joined").expect_err("late");
        assert!(error.contains("within 2s"), "{error}");
    }
    for _ in &ids {
        tokio::task::block_in_place(|| ends.recv_timeout(Duration::from_secs(10))).expect("ended");
    }
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_overruns_is_killed_with_its_children() {
    hang_and_vanish(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_nobody_waits_for_is_killed_with_its_children() {
    hang_and_vanish(true).await;
}

#[tokio::test]
async fn a_child_that_holds_the_output_open_holds_nobody_up() {
    let began = Instant::now();
    let counted = count("sleep 600 & echo 2").await;
    assert_eq!(counted, Ok(Count { ready: 2, total: None }));
    assert!(began.elapsed() < Duration::from_secs(10));
}
