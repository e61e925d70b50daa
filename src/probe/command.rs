//! `command`: a program of the owner's own says it.
//!
//! It is started from its argument vector, without a shell, in a process group of its own; when it
//! ends or overruns, whatever is left of that group is killed, and nothing else. The group's number
//! cannot have been taken by others: its leader is not reaped before.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{Errno, ioctl_fionbio},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

/// The most that is kept of each output, in bytes; what follows is read and thrown away.
const OUTPUT_MAX: usize = 4096;

/// How long a killed program may take to die before it is left to die later, in nanoseconds.
const PATIENCE_NS: i64 = 100_000_000;

/// With so many programs that do not die, no more are started.
const UNDEAD_MAX: usize = 8;

/// Killed, but hanging in the kernel (on a dead disk, say): not reaped yet.
static UNDEAD: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    status: ExitStatus,
    output: Vec<u8>,
    /// More was written than is kept.
    cut: bool,
    complaint: Vec<u8>,
}

/// What a readiness program counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    pub ready: u32,
    pub total: Option<u32>,
}

impl Ended {
    /// # Errors
    /// How it failed, with the last line of its complaint.
    pub fn success(&self) -> Result<&Self, String> {
        if self.status.success() {
            return Ok(self);
        }
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        };
        let complaint = String::from_utf8_lossy(&self.complaint);
        match complaint.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => Err(format!("the command {how}: {}", line.trim())),
            None => Err(format!("the command {how}")),
        }
    }

    /// Reads "ready" or "ready total" out of the output of a program that succeeded.
    ///
    /// # Errors
    /// When it failed or printed anything else.
    pub fn count(&self) -> Result<Count, String> {
        self.success()?;
        let text = String::from_utf8_lossy(&self.output);
        let wrong = || {
            let shown: String = text.chars().take(60).collect();
            format!("the command printed {shown:?}, not a count of ready instances")
        };
        if self.cut {
            return Err(wrong());
        }
        let numbers = text.split_whitespace().map(|word| {
            let digits = word.bytes().all(|byte| byte.is_ascii_digit());
            if digits { word.parse::<u32>().map_err(|_| wrong()) } else { Err(wrong()) }
        });
        match numbers.collect::<Result<Vec<_>, _>>()?[..] {
            [ready] => Ok(Count { ready, total: None }),
            [ready, total] if ready <= total => Ok(Count { ready, total: Some(total) }),
            [ready, total] => Err(format!("the command printed {ready} ready of {total}")),
            _ => Err(wrong()),
        }
    }
}

/// Runs the program and waits for its end. Dropping the future ends the program as well.
///
/// # Errors
/// When it cannot be started, or is not done `within`; it has then been killed with its group.
pub async fn run(argv: &[String], within: Duration) -> Result<Ended, String> {
    let cancel = Cancel::new().map_err(|error| format!("the command cannot be watched: {error}"))?;
    let cancelled = Arc::clone(&cancel.0);
    let argv = argv.to_vec();
    let deadline = Instant::now() + within;
    // Waiting in a thread of its own, the program's end, its group and its reaping stay in one order.
    let ended = tokio::task::spawn_blocking(move || supervise(&argv, deadline, within, &cancelled));
    let ended = ended.await.map_err(|error| format!("the command cannot be watched: {error}"))?;
    drop(cancel);
    ended
}

/// Tells the supervising thread that nobody waits any more.
struct Cancel(Arc<OwnedFd>);

impl Cancel {
    fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC).map(|fd| Self(Arc::new(fd)))
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        // One write never fills the counter, and the descriptor is open: it cannot fail.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

fn supervise(
    argv: &[String],
    deadline: Instant,
    within: Duration,
    cancelled: &OwnedFd,
) -> Result<Ended, String> {
    let (program, arguments) = argv.split_first().ok_or("the command is empty")?;
    if undead() >= UNDEAD_MAX {
        return Err(format!("{program} is not started: {UNDEAD_MAX} commands hang in the kernel"));
    }
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let watched = watch(&mut child, deadline, cancelled);
    let status = end(child).map_err(|error| format!("{program} cannot be waited for: {error}"))?;
    let Some(status) = status else {
        return Err(format!("{program} was killed and does not end: it hangs in the kernel"));
    };
    match watched.map_err(|error| format!("{program} cannot be watched: {error}"))? {
        Some([output, complaint]) => {
            Ok(Ended { status, output: output.kept, cut: output.cut, complaint: complaint.kept })
        }
        None => Err(format!("{program} was not done within {within:?} and has been killed")),
    }
}

/// Kills what is left of the group of a child and reaps it, its leader; `None` when that does not
/// die. It is then reaped some other time: no thread may hang with it.
fn end(mut child: Child) -> io::Result<Option<ExitStatus>> {
    if let Some(leader) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        match kill_process_group(leader, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            // It changed its user: its descendants may go on, the leader at least is a child.
            Err(_) => child.kill()?,
        }
        let ended = pidfd_open(leader, PidfdFlags::empty())?;
        let patience = Timespec { tv_sec: 0, tv_nsec: PATIENCE_NS };
        poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&patience))?;
    }
    let status = child.try_wait()?;
    if status.is_none() {
        UNDEAD.lock().unwrap_or_else(PoisonError::into_inner).push(child);
    }
    Ok(status)
}

/// Reaps the killed that have died at last, and counts those that have not.
fn undead() -> usize {
    let mut undead = UNDEAD.lock().unwrap_or_else(PoisonError::into_inner);
    undead.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    undead.len()
}

#[derive(Debug, Default)]
struct Output {
    kept: Vec<u8>,
    cut: bool,
    closed: bool,
}

/// Collects the outputs until the child has ended; `None` when that is not before the deadline.
fn watch(child: &mut Child, deadline: Instant, cancelled: &OwnedFd) -> io::Result<Option<[Output; 2]>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    let mut stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
    ioctl_fionbio(&stdout, true)?;
    ioctl_fionbio(&stderr, true)?;
    let mut outputs = [Output::default(), Output::default()];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let sources: [Option<BorrowedFd<'_>>; 2] =
            [(!outputs[0].closed).then(|| stdout.as_fd()), (!outputs[1].closed).then(|| stderr.as_fd())];
        let (done, stop) = wait(&ended, cancelled, sources, left)?;
        outputs[0].drain(&mut stdout)?;
        outputs[1].drain(&mut stderr)?;
        if done {
            return Ok(Some(outputs));
        }
        if stop || Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

/// Sleeps until something happens; whether the child has ended, and whether nobody waits any more.
fn wait(
    ended: &OwnedFd,
    cancelled: &OwnedFd,
    sources: [Option<BorrowedFd<'_>>; 2],
    left: Duration,
) -> io::Result<(bool, bool)> {
    let mut fds = vec![PollFd::new(ended, PollFlags::IN), PollFd::new(cancelled, PollFlags::IN)];
    fds.extend(sources.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(&mut fds, Some(&left)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty()))
}

impl Output {
    /// Takes what is there without waiting. Bounded, so that an endless writer cannot hold it.
    fn drain(&mut self, from: &mut (impl Read + AsFd)) -> io::Result<()> {
        let mut buffer = [0; 4096];
        for _ in 0..16 {
            if self.closed {
                break;
            }
            match from.read(&mut buffer) {
                Ok(0) => self.closed = true,
                Ok(count) => {
                    let room = OUTPUT_MAX - self.kept.len();
                    self.cut |= count > room;
                    self.kept.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
