//! The hands: perform what the engine asked for, on whatever host they are given.
//!
//! Each method does one effect to its end and says what came of it as an event. They decide
//! nothing, retry nothing and wait for nothing but the kernel. The real loop calls them from its
//! worker threads, the simulation in its own time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use uuid::Uuid;

use crate::{
    config::{GroupPolicy, Policy},
    experiment::{FaultSpec, Kill, Pause, ProcessSelector, Signal},
    fault::{
        self, Context, Injection, KERNEL_LEASE, Prepared, Target, net_spec, undo,
        undo::Undo,
        unit::{self, How},
    },
    host::{FaultId, Host, HostError, Memberships, ProcessId},
    policy::{
        engine::{Event, Job},
        plan::{Found, Resolution},
        time::Moment,
    },
};

/// Everything that touches the host for the engine.
#[derive(Debug)]
pub struct Hands<H> {
    /// Undos that are, or are about to be, in force.
    open: Mutex<BTreeMap<FaultId, Undo>>,
    /// Runs that were stopped: what of them is still queued is not done any more.
    stopped: Mutex<BTreeSet<Uuid>>,
    host: Arc<H>,
}

/// What a target is held against.
struct Surroundings {
    memberships: Memberships,
    protected: BTreeMap<ProcessId, String>,
    spared: BTreeSet<ProcessId>,
}

/// Lookups of one step: its index, fault, id and seed.
pub type Lookup = (usize, FaultSpec, FaultId, u64);

impl<H: Host> Hands<H> {
    pub fn new(host: Arc<H>) -> Self {
        Self { open: Mutex::default(), stopped: Mutex::default(), host }
    }

    /// Looks up the targets of steps. Touches nothing.
    pub fn resolve(&self, policy: &Policy, job: Job, steps: Vec<Lookup>) -> Event {
        let common = self.surroundings(policy);
        let results = steps
            .into_iter()
            .map(|(step, spec, fault, seed)| {
                let found = self.find(policy, &spec, fault, seed);
                let result = match (&common, found) {
                    (Ok(around), Ok(found)) => Ok(Resolution {
                        found,
                        memberships: around.memberships.clone(),
                        protected: around.protected.clone(),
                        spared: around.spared.clone(),
                    }),
                    (Err(error), _) => Err(error.clone()),
                    (_, Err(error)) => Err(error),
                };
                (step, result)
            })
            .collect();
        Event::Resolved { job, results }
    }

    /// Looks up what an injection needs. Touches nothing. From now on its undo counts as open, so
    /// that no two faults choose the same mark, and what they share is shared.
    pub fn prepare(
        &self,
        policy: &Policy,
        run: Uuid,
        step: usize,
        spec: &FaultSpec,
        target: &Target,
        fault: FaultId,
        seed: u64,
    ) -> Event {
        let open = self.open_undos();
        let exempt_ports = exempt_ports(policy);
        let prepare = || {
            let others = self.others(policy, spec, target)?;
            let context = Context {
                fault,
                seed,
                mark_mask: policy.network.mark_mask,
                exempt_ports: &exempt_ports,
                open: &open,
                others: &others,
            };
            fault::prepare(&*self.host, spec, target, &context).map(Box::new)
        };
        let result = prepare();
        if let Ok(prepared) = &result {
            self.lock().insert(prepared.fault.clone(), prepared.undo.clone());
        }
        Event::Prepared { run, step, result }
    }

    /// The processes of all instances of groups that a drain is not meant for.
    fn others(
        &self,
        policy: &Policy,
        spec: &FaultSpec,
        target: &Target,
    ) -> Result<Vec<ProcessId>, HostError> {
        let (FaultSpec::Kill(Kill { drain: Some(_), .. }), Target::Processes { processes }) =
            (spec, target)
        else {
            return Ok(Vec::new());
        };
        let hit = |id: &ProcessId| processes.iter().any(|process| process.id == *id);
        let mut others = Vec::new();
        for group in &policy.groups {
            let instances = self.host.instances(group)?.into_iter();
            let rest = instances.filter(|instance| !instance.processes.iter().any(hit));
            others.extend(rest.flat_map(|instance| instance.processes));
        }
        Ok(others)
    }

    /// The fault is over, or was never injected: its undo is not open any more.
    pub fn let_go(&self, fault: &FaultId) {
        self.lock().remove(fault);
    }

