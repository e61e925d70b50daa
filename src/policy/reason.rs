//! Why something was refused, aborted, failed or proved nothing: typed, with the numbers.
//!
//! `Display` is the sentence for people (rule, numbers, what would make it pass), [`Reason::code`]
//! the stable word for programs. This module words; it decides nothing.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{experiment::GroupName, view::ReasonView};

/// Every reason there is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    // Whole host.
    Halted { since: Timestamp, because: String },
    Frozen { freeze: String, until: Option<Timestamp>, because: Option<String> },
    Stopping,
    TooManyRuns { running: u32, limit: u32 },
    JournalUnavailable { error: String },
    CleanupStuck { faults: u32 },
    WardenUnavailable { error: String },
    SelfTestFailed { plan: String },
    Headroom { what: &'static str, free: u64, total: u64, limit_percent: f64 },
    HeadroomUnknown { error: String },

    // What was asked.
    UnknownGroup { group: GroupName, known: Vec<GroupName> },
    NobodyOptedIn,
    UndeclaredGroup { group: GroupName, instances: u32 },
    TooManyTargets { targets: u32, limit: u32 },
    StepTooLong { step: String, duration_ms: u64, limit_ms: u64 },
    NothingMatches { step: String },
    DrainUnseen { group: GroupName, backend: String },
    AllSpared { step: String, spared: u32 },
    PickRoundsToZero { step: String, matches: u32, percent: f64 },
    TooFewMatches { step: String, matches: u32, wanted: u32 },
    Protected { pid: u32, name: String, because: String },
    ProtectedUnit { unit: String, because: String },
    UnitUnfit { unit: String, because: String },
    PlanDiffers { planned: String, now: String },
    CannotResolve { step: String, error: String },
    Unavailable { step: String, error: String },

    // A group.
    NoReading { group: GroupName, error: Option<String> },
    StaleReading { group: GroupName, age_ms: u64, limit_ms: u64 },
    Floor(FloorBreach),
    BudgetTooSmall { group: GroupName, charge: u32, at_once: u32, every_ms: u64 },
    BudgetUsed { group: GroupName, used: u32, charge: u32, at_once: u32, every_ms: u64 },
    WaitTooLong { group: GroupName, wait_ms: u64, limit_ms: u64 },
    GroupRecovering { group: GroupName, after: String, needed: u32 },

    // What went wrong under way.
    BelowFloor { group: GroupName, ready: u32, floor: u32 },
    ReadingOverdue { group: GroupName, age_ms: u64, limit_ms: u64 },
    SourceFailed { group: GroupName, error: String },
    InventoryShrank { group: GroupName, from: u32, to: u32 },
    AllUnready { group: GroupName, from: u32 },
    LeaseLost { step: String, error: String },
    InjectionFailed { step: String, error: String },
    AbortedBy { caller: String },
    AgentDied,
    PolicyChanged,

    // What the verdict rests on.
    NotSteadyBefore { probe: String, last: Option<String> },
    HypothesisFailed { probe: String, misses: u32, tolerate: u32, last: String },
    NotSteadyAfter { probe: String, within_ms: u64, last: Option<String> },
    EffectUnproven { step: String, summary: String },
    Leashed,
}

/// The numbers of a floor that would be breached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FloorBreach {
    pub group: GroupName,
    pub ready: u32,
    pub floor: u32,
    /// Charged and not yet visible in the reading.
    pub charged: u32,
    /// Whose charges they are.
    pub charged_by: Vec<Uuid>,
    pub charge: u32,
    /// What would be left: may be below zero in principle, shown as zero.
    pub left: u32,
    /// What the step does to the instances: "killing", "cutting off".
    pub verb: &'static str,
}

impl Reason {
    /// The stable code: the name of the variant in `snake_case`.
    #[must_use]
    pub fn code(&self) -> String {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => {
                map.get("reason").and_then(Value::as_str).unwrap_or("unknown").to_owned()
            }
            _ => "unknown".to_owned(),
        }
    }

    /// For the outside.
    #[must_use]
    pub fn view(&self) -> ReasonView {
        let mut numbers = serde_json::to_value(self).unwrap_or_default();
        let reason = match numbers.as_object_mut().and_then(|map| map.remove("reason")) {
            Some(Value::String(code)) => code,
            _ => "unknown".to_owned(),
        };
        ReasonView { reason, message: self.to_string(), numbers }
    }
}

