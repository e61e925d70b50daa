//! The service manager, org.freedesktop.systemd1: what units there are, and jobs for them.
//!
//! Asked over the system bus or, where there is none and vervet is root, over systemd's own socket.
//! Nothing is connected before somebody asks, every call has a time limit, and after an error the
//! next call connects anew. Decides nothing: which unit may be stopped is policy's.
//! Source: org.freedesktop.systemd1(5).

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::host::{HostError, Unit, UnitDetail, UnitVerb};

pub mod bus;
pub mod wire;

use bus::{Address, Bus, BusError, Call, Socket};
use wire::{Message, Value};

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Where the bus is unless the environment says otherwise; the specification's default.
const BUS: &str = "unix:path=/run/dbus/system_bus_socket;unix:path=/var/run/dbus/system_bus_socket";
/// systemd's own socket: the same interface without a bus, for root only.
const PRIVATE: &str = "/run/systemd/private";

/// For a connection. A bus that does not answer must not keep anybody.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// For an answer: systemd answers nobody while it reads its units again.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// For starts that put units back. One that fails, fails at once as a rule.
const START_WITHIN: Duration = Duration::from_secs(2);

/// Properties of a unit that name units which systemd stops with it.
/// systemd: `UNIT_ATOM_PROPAGATE_STOP` in src/core/unit-dependency-atom.c.
const STOPPED_WITH: [&str; 5] =
    ["RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo"];

/// A client of the service manager.
#[derive(Debug)]
pub struct Systemd {
    addresses: Vec<Address>,
    /// For questions. Jobs have connections of their own, so that nobody waits behind one.
    shared: Mutex<Option<Bus>>,
}

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// It is queued, or not over yet.
    Pending,
    Done,
}

impl Default for Systemd {
    fn default() -> Self {
        Self::new()
    }
}

impl Systemd {
    /// At the place that `DBUS_SYSTEM_BUS_ADDRESS` names; without it, at the usual ones.
    #[must_use]
    pub fn new() -> Self {
        if let Ok(list) = std::env::var("DBUS_SYSTEM_BUS_ADDRESS") {
            return Self::at(Address::parse_list(&list));
        }
        let mut addresses = Address::parse_list(BUS);
        if rustix::process::geteuid().is_root() {
            addresses.push(Address { socket: Socket::Path(PRIVATE.to_owned()), bus: false });
        }
        Self::at(addresses)
    }

    /// At the first of these that answers.
    #[must_use]
    pub fn at(addresses: Vec<Address>) -> Self {
        Self { addresses, shared: Mutex::new(None) }
    }

    /// Whether somebody who answers manages this host's services.
    ///
    /// # Errors
    /// When nobody does; says what to do about it.
    pub fn check(&self) -> Result<(), HostError> {
        let call = properties(MANAGER_PATH, "Get", vec![text(MANAGER), text("Version")]);
        self.ask(&[call], "ask systemd for its version")?.into_iter().try_for_each(|answer| {
            answer.map(drop).map_err(|error| explain("ask systemd for its version", &error))
        })
    }

