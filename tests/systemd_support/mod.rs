//! A private message bus (a real dbus-daemon) with a small service manager on it.
//!
//! The manager answers as org.freedesktop.systemd1(5) says, for units that are processes of this
//! test. Of systemd it has what vervet asks for, and no more.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use vervet::host::linux::systemd::{
    bus::{Address, Bus, BusError, Call},
    wire::{Kind, Message, Value},
};

const SOON: Duration = Duration::from_secs(5);

/// A unit of the manager.
#[derive(Debug, Default)]
pub struct MockUnit {
    /// What a start runs; empty: nothing, the unit is active all the same.
    pub argv: Vec<String>,
    /// Reported as its cgroup; where `cgroup_dir` is set, its processes are put there.
    pub cgroup: String,
    pub cgroup_dir: Option<PathBuf>,
    pub active: bool,
    pub required_by: Vec<String>,
    pub transient: bool,
    pub child: Option<Child>,
    pub starts: u32,
    /// A start fails.
    pub broken: bool,
}

impl MockUnit {
    /// A unit that will run this when it is added.
    pub fn new(argv: &[&str]) -> Self {
        let argv = argv.iter().map(|&part| part.to_owned()).collect();
        Self { argv, ..Self::default() }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Somebody starts it.
    pub fn start(&mut self) {
        if self.active {
            return;
        }
        self.active = true;
        self.starts += 1;
        if let [program, rest @ ..] = &self.argv[..] {
            let child = Command::new(program)
                .args(rest)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            if let Some(dir) = &self.cgroup_dir {
                std::fs::create_dir_all(dir).unwrap();
                std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
            }
            self.child = Some(child);
        }
    }

    fn stop(&mut self) {
        self.active = false;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(dir) = &self.cgroup_dir {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// What the manager has, and how it behaves.
#[derive(Debug, Default)]
pub struct State {
    pub units: BTreeMap<String, MockUnit>,
    /// Every job, in order.
    pub jobs: Vec<(String, String)>,
    /// Jobs are refused as polkit would.
    pub denied: bool,
    /// Nothing is answered.
    pub mute: bool,
}

impl Drop for State {
    fn drop(&mut self) {
        self.units.values_mut().for_each(MockUnit::stop);
    }
}

/// The bus and the manager. Both end with it.
#[derive(Debug)]
pub struct MockSystemd {
    pub state: Arc<Mutex<State>>,
    /// For `DBUS_SYSTEM_BUS_ADDRESS`.
    pub address: String,
    daemon: Child,
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

/// `None`, with a word on stderr, where there is no dbus-daemon.
pub fn start(test: &str) -> Option<MockSystemd> {
    if Command::new("dbus-daemon").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: {test}: there is no dbus-daemon");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("bus");
    let mut daemon = daemon(dir.path(), &socket);
    let address = format!("unix:path={}", socket.display());
    let mut bus = None;
    // Between the socket's name and its first listener a moment passes.
    eventually("dbus-daemon listens", || {
        bus = Bus::open(&Address::parse_list(&address)[0], SOON).ok();
        bus.is_some() || daemon.try_wait().unwrap().is_some()
    });
    let mut bus = bus.expect("a bus");
    let name = vec![Value::Str("org.freedesktop.systemd1".to_owned()), Value::U32(0)];
    let owned = bus.call(
        &Call {
            destination: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "RequestName",
            arguments: name,
        },
        SOON,
    );
    assert_eq!(owned, Ok(vec![Value::U32(1)]));
    let state = Arc::new(Mutex::new(State::default()));
    let over = Arc::new(AtomicBool::new(false));
    let (served, ended) = (state.clone(), over.clone());
    let thread = thread::spawn(move || serve(bus, &served, &ended));
    Some(MockSystemd { state, address, daemon, over, thread: Some(thread), _dir: dir })
}

fn daemon(dir: &Path, socket: &Path) -> Child {
    let config = dir.join("bus.conf");
    let text = format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig>\n\
         <type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\n\
         <policy context=\"default\"><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>\
         <allow own=\"*\"/><allow user=\"*\"/></policy>\n</busconfig>\n",
        socket.display()
    );
    std::fs::write(&config, text).unwrap();
    Command::new("dbus-daemon")
        .arg(format!("--config-file={}", config.display()))
        .args(["--nofork", "--nopidfile", "--nosyslog"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

impl MockSystemd {
    /// Adds a unit, started.
    pub fn add(&self, name: &str, mut unit: MockUnit) {
        unit.start();
        self.state.lock().unwrap().units.insert(name.to_owned(), unit);
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    pub fn addresses(&self) -> Vec<Address> {
        Address::parse_list(&self.address)
    }

    /// The bus goes, with every connection.
    pub fn kill_bus(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Drop for MockSystemd {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.kill_bus();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut bus: Bus, state: &Mutex<State>, over: &AtomicBool) {
    let mut jobs = 0;
    while !over.load(Ordering::Relaxed) {
        // No short limit: it may end in the middle of a message. The end of the bus ends this.
        let call = match bus.next(Duration::from_hours(1)) {
            Ok(call) if call.kind == Kind::Call => call,
            Ok(_) | Err(BusError::Late(_)) => continue,
            Err(_) => return,
        };
        let mut state = state.lock().unwrap();
        if state.mute {
            continue;
        }
        let mut signal = None;
        let mut reply = match answer(&mut state, &call, &mut jobs, &mut signal) {
            Ok(body) => Message { body, ..Message::new(Kind::Return) },
            Err((error, text)) => Message {
                error: format!("org.freedesktop.{error}"),
                body: vec![Value::Str(text)],
                ..Message::new(Kind::Error)
            },
        };
        drop(state);
        reply.reply_to = call.serial;
        reply.destination = call.sender;
        if bus.send(reply, SOON).is_err() {
            return;
        }
        if let Some(signal) = signal {
            let _ = bus.send(signal, SOON);
        }
    }
}

type Answer = Result<Vec<Value>, (&'static str, String)>;

fn answer(state: &mut State, call: &Message, jobs: &mut u32, signal: &mut Option<Message>) -> Answer {
    let word = |at: usize| call.body.get(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    match &*call.member {
        "Subscribe" => Ok(vec![]),
        "ListUnitsByPatterns" => {
            let globs: Vec<_> = call.body[1].items().iter().filter_map(Value::as_str).collect();
            let rows = state.units.iter().filter(|(name, _)| globs.iter().any(|glob| fits(glob, name)));
            let rows = rows.map(|(name, unit)| row(name, unit)).collect();
            Ok(vec![Value::Array("(ssssssouso)".to_owned(), rows)])
        }
        "LoadUnit" => Ok(vec![Value::Path(path_of(&word(0)))]),
        "Get" | "GetAll" if call.path == "/org/freedesktop/systemd1" => {
            Ok(vec![Value::Variant(Box::new(Value::Str("252".to_owned())))])
        }
        "Get" => {
            let unit = state.units.iter_mut().find(|(name, _)| path_of(name) == call.path);
            let value = match (&*word(1), unit) {
                ("MainPID", unit) => Value::U32(unit.map_or(0, |(_, unit)| unit.pid())),
                ("ControlGroup", Some((_, unit))) if unit.active => Value::Str(unit.cgroup.clone()),
                ("ControlGroup", _) => Value::Str(String::new()),
                ("InvocationID", unit) => {
                    let starts = unit.map_or(0, |(_, unit)| unit.starts);
                    let bytes = (0..16)
                        .map(|at| if at == 15 { u8::try_from(starts).unwrap_or(u8::MAX) } else { 7 });
                    Value::Array("y".to_owned(), bytes.map(Value::Byte).collect())
                }
                _ => return Err(("DBus.Error.UnknownProperty", word(1))),
            };
            Ok(vec![Value::Variant(Box::new(value))])
        }
        "GetAll" => Ok(vec![properties(state, &call.path)]),
        "StartUnit" | "StopUnit" | "RestartUnit" => {
            let name = word(0);
            assert_eq!(word(1), "replace");
            if state.denied {
                return Err(("DBus.Error.AccessDenied", "Permission denied".to_owned()));
            }
            if !state.units.contains_key(&name) {
                return Err(("systemd1.NoSuchUnit", format!("Unit {name} not found.")));
            }
            state.jobs.push((call.member.clone(), name.clone()));
            *jobs += 1;
            let result = run(state, &call.member, &name);
            let job = format!("/org/freedesktop/systemd1/job/{jobs}");
            *signal = Some(Message {
                path: "/org/freedesktop/systemd1".to_owned(),
                interface: "org.freedesktop.systemd1.Manager".to_owned(),
                member: "JobRemoved".to_owned(),
                body: vec![
                    Value::U32(*jobs),
                    Value::Path(job.clone()),
                    Value::Str(name),
                    Value::Str(result.to_owned()),
                ],
                ..Message::new(Kind::Signal)
            });
            Ok(vec![Value::Path(job)])
        }
        other => Err(("DBus.Error.UnknownMethod", other.to_owned())),
    }
}

fn run(state: &mut State, member: &str, name: &str) -> &'static str {
    let Some(unit) = state.units.get_mut(name) else { return "failed" };
    let others = unit.required_by.clone();
    if member != "StartUnit" {
        unit.stop();
    }
    if member != "StopUnit" {
        if unit.broken {
            return "failed";
        }
        unit.start();
    }
    if member == "StopUnit" {
        others.iter().for_each(|other| state.units.get_mut(other).map_or((), MockUnit::stop));
    }
    "done"
}

fn row(name: &str, unit: &MockUnit) -> Value {
    let text = |text: &str| Value::Str(text.to_owned());
    let (active, sub) = if unit.active { ("active", "running") } else { ("inactive", "dead") };
    Value::Struct(vec![
        text(name),
        text("A unit"),
        text("loaded"),
        text(active),
        text(sub),
        text(""),
        Value::Path(path_of(name)),
        Value::U32(0),
        text(""),
        Value::Path("/".to_owned()),
    ])
}

fn properties(state: &State, path: &str) -> Value {
    let found = state.units.iter().find(|(name, _)| path_of(name) == path);
    let entry = |key: &str, value: Value| {
        let key = Value::Str(key.to_owned());
        Value::Entry(Box::new(key), Box::new(Value::Variant(Box::new(value))))
    };
    let text = |text: &str| Value::Str(text.to_owned());
    let (load, active, sub) = match found {
        None => ("not-found", "inactive", "dead"),
        Some((_, unit)) if unit.active => ("loaded", "active", "running"),
        Some(_) => ("loaded", "inactive", "dead"),
    };
    let required_by: Vec<&str> =
        found.iter().flat_map(|(_, unit)| unit.required_by.iter().map(String::as_str)).collect();
    let entries = vec![
        entry("Id", text(found.map_or("", |(name, _)| name))),
        entry("LoadState", text(load)),
        entry("ActiveState", text(active)),
        entry("SubState", text(sub)),
        entry("CanStart", Value::Bool(true)),
        entry("CanStop", Value::Bool(true)),
        entry("RefuseManualStart", Value::Bool(false)),
        entry("RefuseManualStop", Value::Bool(false)),
        entry("Transient", Value::Bool(found.is_some_and(|(_, unit)| unit.transient))),
        entry("Job", Value::Struct(vec![Value::U32(0), Value::Path("/".to_owned())])),
        entry("RequiredBy", Value::strings(&required_by)),
        entry("BoundBy", Value::strings(&[])),
    ];
    Value::Array("{sv}".to_owned(), entries)
}

/// systemd's way to make a name fit for a path: all but letters and digits as `_xx`.
fn path_of(name: &str) -> String {
    let escaped = name.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("_{byte:02x}"),
    });
    format!("/org/freedesktop/systemd1/unit/{}", escaped.collect::<String>())
}

/// A glob with at most one star.
fn fits(glob: &str, name: &str) -> bool {
    match glob.split_once('*') {
        None => glob == name,
        Some((head, tail)) => {
            name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
        }
    }
}

/// Waits until it holds; what it waits for happens elsewhere and gives no notice.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
