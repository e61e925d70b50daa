//! A host in memory, with seeded failures: for tests and rehearsals.
//!
//! Deterministic: the same seed and the same calls give the same world. Its clock stands still
//! until [`SimHost::advance`] moves it. It starts no thread, sleeps never and touches nothing real.
//! Beside the verbs of [`Host`] it offers what a test must know: who was signalled, what is in
//! force, whether the world is as it was, and what would have hurt on a real host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    config::GroupPolicy,
    experiment::{FaultKind, ProcessSelector, Signal},
    fault::undo::{Restore, Undo},
    host::{
        Ability, Candidate, Delivery, FaultId, Freezer, Headroom, Host, HostError, Instance, Member,
        NetCounters, NetPlan, NetSpec, ProcessId, ProcessState, Stock, Unit, UnitDetail, UnitVerb,
        haproxy::{Aside, Pool, Server},
    },
    policy::{capacity::Reading, time::Moment},
};

mod balancer;
mod failure;
mod network;
mod plan;
mod process;
mod units;

use balancer::Balancer;
use failure::Failures;
pub use failure::{Trouble, Verb};
use network::Network;
pub use network::{Object, Owner};
use process::Processes;
pub use process::{Sent, Spawn};
use units::Units;

/// The name of the one boot that this host knows.
const BOOT: &str = "5eed5eed-0000-4000-8000-000000000000";

/// The simulated host.
#[derive(Debug)]
pub struct SimHost {
    world: Mutex<World>,
}

#[derive(Debug)]
struct World {
    now: Moment,
    processes: Processes,
    units: Units,
    balancer: Balancer,
    network: Network,
    failures: Failures,
    headroom: Headroom,
    protected: BTreeMap<ProcessId, String>,
    netem: bool,
}

/// All that must be at the end as it was at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub objects: BTreeMap<Object, Owner>,
    pub sysctls: BTreeMap<(Option<String>, String), String>,
    pub stopped: BTreeSet<ProcessId>,
    /// Cgroups that are frozen.
    pub frozen: BTreeSet<String>,
    /// Units in which nothing runs, and nothing is about to.
    pub down: BTreeSet<String>,
    /// Servers of the load balancer that drain.
    pub draining: BTreeSet<String>,
}

