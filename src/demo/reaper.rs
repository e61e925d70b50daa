//! Reaps every process of the sandbox, as pid 1 must, and tells who ended and how.
//!
//! Nobody else in this process may wait for a child: its status would be gone before it is known.

use std::{
    collections::HashMap,
    io,
    process::Command,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, wait},
    unistd::Pid,
};
use tokio::sync::watch;

/// Spawns processes and knows how each ended.
#[derive(Debug, Clone)]
pub struct Reaper {
    ended: watch::Sender<HashMap<i32, WaitStatus>>,
    /// Raised whenever there is something to wait for.
    spawned: Arc<(Mutex<bool>, Condvar)>,
}

impl Reaper {
    /// Starts the thread that waits.
    #[must_use]
    pub fn start() -> Self {
        let reaper = Self { ended: watch::Sender::default(), spawned: Arc::default() };
        let own = reaper.clone();
        thread::spawn(move || own.reap());
        reaper
    }

    /// Starts a process; how it ends is asked of [`Self::ended`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Pid> {
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let (spawned, raised) = &*self.spawned;
        *spawned.lock().unwrap_or_else(PoisonError::into_inner) = true;
        raised.notify_one();
        Ok(pid)
    }

    /// Waits for the end of a process.
    pub async fn ended(&self, pid: Pid) -> WaitStatus {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(|ended| ended.contains_key(&pid.as_raw())).await {
            Ok(ended) => ended[&pid.as_raw()],
            // The sender lives in `self`.
            Err(_) => WaitStatus::StillAlive,
        }
    }

    /// Whether a process has ended.
    #[must_use]
    pub fn has_ended(&self, pid: Pid) -> bool {
        self.ended.borrow().contains_key(&pid.as_raw())
    }

    fn reap(&self) {
        loop {
            match wait() {
                Ok(status @ (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..))) => {
                    self.ended.send_modify(|ended| {
                        ended.insert(pid.as_raw(), status);
                    });
                }
                Ok(_) | Err(Errno::EINTR) => {}
                // No child at all: until the next one is started.
                Err(_) => {
                    let (spawned, raised) = &*self.spawned;
                    let guard = spawned.lock().unwrap_or_else(PoisonError::into_inner);
                    let guard = raised.wait_while(guard, |spawned| !*spawned);
                    *guard.unwrap_or_else(PoisonError::into_inner) = false;
                }
            }
        }
    }
}
