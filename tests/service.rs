//! The agent as a service: what it tells the service manager and the journal, what its children may
//! do, and the unit that it is installed with.
//!
//! systemd itself is not needed: manager and journald are sockets of the test. Only processes that a
//! test started are signalled; mounts are made in a mount namespace of the agent alone.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use tracing_subscriber::layer::SubscriberExt as _;
use vervet::service::journald::Journald;

/// Longer than anything takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

const VERVET: &str = env!("CARGO_BIN_EXE_vervet");

/// systemd's figure of how exposed the unit is, times ten. It may be lowered, never raised.
const EXPOSURE: u32 = 32;

/// An agent with a group of two `sleep`s, in a directory of its own. Ends with the test.
struct Service {
    dir: tempfile::TempDir,
    agent: Option<Child>,
    members: Vec<Child>,
}

impl Service {
    /// Not started yet. `tag`: digits that tell apart the groups of these tests. `more` goes into the group.
    fn new(tag: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let seconds = format!("8{}.{tag}", std::process::id());
        let members =
            (0..2).map(|_| Command::new("sleep").arg(&seconds).spawn().expect("sleep starts")).collect();
        let path = dir.path().display();
        let policy = format!(
            "leashed = false\nstate = \"{path}/state\"\nexperiments = \"{path}\"\n\
             [api]\nsocket = \"{path}/sock\"\n\
             [limits]\nheadroom = {{ memory = \"1%\", pids = \"1%\", file_handles = \"1%\", conntrack = \"1%\" }}\n\
             [[group]]\nname = \"sleepers\"\nfloor = 1\nexpected = 2\n\
             members = {{ cmdline = \"sleep {}$\" }}\npoll = \"50ms\"\nstale_after = \"5s\"\n\
             settle = \"200ms\"\nremoval = {{ at_once = 1, every = \"1s\" }}\n{more}",
            seconds.replace('.', "\\\\.")
        );
        fs::write(dir.path().join("vervet.toml"), policy).expect("written");
        Self { dir, agent: None, members }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn start(&mut self, mut command: Command) -> u32 {
        let agent = command.stdin(Stdio::null()).env_remove("RUST_LOG").spawn().expect("starts");
        let pid = agent.id();
        self.agent = Some(agent);
        pid
    }

    fn agent_command(&self) -> Command {
        let mut command = Command::new(VERVET);
        command.args(["agent", "--config", &self.path("vervet.toml")]);
        command.stderr(fs::File::create(self.dir.path().join("log")).expect("made"));
        command
    }

    fn vervet(&self, args: &[&str]) -> Output {
        let mut command = Command::new(VERVET);
        command.args(["--socket", &self.path("sock")]).args(args).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).output().expect("starts")
    }

    fn until_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.vervet(&["status", "--json"]);
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if status["groups"][0]["effective"] == 2 && status["groups"][0]["fresh"] == true {
                return;
            }
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the agent is not ready: {status:#}\n{log}");
            std::thread::yield_now();
        }
    }

    /// An experiment that kills `pick` of the sleepers.
    fn kill(&self, pick: u32) -> String {
        let text = format!(
            "title = \"lose {pick}\"\nhypothesis = \"nobody notices\"\ngroups = [\"sleepers\"]\n\
             [[step]]\nname = \"a worker goes\"\nfault = \"kill\"\nduration = \"200ms\"\n\
             target = {{ group = \"sleepers\", pick = {pick} }}\nsignal = \"SIGKILL\"\n"
        );
        let file = self.path(&format!("kill-{pick}.toml"));
        fs::write(&file, text).expect("written");
        file
    }

    fn signal(&self, signal: Signal) {
        let agent = self.agent.as_ref().expect("started");
        let pid = Pid::from_raw(i32::try_from(agent.id()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("signalled");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let pid = Pid::from_raw(i32::try_from(agent.id()).expect("a pid"));
            let _ = nix::sys::signal::kill(pid, Signal::SIGCONT);
            let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
            let _ = agent.wait();
        }
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// A socket of the test, and what arrives at it.
struct Ear {
    socket: UnixDatagram,
}

impl Ear {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { socket }
    }

    fn next(&self) -> Vec<u8> {
        let mut buffer = vec![0; 1 << 18];
        let length = self.socket.recv(&mut buffer).expect("a datagram before the test loses patience");
        buffer.truncate(length);
        buffer
    }

    /// The next datagram that says so; all before it are dropped.
    fn until(&self, what: &str) -> String {
        loop {
            let said = String::from_utf8(self.next()).expect("text");
            if said.contains(what) {
                return said;
            }
        }
    }

    fn is_silent_for(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).expect("a timeout");
        let silent = self.socket.recv(&mut [0; 4096]).is_err();
        self.socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        silent
    }
}

