//! Waits for the next event, asks the engine, has its effects performed, publishes what is new.
//!
//! It never waits for a disk, a kernel or a client: work goes to [`super::workers`] and
//! [`super::scribe`], and comes back as events.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use rand::RngExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::{
    config::Policy,
    document,
    experiment::{Experiment, FaultSpec, Kill},
    fault::Prepared,
    host::{Host, linux::process::Processes},
    journal,
    policy::{
        engine::{Effect, Engine, Event, Outcome, Start},
        time::{Moment, Now},
    },
    probe::monitor::{Monitors, Observation},
    service::{notify::Manager, story::Line},
    view::{EventView, HaltView, RunView},
};

use super::{
    Command, Handle, History, Idempotency, RequestError, RunLog, Snapshot, StartRequest,
    hands::Hands,
    scribe::{Job, Looked, Scribe},
    workers::Worker,
};

mod launch;

use launch::{Launch, tell_slot};

/// Everything the loop is made of.
pub struct Parts<H> {
    pub engine: Engine,
    pub hands: Arc<Hands<H>>,
    pub scribe: Scribe,
    pub monitors: Monitors,
    /// For new monitors when the policy is read again.
    pub processes: Arc<Processes>,
    pub observer: mpsc::UnboundedSender<Observation>,
    pub observations: mpsc::UnboundedReceiver<Observation>,
    /// Both ends of the channel by which workers report.
    pub events: (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
    pub history: Arc<dyn History>,
    /// Hears from this very loop that it lives: one that hangs hears no order either.
    pub manager: Arc<Manager>,
    pub clock: Arc<dyn Fn() -> Now + Send + Sync>,
}

/// Orders from the agent itself.
#[derive(Debug)]
pub enum Order {
    Reload(Box<Policy>),
    /// Revert everything, then end.
    Stop,
    /// End as soon as every revert has been tried: shorter waiting, never fewer reverts.
    Hurry,
}

/// What comes back to the loop beside events.
enum Note {
    Looked {
        request: Box<StartRequest>,
        looked: Looked,
    },
    HaltStored(bool),
    /// The experiment of a schedule whose time has come.
    Loaded {
        launch: Launch,
        result: Result<Arc<Experiment>, String>,
    },
    /// With the number of halts asked for when the release was.
    Released(u64, Result<(), String>),
}

type StartReply = oneshot::Sender<Result<Arc<RunView>, RequestError>>;
type ReleaseReply = oneshot::Sender<Result<Option<HaltView>, RequestError>>;

/// The loop, ready to run.
pub struct EventLoop<H> {
    parts: Parts<H>,
    mutator: Worker,
    looker: Worker,
    /// Hands for the service manager, from the first fault that needs it: what that takes its time
    /// over must not keep the others waiting.
    stewards: Option<Worker>,
    urgent: mpsc::Receiver<Command>,
    requests: mpsc::Receiver<Command>,
    orders: mpsc::UnboundedReceiver<Order>,
    notes: (mpsc::UnboundedSender<Note>, mpsc::UnboundedReceiver<Note>),
    snapshot: watch::Sender<Arc<Snapshot>>,
    logs: Arc<RwLock<HashMap<Uuid, Arc<RunLog>>>>,
    plans: HashMap<u64, oneshot::Sender<Result<crate::view::PlanView, RequestError>>>,
    next_ticket: u64,
    /// Keys of this process's runs, and starts that wait for a look into the journal.
    keys: HashMap<(String, String), ([u8; 32], Uuid)>,
    looking: HashMap<(String, String), Vec<(StartRequest, StartReply)>>,
    halts: Vec<oneshot::Sender<HaltView>>,
    halt_stored: Option<bool>,
    /// When the oldest unanswered halt was asked for, and how many were in all.
    halt_asked: Option<Moment>,
    halts_so_far: u64,
    releases: Vec<ReleaseReply>,
    /// Who waits for the schedules' memory to be written.
    pauses: Vec<oneshot::Sender<Option<bool>>>,
    stopping: bool,
    hurry: bool,
}

/// How long a halt's answer waits for the disk; after that it says that it is not durable (yet).
const HALT_PATIENCE: Duration = Duration::from_millis(50);

/// Idempotency keys that are remembered without asking the journal.
const REMEMBERED_KEYS: usize = 1_000;

/// Requests that may wait before the API has to.
const QUEUE: usize = 256;

impl<H: Host + 'static> EventLoop<H> {
    /// Puts the loop together; [`EventLoop::run`] drives it.
    ///
    /// # Errors
    /// When the host has no room for its threads.
    pub fn new(parts: Parts<H>) -> std::io::Result<(Self, Handle, mpsc::UnboundedSender<Order>)> {
        let (urgent_tx, urgent) = mpsc::channel(QUEUE);
        let (requests_tx, requests) = mpsc::channel(QUEUE);
        let (orders_tx, orders) = mpsc::unbounded_channel();
        let now = (parts.clock)();
        let (snapshot, watching) = watch::channel(Arc::new(Snapshot {
            host: parts.engine.host_view(now),
            groups: parts.engine.group_views(now),
            runs: Vec::new(),
            faults: Vec::new(),
            agenda: parts.engine.agenda().clone(),
        }));
        let logs = Arc::new(RwLock::new(HashMap::new()));
        let handle = Handle {
            urgent: urgent_tx,
            requests: requests_tx,
            snapshot: watching,
            logs: logs.clone(),
            history: parts.history.clone(),
        };
        let this = Self {
            mutator: Worker::start("vervet-hands")?,
            looker: Worker::start("vervet-eyes")?,
            stewards: None,
            parts,
            urgent,
            requests,
            orders,
            notes: mpsc::unbounded_channel(),
            snapshot,
            logs,
            plans: HashMap::new(),
            next_ticket: 0,
            keys: HashMap::new(),
            looking: HashMap::new(),
            halts: Vec::new(),
            halt_stored: None,
            halt_asked: None,
            halts_so_far: 0,
            releases: Vec::new(),
            pauses: Vec::new(),
            stopping: false,
            hurry: false,
        };
        Ok((this, handle, orders_tx))
    }

