//! Exit codes: a pipeline's view of what happened.

use std::process::ExitCode;

use crate::view::{Cleanup, DecisionView, RunView, Verdict};

/// How a command ended. The numbers are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for a run: passed.
    Passed = 0,
    /// Not done; for a run: the hypothesis did not hold.
    Failed = 1,
    /// Bad usage, or a file that is not valid.
    Usage = 2,
    /// The limiter would not begin.
    Refused = 3,
    /// Stopped by the limiter, an operator, the halt, a freeze or the end of the agent.
    Aborted = 4,
    /// No effect, or an unproven one.
    Inconclusive = 5,
    /// Something could not be undone. Wins over everything else.
    Stuck = 6,
    /// No agent answers, or it does not let this caller in.
    Unreachable = 7,
}

impl Exit {
    /// The one mapping from a run to a code. A run without a verdict proves nothing yet.
    #[must_use]
    pub fn of_run(run: &RunView) -> Self {
        if run.cleanup == Cleanup::Stuck {
            return Self::Stuck;
        }
        match run.verdict {
            Some(Verdict::Passed) => Self::Passed,
            Some(Verdict::Failed) => Self::Failed,
            Some(Verdict::Refused) => Self::Refused,
            Some(Verdict::Aborted) => Self::Aborted,
            Some(Verdict::Inconclusive) | None => Self::Inconclusive,
        }
    }

    /// Of a plan: what would have to wait would still begin.
    #[must_use]
    pub fn of_decision(decision: &DecisionView) -> Self {
        match decision {
            DecisionView::Admit | DecisionView::Wait { .. } => Self::Passed,
            DecisionView::Refuse { .. } => Self::Refused,
        }
    }

    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
