//! Failures of the simulated host: by chance, or the n-th call of a verb. Decides nothing else.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::host::HostError;

/// What can fail. `Restore`, `Renew` and `Signal` count single items, `Install` whole plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    Find,
    State,
    Signal,
    PlanNet,
    Install,
    Renew,
    Counters,
    Restore,
    Headroom,
    Protected,
    Units,
    UnitJob,
    Freezer,
    Freeze,
    Balancer,
}

impl Verb {
    pub const ALL: [Self; 15] = [
        Self::Find,
        Self::State,
        Self::Signal,
        Self::PlanNet,
        Self::Install,
        Self::Renew,
        Self::Counters,
        Self::Restore,
        Self::Headroom,
        Self::Protected,
        Self::Units,
        Self::UnitJob,
        Self::Freezer,
        Self::Freeze,
        Self::Balancer,
    ];
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing is done.
    Refused,
    /// `Install` only: so many objects are made, in their order, then it fails. More than there
    /// are: all are made, and still it fails.
    After(usize),
}

/// Decides which calls fail. The same seed and the same calls fail alike.
#[derive(Debug)]
pub(super) struct Failures {
    rng: ChaCha12Rng,
    rates: BTreeMap<Verb, f64>,
    script: BTreeMap<(Verb, u64), Trouble>,
    calls: BTreeMap<Verb, u64>,
}

impl Failures {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha12Rng::seed_from_u64(seed),
            rates: BTreeMap::new(),
            script: BTreeMap::new(),
            calls: BTreeMap::new(),
        }
    }

    pub(super) fn rate(&mut self, verb: Verb, rate: f64) {
        self.rates.insert(verb, rate.clamp(0.0, 1.0));
    }

    /// `nth` counts from 1, from now on.
    pub(super) fn script(&mut self, verb: Verb, nth: u64, trouble: Trouble) {
        let made = self.calls.get(&verb).copied().unwrap_or(0);
        self.script.insert((verb, made + nth), trouble);
    }

    pub(super) fn heal(&mut self) {
        self.rates.clear();
        self.script.clear();
    }

    /// Whether this call fails. `objects` is what an install is about to make.
    pub(super) fn strike(&mut self, verb: Verb, objects: usize) -> Option<Trouble> {
        let calls = self.calls.entry(verb).or_default();
        *calls += 1;
        if let Some(trouble) = self.script.remove(&(verb, *calls)) {
            return Some(trouble);
        }
        let rate = *self.rates.get(&verb)?;
        if !self.rng.random_bool(rate) {
            return None;
        }
        Some(match verb {
            Verb::Install => Trouble::After(self.rng.random_range(0..=objects)),
            _ => Trouble::Refused,
        })
    }

    /// For verbs that fail whole.
    pub(super) fn check(&mut self, verb: Verb, doing: &str) -> Result<(), HostError> {
        match self.strike(verb, 0) {
            None => Ok(()),
            Some(_) => Err(error(doing)),
        }
    }
}

pub(super) fn error(doing: &str) -> HostError {
    HostError::Kernel { doing: doing.to_owned(), error: "simulated failure".to_owned() }
}
