//! `unit`: the service manager stops or restarts whole units; and how units are found at all.
//!
//! Only queues jobs: systemd carries them out in its own time, and nothing here waits for it. What
//! undoes a stop is a start, unless somebody else was faster.

use std::collections::BTreeSet;

use super::undo::Restore;
use crate::{
    config::GroupPolicy,
    experiment::{ProcessSelector, UnitAction},
    fault::{Effect, Injection},
    host::{Candidate, Host, HostError, UnitCandidate, UnitDetail, UnitVerb},
};

/// Units that a dependency may lead to before it counts as everything.
const MOST_DEPENDENTS: usize = 500;

/// How whole units are hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By the service manager.
    Job,
    /// By the freezer of their cgroups.
    Freezer,
}

/// The units whose processes the selector matches, by name, with all that runs in them.
///
/// # Errors
/// When the process table, the freezer or the service manager cannot be read.
pub fn find(
    host: &dyn Host,
    groups: &[GroupPolicy],
    select: &ProcessSelector,
    how: How,
) -> Result<Vec<UnitCandidate>, HostError> {
    let matching = host.find(select, groups)?;
    let names: BTreeSet<String> = matching.into_iter().filter_map(|process| process.unit).collect();
    let mut units = Vec::with_capacity(names.len());
    for name in names {
        let inside = ProcessSelector { unit: Some(name.clone()), ..ProcessSelector::default() };
        let processes = host.find(&inside, groups)?;
        let cgroups: BTreeSet<&str> =
            processes.iter().filter_map(|process| cgroup_of(process, &name)).collect();
        let Some(cgroup) = cgroups.first().map(|path| (*path).to_owned()) else { continue };
        let alone = cgroups.len() == 1;
        let unit = UnitCandidate { name, instance: String::new(), cgroup, processes, against: None };
        units.extend(match how {
            How::Job => for_job(host, unit)?,
            How::Freezer => for_freezer(host, unit, alone)?,
        });
    }
    Ok(units)
}

/// The part of a process's cgroup that is the unit's own.
fn cgroup_of<'a>(process: &'a Candidate, unit: &str) -> Option<&'a str> {
    let path = &process.cgroup;
    let mut end = 0;
    for part in path.split('/') {
        end += part.len();
        // systemd puts a `_` before names that the kernel could take for its own.
        if part == unit || part.strip_prefix('_') == Some(unit) {
            return path.get(..end);
        }
        end += 1;
    }
    None
}

fn for_freezer(
    host: &dyn Host,
    mut unit: UnitCandidate,
    alone: bool,
) -> Result<Option<UnitCandidate>, HostError> {
    let Some(freezer) = host.freezer(&unit.cgroup)? else { return Ok(None) };
    unit.instance = freezer.id.to_string();
    if !alone {
        unit.against = Some("its processes are in more than one cgroup".to_owned());
    }
    Ok(Some(unit))
}

fn for_job(host: &dyn Host, mut unit: UnitCandidate) -> Result<Option<UnitCandidate>, HostError> {
    let Some(detail) = host.unit(&unit.name)? else { return Ok(None) };
    if !detail.unit.is_up() {
        return Ok(None);
    }
    unit.instance.clone_from(&detail.unit.invocation);
    unit.against = unfit(&detail);
    if unit.against.is_none() {
        unit.against = others_too(host, &detail)?;
    }
    Ok(Some(unit))
}

/// What makes that a stop of this unit could not be undone, or not be made.
fn unfit(detail: &UnitDetail) -> Option<String> {
    let why = if !detail.unit.name.ends_with(".service") {
        "only services can be stopped and started again"
    } else if detail.unit.load != "loaded" {
        "its file is masked, missing or broken, so systemd could not start it again"
    } else if detail.transient {
        "a program made it and no file, so systemd could not start it again"
    } else if !detail.can_stop {
        "systemd is told not to stop it on request"
    } else if !detail.can_start {
        "systemd is told not to start it on request"
    } else if detail.job {
        "systemd has a job for it already"
    } else if detail.unit.invocation.is_empty() {
        "systemd does not say which start of it this is"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// Whether systemd would stop other units that are active along with it, however far away.
fn others_too(host: &dyn Host, detail: &UnitDetail) -> Result<Option<String>, HostError> {
    let mut seen: BTreeSet<String> = [detail.unit.name.clone()].into();
    let mut open = detail.stopped_with.clone();
    while let Some(name) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        if seen.len() > MOST_DEPENDENTS {
            return Ok(Some("too many other units depend on it to look at".to_owned()));
        }
        let Some(other) = host.unit(&name)? else { continue };
        if other.unit.is_up() {
            return Ok(Some(format!(
                "systemd would stop {name} with it, which depends on it (`systemctl list-dependencies \
                 --reverse {}`)",
                detail.unit.name
            )));
        }
        open.extend(other.stopped_with);
    }
    Ok(None)
}

/// What starts the units again.
///
/// # Errors
/// When one of them has changed since it was resolved, or the boot cannot be told.
pub fn prepare(host: &dyn Host, units: &[UnitCandidate]) -> Result<Vec<Restore>, HostError> {
    let boot = host.boot()?;
    let one = |unit: &UnitCandidate| {
        same(host, unit)?;
        Ok(Restore::Start {
            unit: unit.name.clone(),
            invocation: unit.instance.clone(),
            boot: boot.clone(),
        })
    };
    units.iter().map(one).collect()
}

/// Queues the jobs.
///
/// # Errors
/// At the first unit that has changed since the plan, or whose job systemd does not take.
pub fn inject(
    host: &dyn Host,
    units: &[UnitCandidate],
    action: UnitAction,
) -> Result<Injection, HostError> {
    let verb = match action {
        UnitAction::Stop => UnitVerb::Stop,
        UnitAction::Restart => UnitVerb::Restart,
    };
    for unit in units {
        same(host, unit)?;
        host.unit_job(&unit.name, verb)?;
    }
    Ok(Injection::default())
}

/// The unit is up, and it is the start of it that was planned.
fn same(host: &dyn Host, unit: &UnitCandidate) -> Result<(), HostError> {
    let now = host.unit(&unit.name)?;
    match now.filter(|now| now.unit.is_up() && now.unit.invocation == unit.instance) {
        Some(_) => Ok(()),
        None => Err(HostError::NotFound(format!("{} has changed since the plan", unit.name))),
    }
}

/// Proven when every unit is inactive or, after a restart, up in another start than before.
///
/// # Errors
/// When the service manager does not answer.
pub fn measure(
    host: &dyn Host,
    units: &[UnitCandidate],
    action: UnitAction,
) -> Result<Effect, HostError> {
    let mut states = Vec::with_capacity(units.len());
    let mut proven = !units.is_empty();
    for unit in units {
        let now = host.unit(&unit.name)?;
        let (active, invocation) = match &now {
            Some(now) => (now.unit.active.as_str(), now.unit.invocation.as_str()),
            None => ("inactive", ""),
        };
        let again = !invocation.is_empty() && invocation != unit.instance;
        proven &= match action {
            UnitAction::Stop => matches!(active, "inactive" | "failed"),
            UnitAction::Restart => again,
        };
        let once_more = match (action, again) {
            (UnitAction::Stop, true) => ", started by others",
            (UnitAction::Restart, true) => ", started anew",
            (UnitAction::Restart, false) => ", not started anew yet",
            (UnitAction::Stop, false) => "",
        };
        states.push(format!("{} is {active}{once_more}", unit.name));
    }
    Ok(Effect { proven, summary: states.join(", "), counters: None })
}
