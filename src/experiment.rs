//! The nouns everyone shares: a *valid* experiment and what its parts mean.
//!
//! A value of these types has been checked: durations are positive, percentages lie in 0..=100,
//! selectors are not empty, names are well formed. Reading TOML or JSON into them, and every
//! message about what is wrong with a document, is `document`'s work; resolving them against a
//! host is `host`'s and `policy::plan`'s. This module must not do I/O and knows no kernel.

use std::{fmt, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::host::haproxy::Pool;

mod check;

pub use check::{
    Alertmanager, Bounds, DnsCheck, DnsQuestion, DnsRecord, Headers, HttpCheck, JsonExpect, Labels,
    Percentiles, Prometheus, Quantile,
};

/// A whole experiment: a hypothesis, the steady state that must hold, and steps that do harm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// One line for people; also the name in lists.
    pub title: String,
    /// What is believed to stay true while the steps run.
    pub hypothesis: String,
    /// The capacity groups that the experiment means to touch; reaching any other is refused.
    pub groups: Vec<GroupName>,
    /// The steady state. May be empty: then only the effect of the steps is judged.
    pub probes: Vec<Probe>,
    /// At least one.
    pub steps: Vec<Step>,
    /// How long the steady state may take to come back after the last step.
    pub recovery: Duration,
}

/// The name of a capacity group, as the host's owner wrote it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupName(pub String);

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for GroupName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// Stands for one group, drawn with the run's seed among those whose owner opted in.
pub const ANY_GROUP: &str = "@any";

/// One question about the steady state, asked again and again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    pub name: String,
    pub check: Check,
    /// Time between the starts of two attempts.
    pub every: Duration,
    /// Consecutive misses that are forgiven; one more and the hypothesis has failed.
    pub tolerate: u32,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Check {
    /// A URL must answer as expected.
    Http(HttpCheck),
    /// A connection to `address` (host:port) must be established within the time.
    Tcp { address: String, within: Duration },
    /// A name must resolve as expected.
    Dns(DnsCheck),
    /// Every value of a query's result must lie within the bounds; no value at all is a miss.
    Prometheus { server: Prometheus, query: String, bounds: Bounds },
    /// None of these alerts may be firing, by the rules of a Prometheus.
    PrometheusQuiet { server: Prometheus, quiet: Vec<Labels> },
    /// None of these alerts may be active (neither silenced nor inhibited) in an Alertmanager.
    AlertmanagerQuiet { server: Alertmanager, quiet: Vec<Labels> },
    /// The program (argument vector, no shell) must exit with status 0 within the time.
    Command { argv: Vec<String>, within: Duration },
    /// At least this many servers of the backend must be up.
    Haproxy { pool: Pool, up: u32, within: Duration },
    /// The group must have at least this many ready instances.
    Group { group: GroupName, ready: u32 },
}

/// One fault on one target for one duration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub fault: FaultSpec,
    /// How long the fault is in force. For `kill`, how long to watch after the kill (may be absent).
    pub duration: Option<Duration>,
    pub start: Start,
    /// Instances to charge to each touched group beyond what the fault itself charges.
    pub charge: u32,
}

/// When a step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// After the previous step ended.
    AfterPrevious,
    /// Together with the previous step.
    WithPrevious,
}

/// A kind of harm with its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum FaultSpec {
    Kill(Kill),
    Pause(Pause),
    Unit(UnitFault),
    Latency(Latency),
    Connections(Connections),
}

impl FaultSpec {
    /// The word used in documents for this fault.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::Kill(_) => FaultKind::Kill,
            Self::Pause(_) => FaultKind::Pause,
            Self::Unit(_) => FaultKind::Unit,
            Self::Latency(_) => FaultKind::Latency,
            Self::Connections(_) => FaultKind::Connections,
        }
    }
}

/// The faults that this version can inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    Kill,
    Pause,
    Unit,
    Latency,
    Connections,
}

impl FaultKind {
    pub const ALL: [Self; 5] = [Self::Kill, Self::Pause, Self::Unit, Self::Latency, Self::Connections];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Unit => "unit",
            Self::Latency => "latency",
            Self::Connections => "connections",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Send a signal to processes, and another one to those that are still there after a grace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    pub target: ProcessTarget,
    pub signal: Signal,
    pub then: Option<Escalation>,
    /// Take the victims out of a load balancer's rotation first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
}

/// What a kill does before it kills: its victims get no new requests, and finish those they have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub pool: Pool,
    /// How long sessions may take to end.
    pub within: Duration,
    pub late: Late,
}

/// What becomes of a victim that still has sessions when its time to drain is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Late {
    /// It is put back and not killed.
    Spare,
    /// It is killed with its sessions.
    Kill,
}

/// The second signal of a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escalation {
    pub signal: Signal,
    pub after: Duration,
}

/// Stop processes where they are, and let them go on at the end: single ones by a signal, whole
/// units by the freezer of their cgroup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pause {
    pub target: ProcessTarget,
}

/// Stop or restart whole units by way of the service manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitFault {
    /// Selects by `unit`, by `group` or by both; what is picked are units.
    pub target: ProcessTarget,
    pub action: UnitAction,
}

/// What is done to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitAction {
    /// Stopped for the duration, then started again.
    Stop,
    /// Restarted once; the duration is what it has to come back.
    Restart,
}

impl UnitAction {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Restart => "restart",
        }
    }
}

/// Delay what leaves the host for the selected traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub traffic: Traffic,
    pub delay: Duration,
    /// Half the width of the spread around `delay` (uniform), or its standard deviation (others).
    pub jitter: Duration,
    /// How much each delay resembles the one before it.
    pub correlation: Percent,
    pub distribution: Distribution,
    /// `None`: the first one that this host has.
    pub engine: Option<DelayEngine>,
}

