//! The ends of processes, told at once: one thread that sleeps on their pidfds.
//!
//! Nothing is polled and nothing wakes up while nobody dies. What an end means is for others to
//! decide; the callback runs on this thread and must not block.

use std::{
    collections::HashMap,
    fmt,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use rustix::{
    buffer::spare_capacity,
    event::{EventfdFlags, epoll, eventfd},
    io::Errno,
};

use super::{
    clock,
    process::{Processes, kernel},
};
use crate::{
    host::{HostError, ProcessId},
    policy::time::Moment,
};

/// Ends told by one return from the kernel.
const BATCH: usize = 256;

/// The token of the descriptor that wakes the thread; processes count from one.
const WAKE: u64 = 0;

/// Watches processes until they end. Dropping it stops the watching.
pub struct Exits {
    shared: Arc<Shared>,
    processes: Arc<Processes>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    stop: AtomicBool,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    last: u64,
    tokens: HashMap<ProcessId, u64>,
    by_token: HashMap<u64, (ProcessId, OwnedFd)>,
    /// Were gone when they were to be watched, and have not been told yet.
    gone: Vec<ProcessId>,
}

impl Exits {
    /// Starts the thread; `tell` is called on it, once for each watched process that ended.
    ///
    /// # Errors
    /// When the kernel gives no thread or no descriptors.
    pub fn start(
        processes: Arc<Processes>,
        tell: impl Fn(ProcessId, Moment) + Send + 'static,
    ) -> Result<Self, HostError> {
        let doing = "watch for the ends of processes";
        let shared = Arc::new(Shared::new().map_err(|error| kernel(doing, error))?);
        let waiting = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("exits".to_owned())
            .stack_size(256 << 10)
            .spawn(move || waiting.run(&tell))
            .map_err(|error| HostError::Kernel { doing: doing.to_owned(), error: error.to_string() })?;
        Ok(Self { shared, processes, thread: Some(thread) })
    }

    /// Watches a process. If it is gone already, that is told like any other end. Watching what is
    /// watched changes nothing.
    ///
    /// # Errors
    /// When the kernel gives no descriptor; the process is then not watched.
    pub fn watch(&self, id: ProcessId) -> Result<(), HostError> {
        let fd = self.processes.open_pidfd(id)?;
        let mut watched = self.shared.watched();
        if watched.tokens.contains_key(&id) {
            return Ok(());
        }
        let Some(fd) = fd else {
            watched.gone.push(id);
            drop(watched);
            return self.shared.wake().map_err(|error| kernel("wake the watching thread", error));
        };
        watched.last += 1;
        let token = watched.last;
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.shared.epoll, &fd, data, epoll::EventFlags::IN)
            .map_err(|error| kernel(format!("watch process {}", id.pid), error))?;
        watched.tokens.insert(id, token);
        watched.by_token.insert(token, (id, fd));
        Ok(())
    }

    /// Stops watching a process: its end is no longer told.
    pub fn unwatch(&self, id: ProcessId) {
        let mut watched = self.shared.watched();
        watched.gone.retain(|gone| *gone != id);
        if let Some(token) = watched.tokens.remove(&id) {
            // Closing the descriptor takes it out of the epoll set.
            watched.by_token.remove(&token);
        }
    }

    /// How many processes are watched.
    pub fn len(&self) -> usize {
        self.shared.watched().tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let woken = self.shared.wake();
        if let Some(thread) = self.thread.take().filter(|_| woken.is_ok()) {
            // It only ends by a panic of the callback, which has been reported by then.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exits").field("watched", &self.len()).finish_non_exhaustive()
    }
}

impl Shared {
    fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self { epoll, wake, stop: AtomicBool::new(false), watched: Mutex::default() })
    }

    fn run(&self, tell: &dyn Fn(ProcessId, Moment)) {
        let mut events = Vec::with_capacity(BATCH);
        while !self.stop.load(Ordering::Acquire) {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                // Only a closed or foreign descriptor fails, and these live as long as the thread.
                Err(error) => unreachable!("waiting for the ends of processes: {error}"),
            }
            let at = clock::boottime();
            for id in self.ended(&events) {
                tell(id, at);
            }
        }
    }

    /// Takes those that the events speak of out of the watch; each end is told once.
    fn ended(&self, events: &[epoll::Event]) -> Vec<ProcessId> {
        let mut watched = self.watched();
        let mut ended = Vec::with_capacity(events.len());
        for event in events {
            let token = event.data.u64();
            if token == WAKE {
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
                ended.append(&mut watched.gone);
            } else if let Some((id, _)) = watched.by_token.remove(&token) {
                watched.tokens.remove(&id);
                ended.push(id);
            }
        }
        ended
    }

    fn wake(&self) -> Result<(), Errno> {
        match rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            // Full: it has been woken often enough.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
