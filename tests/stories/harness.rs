//! The stage: a directory, a network namespace, a service of workers, and the agent on a policy.
//!
//! The thread of the story itself is inside the namespaces, so all that it starts is as well. Every
//! process is ended by the id that it was started with, whatever becomes of the story.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    http::{Answer, call},
    worker::Worker,
};

/// The most that anything in a story may take.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// What a busy machine may take for what should take a few milliseconds.
pub const PROMPT: Duration = Duration::from_millis(500);

const LOOK: Duration = Duration::from_millis(2);
const PROGRAM: &str = env!("CARGO_BIN_EXE_vervet");

static STAGES: AtomicU32 = AtomicU32::new(0);

/// Plays a story in namespaces of its own.
pub fn story(name: &str, play: impl FnOnce(&mut Stage) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(why) = step_aside() {
                return eprintln!("SKIPPED: {name}: {why}");
            }
            play(&mut Stage::new());
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Moves this thread into a network and a mount namespace of its own.
fn step_aside() -> Result<(), String> {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    unshare(flags).map_err(|error| format!("no namespaces of its own: {error}"))?;
    // What is mounted here must not be seen outside.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|error| format!("no private mounts: {error}"))?;
    for tool in ["nft", "tc"] {
        Command::new(tool).arg("-V").output().map_err(|error| format!("{tool}: {error}"))?;
    }
    tool("ip", &["link", "set", "lo", "up"]);
    Ok(())
}

/// Output of a tool that must succeed.
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything of one story. Fields end in this order: the agent before what it guards.
pub struct Stage {
    pub agent: Option<Agent>,
    pub workers: Vec<Worker>,
    pub dir: tempfile::TempDir,
    /// The message bus that the agent is to use instead of the machine's.
    pub bus: Option<String>,
    number: u32,
}

impl Stage {
    fn new() -> Self {
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        Self { agent: None, workers: Vec::new(), dir, bus: None, number }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("vervet.sock")
    }

    /// The word by which the workers of a group are found.
    pub fn marker(&self, group: &str) -> String {
        format!("vvstory-{}-{}-{group}-", std::process::id(), self.number)
    }

    /// Starts workers of a group, each on its port.
    pub fn workers(&mut self, group: &str, ports: impl IntoIterator<Item = u16>) {
        for port in ports {
            let worker = Worker::start(&self.marker(group), port, false);
            self.workers.push(worker);
        }
    }

    /// A `[[group]]` over the workers of that name, with a budget of one in `every`.
    pub fn group(&self, name: &str, floor: u32, every: &str) -> String {
        let marker = self.marker(name);
        format!(
            "[[group]]\nname = \"{name}\"\nfloor = {floor}\nmembers = {{ cmdline = \"{marker}\" }}\n\
             poll = \"50ms\"\nstale_after = \"1s\"\nsettle = \"300ms\"\n\
             removal = {{ at_once = 1, every = \"{every}\" }}\n"
        )
    }

    /// Writes the policy: these root keys and limits, then the groups (or whatever else comes last).
    pub fn policy(&self, root: &str, limits: &str, rest: &str) {
        let base = self.dir.path().display();
        let text = format!(
            "{root}\nstate = \"{base}/state\"\nexperiments = \"{base}/experiments\"\n\
             [api]\nsocket = \"{base}/vervet.sock\"\n[limits]\n{limits}\n\
             headroom = {{ memory = \"1%\", pids = \"1%\", file_handles = \"1%\", conntrack = \"1%\" }}\n{rest}"
        );
        self.write("vervet.toml", &text);
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        path
    }

    /// Starts the agent on the policy, and waits until it answers. How long that took.
    pub fn start(&mut self) -> Duration {
        let begun = Instant::now();
        self.agent = Some(Agent::start(self.dir.path(), self.bus.as_deref()));
        self.until("the agent answers", |stage| {
            let agent = stage.agent.as_mut().expect("started");
            assert!(agent.exited().is_none(), "the agent ended at once:\n{}", stage.log());
            call(&stage.socket(), "GET", "/healthz", &[], "").filter(|answer| answer.status == 200)
        });
        begun.elapsed()
    }

    /// A service of four workers with a floor of three, and the agent, calm.
    pub fn four_workers(&mut self, every: &str) {
        self.workers("shop", 8001..=8004);
        self.policy("leashed = false", "wait = \"20s\"", &self.group("shop", 3, every));
        self.start();
        self.calm("shop", 4);
    }

    /// What the agents of this story have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    pub fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("the agent runs")
    }

    pub fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        let kind = if body.starts_with('{') { "application/json" } else { "application/toml" };
        self.call_with(method, path, &[("Content-Type", kind)], body)
    }

    pub fn call_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        call(&self.socket(), method, path, headers, body)
            .unwrap_or_else(|| panic!("no answer to {method} {path}:\n{}", self.log()))
    }

    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, "").expect(200)
    }

    /// Begins a run; its id.
    pub fn begin(&self, experiment: &str) -> String {
        let run = self.call("POST", "/v1/runs", experiment).expect(202);
        run["id"].as_str().expect("an id").to_owned()
    }

    pub fn run(&self, id: &str) -> Value {
        self.get(&format!("/v1/runs/{id}"))
    }

    /// Waits until a run has finished.
    pub fn finished(&mut self, id: &str) -> Value {
        self.until("the run has finished", |stage| {
            let run = stage.run(id);
            (run["state"] == "finished").then_some(run)
        })
    }

    /// Begins a run and waits for its end.
    pub fn play(&mut self, experiment: &str) -> Value {
        let id = self.begin(experiment);
        self.finished(&id)
    }

    /// Begins a run and waits until every step of it is in force; its id.
    pub fn in_force(&mut self, experiment: &str) -> String {
        let id = self.begin(experiment);
        self.until("every step is in force", |stage| {
            let run = stage.run(&id);
            assert_ne!(run["state"], "finished", "{run:#}\n{}", stage.log());
            let steps = run["steps"].as_array().expect("steps");
            steps.iter().all(|step| step["state"] == "in_force").then_some(())
        });
        id
    }

    pub fn events(&self, id: &str) -> Vec<Value> {
        let report = self.get(&format!("/v1/runs/{id}/report"));
        report["events"].as_array().expect("events").clone()
    }

    /// How many faults are active by the agent's own account.
    pub fn active(&self) -> usize {
        self.get("/v1/faults")["faults"].as_array().expect("faults").len()
    }

    pub fn group_now(&self, name: &str) -> Value {
        let groups = self.get("/v1/groups")["groups"].as_array().expect("groups").clone();
        groups.into_iter().find(|group| group["name"] == name).expect("the group")
    }

    /// Waits until so many are ready and nothing stands against the next removal.
    pub fn calm(&mut self, group: &str, ready: u32) {
        self.until("the group is calm", |stage| {
            let now = stage.group_now(group);
            let is = now["fresh"] == true
                && now["effective"] == ready
                && now["charged"] == 0
                && now["blocked"].is_null()
                && now["budget"]["left"] != 0;
            is.then_some(())
        });
    }

    /// Asks again and again until there is an answer.
    pub fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// Runs a command of the product against this agent.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.cli_command(args).output().expect("runs")
    }

    pub fn cli_command(&self, args: &[&str]) -> Command {
        let mut command = mortal(Path::new(PROGRAM));
        command.arg("--socket").arg(self.socket()).args(args);
        command.env_remove("RUST_LOG").env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Asserts that the agent and the warden are gone and that nothing of them is left.
    pub fn assert_as_before(&mut self, before: &str) {
        let after = snapshot();
        assert!(after == before, "left behind:\n{after}\nbefore:\n{before}\n{}", self.log());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

/// The agent, and the warden that it started.
pub struct Agent {
    child: Child,
    warden: Option<u32>,
}

impl Agent {
    fn start(dir: &Path, bus: Option<&str>) -> Self {
        let log = File::options().create(true).append(true).open(dir.join("agent.log"));
        let mut command = mortal(Path::new(PROGRAM));
        command.args(["agent", "--log", "info", "--config"]).arg(dir.join("vervet.toml"));
        command.env_remove("RUST_LOG").env("NO_COLOR", "1");
        // Never the machine's own: a story must not reach its units.
        command.env("DBUS_SYSTEM_BUS_ADDRESS", bus.unwrap_or("unix:path=/nowhere"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log"));
        Self { child: command.spawn().expect("the agent starts"), warden: None }
    }

    /// The warden: the child of the agent that is called so.
    pub fn warden(&mut self) -> u32 {
        let children = children_of(self.child.id());
        let warden = *children.first().expect("the agent has a warden");
        self.warden = Some(warden);
        warden
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("asked")
    }

    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// SIGKILL, and no agent any more.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("ended");
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the agent does not end");
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Stopped ones would never notice anything. The warden ends when it has undone all.
        let warden = self.warden.or_else(|| children_of(self.child.id()).first().copied());
        let reaped = self.child.try_wait().is_ok_and(|status| status.is_some());
        if !reaped {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
        let Some(warden) = warden.filter(|warden| is_warden(*warden)) else { return };
        send(warden, Signal::SIGCONT);
        let begun = Instant::now();
        while is_warden(warden) {
            if begun.elapsed() > Duration::from_secs(5) {
                return send(warden, Signal::SIGKILL);
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// A program that dies with the thread that starts it, where the system can arrange for that.
fn mortal(program: &Path) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("setpriv").exists()) {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        return command;
    }
    Command::new(program)
}

/// Signals a process that this story started.
pub fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).expect("a pid");
    let _ = kill(Pid::from_raw(pid), signal);
}

fn children_of(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    children.retain(|child| is_warden(*child));
    children
}

/// Whether a process is a warden that still runs.
pub fn is_warden(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"warden")
}

/// Everything of this namespace that a fault may have changed, as the system's own tools show it.
pub fn snapshot() -> String {
    let qdiscs = tool("tc", &["-j", "qdisc"]);
    let links = tool("ip", &["-j", "link"]);
    let mut out = format!("{}\n{qdiscs}\n{links}\n", tool("nft", &["-j", "list", "ruleset"]));
    if qdiscs.contains("clsact") {
        for side in ["egress", "ingress"] {
            out.push_str(&tool("tc", &["-j", "filter", "show", "dev", "lo", side]));
        }
    }
    for family in ["ipv4", "ipv6"] {
        for device in ["all", "default", "lo"] {
            out.push_str(&settings(Path::new(&format!("/proc/sys/net/{family}/conf/{device}"))));
        }
    }
    out
}

fn settings(dir: &Path) -> String {
    let mut lines: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|file| {
            let value = fs::read_to_string(file.path()).ok()?;
            Some(format!("{} = {}", file.path().display(), value.trim()))
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

/// How long a customer waits for an answer on a fresh connection.
pub fn visit(port: u16) -> std::io::Result<Duration> {
    let begun = Instant::now();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut answer = [0; 64];
    match stream.read(&mut answer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(begun.elapsed()),
    }
}

/// Connections that stay open, as many of `count` as get in.
pub fn guests(port: u16, count: usize) -> Vec<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let attempt = |_| TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok();
    (0..count).filter_map(attempt).collect()
}

/// An experiment on these groups with these steps.
pub fn experiment(groups: &str, steps: &str) -> String {
    format!("title = \"A story\"\nhypothesis = \"Nothing breaks\"\ngroups = [{groups}]\n{steps}")
}

/// A step that kills `pick` of a group.
pub fn kill_step(group: &str, pick: u32) -> String {
    format!(
        "[[step]]\nname = \"lose {pick}\"\nfault = \"kill\"\n\
         target = {{ group = \"{group}\", pick = {pick} }}\n"
    )
}

/// A step that delays the answers of a port by 150 ms.
pub fn slow_step(port: u16, duration: &str) -> String {
    format!(
        "[[step]]\nname = \"slow {port}\"\nfault = \"latency\"\ntraffic = {{ listen = {port} }}\n\
         delay = \"150ms\"\nduration = \"{duration}\"\n"
    )
}

/// Of what [`slow_step`] does, enough to know it by.
pub const SLOW: Duration = Duration::from_millis(140);

/// A step that lets two connections of a port in.
pub fn cap_step(port: u16, duration: &str) -> String {
    format!(
        "[[step]]\nname = \"cap {port}\"\nfault = \"connections\"\ntraffic = {{ listen = {port} }}\n\
         max = 2\nexcess = \"reset\"\nduration = \"{duration}\"\n"
    )
}
