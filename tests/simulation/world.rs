//! One simulated life of a host: the real engine, the real hands and the real recovery on a host in
//! memory, with everything that can go wrong drawn from one seed, in virtual time.
//!
//! After each event the promises are checked against the host itself, not against what the engine
//! believes of it.

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use uuid::Uuid;
use vervet::{
    config::{ApiPolicy, GroupPolicy, NetworkPolicy, Policy, ReadySource, Removal},
    experiment::{
        Check, Connections, DelayEngine, Distribution, Drain, Escalation, Excess, Existing, Experiment,
        FaultSpec, Kill, Late, Latency, Order, Pause, Percent, Pick, Probe, ProcessSelector,
        ProcessTarget, Signal, Start as When, Step, Traffic, UnitAction, UnitFault,
    },
    fault::{
        Prepared, Target,
        undo::{self, Restore, Undo},
    },
    host::{
        FaultId, Headroom, Host, ProcessId, Stock, UnitVerb,
        haproxy::Pool,
        sim::{SimHost, Snapshot, Spawn, Verb},
    },
    journal::{self, Ledger as _, recovery},
    policy::{
        capacity::Reading,
        engine::{Effect, Engine, Event, HostFacts, NotDurable, Outcome, Start},
        limiter,
        time::{Moment, Now},
    },
    runner::hands::Hands,
    view::{Cleanup, Verdict},
};

use crate::ledger::MemoryLedger;

/// What the seed decided to try.
#[expect(clippy::struct_excessive_bools, reason = "five independent switches")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mischief {
    /// Instances die or fall ill by themselves.
    pub deaths: bool,
    /// The host's verbs fail.
    pub failures: bool,
    /// The agent dies; so may the warden, or the machine.
    pub crashes: bool,
    /// Readiness sources fail, hang, lie.
    pub blindness: bool,
    /// The disk is full for a while.
    pub full_disk: bool,
    /// How often a probe misses.
    pub misses: f64,
}

/// How often each thing happened, over many lives: a simulation in which nothing happens proves nothing.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub runs: u64,
    pub verdicts: BTreeMap<String, u64>,
    pub signals: u64,
    /// Units stopped or restarted, and cgroups frozen.
    pub jobs: u64,
    pub freezes: u64,
    pub drains: u64,
    pub crashes: u64,
    pub deaths: u64,
    pub reasons: BTreeMap<String, u64>,
}

enum Thing {
    /// For the engine.
    Event(Event),
    /// For a worker, at this time.
    Effect(Effect),
    Poll(usize),
    Headroom,
    Probe {
        run: Uuid,
        probe: usize,
        stop: u64,
    },
    Ill(ProcessId),
    Well(ProcessId),
    Death,
    Disk(bool),
    /// The load balancer is started anew.
    Balancer,
    Crash,
    NewRun,
    Abort,
    Wake,
}

