//! The door to the host: everything that vervet sees of a machine or does to it passes here.
//!
//! [`Host`] has two implementations: [`linux`], the real one, and [`sim`], a host in memory with
//! seeded failures. Its verbs are primitive (look, signal, install, restore); what they mean
//! together is `fault`'s work, and whether they may be done at all is `policy`'s. An implementation
//! must never decide, retry or wait longer than the kernel makes it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    config::GroupPolicy,
    experiment::{
        DelayEngine, Distribution, Excess, Existing, FaultKind, GroupName, Percent, ProcessSelector,
        Signal, Traffic,
    },
    fault::undo::{Restore, Undo},
};

pub mod container;
pub mod haproxy;
pub mod instances;
pub mod linux;
pub mod sim;
pub mod unit;

use haproxy::{Aside, Pool, Server};
pub use instances::Instance;

/// A process for as long as it lives: the pid alone may be reused, the pair is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of /proc/PID/stat, proc(5).
    pub start: u64,
}

/// A process that a selector matched, with what people and policy want to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub id: ProcessId,
    pub parent: u32,
    /// `comm`
    pub name: String,
    /// Arguments joined by one space, cut at 200 characters.
    pub cmdline: String,
    /// Real uid.
    pub uid: u32,
    /// Path below the cgroup2 mount, `/` where there is none.
    pub cgroup: String,
    /// The unit of the system's manager that it belongs to, by its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The container that it is in: an id, or a name where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// TCP ports that it listens on. Filled for members of groups, and where a selector asks.
    pub listens: Vec<u16>,
    pub kernel_thread: bool,
}

/// What is known of a process at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    Running,
    /// Stopped by a signal.
    Stopped,
    /// Dead, zombies included, or its pid belongs to another process by now.
    Gone,
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Sent to exactly this process. `caught`: it has a handler for this signal.
    Sent { caught: bool },
    /// The process had ended; nothing was signalled.
    Gone,
}

/// Names the kernel objects of one fault; unique on a host, derived from run and step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FaultId(pub String);

impl FaultId {
    /// Ten hexadecimal digits of the run's random bits and the step's number, so that names built
    /// on it fit the 15 bytes of a device name.
    #[must_use]
    pub fn new(run: uuid::Uuid, step: usize) -> Self {
        let bytes = run.as_bytes();
        let random: u64 = bytes[11..16].iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        Self(format!("{random:010x}{step:x}"))
    }
}

/// A network fault to be resolved against a host.
#[derive(Debug, Clone, PartialEq)]
pub struct NetSpec {
    pub fault: FaultId,
    pub traffic: Traffic,
    pub action: NetAction,
    /// Bits of the packet mark that are vervet's.
    pub mark_mask: u32,
    /// Local TCP ports that stay untouched whatever matches: the API's. SSH's are added by the host.
    pub exempt_ports: Vec<u16>,
    /// The local processes that own the traffic, if they were looked up a moment ago.
    pub local: Option<Vec<Candidate>>,
}

/// What happens to matching traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum NetAction {
    Delay {
        delay: Duration,
        jitter: Duration,
        correlation: Percent,
        distribution: Distribution,
        engine: Option<DelayEngine>,
        /// Seeds the jitter of the `tap` engine.
        seed: u64,
    },
    Cap {
        max: Option<u32>,
        per_source: Option<u32>,
        new_per_second: Option<u32>,
        excess: Excess,
        existing: Existing,
    },
}

/// A network fault resolved against a host: enough to install it, to renew it and to say what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetPlan {
    pub fault: FaultId,
    /// Absolute path of the network namespace; `None` for the agent's own.
    pub netns: Option<String>,
    pub action: NetAction,
    /// The engine that will delay, for a delay.
    pub engine: Option<DelayEngine>,
    /// The rules in words, one each, in nft's manner. Part of what a plan's digest covers.
    pub rules: Vec<String>,
    /// The devices whose egress is redirected, by name.
    pub devices: Vec<String>,
    /// Local processes that own the selected sockets as far as they can be told.
    pub local: Vec<Candidate>,
    /// The selection does not name a port, a peer or an owner: everything local is hit.
    pub everything: bool,
    /// All that undoes it, in the order in which it is undone.
    pub restores: Vec<Restore>,
    /// What the host needs to install exactly these rules; opaque outside of `host`.
    pub detail: serde_json::Value,
}

/// What the kernel counted for a network fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct NetCounters {
    /// The objects were read back and are in place, with the lease running.
    pub in_place: bool,
    /// Packets that matched the selection (for a cap: connection attempts).
    pub matched: u64,
    /// Packets delayed, or attempts refused.
    pub affected: u64,
    /// Existing connections that were closed at injection.
    pub closed: u64,
    /// Mean delay that the `tap` engine really gave, in microseconds, if it delayed any.
    pub mean_delay_us: Option<u64>,
}