    /// The units in memory whose names match one of the globs, sorted by name.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub fn units(&self, globs: &[&str]) -> Result<Vec<Unit>, HostError> {
        const DOING: &str = "list the units of systemd";
        let call = manager("ListUnitsByPatterns", vec![Value::strings(&[]), Value::strings(globs)]);
        let answer = self.ask(&[call], DOING)?.pop().unwrap_or(Ok(Vec::new()));
        let answer = answer.map_err(|error| explain(DOING, &error))?;
        let rows = answer.first().map(Value::items).unwrap_or_default();
        let mut found: Vec<(Unit, String)> = rows.iter().filter_map(row).collect();
        found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        found.dedup_by(|(a, _), (b, _)| a.name == b.name);
        let calls: Vec<_> = found.iter().flat_map(|(unit, path)| detail_calls(unit, path)).collect();
        let mut answers = self.ask(&calls, DOING)?.into_iter();
        for (unit, _) in &mut found {
            for detail in Detail::of(&unit.name) {
                // Of a unit that went meanwhile there is nothing to be told.
                if let Some(Ok(answer)) = answers.next() {
                    detail.tell(unit, answer.first());
                }
            }
        }
        Ok(found.into_iter().map(|(unit, _)| unit).collect())
    }

    /// One unit with all that a stop of it would mean; `None` when systemd has nothing of this name.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub fn unit(&self, name: &str) -> Result<Option<UnitDetail>, HostError> {
        let doing = format!("ask systemd about {name}");
        let load = manager("LoadUnit", vec![text(name)]);
        let answer = self.ask(&[load], &doing)?.pop().unwrap_or(Ok(Vec::new()));
        let answer = match answer {
            Err(BusError::Remote { name, .. }) if name.ends_with(".NoSuchUnit") => return Ok(None),
            answer => answer.map_err(|error| explain(&doing, &error))?,
        };
        let Some(path) = answer.first().and_then(Value::as_str) else { return Ok(None) };
        let mut unit = Unit { name: name.to_owned(), ..Unit::default() };
        let mut calls = vec![properties(path, "GetAll", vec![text(UNIT)])];
        calls.extend(detail_calls(&unit, path));
        let mut answers = self.ask(&calls, &doing)?.into_iter();
        let all = answers.next().unwrap_or(Ok(Vec::new())).map_err(|error| explain(&doing, &error))?;
        let Some(all) = all.first() else { return Ok(None) };
        let word = |key: &str| all.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        (unit.load, unit.active, unit.sub) = (word("LoadState"), word("ActiveState"), word("SubState"));
        unit.name = word("Id");
        if unit.load == "not-found" && unit.active == "inactive" {
            return Ok(None);
        }
        for (detail, answer) in Detail::of(name).into_iter().zip(answers) {
            if let Ok(answer) = answer {
                detail.tell(&mut unit, answer.first());
            }
        }
        Ok(Some(UnitDetail {
            unit,
            transient: is(all.get("Transient")),
            can_start: is(all.get("CanStart")) && !is(all.get("RefuseManualStart")),
            can_stop: is(all.get("CanStop")) && !is(all.get("RefuseManualStop")),
            job: all.get("Job").is_some_and(|job| !matches!(job_id(job), None | Some(0))),
            stopped_with: STOPPED_WITH.iter().flat_map(|key| names(all.get(key))).collect(),
        }))
    }

    /// Starts units that were active in these invocations, unless they are active again or were
    /// started by others since; one result each, in order. All are queued before it waits for any,
    /// and it waits only so long that a start which fails at once is noticed: what takes longer is
    /// systemd's, whose job outlives everybody here.
    pub fn start_again(&self, units: &[(&str, &str)]) -> Vec<Result<(), HostError>> {
        let until = Instant::now() + START_WITHIN;
        let mut queued = Vec::new();
        let mut results: Vec<Result<(), HostError>> = Vec::new();
        for (at, (name, invocation)) in units.iter().enumerate() {
            results.push(match self.must_start(name, invocation) {
                Ok(false) => Ok(()),
                Ok(true) => self.queue(name, UnitVerb::Start, true).map(|job| queued.push((at, job))),
                Err(error) => Err(error),
            });
        }
        for (at, job) in queued {
            results[at] = job.wait(until).map(drop);
        }
        results
    }

    fn must_start(&self, name: &str, invocation: &str) -> Result<bool, HostError> {
        // A unit that is not there any more was removed by somebody who meant it.
        let Some(UnitDetail { unit, .. }) = self.unit(name)? else { return Ok(false) };
        let never = unit.invocation.bytes().all(|digit| digit == b'0');
        Ok(!unit.is_up() && (never || unit.invocation == invocation))
    }

    /// Gives systemd a job for a unit, in place of whatever is queued for it, and waits for its end
    /// until `until`; without, only until it is queued.
    ///
    /// # Errors
    /// When systemd does not take it, or the job fails.
    pub fn job(&self, name: &str, verb: UnitVerb, until: Option<Instant>) -> Result<JobEnd, HostError> {
        let job = self.queue(name, verb, until.is_some())?;
        until.map_or(Ok(JobEnd::Pending), |until| job.wait(until))
    }

    fn queue(&self, name: &str, verb: UnitVerb, listen: bool) -> Result<Queued, HostError> {
        let doing = format!("{verb} {name}");
        let explain = |error: BusError| explain(&doing, &error);
        let mut bus = self.connect()?;
        if listen {
            // Without a match rule a bus, without a subscriber systemd, keeps its signals.
            if bus.is_bus() {
                bus.call(&add_match(), ANSWER_WITHIN).map_err(explain)?;
            }
            bus.call(&manager("Subscribe", Vec::new()), ANSWER_WITHIN).map_err(explain)?;
        }
        let member = match verb {
            UnitVerb::Start => "StartUnit",
            UnitVerb::Stop => "StopUnit",
            UnitVerb::Restart => "RestartUnit",
        };
        let call = manager(member, vec![text(name), text("replace")]);
        let answer = bus.call(&call, ANSWER_WITHIN).map_err(explain)?;
        let path = answer.first().and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Queued { bus, path, name: name.to_owned(), doing })
    }

    /// Asks on the connection that is open, or on a new one where that has gone stale.
    fn ask(
        &self,
        calls: &[Call<'_>],
        doing: &str,
    ) -> Result<Vec<Result<Vec<Value>, BusError>>, HostError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut bus) = shared.take() {
            match bus.call_all(calls, ANSWER_WITHIN) {
                Ok(answers) => {
                    *shared = Some(bus);
                    return Ok(answers);
                }
                Err(error @ BusError::Late(_)) => return Err(explain(doing, &error)),
                Err(_) => {}
            }
        }
        let mut bus = self.connect()?;
        let answers = bus.call_all(calls, ANSWER_WITHIN).map_err(|error| explain(doing, &error))?;
        *shared = Some(bus);
        Ok(answers)
    }

    fn connect(&self) -> Result<Bus, HostError> {
        let mut errors = Vec::new();
        for address in &self.addresses {
            match Bus::open(address, CONNECT_WITHIN) {
                Ok(bus) => return Ok(bus),
                Err(error) => errors.push(error.to_string()),
            }
        }
        let booted = Path::new("/run/systemd/system").exists();
        let help = if booted {
            "the system bus (package dbus) must run, or the agent must be root"
        } else {
            "systemd does not manage this host"
        };
        let errors = if errors.is_empty() { "no address".to_owned() } else { errors.join("; ") };
        Err(HostError::Unavailable(format!("systemd cannot be reached ({errors}): {help}")))
    }
}

