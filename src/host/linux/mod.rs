//! The real host: [`Host`] by way of /proc, pidfds and netlink.
//!
//! This file only joins the parts; each of them knows one interface of the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::{
    config::GroupPolicy,
    experiment::{FaultKind, ProcessSelector, Signal, Traffic},
    fault::undo::{Restore, Undo},
    host::{
        Ability, Candidate, Delivery, Freezer, Headroom, Host, HostError, Instance, NetCounters,
        NetPlan, NetSpec, ProcessId, ProcessState, Unit, UnitDetail, UnitVerb, container,
        haproxy::{Aside, Pool, Server},
    },
};

pub mod cgroup;
pub mod clock;
pub mod exits;
pub mod haproxy;
pub mod headroom;
pub mod net;
pub mod privileges;
pub mod process;
pub mod procfs;
pub mod protected;
pub mod selector;
pub mod sockets;
pub mod stat;
pub mod sys;
pub mod systemd;

use cgroup::Cgroups;
use net::Net;
use process::Processes;
use systemd::Systemd;

/// Before the name of a container whose network namespace is meant.
const IN_CONTAINER: &str = "container:";

/// This machine.
#[derive(Debug)]
pub struct LinuxHost {
    processes: Arc<Processes>,
    net: Net,
    systemd: Arc<Systemd>,
    cgroups: Cgroups,
}

impl LinuxHost {
    /// # Errors
    /// When there is no /proc to read.
    pub fn new() -> Result<Self, HostError> {
        Ok(Self {
            processes: Arc::new(Processes::new(Path::new("/proc"))?),
            net: Net::new(),
            systemd: Arc::new(Systemd::new()),
            cgroups: Cgroups::new(Path::new("/proc/self/mountinfo")),
        })
    }

    /// The service manager, shared with the monitors.
    #[must_use]
    pub fn systemd(&self) -> &Arc<Systemd> {
        &self.systemd
    }

    /// The process table, shared with the monitors.
    #[must_use]
    pub fn processes(&self) -> &Arc<Processes> {
        &self.processes
    }

    /// Names a container's network namespace by the process that began it: while that lives the
    /// container does.
    fn in_container(&self, traffic: Traffic) -> Result<Traffic, HostError> {
        let name = traffic.netns.as_ref().and_then(|netns| netns.strip_prefix(IN_CONTAINER));
        let Some(name) = name else { return Ok(traffic) };
        let container = Some(name.to_owned());
        let inside =
            self.processes.find(&ProcessSelector { container, ..ProcessSelector::default() }, &[])?;
        let first = inside.first().ok_or_else(|| HostError::NotFound(container::unknown(name)))?;
        let netns = Some(format!("/proc/{}/ns/net", first.id.pid));
        Ok(Traffic { netns, ..traffic })
    }

    /// Refuses traffic of units that hold somebody who must never be hit. By port nobody else's
    /// traffic can be told from theirs, and their own ports are exempt; by unit all of theirs is meant.
    fn spare_own_units(&self, traffic: &Traffic) -> Result<(), HostError> {
        let Some(unit) = traffic.unit.clone() else { return Ok(()) };
        let selector = ProcessSelector { unit: Some(unit), ..ProcessSelector::default() };
        let protected = self.processes.protected()?;
        let inside = self.processes.find(&selector, &[])?;
        match inside.iter().find_map(|one| Some((one, protected.get(&one.id)?))) {
            None => Ok(()),
            Some((one, why)) => Err(HostError::Unavailable(format!(
                "unit {} is never disturbed: its process {} is {why}; narrow the pattern",
                one.unit.as_deref().unwrap_or_default(),
                one.id.pid
            ))),
        }
    }

