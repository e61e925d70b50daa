//! What the outside sees of the engine.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    fault::Lease,
    policy::{budget::Room, calendar::Frozen, capacity::Group, plan, reason::as_ms, time::Now},
    view::{
        AbilityView, BudgetView, Cleanup, FaultView, FreezeView, GroupView, HostView, MemberView,
        ProbeView, ReasonView, RunState, RunView, StepState, StepView,
    },
};

use super::{
    Engine,
    preflight::wall,
    run::{Phase, Run, StepPhase, StepRun},
};

/// Finished runs that stay in memory.
const KEPT_RUNS: usize = 200;

impl Engine {
    /// This host and its agent.
    #[must_use]
    pub fn host_view(&self, now: Now) -> HostView {
        let mut problems: Vec<ReasonView> = Vec::new();
        if let Some(reason) = self.against_all(now) {
            problems.push(reason.view());
        }
        HostView {
            name: self.facts.name.clone(),
            version: self.facts.version.clone(),
            kernel: self.facts.kernel.clone(),
            started_at: self.facts.started_at,
            leashed: self.policy.leashed,
            halted: self.halted.clone(),
            frozen: self.agenda.frozen(now).map(|Frozen { name, until, because }| FreezeView {
                name,
                until,
                because,
            }),
            problems,
            faults: self
                .facts
                .abilities
                .iter()
                .map(|ability| AbilityView {
                    fault: ability.fault,
                    variant: ability.variant.clone(),
                    available: ability.available,
                    reason: ability.reason.clone(),
                })
                .collect(),
        }
    }

    /// Every group as the limiter sees it.
    #[must_use]
    pub fn group_views(&self, now: Now) -> Vec<GroupView> {
        self.groups.values().map(|group| group_view(group, now)).collect()
    }

    /// Runs in memory, newest first. Only what has changed is built anew.
    pub fn run_views(&mut self, now: Now) -> Vec<Arc<RunView>> {
        self.forget_old_runs();
        let dirty: Vec<Uuid> = self.runs.values().filter(|run| run.dirty).map(|run| run.id).collect();
        for id in dirty {
            if let Some(view) = self.view_of(id, now) {
                self.views.insert(id, Arc::new(view));
            }
            if let Some(run) = self.runs.get_mut(&id) {
                run.dirty = false;
            }
        }
        self.views.values().rev().cloned().collect()
    }

    /// One run.
    #[must_use]
    pub fn view_of(&self, id: Uuid, now: Now) -> Option<RunView> {
        self.runs.get(&id).map(|run| run_view(run, now))
    }

    /// One run as it is, for whoever tells its story.
    #[must_use]
    pub fn run(&self, id: Uuid) -> Option<&Run> {
        self.runs.get(&id)
    }

    /// The ids of runs in memory.
    pub fn run_ids(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.runs.keys().copied()
    }

    /// The faults that are on this host now.
    #[must_use]
    pub fn fault_views(&self, now: Now) -> Vec<FaultView> {
        let mut faults = Vec::new();
        for run in self.runs.values().filter(|run| !run.leashed) {
            for (step, spec) in run.steps.iter().zip(&run.experiment.steps) {
                if step.phase.may_be_in_force() {
                    faults.push(FaultView {
                        id: step.fault.0.clone(),
                        run: run.id,
                        step: spec.name.clone(),
                        fault: spec.fault.kind(),
                        state: step_state(step, now).0,
                        targets: step.target.as_ref().map(plan::describe).unwrap_or_default(),
                        lease: step.prepared.as_ref().map_or(Lease::None, |prepared| prepared.lease),
                        since: step.injected_at,
                        deadline: step.deadline,
                    });
                }
            }
        }
        faults
    }

    fn forget_old_runs(&mut self) {
        let over = |run: &Run| !run.is_active() && run.steps.iter().all(|step| step.phase.is_over());
        let finished: Vec<Uuid> = self.runs.values().filter(|run| over(run)).map(|run| run.id).collect();
        let surplus = finished.len().saturating_sub(KEPT_RUNS);
        for id in finished.into_iter().take(surplus) {
            self.runs.remove(&id);
            self.views.remove(&id);
        }
    }
}

