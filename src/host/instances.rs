//! Instances of groups whose members are units: one unit is one instance, however many processes
//! it has, and is known by its main process.
//!
//! Who is the main process is remembered: as long as it lives the instance is the same, and when it
//! is gone the instance is lost, whatever else of the unit goes on for a while. Leans one way: in
//! doubt a unit is no instance. Pure; a host calls it with what it found.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Candidate, ProcessId};
use crate::policy::time::Moment;

/// An instance of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The process that stands for it: its only one, or the main process of its unit. Of a unit
    /// that has lost that one and is not gone, the lost one: who hits the rest hits the instance,
    /// though nobody counts it.
    pub id: ProcessId,
    /// All of its processes that are meant, in order of (start, pid).
    pub processes: Vec<ProcessId>,
}

impl Instance {
    /// One that is one process.
    #[must_use]
    pub fn of(id: ProcessId) -> Self {
        Self { id, processes: vec![id] }
    }
}

/// The unit of a process, and who it is.
pub type InUnit = (String, ProcessId);

/// What was left of a unit when its main process ended counts as an instance again after so long,
/// if nobody said more of it: the time that systemd gives a unit to stop is 90 s by default.
const PATIENCE: Duration = Duration::from_secs(100);

/// A unit that was not seen for so long is gone, or nobody asks for it any more.
const RECENT: Duration = Duration::from_secs(5);

/// Units that were not seen for so long are forgotten.
const MEMORY: Duration = Duration::from_hours(1);

/// The main processes of units, as they were last seen.
#[derive(Debug, Default)]
pub struct Mains {
    by_unit: BTreeMap<String, Main>,
}

#[derive(Debug)]
struct Main {
    id: ProcessId,
    /// The processes of the unit when the main one was last seen alive.
    known: BTreeSet<ProcessId>,
    seen: Moment,
    /// Since when it is gone while others of its time live on.
    lost: Option<Moment>,
}

impl Mains {
    /// Takes in all processes of some units, sorted by (start, pid), as they were at `now`. Answers
    /// with their units, those included that have lost their main process.
    pub fn sort_out(&mut self, found: &[InUnit], now: Moment) -> Vec<Instance> {
        let mut units: BTreeMap<&str, Vec<ProcessId>> = BTreeMap::new();
        for (unit, id) in found {
            units.entry(unit).or_default().push(*id);
        }
        self.by_unit.retain(|_, main| now < main.seen.plus(MEMORY));
        let instances = units.into_iter().filter_map(|(unit, processes)| {
            Some(Instance { id: self.main_of(unit, &processes, now)?, processes })
        });
        let mut instances: Vec<Instance> = instances.collect();
        instances.sort_by_key(|instance| (instance.id.start, instance.id.pid));
        instances
    }

    fn main_of(&mut self, unit: &str, processes: &[ProcessId], now: Moment) -> Option<ProcessId> {
        let oldest = *processes.first()?;
        let fresh = |id| Main { id, known: processes.iter().copied().collect(), seen: now, lost: None };
        let Some(main) = self.by_unit.get_mut(unit) else {
            self.by_unit.insert(unit.to_owned(), fresh(oldest));
            return Some(oldest);
        };
        if processes.contains(&main.id) {
            *main = fresh(main.id);
        } else if processes.iter().any(|id| main.known.contains(id)) {
            // The rest of a unit that has lost its main process, or a daemon whose first process
            // has ended as it should. Only systemd knows.
            main.seen = now;
            let since = *main.lost.get_or_insert(now);
            if now >= since.plus(PATIENCE) {
                *main = fresh(oldest);
            }
        } else {
            // All of that time are gone: it was started anew.
            *main = fresh(oldest);
        }
        Some(main.id)
    }

    /// The service manager says who is the main process of a unit.
    pub fn adopt(&mut self, unit: &str, id: ProcessId, now: Moment) {
        let known = self.by_unit.remove(unit).map(|main| main.known).unwrap_or_default();
        let known = known.into_iter().chain([id]).collect();
        self.by_unit.insert(unit.to_owned(), Main { id, known, seen: now, lost: None });
    }

    /// Units of which only the service manager can say whether they still are what they were, among
    /// those that somebody looks at.
    #[must_use]
    pub fn doubts(&self, now: Moment) -> Vec<String> {
        let open = |main: &Main| main.lost.is_some() && now < main.seen.plus(RECENT);
        let doubts = self.by_unit.iter().filter(|(_, main)| open(main));
        doubts.map(|(unit, _)| unit.clone()).collect()
    }
}

/// The unit and the identity of those that are in one.
pub fn in_units<'a>(found: impl IntoIterator<Item = &'a Candidate>) -> Vec<InUnit> {
    found.into_iter().filter_map(|one| Some((one.unit.clone()?, one.id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> ProcessId {
        ProcessId { pid: number, start: number.into() }
    }

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    /// What is found when the unit `a` has these processes.
    fn look(mains: &mut Mains, processes: &[u32], seconds: u64) -> Vec<Instance> {
        let found: Vec<InUnit> =
            processes.iter().map(|number| ("a.service".to_owned(), id(*number))).collect();
        mains.sort_out(&found, at(seconds))
    }

    fn instance(main: u32, processes: &[u32]) -> Vec<Instance> {
        vec![Instance { id: id(main), processes: processes.iter().map(|number| id(*number)).collect() }]
    }

    #[test]
    fn one_unit_is_one_instance_and_stays_the_same() {
        let mut mains = Mains::default();
        assert_eq!(look(&mut mains, &[10, 11, 12], 0), instance(10, &[10, 11, 12]));
        assert_eq!(look(&mut mains, &[10, 13], 1), instance(10, &[10, 13]));
        assert_eq!(look(&mut mains, &[], 2), []);
        assert_eq!(look(&mut mains, &[20, 21], 3), instance(20, &[20, 21]));
    }

    #[test]
    fn units_are_told_apart() {
        let found: Vec<InUnit> = [("a", 10), ("b", 11), ("a", 12)]
            .map(|(unit, number)| (format!("{unit}.service"), id(number)))
            .into();
        let instances = Mains::default().sort_out(&found, at(0));
        assert_eq!(instances, [instance(10, &[10, 12]), instance(11, &[11])].concat());
    }

    #[test]
    fn what_survives_its_main_process_stands_for_nothing() {
        let mut mains = Mains::default();
        look(&mut mains, &[10, 11], 0);
        assert_eq!(look(&mut mains, &[11], 1), instance(10, &[11]));
        // Nor with one that it forked meanwhile.
        assert_eq!(look(&mut mains, &[11, 30], 2), instance(10, &[11, 30]));
        assert_eq!(mains.doubts(at(2)), ["a.service"]);
        assert_eq!(mains.doubts(at(8)), [""; 0]);
        assert_eq!(look(&mut mains, &[40], 3), instance(40, &[40]));
        assert_eq!(mains.doubts(at(3)), [""; 0]);
    }

    #[test]
    fn the_service_manager_ends_a_doubt_and_so_does_time() {
        let mut mains = Mains::default();
        look(&mut mains, &[10, 11], 0);
        look(&mut mains, &[11], 1);
        mains.adopt("a.service", id(11), at(1));
        assert_eq!(look(&mut mains, &[11], 2), instance(11, &[11]));
        look(&mut mains, &[11, 12], 3);
        assert_eq!(look(&mut mains, &[12], 4), instance(11, &[12]));
        assert_eq!(look(&mut mains, &[12], 103), instance(11, &[12]));
        assert_eq!(look(&mut mains, &[12], 104), instance(12, &[12]));
    }
}
