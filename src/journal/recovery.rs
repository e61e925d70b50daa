//! Recovery: undoes whatever a dead agent left, from the journal alone.
//!
//! Reverts first and records after, so a disk that takes no write stands in nobody's way. Never
//! stops early: what cannot be reverted or read is reported beside what could.

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{Intent, JournalError, Ledger, OpenIntents, Outcome, Unreadable, Unsettled};
use crate::{
    experiment::FaultKind,
    fault::{
        Target,
        undo::{Undo, revert},
    },
    host::{FaultId, Host},
    view::{AbortedBy, Cleanup, EventView, ReasonView, RunState, RunView, StepState, Verdict},
};

/// What a recovery did.
#[derive(Debug, Default)]
pub struct Recovered {
    pub reverted: Vec<Reverted>,
    /// Faults that could not be undone, each with every error. They stay open in the journal.
    pub stuck: Vec<(FaultId, Vec<String>)>,
    /// Runs that are now marked as ended by the crash.
    pub runs: Vec<Uuid>,
    /// Why the outcome is not in the journal; the next recovery will do the same once more.
    pub unrecorded: Option<JournalError>,
}

/// A fault that is now gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reverted {
    pub fault: FaultId,
    pub run: Uuid,
    /// Index of the step, from 0.
    pub step: u32,
    pub kind: FaultKind,
    /// What it hit, for people.
    pub what: String,
    /// There was something to put back; a kill has nothing.
    pub undone: bool,
}

/// Reverts every open intent, closes those that succeeded, and ends the runs that were cut off.
///
/// # Errors
/// When the journal cannot be read; nothing was touched then.
pub fn recover(
    journal: &dyn Ledger,
    host: &dyn Host,
    now: Timestamp,
) -> Result<Recovered, JournalError> {
    let open = journal.open_intents()?;
    let undos: Vec<(FaultId, Undo)> =
        open.intents.iter().map(|intent| (intent.fault().clone(), intent.undo().clone())).collect();
    let results = revert(host, &undos, &[]);

    let mut recovered = Recovered::default();
    let mut outcomes = Vec::new();
    for (intent, (fault, result)) in open.intents.iter().zip(results) {
        let outcome = match result {
            Ok(()) => {
                recovered.reverted.push(reverted(intent));
                Outcome::Reverted
            }
            Err(errors) => {
                recovered.stuck.push((fault.clone(), errors.clone()));
                Outcome::Stuck { errors }
            }
        };
        outcomes.push((fault, outcome));
    }
    for Unreadable { fault, error, .. } in &open.unreadable {
        let error = format!("its journal entry does not make sense: {error}");
        recovered.stuck.push((fault.clone(), vec![error]));
    }
    say(&recovered);
    recovered.unrecorded = record(journal, &open, &outcomes, &mut recovered, now).err();
    if let Some(error) = &recovered.unrecorded {
        tracing::error!(%error, "what recovery did is not in the journal");
    }
    Ok(recovered)
}

fn record(
    journal: &dyn Ledger,
    open: &OpenIntents,
    outcomes: &[(FaultId, Outcome)],
    recovered: &mut Recovered,
    now: Timestamp,
) -> Result<(), JournalError> {
    journal.close(outcomes, now)?;
    for Unsettled { mut run, events } in journal.unsettled()? {
        let lost = open.unreadable.iter().filter(|unreadable| unreadable.run == run.id).count();
        let steps: Vec<(&Intent, &Outcome)> = open
            .intents
            .iter()
            .zip(outcomes)
            .filter(|(intent, _)| intent.run == run.id)
            .map(|(intent, (_, outcome))| (intent, outcome))
            .collect();
        let event = end(&mut run, &steps, lost, events, now);
        journal.append_events(&[event])?;
        journal.save_run(&run)?;
        recovered.runs.push(run.id);
    }
    Ok(())
}

/// Ends a run as a crash ends it. Returns the event that says so.
fn end(
    run: &mut RunView,
    steps: &[(&Intent, &Outcome)],
    lost: usize,
    events: u64,
    now: Timestamp,
) -> EventView {
    for (at, step) in run.steps.iter_mut().enumerate() {
        let outcome = steps.iter().find(|(intent, _)| intent.step as usize == at);
        match outcome {
            Some((_, Outcome::Stuck { errors })) => {
                step.state = StepState::Stuck;
                step.errors.extend(errors.iter().cloned());
            }
            Some((_, Outcome::Reverted | Outcome::NeverInjected)) => {
                step.state = StepState::Done;
                step.undone_at = Some(now);
            }
            None if step.state == StepState::Done => {}
            None => step.state = StepState::Skipped,
        }
    }
    let stuck = steps.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Stuck { .. })).count();
    let undone = steps.len() - stuck;
    let stuck = stuck + lost;
    let message = match (stuck, undone) {
        (0, 0) => "the agent died during this run; none of its faults was in force".to_owned(),
        (0, undone) => format!("the agent died during this run; recovery undid {undone} of its faults"),
        (stuck, undone) => format!(
            "the agent died during this run; recovery undid {undone} of its faults and failed on {stuck}"
        ),
    };
    run.cleanup = if stuck == 0 { Cleanup::Clean } else { Cleanup::Stuck };
    if run.state != RunState::Finished {
        run.state = RunState::Finished;
        run.verdict = Some(Verdict::Aborted);
        run.aborted_by = Some(AbortedBy::Crash);
        run.finished_at = Some(now);
        run.why = Some(ReasonView {
            reason: "agent_died".to_owned(),
            message: message.clone(),
            numbers: json!({ "undone": undone, "stuck": stuck }),
        });
    }
    EventView {
        seq: events + 1,
        at: now,
        run: run.id,
        step: None,
        kind: "recovered".to_owned(),
        message,
        data: json!({ "undone": undone, "stuck": stuck }),
    }
}

fn reverted(intent: &Intent) -> Reverted {
    let what = match &intent.prepared.target {
        Target::Processes { processes } => processes
            .iter()
            .map(|process| format!("{} ({})", process.name, process.id.pid))
            .collect::<Vec<_>>()
            .join(", "),
        Target::Units { units } => {
            units.iter().map(|unit| unit.name.as_str()).collect::<Vec<_>>().join(", ")
        }
        Target::Traffic { plan } => plan.rules.join("; "),
    };
    Reverted {
        fault: intent.fault().clone(),
        run: intent.run,
        step: intent.step,
        kind: intent.prepared.spec.kind(),
        what,
        undone: !intent.undo().restores.is_empty(),
    }
}

fn say(recovered: &Recovered) {
    for Reverted { fault, run, step, kind, what, undone } in &recovered.reverted {
        if *undone {
            tracing::warn!(
                fault = %kind, fault_id = fault.0, %run, step,
                "CHAOS ENDS: {kind} on {what}, of run {run}: recovery undid it, for its agent died"
            );
        } else {
            tracing::warn!(
                fault = %kind, fault_id = fault.0, %run, step,
                "CHAOS ENDS: {kind} on {what}, of run {run}: its agent died; it has no undo"
            );
        }
    }
    for (fault, errors) in &recovered.stuck {
        let errors = errors.join("; ");
        tracing::error!(
            fault_id = fault.0,
            "CHAOS IS STUCK: recovery failed to undo {}: {errors}",
            fault.0
        );
    }
}
