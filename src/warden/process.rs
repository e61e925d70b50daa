//! The warden's own side: holds undos, and performs them when the agent does not.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{GRACE, MAX_HOLDS, MAX_LINE, Reply, Request, line, take_line};
use crate::{
    fault::undo::{Undo, revert},
    host::{FaultId, Host, linux::clock::boottime},
    policy::time::Moment,
    service::journald,
};

/// How long failing reverts are tried again after the agent is gone.
const PATIENCE: Duration = Duration::from_mins(1);

/// Time between the first two attempts; doubles up to [`SLOWEST`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);

const SLOWEST: Duration = Duration::from_secs(5);

/// What the warden could not undo, with the errors of the last attempt.
#[derive(Debug, thiserror::Error)]
#[error("undo {}", .0.iter().map(|(fault, errors)| format!("{}: {}", fault.0, errors.join("; "))).collect::<Vec<_>>().join(", "))]
pub struct Left(pub Vec<(FaultId, Vec<String>)>);

/// Runs the warden of the agent that started this process, to its end. Must be called before the
/// process has a second thread, because it sets the signal mask of its own thread only.
///
/// # Errors
/// When it was not started by an agent, or something could not be undone.
pub fn main(host: &dyn Host) -> anyhow::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    if socket.peer_addr().is_err() {
        anyhow::bail!("the warden is started by `vervet agent`, not by hand");
    }
    shield();
    Ok(main_loop(&socket, host)?)
}

/// Ctrl-C reaches every process of the terminal's foreground group, and `systemctl stop` all of a
/// unit: the warden outlives both, and the agent's death ends it.
fn shield() {
    // Fails only for the leader of a process group, which no signal of another group reaches.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"vervet-warden");
    let deaf: SigSet = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGPIPE,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ]
    .into_iter()
    .collect();
    let _ = deaf.thread_block();
}

/// Serves the agent at the other end of `socket` until that closes, then reverts what is held.
///
/// # Errors
/// What could not be undone within a minute.
pub fn main_loop(socket: &UnixStream, host: &dyn Host) -> Result<(), Left> {
    let mut keeper = Keeper { host, holds: BTreeMap::new() };
    if let Err(error) = keeper.serve(socket) {
        say(&format!("the agent's pipe broke: {error}"));
    }
    keeper.revert_all()
}

struct Keeper<'a> {
    host: &'a dyn Host,
    holds: BTreeMap<FaultId, Hold>,
}

struct Hold {
    undo: Undo,
    /// When the agent's time is over.
    due: Option<Moment>,
    /// The deadline had passed. It is still held: should the agent inject late and die, it is
    /// reverted once more.
    reverted: bool,
    pause: Duration,
}

