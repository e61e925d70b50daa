//! What the service manager is told: ready, reloading, stopping, alive, and one line of status.
//!
//! The protocol is that of sd_notify(3): `KEY=value` lines in one datagram to the socket that
//! NOTIFY_SOCKET names.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

use crate::{policy::time::Moment, runner::Snapshot};

/// Pings in the time after which the manager believes that the agent hangs.
const PINGS: u32 = 4;

/// The manager that started this process, if one did.
#[derive(Debug, Default)]
pub struct Manager {
    link: Option<Link>,
}

#[derive(Debug)]
struct Link {
    socket: UnixDatagram,
    /// Time between two signs of life; none are wanted without it.
    ping_every: Option<Duration>,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    pinged_at: Option<Moment>,
    status: String,
    /// What an operator should know beside it.
    remark: Option<&'static str>,
}

impl Manager {
    /// Nobody to be told anything.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The one that the environment names. None when it cannot be reached: an agent that guards a
    /// host does not fail because of that.
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Self::none() };
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        // sd_watchdog_enabled(3): it is meant for the process with this pid alone.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| ours).map(Duration::from_micros);
        match Self::connect(&address, watchdog) {
            Ok(manager) => manager,
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be told anything");
                Self::none()
            }
        }
    }

    /// `address`: a path, or with `@` first an abstract name. `watchdog`: how long it may go without
    /// a sign of life.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        let ping_every = watchdog.map(|watchdog| watchdog / PINGS).filter(|every| !every.is_zero());
        Ok(Self { link: Some(Link { socket, ping_every, told: Mutex::default() }) })
    }

    /// The API serves.
    pub fn ready(&self) {
        self.say("READY=1\n");
    }

    /// The policy is being read again; [`Manager::ready`] ends it.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
    }

    /// It reverts, then ends.
    pub fn stopping(&self) {
        self.say("STOPPING=1\n");
    }

    /// When the next sign of life is due.
    #[must_use]
    pub fn next_ping(&self) -> Option<Moment> {
        let link = self.link.as_ref()?;
        let every = link.ping_every?;
        Some(link.told().pinged_at.map_or(Moment(0), |at| at.plus(every)))
    }

    /// A sign of life, if one is due.
    pub fn ping(&self, now: Moment) {
        if let Some(link) = &self.link
            && self.next_ping().is_some_and(|at| at <= now)
        {
            self.say("WATCHDOG=1\n");
            link.told().pinged_at = Some(now);
        }
    }

    /// Something to be said in the line of status from now on.
    pub fn remark(&self, remark: Option<&'static str>) {
        if let Some(link) = &self.link {
            link.told().remark = remark;
        }
    }

    /// Says how things are, if that has changed: `systemctl status` shows it.
    pub fn status(&self, snapshot: &Snapshot) {
        let Some(link) = &self.link else { return };
        let mut told = link.told();
        let remark = told.remark.map(|remark| format!("; {remark}")).unwrap_or_default();
        let status = format!("{}{remark}", summary(snapshot));
        if told.status != status {
            self.say(&format!("STATUS={status}\n"));
            told.status = status;
        }
    }

    fn say(&self, text: &str) {
        if let Some(link) = &self.link {
            // A manager that does not read will hear the next one.
            let _ = link.socket.send(text.as_bytes());
        }
    }
}

impl Link {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line: what holds everything back, what is active, how many groups are guarded.
#[must_use]
pub fn summary(snapshot: &Snapshot) -> String {
    let mut parts = Vec::new();
    if snapshot.host.halted.is_some() {
        parts.push("halted".to_owned());
    }
    if let Some(freeze) = &snapshot.host.frozen {
        parts.push(format!("frozen ({})", freeze.name));
    }
    if snapshot.host.leashed {
        parts.push("leashed".to_owned());
    }
    parts.push(match snapshot.groups.len() {
        0 => "no groups".to_owned(),
        1 => "1 group".to_owned(),
        groups => format!("{groups} groups"),
    });
    parts.push(match &snapshot.faults[..] {
        [] => "nothing active".to_owned(),
        faults => {
            let kinds: Vec<String> = faults.iter().map(|fault| fault.fault.to_string()).collect();
            format!("CHAOS: {} active ({})", faults.len(), kinds.join(", "))
        }
    });
    // A line is a line, whatever the names in it.
    parts.join("; ").replace(['\n', '\r'], " ")
}
