//! Schedules: what is done about a slot whose time has come. Every doubt ends in a skipped slot that
//! is told; a slot is never made up for, and no schedule begins a run beside another run.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use crate::policy::{
    calendar::{
        Agenda, Outcome, Pause, Slot,
        agenda::{Due, Planned},
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
        let waiting = |one: &Planned| one.next.is_none_or(|next| next > now.wall);
        // Of a copy only what changes is worth one.
        if self.stopping || self.on_call || self.agenda.planned().iter().all(waiting) {
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
        if let Some(why) = self.against_slot(&schedule, now) {
            return self.tell(Slot { schedule, at, outcome: Outcome::Skipped { why } }, out);
        }
        let planned = self.agenda.planned().iter().find(|one| one.schedule.name == schedule);
        let Some(Planned { schedule: spec, seed, .. }) = planned else { return };
        out.push(Effect::Launch {
            schedule: schedule.clone(),
            slot: at,
            experiment: spec.experiment.clone(),
            seed: slots::run_seed(*seed, at),
            leashed: spec.leashed,
        });
        self.launching = Some((schedule, at));
    }

    fn against_slot(&self, schedule: &str, now: Now) -> Option<String> {
        if let Some(why) = self.agenda.held_back(schedule) {
            return Some(why);
        }
        if let Some(reason) = self.against_all(now) {
            return Some(reason.to_string());
        }
        if let Some((other, _)) = &self.launching {
            return Some(format!("the schedule {other} was due at the same time"));
        }
        let run = self.runs.values().find(|run| run.is_active())?;
        Some(format!("run {} is active, and a schedule never runs beside another run", run.id))
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

    pub(super) fn remember(&mut self, out: &mut Effects) {
        out.push(Effect::Remember(Box::new(self.agenda.memory().clone())));
    }

    fn tell(&mut self, slot: Slot, out: &mut Effects) {
        Arc::make_mut(&mut self.agenda).note(slot.clone());
        out.push(Effect::Slot(slot));
    }
}