/// A unit of the service manager, as it is at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its exact name, with its kind: `checkout@1.service`.
    pub name: String,
    /// `loaded`, `not-found`, `masked`, ...
    pub load: String,
    /// `active`, `reloading`, `inactive`, `failed`, `activating`, `deactivating`.
    pub active: String,
    /// The finer state, by the kind of unit: `running`, `exited`, `listening`, ...
    pub sub: String,
    /// The pid of a service's main process, while it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main_pid: Option<u32>,
    /// Path of its cgroup below the root of the hierarchy, while it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Names this start of the unit, in hexadecimal digits; empty for one that never ran.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub invocation: String,
}

impl Unit {
    /// It runs, or is on its way to.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(&*self.active, "active" | "reloading" | "refreshing" | "activating")
    }
}

/// A unit with what a stop of it would mean.
#[expect(clippy::struct_excessive_bools, reason = "four independent answers of the service manager")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitDetail {
    pub unit: Unit,
    /// Made by a program and not by a file: once stopped it cannot be started again.
    pub transient: bool,
    pub can_start: bool,
    pub can_stop: bool,
    /// A job is queued for it or running.
    pub job: bool,
    /// Units that systemd stops with it if they are active, each named by its own dependency on it.
    pub stopped_with: Vec<String>,
}

/// A unit that a selector matched, by way of the processes in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitCandidate {
    pub name: String,
    /// Names this life of it: the service manager's invocation, or the id of its cgroup. A unit
    /// that was restarted since has another one.
    pub instance: String,
    /// Path of its cgroup below the cgroup2 mount.
    pub cgroup: String,
    /// All that runs in it, in order of (start, pid).
    pub processes: Vec<Candidate>,
    /// What stands against hitting it on this host, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
}

/// A cgroup as the freezer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freezer {
    /// Tells it from another one that has its path later.
    pub id: u64,
    /// It itself was told to freeze.
    pub asked: bool,
    /// All that is in it has stopped, for its own or an ancestor's sake.
    pub frozen: bool,
}

/// A job for a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitVerb {
    Start,
    Stop,
    Restart,
}

impl std::fmt::Display for UnitVerb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
        })
    }
}

/// Free and total of what a host can run out of. `None`: this host has no such thing (conntrack
/// not in use). An unreadable figure is an error, never `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Headroom {
    /// Bytes.
    pub memory: Option<Stock>,
    pub pids: Option<Stock>,
    pub file_handles: Option<Stock>,
    pub conntrack: Option<Stock>,
}

/// A stock of something countable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    pub free: u64,
    pub total: u64,
}

/// Whether this host can do a fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ability {
    pub fault: FaultKind,
    /// `netem`, `tap`; `None` where the fault has no variants.
    pub variant: Option<String>,
    pub available: bool,
    /// Why not, and what to do about it.
    pub reason: Option<String>,
}

/// Why the host did not do what was asked. Texts fit after "failed to …: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The kernel, the privileges or a missing module forbid it. Says what to do about it.
    #[error("{0}")]
    Unavailable(String),
    /// The request does not make sense on this host (no such namespace, name, user).
    #[error("{0}")]
    NotFound(String),
    /// Its run was stopped before it began; nothing was done.
    #[error("its run was stopped before it began")]
    Stopped,
    /// The kernel said no.
    #[error("{doing}: {error}")]
    Kernel { doing: String, error: String },
}

/// The verbs. Looking verbs change nothing; acting verbs change exactly what they are given.
pub trait Host: Send + Sync {
    /// Processes that match, in order of (start, pid). Never the kernel's threads.
    ///
    /// # Errors
    /// When the process table, a user's name or a pidfile cannot be read.
    fn find(
        &self,
        selector: &ProcessSelector,
        groups: &[GroupPolicy],
    ) -> Result<Vec<Candidate>, HostError>;

    /// The instances of a group: its members, or the units that are its members. What
    /// [`Host::find`] gives for `{ group }` alone are the processes that stand for these.
    ///
    /// # Errors
    /// As [`Host::find`].
    fn instances(&self, group: &GroupPolicy) -> Result<Vec<Instance>, HostError> {
        let members = self.find(&group.members, &[])?;
        Ok(members.into_iter().map(|member| Instance::of(member.id)).collect())
    }

    /// Whether the process is there.
    ///
    /// # Errors
    /// When the process table cannot be read.
    fn state(&self, id: ProcessId) -> Result<ProcessState, HostError>;

    /// Sends `signal` to exactly this process, by pidfd, after checking its start time.
    ///
    /// # Errors
    /// When the kernel does not permit it.
    fn signal(&self, id: ProcessId, signal: Signal) -> Result<Delivery, HostError>;

