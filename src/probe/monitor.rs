//! Monitors: what turns the host into observations, for as long as the agent lives.
//!
//! One task for each group looks at once and then every `poll`; deaths come by themselves; probes
//! run while their run does. They report to the loop and wait for nobody: what an observation
//! means, and whether one that is missing matters, policy decides.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc::UnboundedSender},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use uuid::Uuid;

use super::{Asker, deaths::Deaths, freezes, members::Discovery, ready::Source, systemd::name_mains};
use crate::{
    config::{Freeze, GroupPolicy, When},
    experiment::{Check, GroupName, Probe},
    host::{
        Headroom, HostError, ProcessId,
        linux::{clock, process::Processes, systemd::Systemd},
    },
    policy::{calendar::Sight, capacity::Reading, time::Moment},
};

/// How often the host's stocks are read.
const HEADROOM_EVERY: Duration = Duration::from_secs(1);

/// Something that was seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// A look at a group; `taken_at` is when it began. An error is a missing reading: the source
    /// failed, or has not answered for `stale_after`.
    Reading { group: GroupName, result: Result<Reading, String> },
    /// A process ended that was a member of these groups, or was watched for its own sake.
    Lost { groups: Vec<GroupName>, process: ProcessId, at: Moment },
    /// What a freeze goes by was looked at.
    Freeze { freeze: String, sight: Sight },
    /// What is left of the host's stocks.
    Headroom(Result<Headroom, String>),
    /// One attempt of a probe, by its index in the experiment; `at` is when the attempt began.
    Probe { run: Uuid, probe: usize, outcome: Result<(), String>, at: Moment },
}

/// All monitors of one agent. Dropping it ends them.
pub struct Monitors {
    deaths: Arc<Deaths>,
    sender: UnboundedSender<Observation>,
    wishes: HashMap<GroupName, Arc<Notify>>,
    tasks: Mutex<JoinSet<()>>,
    probes: Mutex<HashMap<Uuid, JoinSet<()>>>,
}

impl Monitors {
    /// Starts looking. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no thread or descriptors to watch for deaths.
    pub fn start(
        groups: &[GroupPolicy],
        processes: &Arc<Processes>,
        sender: UnboundedSender<Observation>,
    ) -> Result<Self, HostError> {
        // Of its own: whoever acts must not wait behind one that looks.
        Self::start_with(groups, processes, Arc::new(Systemd::new()), sender)
    }

    /// The same, with this client of the service manager.
    ///
    /// # Errors
    /// When the kernel gives no thread or descriptors to watch for deaths.
    pub fn start_with(
        groups: &[GroupPolicy],
        processes: &Arc<Processes>,
        systemd: Arc<Systemd>,
        sender: UnboundedSender<Observation>,
    ) -> Result<Self, HostError> {
        let doubt = Arc::new(Notify::new());
        let deaths = Arc::new(Deaths::start(Arc::clone(processes), sender.clone())?);
        let discovery = Discovery::new(Arc::clone(processes), groups.to_vec(), Arc::clone(&deaths));
        let discovery = Arc::new(discovery);
        let (mut tasks, mut wishes) = (JoinSet::new(), HashMap::new());
        for (index, group) in groups.iter().enumerate() {
            let wish = Arc::new(Notify::new());
            wishes.insert(group.name.clone(), Arc::clone(&wish));
            let source = Source {
                processes: Arc::clone(processes),
                discovery: Arc::clone(&discovery),
                group: Arc::new(group.clone()),
                index,
                systemd: Arc::clone(&systemd),
                doubt: Arc::clone(&doubt),
                found: Arc::default(),
            };
            tasks.spawn(watch_group(source, wish, sender.clone()));
        }
        tasks.spawn(watch_headroom(Arc::clone(processes), sender.clone()));
        if groups.iter().any(GroupPolicy::counts_units) {
            tasks.spawn(name_mains(Arc::clone(processes), systemd, doubt));
        }
        Ok(Self { deaths, sender, wishes, tasks: Mutex::new(tasks), probes: Mutex::default() })
    }