#[test]
fn the_manager_hears_ready_alive_reloading_and_stopping() {
    let mut service = Service::new("001", "");
    let ear = Ear::at(&service.dir.path().join("manager"));
    let mut command = service.agent_command();
    command.env("NOTIFY_SOCKET", service.path("manager")).env("WATCHDOG_USEC", "2000000");
    service.start(command);
    ear.until("READY=1\n");
    assert_eq!(ear.until("STATUS="), "STATUS=1 group; nothing active\n");
    ear.until("WATCHDOG=1\n");
    ear.until("WATCHDOG=1\n");

    service.signal(Signal::SIGHUP);
    let reloading = ear.until("RELOADING=1\n");
    let at = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time");
    assert!(at.parse::<u64>().expect("microseconds") > 0);
    ear.until("READY=1\n");

    // A policy that is not valid: the old one stays, and the status says so until it is mended.
    let file = service.dir.path().join("vervet.toml");
    let good = fs::read_to_string(&file).expect("read");
    fs::write(&file, format!("florr = 1\n{good}")).expect("written");
    service.signal(Signal::SIGHUP);
    ear.until("RELOADING=1\n");
    ear.until("READY=1\n");
    let status = ear.until("STATUS=");
    assert!(status.contains("not valid, the old policy is in force"), "{status}");
    fs::write(&file, good).expect("written");
    service.signal(Signal::SIGHUP);
    assert_eq!(ear.until("STATUS="), "STATUS=1 group; nothing active\n");

    // Whoever is stopped gives no sign of life.
    service.signal(Signal::SIGSTOP);
    while !ear.is_silent_for(Duration::from_secs(2)) {}
    service.signal(Signal::SIGCONT);
    ear.until("WATCHDOG=1\n");

    service.signal(Signal::SIGTERM);
    ear.until("STOPPING=1\n");
    let status = service.agent.take().expect("started").wait().expect("ends");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_policy_that_is_not_valid_ends_the_agent_with_a_code_of_its_own() {
    let mut service = Service::new("002", "");
    fs::write(service.path("vervet.toml"), "florr = 3\n").expect("written");
    let pid = service.start(service.agent_command());
    let status = service.agent.take().expect("started").wait().expect("ends");
    assert_eq!(status.code(), Some(2), "pid {pid}");
    let log = fs::read_to_string(service.path("log")).expect("a log");
    assert!(log.contains("vervet.toml:1") && log.contains("florr"), "{log}");
    let unit = fs::read_to_string("systemd/vervet.service").expect("the unit");
    assert!(unit.lines().any(|line| line == "RestartPreventExitStatus=2"), "it would be restarted");
}

/// The fields of a record of the journal's native protocol, each with all its values.
fn fields(mut record: &[u8]) -> BTreeMap<String, Vec<String>> {
    let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
    while let Some(end) = record.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8(record[..end].to_vec()).expect("text");
        record = &record[end + 1..];
        let (name, value) = if let Some((name, value)) = line.split_once('=') {
            (name.to_owned(), value.to_owned())
        } else {
            let (length, rest) = record.split_at(8);
            let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
            let (value, rest) = rest.split_at(usize::try_from(length).expect("a length"));
            record = rest.strip_prefix(b"\n").expect("a newline after the value");
            (line, String::from_utf8(value.to_vec()).expect("text"))
        };
        fields.entry(name).or_default().push(value);
    }
    assert!(record.is_empty(), "half a field");
    fields
}

#[test]
fn a_record_of_the_journal_has_fields_and_a_message_that_stands_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let ear = Ear::at(&dir.path().join("socket"));
    let journald = Journald::connect(&dir.path().join("socket")).expect("connected");
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(journald));

    tracing::warn!(run = "r1", group = "a\nb", reason = None::<&str>, "two\nlines");
    let record = fields(&ear.next());
    assert_eq!(record["MESSAGE"], ["two\nlines"]);
    assert_eq!(record["PRIORITY"], ["4"]);
    assert_eq!(record["RUN_ID"], ["r1"]);
    assert_eq!(record["GROUP"], ["a", "b"]);
    assert!(!record.contains_key("REASON"));

    let error = std::io::Error::other("the disk is gone");
    tracing::error!(%error, pid = 7, "the journal cannot be written");
    let record = fields(&ear.next());
    assert_eq!(record["MESSAGE"], ["the journal cannot be written: the disk is gone (pid 7)"]);
    assert_eq!(record["PRIORITY"], ["3"]);
    assert_eq!(record["ERROR"], ["the disk is gone"]);

    // Nobody reads: what logs goes on all the same.
    for _ in 0..5000 {
        tracing::info!("{}", "x".repeat(1000));
    }
}