impl SimHost {
    /// A host with an init process, a vervet and an SSH daemon, which are protected, and with
    /// network objects that are not vervet's.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut world = World {
            now: Moment(1_000_000_000_000),
            processes: Processes::new(),
            units: Units::default(),
            balancer: Balancer::default(),
            network: Network::new(),
            failures: Failures::new(seed),
            headroom: roomy(),
            protected: BTreeMap::new(),
            netem: false,
        };
        for (name, why) in [("init", "pid 1"), ("vervet", "the agent"), ("sshd", "SSH's daemon")] {
            let like = Spawn { name: name.to_owned(), cmdline: name.to_owned(), ..Spawn::default() };
            let id = world.processes.spawn(&like, Moment(0));
            world.protected.insert(id, why.to_owned());
        }
        Self { world: Mutex::new(world) }
    }

    /// Time as this host sees it.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.world().now
    }

    /// Moves the clock forward: leases lapse, supervisors start what died, counters move.
    pub fn advance(&self, to: Moment) {
        let mut world = self.world();
        world.now = world.now.max(to);
        let now = world.now;
        world.network.advance(now);
        world.processes.advance(now);
    }

    /// Starts a process now.
    pub fn spawn(&self, like: &Spawn) -> ProcessId {
        let mut world = self.world();
        let now = world.now;
        world.processes.spawn(like, now)
    }

    /// A unit of the service manager, started now: one process like this in a cgroup of the unit's.
    /// `like.respawn` is its `Restart=`. Its process; the unit's cgroup is `/system.slice/NAME`.
    pub fn add_unit(&self, name: &str, like: &Spawn) -> ProcessId {
        let mut world = self.world();
        let now = world.now;
        let World { units, processes, .. } = &mut *world;
        units.add(name, like, processes, now)
    }

    /// The load balancer has a server for this port of the host. Its sessions end so long after it
    /// began to drain; `None`: never.
    pub fn add_server(&self, name: &str, port: u16, finishes: Option<Duration>) {
        self.world().balancer.add(name, port, finishes);
    }

    /// Somebody else starts the load balancer anew: it forgets what it was told.
    pub fn restart_balancer(&self) {
        self.world().balancer.forget();
    }

    /// Servers that were drained, in order.
    #[must_use]
    pub fn drains(&self) -> Vec<String> {
        self.world().balancer.drains.clone()
    }

    /// Systemd stops `other` whenever it stops `unit`.
    pub fn bind_units(&self, unit: &str, other: &str) {
        self.world().units.bind(unit, other);
    }

    /// What became of units by jobs, in order: every one that was taken.
    #[must_use]
    pub fn unit_jobs(&self) -> Vec<(String, UnitVerb)> {
        self.world().units.jobs.clone()
    }

    /// Cgroups that were told to freeze, in order.
    #[must_use]
    pub fn freezes(&self) -> Vec<String> {
        self.world().units.freezes.clone()
    }

    /// A process ends by itself.
    pub fn die(&self, id: ProcessId) {
        let mut world = self.world();
        let now = world.now;
        world.processes.die(id, now);
    }

    /// Deaths since the last call, in order, whoever caused them: what a pidfd would tell.
    pub fn take_deaths(&self) -> Vec<(ProcessId, Moment)> {
        std::mem::take(&mut self.world().processes.deaths)
    }

    /// Makes a process answer its readiness check, or fail it.
    pub fn set_ready(&self, id: ProcessId, ready: bool) {
        if let Some(process) = self.world().processes.get_mut(id) {
            process.ready = ready;
        }
    }

    /// What a perfect monitor of this group reads now. A stopped process is not ready.
    ///
    /// # Errors
    /// When the group's selector does not resolve.
    pub fn reading(&self, group: &GroupPolicy, groups: &[GroupPolicy]) -> Result<Reading, HostError> {
        let mut world = self.world();
        let now = world.now;
        let instances = world.processes.instances(group, now)?;
        let mut found = world.processes.find(&group.members, groups, now)?;
        found.retain(|one| instances.iter().any(|instance| instance.id == one.id));
        let members: Vec<Member> = found
            .into_iter()
            .map(|candidate| {
                let frozen = world.units.is_frozen(&candidate.cgroup, &world.processes)
                    || world.balancer.drains_any_of(&candidate.listens);
                let ready =
                    world.processes.get(candidate.id).is_some_and(|process| {
                        process.ready && !process.stopped && process.ready_at <= now
                    }) && !frozen;
                Member { process: candidate, ready }
            })
            .collect();
        let ready = members.iter().filter(|member| member.ready).count();
        Ok(Reading {
            ready: u32::try_from(ready).unwrap_or(u32::MAX),
            total: u32::try_from(members.len()).unwrap_or(u32::MAX),
            taken_at: now,
            members: Some(members),
        })
    }

    /// The ready processes among these that no other one started as its crew: what is really there
    /// of a service, whoever counts it and however.
    #[must_use]
    pub fn leaders_ready(&self, name: &str) -> BTreeSet<ProcessId> {
        let world = self.world();
        let leads = |process: &&process::Process| {
            let led = world.processes.led_by.contains_key(&process.candidate.id);
            let frozen = world.units.is_frozen(&process.candidate.cgroup, &world.processes)
                || world.balancer.drains_any_of(&process.candidate.listens);
            process.candidate.name == name && !led && !process.stopped && !frozen
        };
        let leaders = world.processes.all().filter(leads);
        let ready = leaders.filter(|one| one.ready && one.ready_at <= world.now);
        ready.map(|process| process.candidate.id).collect()
    }

    /// Whether it is there, as it is and not as [`Host::state`] may fail to say.
    #[must_use]
    pub fn lives(&self, id: ProcessId) -> bool {
        self.world().processes.get(id).is_some()
    }

    /// Who started it as its crew, or itself; also when it has ended.
    #[must_use]
    pub fn leader_of(&self, id: ProcessId) -> ProcessId {
        self.world().processes.led_by.get(&id).copied().unwrap_or(id)
    }

    /// From now on this verb fails with this probability. Partial installs are drawn likewise.
    pub fn fail_often(&self, verb: Verb, rate: f64) {
        self.world().failures.rate(verb, rate);
    }

    /// The `nth` next call of this verb fails; 1 is the next one.
    pub fn fail_nth(&self, verb: Verb, nth: u64, trouble: Trouble) {
        self.world().failures.script(verb, nth, trouble);
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.world().failures.heal();
    }

    /// Whether the kernel has netem; without it a delay uses the tap engine.
    pub fn set_netem(&self, there: bool) {
        self.world().netem = there;
    }

    pub fn set_headroom(&self, headroom: Headroom) {
        self.world().headroom = headroom;
    }

    /// Matching packets each second, and how many of a hundred attempts a cap turns away.
    pub fn set_traffic(&self, packets_per_second: u32, refused_percent: u8) {
        let mut world = self.world();
        world.network.packets_per_second = packets_per_second;
        world.network.refused_percent = refused_percent.min(100);
    }

    pub fn set_pidfile(&self, path: &str, pid: u32) {
        self.world().processes.pidfiles.insert(path.to_owned(), pid);
    }

    /// Somebody else changes a sysctl.
    pub fn set_sysctl(&self, netns: Option<String>, path: &str, value: &str) {
        self.world().network.sysctls.insert((netns, path.to_owned()), value.to_owned());
    }

    /// Somebody else makes an object.
    pub fn add_foreign(&self, object: Object) {
        self.world().network.objects.insert(object, Owner::Foreign);
    }

    /// The world as far as it must come back.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let world = self.world();
        let mut sysctls = world.network.sysctls.clone();
        // Never written and written back are the same world.
        sysctls.retain(|_, value| value != "0");
        let stopped = world.processes.all().filter(|process| process.stopped);
        Snapshot {
            objects: world.network.objects.clone(),
            sysctls,
            stopped: stopped.map(|process| process.candidate.id).collect(),
            frozen: world.units.frozen(&world.processes),
            down: world.units.down(&world.processes),
            draining: world.balancer.draining().cloned().collect(),
        }
    }

    /// Network faults that still match traffic, whatever objects remain.
    #[must_use]
    pub fn in_force(&self) -> Vec<FaultId> {
        let world = self.world();
        world.network.in_force(world.now)
    }

    /// Every signal that reached a process, in order.
    #[must_use]
    pub fn signals(&self) -> Vec<Sent> {
        self.world().processes.sent.clone()
    }

    /// Signals that reached somebody else than `named`.
    #[must_use]
    pub fn strays(&self, named: &BTreeSet<ProcessId>) -> Vec<Sent> {
        let mut signals = self.signals();
        signals.retain(|sent| !named.contains(&sent.process));
        signals
    }

    /// Deeds that would have hurt on a real host. Must be empty, always.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.world().network.violations.clone()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for SimHost {
    fn find(
        &self,
        selector: &ProcessSelector,
        groups: &[GroupPolicy],
    ) -> Result<Vec<Candidate>, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Find, "read the process table")?;
        let now = world.now;
        world.processes.find(selector, groups, now)
    }

    fn instances(&self, group: &GroupPolicy) -> Result<Vec<Instance>, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Find, "read the process table")?;
        let now = world.now;
        world.processes.instances(group, now)
    }

    fn state(&self, id: ProcessId) -> Result<ProcessState, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::State, "read the process table")?;
        Ok(world.processes.state(id))
    }

    fn signal(&self, id: ProcessId, signal: Signal) -> Result<Delivery, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Signal, "send the signal")?;
        if let Some(why) = world.protected.get(&id) {
            let violation = format!("{signal} was sent to {why}");
            world.network.violations.push(violation);
        }
        let now = world.now;
        Ok(world.processes.signal(id, signal, now))
    }

    fn plan_net(&self, spec: &NetSpec, open: &[Undo]) -> Result<NetPlan, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::PlanNet, "read the network's state")?;
        plan::plan(spec, open, &world.network, &world.processes, world.netem)
    }

    fn install(&self, plan: &NetPlan, lease: Duration) -> Result<(), HostError> {
        let mut world = self.world();
        let trouble = world.failures.strike(Verb::Install, plan.restores.len());
        let now = world.now;
        world.network.install(plan, now.plus(lease), now, trouble)
    }

    fn renew(&self, leases: &[(&NetPlan, Duration)]) -> Vec<Result<(), HostError>> {
        let mut world = self.world();
        let now = world.now;
        let renew_one = |(plan, lease): &(&NetPlan, Duration)| {
            world.failures.check(Verb::Renew, "renew the lease")?;
            world.network.renew(plan, now.plus(*lease), now)
        };
        leases.iter().map(renew_one).collect()
    }

    fn counters(&self, plan: &NetPlan) -> Result<NetCounters, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Counters, "read the counters")?;
        Ok(world.network.counters(plan, world.now))
    }

    fn units(&self, globs: &[&str]) -> Result<Vec<Unit>, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Units, "list the units")?;
        Ok(world.units.list(globs, &world.processes))
    }

    fn unit(&self, name: &str) -> Result<Option<UnitDetail>, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Units, "ask about the unit")?;
        Ok(world.units.detail(name, &world.processes))
    }

    fn unit_job(&self, name: &str, verb: UnitVerb) -> Result<(), HostError> {
        let mut world = self.world();
        world.failures.check(Verb::UnitJob, "order the unit")?;
        let now = world.now;
        let World { units, processes, .. } = &mut *world;
        units.job(name, verb, processes, now)
    }

    fn freezer(&self, cgroup: &str) -> Result<Option<Freezer>, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Freezer, "read the freezer")?;
        Ok(world.units.freezer(cgroup, &world.processes))
    }

    fn freeze(&self, cgroup: &str, id: u64) -> Result<(), HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Freeze, "freeze")?;
        let World { units, processes, protected, network, .. } = &mut *world;
        units.freeze(cgroup, id, processes)?;
        for id in processes.in_cgroup(cgroup).0 {
            if let Some(why) = protected.get(&id) {
                network.violations.push(format!("{why} was frozen"));
            }
        }
        Ok(())
    }

    fn listens(&self, process: ProcessId) -> Result<Vec<SocketAddr>, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::State, "read its sockets")?;
        let process = world.processes.get(process);
        let ports = process.map(|process| process.candidate.listens.clone()).unwrap_or_default();
        Ok(ports.into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect())
    }

    fn servers(&self, _: &Pool) -> Result<Vec<(Server, Aside)>, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Balancer, "ask the load balancer")?;
        Ok(world.balancer.servers(world.now))
    }

    fn drain(&self, _: &Pool, servers: &[String]) -> Result<(), HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Balancer, "drain the server")?;
        let now = world.now;
        servers.iter().try_for_each(|server| world.balancer.drain(server, now))
    }

    fn boot(&self) -> Result<String, HostError> {
        Ok(BOOT.to_owned())
    }

    fn restore(&self, items: &[Restore]) -> Vec<Result<(), HostError>> {
        let mut world = self.world();
        let restore_one = |item: &Restore| {
            world.failures.check(Verb::Restore, "put it back")?;
            let now = world.now;
            let World { units, processes, network, balancer, .. } = &mut *world;
            match item {
                Restore::Undrain { server, .. } => {
                    balancer.undrain(server);
                    Ok(())
                }
                Restore::Continue { process } => {
                    if let Some(process) = processes.get_mut(*process) {
                        process.stopped = false;
                    }
                    Ok(())
                }
                Restore::Thaw { cgroup, id, boot } => {
                    if boot == BOOT {
                        units.thaw(cgroup, *id);
                    }
                    Ok(())
                }
                Restore::Start { unit, invocation, boot } => {
                    if boot == BOOT {
                        units.start_again(unit, invocation, processes, now);
                    }
                    Ok(())
                }
                _ => network.restore(item),
            }
        };
        items.iter().map(restore_one).collect()
    }

    fn headroom(&self) -> Result<Headroom, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Headroom, "read the host's stocks")?;
        Ok(world.headroom)
    }

    fn abilities(&self) -> Vec<Ability> {
        let netem = self.world().netem;
        let ability = |fault, variant: Option<&str>, available: bool| Ability {
            fault,
            variant: variant.map(str::to_owned),
            available,
            reason: (!available).then(|| "this kernel has no netem; use engine = \"tap\"".to_owned()),
        };
        vec![
            ability(FaultKind::Kill, None, true),
            ability(FaultKind::Pause, None, true),
            ability(FaultKind::Pause, Some("unit"), true),
            ability(FaultKind::Unit, None, true),
            ability(FaultKind::Latency, Some("netem"), netem),
            ability(FaultKind::Latency, Some("tap"), true),
            ability(FaultKind::Connections, None, true),
        ]
    }

    fn protected(&self) -> Result<BTreeMap<ProcessId, String>, HostError> {
        let mut world = self.world();
        world.failures.check(Verb::Protected, "read the process table")?;
        Ok(world.protected.clone())
    }
}

/// Half of everything is free.
fn roomy() -> Headroom {
    let half = Some(Stock { free: 1 << 20, total: 1 << 21 });
    Headroom { memory: half, pids: half, file_handles: half, conntrack: half }
}