/// The shape of the jitter, as netem names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    Uniform,
    Normal,
    Pareto,
    ParetoNormal,
}

/// What delays the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DelayEngine {
    /// The kernel's netem qdisc on an ifb device.
    Netem,
    /// A TAP device with a delay line in the agent.
    Tap,
}

/// Cap TCP connections. At least one of the three limits is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    pub traffic: Traffic,
    /// Open at the same time, in total. Zero: none at all.
    pub max: Option<u32>,
    /// Open at the same time, from one source address.
    pub per_source: Option<u32>,
    /// New ones each second.
    pub new_per_second: Option<u32>,
    pub excess: Excess,
    pub existing: Existing,
}

/// What meets a connection attempt beyond the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Excess {
    /// A TCP reset: the client sees "connection refused" at once.
    Reset,
    /// Silence: the client retries until it times out.
    Drop,
}

/// What becomes of connections that were open before the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    Keep,
    Close,
}

/// Which processes, and how many of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessTarget {
    pub select: ProcessSelector,
    pub pick: Pick,
    pub order: Order,
}

/// A conjunction: every given key must match. Never empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessSelector {
    /// A member of this capacity group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Belongs to a systemd unit whose name matches this pattern, as `systemctl` takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// In this container: its name, or its id from 12 digits on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// `comm`, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Path of the executable, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// A regular expression searched in the arguments joined by one space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// A user name or number (the real uid).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Listens on this TCP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<u16>,
    /// Path of the cgroup below the cgroup2 mount; processes in or below it match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// A file that holds the pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidfile: Option<String>,
    /// Has been running for at least this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than: Option<Duration>,
}

impl ProcessSelector {
    /// Selects by `unit` and nothing else: whole units, and not some of their processes.
    #[must_use]
    pub fn is_of_units(&self) -> bool {
        let unit = self.unit.clone();
        unit.is_some() && *self == Self { unit, ..Self::default() }
    }

    /// The group that is all that it names: its instances are meant, not any of their processes.
    #[must_use]
    pub fn whole_group(&self) -> Option<&GroupName> {
        let Self { group, older_than, .. } = self;
        let alone = Self { group: group.clone(), older_than: *older_than, ..Self::default() };
        group.as_ref().filter(|_| *self == alone)
    }
}

/// How many of the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    Count(u32),
    /// Rounds down; zero is an error when it is resolved.
    Percent(Percent),
    All,
}

/// In which order candidates are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Drawn with the run's seed.
    Random,
    Oldest,
    Newest,
}

/// Which traffic. A conjunction of keys, alternatives within one key. Never empty.
///
/// `listen` is a local port that peers connect to, `port` a remote port that this host connects to;
/// `to` are remote addresses that this host calls, `from` remote addresses that call this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Peer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Peer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<u16>,
    /// Absent: TCP where a port is given, else every protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// A pattern over names of systemd units: whose traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Path of a cgroup below the cgroup2 mount: whose traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// A user name or number: whose traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The device that it leaves by (or, for `connections` on a `listen` port, enters by).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// A named network namespace (below /run/netns), the absolute path of one, or that of a container
    /// (`container:NAME`). Absent: the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
}

/// A peer: a block of addresses, or a name that is looked up when the step starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    Block(Cidr),
    Name(String),
}

/// A block of addresses; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidr {
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

/// A percentage, 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Percent(f64);

impl Percent {
    pub const ZERO: Self = Self(0.0);

    /// `None` outside 0 to 100, and for what is not a number.
    #[must_use]
    pub fn new(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent))
    }

    /// 0.0 to 100.0
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }

    /// 0.0 to 1.0
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.0 / 100.0
    }
}

// Constructed only from numbers in 0..=100, so never NaN.
impl Eq for Percent {}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A POSIX signal by its Linux number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// Names by number, from signal(7) for x86 and ARM; index 0 is not a signal.
const SIGNAL_NAMES: [&str; 32] = [
    "",
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

impl Signal {
    pub const KILL: Self = Self(9);
    pub const TERM: Self = Self(15);
    pub const CONT: Self = Self(18);
    pub const STOP: Self = Self(19);

    /// Accepts `SIGTERM`, `TERM` and `term`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("SIG").unwrap_or(&upper);
        if short.is_empty() {
            return None;
        }
        let at = SIGNAL_NAMES.iter().position(|known| known.get(3..) == Some(short))?;
        i32::try_from(at).ok().filter(|number| *number > 0).map(Self)
    }

    /// All names, for suggestions.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        SIGNAL_NAMES.into_iter().skip(1)
    }

    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        usize::try_from(self.0).ok().and_then(|at| SIGNAL_NAMES.get(at)).copied().unwrap_or("SIG?")
    }

    /// Whoever gets it is expected to end, at once or after tidying up; the others may just as well
    /// mean something to a process that lives on (reload, rotate the logs).
    #[must_use]
    pub fn asks_to_end(self) -> bool {
        // INT, QUIT, ILL, TRAP, ABRT, BUS, FPE, KILL, SEGV, TERM, STKFLT, XCPU, XFSZ, SYS
        matches!(self.0, 2..=9 | 11 | 15 | 16 | 24 | 25 | 31)
    }

    /// Leaves the process stopped, which nothing of a `kill` would undo.
    #[must_use]
    pub fn stops(self) -> bool {
        (19..=22).contains(&self.0)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Signal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("no such signal: {name}")))
    }
}