/// A job in systemd's queue, with the connection that hears of its end.
struct Queued {
    bus: Bus,
    path: String,
    name: String,
    doing: String,
}

impl Queued {
    fn wait(mut self, until: Instant) -> Result<JobEnd, HostError> {
        let left = until.saturating_duration_since(Instant::now());
        match self.bus.wait_for(left, |signal| removed(signal, &self.path)) {
            Ok(result) if matches!(&*result, "done" | "skipped") => Ok(JobEnd::Done),
            // Somebody else's job took its place: not over, and not failed.
            Ok(result) if result == "canceled" => Ok(JobEnd::Pending),
            Ok(result) => Err(HostError::Kernel {
                error: format!("systemd says: {result}; `systemctl status {}` tells more", self.name),
                doing: self.doing,
            }),
            Err(BusError::Late(_)) => Ok(JobEnd::Pending),
            Err(error) => Err(explain(&self.doing, &error)),
        }
    }
}

fn explain(doing: &str, error: &BusError) -> HostError {
    const DENIED: [&str; 3] = [
        "org.freedesktop.DBus.Error.AccessDenied",
        "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
        "org.freedesktop.PolicyKit1.Error.NotAuthorized",
    ];
    match error {
        BusError::Remote { name, message } if DENIED.contains(&name.as_str()) => {
            HostError::Unavailable(format!(
                "systemd refused to {doing}: {message}; the agent's user needs a polkit rule that \
                 allows it org.freedesktop.systemd1.manage-units (the package brings one), or the \
                 agent must be root"
            ))
        }
        BusError::Remote { name, .. } if name == "org.freedesktop.DBus.Error.ServiceUnknown" => {
            HostError::Unavailable(
                "there is a system bus, but no systemd on it: systemd does not manage this host"
                    .to_owned(),
            )
        }
        BusError::Remote { name, message } if name.ends_with(".NoSuchUnit") => {
            HostError::NotFound(message.clone())
        }
        error => HostError::Kernel { doing: doing.to_owned(), error: error.to_string() },
    }
}

