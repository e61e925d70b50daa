//! The warden undoes what the agent cannot, and only that.
//!
//! Real processes: this binary plays the agent and the warden too, as ignored tests that it starts
//! itself. Their host restores files of a temporary directory in the place of sysctls, and
//! continues processes that the test stopped.

mod journal_support;
mod warden_support;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use journal_support::{delay, intent, run_id};
use nix::sys::{
    signal::{Signal, kill},
    wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
};
use vervet::{
    fault::{
        self, KERNEL_LEASE,
        undo::{Restore, Undo},
    },
    host::{
        ProcessId,
        sim::{SimHost, Trouble, Verb},
    },
    warden::{self, Launch, Warden},
};
use warden_support::{FileHost, changed_file, fault, file_undo, pid};

/// Arguments that make this binary play a part.
fn part(name: &str) -> Vec<String> {
    [name, "--exact", "--ignored", "--nocapture", "--test-threads=1"].map(str::to_owned).into()
}

fn launch() -> Launch {
    Launch {
        exe: std::env::current_exe().expect("this binary"),
        args: part("warden_part").into_iter().map(Into::into).collect(),
    }
}

#[test]
#[ignore = "a part played for the other tests"]
fn warden_part() {
    if let Err(error) = warden::main(&FileHost) {
        eprintln!("{error}");
    }
}

/// Holds the file that the environment names, says so, and lives until it is killed.
#[test]
#[ignore = "a part played for the other tests"]
fn agent_part() {
    let Ok(path) = std::env::var("VERVET_TEST_FILE") else { return };
    let mut warden = Warden::spawn(launch()).unwrap();
    warden.hold(&fault(1), &file_undo(Path::new(&path)), None).unwrap();
    println!("held");
    let _ = std::io::stdin().read(&mut [0]);
    warden.release(&fault(1)).unwrap();
}

/// An agent in a process of its own whose warden holds the file.
struct Agent(Child);