struct Entry {
    at: Moment,
    order: u64,
    thing: Thing,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// The three workers, each doing one thing after the other.
#[derive(Default, Clone, Copy)]
struct Busy {
    hands: Moment,
    eyes: Moment,
    scribe: Moment,
}

pub struct World {
    seed: u64,
    rng: ChaCha12Rng,
    host: Arc<SimHost>,
    hands: Hands<SimHost>,
    ledger: MemoryLedger,
    policy: Arc<Policy>,
    engine: Engine,
    queue: BinaryHeap<Entry>,
    order: u64,
    now: Moment,
    busy: Busy,
    mischief: Mischief,
    /// What the warden holds.
    held: BTreeMap<FaultId, Undo>,
    watched: BTreeSet<ProcessId>,
    probes: BTreeMap<Uuid, (Vec<Probe>, u64)>,
    unwritten: Vec<(FaultId, journal::Outcome)>,
    begun: Snapshot,
    runs: Vec<Uuid>,
    runs_left: u32,
    /// When something last happened to a group that vervet did not do.
    foreign_at: Moment,
    seen_signals: usize,
    seen_jobs: usize,
    seen_freezes: usize,
    seen_drains: usize,
    /// Removals as the host saw them: vervet's signals, and deaths of others' doing.
    removals: Vec<(Moment, String)>,
    doomed: BTreeSet<ProcessId>,
    /// Instances that a fault has taken, whichever of their processes it hit.
    taken: BTreeSet<(FaultId, ProcessId)>,
    blind_until: Moment,
    /// A quiet hour with one drained kill after the other, if that is what is lived.
    monkey: Option<Monkey>,
    pub tally: Tally,
    pub trace: Vec<String>,
}

/// How capacity is seen in the hour of a monkey.
#[derive(Debug, Default)]
pub struct Monkey {
    /// The source only counts, and shows what was so long ago.
    lag: Option<Duration>,
    wake_at: Option<Moment>,
    seen: std::collections::VecDeque<(Moment, Reading)>,
}

const BEGIN: Moment = Moment(1_000_000_000_000);
const GROUPS: [&str; 2] = ["checkout", "search"];
const KINDS: [&str; 2] = ["checkout-worker", "search-worker"];

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let mischief = Mischief {
            deaths: rng.random_bool(0.4),
            failures: rng.random_bool(0.3),
            crashes: rng.random_bool(0.4),
            blindness: rng.random_bool(0.25),
            full_disk: rng.random_bool(0.15),
            misses: if rng.random_bool(0.3) { 0.4 } else { 0.02 },
        };
        let host = Arc::new(SimHost::new(seed));
        let half = Some(Stock { free: 8 << 30, total: 16 << 30 });
        host.set_headroom(Headroom { memory: half, pids: half, file_handles: half, conntrack: half });
        host.set_netem(rng.random_bool(0.5));
        host.set_traffic(rng.random_range(0..2000), rng.random_range(0..60));
        let units = rng.random_bool(0.4);
        for kind in KINDS {
            let checkout = units && kind == KINDS[0];
            let managed = checkout || (kind == KINDS[1] && rng.random_bool(0.7));
            for at in 0..rng.random_range(2..7_u16) {
                let crew = if checkout { rng.random_range(0..4) } else { 0 };
                let linger = Duration::from_millis(rng.random_range(0..6000));
                let like = Spawn {
                    name: kind.to_owned(),
                    cmdline: format!("{kind} --instance {at}"),
                    listens: vec![if kind == KINDS[0] { 8000 } else { 9000 } + at],
                    ignores: if rng.random_bool(0.1) { vec![Signal::TERM] } else { Vec::new() },
                    respawn: rng
                        .random_bool(0.7)
                        .then(|| Duration::from_millis(rng.random_range(20..4000))),
                    warm_up: Duration::from_millis(rng.random_range(0..1500)),
                    crew,
                    linger: if checkout { linger } else { Duration::ZERO },
                    ..Spawn::default()
                };
                if kind == KINDS[0] {
                    let finishes = rng.random_bool(0.8);
                    let finishes = finishes.then(|| Duration::from_millis(rng.random_range(0..1500)));
                    host.add_server(&format!("s{at}"), 8000 + at, finishes);
                }
                if managed {
                    // What others end comes back, so that only a job leaves a unit down.
                    let respawn = like.respawn.or(Some(Duration::from_millis(500)));
                    let name = kind.trim_end_matches("-worker");
                    host.add_unit(&format!("{name}@{at}.service"), &Spawn { respawn, ..like });
                } else {
                    host.spawn(&like);
                }
            }
        }
        host.advance(BEGIN.plus(Duration::from_secs(10)));
        let now = BEGIN.plus(Duration::from_secs(10));
        let policy = Arc::new(policy(&mut rng, units));
        let engine = Engine::new(policy.clone(), facts(&host), None);
        let runs_left = rng.random_range(1..4);
        let mut world = Self {
            seed,
            rng,
            hands: Hands::new(host.clone()),
            begun: host.snapshot(),
            host,
            ledger: MemoryLedger::default(),
            policy,
            engine,
            queue: BinaryHeap::new(),
            order: 0,
            now,
            busy: Busy::default(),
            mischief,
            held: BTreeMap::new(),
            watched: BTreeSet::new(),
            probes: BTreeMap::new(),
            unwritten: Vec::new(),
            runs: Vec::new(),
            runs_left,
            foreign_at: Moment::default(),
            seen_signals: 0,
            seen_jobs: 0,
            seen_freezes: 0,
            seen_drains: 0,
            removals: Vec::new(),
            doomed: BTreeSet::new(),
            taken: BTreeSet::new(),
            blind_until: Moment::default(),
            monkey: None,
            tally: Tally::default(),
            trace: Vec::new(),
        };
        world.ledger.safe.set(!world.mischief.crashes);
        world.set_out();
        world
    }

    /// An hour of kills with drains of one of four, whom a supervisor replaces; nothing else goes wrong.
    pub fn monkey(seed: u64, lag: Option<Duration>) -> Self {
        let mut world = Self::new(seed);
        let host = Arc::new(SimHost::new(seed));
        let half = Some(Stock { free: 8 << 30, total: 16 << 30 });
        host.set_headroom(Headroom { memory: half, pids: half, file_handles: half, conntrack: half });
        for at in 0..4_u16 {
            host.spawn(&Spawn {
                name: KINDS[0].to_owned(),
                cmdline: format!("{} --instance {at}", KINDS[0]),
                listens: vec![8000 + at],
                respawn: Some(Duration::from_secs(2)),
                warm_up: Duration::from_millis(500),
                ..Spawn::default()
            });
            host.add_server(&format!("s{at}"), 8000 + at, Some(Duration::from_millis(300)));
        }
        host.advance(world.now);
        let mut policy = (*world.policy).clone();
        policy.groups.truncate(1);
        let group = &mut policy.groups[0];
        (group.floor, group.expected) = (3, Some(4));
        group.members =
            ProcessSelector { name: Some(KINDS[0].to_owned()), ..ProcessSelector::default() };
        group.settle = Duration::from_secs(2);
        // The budget has room for all of them: it is the readings and the charges that must hold.
        group.removal = Removal { at_once: 4, every: Duration::from_secs(1) };
        policy.limits.concurrent_runs = 3;
        world.policy = Arc::new(policy);
        world.engine = Engine::new(world.policy.clone(), facts(&host), None);
        world.hands = Hands::new(host.clone());
        world.begun = host.snapshot();
        world.host = host;
        world.mischief = Mischief {
            deaths: false,
            failures: false,
            crashes: false,
            blindness: false,
            full_disk: false,
            misses: 0.0,
        };
        world.ledger.safe.set(true);
        world.queue.clear();
        world.runs_left = u32::MAX;
        world.monkey = Some(Monkey { lag, ..Monkey::default() });
        world.after(0, Thing::Poll(0));
        world.after(0, Thing::Headroom);
        world.after(5_000, Thing::NewRun);
        world
    }

    /// Lives an hour; at each instant of it the floor holds as it really is, and not as anybody counts.
    pub fn live_an_hour(&mut self) {
        let over = self.now.plus(Duration::from_hours(1));
        while self.now < over {
            let Some(entry) = self.queue.pop() else { break };
            self.now = self.now.max(entry.at);
            self.host.advance(self.now);
            self.do_thing(entry.thing);
            self.tell_deaths();
            self.check();
            let left = self.host.leaders_ready(KINDS[0]).len();
            self.promise(left >= 3, &format!("three of four are ready, {left} are"));
        }
        self.end();
    }

    fn set_out(&mut self) {
        for group in 0..GROUPS.len() {
            self.after(0, Thing::Poll(group));
        }
        self.after(0, Thing::Headroom);
        self.after(600, Thing::NewRun);
        if self.mischief.deaths {
            let at = self.rng.random_range(300..8000);
            self.after(at, Thing::Death);
        }
        if self.mischief.crashes {
            let at = self.rng.random_range(600..6000);
            let at_us = at * 1000 + self.draw(0, 1000);
            self.after_us(at_us, Thing::Crash);
        }
        if self.rng.random_bool(0.1) {
            let at = self.rng.random_range(600..6000);
            self.after(at, Thing::Balancer);
        }
        if self.mischief.full_disk {
            let at = self.rng.random_range(0..4000);
            self.after(at, Thing::Disk(true));
            let back = at + self.draw(100, 4000);
            self.after(back, Thing::Disk(false));
        }
        if self.mischief.failures {
            for verb in Verb::ALL {
                if self.rng.random_bool(0.4) {
                    self.host.fail_often(verb, self.rng.random_range(0.0..0.2));
                }
            }
        }
    }

    /// Lives this life to its end. Panics where a promise is broken.
    pub fn live(&mut self) {
        let give_up = self.now.plus(Duration::from_mins(5));
        let mut events = 0_u32;
        while let Some(entry) = self.queue.pop() {
            self.now = self.now.max(entry.at);
            self.host.advance(self.now);
            self.do_thing(entry.thing);
            self.tell_deaths();
            self.check();
            events += 1;
            self.promise(events < 200_000, "a life ends");
            if self.is_over() || self.now > give_up {
                break;
            }
        }
        self.end();
    }

    fn is_over(&self) -> bool {
        self.runs_left == 0 && !self.runs.is_empty() && self.engine.is_idle() && self.engine.stuck() == 0
    }

    fn do_thing(&mut self, thing: Thing) {
        match thing {
            Thing::Event(event) => self.tell(event),
            Thing::Effect(effect) => self.work(effect),
            Thing::Poll(group) => self.poll(group),
            Thing::Headroom => {
                let headroom = self.host.headroom().map_err(|error| error.to_string());
                self.tell(Event::Headroom(headroom));
                self.after(1000, Thing::Headroom);
            }
            Thing::Probe { run, probe, stop } => self.probe(run, probe, stop),
            Thing::Death => self.misfortune(),
            Thing::Ill(id) => self.host.set_ready(id, false),
            Thing::Well(id) => self.host.set_ready(id, true),
            Thing::Balancer => self.host.restart_balancer(),
            Thing::Disk(full) => *self.ledger.full.borrow_mut() = full,
            Thing::Crash => self.crash(),
            Thing::NewRun => self.new_run(),
            Thing::Abort => {
                if let Some(run) = self.runs.last().copied() {
                    self.tell(Event::Abort { run, caller: "simulation".to_owned() });
                }
            }
            Thing::Wake => {
                if let Some(monkey) = &mut self.monkey {
                    monkey.wake_at = None;
                }
                self.tell(Event::Tick);
            }
        }
    }

    fn tell(&mut self, event: Event) {
        self.note(|| format!("event {event:?}"));
        let now = self.clock();
        for effect in self.engine.handle(event, now) {
            self.perform(effect);
        }
        if let Some(at) = self.engine.next_wake(self.clock()).map(|at| at.max(self.now)) {
            // An hour has too many events to be woken for each of them.
            let known = self.monkey.as_mut().and_then(|monkey| monkey.wake_at.replace(at));
            if known != Some(at) {
                self.at(at, Thing::Wake);
            }
        }
    }

    /// Hands an effect to its worker, which gets to it when it has time.
    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Log(event) => {
                let _ = self.ledger.append_events(&[event]);
            }
            Effect::Save(run) => {
                if run.verdict.is_some() {
                    self.finished(&run);
                }
                let _ = self.ledger.save_run(&run);
            }
            Effect::StartProbes { run, probes } => {
                self.order += 1;
                let stop = self.order;
                for probe in 0..probes.len() {
                    self.after(1, Thing::Probe { run, probe, stop });
                }
                self.probes.insert(run, (probes, stop));
            }
            Effect::StopProbes { run } => drop(self.probes.remove(&run)),
            Effect::WatchExits(processes) => self.watched.extend(processes),
            Effect::PersistHalt { reason } => {
                self.promise(false, &format!("the self-test holds: {reason}"));
            }
            Effect::Planned { .. } | Effect::Remember(_) | Effect::Slot(_) | Effect::Launch { .. } => {}
            Effect::Forbid(run) => self.hands.forbid(run),
            effect => {
                let took = self.rng.random_range(20..3_000_u64);
                let slow = if self.rng.random_bool(0.02) { 60_000 } else { 0 };
                let took = Duration::from_micros(took + slow);
                let worker = match &effect {
                    Effect::Commit(_) | Effect::Close { .. } => &mut self.busy.scribe,
                    Effect::Resolve { .. } | Effect::Prepare { .. } | Effect::Measure { .. } => {
                        &mut self.busy.eyes
                    }
                    _ => &mut self.busy.hands,
                };
                let at = self.now.max(*worker).plus(took);
                *worker = at;
                self.at(at, Thing::Effect(effect));
            }
        }
    }

    /// A worker does its work; what came of it reaches the engine a little later.
    fn work(&mut self, effect: Effect) {
        self.note(|| format!("work {effect:?}"));
        let policy = self.policy.clone();
        let events = match effect {
            Effect::Resolve { job, steps } => vec![self.hands.resolve(&policy, job, steps)],
            Effect::Prepare { run, step, spec, target, fault, seed } => {
                vec![self.hands.prepare(&policy, run, step, &spec, &target, fault, seed)]
            }
            Effect::Commit(intent) => vec![self.commit(*intent)],
            Effect::Drain { run, step, prepared, begin } => {
                self.intended(&prepared.fault);
                vec![self.hands.drain(run, step, &prepared, begin)]
            }
            Effect::Inject { run, step, prepared, deadline } => {
                self.intended(&prepared.fault);
                vec![self.hands.inject(run, step, &prepared, deadline, self.now)]
            }
            Effect::Escalate { run, prepared, signal, .. } => {
                self.hands.escalate(run, &prepared, signal);
                Vec::new()
            }
            Effect::Measure { run, step, prepared, injection } => {
                vec![self.hands.measure(run, step, &prepared, &injection)]
            }
            Effect::Renew(leases) => self.hands.renew(&leases, self.now),
            Effect::Revert(items) => self.hands.revert(&items),
            Effect::Close { fault, outcome } => {
                self.held.remove(&fault);
                self.hands.let_go(&fault);
                let outcome = match outcome {
                    Outcome::Reverted => journal::Outcome::Reverted,
                    Outcome::NeverInjected => journal::Outcome::NeverInjected,
                };
                self.unwritten.push((fault, outcome));
                if self.ledger.close(&self.unwritten, self.clock().wall).is_ok() {
                    self.unwritten.clear();
                }
                Vec::new()
            }
            _ => unreachable!("performed at once"),
        };
        for event in events {
            let delay = self.rng.random_range(1..200);
            self.after_us(delay, Thing::Event(event));
        }
    }

    fn commit(&mut self, intent: vervet::policy::engine::Intent) -> Event {
        let (run, step) = (intent.run, intent.step);
        let record = journal::Intent {
            run,
            step: u32::try_from(step).unwrap(),
            prepared: (*intent.prepared).clone(),
            charges: intent.charges,
            opened_at: intent.opened_at,
            deadline: intent.deadline.map(|(_, wall)| wall),
        };
        let result = match self.ledger.commit(&record) {
            Err(error) => Err(NotDurable::Journal(error.to_string())),
            Ok(()) => {
                self.held.insert(record.fault().clone(), record.undo().clone());
                Ok(())
            }
        };
        Event::Committed { run, step, result }
    }

    fn poll(&mut self, index: usize) {
        let group = self.policy.groups[index].clone();
        let blind = self.mischief.blindness && self.rng.random_bool(0.02);
        let result = if blind {
            self.blind_until = self.now.plus(Duration::from_secs(8));
            match self.rng.random_range(0..3) {
                0 => Err("connection refused".to_owned()),
                1 => {
                    // It hangs: nothing is heard of it for a while.
                    let later = self.draw(500, 5000);
                    self.after(later, Thing::Poll(index));
                    return;
                }
                _ => self.host.reading(&group, &self.policy.groups).map_err(|e| e.to_string()).map(
                    |mut r| {
                        r.ready = 0;
                        for member in r.members.iter_mut().flatten() {
                            member.ready = false;
                        }
                        r
                    },
                ),
            }
        } else {
            self.host.reading(&group, &self.policy.groups).map_err(|error| error.to_string())
        };
        let result = result.map(|reading| self.as_the_monkey_sees(reading));
        if let Ok(reading) = &result {
            self.watched.extend(reading.members.iter().flatten().map(|member| member.process.id));
        }
        let event = Event::Reading { group: group.name, result };
        let delay = self.rng.random_range(10..5_000);
        self.after_us(delay, Thing::Event(event));
        self.after(250, Thing::Poll(index));
    }

    /// A load balancer that only counts, and whose checks take their time.
    fn as_the_monkey_sees(&mut self, reading: Reading) -> Reading {
        let Some(monkey) = &mut self.monkey else { return reading };
        let Some(lag) = monkey.lag else { return reading };
        self.watched.extend(reading.members.iter().flatten().map(|member| member.process.id));
        monkey.seen.push_back((self.now, reading.clone()));
        while monkey.seen.get(1).is_some_and(|(at, _)| at.plus(lag) <= self.now) {
            monkey.seen.pop_front();
        }
        let (_, old) = &monkey.seen[0];
        Reading { ready: old.ready, total: 4, members: None, ..reading }
    }

    fn probe(&mut self, run: Uuid, index: usize, stop: u64) {
        let Some((probes, live)) = self.probes.get(&run) else { return };
        if *live != stop || matches!(probes[index].check, Check::Group { .. }) {
            return;
        }
        let every = probes[index].every;
        let outcome = if self.rng.random_bool(self.mischief.misses) {
            Err("timed out".to_owned())
        } else {
            Ok(())
        };
        let event = Event::Probed { run, probe: index, outcome, at: self.now };
        let took = self.draw(100, 20_000);
        self.after_us(took, Thing::Event(event));
        let next = self.now.plus(every);
        self.at(next, Thing::Probe { run, probe: index, stop });
    }

    fn misfortune(&mut self) {
        let group = self.policy.groups[self.rng.random_range(0..GROUPS.len())].clone();
        let members =
            self.host.reading(&group, &self.policy.groups).map(|r| r.members.unwrap_or_default());
        if let Some(member) = members.ok().and_then(|members| {
            let at = self.rng.random_range(0..members.len().max(1));
            members.get(at).cloned()
        }) {
            self.foreign_at = self.now;
            self.tally.deaths += 1;
            if self.rng.random_bool(0.7) {
                self.host.die(member.process.id);
                let views = self.engine.group_views(self.clock());
                let known = views
                    .iter()
                    .flat_map(|view| &view.members)
                    .any(|other| other.ready && other.pid == member.process.id.pid);
                if known && !self.doomed.contains(&member.process.id) {
                    self.removals.push((self.now, group.name.0));
                }
            } else {
                self.do_thing(Thing::Ill(member.process.id));
                let back = self.rng.random_range(100..4000);
                self.after(back, Thing::Well(member.process.id));
            }
        }
        let next = self.rng.random_range(200..12_000);
        self.after(next, Thing::Death);
    }

    /// What a pidfd tells, at once.
    fn tell_deaths(&mut self) {
        for (process, at) in self.host.take_deaths() {
            let mut groups = Vec::new();
            let last = self.engine.group_views(self.clock());
            for view in last {
                if view.members.iter().any(|member| member.pid == process.pid) {
                    groups.push(view.name.as_str().into());
                }
            }
            if self.monkey.as_ref().is_some_and(|monkey| monkey.lag.is_some()) {
                groups = vec![GROUPS[0].into()];
            }
            if self.watched.remove(&process) {
                let event = Event::Lost { groups, process, at };
                let delay = self.rng.random_range(5..400);
                self.after_us(delay, Thing::Event(event));
            }
        }
    }

    fn new_run(&mut self) {
        if self.runs_left == 0 {
            return;
        }
        self.runs_left -= 1;
        let mut bytes = [0_u8; 16];
        self.rng.fill_bytes(&mut bytes);
        bytes[..6].copy_from_slice(&(self.now.0 / 1_000_000).to_be_bytes()[2..]);
        let run = Uuid::from_bytes(bytes);
        let experiment = if self.monkey.is_some() { lose_one() } else { experiment(&mut self.rng) };
        let experiment = Arc::new(experiment);
        let seed = self.rng.random();
        let start = Start {
            run,
            experiment: experiment.clone(),
            seed,
            plan: None,
            caller: "simulation".to_owned(),
            leashed: false,
        };
        self.runs.push(run);
        self.tally.runs += 1;
        self.tell(Event::Start(Box::new(start)));
        if let Some(view) = self.engine.view_of(run, self.clock()) {
            let _ = self.ledger.begin(&view, &serde_json::Value::Null, None);
        }
        if self.monkey.is_some() {
            let next = self.draw(100, 20_000);
            return self.after(next, Thing::NewRun);
        }
        if self.rng.random_bool(0.15) {
            let at = self.draw(1, 3000);
            self.after(at, Thing::Abort);
        }
        let next = self.draw(500, 9000);
        self.after(next, Thing::NewRun);
    }

    /// The agent dies wherever it is. Perhaps the warden with it, perhaps the machine's memory.
    fn crash(&mut self) {
        self.note(|| "crash".to_owned());
        self.tally.crashes += 1;
        if self.rng.random_bool(0.3) {
            self.ledger.lose_power();
        }
        let warden_lives = self.rng.random_bool(0.5);
        let held = std::mem::take(&mut self.held);
        if warden_lives {
            let undos: Vec<_> = held.into_iter().collect();
            let _ = undo::revert(&*self.host, &undos, &[]);
        }
        // Nobody of vervet is there.
        let pause = Duration::from_millis(self.rng.random_range(0..4000));
        self.queue.retain(|entry| {
            matches!(
                entry.thing,
                Thing::Death | Thing::Ill(_) | Thing::Well(_) | Thing::Disk(_) | Thing::Balancer
            )
        });
        self.now = self.now.plus(pause);
        self.host.advance(self.now);
        let _ = self.host.take_deaths();
        if pause > Duration::from_secs(2) {
            let in_force = self.host.in_force();
            self.promise(in_force.is_empty(), &format!("the kernel ends {in_force:?} within 2 s"));
        }
        (self.busy, self.unwritten) = (Busy::default(), Vec::new());
        self.watched.clear();
        self.probes.clear();
        self.doomed.clear();
        self.host.heal();
        let full = self.ledger.full.replace(false);
        let recovered = recovery::recover(&self.ledger, &*self.host, self.clock().wall).unwrap();
        *self.ledger.full.borrow_mut() = full;
        self.promise(recovered.stuck.is_empty(), "recovery on a host that obeys leaves nothing stuck");
        self.same_as_before("after recovery");
        self.hands = Hands::new(self.host.clone());
        self.engine = Engine::new(self.policy.clone(), facts(&self.host), None);
        let now = self.clock();
        let longest = self.policy.groups.iter().map(|group| group.removal.every).max().unwrap();
        let since = now.wall.checked_sub(longest).unwrap();
        for (group, count, at) in self.ledger.recent_charges(since).unwrap() {
            let ago = Duration::try_from(now.wall.duration_since(at)).unwrap();
            self.engine.inherit_removal(&group, count, now.mono.minus(ago));
        }
        // What others' deaths drew on the budget is not in the journal.
        self.removals.retain(|(_, who)| who.starts_with("vervet"));
        if recovered.unrecorded.is_some() {
            let reverted =
                recovered.reverted.iter().map(|one| (one.fault.clone(), journal::Outcome::Reverted));
            self.unwritten.extend(reverted);
        }
        self.runs.clear();
        self.runs_left = self.runs_left.max(1);
        self.mischief.crashes = false;
        self.ledger.safe.set(true);
        self.set_out();
    }

    fn finished(&mut self, run: &vervet::view::RunView) {
        let verdict = format!("{:?}", run.verdict);
        *self.tally.verdicts.entry(verdict).or_default() += 1;
        if let Some(why) = &run.why {
            *self.tally.reasons.entry(why.reason.clone()).or_default() += 1;
        }
        self.promise(run.verdict.is_some(), "a finished run has a verdict");
        if run.verdict == Some(Verdict::Passed) {
            let proven =
                run.steps.iter().all(|step| step.effect.as_ref().is_some_and(|effect| effect.proven));
            self.promise(proven, "a passed run has proven effects");
            self.promise(run.cleanup == Cleanup::Clean, "a passed run is clean");
        }
        if run.verdict == Some(Verdict::Refused) {
            let touched = run.steps.iter().any(|step| step.injected_at.is_some());
            self.promise(!touched, "a refused run has touched nothing");
        }
    }

    /// Nothing is injected without a durable undo.
    fn intended(&self, fault: &FaultId) {
        let durable = self.ledger.any_intent(|intent| intent.fault() == fault);
        self.promise(durable, &format!("{} is durable before it is injected", fault.0));
    }

    /// The promises, held against the host.
    fn check(&mut self) {
        let violations = self.host.violations();
        self.promise(violations.is_empty(), &format!("no deed that hurts: {violations:?}"));
        let signals = self.host.signals();
        let fresh: Vec<_> = signals[self.seen_signals..].to_vec();
        self.seen_signals = signals.len();
        for sent in fresh {
            self.tally.signals += 1;
            let named = std::cell::RefCell::new(None);
            let instance = self.host.leader_of(sent.process);
            let _ = self.ledger.any_intent(|intent| {
                if let Target::Processes { processes } = &intent.prepared.target
                    && processes.iter().any(|p| p.id == sent.process)
                {
                    // The last one counts.
                    let leads = processes.iter().any(|p| p.id == instance);
                    named.replace(Some((intent.fault().clone(), leads)));
                }
                false
            });
            let named = named.into_inner();
            self.promise(named.is_some(), &format!("{:?} was named in an intent", sent.process));
            // A pause takes an instance each time, an end only once; and what is left of one that
            // had lost its leader before is none any more.
            if (sent.signal == Signal::STOP || self.doomed.insert(sent.process))
                && let Some((fault, leads)) = named
                && (leads || self.host.lives(instance))
                && self.taken.insert((fault, instance))
            {
                self.check_signalled(sent.process);
            }
        }
        self.check_units();
    }

    /// Units are touched as planned, and brought back as recorded; each counts as a removal.
    fn check_units(&mut self) {
        let jobs = self.host.unit_jobs();
        for (unit, verb) in jobs[self.seen_jobs..].iter().cloned() {
            let named = self.ledger.any_intent(|intent| match verb {
                UnitVerb::Start => starts(&intent.prepared, &unit),
                _ => starts(&intent.prepared, &unit) && takes(&intent.prepared, &unit),
            });
            self.promise(named, &format!("{verb} {unit} was named in a durable intent"));
            if verb != UnitVerb::Start {
                self.tally.jobs += 1;
                self.check_removal_of_unit(&unit);
            }
        }
        self.seen_jobs = jobs.len();
        let freezes = self.host.freezes();
        for cgroup in freezes[self.seen_freezes..].iter().cloned() {
            let unit = cgroup.rsplit('/').next().unwrap_or_default();
            let named = self.ledger.any_intent(|intent| {
                let thaw =
                    |item: &Restore| matches!(item, Restore::Thaw { cgroup: c, .. } if *c == cgroup);
                takes(&intent.prepared, unit) && intent.prepared.undo.restores.iter().any(thaw)
            });
            self.promise(named, &format!("the freeze of {cgroup} was named in a durable intent"));
            self.tally.freezes += 1;
            self.check_removal_of_unit(unit);
        }
        self.seen_freezes = freezes.len();
        let drains = self.host.drains();
        for server in &drains[self.seen_drains..] {
            self.tally.drains += 1;
            self.check_drain(server);
        }
        self.seen_drains = drains.len();
    }

    /// Who gets no requests is no capacity: the drain is the removal, and the kill that follows is not
    /// another one.
    fn check_drain(&mut self, server: &str) {
        let named = std::cell::RefCell::new(None);
        let port: u16 = 8000 + server.trim_start_matches('s').parse::<u16>().unwrap();
        let _ = self.ledger.any_intent(|intent| {
            let undrain =
                |item: &Restore| matches!(item, Restore::Undrain { server: s, .. } if s == server);
            if let Target::Processes { processes } = &intent.prepared.target
                && intent.prepared.undo.restores.iter().any(undrain)
            {
                // The last one counts.
                let victim = processes.iter().find(|p| p.listens.contains(&port)).map(|p| p.id);
                named.replace(Some((intent.fault().clone(), victim)));
            }
            false
        });
        let named = named.into_inner();
        self.promise(named.is_some(), &format!("the drain of {server} was named in a durable intent"));
        if let Some((fault, Some(victim))) = named
            && self.host.lives(victim)
            && self.taken.insert((fault, victim))
        {
            self.check_removal(0);
        }
    }

    /// A unit that had lost its main process before was no instance any more.
    fn check_removal_of_unit(&mut self, unit: &str) {
        let whole = std::cell::Cell::new(false);
        let _ = self.ledger.any_intent(|intent| {
            if let Target::Units { units } = &intent.prepared.target
                && let Some(one) = units.iter().find(|one| one.name == unit)
            {
                whole.set(one.processes.iter().any(|p| self.host.leader_of(p.id) == p.id));
            }
            false
        });
        if !whole.get() {
            return;
        }
        if let Some(index) = GROUPS.iter().position(|group| unit.starts_with(group)) {
            self.check_removal(index);
        }
    }

    fn check_signalled(&mut self, id: ProcessId) {
        // Which group it was of; it may be dead by now.
        let group = (0..GROUPS.len()).find(|index| {
            self.ledger.any_intent(|intent| match &intent.prepared.target {
                Target::Processes { processes } => {
                    processes.iter().any(|p| p.id == id && p.name == KINDS[*index])
                }
                _ => false,
            })
        });
        if let Some(index) = group {
            self.check_removal(index);
        }
    }

    fn check_removal(&mut self, index: usize) {
        let group = self.policy.groups[index].clone();
        let key = format!("vervet:{}", group.name);
        let window = |at: &Moment| self.now < at.plus(group.removal.every);
        // Deaths of others' doing that vervet can have heard of.
        let heard = Duration::from_millis(1);
        let used = self
            .removals
            .iter()
            .filter(|(at, who)| {
                window(at)
                    && (*who == key
                        || (*who == group.name.0
                            && at.plus(heard) < self.now.minus(Duration::from_millis(80))))
            })
            .count();
        self.removals.push((self.now, key));
        self.promise(
            used < group.removal.at_once as usize,
            &format!(
                "the budget of {} holds: {used} used of {} in {:?}: {:?}",
                group.name, group.removal.at_once, group.removal.every, self.removals
            ),
        );
        // Not as vervet counts, but as it is: what is left of a unit without its main process is
        // nothing.
        let mut left = self.host.leaders_ready(KINDS[index]);
        left.retain(|id| !self.doomed.contains(id));
        let left = left.len();
        // What others did in the last moments nobody can have known in time.
        let calm =
            self.now.since(self.foreign_at) > Duration::from_millis(400) && self.now > self.blind_until;
        if calm {
            self.promise(
                left >= group.floor as usize,
                &format!("the floor of {} holds: {left} left of {}", group.name, group.floor),
            );
        }
    }

    fn end(&mut self) {
        // The host obeys again and the disk has room: everything must come to an end.
        self.host.heal();
        *self.ledger.full.borrow_mut() = false;
        self.tell(Event::Shutdown);
        let limit = self.now.plus(Duration::from_mins(1));
        while !self.engine.is_idle() || self.engine.stuck() > 0 {
            let Some(entry) = self.queue.pop() else { break };
            self.now = self.now.max(entry.at);
            self.promise(self.now < limit, "a shutdown ends");
            self.host.advance(self.now);
            if matches!(entry.thing, Thing::Event(_) | Thing::Effect(_) | Thing::Wake) {
                self.do_thing(entry.thing);
            }
        }
        // What is still on its way to the journal.
        while let Some(entry) = self.queue.pop() {
            if matches!(entry.thing, Thing::Effect(Effect::Close { .. })) {
                self.do_thing(entry.thing);
            }
        }
        if self.ledger.close(&self.unwritten, self.clock().wall).is_ok() {
            self.unwritten.clear();
        }
        self.promise(self.engine.is_idle(), "every run ends");
        self.same_as_before("at the end");
        let open = self.ledger.open_intents().unwrap().intents.len();
        self.promise(open == 0, &format!("no intent stays open, {open} do"));
        let views = self.engine.fault_views(self.clock());
        self.promise(views.is_empty(), "no fault is shown that is not there");
        self.check();
    }

    fn same_as_before(&self, when: &str) {
        let after = self.host.snapshot();
        self.promise(
            after == self.begun,
            &format!("the host is as it was {when}:\nbefore {:?}\nafter  {after:?}", self.begun),
        );
    }

    fn promise(&self, kept: bool, what: &str) {
        if kept {
            return;
        }
        let tail = self.trace.len().saturating_sub(if std::env::var_os("VERVET_ALL").is_some() {
            1_000_000
        } else {
            60
        });
        for line in &self.trace[tail..] {
            eprintln!("{line}");
        }
        for run in self.ledger.runs() {
            eprintln!("run {} {:?}", run.id, run.verdict);
            for line in self.ledger.events_of(run.id) {
                eprintln!("   {line}");
            }
        }
        panic!("broken promise at {:?}: {what}\nreplay with VERVET_SEED={}", self.now, self.seed);
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if std::env::var_os("VERVET_SEED").is_some() {
            let line = format!("{:>12} {}", self.now.since(BEGIN).as_micros(), what());
            self.trace.push(line.chars().take(400).collect());
        }
    }

    fn clock(&self) -> Now {
        let wall = Timestamp::from_second(1_800_000_000).unwrap();
        Now { mono: self.now, wall: wall.checked_add(self.now.since(BEGIN)).unwrap() }
    }

    fn draw(&mut self, from: u64, to: u64) -> u64 {
        self.rng.random_range(from..to)
    }

    fn after(&mut self, ms: u64, thing: Thing) {
        self.after_us(ms * 1000, thing);
    }

    fn after_us(&mut self, us: u64, thing: Thing) {
        let at = self.now.plus(Duration::from_micros(us));
        self.at(at, thing);
    }

    fn at(&mut self, at: Moment, thing: Thing) {
        self.order += 1;
        self.queue.push(Entry { at, order: self.order, thing });
    }
}

