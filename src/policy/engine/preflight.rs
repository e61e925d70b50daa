//! From a request to the first step: admission of the run, resolution, the steady state.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::json;
use uuid::Uuid;

use crate::{
    experiment::{Check, Experiment, Start as When},
    host::{FaultId, HostError},
    policy::{
        capacity::Charge,
        limiter::{self, Decision, Knowledge, Proposal, Touch},
        monkey,
        plan::{self, Hit, Resolution},
        reason::{Reason, as_ms},
        time::{Moment, Now},
    },
    view::{ChargeView, DecisionView, HaltView, PlanStepView, PlanView, Verdict},
};

use super::{
    Effect, Effects, Engine, Job, Planning, Start,
    run::{Phase, ProbeRun, Run, StepRun, Stop},
    worst_case,
};

type Resolutions = Vec<(usize, Result<Resolution, HostError>)>;

impl Engine {
    pub(super) fn start(&mut self, start: Start, now: Now, out: &mut Effects) {
        let Start { run: id, experiment, seed, plan, caller, leashed } = start;
        let leashed = leashed || self.policy.leashed;
        let drawn = monkey::draw(&experiment, &self.policy.groups, seed);
        let experiment = drawn.as_ref().map_or(experiment, Arc::clone);
        let steps =
            (0..experiment.steps.len()).map(|step| StepRun::new(FaultId::new(id, step))).collect();
        let refusal = self.refuse_run(now).or(drawn.err());
        self.runs.insert(
            id,
            Run {
                id,
                probes: vec![ProbeRun::default(); experiment.probes.len()],
                steps,
                experiment: experiment.clone(),
                seed,
                plan,
                caller: caller.clone(),
                leashed,
                created_at: now.wall,
                finished_at: None,
                phase: Phase::Resolving,
                stop: None,
                verdict: None,
                began: false,
                seq: 0,
                dirty: true,
            },
        );
        let data = json!({ "caller": caller, "seed": seed, "leashed": leashed });
        self.log(id, None, "created", format!("{} (seed {seed})", experiment.title), data, now, out);
        if let Some(reason) = refusal {
            return self.refuse(id, reason, now, out);
        }
        if let Err(plan) = limiter::self_test(&self.policy.limits, &self.groups, now.mono) {
            let reason = Reason::SelfTestFailed { plan };
            let halt = HaltView {
                reason: reason.to_string(),
                by: "self-test".to_owned(),
                since: now.wall,
                durable: false,
            };
            out.push(Effect::PersistHalt { reason: halt.reason.clone() });
            self.halt(halt, now, out);
            return self.refuse(id, reason, now, out);
        }
        let steps = resolve_steps(&experiment, Some(id), seed, 0..experiment.steps.len());
        out.push(Effect::Resolve { job: Job::Preflight(id), steps });
    }

    pub(super) fn plan(
        &mut self,
        ticket: u64,
        experiment: &Arc<Experiment>,
        seed: u64,
        out: &mut Effects,
    ) {
        let experiment = match monkey::draw(experiment, &self.policy.groups, seed) {
            Ok(experiment) => experiment,
            Err(why) => return out.push(Effect::Planned { ticket, result: Err(why) }),
        };
        let steps = resolve_steps(&experiment, None, seed, 0..experiment.steps.len());
        self.plans.insert(ticket, Planning { experiment, seed });
        out.push(Effect::Resolve { job: Job::Plan(ticket), steps });
    }

    pub(super) fn on_resolved(&mut self, job: Job, results: Resolutions, now: Now, out: &mut Effects) {
        match job {
            Job::Plan(ticket) => {
                if let Some(planning) = self.plans.remove(&ticket) {
                    let result = self.planned(&planning, results, now).map(Box::new);
                    out.push(Effect::Planned { ticket, result });
                }
            }
            Job::Preflight(run) => self.preflighted(run, results, now, out),
            Job::Step(run) => {
                for (step, result) in results {
                    self.step_resolved(run, step, result, now, out);
                }
            }
        }
    }

    /// Reasons that keep a run from being looked at at all.
    fn refuse_run(&self, now: Now) -> Option<Reason> {
        if let Some(reason) = self.against_all(now) {
            return Some(reason);
        }
        let running = self.runs.values().filter(|run| run.is_active()).count();
        let (running, limit) =
            (u32::try_from(running).unwrap_or(u32::MAX), self.policy.limits.concurrent_runs);
        (running >= limit).then_some(Reason::TooManyRuns { running, limit })
    }

