//! The event loop: waits, asks policy, performs effects.
//!
//! One task owns all mutation of runs. Everybody else holds a [`Handle`]: it enqueues requests and
//! reads published snapshots, so that no client can hold up a decision.

pub mod event_loop;
pub mod hands;
pub mod scribe;
pub mod workers;

use std::{collections::HashMap, sync::Arc};

use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::{
    experiment::Experiment,
    policy::calendar::{Agenda, Pause},
    view::{
        EventView, FaultView, GroupView, HaltView, HostView, PlanView, ReasonView, ReportView, RunView,
    },
};

/// What readers see: replaced as a whole after every change.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub host: HostView,
    pub groups: Vec<GroupView>,
    /// Active runs and the latest finished ones, newest first.
    pub runs: Vec<Arc<RunView>>,
    pub faults: Vec<FaultView>,
    /// Schedules and freezes.
    pub agenda: Arc<Agenda>,
}

/// A request to start a run.
#[derive(Debug, Clone)]
pub struct StartRequest {
    pub experiment: Arc<Experiment>,
    pub seed: Option<u64>,
    /// The digest of a plan: refused if resolution differs now.
    pub plan: Option<String>,
    /// Who asks, for the record: `socket:root`, `token:ci`, `schedule:…`
    pub caller: String,
    /// The same key with the same body answers with the run that it began.
    pub idempotency: Option<Idempotency>,
    /// Decide and touch nothing, even where the host is unleashed.
    pub leashed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Scoped by caller.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body: [u8; 32],
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    #[error("no such run")]
    NotFound,
    /// The idempotency key was used with another body.
    #[error("this idempotency key began run {0} with another body")]
    KeyReused(Uuid),
    /// The selection does not resolve, the host lacks something; reason and message.
    #[error("{}", .0.message)]
    Rejected(ReasonView),
    /// The agent is stopping.
    #[error("the agent is shutting down")]
    Stopping,
}

/// Requests to the loop.
#[derive(Debug)]
pub enum Command {
    Plan {
        experiment: Arc<Experiment>,
        seed: Option<u64>,
        reply: oneshot::Sender<Result<PlanView, RequestError>>,
    },
    /// Answers when the run exists; it may be finished (refused) by then.
    Start {
        request: StartRequest,
        reply: oneshot::Sender<Result<Arc<RunView>, RequestError>>,
    },
    /// Answers at once, before the undo is done.
    Abort {
        run: Uuid,
        caller: String,
        reply: oneshot::Sender<Result<(), RequestError>>,
    },
    Halt {
        reason: String,
        caller: String,
        reply: oneshot::Sender<HaltView>,
    },
    /// Pauses a schedule or resumes it; the answer says whether that is on disk. `None`: there is none
    /// of this name.
    Pause {
        schedule: String,
        pause: Option<Pause>,
        reply: oneshot::Sender<Option<bool>>,
    },
    /// Answers with the halt that was released, if there was one.
    Release {
        caller: String,
        reply: oneshot::Sender<Result<Option<HaltView>, RequestError>>,
    },
}

/// The event log and latest view of one run, shared with readers.
#[derive(Debug)]
pub struct RunLog {
    pub latest: watch::Sender<Arc<RunView>>,
    pub experiment: Arc<Experiment>,
    /// Append-only; index = seq - 1.
    pub events: std::sync::Mutex<Vec<Arc<EventView>>>,
    /// Number of events; readers wait on it. Closed when nothing will follow.
    pub count: watch::Sender<u64>,
}

/// Looks up runs that are no longer in memory.
pub trait History: Send + Sync {
    /// Finished runs, newest first, `before` an id (UUIDv7 sort by time), at most `limit`.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn list(&self, before: Option<Uuid>, limit: usize) -> anyhow::Result<Vec<RunView>>;

    /// # Errors
    /// When the store cannot be read.
    fn report(&self, run: Uuid) -> anyhow::Result<Option<ReportView>>;
}

