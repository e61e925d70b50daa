//! The service manager of the simulated host: units whose processes live and die with their jobs.
//!
//! A unit is one process in a cgroup of its own. It is active while something lives there, on its
//! way while its supervisor owes it a process, and inactive otherwise.

use std::collections::{BTreeMap, BTreeSet};

use super::process::{Processes, Spawn};
use crate::{
    host::{Freezer, HostError, ProcessId, Unit, UnitDetail, UnitVerb, unit::Glob},
    policy::time::Moment,
};

/// All units, by name.
#[derive(Debug, Default)]
pub(super) struct Units {
    by_name: BTreeMap<String, Service>,
    pub jobs: Vec<(String, UnitVerb)>,
    pub freezes: Vec<String>,
    /// Cgroups that were told to freeze, with their ids.
    frozen: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Service {
    like: Spawn,
    stopped_with: BTreeSet<String>,
    /// The last invocation that a job ended.
    ended: String,
}

impl Units {
    pub(super) fn add(
        &mut self,
        name: &str,
        like: &Spawn,
        processes: &mut Processes,
        now: Moment,
    ) -> ProcessId {
        let like = Spawn { cgroup: cgroup_of(name), ..like.clone() };
        let id = processes.spawn(&like, now);
        self.by_name.insert(
            name.to_owned(),
            Service { like, stopped_with: BTreeSet::new(), ended: String::new() },
        );
        id
    }

    pub(super) fn bind(&mut self, unit: &str, other: &str) {
        if let Some(service) = self.by_name.get_mut(unit) {
            service.stopped_with.insert(other.to_owned());
        }
    }

    pub(super) fn list(&self, globs: &[&str], processes: &Processes) -> Vec<Unit> {
        let globs: Vec<Glob> = globs.iter().filter_map(|glob| Glob::new(glob).ok()).collect();
        let matching = |name: &&String| globs.iter().any(|glob| glob.matches(name));
        let names = self.by_name.keys().filter(matching);
        names.map(|name| describe(name, processes)).collect()
    }

    pub(super) fn detail(&self, name: &str, processes: &Processes) -> Option<UnitDetail> {
        let service = self.by_name.get(name)?;
        let mut unit = describe(name, processes);
        if unit.invocation.is_empty() {
            unit.invocation.clone_from(&service.ended);
        }
        Some(UnitDetail {
            unit,
            transient: false,
            can_start: true,
            can_stop: true,
            job: false,
            stopped_with: service.stopped_with.iter().cloned().collect(),
        })
    }

    pub(super) fn job(
        &mut self,
        name: &str,
        verb: UnitVerb,
        processes: &mut Processes,
        now: Moment,
    ) -> Result<(), HostError> {
        let Some(service) = self.by_name.get_mut(name) else {
            return Err(HostError::NotFound(format!("Unit {name} not found.")));
        };
        self.jobs.push((name.to_owned(), verb));
        let cgroup = cgroup_of(name);
        if verb != UnitVerb::Start {
            service.ended = describe(name, processes).invocation;
            for other in &service.stopped_with {
                processes.empty_cgroup(&cgroup_of(other), now);
            }
            processes.empty_cgroup(&cgroup, now);
        }
        if verb != UnitVerb::Stop && processes.in_cgroup(&cgroup) == (Vec::new(), false) {
            processes.spawn(&service.like, now);
        }
        Ok(())
    }
}

impl Units {
    /// See [`crate::fault::undo::Restore::Start`].
    pub(super) fn start_again(
        &mut self,
        name: &str,
        invocation: &str,
        processes: &mut Processes,
        now: Moment,
    ) {
        let Some(UnitDetail { unit, .. }) = self.detail(name, processes) else { return };
        if !unit.is_up() && (unit.invocation.is_empty() || unit.invocation == invocation) {
            let _ = self.job(name, UnitVerb::Start, processes, now);
        }
    }

    /// A cgroup lives as long as what was first in it: its id is that process's.
    pub(super) fn freezer(&self, cgroup: &str, processes: &Processes) -> Option<Freezer> {
        let id = processes.in_cgroup(cgroup).0.iter().map(|id| id.start).min()?;
        let asked = self.frozen.get(cgroup) == Some(&id);
        Some(Freezer { id, asked, frozen: asked })
    }

    pub(super) fn freeze(
        &mut self,
        cgroup: &str,
        id: u64,
        processes: &Processes,
    ) -> Result<(), HostError> {
        if self.freezer(cgroup, processes).is_none_or(|freezer| freezer.id != id) {
            return Err(HostError::NotFound(format!("{cgroup} has changed since the plan")));
        }
        self.frozen.insert(cgroup.to_owned(), id);
        self.freezes.push(cgroup.to_owned());
        Ok(())
    }

    pub(super) fn thaw(&mut self, cgroup: &str, id: u64) {
        if self.frozen.get(cgroup) == Some(&id) {
            self.frozen.remove(cgroup);
        }
    }

    pub(super) fn is_frozen(&self, cgroup: &str, processes: &Processes) -> bool {
        self.freezer(cgroup, processes).is_some_and(|freezer| freezer.frozen)
    }

    /// Cgroups that are frozen now.
    pub(super) fn frozen(&self, processes: &Processes) -> BTreeSet<String> {
        let frozen = self.frozen.keys().filter(|cgroup| self.is_frozen(cgroup, processes));
        frozen.cloned().collect()
    }

    /// Units in which nothing runs, and nothing is about to.
    pub(super) fn down(&self, processes: &Processes) -> BTreeSet<String> {
        let names = self.by_name.keys();
        names.filter(|name| !describe(name, processes).is_up()).cloned().collect()
    }
}

fn cgroup_of(name: &str) -> String {
    format!("/system.slice/{name}")
}

fn describe(name: &str, processes: &Processes) -> Unit {
    let cgroup = cgroup_of(name);
    let (inside, owed) = processes.in_cgroup(&cgroup);
    let main = inside.iter().min_by_key(|id| id.start);
    let (active, sub) = match (main, owed) {
        (Some(_), _) => ("active", "running"),
        (None, true) => ("activating", "auto-restart"),
        (None, false) => ("inactive", "dead"),
    };
    Unit {
        name: name.to_owned(),
        load: "loaded".to_owned(),
        active: active.to_owned(),
        sub: sub.to_owned(),
        main_pid: main.map(|id| id.pid),
        cgroup: main.map(|_| cgroup),
        invocation: main.map(|id| format!("{:032x}", id.start)).unwrap_or_default(),
    }
}
