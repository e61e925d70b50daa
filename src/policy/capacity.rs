//! What is known of a capacity group: readings, charges, losses, and whether it can be trusted.
//!
//! Everything here leans one way: unknown, stale or incomplete capacity counts as none, and a
//! removal counts until a reading shows that it has been counted already.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use uuid::Uuid;

use crate::{
    config::GroupPolicy,
    host::{Member, ProcessId},
    policy::{
        budget::Ledger,
        reason::{Reason, as_ms},
        time::Moment,
    },
};

/// How much of a group is there, as its readiness source said at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub ready: u32,
    pub total: u32,
    /// When the look began: what happened later may be missing in it.
    pub taken_at: Moment,
    /// The instances one by one, where the source can tell them apart.
    pub members: Option<Vec<Member>>,
}

/// Instances taken from a group by one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    pub run: Uuid,
    pub step: usize,
    /// The instances, where they are known, each with those of its processes that are hit.
    pub instances: BTreeMap<ProcessId, Vec<ProcessId>>,
    /// Charged beyond those.
    pub anonymous: u32,
    pub made_at: Moment,
    /// Its step is not over yet.
    pub in_force: bool,
    /// Those that are hit are to die of it: their deaths are vervet's.
    pub lethal: bool,
    /// Processes that were told to end and have not yet, though the step is over.
    pub going: BTreeSet<ProcessId>,
}

impl Charge {
    /// Something of it is still to happen, or to be undone.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.in_force || !self.going.is_empty()
    }

    /// Something of this instance was told to end and has not yet.
    fn keeps(&self, instance: ProcessId) -> bool {
        let processes = self.instances.get(&instance);
        processes.is_some_and(|processes| processes.iter().any(|id| self.going.contains(id)))
    }

    /// The instances whose death is meant: a unit that loses another process than its main one
    /// lives on, and if it should not, that is a loss of its own.
    fn doomed(&self) -> impl Iterator<Item = ProcessId> {
        let instances = self.instances.iter().filter(|_| self.lethal);
        instances.filter(|(id, processes)| processes.contains(id)).map(|(id, _)| *id)
    }

    /// Instances charged in total.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.instances.len()).unwrap_or(u32::MAX).saturating_add(self.anonymous)
    }
}

/// A group as the limiter knows it.
#[derive(Debug, Clone)]
pub struct Group {
    pub policy: GroupPolicy,
    pub ledger: Ledger,
    reading: Option<Reading>,
    /// Why the last look failed, since it failed.
    failure: Option<String>,
    charges: Vec<Charge>,
    /// Instances that vervet sent to death, and that may still show up as lost.
    remembered: BTreeSet<ProcessId>,
    /// Deaths noticed at once. A look that began before one may still count the dead.
    dead: BTreeMap<ProcessId, Moment>,
    /// Deaths of others' doing that a counting source has yet to show.
    unseen_deaths: Vec<Moment>,
    block: Option<Block>,
}

/// Nothing is admitted until the group has been at its floor plus one for its settle time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    after: String,
    good_since: Option<Moment>,
}

impl Group {
    #[must_use]
    pub fn new(policy: GroupPolicy) -> Self {
        Self {
            policy,
            ledger: Ledger::default(),
            reading: None,
            failure: None,
            charges: Vec::new(),
            remembered: BTreeSet::new(),
            dead: BTreeMap::new(),
            unseen_deaths: Vec::new(),
            block: None,
        }
    }

    /// Takes over what a reload of the policy must not forget.
    #[must_use]
    pub fn with_policy(self, policy: GroupPolicy) -> Self {
        let same_instances = self.policy.members == policy.members && self.policy.ready == policy.ready;
        if same_instances {
            Self { policy, ..self }
        } else {
            // Other instances, or another way of counting them: nothing is known of those yet.
            Self { policy, reading: None, failure: None, ..self }
        }
    }

    #[must_use]
    pub fn reading(&self) -> Option<&Reading> {
        self.reading.as_ref()
    }

    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    #[must_use]
    pub fn charges(&self) -> &[Charge] {
        &self.charges
    }

