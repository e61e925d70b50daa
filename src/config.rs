//! The host's policy: what its owner wrote in `vervet.toml`, valid.
//!
//! Only the types live here; `document` reads files into them. An experiment can be stricter than
//! the policy, never wider.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use jiff::{Timestamp, tz::TimeZone};

use crate::{
    experiment::{Check, DnsQuestion, GroupName, HttpCheck, Percent, ProcessSelector, Prometheus},
    host::haproxy::Pool,
};

/// Where the agent keeps its journal, unless its policy says otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/vervet";

/// The whole policy file.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Decide and log, touch nothing. The default of a fresh install.
    pub leashed: bool,
    /// Directory of journal and history.
    pub state: PathBuf,
    /// Directory of the experiments served by name.
    pub experiments: PathBuf,
    pub api: ApiPolicy,
    pub limits: Limits,
    pub network: NetworkPolicy,
    pub groups: Vec<GroupPolicy>,
    pub freezes: Vec<Freeze>,
    pub schedules: Vec<Schedule>,
}

/// Who may talk to the agent, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiPolicy {
    pub socket: PathBuf,
    pub listen: Option<SocketAddr>,
    pub tls: Option<TlsPolicy>,
    pub tokens: Vec<TokenPolicy>,
    /// Names, beside the listening address and `localhost`, that a Host header may carry.
    pub hosts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPolicy {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPolicy {
    pub name: String,
    pub role: Role,
    /// SHA-256 of the secret's text.
    pub sha256: [u8; 32],
}

/// What a caller may do; each includes the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    Observer,
    /// Also plan, run, abort and halt.
    Operator,
    /// Also release the halt.
    Owner,
}

/// Ceilings on every run of this host.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// No step lasts longer.
    pub duration: Duration,
    /// No step waits longer for the budget.
    pub wait: Duration,
    pub concurrent_runs: u32,
    pub targets_per_step: u32,
    pub headroom: HeadroomLimits,
}

/// What must stay free on the host, in percent of the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadroomLimits {
    pub memory: Percent,
    pub pids: Percent,
    pub file_handles: Percent,
    pub conntrack: Percent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// The bits of a packet's mark that are vervet's. Contiguous, at least two.
    pub mark_mask: u32,
}

/// A capacity group as its owner declared it.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupPolicy {
    pub name: GroupName,
    /// Instances that must stay ready, resolved from a percentage of `expected` (rounded up).
    pub floor: u32,
    pub expected: Option<u32>,
    pub members: ProcessSelector,
    pub ready: ReadySource,
    pub poll: Duration,
    pub stale_after: Duration,
    pub settle: Duration,
    pub removal: Removal,
    /// Its owner opted in: experiments that draw a group (`@any`) may draw this one.
    pub monkey: bool,
    /// Members that no experiment ever picks.
    pub spare: Vec<ProcessSelector>,
}

impl GroupPolicy {
    /// Its instances are units, each of them one instance however many processes it has.
    #[must_use]
    pub fn counts_units(&self) -> bool {
        let ProcessSelector { unit, .. } = &self.members;
        unit.is_some() && self.members == ProcessSelector { unit: unit.clone(), ..Default::default() }
    }
}

/// The removal budget: so many in any window of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    pub at_once: u32,
    pub every: Duration,
}

/// Where a group's ready count comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum ReadySource {
    /// A member that is alive is ready.
    Process,
    /// A member whose systemd unit is active is ready.
    Systemd,
    /// A member that accepts a connection on `port` (absent: on each port that it listens on) is ready.
    Tcp { port: Option<u16>, within: Duration },
    /// A member that answers so is ready. `{port}` and `{pid}` in the URL are the member's own.
    Http(HttpCheck),
    /// One URL counts for the whole group: numbers at these JSON pointers into its body.
    HttpCount { ask: HttpCheck, count: String, total: Option<String> },
    /// Each record that the name has is a ready instance.
    Dns(DnsQuestion),
    /// The single value of the query is the number of ready instances.
    Prometheus { server: Prometheus, query: String },
    /// A member is ready when HAProxy has the server that is its address up, its last check included.
    Haproxy { pool: Pool, within: Duration },
    /// The program prints the number of ready instances, or "ready total".
    Command { argv: Vec<String>, within: Duration },
}

/// A time in which nothing runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Freeze {
    pub name: String,
    pub when: When,
}

/// What a freeze goes by.
#[derive(Debug, Clone, PartialEq)]
pub enum When {
    /// Once.
    Dates {
        from: Timestamp,
        /// Exclusive.
        until: Timestamp,
        /// IANA name, for showing the times as the owner wrote them.
        zone: String,
    },
    /// Every week.
    Weekly(Window),
    /// While an event of this iCalendar file lasts. `zone`: where its all-day events and its times
    /// without a zone are.
    Calendar { path: PathBuf, zone: TimeZone },
    /// Whenever the check does not hold. It is asked every `every`.
    Unless { check: Check, every: Duration },
}

/// Hours of some days of the week.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Monday is the first.
    pub days: [bool; 7],
    /// Minutes since midnight by the wall clock, 0 to 1439.
    pub from: u16,
    /// Exclusive, up to 1440. Not after `from`: on the day after.
    pub until: u16,
    pub zone: TimeZone,
}

/// Runs that begin by themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Unique on this host.
    pub name: String,
    /// Of the host's library.
    pub experiment: String,
    pub enabled: bool,
    /// Its runs decide and touch nothing, even where the host is unleashed.
    pub leashed: bool,
    /// What its draws follow from. `None`: the host's own number and the schedule's name.
    pub seed: Option<u64>,
    pub rhythm: Rhythm,
}

/// When a schedule's runs begin.
#[derive(Debug, Clone, PartialEq)]
pub enum Rhythm {
    /// At the times of a cron pattern, those outside of the window excepted.
    Cron {
        /// As its owner wrote it.
        text: String,
        pattern: Box<croner::Cron>,
        zone: TimeZone,
        window: Option<Window>,
    },
    /// At most once in each day's window; in the mean every so many of these days.
    Mean {
        /// Days with a window from one run to the next, in the mean; at least `least`.
        days: f64,
        /// Days with a window from one run to the next, at least; 1 is the day after.
        least: u16,
        window: Window,
    },
}

impl Schedule {
    /// The hours outside of which none of its runs begins.
    #[must_use]
    pub fn window(&self) -> Option<&Window> {
        match &self.rhythm {
            Rhythm::Cron { window, .. } => window.as_ref(),
            Rhythm::Mean { window, .. } => Some(window),
        }
    }
}