/// Everybody's access to the loop. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    /// Abort and halt have a lane of their own: nothing queues ahead of them.
    pub(crate) urgent: mpsc::Sender<Command>,
    pub(crate) requests: mpsc::Sender<Command>,
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) logs: Arc<std::sync::RwLock<HashMap<Uuid, Arc<RunLog>>>>,
    pub(crate) history: Arc<dyn History>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Access to a loop that serves the other ends of these channels.
    #[must_use]
    pub fn new(
        urgent: mpsc::Sender<Command>,
        requests: mpsc::Sender<Command>,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        logs: Arc<std::sync::RwLock<HashMap<Uuid, Arc<RunLog>>>>,
        history: Arc<dyn History>,
    ) -> Self {
        Self { urgent, requests, snapshot, logs, history }
    }

    /// The latest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Decides on an experiment as a run would; touches nothing.
    ///
    /// # Errors
    /// When the experiment cannot be resolved on this host, or the agent is stopping.
    pub async fn plan(
        &self,
        experiment: Arc<Experiment>,
        seed: Option<u64>,
    ) -> Result<PlanView, RequestError> {
        self.ask(&self.requests, |reply| Command::Plan { experiment, seed, reply }).await?
    }

    /// Starts a run.
    ///
    /// # Errors
    /// When the idempotency key was used for something else, or the agent is stopping.
    pub async fn start(&self, request: StartRequest) -> Result<Arc<RunView>, RequestError> {
        self.ask(&self.requests, |reply| Command::Start { request, reply }).await?
    }

    /// Aborts a run and waits until its faults are undone (or stuck). Safe in any state.
    ///
    /// # Errors
    /// When there is no such run, or the agent is stopping.
    pub async fn abort(&self, run: Uuid, caller: String) -> Result<Arc<RunView>, RequestError> {
        let log = self.log(run).ok_or(RequestError::NotFound)?;
        self.ask(&self.urgent, |reply| Command::Abort { run, caller, reply }).await??;
        let mut latest = log.latest.subscribe();
        let settled = latest
            .wait_for(|run| {
                use crate::view::{Cleanup, RunState};
                let undone = run.state == RunState::Reverting && run.cleanup != Cleanup::InForce;
                run.state == RunState::Finished || run.cleanup == Cleanup::Stuck || undone
            })
            .await;
        match settled {
            Ok(run) => Ok(run.clone()),
            Err(_) => Err(RequestError::Stopping),
        }
    }

    /// Pulls the lever. Answers when every fault's effect has ended or its revert is known stuck.
    ///
    /// # Errors
    /// When the agent is stopping (which reverts everything too).
    pub async fn halt(&self, reason: String, caller: String) -> Result<HaltView, RequestError> {
        self.ask(&self.urgent, |reply| Command::Halt { reason, caller, reply }).await
    }

    /// Releases the lever.
    ///
    /// # Errors
    /// When the release could not be made durable, or the agent is stopping.
    pub async fn release(&self, caller: String) -> Result<Option<HaltView>, RequestError> {
        self.ask(&self.urgent, |reply| Command::Release { caller, reply }).await?
    }

    /// Pauses a schedule, or resumes it without a `pause`. Says whether that will survive a restart.
    ///
    /// # Errors
    /// When there is no such schedule, or the agent is stopping.
    pub async fn pause(&self, schedule: String, pause: Option<Pause>) -> Result<bool, RequestError> {
        let (name, wanted) = (schedule.clone(), pause.is_some());
        let answer = self.ask(&self.urgent, |reply| Command::Pause { schedule, pause, reply }).await?;
        let durable = answer.ok_or(RequestError::NotFound)?;
        // Whoever asks next sees it; somebody else may have changed it again by then.
        let mut snapshots = self.snapshot.clone();
        let seen =
            |snapshot: &Arc<Snapshot>| snapshot.agenda.memory().paused.contains_key(&name) == wanted;
        let seen = snapshots.wait_for(seen);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(100), seen).await;
        Ok(durable)
    }

    /// The live log of a run that is in memory.
    #[must_use]
    pub fn log(&self, run: Uuid) -> Option<Arc<RunLog>> {
        self.logs.read().ok()?.get(&run).cloned()
    }

    /// Runs that are no longer in memory.
    #[must_use]
    pub fn history(&self) -> &dyn History {
        &*self.history
    }

    async fn ask<T>(
        &self,
        lane: &mpsc::Sender<Command>,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        lane.send(command(reply)).await.map_err(|_| RequestError::Stopping)?;
        answer.await.map_err(|_| RequestError::Stopping)
    }
}
