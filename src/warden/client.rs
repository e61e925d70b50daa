//! The agent's side: starts the warden, tells it what to hold, starts it again when it died.
//!
//! Every call waits for the warden's answer, at most two seconds, so they belong on a thread that
//! may wait. An injection needs an answered [`Warden::hold`]; a release that fails harms nobody.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use super::{MAX_LINE, Reply, Request, line, take_line};
use crate::{
    fault::undo::Undo,
    host::{
        FaultId,
        linux::{clock::boottime, privileges},
    },
    policy::time::Moment,
};

/// How long an answer may take. The warden answers in microseconds unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the warden is started.
#[derive(Debug, Clone)]
pub struct Launch {
    pub exe: PathBuf,
    pub args: Vec<OsString>,
}

impl Launch {
    /// This very executable, even if its file was replaced since, with the argument `warden`.
    #[must_use]
    pub fn own() -> Self {
        Self { exe: "/proc/self/exe".into(), args: vec!["warden".into()] }
    }
}

/// Why the warden does not hold a fault. Texts fit after "failed to …: ".
#[derive(Debug, thiserror::Error)]
pub enum WardenError {
    #[error("start the warden: {0}")]
    Start(io::Error),
    #[error("talk to the warden: {0}")]
    Broken(io::Error),
    #[error("have the warden hold it: {0}")]
    Refused(String),
}

/// The warden of this agent. Dropping it ends the warden, which reverts what it still holds.
#[derive(Debug)]
pub struct Warden {
    launch: Launch,
    link: Option<Link>,
    holds: BTreeMap<FaultId, (Undo, Option<Moment>)>,
}

#[derive(Debug)]
struct Link {
    child: Child,
    socket: UnixStream,
    buffer: Vec<u8>,
}

impl Warden {
    /// Starts the warden and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start, or does not say that it is ready.
    pub fn spawn(launch: Launch) -> Result<Self, WardenError> {
        let link = Link::spawn(&launch)?;
        Ok(Self { launch, link: Some(link), holds: BTreeMap::new() })
    }

    /// Has the warden hold an undo until it is released, at the longest for `remaining` and the
    /// grace. Returns when it does. An undo that puts nothing back need not be held.
    ///
    /// # Errors
    /// When it does not hold it, not even after a restart; nothing may be injected then.
    pub fn hold(
        &mut self,
        fault: &FaultId,
        undo: &Undo,
        remaining: Option<Duration>,
    ) -> Result<(), WardenError> {
        if undo.restores.is_empty() {
            return Ok(());
        }
        let deadline = remaining.map(|remaining| boottime().plus(remaining));
        self.ask(&hold_request(fault, undo, deadline))?;
        self.holds.insert(fault.clone(), (undo.clone(), deadline));
        Ok(())
    }

    /// Has the warden forget a fault that is undone.
    ///
    /// # Errors
    /// When the warden could not be told. It is not held any more either way: a new warden is not
    /// told of it, and an old one that cannot be reached is dead or will be ended.
    pub fn release(&mut self, fault: &FaultId) -> Result<(), WardenError> {
        if self.holds.remove(fault).is_none() {
            return Ok(());
        }
        self.ask(&Request::Release { fault: fault.clone() }).map(drop)
    }

    /// Makes sure that the warden lives, answers and holds what it should. Returns the faults that
    /// it reverted because their deadline passed without a release.
    ///
    /// # Errors
    /// When there is no warden and none can be started; nothing may be injected then.
    pub fn check(&mut self) -> Result<Vec<FaultId>, WardenError> {
        self.ask(&Request::Check).map(|reply| reply.overdue)
    }

    /// The process, if there is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.link.as_ref().map(|link| link.child.id())
    }

    /// Ends the warden and waits for it. It reverts what it still holds, which may take a minute
    /// when that fails.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn finish(mut self) -> io::Result<Option<ExitStatus>> {
        let Some(Link { mut child, socket, .. }) = self.link.take() else { return Ok(None) };
        drop(socket);
        child.wait().map(Some)
    }

    /// A warden that does not answer is ended and another one started, once.
    fn ask(&mut self, request: &Request) -> Result<Reply, WardenError> {
        if let Some(link) = &mut self.link {
            match link.ask(request) {
                Ok(reply) => return accept(reply),
                Err(error) => {
                    tracing::error!(pid = link.child.id(), %error, "the warden is gone; starting another");
                }
            }
        }
        self.end();
        let mut link = Link::spawn(&self.launch)?;
        let reply = tell(&mut link, &self.holds).and_then(|()| link.ask(request));
        self.link = Some(link);
        match reply {
            Ok(reply) => {
                tracing::info!(pid = self.pid(), holds = self.holds.len(), "started another warden");
                accept(reply)
            }
            Err(error) => {
                self.end();
                Err(WardenError::Broken(error))
            }
        }
    }

    /// Kills the warden before its socket closes, or it would revert what is in force.
    fn end(&mut self) {
        if let Some(mut link) = self.link.take() {
            let _ = link.child.kill();
            let _ = link.child.wait();
        }
    }
}

fn tell(link: &mut Link, holds: &BTreeMap<FaultId, (Undo, Option<Moment>)>) -> io::Result<()> {
    for (fault, (undo, deadline)) in holds {
        if let Some(error) = link.ask(&hold_request(fault, undo, *deadline))?.error {
            return Err(io::Error::other(error));
        }
    }
    Ok(())
}

impl Link {
    fn spawn(launch: &Launch) -> Result<Self, WardenError> {
        let (socket, theirs) = UnixStream::pair().map_err(WardenError::Start)?;
        let mut command = Command::new(&launch.exe);
        command
            .arg0("vervet")
            .args(&launch.args)
            .current_dir("/")
            // What it says to a service manager would be taken for the agent's.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null());
        // It undoes what the agent did, so it needs what the agent has.
        let child = privileges::with_kept(|| command.spawn()).map_err(WardenError::Start)?;
        let mut link = Self { child, socket, buffer: Vec::new() };
        // Its first line says that signals no longer end it.
        match link.reply() {
            Ok(_) => Ok(link),
            Err(error) => {
                let _ = link.child.kill();
                let _ = link.child.wait();
                Err(WardenError::Start(error))
            }
        }
    }

    fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        let text = line(request);
        if text.len() > MAX_LINE {
            let error = Some(format!("an undo of {} bytes is too long", text.len()));
            return Ok(Reply { error, ..Reply::default() });
        }
        self.socket.set_write_timeout(Some(PATIENCE))?;
        self.socket.write_all(&text)?;
        self.reply()
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let end = Instant::now() + PATIENCE;
        let mut chunk = [0_u8; 4096];
        loop {
            if let Some(text) = take_line(&mut self.buffer) {
                return serde_json::from_slice(&text).map_err(io::Error::from);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.buffer.len() > MAX_LINE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended")),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn hold_request(fault: &FaultId, undo: &Undo, deadline: Option<Moment>) -> Request {
    let remaining_ms = deadline
        .map(|deadline| u64::try_from(deadline.since(boottime()).as_millis()).unwrap_or(u64::MAX));
    Request::Hold { fault: fault.clone(), undo: undo.clone(), remaining_ms }
}

fn accept(reply: Reply) -> Result<Reply, WardenError> {
    match reply.error {
        None => Ok(reply),
        Some(error) => Err(WardenError::Refused(error)),
    }
}
