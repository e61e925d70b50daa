//! The command line against the real agent: verdicts as exit codes, one JSON document, Ctrl-C.
//!
//! The agent kills only processes that a test started; nothing here touches the network.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Tells apart the groups of tests that share a process.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// An agent of this test, with a group of four `sleep`s. All ends with it.
struct Bench {
    dir: tempfile::TempDir,
    agent: Child,
    members: Vec<Child>,
}

impl Bench {
    fn start(every: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        // The argument makes these processes, and no others, members of the group.
        let tag = format!("9{}.{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let members = (0..4).map(|_| member(&tag)).collect();
        let path = dir.path().display();
        let policy = format!(
            "leashed = false\nstate = \"{path}/state\"\nexperiments = \"{path}/lib\"\n\
             [api]\nsocket = \"{path}/sock\"\n\
             [limits]\nheadroom = {{ memory = \"1%\", pids = \"1%\", file_handles = \"1%\", conntrack = \"1%\" }}\n\
             [[group]]\nname = \"sleepers\"\nfloor = 2\nexpected = 4\nmembers = {{ cmdline = \"sleep {}$\" }}\n\
             poll = \"50ms\"\nstale_after = \"5s\"\nsettle = \"200ms\"\n\
             removal = {{ at_once = 1, every = \"{every}\" }}\n",
            tag.replace('.', "\\\\.")
        );
        fs::create_dir(dir.path().join("lib")).expect("made");
        fs::write(dir.path().join("vervet.toml"), policy).expect("written");
        let log = fs::File::create(dir.path().join("log")).expect("made");
        let agent = Command::new(env!("CARGO_BIN_EXE_vervet"))
            .args(["agent", "--config"])
            .arg(dir.path().join("vervet.toml"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        let bench = Self { dir, agent, members };
        bench.until_ready();
        bench
    }

    /// Until the limiter has a fresh reading of four.
    fn until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let output = self.vervet(&["status", "--json"]);
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if status["groups"][0]["effective"] == 4 && status["groups"][0]["fresh"] == true {
                return;
            }
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the agent is not ready: {status:#}\n{log}");
            std::thread::yield_now();
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vervet"));
        command.arg("--socket").arg(self.dir.path().join("sock")).args(args);
        command.stdin(Stdio::null()).env("NO_COLOR", "1").env_remove("RUST_LOG");
        command
    }

    fn vervet(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("starts")
    }

    fn file(&self, name: &str, steps: &str) -> String {
        let text = format!(
            "title = \"{name}\"\nhypothesis = \"Sleepers sleep\"\ngroups = [\"sleepers\"]\nrecovery = \"2s\"\n{steps}"
        );
        let path = self.dir.path().join(format!("{name}.toml"));
        fs::write(&path, text).expect("written");
        path.display().to_string()
    }

    fn kill(&self, name: &str, pick: u32, duration: &str) -> String {
        let step = format!(
            "[[step]]\nname = \"wake\"\nfault = \"kill\"\nduration = \"{duration}\"\n\
             target = {{ group = \"sleepers\", pick = {pick} }}\n"
        );
        self.file(name, &step)
    }

    fn alive(&mut self) -> usize {
        self.members
            .iter_mut()
            .filter_map(|child| child.try_wait().expect("asked").is_none().then_some(()))
            .count()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in self.members.iter_mut().chain([&mut self.agent]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn member(tag: &str) -> Child {
    Command::new("sleep").arg(tag).stdin(Stdio::null()).spawn().expect("starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not ended by a signal")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn interrupt(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, signal).expect("signalled");
}

/// Reads lines until one contains `wanted`.
fn until(lines: &mut BufReader<ChildStdout>, wanted: &str) {
    let mut line = String::new();
    while lines.read_line(&mut line).expect("text") > 0 {
        if line.contains(wanted) {
            return;
        }
        line.clear();
    }
    panic!("{wanted} never came");
}

#[test]
fn a_run_passes_and_its_report_is_one_document() {
    let mut bench = Bench::start("1s");
    let file = bench.kill("one", 1, "1s");
    let output = bench.vervet(&["--json", "run", &file, "--seed", "7"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    let report = json(&output);
    assert_eq!(report["run"]["verdict"], "passed");
    assert_eq!(report["run"]["seed"], 7);
    assert!(report["events"].as_array().is_some_and(|events| events.len() > 3));
    assert_eq!(bench.alive(), 3);

    let id = report["run"]["id"].as_str().expect("an id");
    let output = bench.vervet(&["show", &id[..13], "--events"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert!(text(&output).contains("passed") && text(&output).contains("injected"), "{}", text(&output));
    // Watching a run that is over gives its verdict at once.
    assert_eq!(code(&bench.vervet(&["watch", id])), 0);
    let runs = json(&bench.vervet(&["--json", "runs"]));
    assert_eq!(runs.as_array().map(Vec::len), Some(1));
    assert_eq!(code(&bench.vervet(&["show", "ffff"])), 2);
}

#[test]
fn what_breaks_the_floor_is_refused_with_3_and_the_numbers() {
    let mut bench = Bench::start("1s");
    let file = bench.kill("three", 3, "100ms");
    for command in ["plan", "run"] {
        let output = bench.vervet(&[command, &file]);
        assert_eq!(code(&output), 3, "{}", text(&output));
        assert!(text(&output).contains("floor 2"), "{}", text(&output));
        assert!(text(&output).lines().all(|line| line.chars().count() <= 100), "{}", text(&output));
    }
    assert_eq!(bench.alive(), 4);
}

#[test]
fn what_matches_nothing_or_nobody_declared_is_refused() {
    let bench = Bench::start("1s");
    let step =
        |target: &str| format!("[[step]]\nname = \"wake\"\nfault = \"kill\"\ntarget = {target}\n");
    let none = bench.file("none", &step("{ name = \"no such process\" }"));
    let undeclared = step("{ group = \"sleepers\" }");
    let undeclared = format!("title = \"x\"\nhypothesis = \"x\"\n{undeclared}");
    let path = bench.dir.path().join("undeclared.toml");
    fs::write(&path, undeclared).expect("written");
    for command in ["plan", "run"] {
        let output = bench.vervet(&[command, &none]);
        assert_eq!(code(&output), 3, "{command}: {}", text(&output));
        let output = bench.vervet(&[command, &path.display().to_string()]);
        assert!(matches!(code(&output), 2 | 3), "{command}: {}", text(&output));
        assert!(text(&output).contains("sleepers"), "{}", text(&output));
    }
}

#[test]
fn a_plan_is_run_exactly_or_not_at_all() {
    let mut bench = Bench::start("1s");
    let file = bench.kill("planned", 1, "1s");
    let plan = json(&bench.vervet(&["--json", "plan", &file, "--seed", "3"]));
    let digest = plan["digest"].as_str().expect("a digest");
    let other = "0".repeat(64);
    let output = bench.vervet(&["run", &file, "--seed", "3", "--plan", &other]);
    assert_eq!(code(&output), 3, "{}", text(&output));
    assert_eq!(bench.alive(), 4);
    let output = bench.vervet(&["run", &file, "--seed", "3", "--plan", digest]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert_eq!(bench.alive(), 3);
}

#[test]
fn a_hypothesis_that_does_not_hold_is_1() {
    let bench = Bench::start("1s");
    let steps = "[[probe]]\nname = \"four\"\ngroup = \"sleepers\"\nexpect = { ready = 4 }\nevery = \"50ms\"\n\
                 [[step]]\nname = \"wake\"\nfault = \"kill\"\nduration = \"1s\"\n\
                 target = { group = \"sleepers\", pick = 1 }\n";
    let file = bench.file("fails", steps);
    let output = bench.vervet(&["run", &file]);
    assert_eq!(code(&output), 1, "{}", text(&output));
    assert!(text(&output).contains("did not hold: four"), "{}", text(&output));
}

#[test]
fn ctrl_c_and_sigterm_abort_the_run_and_wait_for_the_undo() {
    for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGTERM] {
        let bench = Bench::start("1s");
        let file = bench.kill("long", 1, "50s");
        let mut run = bench.command(&["run", &file]);
        let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(run.stdout.take().expect("piped"));
        until(&mut lines, "injected");
        interrupt(&run, signal);
        let mut rest = String::new();
        lines.read_to_string(&mut rest).expect("text");
        assert_eq!(run.wait().expect("ends").code(), Some(4), "{rest}");
        assert!(rest.contains("aborted (by an operator)") && rest.contains("clean"), "{rest}");
        let mut said = String::new();
        run.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(said.contains("aborting"), "{said}");
        assert_eq!(json(&bench.vervet(&["--json", "faults"])), serde_json::json!([]));
    }
}

#[test]
fn detach_watch_and_abort_work_together() {
    let bench = Bench::start("1s");
    let file = bench.kill("detached", 1, "50s");
    let output = bench.vervet(&["run", &file, "--detach", "--idempotency-key", "one"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    let id = text(&output).trim().to_owned();
    let again = bench.vervet(&["run", &file, "--detach", "--idempotency-key", "one"]);
    assert_eq!(text(&again).trim(), id, "the same key is the same run");
    let mut watch = bench.command(&["watch"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped"));
    until(&mut lines, "injected");
    assert_eq!(code(&bench.vervet(&["abort", &id])), 0);
    assert_eq!(code(&bench.vervet(&["abort", &id])), 0, "any number of times");
    assert_eq!(watch.wait().expect("ends").code(), Some(4));
}

#[test]
fn a_halt_refuses_until_it_is_released() {
    let mut bench = Bench::start("1s");
    let file = bench.kill("halted", 1, "1s");
    let output = bench.vervet(&["halt", "--reason", "outage in the shop"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    let status = bench.vervet(&["status"]);
    assert!(
        text(&status).starts_with("No: vervet changes nothing")
            && text(&status).contains("outage in the shop"),
        "{}",
        text(&status)
    );
    let output = bench.vervet(&["run", &file]);
    assert_eq!(code(&output), 3, "{}", text(&output));
    assert!(text(&output).contains("halted"), "{}", text(&output));
    assert_eq!(bench.alive(), 4);
    let output = bench.vervet(&["resume"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert!(text(&output).contains("outage in the shop"), "{}", text(&output));
    assert!(text(&bench.vervet(&["resume"])).contains("was not halted"));
    assert_eq!(code(&bench.vervet(&["run", &file])), 0);
}

#[test]
fn names_are_looked_up_by_the_agent() {
    let bench = Bench::start("1s");
    let file = bench.kill("known", 1, "1s");
    fs::copy(&file, bench.dir.path().join("lib/known.toml")).expect("copied");
    let output = bench.vervet(&["plan", "known"]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    let output = bench.vervet(&["run", "unknown"]);
    assert_eq!(code(&output), 2, "{}", text(&output));
}

#[test]
fn the_stream_is_resumed_when_the_agent_is_replaced() {
    let mut bench = Bench::start("1s");
    let file = bench.kill("lost", 1, "50s");
    let mut run = bench.command(&["run", &file]);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(run.stdout.take().expect("piped"));
    until(&mut lines, "injected");
    bench.agent.kill().expect("killed");
    bench.agent.wait().expect("ended");
    let mut said = BufReader::new(run.stderr.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("text");
    assert!(line.contains("lost the agent"), "{line}");
    bench.agent = Command::new(env!("CARGO_BIN_EXE_vervet"))
        .args(["agent", "--config"])
        .arg(bench.dir.path().join("vervet.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("text");
    assert_eq!(run.wait().expect("ends").code(), Some(4), "{rest}");
    assert!(rest.contains("by the agent's death"), "{rest}");
}