    /// Runs until an order to stop has been carried out. Says how many faults are left stuck.
    pub async fn run(mut self) -> u32 {
        if let Some(memory) = self.parts.engine.memory() {
            self.perform(Effect::Remember(Box::new(memory.clone())));
        }
        loop {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                Some(order) = self.orders.recv() => self.order(order),
                Some(command) = self.urgent.recv() => self.command(command),
                Some(event) = self.parts.events.1.recv() => self.handle(event),
                Some(observation) = self.parts.observations.recv() => self.observe(observation),
                Some(note) = self.notes.1.recv() => self.note(note),
                Some(command) = self.requests.recv(), if !self.stopping => self.command(command),
                () = tokio::time::sleep(wake) => self.handle(Event::Tick),
            }
            // Everything that is there already, before anybody is told: a burst is one publication.
            while let Ok(event) = self.parts.events.1.try_recv() {
                self.handle(event);
            }
            while let Ok(observation) = self.parts.observations.try_recv() {
                self.observe(observation);
            }
            self.publish();
            self.answer_halts();
            let engine = &self.parts.engine;
            if self.stopping && (engine.is_idle() || (self.hurry && engine.is_quiet())) {
                break;
            }
        }
        self.parts.monitors.stop();
        self.parts.engine.stuck()
    }

    fn next_wake(&self) -> Duration {
        let now = (self.parts.clock)();
        let halt = self.halt_asked.map(|at| at.plus(HALT_PATIENCE));
        let ping = self.parts.manager.next_ping();
        let wake = self.parts.engine.next_wake(now).into_iter().chain(halt).chain(ping).min();
        wake.map_or(Duration::from_hours(1), |at| at.since(now.mono))
    }

    fn handle(&mut self, event: Event) {
        let now = (self.parts.clock)();
        for effect in self.parts.engine.handle(event, now) {
            self.perform(effect);
        }
    }

    fn observe(&mut self, observation: Observation) {
        self.handle(match observation {
            Observation::Reading { group, result } => Event::Reading { group, result },
            Observation::Lost { groups, process, at } => Event::Lost { groups, process, at },
            Observation::Headroom(headroom) => Event::Headroom(headroom),
            Observation::Freeze { freeze, sight } => Event::Seen { freeze, sight },
            Observation::Probe { run, probe, outcome, at } => Event::Probed { run, probe, outcome, at },
        });
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Reload(policy) => {
                let monitors =
                    Monitors::start(&policy.groups, &self.parts.processes, self.parts.observer.clone());
                match monitors {
                    Ok(monitors) => {
                        self.parts.monitors.stop();
                        self.parts.monitors = monitors;
                        // What the old ones saw belongs to the old policy.
                        while let Ok(observation) = self.parts.observations.try_recv() {
                            self.observe(observation);
                        }
                        let freezes = policy.freezes.clone();
                        self.handle(Event::Reload(policy));
                        // Not before: what is seen belongs to the policy in force.
                        self.parts.monitors.watch_freezes(&freezes);
                    }
                    Err(error) => tracing::error!(%error, "the policy stays as it was"),
                }
                self.parts.manager.ready();
            }
            Order::Stop | Order::Hurry => {
                self.hurry |= matches!(order, Order::Hurry);
                self.stopping = true;
                self.handle(Event::Shutdown);
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Plan { experiment, seed, reply } => {
                self.next_ticket += 1;
                let (ticket, seed) = (self.next_ticket, seed.unwrap_or_else(draw_seed));
                self.plans.insert(ticket, reply);
                self.handle(Event::Plan { ticket, experiment, seed });
            }
            Command::Start { request, reply } => self.start_once(request, reply),
            Command::Abort { run, caller, reply } => {
                self.handle(Event::Abort { run, caller });
                let _ = reply.send(Ok(()));
            }
            Command::Halt { reason, caller, reply } => {
                self.halts.push(reply);
                self.halts_so_far += 1;
                let Now { mono, wall: since } = (self.parts.clock)();
                self.halt_asked.get_or_insert(mono);
                if let Some(halt) = self.parts.engine.halted().filter(|halt| halt.durable)
                    && self.releases.is_empty()
                {
                    // It is in force already; its reason and time stand.
                    let (reason, caller, since) = (halt.reason.clone(), halt.by.clone(), halt.since);
                    self.halt_stored = Some(true);
                    self.handle(Event::Halt { reason, caller, since, durable: true });
                } else {
                    let halt =
                        HaltView { reason: reason.clone(), by: caller.clone(), since, durable: true };
                    self.handle(Event::Halt { reason, caller, since, durable: false });
                    self.store_halt(halt);
                }
            }
            Command::Pause { schedule, pause, reply } => {
                if self.parts.engine.agenda().schedule(&schedule).is_none() {
                    let _ = reply.send(None);
                    return;
                }
                self.pauses.push(reply);
                self.handle(Event::Pause { schedule, pause });
                // Nothing was to be written: it lasts as long as this agent.
                for reply in self.pauses.drain(..) {
                    let _ = reply.send(Some(false));
                }
            }
            Command::Release { reply, .. } => {
                self.releases.push(reply);
                let notes = self.notes.0.clone();
                let halts = self.halts_so_far;
                let answer = Box::new(move |result| drop(notes.send(Note::Released(halts, result))));
                self.parts.scribe.write(Job::Release { answer });
            }
        }
    }

    fn store_halt(&mut self, halt: HaltView) {
        self.halt_stored = None;
        let notes = self.notes.0.clone();
        let answer = Box::new(move |stored| drop(notes.send(Note::HaltStored(stored))));
        self.parts.scribe.write(Job::Halt { halt, answer });
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Looked { request, looked } => self.looked(&request, &looked),
            Note::Loaded { launch, result } => self.launch(launch, result),
            Note::HaltStored(durable) => {
                self.halt_stored = Some(durable);
                if let Some(halt) = self.parts.engine.halted().cloned() {
                    let HaltView { reason, by: caller, since, .. } = halt;
                    self.handle(Event::Halt { reason, caller, since, durable });
                }
            }
            Note::Released(halts, result) => {
                let released = self.parts.engine.halted().cloned();
                let answer = match result {
                    // Halted again since: the file of that halt was written after this release.
                    Ok(()) if halts != self.halts_so_far => Err(rejected(
                        "halted_again",
                        "the host was halted again while the release was under way".to_owned(),
                    )),
                    Ok(()) => {
                        self.handle(Event::Release);
                        Ok(released)
                    }
                    Err(error) => Err(rejected(
                        "release_not_durable",
                        format!("the halt stays in force, its release cannot be written: {error}"),
                    )),
                };
                for reply in self.releases.drain(..) {
                    let _ = reply.send(answer.clone());
                }
            }
        }
    }

    /// A halt is answered when nothing is in force any more and it is known whether it will last.
    fn answer_halts(&mut self) {
        let now = (self.parts.clock)().mono;
        let late = self.halt_asked.is_some_and(|at| now.since(at) >= HALT_PATIENCE);
        let known = self.halt_stored.is_some() || late;
        if self.halts.is_empty() || !known || !self.parts.engine.is_quiet() {
            return;
        }
        self.halt_asked = None;
        if let Some(halt) = self.parts.engine.halted().cloned() {
            for reply in self.halts.drain(..) {
                let _ = reply.send(halt.clone());
            }
        }
    }

    fn start_once(&mut self, request: StartRequest, reply: StartReply) {
        let Some(Idempotency { key, .. }) = &request.idempotency else {
            let _ = reply.send(Ok(self.start(request)));
            return;
        };
        let name = (request.caller.clone(), key.clone());
        self.forget_old_keys();
        if let Some(known) = self.keys.get(&name).copied() {
            self.again(&request, known, reply);
            return;
        }
        let waiting = self.looking.entry(name).or_default();
        let first = waiting.is_empty();
        waiting.push((request.clone(), reply));
        if first {
            let notes = self.notes.0.clone();
            let answer =
                Box::new(move |request, looked| drop(notes.send(Note::Looked { request, looked })));
            self.parts.scribe.write(Job::Lookup { request: Box::new(request), answer });
        }
    }

    fn looked(&mut self, request: &StartRequest, looked: &Looked) {
        let Some(Idempotency { key, .. }) = &request.idempotency else { return };
        let name = (request.caller.clone(), key.clone());
        if let Ok(Some(known)) = looked {
            self.keys.insert(name.clone(), *known);
        }
        for (request, reply) in self.looking.remove(&name).unwrap_or_default() {
            let answer = match (self.keys.get(&name).copied(), looked) {
                (Some(known), _) => {
                    self.again(&request, known, reply);
                    continue;
                }
                (None, Err(error)) => Err(RequestError::Rejected(crate::view::ReasonView {
                    reason: "journal_unavailable".to_owned(),
                    message: format!("whether this key was used cannot be known: {error}"),
                    numbers: serde_json::json!({}),
                })),
                (None, Ok(_)) => Ok(self.start(request)),
            };
            let _ = reply.send(answer);
        }
    }

    /// Answers with the run that an idempotency key began before. One that is history by now is read on
    /// a thread that may wait for the disk.
    fn again(&self, request: &StartRequest, (body, run): ([u8; 32], Uuid), reply: StartReply) {
        if request.idempotency.as_ref().is_some_and(|key| key.body != body) {
            let _ = reply.send(Err(RequestError::KeyReused(run)));
            return;
        }
        let live = self.logs.read().unwrap_or_else(PoisonError::into_inner).get(&run).cloned();
        if let Some(log) = live {
            let _ = reply.send(Ok(log.latest.borrow().clone()));
            return;
        }
        let history = self.parts.history.clone();
        tokio::task::spawn_blocking(move || {
            let answer = match history.report(run) {
                Ok(Some(report)) => Ok(Arc::new(report.run)),
                _ => Err(RequestError::NotFound),
            };
            let _ = reply.send(answer);
        });
    }

    /// Memory only saves the question to the journal, which knows every key of the last day.
    fn forget_old_keys(&mut self) {
        if self.keys.len() >= REMEMBERED_KEYS {
            self.keys.clear();
        }
    }

    fn start(&mut self, request: StartRequest) -> Arc<RunView> {
        let StartRequest { experiment, seed, plan, caller, idempotency, leashed } = request;
        let (run, seed) = (Uuid::now_v7(), seed.unwrap_or_else(draw_seed));
        if let Some(Idempotency { key, body }) = &idempotency {
            self.keys.insert((caller.clone(), key.clone()), (*body, run));
        }
        let now = (self.parts.clock)();
        let start = Start { run, experiment, seed, plan, caller, leashed };
        let effects = self.parts.engine.handle(Event::Start(Box::new(start)), now);
        // The engine has just made it.
        let view = self.parts.engine.view_of(run, now).map(Arc::new);
        let view = view.unwrap_or_else(|| unreachable!("a started run exists"));
        // With the group that it drew, if it was to draw one.
        let experiment = self.parts.engine.run(run).map(|run| run.experiment.clone());
        let experiment = experiment.unwrap_or_else(|| unreachable!("a started run exists"));
        let log = RunLog {
            latest: watch::Sender::new(view.clone()),
            experiment: experiment.clone(),
            events: Mutex::default(),
            count: watch::Sender::new(0),
        };
        self.logs.write().unwrap_or_else(PoisonError::into_inner).insert(run, Arc::new(log));
        let experiment = document::to_json(&experiment);
        self.parts.scribe.write(Job::Begin {
            run: Box::new((*view).clone()),
            experiment,
            key: idempotency,
        });
        for effect in effects {
            self.perform(effect);
        }
        view
    }

    fn perform(&mut self, effect: Effect) {
        let hands = self.parts.hands.clone();
        let events = self.parts.events.0.clone();
        let clock = self.parts.clock.clone();
        let report = move |event| drop(events.send(event));
        match effect {
            Effect::Resolve { job, steps } => {
                let policy = self.parts.engine.policy().clone();
                self.looker.run(move || report(hands.resolve(&policy, job, steps)));
            }
            Effect::Prepare { run, step, spec, target, fault, seed } => {
                let policy = self.parts.engine.policy().clone();
                self.looker.run(move || {
                    report(hands.prepare(&policy, run, step, &spec, &target, fault, seed));
                });
            }
            Effect::Commit(intent) => {
                self.parts.scribe.write(Job::Commit { intent, now: clock().mono });
            }
            Effect::Drain { run, step, prepared, begin } => {
                self.hands_for(&prepared).run(move || report(hands.drain(run, step, &prepared, begin)));
            }
            Effect::Inject { run, step, prepared, deadline } => {
                self.hands_for(&prepared).run(move || {
                    report(hands.inject(run, step, &prepared, deadline, clock().mono));
                });
            }
            Effect::Forbid(run) => hands.forbid(run),
            Effect::Escalate { run, prepared, signal, .. } => {
                self.mutator.run(move || hands.escalate(run, &prepared, signal));
            }
            Effect::Measure { run, step, prepared, injection } => {
                self.looker.run(move || report(hands.measure(run, step, &prepared, &injection)));
            }
            Effect::Renew(leases) => self.mutator.run(move || {
                hands.renew(&leases, clock().mono).into_iter().for_each(report);
            }),
            Effect::Revert(items) => {
                let (slow, quick): (Vec<_>, Vec<_>) =
                    items.into_iter().partition(|(.., prepared)| is_slow(prepared));
                for items in [quick, slow] {
                    let Some((.., first)) = items.first() else { continue };
                    let (hands, report) = (hands.clone(), report.clone());
                    self.hands_for(&first.clone()).run_first(move || {
                        hands.revert(&items).into_iter().for_each(report);
                    });
                }
            }
            Effect::Close { fault, outcome } => {
                hands.let_go(&fault);
                let outcome = match outcome {
                    Outcome::Reverted => journal::Outcome::Reverted,
                    Outcome::NeverInjected => journal::Outcome::NeverInjected,
                };
                self.parts.scribe.write(Job::Close { fault, outcome });
            }
            Effect::StartProbes { run, probes } => self.parts.monitors.start_probes(run, &probes),
            Effect::StopProbes { run } => self.parts.monitors.stop_probes(run),
            Effect::WatchExits(processes) => {
                for process in processes {
                    if let Err(error) = self.parts.monitors.watch(process) {
                        // The last measurement will show its end all the same.
                        tracing::warn!(%error, pid = process.pid, "the target cannot be watched");
                    }
                }
            }
            Effect::Log(event) => self.log(event),
            Effect::Save(run) => self.parts.scribe.write(Job::Save(run)),
            Effect::PersistHalt { reason } => {
                if let Some(halt) = self.parts.engine.halted().cloned() {
                    tracing::error!(%reason, "halted by the self-test of the limiter");
                    self.store_halt(HaltView { durable: true, ..halt });
                }
            }
            Effect::Launch { schedule, slot, experiment, seed } => {
                self.load(Launch { schedule, slot, seed }, experiment);
            }
            Effect::Remember(memory) => self.remember(*memory),
            Effect::Slot(slot) => tell_slot(&slot),
            Effect::Planned { ticket, result } => {
                if let Some(reply) = self.plans.remove(&ticket) {
                    let answer =
                        result.map(|plan| *plan).map_err(|reason| RequestError::Rejected(reason.view()));
                    let _ = reply.send(answer);
                }
            }
        }
    }

    /// The thread that injects and undoes this fault: always the same one, so in order.
    fn hands_for(&mut self, prepared: &Prepared) -> &Worker {
        if is_slow(prepared) && self.stewards.is_none() {
            self.stewards = Worker::start("vervet-steward").ok();
        }
        self.stewards.as_ref().filter(|_| is_slow(prepared)).unwrap_or(&self.mutator)
    }

    fn log(&self, event: EventView) {
        if let Some(run) = self.parts.engine.run(event.run) {
            Line::of(&event, run).tell(&event, run);
        }
        let log = self.logs.read().unwrap_or_else(PoisonError::into_inner).get(&event.run).cloned();
        if let Some(log) = log {
            let mut events = log.events.lock().unwrap_or_else(PoisonError::into_inner);
            events.push(Arc::new(event.clone()));
            let count = events.len() as u64;
            drop(events);
            log.count.send_replace(count);
        }
        self.parts.scribe.write(Job::Events(vec![event]));
    }

    /// Lets readers see what is new.
    fn publish(&mut self) {
        let now = (self.parts.clock)();
        let runs = self.parts.engine.run_views(now);
        self.publish_logs(&runs);
        let engine = &self.parts.engine;
        let snapshot = Snapshot {
            host: engine.host_view(now),
            groups: engine.group_views(now),
            faults: engine.fault_views(now),
            agenda: engine.agenda().clone(),
            runs,
        };
        self.parts.manager.ping(now.mono);
        self.parts.manager.status(&snapshot);
        self.snapshot.send_replace(Arc::new(snapshot));
    }

    fn publish_logs(&self, runs: &[Arc<RunView>]) {
        let mut logs = self.logs.write().unwrap_or_else(PoisonError::into_inner);
        for run in runs {
            if let Some(log) = logs.get(&run.id) {
                log.latest.send_if_modified(|latest| {
                    let new = !Arc::ptr_eq(latest, run);
                    if new {
                        *latest = run.clone();
                    }
                    new
                });
            }
        }
        if logs.len() > runs.len() {
            let known: BTreeSet<Uuid> = self.parts.engine.run_ids().collect();
            logs.retain(|id, _| known.contains(id));
        }
    }
}

/// Acts by way of the service manager or a load balancer, which answer when they like.
fn is_slow(prepared: &Prepared) -> bool {
    matches!(prepared.spec, FaultSpec::Unit(_) | FaultSpec::Kill(Kill { drain: Some(_), .. }))
}

fn rejected(reason: &str, message: String) -> RequestError {
    let numbers = serde_json::json!({});
    RequestError::Rejected(crate::view::ReasonView { reason: reason.to_owned(), message, numbers })
}

fn draw_seed() -> u64 {
    // Any 53-bit number survives JSON in every language.
    rand::rng().random::<u64>() >> 11
}
