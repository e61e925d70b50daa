//! The network objects of the simulated host, named exactly as [`Restore`] names them.
//!
//! Keeps apart what vervet made from what was there before, and notes every deed that would have
//! hurt on a real host: those are violations, whatever the caller was told.

use std::collections::{BTreeMap, BTreeSet};

use super::failure::{Trouble, error};
use crate::{
    experiment::Existing,
    fault::undo::Restore,
    host::{FaultId, HostError, NetAction, NetCounters, NetPlan},
    policy::time::Moment,
};

type Netns = Option<String>;

/// A kernel object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Table { netns: Netns, name: String },
    Filter { netns: Netns, device: String, priority: u16, to: String },
    Link { netns: Netns, name: String },
    Clsact { netns: Netns, device: String },
}

/// Who made an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Foreign,
    Vervet,
}

/// The effect of an installed fault.
#[derive(Debug, Clone)]
struct InForce {
    table: Object,
    until: Moment,
    seen: Moment,
    /// Packets times nanoseconds, so that no packet is lost to rounding.
    load: u128,
    closed: u64,
}

#[derive(Debug)]
pub(super) struct Network {
    pub objects: BTreeMap<Object, Owner>,
    pub sysctls: BTreeMap<(Netns, String), String>,
    pub namespaces: BTreeSet<String>,
    /// Matching packets each second, for every fault.
    pub packets_per_second: u32,
    /// How many of a hundred attempts meet a cap that is reached.
    pub refused_percent: u8,
    faults: BTreeMap<FaultId, InForce>,
    pub violations: Vec<String>,
}