    /// What blocks admission since an abort, if anything still does.
    #[must_use]
    pub fn blocked(&self) -> Option<&str> {
        self.block.as_ref().map(|block| block.after.as_str())
    }

    /// Ready instances that the limiter may still count, with those that charges take off.
    #[must_use]
    pub fn effective(&self) -> Option<(u32, u32)> {
        let reading = self.reading.as_ref()?;
        let charged = self.charges.iter().map(|charge| self.unseen(charge, reading)).sum::<u32>();
        Some((reading.ready.saturating_sub(charged), charged))
    }

    /// The part of a charge that the reading does not show yet.
    fn unseen(&self, charge: &Charge, reading: &Reading) -> u32 {
        let too_new = charge.made_at > reading.taken_at.minus(self.policy.settle);
        let anonymous = if too_new || charge.in_force { charge.anonymous } else { 0 };
        let still = |id: ProcessId| too_new || charge.in_force || charge.keeps(id);
        let instances = match &reading.members {
            Some(members) => members
                .iter()
                .map(|member| (member.ready, member.process.id))
                .filter(|(ready, id)| *ready && charge.instances.contains_key(id) && still(*id))
                .count(),
            None if too_new => charge.instances.len(),
            None => charge.instances.keys().filter(|id| charge.keeps(**id)).count(),
        };
        anonymous.saturating_add(u32::try_from(instances).unwrap_or(u32::MAX))
    }

    /// Takes instances from the group: before they are touched, and on its budget.
    pub fn charge(&mut self, charge: Charge) {
        self.ledger.record(charge.made_at, charge.count());
        self.remembered.extend(charge.doomed());
        self.charges.push(charge);
    }

    /// The step was injected just now: what it was charged counts from here.
    pub fn injected(&mut self, run: Uuid, step: usize, now: Moment) {
        for charge in &mut self.charges {
            if charge.run == run && charge.step == step {
                self.ledger.postpone(charge.made_at, charge.count(), now);
                charge.made_at = now;
            }
        }
    }

    /// The step is over: its fault is undone, or cannot be. `going` were told to end and have not
    /// yet; they are charged until they do, however long they take to tidy up.
    pub fn settle_charge(&mut self, run: Uuid, step: usize, going: &BTreeSet<ProcessId>) {
        for charge in &mut self.charges {
            if charge.run == run && charge.step == step {
                charge.in_force = false;
                let hit = charge.instances.values().flatten();
                charge.going = hit.copied().filter(|id| going.contains(id)).collect();
            }
        }
    }

    /// The step was charged and then never injected: nothing was removed after all. The budget
    /// keeps it: an attempt that is repeated must not be free.
    pub fn cancel_charge(&mut self, run: Uuid, step: usize) {
        let cancelled = self.charges.extract_if(.., |charge| (charge.run, charge.step) == (run, step));
        let spared: BTreeSet<ProcessId> =
            cancelled.flat_map(|charge| charge.instances.into_keys()).collect();
        let charged = |id: &ProcessId| is_charged(&self.charges, *id);
        self.remembered.retain(|id| !spared.contains(id) || charged(id));
    }

    /// A process that was told to end has ended, whether it stood for an instance or not.
    pub fn ended(&mut self, process: ProcessId) {
        for charge in &mut self.charges {
            charge.going.remove(&process);
        }
    }

    /// Something of a run is charged here and not yet over.
    #[must_use]
    pub fn is_charged_by(&self, run: Uuid) -> bool {
        self.charges.iter().any(|charge| charge.run == run)
    }

    /// A look at the group has succeeded or failed. What is wrong, if anything, for the watch.
    pub fn observe(&mut self, result: Result<Reading, String>, now: Moment) -> Option<Reason> {
        let reading = match result {
            Ok(reading) => self.without_the_dead(reading),
            Err(error) => {
                self.failure = Some(error.clone());
                self.lose_ground();
                return Some(Reason::SourceFailed { group: self.policy.name.clone(), error });
            }
        };
        self.failure = None;
        let trouble = self.compare(&reading, now);
        self.reading = Some(reading);
        self.forget(now);
        let trouble = trouble.or_else(|| self.below_floor());
        self.recover(now, trouble.is_none());
        trouble
    }

