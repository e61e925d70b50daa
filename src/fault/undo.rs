//! What undoes a fault: plain data that suffices after a crash, on another process, and twice.
//!
//! An [`Undo`] is durable before its fault is injected. [`revert`] is a function of this data and
//! of the undos that stay in force beside it: an object that another open undo still names (a
//! shared `clsact`, a sysctl that two faults need) is left to the last of them.

use serde::{Deserialize, Serialize};

use crate::host::{FaultId, Host, ProcessId, haproxy::Pool};

/// All that puts back what one fault changed, in the order in which it is put back.
///
/// The first items end the effect (the nftables table), the rest clean up after it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    pub restores: Vec<Restore>,
}

/// One thing to put back. Names and old contents only; no handle of a live process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "restore", rename_all = "snake_case")]
pub enum Restore {
    /// Delete the table of family `inet`: its chains, sets and rules go with it at once.
    Table { netns: Option<String>, name: String },
    /// Delete the filter that vervet put on the egress of this device, found by `chain`,
    /// priority and the device that it redirects to.
    Filter { netns: Option<String>, device: String, index: u32, priority: u16, to: String },
    /// Delete the device that vervet made. `group` marks it as vervet's.
    Link { netns: Option<String>, name: String },
    /// Delete the `clsact` that vervet made, unless somebody else's filter is on it by now.
    Clsact { netns: Option<String>, device: String, index: u32 },
    /// Write the old content back, unless it is no longer what vervet wrote.
    Sysctl { netns: Option<String>, path: String, old: String, new: String },
    /// Continue a stopped process.
    Continue { process: ProcessId },
    /// Let this cgroup go on: it was not frozen before. `id` tells it from a later one of its path.
    Thaw { cgroup: String, id: u64, boot: String },
    /// Start a unit that was active in this invocation of it, unless it is active again, was
    /// started by others since, or the host has been booted since.
    Start { unit: String, invocation: String, boot: String },
    /// Let a load balancer's server work again, unless it does not drain any more: somebody put it
    /// back, or a new process of the balancer never knew of it.
    Undrain { pool: Pool, server: String },
}

impl Restore {
    /// Ends the effect of a fault, as opposed to cleaning up after it.
    #[must_use]
    pub fn cuts(&self) -> bool {
        matches!(self, Self::Table { .. } | Self::Continue { .. } | Self::Thaw { .. })
    }

    /// May be named by several undos at once; the last one to go puts it back.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Clsact { .. } | Self::Sysctl { .. } | Self::Undrain { .. })
    }
}

/// Reverts `undos` while `kept` stay in force; one result each, in order, with every error.
///
/// All effects are ended first, across all undos and in one call to the host, then everything else
/// is cleaned up: an abort must not wait behind somebody's tidying. A filter that could not be
/// removed keeps the device that it leads to and the qdisc that it is on, for the next attempt: a
/// filter that leads nowhere eats the packets that it matches.
pub fn revert(
    host: &dyn Host,
    undos: &[(FaultId, Undo)],
    kept: &[Undo],
) -> Vec<(FaultId, Result<(), Vec<String>>)> {
    let mut errors: Vec<Vec<String>> = vec![Vec::new(); undos.len()];
    let mut hooked = vec![false; undos.len()];
    for phase in [Phase::Cut, Phase::Unhook, Phase::Clean, Phase::Start] {
        let (items, owners) = batch(undos, kept, phase, &hooked);
        for (result, owners) in host.restore(&items).into_iter().zip(owners) {
            if let Err(error) = result {
                for owner in owners {
                    errors[owner].push(error.to_string());
                    hooked[owner] |= phase == Phase::Unhook;
                }
            }
        }
    }
    undos
        .iter()
        .zip(errors)
        .map(|((id, _), errors)| (id.clone(), if errors.is_empty() { Ok(()) } else { Err(errors) }))
        .collect()
}

/// The order in which things are put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// End the effects.
    Cut,
    /// Remove the filters.
    Unhook,
    /// Remove what the filters led to and stood on, and write old contents back.
    Clean,
    /// Start units, and put drained servers back: those who are asked to take their time, and nobody
    /// else should wait for it.
    Start,
}

impl Phase {
    fn of(item: &Restore) -> Self {
        match item {
            item if item.cuts() => Self::Cut,
            Restore::Filter { .. } => Self::Unhook,
            Restore::Start { .. } | Restore::Undrain { .. } => Self::Start,
            _ => Self::Clean,
        }
    }
}

/// The items of one phase, each once, with the undos that they belong to. Of undos that are
/// `hooked`, devices and qdiscs stay.
fn batch(
    undos: &[(FaultId, Undo)],
    kept: &[Undo],
    phase: Phase,
    hooked: &[bool],
) -> (Vec<Restore>, Vec<Vec<usize>>) {
    let mut items: std::collections::BTreeMap<&Restore, Vec<usize>> = std::collections::BTreeMap::new();
    for (at, (_, undo)) in undos.iter().enumerate() {
        for item in undo.restores.iter().filter(|item| Phase::of(item) == phase) {
            let held = item.is_shared() && kept.iter().any(|other| other.restores.contains(item));
            if !held {
                items.entry(item).or_default().push(at);
            }
        }
    }
    let stays = |item: &Restore, owners: &[usize]| {
        matches!(item, Restore::Link { .. } | Restore::Clsact { .. })
            && owners.iter().any(|owner| hooked.get(*owner) == Some(&true))
    };
    items.retain(|item, owners| !stays(item, owners));
    items.into_iter().map(|(item, owners)| (item.clone(), owners)).unzip()
}