/// Mount namespaces are root's; in one, the test's socket is where journald's would be.
fn in_place_of_journald(service: &Service, test: &str) -> Option<(Command, Ear)> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: {test}: needs root for a mount namespace");
        return None;
    }
    fs::create_dir(service.dir.path().join("journal")).expect("made");
    let ear = Ear::at(&service.dir.path().join("journal/socket"));
    let log = fs::File::create(service.dir.path().join("log")).expect("made");
    let metadata = log.metadata().expect("metadata");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg(
            "mount -t tmpfs none /run; mkdir -p /run/systemd/journal; \
             mount --bind \"$1\" /run/systemd/journal; shift; exec \"$@\"",
        )
        .args([
            "sh",
            &service.path("journal"),
            VERVET,
            "agent",
            "--config",
            &service.path("vervet.toml"),
        ])
        .env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino()))
        .stderr(log);
    Some((command, ear))
}

#[test]
fn the_journal_tells_the_story_of_a_run() {
    let mut service = Service::new("003", "");
    let Some((command, ear)) = in_place_of_journald(&service, "the_journal_tells_the_story_of_a_run")
    else {
        return;
    };
    service.start(command);
    service.until_ready();
    let passed = service.vervet(&["run", &service.kill(1)]);
    assert_eq!(passed.status.code(), Some(0), "{}", String::from_utf8_lossy(&passed.stdout));
    let refused = service.vervet(&["run", &service.kill(1)]);
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stdout));
    service.signal(Signal::SIGTERM);

    let mut records = Vec::new();
    loop {
        let record = fields(&ear.next());
        let last = record["MESSAGE"][0].starts_with("stopped");
        records.push(record);
        if last {
            break;
        }
    }
    let run = records.iter().find_map(|record| record.get("RUN_ID")).expect("a run").clone();
    let story: Vec<_> = records.iter().filter(|record| record.get("RUN_ID") == Some(&run)).collect();
    let events: Vec<&str> = story.iter().map(|record| record["EVENT"][0].as_str()).collect();
    assert_eq!(events.first(), Some(&"created"), "{events:?}");
    assert_eq!(events.last(), Some(&"finished"), "{events:?}");

    // One line says that it begins and one that it ends, to whoever looks at warnings only.
    let said = |what: &str| -> Vec<_> {
        story.iter().filter(|record| record["MESSAGE"][0].starts_with(what)).collect()
    };
    let (begins, ends) = (said("CHAOS BEGINS"), said("CHAOS ENDS"));
    assert_eq!((begins.len(), ends.len()), (1, 1), "{story:#?}");
    for record in [begins[0], ends[0]] {
        assert_eq!(record["PRIORITY"], ["4"]);
        assert_eq!(record["STEP"], ["a worker goes"]);
        assert_eq!(record["GROUP"], ["sleepers"]);
        assert_eq!(record["FAULT"], ["kill"]);
        assert_eq!(record["EXPERIMENT"], ["lose 1"]);
        assert!(record["MESSAGE"][0].contains(&run[0]), "{record:#?}");
    }
    assert!(begins[0]["MESSAGE"][0].contains("sleep 8"), "what it hits: {:#?}", begins[0]);
    assert!(begins[0]["MESSAGE"][0].contains("begun by socket:root"), "by whom: {:#?}", begins[0]);
    assert!(ends[0]["MESSAGE"][0].contains("1 gone"), "its effect: {:#?}", ends[0]);

    // The limiter's sentence, with its code as a field.
    let no = records.iter().find(|record| record.get("EVENT").is_some_and(|e| e == &["refused"]));
    let no = no.expect("the refusal is logged");
    assert_eq!(no["REASON"], ["floor"]);
    assert!(no["MESSAGE"][0].contains("has 1 ready, floor 1"), "{no:#?}");
    assert_eq!(fs::read_to_string(service.path("log")).expect("read"), "", "nothing twice");
}

#[test]
fn children_but_the_warden_have_no_capabilities() {
    let test = "children_but_the_warden_have_no_capabilities";
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: {test}: needs root to hand out capabilities");
    }
    let probe = "[\"/bin/sh\", \"-c\", \"grep ^Cap /proc/self/status >$0.new; mv $0.new $0; echo 2\", ";
    let mut service = Service::new("004", "");
    let told = service.path("state/probe-caps");
    let policy = fs::read_to_string(service.path("vervet.toml")).expect("read");
    let ready = format!("{policy}ready = {{ command = {probe}\"{told}\"] }}\n");
    fs::write(service.path("vervet.toml"), ready).expect("written");
    fs::create_dir(service.path("state")).expect("made");
    for path in [service.dir.path(), &service.dir.path().join("state")] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("given away");
    }
    // nobody may not read where this binary is built.
    let binary = service.path("vervet");
    fs::copy(VERVET, &binary).expect("copied");
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["--inh-caps", "-all,+kill,+sys_ptrace", "--ambient-caps", "-all,+kill,+sys_ptrace"])
        .args([&binary, "agent", "--config", &service.path("vervet.toml")])
        .stderr(fs::File::create(service.path("log")).expect("made"));
    let agent = service.start(command);
    service.until_ready();

    let caps = |text: &str, set: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(set)).expect("a set");
        u64::from_str_radix(line.trim(), 16).expect("a mask")
    };
    // capabilities(7): CAP_KILL is 5, CAP_SYS_PTRACE is 19
    let all = 1 << 5 | 1 << 19;
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    assert_eq!(caps(&status(&agent.to_string()), "CapEff:"), all);
    let children = fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).expect("read");
    let warden = children.split(' ').find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("warden"))
    });
    assert_eq!(caps(&status(warden.expect("a warden")), "CapEff:"), all, "it undoes what the agent did");
    let told = fs::read_to_string(told).expect("the probe ran");
    assert_eq!(caps(&told, "CapEff:"), 0, "{told}");
    assert_eq!(caps(&told, "CapPrm:"), 0, "{told}");
}