/// Its undo starts this unit.
fn starts(prepared: &Prepared, unit: &str) -> bool {
    let start = |item: &Restore| matches!(item, Restore::Start { unit: name, .. } if name == unit);
    prepared.undo.restores.iter().any(start)
}

/// This unit is among its targets.
fn takes(prepared: &Prepared, unit: &str) -> bool {
    matches!(&prepared.target, Target::Units { units } if units.iter().any(|one| one.name == unit))
}

/// Drain one of four, kill it, put it back.
fn lose_one() -> Experiment {
    let group = Some(GROUPS[0].into());
    let kill = Kill {
        target: ProcessTarget {
            select: ProcessSelector { group, ..ProcessSelector::default() },
            pick: Pick::Count(1),
            order: Order::Random,
        },
        signal: Signal::KILL,
        then: None,
        drain: Some(Drain {
            pool: Pool { haproxy: "/sim".to_owned(), backend: "checkout".to_owned() },
            within: Duration::from_secs(2),
            late: Late::Spare,
        }),
    };
    Experiment {
        title: "lose one of the group".to_owned(),
        hypothesis: "nobody notices".to_owned(),
        groups: vec![GROUPS[0].into()],
        probes: Vec::new(),
        steps: vec![Step {
            name: "lose one".to_owned(),
            fault: FaultSpec::Kill(kill),
            duration: Some(Duration::from_secs(4)),
            start: When::AfterPrevious,
            charge: 0,
        }],
        recovery: Duration::from_secs(5),
    }
}