impl Agent {
    fn start(path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(part("agent_part"))
            .env("VERVET_TEST_FILE", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|text| text.unwrap().ends_with("held")), "the agent did not get that far");
        Self(child)
    }

    /// Standard error, which ends when agent and warden have both ended.
    fn log(&mut self) -> BufReader<std::process::ChildStderr> {
        BufReader::new(self.0.stderr.take().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_was_released_is_left_alone() {
    let (_dir, path) = changed_file();
    let mut warden = Warden::spawn(launch()).unwrap();
    warden.hold(&fault(1), &file_undo(&path), None).unwrap();
    warden.release(&fault(1)).unwrap();
    warden.release(&fault(2)).unwrap();
    assert!(warden.finish().unwrap().unwrap().success());
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
}

#[test]
fn a_killed_agent_is_undone() {
    let (_dir, path) = changed_file();
    let mut agent = Agent::start(&path);
    let mut log = agent.log();
    let began = Instant::now();
    agent.0.kill().unwrap();
    let mut said = String::new();
    log.read_to_string(&mut said).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert!(said.contains("undid 00000000001: the agent is gone"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn an_agent_that_ends_well_leaves_nothing_to_do() {
    let (_dir, path) = changed_file();
    let mut agent = Agent::start(&path);
    let mut log = agent.log();
    drop(agent.0.stdin.take());
    log.read_to_string(&mut String::new()).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
}

#[test]
fn a_failing_undo_is_tried_again() {
    let (_dir, path) = changed_file();
    let busy = path.with_extension("busy");
    fs::write(&busy, "").unwrap();
    let mut agent = Agent::start(&path);
    let mut log = agent.log();
    agent.0.kill().unwrap();
    let mut said = String::new();
    while !said.contains("failed to undo") {
        assert_ne!(log.read_line(&mut said).unwrap(), 0, "the warden gave up: {said}");
    }
    fs::remove_file(&busy).unwrap();
    log.read_to_string(&mut said).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "old", "{said}");
}

#[test]
fn a_passed_deadline_is_undone_while_the_agent_hangs() {
    let mut stopped = Command::new("sleep").arg("60").spawn().unwrap();
    let process = ProcessId { pid: stopped.id(), start: 0 };
    kill(pid(stopped.id()), Signal::SIGSTOP).unwrap();
    waitpid(pid(stopped.id()), Some(WaitPidFlag::WUNTRACED)).unwrap();

    let (_dir, path) = changed_file();
    let mut warden = Warden::spawn(launch()).unwrap();
    warden.hold(&fault(2), &file_undo(&path), None).unwrap();
    let began = Instant::now();
    let undo = Undo { restores: vec![Restore::Continue { process }] };
    warden.hold(&fault(1), &undo, Some(Duration::from_millis(100))).unwrap();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let number = stopped.id();
    std::thread::spawn(move || {
        // Turns a wait for ever into a failure.
        if ended.recv_timeout(Duration::from_secs(10)) == Err(RecvTimeoutError::Timeout) {
            let _ = kill(pid(number), Signal::SIGKILL);
        }
    });
    let continued = waitpid(pid(number), Some(WaitPidFlag::WCONTINUED)).unwrap();
    drop(done);
    let took = began.elapsed();
    stopped.kill().unwrap();
    stopped.wait().unwrap();

    assert!(matches!(continued, WaitStatus::Continued(_)), "{continued:?}");
    assert!(took >= Duration::from_millis(1100) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(warden.check().unwrap(), [fault(1)]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "new", "the other one's time has not come");
    warden.finish().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}

#[test]
fn a_dead_or_hung_warden_is_replaced_and_told_everything() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let (_dir, path) = changed_file();
        let mut warden = Warden::spawn(launch()).unwrap();
        warden.hold(&fault(1), &file_undo(&path), None).unwrap();
        let before = warden.pid().unwrap();
        kill(pid(before), signal).unwrap();
        let what = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(pid(before)), what).unwrap();
        let other = path.with_file_name("other");
        fs::write(&other, "new").unwrap();
        warden.hold(&fault(2), &file_undo(&other), None).unwrap();
        assert_ne!(warden.pid(), Some(before), "{signal}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new", "{signal}: replacing it reverts nothing");
        warden.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old", "{signal}");
        assert_eq!(fs::read_to_string(&other).unwrap(), "old", "{signal}");
    }
}

#[test]
fn without_a_warden_nothing_is_held() {
    let missing = Launch { exe: "/nonexistent/vervet".into(), args: vec![] };
    assert!(Warden::spawn(missing).is_err());
    // One that ends at once, without a word.
    let silent = Launch { exe: "/bin/true".into(), args: vec![] };
    assert!(Warden::spawn(silent).is_err());
}

#[test]
fn network_faults_are_gone_with_the_pipe_whatever_fails_at_first() {
    let host = SimHost::new(3);
    let start = host.snapshot();
    let a = intent(&host, run_id(1), 0, &delay(80), &[]).unwrap();
    fault::inject(&host, &a.prepared, KERNEL_LEASE).unwrap();
    let b = intent(&host, run_id(1), 1, &delay(81), &[&a]).unwrap();
    fault::inject(&host, &b.prepared, KERNEL_LEASE).unwrap();
    host.fail_nth(Verb::Restore, 1, Trouble::Refused);
    host.fail_nth(Verb::Restore, 4, Trouble::Refused);

    let mut script = Vec::new();
    for one in [&a, &b] {
        let hold = serde_json::json!({
            "ask": "hold", "fault": one.fault(), "undo": one.undo(), "remaining_ms": null
        });
        script.extend(format!("{hold}\n").into_bytes());
    }
    assert_eq!(converse(&host, &script).len(), 3);
    assert_eq!(host.snapshot(), start);
    assert_eq!(host.violations(), [""; 0]);
}

#[test]
fn nonsense_is_refused_and_harms_nothing() {
    let host = SimHost::new(3);
    let mut script = b"nonsense\n{\"ask\":\"dance\"}\n\xff\xfe\n\n".to_vec();
    script.extend(vec![b'x'; 3 << 20]);
    script.extend(b"\n{\"ask\":\"check\"}\n{\"ask\":\"hold\"");
    let replies = converse(&host, &script);
    assert_eq!(replies.len(), 1 + 4 + 1 + 1, "{replies:?}");
    assert!(replies[1..6].iter().all(|reply| reply.contains("error")), "{replies:?}");
    assert!(replies[5].contains("too long"), "{replies:?}");
    assert_eq!(replies[6], "{}");
}

/// Lets a warden in this process read `script` to its end; returns what it said.
fn converse(host: &SimHost, script: &[u8]) -> Vec<String> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let warden = scope.spawn(|| {
            let ended = warden::main_loop(&theirs, host);
            theirs.shutdown(Shutdown::Both).unwrap();
            ended
        });
        let replies = BufReader::new(ours.try_clone().unwrap());
        let reader = scope.spawn(|| replies.lines().map(Result::unwrap).collect());
        ours.write_all(script).unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        warden.join().unwrap().unwrap();
        reader.join().unwrap()
    })
}