fn group_view(group: &Group, now: Now) -> GroupView {
    let reading = group.reading();
    let overdue = group.overdue(now.mono);
    let problem = match (group.failure(), &overdue, reading) {
        (Some(error), ..) => Some(error.to_owned()),
        (None, Some(reason), _) => Some(reason.to_string()),
        (None, None, None) => Some("not read yet".to_owned()),
        _ => None,
    };
    let rule = group.policy.removal;
    let used = group.ledger.used(rule, now.mono);
    let room = group.ledger.room(1, rule, now.mono);
    let members = reading.and_then(|reading| reading.members.as_deref()).unwrap_or_default();
    GroupView {
        name: group.policy.name.0.clone(),
        floor: group.policy.floor,
        expected: group.policy.expected,
        ready: reading.map(|reading| reading.ready),
        total: reading.map(|reading| reading.total),
        taken_at: reading.map(|reading| wall(reading.taken_at, now)),
        fresh: problem.is_none(),
        problem,
        charged: group.effective().map_or(0, |(_, charged)| charged),
        effective: group.effective().map(|(effective, _)| effective),
        budget: BudgetView {
            at_once: rule.at_once,
            every_ms: as_ms(rule.every),
            left: rule.at_once.saturating_sub(used),
            room_at: if let Room::At(at) = room { Some(wall(at, now)) } else { None },
        },
        blocked: group.blocked().map(ToOwned::to_owned),
        members: members
            .iter()
            .map(|member| MemberView {
                pid: member.process.id.pid,
                name: member.process.name.clone(),
                ready: member.ready,
                listens: member.process.listens.clone(),
            })
            .collect(),
    }
}

fn run_view(run: &Run, now: Now) -> RunView {
    let state = match run.phase {
        Phase::Resolving | Phase::Steadying => RunState::Preflight,
        Phase::Stage { .. } | Phase::Recovering { .. } => RunState::Running,
        Phase::Ending => RunState::Reverting,
        Phase::Finished => RunState::Finished,
    };
    let stuck = run.steps.iter().any(|step| step.phase.is_stuck());
    let in_force = !run.leashed && run.steps.iter().any(|step| step.phase.may_be_in_force());
    RunView {
        id: run.id,
        title: run.experiment.title.clone(),
        hypothesis: run.experiment.hypothesis.clone(),
        state,
        verdict: run.verdict,
        cleanup: match (stuck, in_force) {
            (true, _) => Cleanup::Stuck,
            (false, true) => Cleanup::InForce,
            (false, false) => Cleanup::Clean,
        },
        aborted_by: run.stop.as_ref().and_then(|stop| stop.by),
        why: run.stop.as_ref().map(|stop| stop.why.view()),
        seed: run.seed,
        leashed: run.leashed,
        caller: run.caller.clone(),
        created_at: run.created_at,
        finished_at: run.finished_at,
        steps: run
            .steps
            .iter()
            .zip(&run.experiment.steps)
            .map(|(step, spec)| step_view(step, spec, now))
            .collect(),
        probes: run
            .probes
            .iter()
            .zip(&run.experiment.probes)
            .map(|(state, probe)| ProbeView {
                name: probe.name.clone(),
                before: state.before,
                attempts: state.attempts,
                misses: state.misses,
                worst_row: state.worst_row,
                tolerate: probe.tolerate,
                after: state.after,
                last_miss: state.last_miss.clone(),
            })
            .collect(),
    }
}

fn step_view(step: &StepRun, spec: &crate::experiment::Step, now: Now) -> StepView {
    let (state, waiting_until) = step_state(step, now);
    StepView {
        name: spec.name.clone(),
        fault: spec.fault.kind(),
        state,
        waiting_until,
        targets: step.target.as_ref().map(plan::describe).unwrap_or_default(),
        injected_at: step.injected_at,
        deadline: step.deadline,
        undone_at: step.undone_at,
        effect: step.effect.clone(),
        errors: step.errors.clone(),
    }
}

fn step_state(step: &StepRun, now: Now) -> (StepState, Option<jiff::Timestamp>) {
    let state = match step.phase {
        _ if step.phase.is_stuck() => StepState::Stuck,
        StepPhase::Pending => StepState::Pending,
        StepPhase::Resolving | StepPhase::Preparing => StepState::Preparing,
        StepPhase::Waiting { until } => return (StepState::Waiting, Some(wall(until, now))),
        StepPhase::Committing { .. } | StepPhase::Draining { .. } | StepPhase::Injecting { .. } => {
            StepState::Injecting
        }
        StepPhase::InForce { .. } | StepPhase::Watching { .. } | StepPhase::Closing { .. } => {
            StepState::InForce
        }
        StepPhase::Reverting { .. } => StepState::Reverting,
        StepPhase::Done => StepState::Done,
        StepPhase::Skipped => StepState::Skipped,
    };
    (state, None)
}
