//! The blast-radius limiter: admit, wait or refuse. Pure, and in the order in which a careful
//! operator would ask.
//!
//! It knows nothing of faults and kernels: a [`Proposal`] says what a step would take from whom.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::{
    config::{GroupPolicy, HeadroomLimits, Limits, ReadySource, Removal},
    experiment::{GroupName, Percent, ProcessSelector},
    host::{Headroom, Instance, Stock},
    policy::{
        budget::Room,
        capacity::{Charge, Group, Reading, needed},
        reason::{FloorBreach, Reason, as_ms},
        time::Moment,
    },
};

/// What a step would do, as far as capacity is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    pub run: Uuid,
    pub step: usize,
    /// The groups that the experiment declares.
    pub declared: Vec<GroupName>,
    /// Things hit: processes, or one per traffic selection.
    pub targets: u32,
    pub touches: Vec<Touch>,
    /// "killing", "cutting off", "slowing"
    pub verb: &'static str,
    /// What it may use up in the worst case.
    pub worst_case: WorstCase,
}

/// The hit on one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    pub group: GroupName,
    /// The instances that are hit, where they are known, each with those of its processes that are.
    pub hit: Vec<Instance>,
    /// They are all charged (as opposed to degraded).
    pub charged: bool,
    /// Charged beyond them.
    pub extra: u32,
}

impl Touch {
    /// Instances that this takes from the group.
    #[must_use]
    pub fn charge(&self) -> u32 {
        let hit = if self.charged { self.hit.len() } else { 0 };
        u32::try_from(hit).unwrap_or(u32::MAX).saturating_add(self.extra)
    }
}

/// Stocks of the host that a step may use up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorstCase {
    /// Bytes.
    pub memory: u64,
    pub pids: u64,
    pub file_handles: u64,
}

/// What the limiter says.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    Admit,
    /// Ask again at this moment; the reason is the one that stands against it now.
    Wait {
        until: Moment,
        why: Reason,
    },
    Refuse(Reason),
}

/// What the limiter knows.
#[derive(Debug)]
pub struct Knowledge<'a> {
    /// Reasons that stand against everything: halt, freeze, a broken journal.
    pub against_all: Option<Reason>,
    pub limits: &'a Limits,
    pub groups: &'a BTreeMap<GroupName, Group>,
    pub headroom: Result<Headroom, String>,
}

/// Decides on one step.
#[must_use]
pub fn decide(known: &Knowledge<'_>, proposal: &Proposal, now: Moment) -> Decision {
    match check(known, proposal, now) {
        Ok(None) => Decision::Admit,
        Ok(Some((until, why))) => Decision::Wait { until, why },
        Err(why) => Decision::Refuse(why),
    }
}

/// Asks once more, just before the injection of a step that is charged already: does the floor
/// still hold, and is it still in sight? Making an undo durable takes time, and things happen.
///
/// # Errors
/// What stands against it by now.
pub fn still_holds(
    groups: &BTreeMap<GroupName, Group>,
    touches: &[Touch],
    now: Moment,
) -> Result<(), Reason> {
    for touch in touches.iter().filter(|touch| touch.charge() > 0) {
        let Some(group) = groups.get(&touch.group) else {
            return Err(Reason::NoReading { group: touch.group.clone(), error: None });
        };
        sighted(group, now)?;
        // Its own charge is among those that come off: the same count as at admission.
        let ready = group.effective().map_or(0, |(left, _)| left);
        let floor = group.policy.floor;
        if ready < floor {
            return Err(Reason::BelowFloor { group: touch.group.clone(), ready, floor });
        }
    }
    Ok(())
}

type Verdict = Result<Option<(Moment, Reason)>, Reason>;

fn check(known: &Knowledge<'_>, proposal: &Proposal, now: Moment) -> Verdict {
    if let Some(reason) = &known.against_all {
        return Err(reason.clone());
    }
    declared(known, proposal)?;
    for touch in &proposal.touches {
        let group = group(known, &touch.group)?;
        sighted(group, now)?;
        floor(group, touch, proposal)?;
    }
    let mut wait: Option<(Moment, Reason)> = None;
    for touch in &proposal.touches {
        if let Some(later) = budget(known, group(known, &touch.group)?, touch, now)?
            && wait.as_ref().is_none_or(|(until, _)| *until < later.0)
        {
            wait = Some(later);
        }
    }
    headroom(&known.headroom, &known.limits.headroom, &proposal.worst_case)?;
    Ok(wait)
}

