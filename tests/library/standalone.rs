//! `vervet run --standalone`: the same answers as with an agent, and nothing of it stays, whoever dies.
//!
//! The targets are `sleep`s of the test; no namespace and no root is needed.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use vervet::{journal::Journal, runner::History as _};

use crate::harness::send;

static NEXT: AtomicU32 = AtomicU32::new(1);
const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(20);

/// Four `sleep`s with a floor of two, a policy, and no agent.
struct Bench {
    dir: tempfile::TempDir,
    program: PathBuf,
    uid: Option<u32>,
    sleepers: Vec<Child>,
}

impl Bench {
    fn new(uid: Option<u32>, leashed: bool) -> Self {
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        let program = match uid {
            None => PathBuf::from(env!("CARGO_BIN_EXE_vervet")),
            // Its own directory may be closed to others.
            Some(_) => {
                let copy = dir.path().join("vervet");
                fs::copy(env!("CARGO_BIN_EXE_vervet"), &copy).expect("copied");
                fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("set");
                copy
            }
        };
        let tag = format!("7{}.{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let sleeper = |_| {
            let mut sleep = Command::new("sleep");
            if let Some(uid) = uid {
                sleep.uid(uid).gid(uid);
            }
            sleep.arg(&tag).stdin(Stdio::null()).spawn().expect("starts")
        };
        let sleepers = (0..4).map(sleeper).collect();
        let path = dir.path().display();
        let policy = format!(
            "leashed = {leashed}\nstate = \"{path}/state\"\nexperiments = \"{path}/lib\"\n\
             [api]\nsocket = \"{path}/sock\"\n\
             [limits]\nheadroom = {{ memory = \"1%\", pids = \"1%\", file_handles = \"1%\", conntrack = \"1%\" }}\n\
             [[group]]\nname = \"sleepers\"\nfloor = 2\nexpected = 4\nmembers = {{ cmdline = \"^sleep {}$\" }}\n\
             poll = \"50ms\"\nstale_after = \"5s\"\nsettle = \"200ms\"\n\
             removal = {{ at_once = 1, every = \"1s\" }}\n",
            tag.replace('.', "\\\\.")
        );
        fs::write(dir.path().join("vervet.toml"), policy).expect("written");
        if let Some(uid) = uid {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).expect("given");
        }
        Self { dir, program, uid, sleepers }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, step: &str) -> String {
        let text = format!(
            "title = \"{name}\"\nhypothesis = \"Sleepers sleep\"\ngroups = [\"sleepers\"]\n\
             recovery = \"2s\"\n[[step]]\nname = \"it\"\n{step}\n"
        );
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    }

    fn kill(&self, pick: u32) -> String {
        let target = format!("{{ group = \"sleepers\", pick = {pick} }}");
        self.file("kill.toml", &format!("fault = \"kill\"\ntarget = {target}\nduration = \"500ms\""))
    }

    fn pause(&self) -> String {
        let target = "{ group = \"sleepers\", pick = 1 }";
        self.file("pause.toml", &format!("fault = \"pause\"\ntarget = {target}\nduration = \"50s\""))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("NO_COLOR", "1").env_remove("RUST_LOG").stdin(Stdio::null());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    fn run(&self, file: &str, more: &[&str]) -> Command {
        let config = self.path("vervet.toml").display().to_string();
        self.command(&[&["run", file, "--standalone", "--config", &config], more].concat())
    }

    /// Begins a run and waits until its fault is in force.
    fn begun(&self, file: &str) -> Child {
        let mut run = self.run(file, &[]);
        let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(run.stdout.take().expect("piped")).lines();
        let injected = lines.by_ref().map_while(Result::ok).any(|line| line.contains("injected"));
        assert!(injected, "{}", rest(&mut run));
        // Whoever is followed by nobody must not end for that.
        std::thread::spawn(move || lines.for_each(drop));
        run
    }

    fn recover(&self) -> Output {
        let config = self.path("vervet.toml").display().to_string();
        self.command(&["recover", "--config", &config]).output().expect("starts")
    }

    fn alive(&mut self) -> usize {
        self.sleepers
            .iter_mut()
            .filter_map(|one| one.try_wait().expect("asked").is_none().then_some(()))
            .count()
    }

    fn paused(&self) -> usize {
        let stopped = |one: &&Child| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", one.id())).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        self.sleepers.iter().filter(stopped).count()
    }

    /// The agent: it wrote its pid into the lock of its state.
    fn agent(&self) -> u32 {
        let text = fs::read_to_string(self.path("state/vervet.lock")).expect("a lock");
        text.trim().parse().expect("a pid")
    }

    fn assert_nothing_left(&self) {
        assert!(!self.path("sock").exists(), "its socket is left");
        let output = self.recover();
        assert!(said(&output).contains("nothing was left behind"), "{}", said(&output));
        assert_eq!(self.paused(), 0);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in &mut self.sleepers {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn rest(run: &mut Child) -> String {
    let mut text = String::new();
    run.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    text
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_agent(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"--until-eof")
}

#[test]
fn a_run_needs_no_agent_and_leaves_none() {
    let mut bench = Bench::new(None, false);
    let output = bench.run(&bench.kill(1), &["--json", "--seed", "7"]).output().expect("starts");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert_eq!((&report["run"]["verdict"], &report["run"]["seed"]), (&"passed".into(), &7.into()));
    assert_eq!(bench.alive(), 3);
    assert!(!is_agent(bench.agent()));
    bench.assert_nothing_left();
    // Refused, with the code that it has everywhere. The last removal is remembered.
    let output = bench.run(&bench.kill(2), &[]).output().expect("starts");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("floor 2"), "{}", said(&output));
    assert_eq!(bench.alive(), 3);
    bench.assert_nothing_left();
}

#[test]
fn it_needs_no_root() {
    let uid = nix::unistd::geteuid().is_root().then_some(NOBODY);
    let mut bench = Bench::new(uid, false);
    let output = bench.run(&bench.kill(1), &[]).output().expect("starts");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(bench.alive(), 3);
    bench.assert_nothing_left();
}

#[test]
fn a_leashed_policy_stays_leashed() {
    let mut bench = Bench::new(None, true);
    let output = bench.run(&bench.kill(1), &[]).output().expect("starts");
    assert_ne!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("leash"), "{}", said(&output));
    assert_eq!(bench.alive(), 4);
    bench.assert_nothing_left();
}

#[test]
fn schedules_wait_for_an_agent_that_stays() {
    let bench = Bench::new(None, false);
    let pause = fs::read_to_string(bench.pause()).expect("read");
    fs::create_dir(bench.path("lib")).expect("a directory");
    fs::write(bench.path("lib/pause.toml"), pause.replace("50s", "100ms")).expect("written");
    let config = bench.path("vervet.toml");
    let policy = fs::read_to_string(&config).expect("read");
    let schedule = "[[schedule]]\nexperiment = \"pause\"\ncron = \"* * * * * *\"\nzone = \"UTC\"\n";
    fs::write(&config, policy + schedule).expect("written");
    let file = bench.file(
        "short.toml",
        "fault = \"pause\"\ntarget = { group = \"sleepers\", pick = 1 }\n\
                                         duration = \"2500ms\"",
    );
    let output = bench.run(&file, &["--json"]).output().expect("starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["run"]["verdict"], "passed", "{}", said(&output));
    // Neither begun nor skipped nor missed: nobody who was there looked at its slots.
    let memory = bench.path("state/schedules.json");
    assert!(!memory.exists(), "{}", fs::read_to_string(memory).unwrap_or_default());
}

#[test]
fn what_is_asked_wrongly_is_2_and_says_what_to_do() {
    let bench = Bench::new(None, false);
    let file = bench.kill(1);
    for args in [
        &["run", &file, "--standalone"] as &[&str],
        &["run", &file, "--config", "/x"],
        &["run", &file, "--standalone", "--config", "/nowhere/vervet.toml"],
        &["run", &file, "--standalone", "--config", "/x", "--detach"],
        &["--socket", "/x", "run", &file, "--standalone", "--config", "/x"],
        &["run", &file, "--standalone", "--config", "/x", "--host", "http://127.0.0.1:1"],
    ] {
        let output = bench.command(args).output().expect("starts");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", said(&output));
    }
    assert!(!bench.path("state").exists(), "nothing was made");
}

#[test]
fn where_an_agent_is_it_is_asked_instead() {
    let bench = Bench::new(None, false);
    let file = bench.pause();
    let mut first = bench.begun(&file);
    // The same socket; then only the same state.
    for other in [false, true] {
        if other {
            let policy = fs::read_to_string(bench.path("vervet.toml")).expect("read");
            fs::write(bench.path("vervet.toml"), policy.replace("/sock\"", "/other\""))
                .expect("written");
        }
        let output = bench.run(&file, &[]).output().expect("starts");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("leave out --standalone"), "{}", said(&output));
    }
    assert_eq!(bench.paused(), 1, "the first one goes on");
    send(first.id(), Signal::SIGINT);
    assert_eq!(first.wait().expect("ends").code(), Some(4));
    bench.assert_nothing_left();
}

#[test]
fn ctrl_c_and_sigterm_abort_and_wait_for_the_undo() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let bench = Bench::new(None, false);
        let mut run = bench.begun(&bench.pause());
        let agent = bench.agent();
        // To be told to stop is not yet to have stopped.
        eventually("one is paused", || bench.paused() == 1);
        send(run.id(), signal);
        assert_eq!(run.wait().expect("ends").code(), Some(4), "{}", rest(&mut run));
        assert_eq!(bench.paused(), 0, "not before it was undone");
        assert!(!is_agent(agent), "the agent has ended first");
        bench.assert_nothing_left();
    }
}

