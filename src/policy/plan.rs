//! From what the host found to what exactly will be hit: picks, touches, charges, the digest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha12Rng;
use sha2::{Digest, Sha256};

use crate::{
    experiment::{FaultSpec, Kill, Order, Pause, Pick, ProcessTarget, Step, UnitAction, UnitFault},
    fault::{Target, connections},
    host::{Candidate, Instance, Memberships, NetPlan, ProcessId, UnitCandidate, container},
    policy::{limiter::Touch, protected, reason::Reason},
};

/// What a step's target resolves to on the host just now, before anything is picked.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolution {
    pub found: Found,
    /// The members of every group of this host, looked up at the same time.
    pub memberships: Memberships,
    /// Processes that must never be hit, with the reason.
    pub protected: BTreeMap<ProcessId, String>,
    /// Processes that the policy keeps out of every pick.
    pub spared: BTreeSet<ProcessId>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Every process that matches, in order of (start, pid).
    Processes(Vec<Candidate>),
    /// Every unit that matches, in order of name.
    Units(Vec<UnitCandidate>),
    Traffic(Box<NetPlan>),
}

/// The exact hit of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    pub target: Target,
    /// Things hit: processes, or one for a traffic selection.
    pub targets: u32,
    pub touches: Vec<Touch>,
    pub verb: &'static str,
}

/// Picks the targets of a step. The same seed and candidates give the same picks in the same order.
///
/// # Errors
/// When nothing matches, too few do, or one of them is protected.
pub fn hit(step: &Step, index: usize, seed: u64, resolution: Resolution) -> Result<Hit, Reason> {
    let Resolution { found, memberships, protected, spared } = resolution;
    match (found, &step.fault) {
        (
            Found::Processes(candidates),
            FaultSpec::Kill(Kill { target, .. }) | FaultSpec::Pause(Pause { target }),
        ) => {
            let candidates = leave(step, candidates, |process| !spared.contains(&process.id))?;
            let picked = pick(step, target, candidates, |process| process.id.start, index, seed)?;
            protected::check(&picked, &protected)?;
            let ids: Vec<ProcessId> = picked.iter().map(|process| process.id).collect();
            Ok(Hit {
                targets: u32::try_from(picked.len()).unwrap_or(u32::MAX),
                target: Target::Processes { processes: picked },
                touches: touches(&memberships, |id| ids.contains(id), true, step.charge),
                verb: verb_of(&step.fault),
            })
        }
        (
            Found::Units(candidates),
            FaultSpec::Pause(Pause { target }) | FaultSpec::Unit(UnitFault { target, .. }),
        ) => {
            let whole =
                |unit: &UnitCandidate| !unit.processes.iter().any(|one| spared.contains(&one.id));
            let candidates = leave(step, candidates, whole)?;
            let picked = pick(step, target, candidates, began, index, seed)?;
            protected::check_units(&picked, &protected)?;
            let ids: BTreeSet<ProcessId> =
                picked.iter().flat_map(|unit| &unit.processes).map(|process| process.id).collect();
            Ok(Hit {
                targets: u32::try_from(picked.len()).unwrap_or(u32::MAX),
                target: Target::Units { units: picked },
                touches: touches(&memberships, |id| ids.contains(id), true, step.charge),
                verb: verb_of(&step.fault),
            })
        }
        (Found::Traffic(plan), spec) => {
            let total = matches!(spec, FaultSpec::Connections(cap) if connections::is_total(cap));
            let local: Vec<ProcessId> = plan.local.iter().map(|process| process.id).collect();
            let everything = plan.everything;
            let touches =
                touches(&memberships, |id| everything || local.contains(id), total, step.charge);
            let verb = if total { "cutting off" } else { "disturbing" };
            Ok(Hit { targets: 1, target: Target::Traffic { plan }, touches, verb })
        }
        (_, spec) => unreachable!("{} has a target of its own kind", spec.kind()),
    }
}

/// The candidates that the policy does not spare.
fn leave<T>(step: &Step, candidates: Vec<T>, may: impl Fn(&T) -> bool) -> Result<Vec<T>, Reason> {
    let matches = candidates.len();
    let left: Vec<T> = candidates.into_iter().filter(may).collect();
    if left.is_empty() && matches > 0 {
        let spared = u32::try_from(matches).unwrap_or(u32::MAX);
        return Err(Reason::AllSpared { step: step.name.clone(), spared });
    }
    Ok(left)
}

fn verb_of(spec: &FaultSpec) -> &'static str {
    match spec {
        FaultSpec::Kill(_) => "killing",
        FaultSpec::Pause(_) => "pausing",
        FaultSpec::Unit(UnitFault { action: UnitAction::Stop, .. }) => "stopping",
        FaultSpec::Unit(UnitFault { action: UnitAction::Restart, .. }) => "restarting",
        FaultSpec::Latency(_) | FaultSpec::Connections(_) => "disturbing",
    }
}

/// When a unit's oldest process began, for an order by age.
fn began(unit: &UnitCandidate) -> u64 {
    unit.processes.first().map_or(0, |process| process.id.start)
}