fn group<'a>(known: &'a Knowledge<'_>, name: &GroupName) -> Result<&'a Group, Reason> {
    known.groups.get(name).ok_or_else(|| Reason::UnknownGroup {
        group: name.clone(),
        known: known.groups.keys().cloned().collect(),
    })
}

fn declared(known: &Knowledge<'_>, proposal: &Proposal) -> Result<(), Reason> {
    for name in &proposal.declared {
        group(known, name)?;
    }
    let stray = proposal.touches.iter().find(|touch| !proposal.declared.contains(&touch.group));
    if let Some(touch) = stray {
        let instances = u32::try_from(touch.hit.len()).unwrap_or(u32::MAX).max(touch.charge());
        return Err(Reason::UndeclaredGroup { group: touch.group.clone(), instances });
    }
    let limit = known.limits.targets_per_step;
    if proposal.targets > limit {
        return Err(Reason::TooManyTargets { targets: proposal.targets, limit });
    }
    Ok(())
}

/// A fresh, complete reading, of a group that is not recovering from an abort.
fn sighted(group: &Group, now: Moment) -> Result<&Reading, Reason> {
    let name = || group.policy.name.clone();
    if let Some(error) = group.failure() {
        return Err(Reason::NoReading { group: name(), error: Some(error.to_owned()) });
    }
    let reading = group.reading().ok_or_else(|| Reason::NoReading { group: name(), error: None })?;
    let age = now.since(reading.taken_at);
    if age > group.policy.stale_after {
        let limit_ms = as_ms(group.policy.stale_after);
        return Err(Reason::StaleReading { group: name(), age_ms: as_ms(age), limit_ms });
    }
    if let Some(after) = group.blocked() {
        let needed = needed(&group.policy);
        return Err(Reason::GroupRecovering { group: name(), after: after.to_owned(), needed });
    }
    Ok(reading)
}

fn floor(group: &Group, touch: &Touch, proposal: &Proposal) -> Result<(), Reason> {
    let Some((effective, charged)) = group.effective() else {
        return Err(Reason::NoReading { group: group.policy.name.clone(), error: None });
    };
    let charge = touch.charge();
    let breach = effective < group.policy.floor.saturating_add(charge);
    // What charges nothing may still not begin in a group that is below its floor already.
    if !breach {
        return Ok(());
    }
    let ready = group.reading().map_or(0, |reading| reading.ready);
    if charge == 0 && ready < group.policy.floor {
        let (group, floor) = (group.policy.name.clone(), group.policy.floor);
        return Err(Reason::BelowFloor { group, ready, floor });
    }
    if charge == 0 {
        return Ok(());
    }
    Err(Reason::Floor(FloorBreach {
        group: group.policy.name.clone(),
        ready,
        floor: group.policy.floor,
        charged,
        charged_by: group.charges().iter().map(|charge| charge.run).collect(),
        charge,
        left: effective.saturating_sub(charge),
        verb: proposal.verb,
    }))
}

fn budget(known: &Knowledge<'_>, group: &Group, touch: &Touch, now: Moment) -> Verdict {
    let charge = touch.charge();
    if charge == 0 {
        return Ok(None);
    }
    let rule = group.policy.removal;
    let (name, every_ms) = (group.policy.name.clone(), as_ms(rule.every));
    match group.ledger.room(charge, rule, now) {
        Room::Now => Ok(None),
        Room::Never => {
            Err(Reason::BudgetTooSmall { group: name, charge, at_once: rule.at_once, every_ms })
        }
        Room::At(until) => {
            let wait = until.since(now);
            if wait > known.limits.wait {
                let limit_ms = as_ms(known.limits.wait);
                return Err(Reason::WaitTooLong { group: name, wait_ms: as_ms(wait), limit_ms });
            }
            let used = group.ledger.used(rule, now);
            let why = Reason::BudgetUsed { group: name, used, charge, at_once: rule.at_once, every_ms };
            Ok(Some((until, why)))
        }
    }
}

/// Checks what the host has left, after the worst that a step may use.
///
/// # Errors
/// The stock that is too low, or why it is not known.
pub fn headroom(
    headroom: &Result<Headroom, String>,
    limits: &HeadroomLimits,
    worst: &WorstCase,
) -> Result<(), Reason> {
    let headroom =
        headroom.as_ref().map_err(|error| Reason::HeadroomUnknown { error: error.clone() })?;
    let stocks = [
        ("bytes of memory", headroom.memory, worst.memory, limits.memory),
        ("pids", headroom.pids, worst.pids, limits.pids),
        ("file handles", headroom.file_handles, worst.file_handles, limits.file_handles),
        ("conntrack entries", headroom.conntrack, 0, limits.conntrack),
    ];
    for (what, stock, use_up, limit) in stocks {
        let Some(Stock { free, total }) = stock else { continue };
        let left = free.saturating_sub(use_up);
        if (left as f64) < total as f64 * limit.fraction() {
            return Err(Reason::Headroom { what, free: left, total, limit_percent: limit.get() });
        }
    }
    Ok(())
}