#[test]
fn interrupted_before_the_groups_are_seen_nothing_begins() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let bench = Bench::new(None, false);
        let config = bench.path("vervet.toml");
        let policy = fs::read_to_string(&config).expect("read");
        let blind = "ready = { command = [\"/bin/false\"] }\nstale_after = \"10s\"";
        fs::write(&config, policy.replace("stale_after = \"5s\"", blind)).expect("written");
        let mut run = bench.run(&bench.kill(1), &[]);
        let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        eventually("the agent serves", || UnixStream::connect(bench.path("sock")).is_ok());
        // It has said so by now, and its groups are waited for.
        std::thread::sleep(Duration::from_millis(500));
        let sent = Instant::now();
        send(run.id(), signal);
        assert_eq!(run.wait().expect("ends").code(), Some(4), "{}", rest(&mut run));
        assert!(sent.elapsed() < Duration::from_secs(8), "it waited for the groups");
        let text = rest(&mut run);
        assert!(text.contains("interrupted before the run began"), "{text}");
        assert!(!is_agent(bench.agent()), "the agent has ended first");
        let journal = Journal::open(&bench.path("state")).expect("opens");
        let runs = journal.reader().expect("opens").list(None, 9).expect("read");
        assert!(runs.is_empty(), "nothing of it is in the history: {runs:?}");
        drop(journal);
        bench.assert_nothing_left();
    }
}

