//! The service manager of the simulated host: units whose processes live and die with their jobs.
//!
//! A unit is one process in a cgroup of its own. It is active while something lives there, on its
//! way while its supervisor owes it a process, and inactive otherwise.

use std::collections::{BTreeMap, BTreeSet};

use super::process::{Processes, Spawn};
use crate::{
    host::{HostError, ProcessId, Unit, UnitDetail, UnitVerb},
    policy::time::Moment,
};

/// All units, by name.
#[derive(Debug, Default)]
pub(super) struct Units {
    by_name: BTreeMap<String, Service>,
    pub jobs: Vec<(String, UnitVerb)>,
}

#[derive(Debug)]
struct Service {
    like: Spawn,
    stopped_with: BTreeSet<String>,
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
        self.by_name.insert(name.to_owned(), Service { like, stopped_with: BTreeSet::new() });
        id
    }

    pub(super) fn bind(&mut self, unit: &str, other: &str) {
        if let Some(service) = self.by_name.get_mut(unit) {
            service.stopped_with.insert(other.to_owned());
        }
    }

    pub(super) fn list(&self, globs: &[&str], processes: &Processes) -> Vec<Unit> {
        let names = self.by_name.keys().filter(|name| globs.iter().any(|glob| matches(glob, name)));
        names.map(|name| describe(name, processes)).collect()
    }

    pub(super) fn detail(&self, name: &str, processes: &Processes) -> Option<UnitDetail> {
        let service = self.by_name.get(name)?;
        Some(UnitDetail {
            unit: describe(name, processes),
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
        let Some(service) = self.by_name.get(name) else {
            return Err(HostError::NotFound(format!("Unit {name} not found.")));
        };
        self.jobs.push((name.to_owned(), verb));
        let cgroup = cgroup_of(name);
        if verb != UnitVerb::Start {
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

/// A glob of `*` and `?`, as far as a simulation needs one.
fn matches(glob: &str, name: &str) -> bool {
    match (glob.as_bytes().first(), name.as_bytes().first()) {
        (None, None) => true,
        (Some(b'*'), _) => matches(&glob[1..], name) || (!name.is_empty() && matches(glob, &name[1..])),
        (Some(b'?'), Some(_)) => matches(&glob[1..], &name[1..]),
        (Some(a), Some(b)) if a == b => matches(&glob[1..], &name[1..]),
        _ => false,
    }
}
