//! A step's way through its phases, from its stage's beginning to its fault undone.

use std::{collections::BTreeSet, ops::Range, sync::Arc, time::Duration};

use serde_json::json;
use uuid::Uuid;

use crate::{
    experiment::{Experiment, FaultSpec, Step},
    fault::{Effect as Measured, Injection, KERNEL_LEASE, Lease, Prepared, RENEW_EVERY, Target},
    host::{HostError, ProcessId, UnitCandidate},
    policy::{
        limiter::{self, Decision, Proposal},
        plan::{self, Hit, Resolution},
        reason::Reason,
        time::{Moment, Now},
    },
    view::{AbortedBy, Verdict},
};

use super::{
    Effect, Effects, Engine, Intent, Job, NotDurable, Outcome,
    drain::{DRAIN_SLACK, drain_of},
    preflight::{charge_of, hit_of, propose, resolve_steps, wall},
    run::{Phase, STUCK_AFTER, StepPhase, StepRun, Stop},
};

/// How long a kill may take to show, beyond its escalation's grace, before it counts as without effect.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// The last measurement of a fault that is undone is taken this long before its end, while it still shows;
/// of a short one at three quarters of its time.
const LAST_LOOK: Duration = Duration::from_millis(250);
/// However rarely the probes ask, a kill without a duration is watched no longer than this.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// Between failed reverts: doubling from the first to the second.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// When the last measurement of a step in force is due.
pub(super) fn closing_at(step: &StepRun, spec: &Step, deadline: Moment) -> Moment {
    if matches!(spec.fault, FaultSpec::Kill(_)) || step.prepared.is_none() {
        return deadline;
    }
    deadline.minus(LAST_LOOK.min(time_in_force(spec) / 4))
}

impl Engine {
    /// Begins the steps that start together with step `first`: looks their targets up.
    pub(super) fn begin_stage(&mut self, id: Uuid, first: usize, out: &mut Effects) {
        for step in self.enter_stage(id, first) {
            self.resolve_step(id, step, out);
        }
    }

    /// Begins the first stage with targets that were looked up for it this instant.
    pub(super) fn begin_stage_with(&mut self, id: Uuid, hits: Vec<Hit>, now: Now, out: &mut Effects) {
        for (step, hit) in self.enter_stage(id, 0).zip(hits) {
            self.step_found(id, step, Ok(hit), now, out);
        }
    }

    /// The steps of the stage; all of them wait for their targets now.
    fn enter_stage(&mut self, id: Uuid, first: usize) -> Range<usize> {
        let Some(run) = self.runs.get_mut(&id) else { return first..first };
        let stage = first..run.stage_end(first);
        run.phase = Phase::Stage { first, end: stage.end };
        run.dirty = true;
        for step in &mut run.steps[stage.clone()] {
            step.phase = StepPhase::Resolving;
        }
        stage
    }

    fn resolve_step(&mut self, id: Uuid, step: usize, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.dirty = true;
        run.steps[step].phase = StepPhase::Resolving;
        let steps = resolve_steps(&run.experiment, Some(id), run.seed, step..step + 1);
        out.push(Effect::Resolve { job: Job::Step(id), steps });
    }

    pub(super) fn step_resolved(
        &mut self,
        id: Uuid,
        step: usize,
        result: Result<Resolution, HostError>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get(&id) else { return };
        let hit = hit_of(&run.experiment, step, run.seed, result)
            .and_then(|hit| self.drain_is_seen(run.spec(step), hit));
        self.step_found(id, step, hit, now, out);
    }

    /// Decides on a step whose exact targets are known as of now.
    fn step_found(
        &mut self,
        id: Uuid,
        step: usize,
        hit: Result<Hit, Reason>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get(&id).filter(|run| run.steps[step].phase == StepPhase::Resolving)
        else {
            return;
        };
        let experiment = run.experiment.clone();
        let hit = match hit {
            Ok(hit) => hit,
            Err(why) => return self.limiter_stop(id, why, now, out),
        };
        if run.plan.is_some() && !same_target(run.steps[step].target.as_ref(), &hit.target) {
            let planned = run.plan.clone().unwrap_or_default();
            let digest = plan::digest(run.seed, [(&experiment.steps[step], &hit.target)]);
            return self.limiter_stop(id, Reason::PlanDiffers { planned, now: digest }, now, out);
        }
        let proposal = propose(&experiment, id, step, &hit);
        match limiter::decide(&self.knowledge(now), &proposal, now.mono) {
            Decision::Admit => self.admit(id, step, hit, &proposal, now, out),
            Decision::Wait { until, why } => self.wait(id, step, until, &why, now, out),
            Decision::Refuse(why) => self.limiter_stop(id, why, now, out),
        }
    }

