//! How runs end: aborts, halts, the way from stage to stage to verdict.

use serde_json::json;
use uuid::Uuid;

use crate::{
    policy::{
        reason::{Reason, as_ms},
        time::Now,
    },
    view::{AbortedBy, HaltView, Verdict},
};

use super::{
    Effect, Effects, Engine,
    run::{Phase, Run, StepPhase, Stop},
};

impl Engine {
    pub(super) fn abort(&mut self, id: Uuid, caller: &str, now: Now, out: &mut Effects) {
        let why = Reason::AbortedBy { caller: caller.to_owned() };
        self.stop(id, Stop { verdict: Verdict::Aborted, by: Some(AbortedBy::Operator), why }, now, out);
    }

    pub(super) fn halt(&mut self, halt: HaltView, now: Now, out: &mut Effects) {
        let why = Reason::Halted { since: halt.since, because: halt.reason.clone() };
        self.halted = Some(halt);
        self.stop_all(AbortedBy::Halt, &why, now, out);
    }

    pub(super) fn shutdown(&mut self, now: Now, out: &mut Effects) {
        self.stopping = true;
        self.stop_all(AbortedBy::Shutdown, &Reason::Stopping, now, out);
    }

    pub(super) fn stop_all(&mut self, by: AbortedBy, why: &Reason, now: Now, out: &mut Effects) {
        let ids: Vec<Uuid> =
            self.runs.values().filter(|run| run.is_active()).map(|run| run.id).collect();
        for id in ids {
            let stop = Stop { verdict: Verdict::Aborted, by: Some(by), why: why.clone() };
            self.stop(id, stop, now, out);
        }
    }