    /// From now on nothing more is done for this run, whatever is queued. Undoing is.
    pub fn forbid(&self, run: Uuid) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.insert(run);
        // Ids sort by time; a thousand runs later nothing of the oldest can be queued.
        if stopped.len() > 1_000 {
            stopped.pop_first();
        }
    }

    fn is_forbidden(&self, run: Uuid) -> bool {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).contains(&run)
    }

    /// Takes the victims of a kill out of the rotation, or asks what they still do there.
    pub fn drain(&self, run: Uuid, step: usize, prepared: &Prepared, begin: bool) -> Event {
        let result = if self.is_forbidden(run) {
            Err(HostError::Stopped)
        } else {
            fault::drain(&*self.host, prepared, begin)
        };
        Event::Drained { run, step, result }
    }

    /// Injects. Whatever happens, a kernel lease never runs beyond `deadline`.
    pub fn inject(
        &self,
        run: Uuid,
        step: usize,
        prepared: &Prepared,
        deadline: Moment,
        now: Moment,
    ) -> Event {
        let lease = deadline.since(now).min(KERNEL_LEASE);
        let result = if self.is_forbidden(run) {
            Err(HostError::Stopped)
        } else if lease.is_zero() {
            Err(HostError::Unavailable("its time was over before it could be injected".to_owned()))
        } else {
            fault::inject(&*self.host, prepared, lease)
        };
        Event::Injected { run, step, result }
    }

    /// The second signal of a kill. What came of it shows in the next measurement.
    pub fn escalate(&self, run: Uuid, prepared: &Prepared, signal: Signal) {
        if self.is_forbidden(run) {
            return;
        }
        if let Err(error) = fault::escalate(&*self.host, prepared, signal) {
            tracing::warn!(fault = %prepared.fault.0, %error, "escalation failed");
        }
    }

    /// Reads back what a fault did.
    pub fn measure(&self, run: Uuid, step: usize, prepared: &Prepared, injection: &Injection) -> Event {
        let result = fault::measure(&*self.host, prepared, injection);
        Event::Measured { run, step, result }
    }

    /// Renews leases up to their deadlines; says which ones had lapsed.
    pub fn renew(&self, leases: &[(Uuid, usize, Arc<Prepared>, Moment)], now: Moment) -> Vec<Event> {
        let due: Vec<_> = leases
            .iter()
            .filter_map(|(run, step, prepared, deadline)| {
                let left = deadline.since(now).min(KERNEL_LEASE);
                let Target::Traffic { plan } = &prepared.target else { return None };
                (!left.is_zero()).then_some((*run, *step, &**plan, left))
            })
            .collect();
        let asked: Vec<_> = due.iter().map(|(_, _, plan, left)| (*plan, *left)).collect();
        let results = self.host.renew(&asked);
        due.iter()
            .zip(results)
            .filter_map(|((run, step, ..), result)| {
                let error = result.err()?.to_string();
                Some(Event::Lapsed { run: *run, step: *step, error })
            })
            .collect()
    }

    /// Undoes. Objects that another open undo still names stay for that one.
    pub fn revert(&self, items: &[(Uuid, usize, Arc<Prepared>)]) -> Vec<Event> {
        let undos: Vec<(FaultId, Undo)> = items
            .iter()
            .map(|(_, _, prepared)| (prepared.fault.clone(), prepared.undo.clone()))
            .collect();
        let kept: Vec<Undo> = self
            .lock()
            .iter()
            .filter(|(fault, _)| !undos.iter().any(|(going, _)| going == *fault))
            .map(|(_, undo)| undo.clone())
            .collect();
        let results = undo::revert(&*self.host, &undos, &kept);
        let mut open = self.lock();
        items
            .iter()
            .zip(results)
            .map(|((run, step, _), (fault, result))| {
                if result.is_ok() {
                    open.remove(&fault);
                }
                Event::Reverted { run: *run, step: *step, result }
            })
            .collect()
    }

    fn find(
        &self,
        policy: &Policy,
        spec: &FaultSpec,
        fault: FaultId,
        seed: u64,
    ) -> Result<Found, HostError> {
        let open = self.open_undos();
        let exempt_ports = exempt_ports(policy);
        let context = Context {
            fault,
            seed,
            mark_mask: policy.network.mark_mask,
            exempt_ports: &exempt_ports,
            open: &open,
            others: &[],
        };
        match (spec, net_spec(spec, &context)) {
            (FaultSpec::Pause(pause), _) if is_of_units(&pause.target.select, policy) => {
                unit::find(&*self.host, &policy.groups, &pause.target.select, How::Freezer)
                    .map(Found::Units)
            }
            (FaultSpec::Unit(fault), _) => {
                unit::find(&*self.host, &policy.groups, &fault.target.select, How::Job).map(Found::Units)
            }
            (FaultSpec::Kill(Kill { target, .. }) | FaultSpec::Pause(Pause { target }), _) => {
                self.host.find(&target.select, &policy.groups).map(Found::Processes)
            }
            (_, Some(net)) => Ok(Found::Traffic(Box::new(self.host.plan_net(&net, &open)?))),
            (spec, None) => unreachable!("{} acts on processes or on traffic", spec.kind()),
        }
    }

    fn surroundings(&self, policy: &Policy) -> Result<Surroundings, HostError> {
        let mut memberships = Memberships::new();
        let mut spared = BTreeSet::new();
        for group in &policy.groups {
            let instances = self.host.instances(group)?;
            for select in &group.spare {
                let found = self.host.find(select, &policy.groups)?;
                let found: BTreeSet<ProcessId> = found.iter().map(|one| one.id).collect();
                // An instance is spared whole.
                let is_spared = |id: &ProcessId| found.contains(id);
                let instances = instances.iter().filter(|one| one.processes.iter().any(is_spared));
                spared.extend(instances.flat_map(|one| one.processes.iter().copied()));
            }
            memberships.insert(group.name.clone(), instances);
        }
        Ok(Surroundings { memberships, protected: self.host.protected()?, spared })
    }

    fn open_undos(&self) -> Vec<Undo> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<FaultId, Undo>> {
        // Held for map operations only, which leave it whole even if they panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Selects units and not some of their processes: by name, or as the instances of a group of units.
fn is_of_units(select: &ProcessSelector, policy: &Policy) -> bool {
    let group = select.whole_group();
    let group = group.and_then(|name| policy.groups.iter().find(|group| group.name == *name));
    select.is_of_units() || group.is_some_and(GroupPolicy::counts_units)
}

/// The API's own port is never disturbed.
fn exempt_ports(policy: &Policy) -> Vec<u16> {
    policy.api.listen.map(|address| address.port()).into_iter().collect()
}