/// Gives [`decide`] plans that it must refuse, built from each group's own policy: a broken guard
/// is found by a drill, not by an outage.
///
/// # Errors
/// The plan that was admitted.
pub fn self_test(
    limits: &Limits,
    groups: &BTreeMap<GroupName, Group>,
    now: Moment,
) -> Result<(), String> {
    self_test_with(decide, limits, groups, now)
}

/// [`self_test`] of any decision function; tests hand in broken ones.
///
/// # Errors
/// The plan that was admitted.
pub fn self_test_with(
    decide: impl Fn(&Knowledge<'_>, &Proposal, Moment) -> Decision,
    limits: &Limits,
    groups: &BTreeMap<GroupName, Group>,
    now: Moment,
) -> Result<(), String> {
    let drill = drill_policy();
    for policy in groups.values().map(|group| &group.policy).chain([&drill]) {
        // The moment of the drill lies far enough from zero for a reading to be stale.
        let now = now.plus(policy.stale_after).plus(policy.settle).plus(policy.stale_after);
        for (what, group, proposal) in must_refuse(policy, now) {
            let groups = BTreeMap::from([(policy.name.clone(), group)]);
            let known = Knowledge {
                against_all: None,
                limits,
                groups: &groups,
                headroom: Ok(Headroom::default()),
            };
            if !matches!(decide(&known, &proposal, now), Decision::Refuse(_)) {
                return Err(format!("{what}, group {}", policy.name));
            }
        }
    }
    Ok(())
}

fn must_refuse(policy: &GroupPolicy, now: Moment) -> Vec<(&'static str, Group, Proposal)> {
    let with_reading = |ready: u32, taken_at: Moment| {
        let mut group = Group::new(policy.clone());
        group.observe(Ok(Reading { ready, total: ready, taken_at, members: None }), taken_at);
        group
    };
    let kill_one = Proposal {
        run: Uuid::nil(),
        step: 0,
        declared: vec![policy.name.clone()],
        targets: 1,
        touches: vec![Touch { group: policy.name.clone(), hit: Vec::new(), charged: true, extra: 1 }],
        verb: "killing",
        worst_case: WorstCase::default(),
    };
    let undeclared = Proposal { declared: Vec::new(), ..kill_one.clone() };
    let plenty = policy.floor.saturating_add(policy.removal.at_once).saturating_add(10);
    let stale_at = now.minus(policy.stale_after).minus(std::time::Duration::from_millis(1));
    let mut charged = with_reading(policy.floor.saturating_add(1), now);
    charged.charge(Charge {
        run: Uuid::nil(),
        step: 1,
        instances: BTreeMap::new(),
        anonymous: 1,
        made_at: now,
        in_force: true,
        lethal: true,
        going: [].into(),
    });
    vec![
        ("a floor breached by one", with_reading(policy.floor, now), kill_one.clone()),
        ("a floor breached by one that is still in flight", charged, kill_one.clone()),
        ("a stale reading", with_reading(plenty, stale_at), kill_one.clone()),
        ("no reading", Group::new(policy.clone()), kill_one),
        ("an undeclared group", with_reading(plenty, now), undeclared),
    ]
}

fn drill_policy() -> GroupPolicy {
    GroupPolicy {
        name: "drill".into(),
        floor: 3,
        expected: None,
        members: ProcessSelector::default(),
        ready: ReadySource::Process,
        poll: std::time::Duration::from_millis(250),
        stale_after: std::time::Duration::from_secs(2),
        settle: std::time::Duration::from_secs(5),
        removal: Removal { at_once: 1, every: std::time::Duration::from_secs(30) },
        monkey: false,
        spare: Vec::new(),
    }
}

/// Limits for those who have none of their own to test with.
#[must_use]
pub fn default_limits() -> Limits {
    let percent = |value| Percent::new(value).unwrap_or(Percent::ZERO);
    Limits {
        duration: std::time::Duration::from_mins(15),
        wait: std::time::Duration::from_mins(5),
        concurrent_runs: 1,
        targets_per_step: 10,
        headroom: HeadroomLimits {
            memory: percent(5.0),
            pids: percent(5.0),
            file_handles: percent(5.0),
            conntrack: percent(10.0),
        },
    }
}

#[cfg(test)]
mod tests;
