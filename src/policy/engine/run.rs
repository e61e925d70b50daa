//! The state of a run and its steps.
//!
//! ```text
//! run    Resolving ─► Steadying ─► Stage(0) ─► Stage(1) ─► … ─► Recovering ─► Finished
//!            │            │           └────────── stop ──────────► Ending ───────▲
//!            └────────────┴─ refused ────────────────────────────────────────────┘
//!
//! step   Pending ─► Resolving ─► (Waiting ─► Resolving)* ─► Preparing ─► Committing ─► (Draining) ─► Injecting
//!                                                                             │            │
//!            Skipped ◄── stop before the injection ◄──────────────────────────┘            ▼
//!            Done ◄── Reverting ◄── Closing (last measurement) ◄────────────────────── InForce
//! ```
//!
//! A step that is `Injecting` is never interrupted: it becomes `InForce` or `Reverting`, then ends. One
//! that is `Draining` is reverted as soon as the question that is under way is answered.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    experiment::{Experiment, Step},
    fault::{Effect as Measured, Injection, Prepared, Target},
    host::{FaultId, ProcessId},
    policy::{limiter::Touch, reason::Reason, time::Moment},
    view::{AbortedBy, Verdict},
};

/// One execution of an experiment.
#[derive(Debug)]
pub struct Run {
    pub id: Uuid,
    pub experiment: Arc<Experiment>,
    pub seed: u64,
    pub plan: Option<String>,
    pub caller: String,
    pub leashed: bool,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub phase: Phase,
    pub steps: Vec<StepRun>,
    pub probes: Vec<ProbeRun>,
    pub stop: Option<Stop>,
    pub verdict: Option<Verdict>,
    /// At least one fault was injected, or would have been on an unleashed host.
    pub began: bool,
    /// Events logged so far.
    pub seq: u64,
    /// Its view must be built anew.
    pub dirty: bool,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Resolving,
    /// Waiting for every probe to hold once.
    Steadying,
    /// The steps of this range are under way.
    Stage {
        first: usize,
        end: usize,
    },
    /// All steps are over; waiting for every probe to hold again.
    Recovering {
        since: Moment,
        deadline: Moment,
    },
    /// Stopped; what is in force is being undone.
    Ending,
    Finished,
}

/// Why a run ends early, and as what.
#[derive(Debug, Clone, PartialEq)]
pub struct Stop {
    pub verdict: Verdict,
    pub by: Option<AbortedBy>,
    pub why: Reason,
}

/// One step of a run.
#[derive(Debug)]
pub struct StepRun {
    pub fault: FaultId,
    pub phase: StepPhase,
    pub target: Option<Target>,
    pub touches: Vec<Touch>,
    pub prepared: Option<Arc<Prepared>>,
    pub injection: Injection,
    /// Targets of a kill that are still there.
    pub alive: BTreeSet<ProcessId>,
    /// It drains, and whether it will be killed is open.
    pub spared: bool,
    pub effect: Option<Measured>,
    pub injected_at: Option<Timestamp>,
    pub deadline: Option<Timestamp>,
    pub undone_at: Option<Timestamp>,
    pub errors: Vec<String>,
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepPhase {
    Pending,
    Resolving,
    Waiting {
        until: Moment,
    },
    Preparing,
    Committing {
        deadline: Moment,
    },
    /// The victims of a kill are out of the rotation and finish what they have.
    Draining {
        /// The latest end of the step.
        deadline: Moment,
        /// When their time to finish is over.
        until: Moment,
        /// They are asked again then; `None`: a question is under way.
        ask_at: Option<Moment>,
        /// They had nothing to do when they were asked last.
        idle: bool,
    },
    Injecting {
        deadline: Moment,
    },
    InForce {
        deadline: Moment,
        escalate_at: Option<Moment>,
    },
    /// A kill that has taken effect; the probes are asked a few times more.
    Watching {
        deadline: Moment,
    },
    /// The last measurement is under way; at `deadline` it is over whatever comes.
    Closing {
        deadline: Moment,
    },
    Reverting {
        attempt: u32,
        retry_at: Option<Moment>,
    },
    Done,
    Skipped,
}

impl StepPhase {
    /// Nothing of it is on the host, and nothing will be.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Skipped)
    }

    /// A revert has failed often enough to say so.
    #[must_use]
    pub fn is_stuck(self) -> bool {
        matches!(self, Self::Reverting { attempt, .. } if attempt >= STUCK_AFTER)
    }

    /// Something of it is, or may be, on the host.
    #[must_use]
    pub fn may_be_in_force(self) -> bool {
        matches!(
            self,
            Self::Draining { .. }
                | Self::Injecting { .. }
                | Self::InForce { .. }
                | Self::Watching { .. }
                | Self::Closing { .. }
                | Self::Reverting { .. }
        )
    }

    /// Past admission and not over: its groups are under the watch.
    #[must_use]
    pub fn is_admitted(self) -> bool {
        matches!(self, Self::Preparing | Self::Committing { .. }) || self.may_be_in_force()
    }
}

/// Failed reverts after which a run's cleanup counts as stuck. It is retried for ever.
pub const STUCK_AFTER: u32 = 3;

/// One probe of a run.
#[derive(Debug, Clone, Default)]
pub struct ProbeRun {
    pub before: Option<bool>,
    pub after: Option<bool>,
    pub attempts: u32,
    pub misses: u32,
    pub row: u32,
    pub worst_row: u32,
    pub last_miss: Option<String>,
    /// For probes of a group's capacity: when the engine looks next.
    pub next_at: Option<Moment>,
}

impl Run {
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.phase != Phase::Finished
    }

    #[must_use]
    pub fn spec(&self, step: usize) -> &Step {
        &self.experiment.steps[step]
    }

    /// Groups whose trouble stops this run.
    #[must_use]
    pub fn watches(&self, group: &crate::experiment::GroupName) -> bool {
        self.experiment.groups.contains(group)
            || self.steps.iter().any(|step| step.touches.iter().any(|touch| touch.group == *group))
    }

    /// The steps that begin together with step `first`, as the end of the range.
    #[must_use]
    pub fn stage_end(&self, first: usize) -> usize {
        let later = &self.experiment.steps[first + 1..];
        first
            + 1
            + later.iter().take_while(|s| s.start == crate::experiment::Start::WithPrevious).count()
    }
}

impl StepRun {
    #[must_use]
    pub fn new(fault: FaultId) -> Self {
        Self {
            fault,
            phase: StepPhase::Pending,
            target: None,
            touches: Vec::new(),
            prepared: None,
            injection: Injection::default(),
            alive: BTreeSet::new(),
            spared: false,
            effect: None,
            injected_at: None,
            deadline: None,
            undone_at: None,
            errors: Vec::new(),
        }
    }

    /// Takes a measurement over. What was proven once stays proven: a fault that has just ended
    /// no longer shows.
    pub fn measured(&mut self, effect: Measured) {
        let better = self.effect.as_ref().is_none_or(|old| effect.proven || !old.proven);
        if better {
            self.effect = Some(effect);
        }
    }
}