    fn wait(&mut self, id: Uuid, step: usize, until: Moment, why: &Reason, now: Now, out: &mut Effects) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.steps[step].phase = StepPhase::Waiting { until };
        }
        let message = format!("waiting for the budget until {}: {why}", wall(until, now));
        let data = json!({ "why": why.view(), "until": wall(until, now) });
        self.log(id, Some(step), "waiting", message, data, now, out);
    }

    fn admit(
        &mut self,
        id: Uuid,
        step: usize,
        hit: Hit,
        proposal: &Proposal,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get(&id) else { return };
        let (leashed, spec) = (run.leashed, run.spec(step).fault.clone());
        for touch in &proposal.touches {
            if let Some(group) = self.groups.get_mut(&touch.group)
                && touch.charge() > 0
            {
                let lethal = told_to_end(&spec) && !leashed;
                group.charge(charge_of(id, step, touch, lethal, now.mono));
            }
        }
        let charges = charges_of(proposal);
        let targets = plan::describe(&hit.target);
        let Some(run) = self.runs.get_mut(&id) else { return };
        let state = &mut run.steps[step];
        state.target = Some(hit.target.clone());
        state.touches = hit.touches;
        let message = format!("admitted: {}", targets.join("; "));
        let data = json!({ "targets": targets, "charges": charges });
        self.log(id, Some(step), "admitted", message, data, now, out);
        if leashed {
            return self.pretend(id, step, now, out);
        }
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.steps[step].phase = StepPhase::Preparing;
        out.push(Effect::Prepare {
            run: id,
            step,
            spec: Box::new(run.experiment.steps[step].fault.clone()),
            target: hit.target,
            fault: run.steps[step].fault.clone(),
            seed: plan::step_seed(run.seed, step),
        });
    }

    /// A leashed host: the time passes, nothing is touched.
    fn pretend(&mut self, id: Uuid, step: usize, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.began = true;
        let duration = run.experiment.steps[step].duration.unwrap_or_default();
        let deadline = now.mono.plus(duration);
        let state = &mut run.steps[step];
        state.phase = StepPhase::InForce { deadline, escalate_at: None };
        state.deadline = Some(wall(deadline, now));
        state.effect = Some(Measured {
            proven: false,
            summary: "leashed: it would have been injected".to_owned(),
            counters: None,
        });
        self.log(id, Some(step), "leashed", "leashed: not injected".to_owned(), json!({}), now, out);
    }

    pub(super) fn on_prepared(
        &mut self,
        id: Uuid,
        step: usize,
        result: Result<Box<Prepared>, HostError>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) =
            self.runs.get_mut(&id).filter(|run| run.steps[step].phase == StepPhase::Preparing)
        else {
            return;
        };
        let prepared = match result {
            Ok(prepared) => Arc::new(*prepared),
            Err(error) => {
                let step_name = run.spec(step).name.clone();
                self.skip(id, step);
                let why = Reason::Unavailable { step: step_name, error: error.to_string() };
                return self.limiter_stop(id, why, now, out);
            }
        };
        if !same_target(run.steps[step].target.as_ref(), &prepared.target) && run.stop.is_none() {
            // A name resolves otherwise by now, a device came or went: this was not admitted.
            let planned = run.steps[step].target.as_ref().map(|target| (run.spec(step), target));
            let planned = plan::digest(run.seed, planned);
            let digest = plan::digest(run.seed, [(run.spec(step), &prepared.target)]);
            run.steps[step].prepared = Some(prepared);
            self.limiter_stop(id, Reason::PlanDiffers { planned, now: digest }, now, out);
            return self.revert_step(id, step, now, out);
        }
        if run.stop.is_some() {
            // Since it was prepared, what it shares with others may have been left to it.
            run.steps[step].prepared = Some(prepared);
            return self.revert_step(id, step, now, out);
        }
        let drain = drain_of(run.spec(step)).map(|drain| drain.within.saturating_add(DRAIN_SLACK));
        let in_force = time_in_force(run.spec(step));
        let deadline = now.mono.plus(drain.unwrap_or_default().saturating_add(in_force));
        let state = &mut run.steps[step];
        state.prepared = Some(prepared.clone());
        state.phase = StepPhase::Committing { deadline };
        state.deadline = Some(wall(deadline, now));
        let charges =
            state.touches.iter().map(|touch| (touch.group.clone(), touch.charge())).collect::<Vec<_>>();
        if let (true, Target::Processes { processes }) = (prepared.is_kill(), &prepared.target) {
            state.alive = processes.iter().map(|process| process.id).collect();
            out.push(Effect::WatchExits(state.alive.iter().copied().collect()));
        }
        out.push(Effect::Commit(Box::new(Intent {
            run: id,
            step,
            lease: prepared.lease,
            prepared,
            charges: charges.into_iter().filter(|(_, count)| *count > 0).collect(),
            opened_at: now.wall,
            deadline: Some((deadline, wall(deadline, now))),
        })));
    }

    pub(super) fn on_committed(
        &mut self,
        id: Uuid,
        step: usize,
        result: Result<(), NotDurable>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let StepPhase::Committing { deadline } = run.steps[step].phase else { return };
        let holds = limiter::still_holds(&self.groups, &run.steps[step].touches, now.mono);
        let state = &mut run.steps[step];
        if result.is_ok() && run.stop.is_none() && holds.is_ok() {
            if let Some(prepared) = state.prepared.clone() {
                run.began = true;
                run.dirty = true;
                if let Some(drain) = drain_of(run.spec(step)) {
                    let until = now.mono.plus(drain.within);
                    run.steps[step].phase =
                        StepPhase::Draining { deadline, until, ask_at: None, idle: false };
                    out.push(Effect::Drain { run: id, step, prepared, begin: true });
                } else {
                    run.steps[step].phase = StepPhase::Injecting { deadline };
                    out.push(Effect::Inject { run: id, step, prepared, deadline });
                }
            }
            return;
        }
        // The reason first: a run that has one does not go on, whatever ends meanwhile.
        match (result, holds) {
            (Ok(()), Ok(())) => {}
            (Ok(()), Err(why)) => self.limiter_stop(id, why, now, out),
            (Err(NotDurable::Journal(error)), _) => {
                self.journal = Some(error.clone());
                self.limiter_stop(id, Reason::JournalUnavailable { error }, now, out);
            }
            (Err(NotDurable::Warden(error)), _) => {
                self.limiter_stop(id, Reason::WardenUnavailable { error }, now, out);
            }
        }
        // It will not be injected. Its undo counted as open meanwhile, so that of a fault beside it
        // may have left a shared object to this one: undo it all the same.
        self.revert_step(id, step, now, out);
    }

    pub(super) fn on_injected(
        &mut self,
        id: Uuid,
        step: usize,
        result: Result<Injection, HostError>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let StepPhase::Injecting { deadline } = run.steps[step].phase else { return };
        for group in self.groups.values_mut() {
            group.injected(id, step, now.mono);
        }
        let stopped = run.stop.is_some();
        let escalation = match &run.experiment.steps[step].fault {
            FaultSpec::Kill(kill) => kill.then,
            _ => None,
        };
        let state = &mut run.steps[step];
        if result != Err(HostError::Stopped) {
            state.injected_at = Some(now.wall);
        }
        // Nobody was signalled where it was not even begun.
        state.spared &= matches!(result, Err(HostError::Stopped | HostError::Unavailable(_)));
        match result {
            Ok(injection) => {
                state.injection = injection;
                let escalate_at = escalation.map(|then| now.mono.plus(then.after));
                state.phase = StepPhase::InForce { deadline, escalate_at };
                let lease = state.prepared.as_ref().map(|prepared| prepared.lease);
                if matches!(lease, Some(Lease::Kernel | Lease::Warden)) && self.next_renewal.is_none() {
                    self.next_renewal = Some(now.mono.plus(RENEW_EVERY));
                }
                let data = json!({ "lease": lease, "deadline": wall(deadline, now) });
                self.log(id, Some(step), "injected", "injected".to_owned(), data, now, out);
                // Should the agent die now, its record says what was in force.
                self.save_again(id, now, out);
                if stopped {
                    self.revert_step(id, step, now, out);
                } else if lease != Some(Lease::Kernel) {
                    self.measure(id, step, out);
                }
            }
            Err(HostError::Stopped) => self.revert_step(id, step, now, out),
            Err(error) => self.injection_failed(id, step, error.to_string(), now, out),
        }
    }

    fn measure(&mut self, id: Uuid, step: usize, out: &mut Effects) {
        let Some(state) = self.runs.get(&id).map(|run| &run.steps[step]) else { return };
        if let Some(prepared) = state.prepared.clone() {
            out.push(Effect::Measure { run: id, step, prepared, injection: state.injection.clone() });
        }
    }

    pub(super) fn on_measured(
        &mut self,
        id: Uuid,
        step: usize,
        result: Result<Measured, HostError>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.dirty = true;
        let lasting = run.spec(step).duration.is_some();
        let state = &mut run.steps[step];
        match result {
            Ok(effect) => {
                let news = effect.proven && state.effect.as_ref().is_none_or(|old| !old.proven);
                let summary = effect.summary.clone();
                state.measured(effect);
                if news {
                    self.log(id, Some(step), "effect", summary, json!({}), now, out);
                }
            }
            Err(error) => state.errors.push(format!("measuring: {error}")),
        }
        let Some(state) = self.runs.get(&id).map(|run| &run.steps[step]) else { return };
        let kill = state.prepared.as_ref().is_some_and(|prepared| prepared.is_kill());
        let proven = state.effect.as_ref().is_some_and(|effect| effect.proven);
        match state.phase {
            StepPhase::InForce { .. } if kill && proven && !lasting => {
                let watch =
                    self.runs.get(&id).map(|run| time_to_ask(&run.experiment)).unwrap_or_default();
                if watch.is_zero() {
                    return self.end_step(id, step, now, out);
                }
                if let Some(run) = self.runs.get_mut(&id) {
                    run.steps[step].phase = StepPhase::Watching { deadline: now.mono.plus(watch) };
                }
            }
            StepPhase::Closing { .. } if kill => self.revert_step(id, step, now, out),
            _ => {}
        }
    }

    /// A target of a kill ended.
    pub(super) fn target_gone(&mut self, process: ProcessId, out: &mut Effects) {
        let mut done = Vec::new();
        for run in self.runs.values_mut().filter(|run| run.is_active()) {
            for (index, step) in run.steps.iter_mut().enumerate() {
                let in_force = matches!(step.phase, StepPhase::InForce { .. });
                if step.alive.remove(&process) && step.alive.is_empty() && in_force {
                    done.push((run.id, index));
                }
            }
        }
        for (id, step) in done {
            self.measure(id, step, out);
        }
    }

    pub(super) fn on_lapsed(
        &mut self,
        id: Uuid,
        step: usize,
        error: String,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get(&id) else { return };
        let StepPhase::InForce { deadline, .. } = run.steps[step].phase else { return };
        if now.mono >= deadline {
            return;
        }
        let why = Reason::LeaseLost { step: run.spec(step).name.clone(), error };
        self.stop(id, Stop { verdict: Verdict::Aborted, by: Some(AbortedBy::Limiter), why }, now, out);
    }

    /// Undoes a step that is, or may be, in force.
    pub(super) fn revert_step(&mut self, id: Uuid, step: usize, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let leashed = run.leashed;
        let state = &mut run.steps[step];
        let reversible = state.prepared.as_ref().filter(|prepared| !prepared.undo.restores.is_empty());
        let Some(prepared) = reversible.cloned().filter(|_| !leashed) else {
            return self.end_step(id, step, now, out);
        };
        state.phase = StepPhase::Reverting { attempt: 0, retry_at: None };
        run.dirty = true;
        out.push(Effect::Revert(vec![(id, step, prepared)]));
    }

    pub(super) fn on_reverted(
        &mut self,
        id: Uuid,
        step: usize,
        result: Result<(), Vec<String>>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let StepPhase::Reverting { attempt, .. } = run.steps[step].phase else { return };
        let Err(errors) = result else { return self.end_step(id, step, now, out) };
        let attempt = attempt.saturating_add(1);
        let wait = RETRY_FIRST.saturating_mul(1 << attempt.min(10)).min(RETRY_LONGEST);
        run.steps[step].phase = StepPhase::Reverting { attempt, retry_at: Some(now.mono.plus(wait)) };
        run.steps[step].errors.extend(errors.iter().map(|error| format!("reverting: {error}")));
        run.steps[step].errors.dedup();
        run.steps[step].errors.truncate(16);
        run.dirty = true;
        if attempt <= STUCK_AFTER {
            let kind = if attempt == STUCK_AFTER { "stuck" } else { "revert_failed" };
            let data = json!({ "errors": errors, "attempt": attempt });
            self.log(
                id,
                Some(step),
                kind,
                format!("revert failed: {}", errors.join("; ")),
                data,
                now,
                out,
            );
        }
        self.advance(id, now, out);
    }

    /// The step is over: its fault is undone, or was of the kind that cannot be.
    fn end_step(&mut self, id: Uuid, step: usize, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let late = !run.is_active();
        let state = &mut run.steps[step];
        let (real, injected) = (state.prepared.is_some(), state.injected_at.is_some());
        let fault = state.fault.clone();
        if real && !injected {
            self.skip(id, step);
            out.push(Effect::Close { fault, outcome: Outcome::NeverInjected });
            return if late { self.save_again(id, now, out) } else { self.advance(id, now, out) };
        }
        state.phase = StepPhase::Done;
        state.undone_at = Some(now.wall);
        run.dirty = true;
        if real {
            out.push(Effect::Close { fault, outcome: Outcome::Reverted });
        }
        let spared = run.steps[step].spared;
        let going = if told_to_end(&run.experiment.steps[step].fault) && real {
            run.steps[step].alive.clone()
        } else {
            BTreeSet::new()
        };
        for group in self.groups.values_mut() {
            if spared {
                // Back in the rotation, and nobody told it to end.
                group.cancel_charge(id, step);
            } else {
                group.settle_charge(id, step, &going);
            }
        }
        self.log(id, Some(step), "undone", "over, and undone".to_owned(), json!({}), now, out);
        if late {
            self.save_again(id, now, out);
        } else {
            self.advance(id, now, out);
        }
    }

    /// The step will not be injected; what it was charged is given back.
    pub(super) fn skip(&mut self, id: Uuid, step: usize) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.steps[step].phase = StepPhase::Skipped;
            run.steps[step].deadline = None;
            run.dirty = true;
        }
        for group in self.groups.values_mut() {
            group.cancel_charge(id, step);
        }
    }

    /// Everything of a step that only time decides.
    pub(super) fn step_on_time(&mut self, id: Uuid, step: usize, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let leashed = run.leashed;
        if run.steps[step].phase.is_over() {
            return;
        }
        let experiment = run.experiment.clone();
        let spec = &experiment.steps[step];
        let state = &mut run.steps[step];
        let prepared = state.prepared.clone();
        match state.phase {
            StepPhase::Waiting { until } if until <= now.mono => self.resolve_step(id, step, out),
            StepPhase::Draining { deadline, until, ask_at: Some(at), idle } if at <= now.mono => {
                state.phase = StepPhase::Draining { deadline, until, ask_at: None, idle };
                if let Some(prepared) = prepared {
                    out.push(Effect::Drain { run: id, step, prepared, begin: false });
                }
            }
            StepPhase::InForce { deadline, escalate_at } => {
                if let (Some(at), Some(prepared), FaultSpec::Kill(kill)) =
                    (escalate_at, prepared, &spec.fault)
                    && at <= now.mono
                    && let Some(then) = kill.then
                {
                    state.phase = StepPhase::InForce { deadline, escalate_at: None };
                    if !state.alive.is_empty() {
                        out.push(Effect::Escalate { run: id, step, prepared, signal: then.signal });
                        let (message, data) = (format!("escalated to {}", then.signal), json!({}));
                        self.log(id, Some(step), "escalated", message, data, now, out);
                    }
                } else if leashed && deadline <= now.mono {
                    self.end_step(id, step, now, out);
                } else if !leashed && closing_at(state, spec, deadline) <= now.mono {
                    let over =
                        if state.alive.is_empty() { deadline } else { now.mono.plus(KILL_PATIENCE) };
                    state.phase = StepPhase::Closing { deadline: over.max(deadline) };
                    self.measure(id, step, out);
                    self.step_on_time(id, step, now, out);
                }
            }
            StepPhase::Watching { deadline } | StepPhase::Closing { deadline }
                if deadline <= now.mono =>
            {
                self.revert_step(id, step, now, out);
            }
            StepPhase::Reverting { attempt, retry_at: Some(at) } if at <= now.mono => {
                state.phase = StepPhase::Reverting { attempt, retry_at: None };
                if let Some(prepared) = prepared {
                    out.push(Effect::Revert(vec![(id, step, prepared)]));
                }
            }
            _ => {}
        }
    }

    /// Renews what is in force, and measures what has not shown an effect yet.
    pub(super) fn renew(&mut self, now: Now, out: &mut Effects) {
        if self.next_renewal.is_none_or(|at| now.mono < at) {
            return;
        }
        let mut leases = Vec::new();
        let mut any = false;
        for run in self.runs.values() {
            for (index, step) in run.steps.iter().enumerate() {
                let (StepPhase::InForce { deadline, .. } | StepPhase::Closing { deadline }) = step.phase
                else {
                    continue;
                };
                let reversible = |p: &Arc<Prepared>| matches!(p.lease, Lease::Kernel | Lease::Warden);
                let Some(prepared) = step.prepared.clone().filter(reversible) else { continue };
                any = true;
                if step.effect.as_ref().is_none_or(|effect| !effect.proven) {
                    let injection = step.injection.clone();
                    out.push(Effect::Measure {
                        run: run.id,
                        step: index,
                        prepared: prepared.clone(),
                        injection,
                    });
                }
                if prepared.lease == Lease::Kernel {
                    leases.push((run.id, index, prepared, deadline));
                }
            }
        }
        debug_assert!(RENEW_EVERY * 2 < KERNEL_LEASE, "a renewal may fail once");
        self.next_renewal = any.then(|| now.mono.plus(RENEW_EVERY));
        if !leases.is_empty() {
            out.push(Effect::Renew(leases));
        }
    }

    /// The limiter says no under way: as a refusal if nothing has begun, else as an abort.
    pub(super) fn limiter_stop(&mut self, id: Uuid, why: Reason, now: Now, out: &mut Effects) {
        let began = self.runs.get(&id).is_some_and(|run| run.began);
        let stop = if began {
            Stop { verdict: Verdict::Aborted, by: Some(AbortedBy::Limiter), why }
        } else {
            Stop { verdict: Verdict::Refused, by: None, why }
        };
        self.stop(id, stop, now, out);
    }
}

