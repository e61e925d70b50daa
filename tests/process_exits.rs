//! Ends of processes are told once, at once, and of nobody else.

#[path = "process_support/mod.rs"]
mod support;

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use support::{Kid, real};
use vervet::{
    host::{
        HostError, ProcessId,
        linux::{clock, exits::Exits},
    },
    policy::time::Moment,
};

/// So long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

fn exits() -> (Exits, mpsc::Receiver<(ProcessId, Moment)>) {
    let (sender, ends) = mpsc::channel();
    let tell = move |id, at| sender.send((id, at)).expect("the test listens");
    (Exits::start(Arc::new(real()), tell).expect("started"), ends)
}

#[test]
fn an_end_is_told_well_within_a_millisecond() {
    let (exits, ends) = exits();
    let mut delays: Vec<Duration> = (0..50)
        .map(|_| {
            let mut kid = Kid::sleeper("vvtest-exit");
            let id = kid.id();
            exits.watch(id).expect("watched");
            let before = clock::boottime();
            kid.0.kill().expect("killed");
            let (ended, at) = ends.recv_timeout(PATIENCE).expect("told");
            assert_eq!(ended, id);
            at.since(before)
        })
        .collect();
    delays.sort_unstable();
    // From the kill to the news, the process's own dying included. The median, because other work
    // shares this machine.
    println!("median {:?}, slowest {:?}", delays[25], delays[49]);
    assert!(delays[25] < Duration::from_millis(5), "{delays:?}");
    assert!(exits.is_empty());
}

#[test]
fn who_is_gone_or_another_by_now_is_told_at_once() {
    let (exits, ends) = exits();
    let mut kid = Kid::sleeper("vvtest-exit");
    let id = kid.id();
    let reused = ProcessId { pid: id.pid, start: id.start - 1 };
    exits.watch(reused).expect("watched");
    assert_eq!(ends.recv_timeout(PATIENCE).expect("told").0, reused);
    kid.end();
    exits.watch(id).expect("watched");
    assert_eq!(ends.recv_timeout(PATIENCE).expect("told").0, id);
}

#[test]
fn each_end_is_told_once_and_the_unwatched_never() {
    let (exits, ends) = exits();
    let (mut first, mut second) = (Kid::sleeper("vvtest-exit"), Kid::sleeper("vvtest-exit"));
    let (one, two) = (first.id(), second.id());
    for id in [one, one, two] {
        exits.watch(id).expect("watched");
    }
    assert_eq!(exits.len(), 2);
    exits.unwatch(one);
    first.end();
    second.end();
    assert_eq!(ends.recv_timeout(PATIENCE).expect("told").0, two);
    drop(exits);
    assert!(ends.recv_timeout(PATIENCE).is_err(), "nothing else was told, and the thread has ended");
}

#[test]
fn hundreds_at_once() {
    let (exits, ends) = exits();
    let mut kids: Vec<Kid> = (0..300).map(|_| Kid::sleeper("vvtest-many")).collect();
    let ids: Vec<ProcessId> = kids.iter().map(Kid::id).collect();
    for id in &ids {
        exits.watch(*id).expect("watched");
    }
    for kid in &mut kids {
        kid.0.kill().expect("killed");
    }
    let mut told: Vec<ProcessId> =
        ids.iter().map(|_| ends.recv_timeout(PATIENCE).expect("told").0).collect();
    told.sort_unstable();
    let mut ids = ids;
    ids.sort_unstable();
    assert_eq!(told, ids);
}

#[test]
fn used_up_descriptors_are_an_error_and_nothing_breaks() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // The limit is the whole process's: with nextest this test has one to itself.
    if std::env::var_os("NEXTEST").is_none() {
        eprintln!("SKIPPED: used_up_descriptors_are_an_error_and_nothing_breaks: needs nextest");
        return;
    }
    let (exits, ends) = exits();
    let (first, mut second) = (Kid::sleeper("vvtest-limit"), Kid::sleeper("vvtest-limit"));
    let (one, two) = (first.id(), second.id());
    exits.watch(two).expect("watched");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("limited");
    let refused = exits.watch(one);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("limit restored");
    assert!(matches!(refused, Err(HostError::Kernel { .. })), "{refused:?}");
    second.end();
    assert_eq!(ends.recv_timeout(PATIENCE).expect("told").0, two);
}
