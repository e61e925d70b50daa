//! The engine: `(state, event, now) -> effects`, for all runs of this host.
//!
//! It is the only owner of runs, groups and the halt. It performs nothing: the runner does what the
//! returned [`Effect`]s say and reports back as [`Event`]s, in real time or in a simulation's. Its
//! parts: `preflight` (from a request to the first step), `steps` (a step's way through its
//! phases), `watch` (what stops runs), `ending` (stops, verdicts), `snapshot` (what the outside sees).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    config::Policy,
    experiment::{Experiment, GroupName},
    host::{Ability, Headroom},
    policy::{
        calendar::{Agenda, Frozen, Memory},
        capacity::{Charge, Group},
        limiter::{Knowledge, WorstCase},
        reason::Reason,
        time::{Moment, Now},
    },
    view::{AbortedBy, EventView, HaltView, RunView},
};

mod drain;
mod ending;
pub mod event;
mod preflight;
pub mod run;
mod schedules;
mod snapshot;
mod steps;
mod watch;

pub use event::{Effect, Event, Intent, Job, NotDurable, Outcome, Start};
use run::{Phase, Run, StepPhase};

/// A headroom older than this is no headroom.
const HEADROOM_STALE: Duration = Duration::from_secs(5);

/// From a removal that is in the journal to the removal, at most.
const DECIDED_TO_DONE: Duration = Duration::from_secs(1);

/// Facts of the host that do not change while the agent lives.
#[derive(Debug, Clone)]
pub struct HostFacts {
    pub name: String,
    pub kernel: String,
    pub version: String,
    pub started_at: Timestamp,
    pub abilities: Vec<Ability>,
    /// A number of this host's own, always the same: what schedules without a seed draw from.
    pub seed: u64,
}

/// All that is known and under way on this host.
#[derive(Debug)]
pub struct Engine {
    policy: Arc<Policy>,
    facts: HostFacts,
    groups: BTreeMap<GroupName, Group>,
    headroom: Option<(Moment, Result<Headroom, String>)>,
    halted: Option<HaltView>,
    /// Why the journal cannot take an intent, if it cannot.
    journal: Option<String>,
    /// Faults of a former agent's runs that could not be reverted.
    inherited_stuck: u32,
    stopping: bool,
    /// Ordered by id, which is by time of creation.
    runs: BTreeMap<Uuid, Run>,
    plans: BTreeMap<u64, Planning>,
    views: BTreeMap<Uuid, Arc<RunView>>,
    next_renewal: Option<Moment>,
    /// Shared with readers: replaced when it changes.
    agenda: Arc<Agenda>,
    /// Schedules are somebody else's business: this agent is there for a while only.
    on_call: bool,
    /// The slot of a schedule whose run is being begun.
    launching: Option<(String, Timestamp)>,
}

#[derive(Debug)]
struct Planning {
    experiment: Arc<Experiment>,
    seed: u64,
}

/// Effects as they are collected.
type Effects = Vec<Effect>;

impl Engine {
    #[must_use]
    pub fn new(policy: Arc<Policy>, facts: HostFacts, halted: Option<HaltView>) -> Self {
        let groups =
            policy.groups.iter().map(|group| (group.name.clone(), Group::new(group.clone()))).collect();
        let agenda = Agenda::new(&policy, facts.seed, Ok(Memory::default()), facts.started_at);
        Self {
            agenda: Arc::new(agenda),
            on_call: false,
            launching: None,
            policy,
            facts,
            groups,
            headroom: None,
            halted,
            journal: None,
            inherited_stuck: 0,
            stopping: false,
            runs: BTreeMap::new(),
            plans: BTreeMap::new(),
            views: BTreeMap::new(),
            next_renewal: None,
        }
    }

    /// Takes over the removals that a former agent decided on at `at`: budgets survive restarts.
    /// They happened a little later than that, nobody knows when.
    pub fn inherit_removal(&mut self, group: &GroupName, count: u32, at: Moment) {
        if let Some(group) = self.groups.get_mut(group) {
            // As a charge, not on the budget only: a slow source may not show it yet.
            group.charge(Charge {
                run: Uuid::nil(),
                step: 0,
                instances: [].into(),
                anonymous: count,
                made_at: at.plus(DECIDED_TO_DONE),
                in_force: false,
                lethal: true,
                going: [].into(),
            });
        }
    }

    /// Says how many faults recovery could not revert (yet): nothing is admitted while there are any.
    pub fn inherit_stuck(&mut self, faults: u32) {
        self.inherited_stuck = faults;
    }

    /// Takes over what a former agent knew of schedules, or why that cannot be read.
    pub fn inherit_schedules(&mut self, memory: Result<Memory, String>, now: Timestamp) {
        self.agenda = Arc::new(Agenda::new(&self.policy, self.facts.seed, memory, now));
    }