fn facts(host: &SimHost) -> HostFacts {
    HostFacts {
        name: "sim".to_owned(),
        kernel: "sim".to_owned(),
        version: "0".to_owned(),
        started_at: Timestamp::UNIX_EPOCH,
        seed: 1,
        abilities: host.abilities(),
    }
}

fn policy(rng: &mut ChaCha12Rng, units: bool) -> Policy {
    let groups = GROUPS
        .iter()
        .zip(KINDS)
        .map(|(name, kind)| GroupPolicy {
            name: (*name).into(),
            floor: rng.random_range(0..4),
            expected: None,
            members: if units && kind == KINDS[0] {
                let unit = Some("checkout@*.service".to_owned());
                ProcessSelector { unit, ..ProcessSelector::default() }
            } else {
                ProcessSelector { name: Some(kind.to_owned()), ..ProcessSelector::default() }
            },
            ready: ReadySource::Haproxy {
                pool: Pool { haproxy: "/sim".to_owned(), backend: "checkout".to_owned() },
                within: Duration::from_millis(500),
            },
            poll: Duration::from_millis(250),
            stale_after: Duration::from_secs(2),
            settle: Duration::from_millis(rng.random_range(200..3000)),
            removal: Removal {
                at_once: rng.random_range(1..3),
                every: Duration::from_millis(rng.random_range(500..8000)),
            },
            monkey: false,
            spare: Vec::new(),
        })
        .collect();
    let mut limits = limiter::default_limits();
    limits.concurrent_runs = rng.random_range(1..4);
    Policy {
        leashed: false,
        state: "/nowhere".into(),
        experiments: "/nowhere".into(),
        api: ApiPolicy {
            socket: "/nowhere".into(),
            listen: None,
            tls: None,
            tokens: Vec::new(),
            hosts: Vec::new(),
        },
        limits,
        network: NetworkPolicy { mark_mask: 0xff00_0000 },
        groups,
        freezes: Vec::new(),
        schedules: Vec::new(),
    }
}

