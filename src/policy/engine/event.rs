//! What goes into the engine and what comes out: plain data both ways.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    config::Policy,
    experiment::{Experiment, FaultSpec, GroupName, Probe, Signal},
    fault::{Effect as Measured, Injection, Lease, Prepared, Target},
    host::{FaultId, Headroom, HostError, ProcessId},
    policy::{
        calendar::{Memory, Pause, Sight, Slot},
        capacity::Reading,
        plan::Resolution,
        reason::Reason,
        time::Moment,
    },
    view::{EventView, PlanView, RunView},
};

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody wants a run. The id is new; the seed is drawn by the caller if nobody gave one.
    Start(Box<Start>),
    /// Somebody wants to know what a run would do.
    Plan {
        ticket: u64,
        experiment: Arc<Experiment>,
        seed: u64,
    },
    Abort {
        run: Uuid,
        caller: String,
    },
    /// `durable`: the halt is on disk.
    Halt {
        reason: String,
        caller: String,
        since: Timestamp,
        durable: bool,
    },
    Release,
    /// Stop: admit nothing, revert everything.
    Shutdown,
    /// The owner's policy was read again, whole and valid.
    Reload(Box<Policy>),

    Reading {
        group: GroupName,
        result: Result<Reading, String>,
    },
    /// A watched process ended: a member of these groups, or a target.
    Lost {
        groups: Vec<GroupName>,
        process: ProcessId,
        at: Moment,
    },
    Headroom(Result<Headroom, String>),
    Probed {
        run: Uuid,
        probe: usize,
        outcome: Result<(), String>,
        at: Moment,
    },
    /// The journal began to fail, or works again.
    Journal(Result<(), String>),

    Resolved {
        job: Job,
        results: Vec<(usize, Result<Resolution, HostError>)>,
    },
    Prepared {
        run: Uuid,
        step: usize,
        result: Result<Box<Prepared>, HostError>,
    },
    /// The undo is durable and the warden holds it; or not.
    Committed {
        run: Uuid,
        step: usize,
        result: Result<(), NotDurable>,
    },
    /// The victims of a kill get no new requests; so many sessions they still have.
    Drained {
        run: Uuid,
        step: usize,
        result: Result<u32, HostError>,
    },
    Injected {
        run: Uuid,
        step: usize,
        result: Result<Injection, HostError>,
    },
    Measured {
        run: Uuid,
        step: usize,
        result: Result<Measured, HostError>,
    },
    /// Leases that could not be renewed.
    Lapsed {
        run: Uuid,
        step: usize,
        error: String,
    },
    Reverted {
        run: Uuid,
        step: usize,
        result: Result<(), Vec<String>>,
    },
    /// What a freeze goes by was looked at.
    Seen {
        freeze: String,
        sight: Sight,
    },
    /// Somebody pauses a schedule, or resumes it.
    Pause {
        schedule: String,
        pause: Option<Pause>,
    },
    /// What came of a launch: the run, or why there is none.
    Launched {
        schedule: String,
        slot: Timestamp,
        result: Result<Uuid, String>,
    },
    /// So many faults of a former agent are still not reverted.
    Inherited {
        stuck: u32,
    },
    /// Time has passed.
    Tick,
}

/// What stands between a prepared fault and its injection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDurable {
    Journal(String),
    Warden(String),
}

/// A run to begin.
#[derive(Debug, Clone)]
pub struct Start {
    pub run: Uuid,
    pub experiment: Arc<Experiment>,
    pub seed: u64,
    /// The digest of the plan that it must follow.
    pub plan: Option<String>,
    pub caller: String,
    /// Decide and touch nothing, even where the host is unleashed.
    pub leashed: bool,
}

/// What a resolution is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    Plan(u64),
    Preflight(Uuid),
    Step(Uuid),
}

/// Something to be done. The order within one answer matters only between effects of one run.
#[derive(Debug)]
pub enum Effect {
    /// Look up the targets of these steps; touches nothing. Answer: `Resolved`.
    Resolve {
        job: Job,
        steps: Vec<(usize, FaultSpec, FaultId, u64)>,
    },
    /// Look up what the injection needs and what undoes it. Answer: `Prepared`.
    Prepare {
        run: Uuid,
        step: usize,
        spec: Box<FaultSpec>,
        target: Target,
        fault: FaultId,
        seed: u64,
    },
    /// Make the undo durable, and let the warden hold it. Answer: `Committed`.
    Commit(Box<Intent>),
    /// Take the victims of a kill out of the rotation (`begin`), and ask what they still do. Answer:
    /// `Drained`.
    Drain {
        run: Uuid,
        step: usize,
        prepared: Arc<Prepared>,
        begin: bool,
    },
    /// Answer: `Injected`.
    Inject {
        run: Uuid,
        step: usize,
        prepared: Arc<Prepared>,
        deadline: Moment,
    },
    /// Nothing that is still queued for this run is done any more, undoing excepted.
    Forbid(Uuid),
    /// The second signal of a kill. No answer.
    Escalate {
        run: Uuid,
        step: usize,
        prepared: Arc<Prepared>,
        signal: Signal,
    },
    /// Answer: `Measured`.
    Measure {
        run: Uuid,
        step: usize,
        prepared: Arc<Prepared>,
        injection: Injection,
    },
    /// Renew these kernel leases, none beyond its deadline. Answer: `Lapsed` for those that failed.
    Renew(Vec<(Uuid, usize, Arc<Prepared>, Moment)>),
    /// Undo. Answer: `Reverted` for each.
    Revert(Vec<(Uuid, usize, Arc<Prepared>)>),
    /// The intent is over; lets the warden forget it.
    Close {
        fault: FaultId,
        outcome: Outcome,
    },
    /// Answer: `Probed`, again and again, until stopped.
    StartProbes {
        run: Uuid,
        probes: Vec<Probe>,
    },
    StopProbes {
        run: Uuid,
    },
    /// Tell at once when these processes end. Answer: `Lost`.
    WatchExits(Vec<ProcessId>),
    /// Append to the run's log.
    Log(EventView),
    /// The run is over for good: write it to history.
    Save(Box<RunView>),
    /// The limiter's guard is broken: make the halt durable.
    PersistHalt {
        reason: String,
    },
    /// The time of a schedule has come: begin a run of this experiment of the library. Answer: `Launched`.
    Launch {
        schedule: String,
        slot: Timestamp,
        experiment: String,
        seed: u64,
    },
    /// Make durable what must be known of schedules after a restart.
    Remember(Box<Memory>),
    /// Tell what became of a schedule's slot.
    Slot(Slot),
    /// Answer to a plan.
    Planned {
        ticket: u64,
        result: Result<Box<PlanView>, Reason>,
    },
}

/// What is made durable before an injection.
#[derive(Debug, Clone)]
pub struct Intent {
    pub run: Uuid,
    pub step: usize,
    pub prepared: Arc<Prepared>,
    pub lease: Lease,
    pub charges: Vec<(GroupName, u32)>,
    pub opened_at: Timestamp,
    /// When the fault ends, on both clocks; `None` for what ends at once.
    pub deadline: Option<(Moment, Timestamp)>,
}

/// How an intent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Reverted,
    NeverInjected,
}