/// The fault is meant to be the end of its targets.
fn told_to_end(spec: &FaultSpec) -> bool {
    match spec {
        FaultSpec::Kill(kill) => kill.signal.asks_to_end() || kill.then.is_some(),
        FaultSpec::Unit(_) => true,
        FaultSpec::Pause(_) | FaultSpec::Latency(_) | FaultSpec::Connections(_) => false,
    }
}

fn charges_of(proposal: &Proposal) -> serde_json::Value {
    let charges = proposal.touches.iter().map(|touch| (touch.group.0.clone(), json!(touch.charge())));
    serde_json::Value::Object(charges.collect())
}

/// How long each probe takes to find out that it has missed too often: so long, at least, is
/// watched what comes of a kill.
fn time_to_ask(experiment: &Experiment) -> Duration {
    let longest =
        experiment.probes.iter().map(|probe| probe.every.saturating_mul(probe.tolerate + 1)).max();
    longest.unwrap_or_default().min(LONGEST_LOOK)
}

/// How long a step is in force at most.
pub(super) fn time_in_force(step: &Step) -> Duration {
    match &step.fault {
        FaultSpec::Kill(kill) => step.duration.unwrap_or_else(|| {
            kill.then.map(|then| then.after).unwrap_or_default().saturating_add(KILL_PATIENCE)
        }),
        _ => step.duration.unwrap_or(KERNEL_LEASE),
    }
}

/// The same exact hit, whatever the names of the kernel objects.
fn same_target(planned: Option<&Target>, now: &Target) -> bool {
    match (planned, now) {
        (Some(Target::Processes { processes: a }), Target::Processes { processes: b }) => {
            a.iter().map(|process| process.id).eq(b.iter().map(|process| process.id))
        }
        (Some(Target::Units { units: a }), Target::Units { units: b }) => {
            let exact = |unit: &UnitCandidate| (unit.name.clone(), unit.instance.clone());
            a.iter().map(exact).eq(b.iter().map(exact))
        }
        (Some(Target::Traffic { plan: a }), Target::Traffic { plan: b }) => {
            (&a.netns, &a.rules, &a.devices, &a.engine) == (&b.netns, &b.rules, &b.devices, &b.engine)
        }
        _ => false,
    }
}