    /// Ends a run before its time. The first reason stands; what is in force is undone at once.
    pub(super) fn stop(&mut self, id: Uuid, stop: Stop, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.is_active()) else { return };
        if run.stop.is_some() {
            // Ending already, for another reason; what made it ask may be all that it waited for.
            return self.advance(id, now, out);
        }
        let kind = match stop.verdict {
            Verdict::Refused => "refused",
            Verdict::Failed => "failed",
            Verdict::Inconclusive => "inconclusive",
            _ => "aborting",
        };
        let data = json!({ "why": stop.why.view(), "by": stop.by });
        let message = stop.why.to_string();
        run.phase = Phase::Ending;
        run.stop = Some(stop);
        out.push(Effect::Forbid(id));
        let steps: Vec<(usize, StepPhase)> =
            run.steps.iter().enumerate().map(|(at, step)| (at, step.phase)).collect();
        self.log(id, None, kind, message, data, now, out);
        for (step, phase) in steps {
            match phase {
                StepPhase::Pending | StepPhase::Resolving | StepPhase::Waiting { .. } => {
                    self.skip(id, step);
                }
                StepPhase::Draining { ask_at: Some(_), .. }
                | StepPhase::InForce { .. }
                | StepPhase::Watching { .. }
                | StepPhase::Closing { .. } => {
                    self.revert_step(id, step, now, out);
                }
                // On its way to an injection: ends when the answer to what it waits for is there.
                _ => {}
            }
        }
        self.advance(id, now, out);
    }

    /// A part of it may be on the host: it is undone at once, and the run is over.
    pub(super) fn injection_failed(
        &mut self,
        id: Uuid,
        step: usize,
        error: String,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.steps[step].errors.push(error.clone());
        let name = run.spec(step).name.clone();
        self.log(id, Some(step), "injection_failed", error.clone(), json!({}), now, out);
        let why = Reason::InjectionFailed { step: name, error };
        self.stop(id, Stop { verdict: Verdict::Inconclusive, by: None, why }, now, out);
        self.revert_step(id, step, now, out);
    }

    /// Moves a run on if what it was waiting for is there.
    pub(super) fn advance(&mut self, id: Uuid, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let over =
            |run: &Run| run.steps.iter().all(|step| step.phase.is_over() || step.phase.is_stuck());
        match run.phase {
            Phase::Stage { first, end } => {
                if !run.steps[first..end].iter().all(|step| step.phase.is_over()) {
                    if run.steps[first..end].iter().any(|step| step.phase.is_stuck()) {
                        let faults = self.stuck();
                        let why = Reason::CleanupStuck { faults };
                        let by = Some(AbortedBy::Limiter);
                        self.stop(id, Stop { verdict: Verdict::Aborted, by, why }, now, out);
                    }
                } else if end < run.steps.len() {
                    self.begin_stage(id, end, out);
                } else if run.probes.is_empty() {
                    self.finish(id, now, out);
                } else {
                    let deadline = now.mono.plus(run.experiment.recovery);
                    run.phase = Phase::Recovering { since: now.mono, deadline };
                    let message = "the steady state must hold again".to_owned();
                    self.log(id, None, "recovering", message, json!({}), now, out);
                }
            }
            Phase::Recovering { .. } if run.probes.iter().all(|probe| probe.after == Some(true)) => {
                self.finish(id, now, out);
            }
            Phase::Ending if over(run) => self.finish(id, now, out),
            _ => {}
        }
    }

    pub(super) fn recovery_on_time(&mut self, id: Uuid, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let Phase::Recovering { deadline, .. } = run.phase else { return };
        if now.mono < deadline {
            return;
        }
        let Some(index) = run.probes.iter().position(|probe| probe.after != Some(true)) else { return };
        run.probes[index].after = Some(false);
        let why = Reason::NotSteadyAfter {
            probe: run.experiment.probes[index].name.clone(),
            within_ms: as_ms(run.experiment.recovery),
            last: run.probes[index].last_miss.clone(),
        };
        self.stop(id, Stop { verdict: Verdict::Failed, by: None, why }, now, out);
    }

    fn finish(&mut self, id: Uuid, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        if run.stop.is_none() {
            run.stop = verdict_without_stop(run);
        }
        let verdict = run.stop.as_ref().map_or(Verdict::Passed, |stop| stop.verdict);
        run.verdict = Some(verdict);
        run.phase = Phase::Finished;
        run.finished_at = Some(now.wall);
        for probe in &mut run.probes {
            probe.next_at = None;
        }
        let why = run.stop.as_ref().map(|stop| stop.why.clone());
        out.push(Effect::StopProbes { run: id });
        let word = serde_json::to_value(verdict).unwrap_or_default();
        let word = word.as_str().unwrap_or_default();
        let message = match &why {
            Some(why) => format!("{word}: {why}"),
            None => word.to_owned(),
        };
        let data = json!({ "verdict": verdict, "why": why.map(|why| why.view()) });
        self.log(id, None, "finished", message, data, now, out);
        self.save_again(id, now, out);
    }

    /// Writes a finished run to history (again).
    pub(super) fn save_again(&mut self, id: Uuid, now: Now, out: &mut Effects) {
        if let Some(view) = self.view_of(id, now) {
            out.push(Effect::Save(Box::new(view)));
        }
    }
}

/// The verdict of a run that nobody stopped and whose steady state came back: passed, unless
/// there is nothing that it proves.
fn verdict_without_stop(run: &Run) -> Option<Stop> {
    let inconclusive = |why| Some(Stop { verdict: Verdict::Inconclusive, by: None, why });
    if run.leashed {
        return inconclusive(Reason::Leashed);
    }
    let unproven = run.steps.iter().zip(&run.experiment.steps).find(|(state, _)| {
        state.phase == StepPhase::Done && !state.effect.as_ref().is_some_and(|effect| effect.proven)
    });
    let (state, step) = unproven?;
    let summary = state.effect.as_ref().map_or("it was not measured".to_owned(), |e| e.summary.clone());
    inconclusive(Reason::EffectUnproven { step: step.name.clone(), summary })
}
