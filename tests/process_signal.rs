//! Signals reach exactly the process that was meant; what must not be touched is told.

#[path = "process_support/mod.rs"]
mod support;

use std::{os::unix::process::ExitStatusExt as _, process::Command};

use support::{Fake, Kid, real};
use vervet::{
    experiment::Signal,
    host::{Delivery, HostError, ProcessId, ProcessState},
};

fn signal(name: &str) -> Signal {
    Signal::from_name(name).expect("a signal")
}

#[test]
fn a_signal_ends_the_process_that_was_meant() {
    let mut kid = Kid::sleeper("vvtest-signal");
    let (processes, id) = (real(), kid.id());
    assert_eq!(processes.state(id), Ok(ProcessState::Running));
    assert_eq!(processes.signal(id, Signal::KILL), Ok(Delivery::Sent { caught: false }));
    // Not reaped yet: a zombie is gone for us as soon as it is one.
    while processes.state(id) != Ok(ProcessState::Gone) {
        std::thread::yield_now();
    }
    assert_eq!(processes.signal(id, Signal::KILL), Ok(Delivery::Gone));
    assert_eq!(kid.0.wait().expect("status").signal(), Some(9));
    assert_eq!(processes.signal(id, Signal::KILL), Ok(Delivery::Gone));
}

#[test]
fn a_pid_that_was_used_again_is_never_signalled() {
    let mut kid = Kid::sleeper("vvtest-reuse");
    let (processes, id) = (real(), kid.id());
    // What a resolved target looks like when its pid has gone to another process since.
    for start in [id.start - 1, id.start + 1, 0] {
        let earlier = ProcessId { pid: id.pid, start };
        assert_eq!(processes.state(earlier), Ok(ProcessState::Gone));
        assert_eq!(processes.signal(earlier, Signal::KILL), Ok(Delivery::Gone));
        assert!(processes.open_pidfd(earlier).expect("asked").is_none());
    }
    assert!(kid.0.try_wait().expect("status").is_none(), "it lives");
    assert_eq!(processes.state(id), Ok(ProcessState::Running));
}

#[test]
fn stopped_processes_are_told() {
    let kid = Kid::sleeper("vvtest-stop");
    let (processes, id) = (real(), kid.id());
    processes.signal(id, signal("SIGSTOP")).expect("stopped");
    while processes.state(id) == Ok(ProcessState::Running) {
        std::thread::yield_now();
    }
    assert_eq!(processes.state(id), Ok(ProcessState::Stopped));
    processes.signal(id, signal("SIGCONT")).expect("continued");
    while processes.state(id) == Ok(ProcessState::Stopped) {
        std::thread::yield_now();
    }
    assert_eq!(processes.state(id), Ok(ProcessState::Running));
}

#[test]
fn a_handler_of_the_processs_own_is_told() {
    // A shell that has got as far as waiting has set its trap.
    let kid = Kid::spawn(
        Command::new("/bin/sh").args(["-c", "trap : TERM; while :; do read x; sleep 9; done"]),
    );
    let (processes, id) = (real(), kid.id());
    let caught = || {
        let status = std::fs::read(format!("/proc/{}/status", id.pid)).expect("status");
        vervet::host::linux::stat::catches(&status, 15) == Some(true)
    };
    while !caught() {
        std::thread::yield_now();
    }
    assert_eq!(processes.signal(id, Signal::TERM), Ok(Delivery::Sent { caught: true }));
    for child in std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", id.pid))
        .unwrap_or_default()
        .split_whitespace()
    {
        let child = processes.identify(child.parse().expect("pid")).expect("identify");
        child.map(|child| processes.signal(child, Signal::KILL));
    }
}

#[test]
fn init_and_vervet_itself_are_never_signalled() {
    let processes = real();
    for pid in [1, std::process::id()] {
        let id = processes.identify(pid).expect("identify").expect("alive");
        let refused = processes.signal(id, signal("SIGURG"));
        assert!(matches!(refused, Err(HostError::Unavailable(_))), "{refused:?}");
    }
}

#[test]
fn vervets_own_and_the_declared_are_protected() {
    let (kid, other) = (Kid::sleeper("vvtest-declared"), Kid::sleeper("vvtest-undeclared"));
    let processes = real();
    processes.protect(kid.id(), "the warden");
    let protected = processes.protected().expect("protected");
    let own = processes.identify(std::process::id()).expect("identify").expect("alive");
    assert_eq!(protected.get(&own).map(String::as_str), Some("vervet itself"));
    assert_eq!(protected.get(&kid.id()).map(String::as_str), Some("the warden"));
    assert!(protected.keys().any(|id| id.pid == 1));
    let parent = std::os::unix::process::parent_id();
    assert!(protected.keys().any(|id| id.pid == parent), "the ancestors");
    assert!(!protected.contains_key(&other.id()), "an ordinary child is not");
}

#[test]
fn ssh_and_its_logins_are_protected_but_not_what_they_start() {
    let fake = Fake::new();
    let with_parent = |pid: u32, comm: &str, parent: u32| {
        let dir = fake.add(pid, comm, comm);
        let stat = format!("{pid} ({comm}) S {parent} 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 9 0 0\n");
        std::fs::write(dir.join("stat"), stat).expect("stat");
    };
    with_parent(1, "systemd", 0);
    with_parent(500, "sshd", 1);
    with_parent(501, "sshd-session", 500);
    with_parent(502, "bash", 501);
    with_parent(503, "service", 502);
    with_parent(504, "sshd-lookalike", 1);
    let protected = fake.processes().protected().expect("protected");
    let pids: Vec<u32> = protected.keys().map(|id| id.pid).collect();
    assert_eq!(pids, [1, 500, 501, 502]);
}

#[test]
fn the_ports_of_ssh_are_22_and_those_that_it_holds() {
    let fake = Fake::new();
    let dir = fake.add(500, "sshd-session", "sshd");
    let connected = "   1: 0100007F:08AE 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 778 1 0 100 0 0 10 0\n";
    std::fs::write(dir.join("net/tcp"), format!("{}{connected}", support::TCP_HEAD)).expect("tcp");
    std::os::unix::fs::symlink("socket:[778]", dir.join("fd/4")).expect("fd");
    let ports = fake.processes().ssh_ports().expect("ports");
    assert!(ports.contains(&22) && ports.contains(&2222), "{ports:?}");
}
