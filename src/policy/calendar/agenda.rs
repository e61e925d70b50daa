//! The agenda: schedules and freezes with what is known of them at present. Which slots are due,
//! what stands against them, and what becomes of each is decided here and in the engine.
//!
//! A slot that was missed (the host asleep, no agent) is never made up for.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    config::{Freeze, Policy, Schedule},
    policy::time::Now,
};

use super::{
    freeze::{self, Frozen, Sight, Sights},
    slots,
};

/// A slot that is noticed later than this was missed.
pub const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// A clock that goes back by more than this was wrong before.
const CLOCK_WAS_WRONG: SignedDuration = SignedDuration::from_hours(24);

/// Past slots that are remembered, of all schedules together.
const KEPT_SLOTS: usize = 200;

/// When more than these were missed at once, it is these: nobody counts them one by one.
const MOST_MISSED: usize = 1_000;

/// What survives a restart of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Schedules that somebody paused.
    pub paused: BTreeMap<String, Pause>,
    /// Up to when the slots of each schedule have been dealt with.
    pub seen: BTreeMap<String, Timestamp>,
    /// What became of the latest slots, oldest first.
    pub slots: VecDeque<Slot>,
}

/// Somebody does not want a schedule to run for the time being.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub reason: String,
    pub by: String,
    pub since: Timestamp,
}

/// A slot that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub schedule: String,
    pub at: Timestamp,
    pub outcome: Outcome,
}

/// What became of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    Started {
        run: Uuid,
    },
    Skipped {
        why: String,
    },
    /// With the ones before it that were missed at the same time; it is the last of them.
    Missed {
        slots: u32,
    },
}

/// How a schedule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Its next slot is to come, or it has none.
    Waits,
    Due,
    /// What is remembered of it is of no use: it begins anew, from now on.
    Lost,
}

/// Slots of one schedule whose time has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub schedule: String,
    /// How many were missed, and the last of them.
    pub missed: Option<(u32, Timestamp)>,
    /// The one that is due now.
    pub now: Option<Timestamp>,
}

/// One schedule as it stands.
#[derive(Debug, Clone)]
pub struct Planned {
    pub schedule: Schedule,
    pub seed: u64,
    /// Whether it is paused or not.
    pub next: Option<Timestamp>,
}

/// Everything that is known of what will run and what will not.
#[derive(Debug, Clone)]
pub struct Agenda {
    freezes: Vec<Freeze>,
    sights: Sights,
    planned: Vec<Planned>,
    memory: Memory,
    host_seed: u64,
}

impl Agenda {
    /// `memory`: what a former agent left, or why it cannot be read.
    #[must_use]
    pub fn new(policy: &Policy, host_seed: u64, memory: Result<Memory, String>, now: Timestamp) -> Self {
        let mut agenda = Self {
            freezes: Vec::new(),
            sights: Sights::new(),
            planned: Vec::new(),
            memory: memory.clone().unwrap_or_default(),
            host_seed,
        };
        agenda.follow(policy, now);
        if let Err(error) = memory {
            // Nobody knows which ones were paused: so all are, until somebody resumes them.
            let reason = format!("what was paused before cannot be known: {error}");
            for schedule in &policy.schedules {
                let pause = Pause { reason: reason.clone(), by: "vervet".to_owned(), since: now };
                agenda.pause(&schedule.name, Some(pause));
            }
        }
        agenda
    }

    /// Goes by this policy from now on. What was seen of freezes that stay is kept.
    pub fn follow(&mut self, policy: &Policy, now: Timestamp) {
        let kept = |name: &String| {
            let find = |freezes: &[Freeze]| freezes.iter().find(|freeze| freeze.name == *name).cloned();
            find(&self.freezes).is_some_and(|freeze| find(&policy.freezes) == Some(freeze))
        };
        self.sights.retain(|name, _| kept(name));
        self.freezes.clone_from(&policy.freezes);
        let plan = |schedule: &Schedule| {
            let own = || slots::own_seed(self.host_seed, &schedule.name);
            Planned { schedule: schedule.clone(), seed: schedule.seed.unwrap_or_else(own), next: None }
        };
        let planned: Vec<Planned> = policy.schedules.iter().map(plan).collect();
        let old = std::mem::replace(&mut self.planned, planned);
        let planned = &self.planned;
        self.memory.seen.retain(|name, _| planned.iter().any(|one| one.schedule.name == *name));
        for at in 0..self.planned.len() {
            let name = self.planned[at].schedule.name.clone();
            // A schedule that is new, was off, or had other times, has missed nothing.
            let one = &self.planned[at];
            let before = old.iter().find(|before| before.schedule.name == name);
            let changed = before.is_some_and(|before| {
                (&before.schedule.rhythm, before.seed) != (&one.schedule.rhythm, one.seed)
            });
            if changed || !one.schedule.enabled {
                self.memory.seen.insert(name.clone(), now);
            }
            let since = *self.memory.seen.entry(name).or_insert(now);
            self.plan_next(at, since);
        }
    }

