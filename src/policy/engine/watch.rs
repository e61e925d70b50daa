//! What stops runs: a group in trouble, lost sight, a probe that misses, a host that runs out.

use serde_json::json;
use uuid::Uuid;

use crate::{
    experiment::{Check, GroupName},
    host::{Headroom, ProcessId},
    policy::{
        capacity::Reading,
        limiter::{self, WorstCase},
        reason::Reason,
        time::{Moment, Now},
    },
    view::{AbortedBy, Verdict},
};

use super::{
    Effects, Engine,
    run::{Phase, Run, Stop},
};

/// Something of the run is charged or injected, or was and it is not over.
pub(super) fn is_under_watch(run: &Run) -> bool {
    match run.phase {
        Phase::Stage { .. } => run.began || run.steps.iter().any(|step| step.phase.is_admitted()),
        Phase::Recovering { .. } => true,
        _ => false,
    }
}

impl Engine {
    pub(super) fn on_reading(
        &mut self,
        name: &GroupName,
        result: Result<Reading, String>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if let Some(trouble) = group.observe(result, now.mono) {
            self.trouble(name, &trouble, now, out);
        }
    }

    pub(super) fn on_lost(
        &mut self,
        groups: &[GroupName],
        process: ProcessId,
        at: Moment,
        now: Now,
        out: &mut Effects,
    ) {
        for group in self.groups.values_mut() {
            group.ended(process);
        }
        for name in groups {
            let trouble = self.groups.get_mut(name).and_then(|group| group.lost(process, at));
            if let Some(trouble) = trouble {
                self.trouble(name, &trouble, now, out);
            }
        }
        self.target_gone(process, out);
    }

    pub(super) fn on_headroom(
        &mut self,
        headroom: Result<Headroom, String>,
        now: Now,
        out: &mut Effects,
    ) {
        let limits = &self.policy.limits.headroom;
        let breach = limiter::headroom(&headroom, limits, &WorstCase::default()).err();
        self.headroom = Some((now.mono, headroom));
        if let Some(why) = breach {
            for id in self.watched_runs(|_| true) {
                self.limiter_stop(id, why.clone(), now, out);
            }
        }
    }

    /// Stops every run that touches the group, and closes the group until it has recovered.
    fn trouble(&mut self, name: &GroupName, why: &Reason, now: Now, out: &mut Effects) {
        let runs = self.watched_runs(|run| run.watches(name));
        if runs.is_empty() {
            return;
        }
        if let Some(group) = self.groups.get_mut(name) {
            group.block(why.to_string());
        }
        for id in runs {
            let by = Some(AbortedBy::Limiter);
            self.stop(id, Stop { verdict: Verdict::Aborted, by, why: why.clone() }, now, out);
        }
    }

    fn watched_runs(&self, which: impl Fn(&Run) -> bool) -> Vec<Uuid> {
        let watched =
            self.runs.values().filter(|run| run.stop.is_none() && is_under_watch(run) && which(run));
        watched.map(|run| run.id).collect()
    }

    /// Everything that only time decides, for all runs.
    pub(super) fn on_time(&mut self, now: Now, out: &mut Effects) {
        let blind: Vec<(GroupName, Reason)> = self
            .groups
            .iter()
            .filter_map(|(name, group)| Some((name.clone(), group.overdue(now.mono)?)))
            .collect();
        for (name, why) in blind {
            self.trouble(&name, &why, now, out);
        }
        self.freeze_runs(now, out);
        let ids: Vec<(Uuid, usize)> = self.runs.values().map(|run| (run.id, run.steps.len())).collect();
        for (id, steps) in ids {
            for step in 0..steps {
                self.step_on_time(id, step, now, out);
            }
            self.probe_groups(id, now, out);
            self.recovery_on_time(id, now, out);
        }
        self.renew(now, out);
        self.schedules_on_time(now, out);
    }