    fn preflighted(&mut self, id: Uuid, results: Resolutions, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get(&id).filter(|run| run.phase == Phase::Resolving) else { return };
        let (experiment, seed, planned) = (run.experiment.clone(), run.seed, run.plan.clone());
        let hits = match self.hits(&experiment, seed, results) {
            Ok(hits) => hits,
            Err(reason) => return self.refuse(id, reason, now, out),
        };
        if let Some(planned) = planned {
            let digest = plan_digest(&experiment, seed, &hits);
            if digest != planned {
                return self.refuse(id, Reason::PlanDiffers { planned, now: digest }, now, out);
            }
        }
        for decision in self.decide_all(&experiment, id, &hits, now) {
            if let Decision::Refuse(reason) = decision {
                return self.refuse(id, reason, now, out);
            }
        }
        let Some(run) = self.runs.get_mut(&id) else { return };
        for (step, hit) in run.steps.iter_mut().zip(&hits) {
            step.target = Some(hit.target.clone());
            step.touches.clone_from(&hit.touches);
        }
        run.dirty = true;
        if experiment.probes.is_empty() {
            // Nothing stands between this look and the first stage: it is the stage's own.
            self.begin_stage_with(id, hits, now, out);
        } else {
            self.steady(id, now, out);
        }
    }

    fn steady(&mut self, id: Uuid, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.phase = Phase::Steadying;
        for (probe, state) in run.experiment.probes.iter().zip(&mut run.probes) {
            if matches!(probe.check, Check::Group { .. }) {
                state.next_at = Some(now.mono);
            }
        }
        let probes = run.experiment.probes.clone();
        out.push(Effect::StartProbes { run: id, probes });
        self.log(
            id,
            None,
            "steadying",
            "the steady state must hold first".to_owned(),
            json!({}),
            now,
            out,
        );
    }

    /// Ends a run that was not begun.
    pub(super) fn refuse(&mut self, id: Uuid, why: Reason, now: Now, out: &mut Effects) {
        self.stop(id, Stop { verdict: Verdict::Refused, by: None, why }, now, out);
    }

    /// Picks the exact targets of every step.
    fn hits(
        &self,
        experiment: &Experiment,
        seed: u64,
        results: Resolutions,
    ) -> Result<Vec<Hit>, Reason> {
        for name in &experiment.groups {
            if !self.groups.contains_key(name) {
                let known = self.groups.keys().cloned().collect();
                return Err(Reason::UnknownGroup { group: name.clone(), known });
            }
        }
        let limit = self.policy.limits.duration;
        let long =
            |step: &&crate::experiment::Step| step.duration.is_some_and(|duration| duration > limit);
        if let Some(step) = experiment.steps.iter().find(long) {
            let duration_ms = step.duration.map(as_ms).unwrap_or_default();
            let (step, limit_ms) = (step.name.clone(), as_ms(limit));
            return Err(Reason::StepTooLong { step, duration_ms, limit_ms });
        }
        let mut by_step: BTreeMap<usize, _> = results.into_iter().collect();
        (0..experiment.steps.len())
            .map(|step| match by_step.remove(&step) {
                Some(result) => {
                    let hit = hit_of(experiment, step, seed, result)?;
                    self.drain_is_seen(&experiment.steps[step], hit)
                }
                None => Err(Reason::CannotResolve {
                    step: experiment.steps[step].name.clone(),
                    error: "it was not looked up".to_owned(),
                }),
            })
            .collect()
    }

    /// The limiter's answer to each step as if it began now; steps that begin together are charged
    /// together. What earlier stages will have done by then nobody can know.
    fn decide_all(&self, experiment: &Experiment, run: Uuid, hits: &[Hit], now: Now) -> Vec<Decision> {
        let mut groups = self.groups.clone();
        let mut decisions = Vec::with_capacity(hits.len());
        for (step, hit) in hits.iter().enumerate() {
            if experiment.steps[step].start == When::AfterPrevious {
                groups.clone_from(&self.groups);
            }
            let known = Knowledge { groups: &groups, ..self.knowledge(now) };
            let decision = limiter::decide(&known, &propose(experiment, run, step, hit), now.mono);
            if decision == Decision::Admit {
                for touch in hit.touches.iter().filter(|touch| touch.charge() > 0) {
                    if let Some(group) = groups.get_mut(&touch.group) {
                        group.charge(charge_of(run, step, touch, true, now.mono));
                    }
                }
            }
            decisions.push(decision);
        }
        decisions
    }

