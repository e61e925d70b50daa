//! What the outside sees: the JSON of the REST API, of `--json` and of reports.
//!
//! Plain data, written by `policy::engine`'s snapshot, read by the API and the CLI. Times are RFC 3339
//! in UTC, durations are whole milliseconds with `_ms` in the name. Fields may be added, never changed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    experiment::FaultKind,
    fault::{Effect, Lease},
};

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Resolving, checking, asking the limiter. Nothing has been touched.
    Preflight,
    Running,
    /// Undoing what is in force.
    Reverting,
    Finished,
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Passed,
    /// The hypothesis did not hold.
    Failed,
    /// The limiter would not begin.
    Refused,
    /// Stopped: `aborted_by` says by whom.
    Aborted,
    /// No effect, an unproven effect, or leashed.
    Inconclusive,
}

/// Who stopped a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AbortedBy {
    Limiter,
    Operator,
    Halt,
    Shutdown,
    Freeze,
    /// The agent died in the middle; recovery undid its faults.
    Crash,
}

/// Whether the host is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cleanup {
    /// Nothing of this run is on the host.
    Clean,
    /// Something of this run is in force, as it should be.
    InForce,
    /// A revert failed. It is retried, and nothing else is admitted.
    Stuck,
}

/// A stable code, a sentence, and the numbers behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReasonView {
    /// For programs: `snake_case`, never changed.
    pub reason: String,
    /// For people: rule, numbers, and what would make it pass.
    pub message: String,
    #[schema(value_type = Object)]
    pub numbers: serde_json::Value,
}

/// This host and its agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    pub name: String,
    /// Of the agent.
    pub version: String,
    pub kernel: String,
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    pub leashed: bool,
    pub halted: Option<HaltView>,
    /// The freeze that is in force.
    pub frozen: Option<FreezeView>,
    /// Why nothing can be admitted just now, whatever is asked; empty is well.
    pub problems: Vec<ReasonView>,
    pub faults: Vec<AbilityView>,
}

/// Whether a fault can be injected here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AbilityView {
    #[schema(value_type = String)]
    pub fault: FaultKind,
    pub variant: Option<String>,
    pub available: bool,
    /// Why not, and what to do about it.
    pub reason: Option<String>,
}

/// The lever that stops everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HaltView {
    pub reason: String,
    pub by: String,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// It is on disk and will survive a restart.
    pub durable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FreezeView {
    pub name: String,
    /// Absent where nobody can know: a condition that does not hold, a file that cannot be read.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// Beyond the name: the event, what the condition's check answered, why it is not known.
    pub because: Option<String>,
}

/// Runs that begin by themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleView {
    pub name: String,
    /// Of the host's library.
    pub experiment: String,
    /// For people: `cron 0 10 * * MON-FRI`, `every 2 days in the mean, never within 1 day`.
    pub rhythm: String,
    /// For people: `Mon-Fri 09:00-15:00 America/New_York`.
    pub window: Option<String>,
    pub enabled: bool,
    /// Its runs decide and touch nothing: by itself, or because the host is leashed.
    pub leashed: bool,
    /// What its draws follow from: give it in the policy of any host to see the same ones there.
    pub seed: u64,
    pub paused: Option<PauseView>,
    /// Its next slot, whether it is paused or not; absent when it is not enabled.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next: Option<Timestamp>,
    /// What became of its latest slot.
    pub last: Option<SlotView>,
}

/// Somebody does not want a schedule to run for the time being.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseView {
    pub reason: String,
    pub by: String,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// What becomes of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// A run will begin, as far as can be known.
    Expected,
    /// No run will begin: `why` says what stands against it.
    Held,
    /// `run` was begun.
    Started,
    /// No run was begun: `why`.
    Skipped,
    /// The agent or the host was not there, for this slot and others before it; not made up for.
    Missed,
}

/// A moment at which a schedule's run begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotView {
    pub schedule: String,
    pub experiment: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The same by the wall clock of the schedule's zone: `2026-11-23T10:00:00-05:00[America/New_York]`.
    pub local: String,
    pub state: SlotState,
    pub run: Option<Uuid>,
    pub why: Option<String>,
}

/// A time in which nothing runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FrozenTimeView {
    pub freeze: String,
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
    /// The event that makes it so, where it is one of a calendar.
    pub title: Option<String>,
}

/// A freeze whose times nobody can know in advance, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConditionView {
    pub freeze: String,
    pub frozen: bool,
    /// Why it freezes.
    pub because: Option<String>,
}

/// What will run, what is frozen, and what became of the latest slots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CalendarView {
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
    /// By time.
    pub slots: Vec<SlotView>,
    /// By time.
    pub freezes: Vec<FrozenTimeView>,
    pub conditions: Vec<ConditionView>,
    /// There is more than fits: it is whole up to this moment only.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub truncated_at: Option<Timestamp>,
    /// Why no run would begin just now, whoever asked for it.
    pub problems: Vec<ReasonView>,
}