fn pick<T>(
    step: &Step,
    target: &ProcessTarget,
    mut candidates: Vec<T>,
    began: impl Fn(&T) -> u64,
    index: usize,
    seed: u64,
) -> Result<Vec<T>, Reason> {
    let matches = candidates.len();
    if matches == 0 {
        return Err(Reason::NothingMatches { step: step.name.clone() });
    }
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let wanted = match target.pick {
        Pick::All => matches,
        Pick::Count(wanted) => wanted as usize,
        Pick::Percent(percent) => portion(matches, percent.get()),
    };
    if wanted == 0 {
        let percent = if let Pick::Percent(percent) = target.pick { percent.get() } else { 0.0 };
        let (step, matches) = (step.name.clone(), count(matches));
        return Err(Reason::PickRoundsToZero { step, matches, percent });
    }
    if wanted > matches {
        let (step, matches, wanted) = (step.name.clone(), count(matches), count(wanted));
        return Err(Reason::TooFewMatches { step, matches, wanted });
    }
    match target.order {
        Order::Random => candidates.shuffle(&mut step_rng(seed, index)),
        Order::Oldest => candidates.sort_by_key(began),
        Order::Newest => candidates.sort_by_key(|candidate| std::cmp::Reverse(began(candidate))),
    }
    candidates.truncate(wanted);
    Ok(candidates)
}

/// `percent` of `count`, rounded down; exact where the percentage is (50 % of 4 is 2).
fn portion(count: usize, percent: f64) -> usize {
    // A relative error of 1e-9 is far below one in any number of processes.
    let exact = count as f64 * percent / 100.0 * (1.0 + 1e-9);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to count")]
    let rounded = exact.floor() as usize;
    rounded.min(count)
}

/// The generator of one step: independent of how many numbers the others drew.
fn step_rng(seed: u64, step: usize) -> ChaCha12Rng {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(step as u64);
    rng
}

/// The seed for what draws on its own later (the jitter of a delay line).
#[must_use]
pub fn step_seed(seed: u64, step: usize) -> u64 {
    seed ^ (step as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn touches(
    memberships: &Memberships,
    is_hit: impl Fn(&ProcessId) -> bool,
    charged: bool,
    extra: u32,
) -> Vec<Touch> {
    memberships
        .iter()
        .filter_map(|(group, members)| {
            let hit: Vec<Instance> = members.iter().filter_map(|one| part_hit(one, &is_hit)).collect();
            (!hit.is_empty()).then(|| Touch { group: group.clone(), hit, charged, extra })
        })
        .collect()
}

/// What of an instance is hit; all of it falls, whichever of its processes does.
fn part_hit(instance: &Instance, is_hit: impl Fn(&ProcessId) -> bool) -> Option<Instance> {
    let processes: Vec<_> = instance.processes.iter().copied().filter(is_hit).collect();
    (!processes.is_empty()).then_some(Instance { id: instance.id, processes })
}

/// What will be hit, a line each, for people.
#[must_use]
pub fn describe(target: &Target) -> Vec<String> {
    match target {
        Target::Processes { processes } => processes
            .iter()
            .map(|process| {
                let container = process.container.as_deref().map(container::short);
                let of = container.map(|short| format!("container {short}")).or(process.unit.clone());
                let unit = of.map(|of| format!(" of {of}")).unwrap_or_default();
                format!("pid {} {}{unit} ({})", process.id.pid, process.name, process.cmdline)
            })
            .collect(),
        Target::Units { units } => units
            .iter()
            .map(|unit| {
                let pids: Vec<String> =
                    unit.processes.iter().map(|process| process.id.pid.to_string()).collect();
                let word = if pids.len() == 1 { "pid" } else { "pids" };
                format!("unit {} ({word} {})", unit.name, pids.join(", "))
            })
            .collect(),
        Target::Traffic { plan } => {
            let engine = match plan.engine {
                Some(crate::experiment::DelayEngine::Netem) => " by netem",
                Some(crate::experiment::DelayEngine::Tap) => " by tap",
                None => "",
            };
            let devices = if plan.devices.is_empty() {
                String::new()
            } else {
                format!(" on {}{engine}", plan.devices.join(", "))
            };
            plan.rules.iter().map(|rule| format!("{rule}{devices}")).collect()
        }
    }
}

/// Covers the seed, every step and its exact targets: two plans with the same digest do the same.
#[must_use]
pub fn digest<'a>(seed: u64, steps: impl IntoIterator<Item = (&'a Step, &'a Target)>) -> String {
    let mut hash = Sha256::new();
    hash.update(seed.to_be_bytes());
    for (step, target) in steps {
        let exact = match target {
            Target::Processes { processes } => serde_json::json!({
                "processes": processes.iter().map(|process| process.id).collect::<Vec<_>>(),
            }),
            // What runs in a unit may change without changing what is done.
            Target::Units { units } => serde_json::json!({
                "units": units.iter().map(|unit| (&unit.name, &unit.instance)).collect::<Vec<_>>(),
            }),
            Target::Traffic { plan } => serde_json::json!({
                "netns": plan.netns, "rules": plan.rules, "devices": plan.devices, "engine": plan.engine,
            }),
        };
        // Field by field in a fixed order; a separator that JSON cannot contain.
        for part in [serde_json::to_string(step), serde_json::to_string(&exact)] {
            hash.update(part.unwrap_or_default());
            hash.update([0]);
        }
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