impl fmt::Display for Reason {
    #[expect(clippy::too_many_lines, reason = "one sentence for each reason, in one table")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halted { since, because } => {
                write!(f, "halted since {since} ({because}); `vervet resume` releases it")
            }
            Self::Frozen { freeze, until, because } => {
                write!(f, "the freeze {freeze:?} is in force")?;
                if let Some(until) = until {
                    write!(f, " until {until}")?;
                }
                because.iter().try_for_each(|because| write!(f, ": {because}"))
            }
            Self::Stopping => f.write_str("the agent is shutting down"),
            Self::TooManyRuns { running, limit } => write!(
                f,
                "{running} of at most {limit} concurrent runs are active; wait for them, abort them, or raise \
                 limits.concurrent_runs"
            ),
            Self::JournalUnavailable { error } => {
                write!(f, "no fault is injected without a durable undo, and the journal says: {error}")
            }
            Self::CleanupStuck { faults } => write!(
                f,
                "{faults} fault(s) of earlier runs could not be reverted yet; see `vervet faults`"
            ),
            Self::WardenUnavailable { error } => {
                write!(f, "no fault is injected without the warden, and it does not answer: {error}")
            }
            Self::SelfTestFailed { plan } => {
                write!(
                    f,
                    "the limiter admitted a plan that it must refuse ({plan}); the agent has halted itself"
                )
            }
            Self::Headroom { what, free, total, limit_percent } => write!(
                f,
                "the host has {free} of {total} {what} free, and {limit_percent}% must stay free; free some, or \
                 lower limits.headroom"
            ),
            Self::HeadroomUnknown { error } => write!(f, "the host's headroom is not known: {error}"),
            Self::UnknownGroup { group, known } => {
                write!(f, "this host has no group {group}; it has {}", list(known))
            }
            Self::NobodyOptedIn => f.write_str(
                "the experiment draws one of the groups that opted in, and none did; `monkey = true` in a \
                 `[[group]]` of the policy does",
            ),
            Self::UndeclaredGroup { group, instances } => write!(
                f,
                "it would touch {instances} instance(s) of group {group}, which the experiment does not declare; add \
                 it to `groups` if that is meant"
            ),
            Self::TooManyTargets { targets, limit } => {
                write!(
                    f,
                    "{targets} targets in one step, and this host allows {limit} (limits.targets_per_step)"
                )
            }
            Self::StepTooLong { step, duration_ms, limit_ms } => write!(
                f,
                "step {step:?} lasts {}, and this host allows {} (limits.duration)",
                ms(*duration_ms),
                ms(*limit_ms)
            ),
            Self::NothingMatches { step } => {
                write!(
                    f,
                    "the target of step {step:?} matches nothing on this host, and nothing never means everything"
                )
            }
            Self::DrainUnseen { group, backend } => write!(
                f,
                "group {group} would not see that a server of the backend {backend} drains: only with \
                 `ready = {{ haproxy = …, backend = {backend:?} }}` does its floor count what HAProxy has UP"
            ),
            Self::AllSpared { step, spared } => write!(
                f,
                "all {spared} that step {step:?} matches are spared by the policy (`spare` of their group)"
            ),
            Self::PickRoundsToZero { step, matches, percent } => {
                write!(f, "step {step:?} picks {percent}% of {matches}, which rounds down to none")
            }
            Self::TooFewMatches { step, matches, wanted } => {
                write!(f, "step {step:?} picks {wanted}, and only {matches} match")
            }
            Self::Protected { pid, name, because } => {
                write!(f, "process {pid} ({name}) is never a target: {because}")
            }
            Self::ProtectedUnit { unit, because } => {
                write!(f, "unit {unit} is never a target: {because}")
            }
            Self::UnitUnfit { unit, because } => write!(f, "unit {unit} is not touched: {because}"),
            Self::PlanDiffers { planned, now } => write!(
                f,
                "the plan {} no longer holds: the same experiment resolves to {} now; look at a new plan",
                short(planned),
                short(now)
            ),
            Self::CannotResolve { step, error } => write!(f, "step {step:?} does not resolve: {error}"),
            Self::Unavailable { step, error } => {
                write!(f, "step {step:?} cannot be injected here: {error}")
            }
            Self::NoReading { group, error: Some(error) } => {
                write!(f, "group {group} has no reading: {error}; unknown capacity counts as none")
            }
            Self::NoReading { group, error: None } => {
                write!(f, "group {group} has no reading yet; unknown capacity counts as none")
            }
            Self::StaleReading { group, age_ms, limit_ms } => write!(
                f,
                "the last reading of group {group} is {} old, and {} is the limit (stale_after); stale capacity counts \
                 as none",
                ms(*age_ms),
                ms(*limit_ms)
            ),
            Self::Floor(breach) => breach.fmt(f),
            Self::BudgetTooSmall { group, charge, at_once, every_ms } => write!(
                f,
                "it would remove {charge} of group {group} at once, and its budget is {at_once} in {}; take fewer",
                ms(*every_ms)
            ),
            Self::BudgetUsed { group, used, charge, at_once, every_ms } => write!(
                f,
                "group {group} has lost {used} in the last {}, its budget is {at_once}; there is no room for {charge} \
                 more yet",
                ms(*every_ms)
            ),
            Self::WaitTooLong { group, wait_ms, limit_ms } => write!(
                f,
                "the budget of group {group} has room again in {} only, and a step waits {} at most (limits.wait)",
                ms(*wait_ms),
                ms(*limit_ms)
            ),
            Self::GroupRecovering { group, after, needed } => write!(
                f,
                "group {group} is recovering ({after}): it must be at {needed} ready for its settle time first"
            ),
            Self::BelowFloor { group, ready, floor } => {
                write!(f, "group {group} fell to {ready} ready, below its floor of {floor}")
            }
            Self::ReadingOverdue { group, age_ms, limit_ms } => write!(
                f,
                "lost sight of group {group}: the last reading is {} old, {} is the limit",
                ms(*age_ms),
                ms(*limit_ms)
            ),
            Self::SourceFailed { group, error } => write!(f, "lost sight of group {group}: {error}"),
            Self::InventoryShrank { group, from, to } => write!(
                f,
                "group {group} shrank from {from} to {to} instances at once: the inventory cannot be trusted"
            ),
            Self::AllUnready { group, from } => write!(
                f,
                "all {from} ready instances of group {group} became unready at once: the check cannot be trusted"
            ),
            Self::LeaseLost { step, error } => {
                write!(f, "the kernel ended step {step:?} before its time: {error}")
            }
            Self::InjectionFailed { step, error } => {
                write!(f, "step {step:?} could not be injected: {error}")
            }
            Self::AbortedBy { caller } => write!(f, "aborted by {caller}"),
            Self::PolicyChanged => f.write_str(
                "the host's policy was changed while it ran; begin it again under the new one",
            ),
            Self::AgentDied => {
                f.write_str("the agent died in the middle of the run; its faults were undone")
            }
            Self::NotSteadyBefore { probe, last } => write!(
                f,
                "the steady state did not hold before the first step: {probe}{}",
                last.as_ref().map(|last| format!(": {last}")).unwrap_or_default()
            ),
            Self::HypothesisFailed { probe, misses, tolerate, last } => write!(
                f,
                "the hypothesis did not hold: {probe} missed {misses} times in a row, {tolerate} are tolerated: {last}"
            ),
            Self::NotSteadyAfter { probe, within_ms, last } => write!(
                f,
                "the steady state did not come back within {} after the last step: {probe}{}",
                ms(*within_ms),
                last.as_ref().map(|last| format!(": {last}")).unwrap_or_default()
            ),
            Self::EffectUnproven { step, summary } => {
                write!(f, "step {step:?} had no proven effect, which is not a pass: {summary}")
            }
            Self::Leashed => {
                f.write_str("this host is leashed: everything was decided, nothing was touched")
            }
        }
    }
}

impl fmt::Display for FloorBreach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {} has {} ready, floor {}", self.group, self.ready, self.floor)?;
        if self.charged > 0 {
            write!(f, ", and {} already removed", self.charged)?;
            if let Some(run) = self.charged_by.first() {
                write!(f, " by run {}…", &run.to_string()[..8])?;
            }
        }
        write!(f, "; {} {} more would leave {}", self.verb, self.charge, self.left)
    }
}

/// A duration for people: `250ms`, `30s`, `5m`.
#[must_use]
pub fn ms(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms}ms"),
        _ if !ms.is_multiple_of(1000) && ms < 60_000 => format!("{:.1}s", ms as f64 / 1000.0),
        _ if ms < 120_000 => format!("{}s", ms / 1000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ => format!("{}m {}s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// Whole milliseconds.
#[must_use]
pub fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn list(names: &[GroupName]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(|name| name.0.as_str()).collect::<Vec<_>>().join(", ")
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
