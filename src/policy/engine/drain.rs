//! A kill that lets its victims finish first: out of the rotation, then asked until they are idle.
//!
//! The charge is held since before the drain, and the watch stands over it: whoever else is lost
//! meanwhile stops the run, and what drains is put back.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::{
    config::ReadySource,
    experiment::{Drain, FaultSpec, Kill, Late, Step},
    host::HostError,
    policy::{
        limiter::{self, Touch},
        plan::Hit,
        reason::Reason,
        time::Now,
    },
};

use super::{Effect, Effects, Engine, run::StepPhase, steps::time_in_force};

/// Between two questions to the load balancer. Nobody is killed before two of them in a row found it
/// idle: a request may be on its way to the victim and not be counted yet.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// What the questions of a drain may take beyond its time, on the clock of the warden.
pub(super) const DRAIN_SLACK: Duration = Duration::from_secs(5);

/// What a step does before it kills.
pub(super) fn drain_of(step: &Step) -> Option<&Drain> {
    match &step.fault {
        FaultSpec::Kill(Kill { drain, .. }) => drain.as_ref(),
        _ => None,
    }
}

impl Engine {
    /// A server that drains gets nothing, whoever listens behind it by then: its group must go by the
    /// load balancer's own count, or the floor would hold on paper only.
    pub(super) fn drain_is_seen(&self, step: &Step, hit: Hit) -> Result<Hit, Reason> {
        let Some(Drain { pool, .. }) = drain_of(step) else { return Ok(hit) };
        let sees = |touch: &Touch| {
            let group = self.groups.get(&touch.group);
            let source = group.map(|group| &group.policy.ready);
            matches!(source, Some(ReadySource::Haproxy { pool: own, .. }) if own == pool)
        };
        match hit.touches.iter().find(|touch| !sees(touch)) {
            Some(Touch { group, .. }) => {
                let (group, backend) = (group.clone(), pool.backend.clone());
                Err(Reason::DrainUnseen { group, backend })
            }
            None => Ok(hit),
        }
    }

    pub(super) fn on_drained(
        &mut self,
        id: Uuid,
        step: usize,
        result: Result<u32, HostError>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let StepPhase::Draining { deadline, until, ask_at: None, idle } = run.steps[step].phase else {
            return;
        };
        let spec = run.spec(step).clone();
        let Some(drain) = drain_of(&spec) else { return };
        let stopped = run.stop.is_some();
        let state = &mut run.steps[step];
        let first = state.injected_at.is_none();
        if first && result != Err(HostError::Stopped) {
            // It gets nothing new from now on: that is what the budget counts from.
            state.injected_at = Some(now.wall);
            state.spared = true;
            for group in self.groups.values_mut() {
                group.injected(id, step, now.mono);
            }
            if let Ok(sessions) = &result {
                let message = format!("draining: {sessions} sessions left");
                let data = json!({ "sessions": sessions });
                self.log(id, Some(step), "draining", message, data, now, out);
            }
            self.save_again(id, now, out);
        }
        if stopped {
            return self.revert_step(id, step, now, out);
        }
        let sessions = match result {
            Ok(sessions) => sessions,
            Err(error) => return self.injection_failed(id, step, error.to_string(), now, out),
        };
        let over = until <= now.mono;
        // Draining took time, and things happen: the last question before the kill is the floor's.
        let Some(run) = self.runs.get(&id) else { return };
        if let Err(why) = limiter::still_holds(&self.groups, &run.steps[step].touches, now.mono) {
            self.limiter_stop(id, why, now, out);
            return self.revert_step(id, step, now, out);
        }
        if (sessions == 0 && idle) || (sessions > 0 && over && drain.late == Late::Kill) {
            let message = match sessions {
                0 => "drained: nothing left to do".to_owned(),
                left => format!("{left} sessions left after {:?}: killed all the same", drain.within),
            };
            let data = json!({ "sessions": sessions });
            self.log(id, Some(step), "drained", message, data, now, out);
            // From the kill on it lasts as long as it was given, and never beyond what was promised.
            let deadline = deadline.min(now.mono.plus(time_in_force(&spec)));
            let Some(run) = self.runs.get_mut(&id) else { return };
            let Some(prepared) = run.steps[step].prepared.clone() else { return };
            run.steps[step].phase = StepPhase::Injecting { deadline };
            run.steps[step].deadline = Some(super::preflight::wall(deadline, now));
            run.dirty = true;
            out.push(Effect::Inject { run: id, step, prepared, deadline });
        } else if sessions > 0 && over {
            let message = format!(
                "{sessions} sessions were left after {:?} of draining, so nothing was killed; a longer `within` \
                 gives them more time, `late = \"kill\"` cuts them off",
                drain.within
            );
            self.injection_failed(id, step, message, now, out);
        } else if let Some(run) = self.runs.get_mut(&id) {
            let ask_at = Some(now.mono.plus(ASK_EVERY));
            run.steps[step].phase = StepPhase::Draining { deadline, until, ask_at, idle: sessions == 0 };
        }
    }
}