    /// Looks after what freezes go by: files of events, conditions. Must be called inside a tokio runtime.
    pub fn watch_freezes(&self, freezes: &[Freeze]) {
        let mut tasks = lock(&self.tasks);
        for freeze in freezes {
            let (name, sender) = (freeze.name.clone(), self.sender.clone());
            let tell =
                move |sight| sender.send(Observation::Freeze { freeze: name.clone(), sight }).is_ok();
            match freeze.when.clone() {
                When::Calendar { path, zone } => {
                    tasks.spawn(freezes::follow_file(path, zone, tell));
                }
                When::Unless { check, every } => {
                    tasks.spawn(freezes::ask(check, every, tell));
                }
                When::Dates { .. } | When::Weekly(_) => {}
            }
        }
    }

    /// Looks at a group now, its members included; if a look is under way, once more after it.
    pub fn refresh(&self, group: &GroupName) {
        if let Some(wish) = self.wishes.get(group) {
            wish.notify_one();
        }
    }

    /// Tells the end of this process as [`Observation::Lost`], whether it is in a group or not; at
    /// once if it is gone already.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn watch(&self, id: ProcessId) -> Result<(), HostError> {
        self.deaths.watch(id)
    }

    /// Takes one [`Monitors::watch`] back. Members of groups stay watched.
    pub fn unwatch(&self, id: ProcessId) {
        self.deaths.unwatch(id);
    }

    /// Asks the probes of a run, each at once and then at its own pace, until
    /// [`Monitors::stop_probes`]. Probes of groups are policy's, out of the readings.
    pub fn start_probes(&self, run: Uuid, probes: &[Probe]) {
        let mut tasks = JoinSet::new();
        for (index, probe) in probes.iter().enumerate() {
            if !matches!(probe.check, Check::Group { .. }) {
                tasks.spawn(repeat_probe(run, index, probe.clone(), self.sender.clone()));
            }
        }
        lock(&self.probes).insert(run, tasks);
    }

    /// Ends the probes of a run; what they have under way is dropped, programs are killed.
    pub fn stop_probes(&self, run: Uuid) {
        lock(&self.probes).remove(&run);
    }

    /// Ends everything.
    pub fn stop(&self) {
        lock(&self.tasks).abort_all();
        lock(&self.probes).clear();
        self.deaths.clear();
    }
}

impl fmt::Debug for Monitors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitors").field("groups", &self.wishes.keys()).finish_non_exhaustive()
    }
}

async fn watch_group(source: Source, wish: Arc<Notify>, sender: UnboundedSender<Observation>) {
    let group = source.group.name.clone();
    let send = |result| sender.send(Observation::Reading { group: group.clone(), result }).is_ok();
    let mut polls = interval(source.group.poll);
    polls.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let force = tokio::select! {
            () = wish.notified() => true,
            _ = polls.tick() => false,
        };
        let result = look_in_time(&source, force, &send).await;
        if !send(result) {
            return;
        }
    }
}

/// One look, to its end. While it takes longer than readings may be old, that is told as a missing
/// reading; and if it ends after that, its result is too old to be one.
async fn look_in_time(
    source: &Source,
    force: bool,
    send: &impl Fn(Result<Reading, String>) -> bool,
) -> Result<Reading, String> {
    let limit = source.group.stale_after;
    let began = Instant::now();
    let look = source.look(force);
    tokio::pin!(look);
    let mut late = 1;
    loop {
        tokio::select! {
            biased;
            result = &mut look => {
                let took = began.elapsed();
                return match result {
                    Ok(_) if took > limit => Err(format!("the readiness source took {took:.1?}")),
                    result => result,
                };
            }
            () = sleep_until(began + limit * late) => {
                let waited = limit * late;
                send(Err(format!("still waiting for the readiness source after {waited:?}")));
                late += 1;
            }
        }
    }
}

async fn watch_headroom(processes: Arc<Processes>, sender: UnboundedSender<Observation>) {
    let mut ticks = interval(HEADROOM_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let headroom = processes.headroom().map_err(|error| error.to_string());
        if sender.send(Observation::Headroom(headroom)).is_err() {
            return;
        }
    }
}

async fn repeat_probe(run: Uuid, index: usize, probe: Probe, sender: UnboundedSender<Observation>) {
    let mut asker = Asker::new(&probe.check);
    let mut ticks = interval(probe.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let at = clock::boottime();
        let Some(outcome) = asker.ask().await else { continue };
        if sender.send(Observation::Probe { run, probe: index, outcome, at }).is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
