//! `pause`: processes stop where they are; single ones by a signal, whole units by their freezer.
//!
//! Only what was going is stopped, so that the undo never continues what somebody else stopped.

use super::undo::Restore;
use crate::{
    experiment::Signal,
    fault::{Effect, Injection},
    host::{Candidate, Delivery, Host, HostError, ProcessState, UnitCandidate},
};

/// What continues the processes.
///
/// # Errors
/// When one of them is stopped already, or gone.
pub fn prepare_processes(host: &dyn Host, processes: &[Candidate]) -> Result<Vec<Restore>, HostError> {
    let one = |process: &Candidate| {
        let named = || format!("process {} ({})", process.id.pid, process.name);
        match host.state(process.id)? {
            ProcessState::Running => Ok(Restore::Continue { process: process.id }),
            ProcessState::Stopped => Err(HostError::Unavailable(format!(
                "{} was stopped by somebody else; vervet would have to continue it at the end",
                named()
            ))),
            ProcessState::Gone => Err(HostError::NotFound(format!("{} has ended", named()))),
        }
    };
    processes.iter().map(one).collect()
}

/// What thaws the units.
///
/// # Errors
/// When one of them is frozen already, or has changed since it was resolved.
pub fn prepare_units(host: &dyn Host, units: &[UnitCandidate]) -> Result<Vec<Restore>, HostError> {
    let boot = host.boot()?;
    let one = |unit: &UnitCandidate| {
        let freezer = host.freezer(&unit.cgroup)?;
        let Some(freezer) = freezer.filter(|freezer| freezer.id.to_string() == unit.instance) else {
            return Err(HostError::NotFound(format!("{} has changed since the plan", unit.name)));
        };
        if freezer.asked || freezer.frozen {
            return Err(HostError::Unavailable(format!(
                "{} was frozen by somebody else; vervet would have to thaw it at the end",
                unit.name
            )));
        }
        Ok(Restore::Thaw { cgroup: unit.cgroup.clone(), id: freezer.id, boot: boot.clone() })
    };
    units.iter().map(one).collect()
}

/// Stops every process, each by its own descriptor; those that are gone excepted.
///
/// # Errors
/// At the first that the kernel does not let vervet signal; the ones before it are stopped.
pub fn inject_processes(host: &dyn Host, processes: &[Candidate]) -> Result<Injection, HostError> {
    super::kill::inject(host, processes, Signal::STOP)
}

/// Freezes every unit.
///
/// # Errors
/// At the first that cannot be frozen; the ones before it are.
pub fn inject_units(host: &dyn Host, restores: &[Restore]) -> Result<Injection, HostError> {
    for restore in restores {
        if let Restore::Thaw { cgroup, id, .. } = restore {
            host.freeze(cgroup, *id)?;
        }
    }
    Ok(Injection::default())
}

/// Proven when at least one target has stopped and none still runs.
///
/// # Errors
/// When the process table cannot be read.
pub fn measure_processes(
    host: &dyn Host,
    processes: &[Candidate],
    injection: &Injection,
) -> Result<Effect, HostError> {
    let (mut stopped, mut going, mut gone) = (0_u32, 0_u32, 0_u32);
    for process in processes {
        let sent = injection
            .deliveries
            .iter()
            .any(|(id, delivery)| *id == process.id && *delivery != Delivery::Gone);
        match host.state(process.id)? {
            ProcessState::Stopped if sent => stopped += 1,
            ProcessState::Gone => gone += 1,
            _ => going += 1,
        }
    }
    Ok(effect("process", "stopped", stopped, going, gone))
}

/// Proven when at least one unit is frozen, as the kernel says, and none still runs.
///
/// # Errors
/// When a freezer cannot be read.
pub fn measure_units(host: &dyn Host, units: &[UnitCandidate]) -> Result<Effect, HostError> {
    let (mut frozen, mut going, mut gone) = (0_u32, 0_u32, 0_u32);
    for unit in units {
        match host.freezer(&unit.cgroup)? {
            Some(freezer) if freezer.id.to_string() != unit.instance => gone += 1,
            Some(freezer) if freezer.frozen => frozen += 1,
            Some(_) => going += 1,
            None => gone += 1,
        }
    }
    Ok(effect("unit", "frozen", frozen, going, gone))
}

fn effect(what: &str, how: &str, paused: u32, going: u32, gone: u32) -> Effect {
    let several = match (paused, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    let mut parts = vec![format!("{paused} {what}{several} {how}")];
    if going > 0 {
        parts.push(format!("{going} still going"));
    }
    if gone > 0 {
        parts.push(format!("{gone} gone since the plan"));
    }
    Effect { proven: paused > 0 && going == 0, summary: parts.join(", "), counters: None }
}
