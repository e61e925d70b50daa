//! The story of a run, for those who read the host's log and know nothing of chaos.
//!
//! Every event of a run becomes one line that can be read by itself, with fields to search by. Of
//! each fault exactly one line says CHAOS BEGINS (what, on what, by whom, until when) and one CHAOS
//! ENDS (how). They are warnings, so that `journalctl -p warning` answers "is this chaos?".

use jiff::{Timestamp, Unit};
use serde_json::Value;
use tracing::Level;

use crate::{
    experiment::GroupName,
    fault::Lease,
    policy::{
        engine::run::{Run, StepRun, Stop},
        plan,
        reason::{Reason, ms},
    },
    view::EventView,
};

/// Targets that one line names.
const NAMED: usize = 3;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub level: Level,
    pub message: String,
    /// The step's name.
    pub step: Option<String>,
    /// One a line.
    pub groups: Option<String>,
    /// The kind of the fault.
    pub fault: Option<String>,
    pub fault_id: Option<String>,
    /// The stable code of the reason, where there is one.
    pub reason: Option<String>,
}

impl Line {
    /// What `event` of `run` means.
    #[must_use]
    pub fn of(event: &EventView, run: &Run) -> Self {
        let index = event.step.and_then(|step| usize::try_from(step).ok());
        let step = index.and_then(|index| run.steps.get(index));
        let spec = index.and_then(|index| run.experiment.steps.get(index));
        let (level, message) = match (event.kind.as_str(), index, step) {
            ("injected" | "injection_failed", Some(index), Some(step)) => {
                (Level::WARN, begins(event, run, index, step))
            }
            ("undone", Some(index), Some(step)) if !run.leashed => (Level::WARN, ends(run, index, step)),
            ("stuck", Some(index), _) => {
                let what = what(run, index);
                (Level::ERROR, format!("CHAOS IS STUCK: {what}: {}; it is retried", event.message))
            }
            (kind, index, _) => (level(kind), plain(event, run, index)),
        };
        let reason = event.data.pointer("/why/reason").and_then(Value::as_str);
        Self {
            level,
            message,
            step: spec.map(|spec| spec.name.clone()),
            groups: groups(run, step),
            fault: spec.map(|spec| spec.fault.kind().to_string()),
            fault_id: step.map(|step| step.fault.0.clone()),
            reason: reason.map(str::to_owned),
        }
    }

    /// Writes it to the log.
    pub fn tell(&self, event: &EventView, run: &Run) {
        macro_rules! tell {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    run = %event.run,
                    event = event.kind,
                    experiment = run.experiment.title,
                    step = self.step,
                    group = self.groups,
                    fault = self.fault,
                    fault_id = self.fault_id,
                    reason = self.reason,
                    data = %event.data,
                    "{}", self.message
                )
            };
        }
        match self.level {
            Level::ERROR => tell!(Level::ERROR),
            Level::WARN => tell!(Level::WARN),
            _ => tell!(Level::INFO),
        }
    }
}

fn level(kind: &str) -> Level {
    match kind {
        "aborting" | "revert_failed" | "failed" => Level::WARN,
        _ => Level::INFO,
    }
}

fn begins(event: &EventView, run: &Run, index: usize, step: &StepRun) -> String {
    let what = what(run, index);
    if event.kind == "injection_failed" {
        return format!(
            "CHAOS BEGINS, IN PART: {what}, could not be injected whole ({}) and is undone at once",
            event.message
        );
    }
    let targets = step.target.as_ref().map(plan::describe).unwrap_or_default();
    let until = step.deadline.map(|at| format!(", until {} at the latest", clock(at)));
    let lease = step.prepared.as_ref().map(|prepared| prepared.lease);
    let until = if lease == Some(Lease::None) { None } else { until };
    format!(
        "CHAOS BEGINS: {what}, on {}{}; begun by {}",
        few(&targets),
        until.unwrap_or_default(),
        run.caller
    )
}

fn ends(run: &Run, index: usize, step: &StepRun) -> String {
    let lasted = match (step.injected_at, step.undone_at) {
        (Some(from), Some(to)) => {
            let lasted = to.duration_since(from).as_millis();
            format!(" after {}", ms(u64::try_from(lasted).unwrap_or_default()))
        }
        _ => String::new(),
    };
    let lease = step.prepared.as_ref().map(|prepared| prepared.lease);
    let undone = if lease == Some(Lease::None) { "over" } else { "undone" };
    let why = match &run.stop {
        // That is a verdict on a run that nobody stopped.
        None | Some(Stop { why: Reason::EffectUnproven { .. }, .. }) => "its time was over".to_owned(),
        Some(ended) => format!("the run was stopped: {}", ended.why),
    };
    let effect = match &step.effect {
        Some(effect) => format!("; effect: {}", effect.summary),
        None => "; its effect was not measured".to_owned(),
    };
    format!("CHAOS ENDS: {}, {undone}{lasted}: {why}{effect}", what(run, index))
}

/// `latency "the database answers slowly" of run 0192a… ("Title")`
fn what(run: &Run, index: usize) -> String {
    let spec = run.spec(index);
    format!("{} {:?} of {}", spec.fault.kind(), spec.name, named(run))
}

fn plain(event: &EventView, run: &Run, index: Option<usize>) -> String {
    let leash = if run.leashed { "leashed, " } else { "" };
    match (event.kind.as_str(), index) {
        ("created", _) => {
            let (caller, title) = (&run.caller, &run.experiment.title);
            format!("{leash}run {} begins: {title:?}, begun by {caller}, seed {}", run.id, run.seed)
        }
        (_, Some(index)) => {
            format!("{leash}{}: step {:?}: {}", named(run), run.spec(index).name, event.message)
        }
        ("finished", _) => format!("{leash}{} finished: {}", named(run), event.message),
        ("refused", _) => format!("{leash}{} refused: {}", named(run), event.message),
        ("aborting", _) => format!("{leash}{} aborted: {}", named(run), event.message),
        _ => format!("{leash}{}: {}", named(run), event.message),
    }
}

fn named(run: &Run) -> String {
    format!("run {} ({:?})", run.id, run.experiment.title)
}

/// The groups that the experiment declares and those that the step touches.
fn groups(run: &Run, step: Option<&StepRun>) -> Option<String> {
    let touched = step.into_iter().flat_map(|step| step.touches.iter().map(|touch| &touch.group));
    let mut groups: Vec<&GroupName> = run.experiment.groups.iter().chain(touched).collect();
    groups.sort();
    groups.dedup();
    let names: Vec<&str> = groups.into_iter().map(|group| group.0.as_str()).collect();
    (!names.is_empty()).then(|| names.join("\n"))
}

fn few(targets: &[String]) -> String {
    let named = targets.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    match targets.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

fn clock(at: Timestamp) -> Timestamp {
    at.round(Unit::Second).unwrap_or(at)
}
