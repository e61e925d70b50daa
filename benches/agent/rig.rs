//! A private network namespace, an agent in it, and workers for it to watch. All ends with its value.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::client::Client;

/// A namespace with `lo` up, deleted with this value.
pub struct Namespace(String);

impl Namespace {
    pub fn new() -> Option<Self> {
        let name = format!("vvtest-agent-{}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: agent: no network namespace can be made here");
            return None;
        }
        let this = Self(name);
        assert!(this.script("ip link set lo up"));
        Some(this)
    }

    /// Runs `work` on a thread inside; what it starts is inside too.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                let file = File::open(format!("/run/netns/{}", self.0)).expect("the namespace");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter it");
                work()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a shell script inside; whether it succeeded.
    pub fn script(&self, text: &str) -> bool {
        self.within(|| Command::new("sh").args(["-ec", text]).status().expect("sh").success())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// This program once more, in the namespace: it holds the ports.
pub struct Services(Child);

impl Services {
    pub fn new(namespace: &Namespace) -> Self {
        let program = std::env::current_exe().expect("this program");
        let start = || {
            let mut command = Command::new(program);
            command.arg(super::SERVE).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().expect("the services")
        };
        let mut child = namespace.within(start);
        let mut listening = [0; 9];
        child.stdout.take().expect("piped").read_exact(&mut listening).expect("a word");
        Self(child)
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `sleep`s that only their own argument makes members of a group.
pub struct Workers {
    argument: String,
    pub children: Vec<Child>,
}

impl Workers {
    pub fn new(number: u32) -> Self {
        let argument = format!("9{}.{number:03}", std::process::id());
        let mut this = Self { argument, children: Vec::new() };
        this.fill();
        this
    }

    /// Starts new ones for those that are gone: four in all.
    pub fn fill(&mut self) {
        self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        while self.children.len() < 4 {
            let child = Command::new("sleep").arg(&self.argument).stdin(Stdio::null()).spawn();
            self.children.push(child.expect("sleep"));
        }
    }

    pub fn group(&self, name: &str, rest: &str) -> String {
        let pattern = self.argument.replace('.', "\\\\.");
        format!(
            "[[group]]\nname = \"{name}\"\nfloor = 3\nexpected = 4\n\
             members = {{ cmdline = \"^sleep {pattern}$\" }}\n{rest}\n"
        )
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The real binary with a policy of its own.
pub struct Agent<'a> {
    namespace: &'a Namespace,
    dir: tempfile::TempDir,
    pub child: Option<Child>,
}

impl<'a> Agent<'a> {
    /// Started and ready.
    pub fn new(namespace: &'a Namespace, groups: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().display();
        let policy = format!(
            "leashed = false\nstate = \"{path}/state\"\nexperiments = \"{path}/lib\"\n\
             [api]\nsocket = \"{path}/sock\"\n[limits]\nconcurrent_runs = 64\n\
             headroom = {{ memory = \"1%\", pids = \"1%\", file_handles = \"1%\", conntrack = \"1%\" }}\n{groups}"
        );
        fs::create_dir(dir.path().join("lib")).expect("a directory");
        fs::write(dir.path().join("vervet.toml"), policy).expect("the policy");
        let mut this = Self { namespace, dir, child: None };
        this.start();
        this
    }

    /// Starts it; the time until it answers that it is ready.
    pub fn start(&mut self) -> Duration {
        let log =
            File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let began = Instant::now();
        let child = self.namespace.within(|| {
            Command::new(env!("CARGO_BIN_EXE_vervet"))
                .args(["agent", "--config"])
                .arg(self.dir.path().join("vervet.toml"))
                .stdin(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("the agent starts")
        });
        self.child = Some(child);
        loop {
            let ready = Client::connect(&self.socket()).and_then(|mut client| client.get("/readyz"));
            if ready.is_ok_and(|(status, _)| status == 200) {
                return began.elapsed();
            }
            let ended = self.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            assert!(!ended && began.elapsed() < Duration::from_mins(1), "not ready: {}", self.log());
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket()).expect("the agent listens")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running agent").id()
    }

    /// Asks until `holds`; for what has no event.
    pub fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(2);
        loop {
            let (_, answer) = self.client().get(path).expect("an answer");
            if holds(&answer) {
                return;
            }
            assert!(Instant::now() < deadline, "{path} stays {answer:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn until_sound(&self) {
        self.until("/v1/groups", |groups| {
            let sound = |group: &Value| {
                group["effective"] == 4 && group["fresh"] == true && group["blocked"].is_null()
            };
            groups["groups"].as_array().is_some_and(|groups| groups.iter().all(sound))
        });
    }

    /// The processes that it started: the warden.
    pub fn wardens(&self) -> Vec<u32> {
        let pid = self.pid();
        let mut found = Vec::new();
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return found };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        found
    }

    /// SIGKILL to it and its warden at once.
    pub fn slay(&mut self) {
        let doomed = self.wardens().into_iter().chain([self.pid()]);
        for pid in doomed {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// The end of what it logged.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ends it as systemd would.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = child.wait();
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if self.child.is_some() {
                eprintln!("the agent's log ends with\n{}", self.log());
                self.slay();
            }
        } else {
            self.stop();
        }
    }
}

/// The load of the machine over the last minute.
pub fn load() -> String {
    let text = fs::read_to_string(Path::new("/proc/loadavg")).unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}