    /// Local processes that own the selected sockets, as far as they can be told: those whose traffic
    /// is meant, or that listen on the port that is selected, here or (for a peer that may be this
    /// host) over there.
    fn owners(&self, traffic: &Traffic) -> Result<Vec<Candidate>, HostError> {
        let container = traffic.netns.as_ref().and_then(|netns| netns.strip_prefix(IN_CONTAINER));
        if traffic.netns.is_some() && container.is_none() {
            // Ports of another namespace are not this one's.
            return Ok(Vec::new());
        }
        let whose = ProcessSelector {
            container: container.map(str::to_owned),
            unit: traffic.unit.clone(),
            cgroup: traffic.cgroup.clone(),
            user: traffic.user.clone(),
            listen: traffic.listen,
            ..ProcessSelector::default()
        };
        let mut owners: BTreeMap<ProcessId, Candidate> = BTreeMap::new();
        let all = ProcessSelector { listen: None, ..whose.clone() };
        for selector in [whose, all] {
            // Of other protocols than TCP nobody can tell who listens: then all of theirs are meant.
            if owners.is_empty() && selector != ProcessSelector::default() {
                let found = self.processes.find(&selector, &[])?;
                owners.extend(found.into_iter().map(|one| (one.id, one)));
            }
        }
        // In a container the other end is not on this host's ports.
        if let Some(port) = traffic.port.filter(|_| container.is_none()) {
            owners.extend(self.processes.listening_on(port)?.into_iter().map(|one| (one.id, one)));
        }
        Ok(owners.into_values().collect())
    }
}

impl LinuxHost {
    /// Starts all units that are to be started, then waits for all of them together.
    fn start_units(&self, items: &[Restore], done: &mut [Result<(), HostError>]) {
        let boot = self.boot();
        let mut wanted = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let Restore::Start { unit, invocation, boot: then } = item else { continue };
            match &boot {
                Ok(now) if now == then => wanted.push((at, unit.as_str(), invocation.as_str())),
                // Since then the host was booted: what it starts at boot is its own affair.
                Ok(_) => {}
                Err(error) => done[at] = Err(error.clone()),
            }
        }
        let units: Vec<_> = wanted.iter().map(|(_, unit, invocation)| (*unit, *invocation)).collect();
        for ((at, ..), result) in wanted.iter().zip(self.systemd.start_again(&units)) {
            done[*at] = result;
        }
    }
}

impl Host for LinuxHost {
    fn find(
        &self,
        selector: &ProcessSelector,
        groups: &[GroupPolicy],
    ) -> Result<Vec<Candidate>, HostError> {
        self.processes.find(selector, groups)
    }

    fn instances(&self, group: &GroupPolicy) -> Result<Vec<Instance>, HostError> {
        self.processes.instances(group)
    }

    fn state(&self, id: ProcessId) -> Result<ProcessState, HostError> {
        self.processes.state(id)
    }

    fn signal(&self, id: ProcessId, signal: Signal) -> Result<Delivery, HostError> {
        self.processes.signal(id, signal)
    }

    fn plan_net(&self, spec: &NetSpec, open: &[Undo]) -> Result<NetPlan, HostError> {
        let mut exempt: BTreeSet<u16> = spec.exempt_ports.iter().copied().collect();
        exempt.extend(self.processes.ssh_ports()?);
        let spec = NetSpec { exempt_ports: exempt.into_iter().collect(), ..spec.clone() };
        self.spare_own_units(&spec.traffic)?;
        let local = match &spec.local {
            Some(local) => local.clone(),
            None => self.owners(&spec.traffic)?,
        };
        let spec = NetSpec { traffic: self.in_container(spec.traffic)?, ..spec };
        let mut plan = self.net.plan(&spec, open)?;
        plan.local = local;
        Ok(plan)
    }

    fn install(&self, plan: &NetPlan, lease: Duration) -> Result<(), HostError> {
        self.net.install(plan, lease)
    }

    fn renew(&self, leases: &[(&NetPlan, Duration)]) -> Vec<Result<(), HostError>> {
        self.net.renew(leases)
    }

    fn counters(&self, plan: &NetPlan) -> Result<NetCounters, HostError> {
        self.net.counters(plan)
    }