    fn plan_next(&mut self, at: usize, after: Timestamp) {
        let one = &mut self.planned[at];
        one.next = if one.schedule.enabled { slots::next(&one.schedule, one.seed, after) } else { None };
    }

    /// Whether [`Agenda::due`] has anything to say or to mend.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.planned.iter().any(|one| self.place(one, now) != Place::Waits)
    }

    fn place(&self, one: &Planned, now: Timestamp) -> Place {
        let seen = self.memory.seen.get(&one.schedule.name).copied().unwrap_or(now);
        let wrong = seen.duration_since(now) > CLOCK_WAS_WRONG;
        // A draw that finds nothing in years, or one from a clock that was wrong, is tried again.
        let old = now.duration_since(seen) > CLOCK_WAS_WRONG;
        match one.next {
            _ if !one.schedule.enabled => Place::Waits,
            _ if wrong => Place::Lost,
            None if old => Place::Lost,
            Some(next) if next <= now => Place::Due,
            _ => Place::Waits,
        }
    }

    /// The slots whose time has come. Each is told once.
    pub fn due(&mut self, now: Timestamp) -> Vec<Due> {
        let mut all = Vec::new();
        for at in 0..self.planned.len() {
            let place = self.place(&self.planned[at], now);
            if place == Place::Waits {
                continue;
            }
            let one = &self.planned[at];
            let name = one.schedule.name.clone();
            let seen = self.memory.seen.get(&name).copied().unwrap_or(now);
            if place == Place::Due {
                let recent = now.checked_sub(GRACE).unwrap_or(now).max(seen);
                let old = slots::slots(&one.schedule, one.seed, seen, recent, MOST_MISSED);
                let mut new = slots::slots(&one.schedule, one.seed, recent, now, MOST_MISSED);
                let on_time = new.pop();
                let last = new.last().or(old.last()).copied();
                let count = u32::try_from(old.len() + new.len()).unwrap_or(u32::MAX);
                let missed = last.map(|last| (count, last));
                all.push(Due { schedule: name.clone(), missed, now: on_time });
            }
            self.memory.seen.insert(name, now);
            self.plan_next(at, now);
        }
        all
    }

    /// Remembers what became of a slot.
    pub fn note(&mut self, slot: Slot) {
        self.memory.slots.push_back(slot);
        while self.memory.slots.len() > KEPT_SLOTS {
            self.memory.slots.pop_front();
        }
    }

    /// Pauses a schedule, or resumes it. `false`: there is none of this name.
    pub fn pause(&mut self, name: &str, pause: Option<Pause>) -> bool {
        if self.schedule(name).is_none() {
            return false;
        }
        match (pause, self.memory.paused.get(name)) {
            // The first reason stands, as with the halt.
            (Some(_), Some(_)) => {}
            (Some(pause), None) => drop(self.memory.paused.insert(name.to_owned(), pause)),
            (None, _) => drop(self.memory.paused.remove(name)),
        }
        true
    }

    /// Takes over what was seen of a freeze.
    pub fn see(&mut self, freeze: String, sight: Sight) {
        self.sights.insert(freeze, sight);
    }

    /// The freeze in force.
    #[must_use]
    pub fn frozen(&self, now: Now) -> Option<Frozen> {
        freeze::frozen(&self.freezes, &self.sights, now)
    }

    /// Whether this one is.
    #[must_use]
    pub fn frozen_by(&self, name: &str, now: Now) -> Option<Frozen> {
        let freeze = self.freezes.iter().find(|freeze| freeze.name == name)?;
        freeze::frozen(std::slice::from_ref(freeze), &self.sights, now)
    }

    /// Why no run of this schedule begins, as far as its owner's wishes go.
    #[must_use]
    pub fn held_back(&self, schedule: &str) -> Option<String> {
        let pause = self.memory.paused.get(schedule)?;
        Some(format!("paused by {} since {}: {}", pause.by, pause.since, pause.reason))
    }

    /// The next slot of all schedules, which may be over already.
    #[must_use]
    pub fn next_slot(&self) -> Option<Timestamp> {
        self.planned.iter().filter_map(|one| one.next).min()
    }

    /// When a freeze begins next by the clock alone.
    #[must_use]
    pub fn next_freeze(&self, now: Timestamp) -> Option<Timestamp> {
        freeze::next_begin(&self.freezes, &self.sights, now)
    }

    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    #[must_use]
    pub fn planned(&self) -> &[Planned] {
        &self.planned
    }

    /// The schedule of this name.
    #[must_use]
    pub fn schedule(&self, name: &str) -> Option<&Planned> {
        self.planned.iter().find(|one| one.schedule.name == name)
    }

    /// Every freeze, with the latest sight of what it goes by.
    pub fn freezes(&self) -> impl Iterator<Item = (&Freeze, Option<&Sight>)> {
        self.freezes.iter().map(|freeze| (freeze, self.sights.get(&freeze.name)))
    }
}
