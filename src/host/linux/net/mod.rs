//! Network faults on the real kernel, all over netlink.
//!
//! nftables classifies: a table of its own for each fault, in which nothing happens unless a set element
//! with a timeout, the kernel lease, is there. Caps are judged in the table; delayed packets get bits
//! of a mark, and `clsact` redirects the mark to a delay device. [`plan`] resolves and only reads,
//! [`install`] makes, [`restore`] puts back from data alone. INVARIANTS: only objects that vervet made,
//! or values whose old content was recorded, are changed; no other program is run.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    fault::undo::{Restore, Undo},
    host::{Ability, FaultId, HostError, NetCounters, NetPlan, NetSpec},
};

pub(super) mod diag;
mod install;
pub(crate) mod line;
mod link;
mod namespace;
mod netlink;
mod nft;
mod plan;
mod probe;
mod restore;
mod rules;
mod select;
mod shape;
mod tc;

use line::Line;
use probe::Probe;

/// Running delay lines by the name of their TAP device.
type Lines = Mutex<HashMap<String, Line>>;

/// How long a probe that found something missing is believed.
const DOUBT: Duration = Duration::from_secs(5);

/// The network half of the real host. What it remembers is only what lives in this process anyway:
/// delay lines and counts; everything else is in plans, undos and the kernel.
#[derive(Debug, Default)]
pub struct Net {
    lines: Lines,
    closed: Mutex<HashMap<FaultId, u64>>,
    probe: Mutex<Option<(Instant, Probe)>>,
}

impl Net {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves a network fault. Only reads. Leaves `local` empty.
    ///
    /// # Errors
    /// When the host lacks what the fault needs, or the traffic selector does not resolve.
    pub fn plan(&self, spec: &NetSpec, open: &[Undo]) -> Result<NetPlan, HostError> {
        plan::plan(&self.probe(), spec, open)
    }

    /// Installs a planned fault, its kernel lease running for `lease`.
    ///
    /// # Errors
    /// When a part of it failed; what was made is then undone by [`Self::restore`].
    pub fn install(&self, plan: &NetPlan, lease: Duration) -> Result<(), HostError> {
        let made = install::prepare(plan)?;
        if let Some((shape, seed)) = plan::shape(&plan.action) {
            for (number, (name, ends)) in (0..).zip(made) {
                // Each device draws numbers of its own.
                let seed = seed.wrapping_add(number);
                let line = Line::start(ends, shape, seed).map_err(|error| HostError::Kernel {
                    doing: "start a delay line".to_owned(),
                    error: error.to_string(),
                })?;
                locked(&self.lines).insert(name, line);
            }
        }
        let closed = install::arm(plan, lease)?;
        locked(&self.closed).insert(plan.fault.clone(), closed);
        Ok(())
    }

    /// Renews kernel leases; one result each, in order. A lease that has lapsed stays lapsed.
    pub fn renew(&self, leases: &[(&NetPlan, Duration)]) -> Vec<Result<(), HostError>> {
        install::renew(leases)
    }

    /// Reads back what is in force and what it did.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn counters(&self, plan: &NetPlan) -> Result<NetCounters, HostError> {
        let mut counters = install::counters(plan)?;
        counters.closed = locked(&self.closed).get(&plan.fault).copied().unwrap_or_default();
        let lines = locked(&self.lines);
        let names = plan.restores.iter().filter_map(|item| match item {
            Restore::Link { name, .. } => lines.get(name),
            _ => None,
        });
        let (mut frames, mut waited, mut any) = (0, Duration::ZERO, false);
        for line in names {
            let (delayed, time) = line.totals().delayed();
            frames += delayed;
            waited += time;
            any = true;
            counters.in_place &= line.is_running();
        }
        if any {
            counters.affected = frames;
        }
        if let Some(mean) = waited.as_micros().checked_div(frames.into()).filter(|_| frames > 0) {
            counters.mean_delay_us = u64::try_from(mean).ok();
        }
        Ok(counters)
    }

    /// Puts network things back; one result each, in order. Needs no memory of this process.
    pub fn restore(&self, items: &[Restore]) -> Vec<Result<(), HostError>> {
        for item in items {
            if let Restore::Table { name, .. } = item {
                locked(&self.closed).retain(|fault, _| plan::table(fault) != *name);
            }
        }
        restore::restore(items, &self.lines)
    }

    /// What this host can do of network faults. Changes nothing of the host.
    pub fn abilities(&self) -> Vec<Ability> {
        self.probe().abilities()
    }

    fn probe(&self) -> Probe {
        let mut cached = locked(&self.probe);
        match &*cached {
            Some((at, probe)) if probe.is_complete() || at.elapsed() < DOUBT => probe.clone(),
            _ => {
                let probe = Probe::run();
                *cached = Some((Instant::now(), probe.clone()));
                probe
            }
        }
    }
}

/// What the lock guards is whole after every statement, so a panic elsewhere does not spoil it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
