//! Schedules: what is done about a slot whose time has come. Every doubt ends in a skipped slot that
//! is told; a slot is never made up for, and no schedule begins a run beside another run.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use crate::policy::{
    calendar::{
        Agenda, Memory, Outcome, Pause, Slot,
        agenda::{Due, GRACE, Planned},
        slots,
    },
    time::Now,
};

use super::{Effect, Effects, Engine};

impl Engine {
    /// What will run and what will not.
    #[must_use]
    pub fn agenda(&self) -> &Arc<Agenda> {
        &self.agenda
    }

    /// From now on no schedule begins a run, nor is a slot of it told: they wait for the agent that
    /// stays.
    pub fn begin_nothing_by_itself(&mut self) {
        self.on_call = true;
    }

    pub(super) fn schedules_on_time(&mut self, now: Now, out: &mut Effects) {
        // Of a copy only what changes is worth one.
        if self.stopping || self.on_call || !self.agenda.is_due(now.wall) {
            return;
        }
        for Due { schedule, missed, now: slot } in Arc::make_mut(&mut self.agenda).due(now.wall) {
            if let Some((slots, at)) = missed {
                let outcome = Outcome::Missed { slots };
                self.tell(Slot { schedule: schedule.clone(), at, outcome }, out);
            }
            if let Some(slot) = slot {
                self.slot(schedule, slot, now, out);
            }
        }
        self.remember(out);
    }

    fn slot(&mut self, schedule: String, at: Timestamp, now: Now, out: &mut Effects) {
        let other = self.launching.as_ref();
        let other = other.map(|(other, _)| format!("the schedule {other} was due at the same time"));
        let spec = match other.map_or_else(|| self.may_begin(&schedule, at, now), Err) {
            Ok(spec) => spec,
            Err(why) => return self.tell(Slot { schedule, at, outcome: Outcome::Skipped { why } }, out),
        };
        out.push(Effect::Launch {
            schedule: schedule.clone(),
            slot: at,
            experiment: spec.schedule.experiment.clone(),
            seed: slots::run_seed(spec.seed, at),
        });
        self.launching = Some((schedule, at));
    }

    /// The schedule, if its run may begin just now. It is asked when the slot is due and again when
    /// the experiment was read: meanwhile things happen.
    ///
    /// # Errors
    /// What stands against it, in words for people.
    pub fn may_begin(&self, schedule: &str, at: Timestamp, now: Now) -> Result<&Planned, String> {
        let planned = self.agenda.schedule(schedule).filter(|one| one.schedule.enabled);
        let planned = planned.ok_or("the policy has no such schedule any more")?;
        if now.wall.duration_since(at) > GRACE {
            return Err("its time was over before it could begin".to_owned());
        }
        if planned.schedule.window().is_some_and(|window| !window.is_open(now.wall)) {
            return Err("its window closed before it could begin".to_owned());
        }
        if let Some(why) = self.agenda.held_back(schedule) {
            return Err(why);
        }
        if let Some(reason) = self.against_all(now) {
            return Err(reason.to_string());
        }
        match self.runs.values().find(|run| run.is_active()) {
            Some(run) => {
                Err(format!("run {} is active, and a schedule never runs beside another run", run.id))
            }
            None => Ok(planned),
        }
    }

    pub(super) fn launched(
        &mut self,
        schedule: String,
        at: Timestamp,
        result: Result<Uuid, String>,
        out: &mut Effects,
    ) {
        self.launching = None;
        let outcome = match result {
            Ok(run) => Outcome::Started { run },
            Err(why) => Outcome::Skipped { why },
        };
        self.tell(Slot { schedule, at, outcome }, out);
        self.remember(out);
    }

    pub(super) fn pause_schedule(&mut self, schedule: &str, pause: Option<Pause>, out: &mut Effects) {
        Arc::make_mut(&mut self.agenda).pause(schedule, pause);
        self.remember(out);
    }

    /// What an agent after this one must know of schedules, if it is this one's to say.
    #[must_use]
    pub fn memory(&self) -> Option<&Memory> {
        (!self.on_call).then(|| self.agenda.memory())
    }

    pub(super) fn remember(&mut self, out: &mut Effects) {
        out.extend(self.memory().map(|memory| Effect::Remember(Box::new(memory.clone()))));
    }

    fn tell(&mut self, slot: Slot, out: &mut Effects) {
        Arc::make_mut(&mut self.agenda).note(slot.clone());
        out.push(Effect::Slot(slot));
    }
}