/// A capacity group as the limiter sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    pub name: String,
    pub floor: u32,
    pub expected: Option<u32>,
    /// By the last reading; absent when there is none.
    pub ready: Option<u32>,
    pub total: Option<u32>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub taken_at: Option<Timestamp>,
    /// The reading is complete and young enough to decide on.
    pub fresh: bool,
    /// Why there is no fresh reading.
    pub problem: Option<String>,
    /// Instances charged that the reading cannot have seen yet.
    pub charged: u32,
    /// ready less charged; what decisions start from.
    pub effective: Option<u32>,
    pub budget: BudgetView,
    /// Nothing is admitted until the group has recovered from this.
    pub blocked: Option<String>,
    pub members: Vec<MemberView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BudgetView {
    pub at_once: u32,
    pub every_ms: u64,
    pub left: u32,
    /// When there will be room for one more, if there is none now.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub room_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberView {
    pub pid: u32,
    pub name: String,
    pub ready: bool,
    pub listens: Vec<u16>,
}

/// One execution of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    pub id: Uuid,
    pub title: String,
    pub hypothesis: String,
    pub state: RunState,
    /// Present when finished.
    pub verdict: Option<Verdict>,
    pub cleanup: Cleanup,
    pub aborted_by: Option<AbortedBy>,
    /// Why it was refused, aborted, failed or inconclusive.
    pub why: Option<ReasonView>,
    /// Decides every random pick; give it again to repeat the run.
    pub seed: u64,
    pub leashed: bool,
    /// Who asked for it.
    pub caller: String,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    pub steps: Vec<StepView>,
    pub probes: Vec<ProbeView>,
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Pending,
    /// Resolving its target or being prepared.
    Preparing,
    /// For the budget; `waiting_until` says how long.
    Waiting,
    /// Its undo is being made durable, or it is being injected.
    Injecting,
    InForce,
    Reverting,
    Done,
    /// Never injected.
    Skipped,
    /// Its revert failed and is being retried.
    Stuck,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    pub name: String,
    #[schema(value_type = String)]
    pub fault: FaultKind,
    pub state: StepState,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub waiting_until: Option<Timestamp>,
    /// What exactly it hits, one line each: processes or rules.
    pub targets: Vec<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub injected_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub undone_at: Option<Timestamp>,
    #[schema(value_type = Option<EffectView>)]
    pub effect: Option<Effect>,
    /// What went wrong with it, each.
    pub errors: Vec<String>,
}

/// The measured effect of a fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EffectView {
    /// It was really injected and had an effect on something.
    pub proven: bool,
    pub summary: String,
    #[schema(value_type = Option<Object>)]
    pub counters: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProbeView {
    pub name: String,
    /// It held before the first step.
    pub before: Option<bool>,
    pub attempts: u32,
    pub misses: u32,
    /// The longest row of consecutive misses, and how many are forgiven.
    pub worst_row: u32,
    pub tolerate: u32,
    /// It held after the last step.
    pub after: Option<bool>,
    /// What the last miss said.
    pub last_miss: Option<String>,
}

/// One entry of a run's event log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// 1, 2, 3, … within the run; the id of the server-sent event.
    pub seq: u64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub run: Uuid,
    /// Index of the step, from 0.
    pub step: Option<u32>,
    /// For programs, `snake_case`: `created`, `admitted`, `injected`, `reverted`, `finished`, …
    pub kind: String,
    pub message: String,
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}

/// A fault that is active on this host now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FaultView {
    pub id: String,
    pub run: Uuid,
    pub step: String,
    #[schema(value_type = String)]
    pub fault: FaultKind,
    pub state: StepState,
    pub targets: Vec<String>,
    #[schema(value_type = String)]
    pub lease: Lease,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub deadline: Option<Timestamp>,
}

/// What a run would do, decided exactly as a run decides, touching nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    pub title: String,
    /// Covers exact targets, rules and seed; give it to a run that must do just this.
    pub digest: String,
    pub seed: u64,
    pub decision: DecisionView,
    pub steps: Vec<PlanStepView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanStepView {
    pub name: String,
    #[schema(value_type = String)]
    pub fault: FaultKind,
    /// Exact processes, or exact rules.
    pub targets: Vec<String>,
    pub charges: Vec<ChargeView>,
    pub decision: DecisionView,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChargeView {
    pub group: String,
    pub instances: u32,
}

/// The limiter's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum DecisionView {
    Admit,
    Wait {
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
        why: ReasonView,
    },
    Refuse {
        why: ReasonView,
    },
}

/// A finished (or unfinished) run, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReportView {
    pub run: RunView,
    /// The experiment as it was run.
    #[schema(value_type = Object)]
    pub experiment: serde_json::Value,
    pub events: Vec<EventView>,
}