    fn units(&self, globs: &[&str]) -> Result<Vec<Unit>, HostError> {
        self.systemd.units(globs)
    }

    fn unit(&self, name: &str) -> Result<Option<UnitDetail>, HostError> {
        self.systemd.unit(name)
    }

    fn unit_job(&self, name: &str, verb: UnitVerb) -> Result<(), HostError> {
        self.systemd.job(name, verb, None).map(drop)
    }

    fn freezer(&self, cgroup: &str) -> Result<Option<Freezer>, HostError> {
        self.cgroups.freezer(cgroup)
    }

    fn freeze(&self, cgroup: &str, id: u64) -> Result<(), HostError> {
        self.cgroups.freeze(cgroup, id)
    }

    fn listens(&self, process: ProcessId) -> Result<Vec<SocketAddr>, HostError> {
        self.processes.listens(process)
    }

    fn servers(&self, pool: &Pool) -> Result<Vec<(Server, Aside)>, HostError> {
        haproxy::servers_aside(pool)
    }

    fn may_drain(&self, pool: &Pool) -> Result<(), HostError> {
        haproxy::may_drain(pool)
    }

    fn drain(&self, pool: &Pool, servers: &[String]) -> Result<(), HostError> {
        haproxy::drain(pool, servers)
    }

    fn boot(&self) -> Result<String, HostError> {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        read.map(|text| text.trim().to_owned()).map_err(|error| HostError::Kernel {
            doing: "read which boot this is".to_owned(),
            error: error.to_string(),
        })
    }

    fn restore(&self, items: &[Restore]) -> Vec<Result<(), HostError>> {
        let of_net = |item: &&Restore| {
            !matches!(
                item,
                Restore::Continue { .. }
                    | Restore::Thaw { .. }
                    | Restore::Start { .. }
                    | Restore::Undrain { .. }
            )
        };
        let net: Vec<Restore> = items.iter().filter(of_net).cloned().collect();
        let mut net = self.net.restore(&net).into_iter();
        let mut done: Vec<Result<(), HostError>> = items
            .iter()
            .map(|item| match item {
                Restore::Continue { process } => self.processes.signal(*process, Signal::CONT).map(drop),
                // After a boot every cgroup is a new one.
                Restore::Thaw { cgroup, id, boot } if self.boot()? == *boot => {
                    self.cgroups.thaw(cgroup, *id)
                }
                Restore::Thaw { .. } | Restore::Start { .. } | Restore::Undrain { .. } => Ok(()),
                _ => net.next().unwrap_or(Ok(())),
            })
            .collect();
        self.start_units(items, &mut done);
        haproxy::undrain_all(items, &mut done);
        done
    }

    fn headroom(&self) -> Result<Headroom, HostError> {
        self.processes.headroom()
    }

    fn abilities(&self) -> Vec<Ability> {
        let ability = |fault, variant: Option<&str>, able: Result<(), HostError>| Ability {
            fault,
            variant: variant.map(str::to_owned),
            available: able.is_ok(),
            reason: able.err().map(|error| error.to_string()),
        };
        let kill = Ability { fault: FaultKind::Kill, variant: None, available: true, reason: None };
        let kill = match rustix::process::pidfd_open(
            rustix::process::getpid(),
            rustix::process::PidfdFlags::empty(),
        ) {
            Ok(_) => kill,
            Err(error) => Ability {
                available: false,
                reason: Some(format!("pidfd_open: {error}; a kernel of version 5.3 or later is needed")),
                ..kill
            },
        };
        let pause = Ability { fault: FaultKind::Pause, ..kill.clone() };
        let freezer = ability(FaultKind::Pause, Some("unit"), self.cgroups.check());
        let unit = ability(FaultKind::Unit, None, self.systemd.check());
        [kill, pause, freezer, unit].into_iter().chain(self.net.abilities()).collect()
    }

    fn protected(&self) -> Result<BTreeMap<ProcessId, String>, HostError> {
        self.processes.protected()
    }
}