    /// A look takes time; who died while it lasted is not ready, whatever it found.
    fn without_the_dead(&self, mut reading: Reading) -> Reading {
        if let Some(members) = reading.members.as_mut() {
            members.retain(|member| !self.dead.contains_key(&member.process.id));
            let count = |ready: bool| members.iter().filter(|m| m.ready || !ready).count();
            reading.ready = reading.ready.min(u32::try_from(count(true)).unwrap_or(u32::MAX));
            reading.total = reading.total.min(u32::try_from(count(false)).unwrap_or(u32::MAX));
        } else {
            let missed = self.dead.values().filter(|at| **at >= reading.taken_at).count();
            let missed = u32::try_from(missed).unwrap_or(u32::MAX);
            reading.ready = reading.ready.saturating_sub(missed);
            reading.total = reading.total.saturating_sub(missed);
        }
        reading
    }

    /// A member died; noticed at once, between readings.
    pub fn lost(&mut self, id: ProcessId, at: Moment) -> Option<Reason> {
        self.dead.insert(id, at);
        self.ended(id);
        let ours = self.remembered.contains(&id);
        if let Some(members) = self.reading.as_mut().and_then(|reading| reading.members.as_mut()) {
            let place = members.iter().position(|member| member.process.id == id)?;
            let member = members.remove(place);
            if let Some(reading) = self.reading.as_mut() {
                reading.total = reading.total.saturating_sub(1);
                if member.ready {
                    reading.ready = reading.ready.saturating_sub(1);
                    if !ours {
                        self.ledger.record(at, 1);
                    }
                }
            }
        } else if !ours {
            // A counting source: the count will drop later, and must not be counted again then.
            self.ledger.record(at, 1);
            self.unseen_deaths.push(at);
            if let Some(reading) = self.reading.as_mut() {
                reading.ready = reading.ready.saturating_sub(1);
                reading.total = reading.total.saturating_sub(1);
            }
        }
        let trouble = self.below_floor();
        if trouble.is_some() {
            self.lose_ground();
        }
        trouble
    }

    /// Overdue means that nothing has been seen for longer than `stale_after`.
    #[must_use]
    pub fn overdue(&self, now: Moment) -> Option<Reason> {
        let age = now.since(self.reading.as_ref()?.taken_at);
        (age > self.policy.stale_after).then(|| Reason::ReadingOverdue {
            group: self.policy.name.clone(),
            age_ms: as_ms(age),
            limit_ms: as_ms(self.policy.stale_after),
        })
    }

    /// When [`Group::overdue`] will become true if nothing is seen until then.
    #[must_use]
    pub fn overdue_at(&self) -> Option<Moment> {
        let reading = self.reading.as_ref()?;
        Some(reading.taken_at.plus(self.policy.stale_after).plus(Duration::from_nanos(1)))
    }

    /// An abort happened here: admit nothing until the group has recovered.
    pub fn block(&mut self, after: String) {
        self.block = Some(Block { after, good_since: None });
    }

    /// Ready instances less those that are certainly about to go: charged, known, and still ready.
    /// A counting source cannot tell which of its count are those, so there the count stands.
    #[must_use]
    pub fn certain(&self) -> Option<u32> {
        let reading = self.reading.as_ref()?;
        let Some(members) = &reading.members else { return Some(reading.ready) };
        let charged = |id: &ProcessId| {
            self.charges.iter().any(|charge| charge.is_open() && charge.instances.contains_key(id))
        };
        let going = members.iter().filter(|member| member.ready && charged(&member.process.id)).count();
        Some(reading.ready.saturating_sub(u32::try_from(going).unwrap_or(u32::MAX)))
    }

    fn below_floor(&self) -> Option<Reason> {
        let ready = self.certain()?;
        (ready < self.policy.floor).then(|| Reason::BelowFloor {
            group: self.policy.name.clone(),
            ready,
            floor: self.policy.floor,
        })
    }