    fn planned(&self, planning: &Planning, results: Resolutions, now: Now) -> Result<PlanView, Reason> {
        let Planning { experiment, seed } = planning;
        let hits = self.hits(experiment, *seed, results)?;
        let decisions = self.decide_all(experiment, Uuid::nil(), &hits, now);
        let mut overall = DecisionView::Admit;
        let mut steps = Vec::new();
        for ((hit, spec), decision) in hits.iter().zip(&experiment.steps).zip(decisions) {
            let decision = decision_view(decision, now);
            overall = worse(overall, &decision);
            steps.push(PlanStepView {
                name: spec.name.clone(),
                fault: spec.fault.kind(),
                targets: plan::describe(&hit.target),
                charges: hit
                    .touches
                    .iter()
                    .map(|touch| ChargeView { group: touch.group.0.clone(), instances: touch.charge() })
                    .collect(),
                decision,
            });
        }
        Ok(PlanView {
            title: experiment.title.clone(),
            digest: plan_digest(experiment, *seed, &hits),
            seed: *seed,
            decision: overall,
            steps,
        })
    }
}

/// Turns what the host found into the exact hit, charged as the experiment says.
pub(super) fn hit_of(
    experiment: &Experiment,
    index: usize,
    seed: u64,
    result: Result<Resolution, HostError>,
) -> Result<Hit, Reason> {
    let step = &experiment.steps[index];
    let resolution = result.map_err(|error| match error {
        HostError::Unavailable(error) => Reason::Unavailable { step: step.name.clone(), error },
        error => Reason::CannotResolve { step: step.name.clone(), error: error.to_string() },
    })?;
    let mut hit = plan::hit(step, index, seed, resolution)?;
    if step.charge > 0 && hit.touches.is_empty() {
        // A charge that the experiment asks for is never lost: it falls on the groups it declares.
        hit.touches = experiment
            .groups
            .iter()
            .map(|group| Touch {
                group: group.clone(),
                hit: Vec::new(),
                charged: false,
                extra: step.charge,
            })
            .collect();
    }
    Ok(hit)
}

/// What a touch takes from its group.
pub(super) fn charge_of(run: Uuid, step: usize, touch: &Touch, lethal: bool, made_at: Moment) -> Charge {
    Charge {
        run,
        step,
        instances: touch
            .hit
            .iter()
            .filter(|_| touch.charged)
            .map(|instance| (instance.id, instance.processes.clone()))
            .collect(),
        anonymous: touch.extra,
        made_at,
        in_force: true,
        lethal,
        going: [].into(),
    }
}

pub(super) fn propose(experiment: &Experiment, run: Uuid, step: usize, hit: &Hit) -> Proposal {
    Proposal {
        run,
        step,
        declared: experiment.groups.clone(),
        targets: hit.targets,
        touches: hit.touches.clone(),
        verb: hit.verb,
        worst_case: worst_case(&experiment.steps[step].fault),
    }
}

/// The look-ups for some steps of an experiment.
pub(super) fn resolve_steps(
    experiment: &Experiment,
    run: Option<Uuid>,
    seed: u64,
    steps: std::ops::Range<usize>,
) -> Vec<(usize, crate::experiment::FaultSpec, FaultId, u64)> {
    steps
        .map(|step| {
            let fault = FaultId::new(run.unwrap_or_default(), step);
            (step, experiment.steps[step].fault.clone(), fault, plan::step_seed(seed, step))
        })
        .collect()
}

fn plan_digest(experiment: &Experiment, seed: u64, hits: &[Hit]) -> String {
    plan::digest(seed, experiment.steps.iter().zip(hits.iter().map(|hit| &hit.target)))
}

fn decision_view(decision: Decision, now: Now) -> DecisionView {
    match decision {
        Decision::Admit => DecisionView::Admit,
        Decision::Wait { until, why } => DecisionView::Wait { until: wall(until, now), why: why.view() },
        Decision::Refuse(why) => DecisionView::Refuse { why: why.view() },
    }
}

fn worse(so_far: DecisionView, next: &DecisionView) -> DecisionView {
    match (&so_far, next) {
        (DecisionView::Refuse { .. }, _) | (_, DecisionView::Admit) => so_far,
        (DecisionView::Wait { until, .. }, DecisionView::Wait { until: later, .. })
            if until >= later =>
        {
            so_far
        }
        _ => next.clone(),
    }
}

/// A moment on the wall clock, for people.
pub(super) fn wall(moment: Moment, now: Now) -> jiff::Timestamp {
    let (ahead, back) = (moment.since(now.mono), now.mono.since(moment));
    let shifted = if back.is_zero() { now.wall.checked_add(ahead) } else { now.wall.checked_sub(back) };
    shifted.unwrap_or(now.wall)
}