impl Keeper<'_> {
    /// Returns at the end of the agent.
    fn serve(&mut self, socket: &UnixStream) -> io::Result<()> {
        let (mut reader, mut writer) = (socket, socket);
        // A reply fits the socket's buffer; an agent that never reads its replies is broken.
        socket.set_write_timeout(Some(GRACE))?;
        writer.write_all(&line(&Reply::default()))?;
        let mut buffer = Vec::new();
        let mut chunk = [0_u8; 4096];
        let mut overlong = false;
        loop {
            self.revert_due(boottime());
            socket.set_read_timeout(self.wait(boottime()))?;
            let fresh = match reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => &chunk[..count],
                Err(error) if is_pause(&error) => continue,
                Err(error) => return Err(error),
            };
            buffer.extend_from_slice(fresh);
            while fresh.contains(&b'\n')
                && let Some(text) = take_line(&mut buffer)
            {
                let reply = if std::mem::take(&mut overlong) {
                    refuse("the line is too long")
                } else {
                    self.answer(&text, boottime())
                };
                writer.write_all(&line(&reply))?;
            }
            if buffer.len() > MAX_LINE {
                overlong = true;
                buffer.clear();
            }
        }
    }

    fn answer(&mut self, text: &[u8], now: Moment) -> Reply {
        match serde_json::from_slice(text) {
            Err(error) => refuse(&format!("not a request: {error}")),
            Ok(Request::Check) => {
                let overdue = self.holds.iter().filter(|(_, hold)| hold.reverted);
                Reply { error: None, overdue: overdue.map(|(fault, _)| fault.clone()).collect() }
            }
            Ok(Request::Release { fault }) => {
                self.holds.remove(&fault);
                Reply::default()
            }
            Ok(Request::Hold { .. }) if self.holds.len() >= MAX_HOLDS => {
                refuse("the warden holds as many faults as it can")
            }
            Ok(Request::Hold { fault, undo, remaining_ms }) => {
                let due = remaining_ms.map(|ms| now.plus(Duration::from_millis(ms)).plus(GRACE));
                let hold = Hold { undo, due, reverted: false, pause: FIRST_PAUSE };
                self.holds.insert(fault, hold);
                Reply::default()
            }
        }
    }

    /// Until the next deadline; at most a second, because the socket's timer stands still while
    /// the machine sleeps and deadlines do not. For ever when there is none.
    fn wait(&self, now: Moment) -> Option<Duration> {
        let waiting = self.holds.values().filter(|hold| !hold.reverted).filter_map(|hold| hold.due);
        let next = waiting.min()?;
        Some(next.since(now).clamp(Duration::from_millis(1), Duration::from_secs(1)))
    }

    fn revert_due(&mut self, now: Moment) {
        let is_due = |hold: &Hold| !hold.reverted && hold.due.is_some_and(|due| due <= now);
        let due: Vec<FaultId> =
            self.holds.iter().filter(|(_, hold)| is_due(hold)).map(|(fault, _)| fault.clone()).collect();
        for fault in due {
            let kept: Vec<Undo> = self
                .holds
                .iter()
                .filter(|(other, hold)| **other != fault && !hold.reverted)
                .map(|(_, hold)| hold.undo.clone())
                .collect();
            let Some(hold) = self.holds.get_mut(&fault) else { continue };
            let undo = [(fault.clone(), hold.undo.clone())];
            match revert(self.host, &undo, &kept).pop() {
                Some((_, Err(errors))) => {
                    hold.due = Some(boottime().plus(hold.pause));
                    hold.pause = (hold.pause * 2).min(SLOWEST);
                    let errors = errors.join("; ");
                    tell(&fault, true, &format!("failed to undo {}, will try again: {errors}", fault.0));
                }
                _ => {
                    hold.reverted = true;
                    tell(&fault, false, &format!("undid {}: its deadline had passed", fault.0));
                }
            }
        }
    }

    /// The agent is gone. Everything goes, shared objects too.
    fn revert_all(self) -> Result<(), Left> {
        let mut undos: Vec<(FaultId, Undo)> =
            self.holds.into_iter().map(|(fault, hold)| (fault, hold.undo)).collect();
        let end = boottime().plus(PATIENCE);
        let mut pause = FIRST_PAUSE;
        loop {
            let mut left = Vec::new();
            for (fault, result) in revert(self.host, &undos, &[]) {
                match result {
                    Ok(()) => tell(&fault, false, &format!("undid {}: the agent is gone", fault.0)),
                    Err(errors) => left.push((fault, errors)),
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            undos.retain(|(fault, _)| left.iter().any(|(other, _)| other == fault));
            let left = Left(left);
            if boottime().plus(pause) > end {
                say(&format!("gave up, `vervet recover` will try again: failed to {left}"));
                return Err(left);
            }
            say(&format!("failed to {left}; will try again"));
            std::thread::sleep(pause);
            pause = (pause * 2).min(SLOWEST);
        }
    }
}

fn refuse(why: &str) -> Reply {
    Reply { error: Some(why.to_owned()), ..Reply::default() }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// What became of one fault, with its id as a field where the journal takes fields.
fn tell(fault: &FaultId, bad: bool, text: &str) {
    if !journald::in_use() {
        say(text);
    } else if bad {
        tracing::error!(fault_id = fault.0, "the warden {text}");
    } else {
        tracing::warn!(fault_id = fault.0, "the warden {text}");
    }
}

/// One line on standard error, or none: a log that nobody reads must not hold up an undo.
fn say(text: &str) {
    let stderr = io::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec::default())).is_ok_and(|count| count == 1) {
        // Writes of less than PIPE_BUF do not block where poll(2) says OUT, pipe(7).
        let mut text = format!("vervet-warden: {text}");
        text.truncate(text.floor_char_boundary(2000));
        let _ = stderr.lock().write_all(format!("{text}\n").as_bytes());
    }
}