/// A network namespace of this test.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = format!("vvtest-service-{}", std::process::id());
        let ip = |args: &[&str]| Command::new("ip").args(args).status().is_ok_and(|done| done.success());
        assert!(ip(&["netns", "add", &name]) && ip(&["-n", &name, "link", "set", "lo", "up"]), "{name}");
        Self(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn the_capabilities_of_the_unit_suffice_for_network_faults() {
    let test = "the_capabilities_of_the_unit_suffice_for_network_faults";
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        return eprintln!("SKIPPED: {test}: needs root and /dev/net/tun");
    }
    let unit = fs::read_to_string("systemd/vervet.service").expect("the unit");
    let list = unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities=")).expect("a list");
    let list: Vec<String> = list
        .split(' ')
        .map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let list = format!("-all,{}", list.join(","));

    let namespace = Namespace::new();
    let mut service = Service::new("005", "");
    fs::create_dir(service.path("state")).expect("made");
    for path in [service.dir.path(), &service.dir.path().join("state")] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("given away");
    }
    let binary = service.path("vervet");
    fs::copy(VERVET, &binary).expect("copied");
    let inside = |args: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace.0]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let mut command = inside(&["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command
        .args(["--inh-caps", &list, "--ambient-caps", &list, "--bounding-set", &list])
        .args([&binary, "agent", "--config", &service.path("vervet.toml")])
        .stderr(fs::File::create(service.path("log")).expect("made"));
    service.start(command);
    let server = inside(&["python3", "-m", "http.server", "8123", "--bind", "127.0.0.1"])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    service.members.push(server);
    service.until_ready();

    let file = service.path("slow.toml");
    let experiment = "title = \"slow\"\nhypothesis = \"it answers\"\ngroups = []\nrecovery = \"20s\"\n\
                [[probe]]\nname = \"answers\"\ntcp = \"127.0.0.1:8123\"\nevery = \"200ms\"\ntolerate = 20\n\
                [[step]]\nname = \"slow\"\nfault = \"latency\"\ndelay = \"20ms\"\nduration = \"2s\"\n\
                traffic = { listen = 8123, protocol = \"tcp\" }\n";
    fs::write(&file, experiment).expect("written");
    // As long as the server does not listen, the run is refused.
    let deadline = Instant::now() + PATIENCE;
    let run = loop {
        let run = service.vervet(&["run", &file]);
        if run.status.code() != Some(3) || Instant::now() > deadline {
            break run;
        }
    };
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert_eq!(run.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    let left = inside(&["nft", "list", "ruleset"]).stdout(Stdio::piped()).output().expect("nft starts");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[test]
fn systemd_finds_the_unit_valid_and_no_more_exposed_than_before() {
    let test = "systemd_finds_the_unit_valid_and_no_more_exposed_than_before";
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return eprintln!("SKIPPED: {test}: needs systemd-analyze (Debian: systemd)");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let unit = fs::read_to_string("systemd/vervet.service").expect("the unit");
    // What it starts need not be installed here.
    let unit = unit.replace("/usr/bin/vervet", "/bin/true").replace("man:vervet(1) ", "");
    let file = dir.path().join("vervet.service");
    fs::write(&file, unit).expect("written");
    let analyze =
        |args: &[&str]| Command::new("systemd-analyze").args(args).arg(&file).output().expect("starts");
    let verified = analyze(&["verify"]);
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && said.is_empty(), "{said}");
    let secure =
        analyze(&["security", "--no-pager", "--offline=true", &format!("--threshold={EXPOSURE}")]);
    assert!(secure.status.success(), "{}", String::from_utf8_lossy(&secure.stdout));
    let secure =
        analyze(&["security", "--no-pager", "--offline=true", &format!("--threshold={}", EXPOSURE - 1)]);
    assert!(!secure.status.success(), "the unit has become safer: lower EXPOSURE");
}