    /// Takes one event in and says what is to be done about it.
    #[must_use]
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.dispatch(event, now, &mut effects);
        reverts_first(effects)
    }

    fn dispatch(&mut self, event: Event, now: Now, out: &mut Effects) {
        match event {
            Event::Start(start) => self.start(*start, now, out),
            Event::Plan { ticket, experiment, seed } => self.plan(ticket, &experiment, seed, out),
            Event::Abort { run, caller } => self.abort(run, &caller, now, out),
            Event::Halt { reason, caller, since, durable } => {
                self.halt(HaltView { reason, by: caller, since, durable }, now, out);
            }
            Event::Release => self.halted = None,
            Event::Shutdown => self.shutdown(now, out),
            Event::Reload(policy) => self.reload(*policy, now, out),
            Event::Reading { group, result } => self.on_reading(&group, result, now, out),
            Event::Lost { groups, process, at } => self.on_lost(&groups, process, at, now, out),
            Event::Headroom(headroom) => self.on_headroom(headroom, now, out),
            Event::Probed { run, probe, outcome, at } => {
                self.on_probe(run, probe, outcome, at, now, out);
            }
            Event::Journal(result) => self.journal = result.err(),
            Event::Resolved { job, results } => self.on_resolved(job, results, now, out),
            Event::Prepared { run, step, result } => self.on_prepared(run, step, result, now, out),
            Event::Committed { run, step, result } => self.on_committed(run, step, result, now, out),
            Event::Drained { run, step, result } => self.on_drained(run, step, result, now, out),
            Event::Injected { run, step, result } => self.on_injected(run, step, result, now, out),
            Event::Measured { run, step, result } => self.on_measured(run, step, result, now, out),
            Event::Lapsed { run, step, error } => self.on_lapsed(run, step, error, now, out),
            Event::Reverted { run, step, result } => self.on_reverted(run, step, result, now, out),
            Event::Seen { freeze, sight } => Arc::make_mut(&mut self.agenda).see(freeze, sight),
            Event::Pause { schedule, pause } => self.pause_schedule(&schedule, pause, out),
            Event::Launched { schedule, slot, result } => self.launched(schedule, slot, result, out),
            Event::Inherited { stuck } => self.inherited_stuck = stuck,
            Event::Tick => {}
        }
        self.on_time(now, out);
    }

    /// When the engine wants a `Tick` at the latest, if nothing else happens.
    #[must_use]
    pub fn next_wake(&self, now: Now) -> Option<Moment> {
        let specs = self.runs.values().flat_map(|run| run.steps.iter().zip(&run.experiment.steps));
        let steps = specs.filter_map(|(step, spec)| match step.phase {
            StepPhase::Waiting { until } => Some(until),
            StepPhase::InForce { deadline, escalate_at } => {
                let closing = steps::closing_at(step, spec, deadline);
                Some(escalate_at.map_or(closing, |at| at.min(closing)))
            }
            StepPhase::Watching { deadline } | StepPhase::Closing { deadline } => Some(deadline),
            StepPhase::Draining { ask_at, .. } => ask_at,
            StepPhase::Reverting { retry_at, .. } => retry_at,
            _ => None,
        });
        let active = || self.runs.values().filter(|run| run.is_active());
        let phases = active().filter_map(|run| match run.phase {
            Phase::Recovering { deadline, .. } => Some(deadline),
            _ => None,
        });
        let probes = active().flat_map(|run| run.probes.iter().filter_map(|probe| probe.next_at));
        let sight = self
            .groups
            .iter()
            .filter(|(name, _)| active().any(|run| watch::is_under_watch(run) && run.watches(name)))
            .filter_map(|(_, group)| group.overdue_at());
        let slot = self.agenda.next_slot().filter(|_| !self.stopping && !self.on_call);
        // Only a run minds the moment at which a freeze begins.
        let freeze = active().next().and_then(|_| self.agenda.next_freeze(now.wall));
        let agenda = slot.into_iter().chain(freeze).min().map(|at| {
            now.mono.plus(Duration::try_from(at.duration_since(now.wall)).unwrap_or_default())
        });
        steps.chain(phases).chain(probes).chain(sight).chain(self.next_renewal).chain(agenda).min()
    }

    /// No fault is in force or about to be, those excepted whose revert is known to be stuck.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        // A stopped run whose undo is still on its way to the disk will not be injected.
        let coming =
            |run: &Run, phase| run.stop.is_none() && matches!(phase, StepPhase::Committing { .. });
        self.runs.values().all(|run| {
            run.steps.iter().all(|step| {
                step.phase.is_stuck() || !(step.phase.may_be_in_force() || coming(run, step.phase))
            })
        })
    }

    /// Every run is over (or stuck).
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.runs.values().all(|run| !run.is_active())
    }

    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    #[must_use]
    pub fn halted(&self) -> Option<&HaltView> {
        self.halted.as_ref()
    }

    /// Faults whose revert has failed repeatedly, former agents' included.
    #[must_use]
    pub fn stuck(&self) -> u32 {
        let own = self.runs.values().flat_map(|run| run.steps.iter());
        let own = own.filter(|step| step.phase.is_stuck()).count();
        self.inherited_stuck.saturating_add(u32::try_from(own).unwrap_or(u32::MAX))
    }

    /// What stands against everything just now.
    fn against_all(&self, now: Now) -> Option<Reason> {
        if let Some(halt) = &self.halted {
            return Some(Reason::Halted { since: halt.since, because: halt.reason.clone() });
        }
        if self.stopping {
            return Some(Reason::Stopping);
        }
        if let Some(reason) = self.frozen(now) {
            return Some(reason);
        }
        if let Some(error) = &self.journal {
            return Some(Reason::JournalUnavailable { error: error.clone() });
        }
        let faults = self.stuck();
        (faults > 0).then_some(Reason::CleanupStuck { faults })
    }

    fn frozen(&self, now: Now) -> Option<Reason> {
        let Frozen { name, until, because } = self.agenda.frozen(now)?;
        Some(Reason::Frozen { freeze: name, until, because })
    }

    fn knowledge(&self, now: Now) -> Knowledge<'_> {
        Knowledge {
            against_all: self.against_all(now),
            limits: &self.policy.limits,
            groups: &self.groups,
            headroom: self.fresh_headroom(now.mono),
        }
    }

    fn fresh_headroom(&self, now: Moment) -> Result<Headroom, String> {
        match &self.headroom {
            Some((at, result)) if now.since(*at) <= HEADROOM_STALE => result.clone(),
            Some((at, _)) => Err(format!("last read {} s ago", now.since(*at).as_secs())),
            None => Err("not read yet".to_owned()),
        }
    }

    fn reload(&mut self, policy: Policy, now: Now, out: &mut Effects) {
        let old = &self.policy;
        let same = (&old.groups, &old.limits, &old.network, old.leashed)
            == (&policy.groups, &policy.limits, &policy.network, policy.leashed);
        if !same {
            // What was admitted under other rules does not go on under these.
            self.stop_all(AbortedBy::Operator, &Reason::PolicyChanged, now, out);
        }
        let mut old = std::mem::take(&mut self.groups);
        for group in &policy.groups {
            let known = match old.remove(&group.name) {
                Some(known) => known.with_policy(group.clone()),
                None => Group::new(group.clone()),
            };
            self.groups.insert(group.name.clone(), known);
        }
        Arc::make_mut(&mut self.agenda).follow(&policy, now.wall);
        self.remember(out);
        self.policy = Arc::new(policy);
        // Whoever looks for the engine begins anew: what runs needs must be asked for again.
        for run in self.runs.values().filter(|run| run.is_active() && run.stop.is_none()) {
            if !matches!(run.phase, Phase::Resolving) {
                out.push(Effect::StartProbes { run: run.id, probes: run.experiment.probes.clone() });
            }
            let alive = run.steps.iter().flat_map(|step| step.alive.iter().copied());
            out.push(Effect::WatchExits(alive.collect()));
        }
    }

    fn log(
        &mut self,
        run: Uuid,
        step: Option<usize>,
        kind: &str,
        message: String,
        data: Value,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get_mut(&run) else { return };
        run.seq += 1;
        run.dirty = true;
        out.push(Effect::Log(EventView {
            seq: run.seq,
            at: now.wall,
            run: run.id,
            step: step.and_then(|step| u32::try_from(step).ok()),
            kind: kind.to_owned(),
            message,
            data,
        }));
    }
}

/// One batch for all that is to be undone, ahead of everything else: an abort waits for nothing.
fn reverts_first(effects: Effects) -> Effects {
    let mut reverts = Vec::new();
    let mut others = Vec::with_capacity(effects.len() + 1);
    for effect in effects {
        match effect {
            Effect::Revert(items) => reverts.extend(items),
            other => others.push(other),
        }
    }
    if !reverts.is_empty() {
        others.insert(0, Effect::Revert(reverts));
    }
    others
}

/// What a step may use up of the host at worst.
fn worst_case(spec: &crate::experiment::FaultSpec) -> WorstCase {
    use crate::experiment::{DelayEngine, FaultSpec};
    match spec {
        // The delay line's buffer, for each direction of each device at most this much in practice.
        FaultSpec::Latency(latency) if latency.engine != Some(DelayEngine::Netem) => {
            WorstCase { memory: 64 << 20, pids: 4, file_handles: 16 }
        }
        _ => WorstCase { memory: 1 << 20, pids: 0, file_handles: 4 },
    }
}