/// Properties that belong to the kind of a unit, by the interface of that kind.
#[derive(Debug, Clone, Copy)]
enum Detail {
    MainPid,
    Cgroup(&'static str),
    Invocation,
}

impl Detail {
    fn of(unit: &str) -> Vec<Self> {
        let kind = match unit.rsplit_once('.').map(|(_, kind)| kind) {
            Some("service") => "org.freedesktop.systemd1.Service",
            Some("scope") => "org.freedesktop.systemd1.Scope",
            Some("slice") => "org.freedesktop.systemd1.Slice",
            Some("socket") => "org.freedesktop.systemd1.Socket",
            Some("mount") => "org.freedesktop.systemd1.Mount",
            Some("swap") => "org.freedesktop.systemd1.Swap",
            _ => return vec![Self::Invocation],
        };
        let mut details = vec![Self::Invocation, Self::Cgroup(kind)];
        if kind.ends_with("Service") {
            details.push(Self::MainPid);
        }
        details
    }

    fn call(self, path: &str) -> Call<'_> {
        let (interface, property) = match self {
            Self::MainPid => ("org.freedesktop.systemd1.Service", "MainPID"),
            Self::Cgroup(kind) => (kind, "ControlGroup"),
            Self::Invocation => (UNIT, "InvocationID"),
        };
        properties(path, "Get", vec![text(interface), text(property)])
    }

    fn tell(self, unit: &mut Unit, value: Option<&Value>) {
        let value = match value {
            Some(Value::Variant(inner)) => &**inner,
            _ => return,
        };
        match (self, value) {
            (Self::MainPid, Value::U32(pid)) => unit.main_pid = Some(*pid).filter(|pid| *pid > 0),
            (Self::Cgroup(_), Value::Str(path)) => {
                unit.cgroup = Some(path.clone()).filter(|path| !path.is_empty());
            }
            (Self::Invocation, Value::Array(_, bytes)) => {
                let hex = bytes.iter().map(|byte| match byte {
                    Value::Byte(byte) => format!("{byte:02x}"),
                    _ => String::new(),
                });
                unit.invocation = hex.collect();
            }
            _ => {}
        }
    }
}

fn detail_calls<'a>(unit: &Unit, path: &'a str) -> Vec<Call<'a>> {
    Detail::of(&unit.name).into_iter().map(|detail| detail.call(path)).collect()
}

/// A row of `ListUnitsByPatterns`: name, description, load, active and sub state, followed unit,
/// object path, and three about its job.
fn row(row: &Value) -> Option<(Unit, String)> {
    let word = |at: usize| row.items().get(at).and_then(Value::as_str).map(str::to_owned);
    let unit =
        Unit { name: word(0)?, load: word(2)?, active: word(3)?, sub: word(4)?, ..Unit::default() };
    Some((unit, word(6)?))
}

/// `JobRemoved`: id, job, unit, result.
fn removed(signal: &Message, job: &str) -> Option<String> {
    let word = |at: usize| signal.body.get(at).and_then(Value::as_str);
    let ours = signal.member == "JobRemoved" && word(1) == Some(job);
    ours.then(|| word(3).unwrap_or_default().to_owned())
}

fn add_match() -> Call<'static> {
    let rule = format!("type='signal',sender='{SERVICE}',interface='{MANAGER}',member='JobRemoved'");
    Call {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member: "AddMatch",
        arguments: vec![Value::Str(rule)],
    }
}

fn manager(member: &str, arguments: Vec<Value>) -> Call<'_> {
    Call { destination: SERVICE, path: MANAGER_PATH, interface: MANAGER, member, arguments }
}

fn properties<'a>(path: &'a str, member: &'a str, arguments: Vec<Value>) -> Call<'a> {
    Call { destination: SERVICE, path, interface: PROPERTIES, member, arguments }
}

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

fn is(value: Option<&Value>) -> bool {
    matches!(value, Some(Value::Variant(inner)) if **inner == Value::Bool(true))
}

fn job_id(job: &Value) -> Option<u32> {
    match job.items().first() {
        Some(Value::U32(id)) => Some(*id),
        _ => None,
    }
}

fn names(list: Option<&Value>) -> Vec<String> {
    let items = list.map(Value::items).unwrap_or_default();
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