#[test]
fn killed_it_takes_its_agent_along_which_undoes() {
    let bench = Bench::new(None, false);
    let mut run = bench.begun(&bench.pause());
    let agent = bench.agent();
    assert!(is_agent(agent));
    send(run.id(), Signal::SIGKILL);
    run.wait().expect("ended");
    eventually("the agent ends", || !is_agent(agent));
    bench.assert_nothing_left();
}

#[test]
fn when_its_agent_is_killed_all_is_undone_and_said() {
    let bench = Bench::new(None, false);
    let mut run = bench.begun(&bench.pause());
    send(bench.agent(), Signal::SIGKILL);
    assert_eq!(run.wait().expect("ends").code(), Some(4));
    let text = rest(&mut run);
    assert!(text.contains("died") && text.contains("the host is clean"), "{text}");
    assert_eq!(bench.paused(), 0);
    let output = bench.recover();
    assert!(said(&output).contains("nothing was left behind"), "{}", said(&output));
}

#[test]
fn both_killed_leave_it_to_the_warden_and_to_the_next() {
    let bench = Bench::new(None, false);
    let mut run = bench.begun(&bench.pause());
    let agent = bench.agent();
    // Stopped first, so that it cannot notice that it is alone.
    send(agent, Signal::SIGSTOP);
    send(run.id(), Signal::SIGKILL);
    send(agent, Signal::SIGKILL);
    run.wait().expect("ended");
    eventually("the warden has undone it", || bench.paused() == 0);
    let output = bench.run(&bench.kill(1), &[]).output().expect("starts");
    assert_eq!(output.status.code(), Some(0), "the stale socket is no obstacle: {}", said(&output));
    bench.assert_nothing_left();
}

#[test]
fn nothing_of_it_can_be_targeted() {
    let bench = Bench::new(None, false);
    // The run's own command line has the name of the experiment's file.
    let step = "fault = \"kill\"\ntarget = { cmdline = \"own-command-line\" }\nduration = \"500ms\"";
    let file = bench.file("own-command-line.toml", step);
    let output = bench.run(&file, &[]).output().expect("starts");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(
        Path::new(&file).exists() && said(&output).contains("this agent is there for it"),
        "{}",
        said(&output)
    );
    bench.assert_nothing_left();
}