    /// Counts losses that vervet did not cause, and looks for a reading that is too bad to be true.
    fn compare(&mut self, new: &Reading, now: Moment) -> Option<Reason> {
        let old = self.reading.take()?;
        let (foreign, vanished) = if let (Some(before), Some(after)) = (&old.members, &new.members) {
            self.lost_members(before, after)
        } else {
            let explained = self.explained(&old, new);
            let foreign = old.ready.saturating_sub(new.ready).saturating_sub(explained);
            (foreign, old.total.saturating_sub(new.total).saturating_sub(explained))
        };
        self.ledger.record(now, foreign);
        let group = || self.policy.name.clone();
        // What a fault in force explains is no sign of a broken check.
        if old.ready >= 2 && new.ready == 0 && new.total > 0 && foreign > 0 {
            Some(Reason::AllUnready { group: group(), from: old.ready })
        } else if vanished >= 2 && vanished.saturating_mul(2) >= old.total {
            Some(Reason::InventoryShrank { group: group(), from: old.total, to: new.total })
        } else {
            None
        }
    }

    /// Members that stopped being ready, and members that are gone, without vervet's doing.
    fn lost_members(&self, before: &[Member], after: &[Member]) -> (u32, u32) {
        let (mut foreign, mut vanished) = (0, 0);
        let charged = |id: &ProcessId| is_charged(&self.charges, *id);
        for member in before.iter().filter(|member| !self.remembered.contains(&member.process.id)) {
            match after.iter().find(|other| other.process.id == member.process.id) {
                None => {
                    vanished += 1;
                    foreign += u32::from(member.ready);
                }
                // What a fault in force makes unready was charged when it began.
                Some(_) if charged(&member.process.id) => {}
                Some(other) => foreign += u32::from(member.ready && !other.ready),
            }
        }
        (foreign, vanished)
    }

    /// How much of a drop between two counts vervet's own charges and noticed deaths explain.
    fn explained(&mut self, old: &Reading, new: &Reading) -> u32 {
        let settle = self.policy.settle;
        let recent = |made_at: Moment| new.taken_at < made_at.plus(settle).plus(settle);
        let charged: u32 =
            self.charges.iter().filter(|charge| recent(charge.made_at)).map(Charge::count).sum();
        let deaths = self.unseen_deaths.len();
        if new.ready < old.ready {
            self.unseen_deaths.clear();
        }
        charged.saturating_add(u32::try_from(deaths).unwrap_or(u32::MAX))
    }

    /// Lets go of charges that are over and visible, and of what no longer counts.
    fn forget(&mut self, now: Moment) {
        let Some(reading) = self.reading.as_ref() else { return };
        let settle = self.policy.settle;
        self.charges
            .retain(|charge| charge.is_open() || charge.made_at > reading.taken_at.minus(settle));
        let patience = settle.saturating_add(self.policy.stale_after).saturating_mul(2);
        self.dead.retain(|_, at| now < at.plus(patience));
        self.unseen_deaths.retain(|at| now < at.plus(patience));
        let still_there = |id: &ProcessId| match &reading.members {
            Some(members) => members.iter().any(|member| member.process.id == *id),
            None => false,
        };
        let charged = |id: &ProcessId| is_charged(&self.charges, *id);
        self.remembered.retain(|id| charged(id) || still_there(id));
        self.ledger.trim(self.policy.removal, now);
    }

    fn lose_ground(&mut self) {
        if let Some(block) = self.block.as_mut() {
            block.good_since = None;
        }
    }

    fn recover(&mut self, now: Moment, sound: bool) {
        let (Some(block), Some(reading)) = (self.block.as_mut(), self.reading.as_ref()) else { return };
        if !sound || reading.ready < needed(&self.policy) {
            block.good_since = None;
        } else {
            let since = *block.good_since.get_or_insert(reading.taken_at);
            if now.since(since) >= self.policy.settle {
                self.block = None;
            }
        }
    }
}

fn is_charged(charges: &[Charge], instance: ProcessId) -> bool {
    charges.iter().any(|charge| charge.instances.contains_key(&instance))
}

/// Ready instances from which a blocked group is open again.
#[must_use]
pub fn needed(policy: &GroupPolicy) -> u32 {
    policy.floor.saturating_add(1)
}