fn experiment(rng: &mut ChaCha12Rng) -> Experiment {
    let group = rng.random_range(0..GROUPS.len());
    let steps = (0..rng.random_range(1..4_usize))
        .map(|index| Step {
            name: format!("step {index}"),
            fault: fault(rng, group),
            duration: Some(Duration::from_millis(rng.random_range(50..4000))),
            start: if index > 0 && rng.random_bool(0.4) {
                When::WithPrevious
            } else {
                When::AfterPrevious
            },
            charge: u32::from(rng.random_bool(0.1)),
        })
        .collect();
    let mut probes = Vec::new();
    if rng.random_bool(0.5) {
        probes.push(Probe {
            name: "answers".to_owned(),
            check: Check::Tcp { address: "sim:1".to_owned(), within: Duration::from_millis(300) },
            every: Duration::from_millis(200),
            tolerate: 2,
        });
    }
    if rng.random_bool(0.3) {
        probes.push(Probe {
            name: "capacity".to_owned(),
            check: Check::Group { group: GROUPS[group].into(), ready: 1 },
            every: Duration::from_millis(200),
            tolerate: 3,
        });
    }
    let declared = if rng.random_bool(0.95) { vec![GROUPS[group].into()] } else { Vec::new() };
    Experiment {
        title: "simulated".to_owned(),
        hypothesis: "promises hold".to_owned(),
        groups: declared,
        probes,
        steps,
        recovery: Duration::from_secs(5),
    }
}