impl Network {
    /// A host with two devices, an nftables table, a link and a clsact with a filter that are not
    /// vervet's.
    pub(super) fn new() -> Self {
        let foreign = [
            Object::Table { netns: None, name: "filter".to_owned() },
            Object::Link { netns: None, name: "docker0".to_owned() },
            Object::Clsact { netns: None, device: "eth1".to_owned() },
            Object::Filter {
                netns: None,
                device: "eth1".to_owned(),
                priority: 1,
                to: "docker0".to_owned(),
            },
        ];
        Self {
            objects: foreign.into_iter().map(|object| (object, Owner::Foreign)).collect(),
            sysctls: BTreeMap::new(),
            namespaces: ["/run/netns/blue".to_owned()].into(),
            packets_per_second: 100,
            refused_percent: 50,
            faults: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    /// The devices of a namespace, with their indices.
    pub(super) fn devices() -> [(&'static str, u32); 3] {
        [("lo", 1), ("eth0", 2), ("eth1", 3)]
    }

    pub(super) fn sysctl(&self, netns: &Netns, path: &str) -> String {
        self.sysctls.get(&(netns.clone(), path.to_owned())).cloned().unwrap_or_else(|| "0".to_owned())
    }

    /// Makes each object in the reverse order of undoing, or only the first ones.
    pub(super) fn install(
        &mut self,
        plan: &NetPlan,
        until: Moment,
        now: Moment,
        trouble: Option<Trouble>,
    ) -> Result<(), HostError> {
        self.reachable(plan.netns.as_ref())?;
        let few = match trouble {
            Some(Trouble::After(objects)) => objects,
            Some(Trouble::Refused) => 0,
            None => usize::MAX,
        };
        for item in plan.restores.iter().rev().take(few) {
            self.make(item)?;
            if let Restore::Table { netns, name } = item {
                self.arm(plan, Object::Table { netns: netns.clone(), name: name.clone() }, until, now);
            }
        }
        if trouble.is_some() { Err(error("install")) } else { Ok(()) }
    }

    fn arm(&mut self, plan: &NetPlan, table: Object, until: Moment, now: Moment) {
        let closed = match plan.action {
            NetAction::Cap { existing: Existing::Close, .. } => u64::from(self.packets_per_second / 10),
            _ => 0,
        };
        let fault = InForce { table, until, seen: now, load: 0, closed };
        self.faults.insert(plan.fault.clone(), fault);
    }

    fn make(&mut self, item: &Restore) -> Result<(), HostError> {
        if let Restore::Sysctl { netns, path, old, new } = item {
            let now = self.sysctl(netns, path);
            if now != *old && now != *new {
                self.violations
                    .push(format!("{path} is {now}, neither {old} nor {new}, and was written"));
            }
            self.sysctls.insert((netns.clone(), path.clone()), new.clone());
            return Ok(());
        }
        let Some(object) = object(item) else { return Ok(()) };
        if let Object::Filter { netns, device, to, .. } = &object {
            let clsact = Object::Clsact { netns: netns.clone(), device: device.clone() };
            let link = Object::Link { netns: netns.clone(), name: to.clone() };
            if !self.objects.contains_key(&clsact) || !self.objects.contains_key(&link) {
                return Err(kernel(&object, "no such device or qdisc"));
            }
        }
        let shared = matches!(object, Object::Clsact { .. });
        if self.objects.contains_key(&object) && !shared {
            return Err(kernel(&object, "exists"));
        }
        self.objects.entry(object).or_insert(Owner::Vervet);
        Ok(())
    }

    /// Puts one thing back. Already gone is success.
    pub(super) fn restore(&mut self, item: &Restore) -> Result<(), HostError> {
        if let Restore::Sysctl { netns, path, old, new } = item {
            if self.sysctl(netns, path) == *new {
                self.sysctls.insert((netns.clone(), path.clone()), old.clone());
            }
            return Ok(());
        }
        let Some(object) = object(item) else { return Ok(()) };
        match self.objects.get(&object) {
            None => return Ok(()),
            Some(Owner::Foreign) => {
                self.violations.push(format!("{object:?} is not vervet's and was to be deleted"));
                return Err(kernel(&object, "not vervet's"));
            }
            Some(Owner::Vervet) => {}
        }
        match &object {
            Object::Table { .. } => self.faults.retain(|_, fault| fault.table != object),
            Object::Link { netns, name } => {
                let aimed = |other: &Object| matches!(other, Object::Filter { netns: at, to, .. } if at == netns && to == name);
                if self.objects.keys().any(aimed) {
                    self.violations.push(format!("{name} went before the filter that points at it"));
                }
            }
            Object::Clsact { netns, device } => {
                let on = |other: &Object| matches!(other, Object::Filter { netns: at, device: of, .. } if at == netns && of == device);
                let filters: Vec<_> = self.objects.iter().filter(|(other, _)| on(other)).collect();
                if filters.iter().any(|(_, owner)| **owner == Owner::Foreign) {
                    // Somebody uses it by now: it stays.
                    return Ok(());
                }
                if !filters.is_empty() {
                    self.violations.push(format!("the clsact of {device} went with filters on it"));
                }
            }
            Object::Filter { .. } => {}
        }
        self.objects.remove(&object);
        Ok(())
    }

    pub(super) fn renew(&mut self, plan: &NetPlan, until: Moment, now: Moment) -> Result<(), HostError> {
        match self.faults.get_mut(&plan.fault) {
            Some(fault) if fault.until > now => {
                fault.until = until;
                Ok(())
            }
            Some(_) => Err(HostError::NotFound("the lease had lapsed".to_owned())),
            None => Err(HostError::NotFound("the table is gone".to_owned())),
        }
    }

    pub(super) fn advance(&mut self, now: Moment) {
        let rate = u128::from(self.packets_per_second);
        for fault in self.faults.values_mut() {
            let end = now.min(fault.until);
            fault.load += end.since(fault.seen).as_nanos() * rate;
            fault.seen = fault.seen.max(end);
        }
    }

    pub(super) fn counters(&self, plan: &NetPlan, now: Moment) -> NetCounters {
        let Some(fault) = self.faults.get(&plan.fault) else { return NetCounters::default() };
        let matched = u64::try_from(fault.load / 1_000_000_000).unwrap_or(u64::MAX);
        let all_there =
            plan.restores.iter().filter_map(object).all(|object| self.objects.contains_key(&object));
        let (affected, mean_delay_us) = match &plan.action {
            NetAction::Delay { delay, .. } => {
                (matched, (matched > 0).then(|| u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)))
            }
            NetAction::Cap { .. } => (matched * u64::from(self.refused_percent) / 100, None),
        };
        NetCounters {
            in_place: all_there && fault.until > now,
            matched,
            affected,
            closed: fault.closed,
            mean_delay_us,
        }
    }

    /// Faults that still match traffic.
    pub(super) fn in_force(&self, now: Moment) -> Vec<FaultId> {
        let live = self.faults.iter().filter(|(_, fault)| fault.until > now);
        live.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn reachable(&self, netns: Option<&String>) -> Result<(), HostError> {
        match netns {
            Some(path) if !self.namespaces.contains(path) => {
                Err(HostError::NotFound(format!("{path}: no such network namespace")))
            }
            _ => Ok(()),
        }
    }
}

/// The object that a restore deletes; `None` for a value or a process.
fn object(item: &Restore) -> Option<Object> {
    match item {
        Restore::Table { netns, name } => {
            Some(Object::Table { netns: netns.clone(), name: name.clone() })
        }
        Restore::Filter { netns, device, priority, to, .. } => Some(Object::Filter {
            netns: netns.clone(),
            device: device.clone(),
            priority: *priority,
            to: to.clone(),
        }),
        Restore::Link { netns, name } => Some(Object::Link { netns: netns.clone(), name: name.clone() }),
        Restore::Clsact { netns, device, .. } => {
            Some(Object::Clsact { netns: netns.clone(), device: device.clone() })
        }
        Restore::Sysctl { .. }
        | Restore::Continue { .. }
        | Restore::Thaw { .. }
        | Restore::Start { .. }
        | Restore::Undrain { .. } => None,
    }
}

fn kernel(object: &Object, error: &str) -> HostError {
    HostError::Kernel { doing: format!("{object:?}"), error: error.to_owned() }
}
