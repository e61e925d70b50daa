//! The demo's own little service manager: starts the workers and replaces those that end.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::{signal::Signal, signal::kill, wait::WaitStatus},
    unistd::Pid,
};
use tokio::{sync::watch, time::sleep};

use crate::{
    cli::Failure,
    demo::{narrator::Narrator, reaper::Reaper},
};

/// Ports of the workers, and of the load balancer before them.
pub const WORKERS: [u16; 4] = [7001, 7002, 7003, 7004];
pub const FRONT: u16 = 8080;

/// How long it takes to replace a worker.
const REPLACE: Duration = Duration::from_millis(700);

/// Four workers and a front. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    program: Arc<PathBuf>,
    reaper: Reaper,
    narrator: Narrator,
    pids: Arc<Mutex<[Option<Pid>; WORKERS.len()]>>,
    /// Ended workers are not replaced while this is set.
    hold: watch::Sender<bool>,
}

impl Supervisor {
    /// Starts the service.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn start(program: PathBuf, reaper: Reaper, narrator: Narrator) -> Result<Self, Failure> {
        let own = Self {
            program: Arc::new(program),
            reaper,
            narrator,
            pids: Arc::default(),
            hold: watch::Sender::new(false),
        };
        for at in 0..WORKERS.len() {
            own.start_worker(at)?;
            let keeper = own.clone();
            tokio::spawn(async move { keeper.keep(at).await });
        }
        let ports = WORKERS.map(|port| port.to_string());
        let mut front = own.command();
        front.args(["demo-part", "front"]).arg(FRONT.to_string()).args(ports);
        own.reaper.spawn(&mut front).map_err(|error| not_started("the front", &error))?;
        Ok(own)
    }

    /// Pids of the workers that run now, in the order of their ports.
    #[must_use]
    pub fn pids(&self) -> Vec<Pid> {
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.iter().flatten().copied().filter(|pid| !self.reaper.has_ended(*pid)).collect()
    }

    /// Whether ended workers stay away.
    pub fn hold(&self, hold: bool) {
        self.hold.send_replace(hold);
    }

    /// Lets a worker die as if by itself: nothing of vervet has a hand in it.
    pub fn crash(&self, pid: Pid) {
        // It is a child of this process and not reaped before it is known to have ended.
        if self.pids().contains(&pid) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    async fn keep(&self, at: usize) {
        loop {
            let Some(pid) = self.pids.lock().unwrap_or_else(PoisonError::into_inner)[at] else { return };
            let status = self.reaper.ended(pid).await;
            sleep(REPLACE).await;
            // The sender lives in `self`.
            let _ = self.hold.subscribe().wait_for(|hold| !hold).await;
            match self.start_worker(at) {
                Ok(new) => self.narrator.aside(&format!(
                    "supervisor: worker {} (pid {pid}) {}; replaced by pid {new}",
                    at + 1,
                    how(status)
                )),
                Err(failure) => return self.narrator.aside(&failure.message),
            }
        }
    }

    fn start_worker(&self, at: usize) -> Result<Pid, Failure> {
        let mut command = self.command();
        command.args(["demo-part", "worker"]).arg(WORKERS[at].to_string());
        let pid = self.reaper.spawn(&mut command).map_err(|error| not_started("a worker", &error))?;
        self.pids.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(pid);
        Ok(pid)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&*self.program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
        command
    }
}

fn how(status: WaitStatus) -> String {
    match status {
        WaitStatus::Signaled(_, signal, _) => format!("was ended by {signal}"),
        WaitStatus::Exited(_, code) => format!("exited with status {code}"),
        _ => "ended".to_owned(),
    }
}

fn not_started(what: &str, error: &std::io::Error) -> Failure {
    Failure::failed(format!("failed to start {what}: {error}"))
}