fn fault(rng: &mut ChaCha12Rng, group: usize) -> FaultSpec {
    let traffic = Traffic {
        listen: Some(if group == 0 { 8000 } else { 9000 } + rng.random_range(0..3_u16)),
        ..Traffic::default()
    };
    let units = rng.random_bool(0.5);
    let by_name = if rng.random_bool(0.5) {
        ProcessSelector { group: Some(GROUPS[group].into()), ..ProcessSelector::default() }
    } else {
        ProcessSelector { name: Some(KINDS[group].to_owned()), ..ProcessSelector::default() }
    };
    let by_unit =
        ProcessSelector { unit: Some(format!("{}@*", GROUPS[group])), ..ProcessSelector::default() };
    let mut target = |select| ProcessTarget {
        select,
        pick: match rng.random_range(0..6) {
            0 => Pick::All,
            1 => Pick::Percent(Percent::new(50.0).unwrap()),
            2 => Pick::Count(2),
            _ => Pick::Count(1),
        },
        order: [Order::Random, Order::Oldest, Order::Newest][rng.random_range(0..3)],
    };
    let (processes, whole) = (target(by_name), target(by_unit));
    match rng.random_range(0..6) {
        4 => FaultSpec::Pause(Pause { target: if units { whole } else { processes } }),
        5 => FaultSpec::Unit(UnitFault {
            target: whole,
            action: if rng.random_bool(0.7) { UnitAction::Stop } else { UnitAction::Restart },
        }),
        0 | 1 => FaultSpec::Kill(Kill {
            target: processes,
            signal: if rng.random_bool(0.5) { Signal::KILL } else { Signal::TERM },
            then: rng.random_bool(0.3).then(|| Escalation {
                signal: Signal::KILL,
                after: Duration::from_millis(rng.random_range(10..1000)),
            }),
            drain: rng.random_bool(0.4).then(|| Drain {
                pool: Pool { haproxy: "/sim".to_owned(), backend: "checkout".to_owned() },
                within: Duration::from_millis(rng.random_range(50..3000)),
                late: if rng.random_bool(0.5) { Late::Spare } else { Late::Kill },
            }),
        }),
        2 => FaultSpec::Latency(Latency {
            traffic,
            delay: Duration::from_millis(20),
            jitter: Duration::ZERO,
            correlation: Percent::ZERO,
            distribution: Distribution::Uniform,
            engine: rng.random_bool(0.3).then_some(DelayEngine::Tap),
        }),
        _ => FaultSpec::Connections(Connections {
            traffic,
            max: Some(rng.random_range(0..3)),
            per_source: None,
            new_per_second: None,
            excess: Excess::Reset,
            existing: Existing::Keep,
        }),
    }
}