    /// Resolves a network fault. Only reads. `open` are the undos in force, whose shared objects
    /// (a `clsact` that vervet made, a sysctl that it changed) the plan must count as vervet's.
    ///
    /// # Errors
    /// When the host lacks what the fault needs, or the traffic selector does not resolve.
    fn plan_net(&self, spec: &NetSpec, open: &[Undo]) -> Result<NetPlan, HostError>;

    /// Installs a planned network fault, its kernel lease running for `lease`.
    ///
    /// # Errors
    /// When a part of it failed; what was made is then undone by [`Host::restore`], not here.
    fn install(&self, plan: &NetPlan, lease: Duration) -> Result<(), HostError>;

    /// Renews the kernel leases of installed faults; one result each, in order. An error means
    /// that the lease had lapsed or the objects are gone: it is not armed again.
    fn renew(&self, leases: &[(&NetPlan, Duration)]) -> Vec<Result<(), HostError>>;

    /// Reads back what is in force and what it did.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn counters(&self, plan: &NetPlan) -> Result<NetCounters, HostError>;

    /// The service manager's units whose names match one of the globs, sorted by name. Only those
    /// that it has in memory: every one that runs is.
    ///
    /// # Errors
    /// When there is no service manager, or it does not answer in time.
    fn units(&self, globs: &[&str]) -> Result<Vec<Unit>, HostError>;

    /// One unit with what a stop of it would mean; `None` when there is none of this name.
    ///
    /// # Errors
    /// When there is no service manager, or it does not answer in time.
    fn unit(&self, name: &str) -> Result<Option<UnitDetail>, HostError>;

    /// Gives the service manager a job for a unit, in place of whatever is queued for it. Returns
    /// when it is queued, not when it is done.
    ///
    /// # Errors
    /// When the service manager does not take it.
    fn unit_job(&self, name: &str, verb: UnitVerb) -> Result<(), HostError>;

    /// The freezer of a cgroup, by its path below the cgroup2 mount; `None` when it is gone.
    ///
    /// # Errors
    /// When this host has no cgroup2 mount, or its kernel no freezer there.
    fn freezer(&self, cgroup: &str) -> Result<Option<Freezer>, HostError>;

    /// Tells exactly this cgroup to freeze. What undoes it is [`Restore::Thaw`].
    ///
    /// # Errors
    /// When it is gone or another one by now, or the kernel does not permit it.
    fn freeze(&self, cgroup: &str, id: u64) -> Result<(), HostError>;

    /// Where exactly this process listens on TCP.
    ///
    /// # Errors
    /// When that cannot be told, or it is where the agent's own addresses mean nothing.
    fn listens(&self, process: ProcessId) -> Result<Vec<SocketAddr>, HostError> {
        let _ = process;
        Err(HostError::Unavailable("where processes listen is not known here".to_owned()))
    }

    /// The servers of a load balancer's backend, each with who keeps it from its work.
    ///
    /// # Errors
    /// When it does not say so whole and in time.
    fn servers(&self, pool: &Pool) -> Result<Vec<(Server, Aside)>, HostError> {
        Err(HostError::Unavailable(format!("{} is no load balancer", pool.haproxy)))
    }

    /// Whether the load balancer would let vervet drain a server. Changes nothing.
    ///
    /// # Errors
    /// Why not.
    fn may_drain(&self, pool: &Pool) -> Result<(), HostError> {
        self.servers(pool).map(drop)
    }

    /// Takes servers out of the rotation, their sessions excepted, all within one time. What undoes it is
    /// [`Restore::Undrain`].
    ///
    /// # Errors
    /// When the load balancer does not do it; some may drain all the same.
    fn drain(&self, pool: &Pool, servers: &[String]) -> Result<(), HostError> {
        Err(HostError::Unavailable(format!("{servers:?} of {} cannot be drained", pool.backend)))
    }

    /// Names this boot of the host: a random number that the kernel drew.
    ///
    /// # Errors
    /// When it cannot be read.
    fn boot(&self) -> Result<String, HostError>;

    /// Puts things back; one result each, in order. "Already gone" is success. Works without any
    /// memory of this process: after a crash, when the thing was never made, and twice.
    fn restore(&self, items: &[Restore]) -> Vec<Result<(), HostError>>;

    /// What is left of the host's stocks.
    ///
    /// # Errors
    /// When a figure that exists cannot be read.
    fn headroom(&self) -> Result<Headroom, HostError>;

    /// What this host can do, each fault and variant. Changes nothing that lasts.
    fn abilities(&self) -> Vec<Ability>;

    /// The processes that must never be targeted beside pid 1 and kernel threads: vervet's own
    /// and SSH's daemons and sessions, each with the reason.
    ///
    /// # Errors
    /// When the process table cannot be read.
    fn protected(&self) -> Result<BTreeMap<ProcessId, String>, HostError>;
}

/// Members of a group with their readiness, as a monitor found them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub process: Candidate,
    pub ready: bool,
}

/// The instances of every group.
pub type Memberships = BTreeMap<GroupName, Vec<Instance>>;