    fn freeze_runs(&mut self, now: Now, out: &mut Effects) {
        let active = self.runs.values().filter(|run| run.is_active() && run.stop.is_none());
        let ids: Vec<Uuid> = active.map(|run| run.id).collect();
        if ids.is_empty() {
            return;
        }
        let Some(why) = self.frozen(now) else { return };
        for id in ids {
            let by = Some(AbortedBy::Freeze);
            self.stop(id, Stop { verdict: Verdict::Aborted, by, why: why.clone() }, now, out);
        }
    }

    /// Probes of a group's capacity need nobody else to look.
    fn probe_groups(&mut self, id: Uuid, now: Now, out: &mut Effects) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.is_active()) else { return };
        let mut due = Vec::new();
        for (index, (probe, state)) in run.experiment.probes.iter().zip(&mut run.probes).enumerate() {
            let Check::Group { group, ready } = &probe.check else { continue };
            if state.next_at.is_some_and(|at| at <= now.mono) {
                state.next_at = Some(now.mono.plus(probe.every));
                due.push((index, group.clone(), *ready));
            }
        }
        for (index, name, wanted) in due {
            let outcome = self.group_has(&name, wanted, now.mono);
            self.on_probe(id, index, outcome, now.mono, now, out);
        }
    }

    fn group_has(&self, name: &GroupName, wanted: u32, now: Moment) -> Result<(), String> {
        let group = self.groups.get(name).ok_or_else(|| format!("no group {name}"))?;
        let reading =
            group.reading().filter(|_| group.failure().is_none() && group.overdue(now).is_none());
        match reading {
            Some(reading) if reading.ready >= wanted => Ok(()),
            Some(reading) => Err(format!("group {name} has {} ready, not {wanted}", reading.ready)),
            None => Err(format!("group {name} has no fresh reading")),
        }
    }

    pub(super) fn on_probe(
        &mut self,
        id: Uuid,
        index: usize,
        outcome: Result<(), String>,
        at: Moment,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get_mut(&id).filter(|run| run.is_active() && run.stop.is_none())
        else {
            return;
        };
        let Some(state) = run.probes.get_mut(index) else { return };
        let probe = run.experiment.probes[index].clone();
        run.dirty = true;
        state.attempts += 1;
        match &outcome {
            Ok(()) => state.row = 0,
            Err(miss) => {
                state.misses += 1;
                state.row += 1;
                state.worst_row = state.worst_row.max(state.row);
                state.last_miss = Some(miss.clone());
            }
        }
        let (row, held) = (state.row, outcome.is_ok());
        if let Err(miss) = outcome {
            let data = json!({ "probe": probe.name, "row": row });
            self.log(id, None, "probe_missed", format!("{}: {miss}", probe.name), data, now, out);
        }
        let too_many = row > probe.tolerate;
        let Some(run) = self.runs.get_mut(&id) else { return };
        let state = &mut run.probes[index];
        match run.phase {
            Phase::Steadying if held => {
                state.before = Some(true);
                if run.probes.iter().all(|probe| probe.before == Some(true)) {
                    // Misses before the first step are not the experiment's.
                    for probe in &mut run.probes {
                        (probe.misses, probe.row, probe.worst_row) = (0, 0, 0);
                    }
                    self.begin_stage(id, 0, out);
                }
            }
            Phase::Steadying if too_many => {
                state.before = Some(false);
                let last = state.last_miss.clone();
                self.refuse(id, Reason::NotSteadyBefore { probe: probe.name, last }, now, out);
            }
            Phase::Steadying if !held => state.before = None,
            Phase::Recovering { .. } if !held => state.after = None,
            Phase::Stage { .. } if too_many => {
                let last = state.last_miss.clone().unwrap_or_default();
                let (misses, tolerate) = (row, probe.tolerate);
                let why = Reason::HypothesisFailed { probe: probe.name, misses, tolerate, last };
                self.stop(id, Stop { verdict: Verdict::Failed, by: None, why }, now, out);
            }
            Phase::Recovering { since, .. } if held && at >= since => {
                state.after = Some(true);
                self.advance(id, now, out);
            }
            _ => {}
        }
    }
}
