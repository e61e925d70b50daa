//! The agent: wires the parts together and fixes the order of start and shutdown.
//!
//! Start: policy, halt, journal, warden, recovery, loop, API. Shutdown: stop admitting, revert,
//! flush, close the API last (status stays readable while reverting), exit.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    api,
    config::Policy,
    document,
    fault::undo::{self, Undo},
    halt,
    host::{
        FaultId, Host,
        linux::{LinuxHost, clock, privileges},
    },
    journal::{Journal, Ledger as _, recovery},
    policy::{
        calendar::slots,
        engine::{Engine, Event, HostFacts},
        time::Now,
    },
    probe::monitor::Monitors,
    runner::{
        History,
        event_loop::{EventLoop, Order, Parts},
        hands::Hands,
        scribe::{Desk, Job, Scribe},
    },
    schedules,
    service::notify::Manager,
    view::{ReportView, RunView},
    warden::{Launch, Warden},
};

/// How long a shutdown waits for reverts that keep failing, at most. A second signal shortens it.
const PATIENCE: Duration = Duration::from_mins(1);

/// Between attempts to revert what a former agent left and recovery could not.
const RECOVERY_RETRY: Duration = Duration::from_secs(5);

/// There is no policy to go by. The text shows where and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(String);

/// Reads a policy file.
///
/// # Errors
/// When it cannot be read or is invalid.
pub fn read_policy(path: &Path) -> Result<Policy, PolicyError> {
    let bytes = std::fs::read(path)
        .map_err(|error| PolicyError(format!("cannot read {}: {error}", path.display())))?;
    let file = path.display().to_string();
    let text = document::text_from_bytes(&bytes, &file).map_err(|e| PolicyError(e.render("", false)))?;
    document::policy(text, &file).map_err(|errors| PolicyError(errors.render(text, false)))
}

/// Runs the agent until it is told to stop, with `until_eof` also by the end of standard input: when
/// whoever started it for a while is gone. Returns how many faults it could not revert.
///
/// # Errors
/// When the policy is invalid, or the host lets it have no threads, socket or state.
pub fn run(config: &Path, until_eof: bool) -> anyhow::Result<u32> {
    // Before there is a second thread, and anything that could start a program.
    privileges::keep().context("the agent's capabilities cannot be kept from its children")?;
    let policy = Arc::new(read_policy(config)?);
    let host = Arc::new(LinuxHost::new()?);
    let clock: Arc<dyn Fn() -> Now + Send + Sync> = Arc::new(clock::now);

    let halted = halt::load(&policy.state);
    // The warden comes first: it is there before anything could need it.
    let warden = Warden::spawn(Launch::own())
        .inspect_err(|error| tracing::error!(%error, "the warden does not start"))
        .ok();
    if let Some(pid) = warden.as_ref().and_then(Warden::pid)
        && let Some(id) = host.processes().identify(pid)?
    {
        host.processes().protect(id, "it is the warden");
    }
    if until_eof && let Some(id) = host.processes().identify(std::os::unix::process::parent_id())? {
        host.processes().protect(id, "this agent is there for it");
    }
    let journal = open_journal(&policy.state);
    let mut engine = Engine::new(policy.clone(), facts(&*host), halted);
    let memory = schedules::load(&policy.state)
        .inspect_err(|error| tracing::error!(%error, "every schedule is paused"));
    engine.inherit_schedules(memory, clock().wall);
    if until_eof {
        engine.begin_nothing_by_itself();
    }
    let mut leftovers = Leftovers::default();
    let history: Arc<dyn History> = match &journal {
        Ok(journal) => {
            leftovers = recover(journal, &*host, &mut engine);
            inherit(journal, &mut engine, clock());
            Arc::new(journal.reader().context("the journal cannot be opened for reading")?)
        }
        Err(error) => {
            let _ = engine.handle(Event::Journal(Err(error.clone())), clock());
            Arc::new(NoHistory(error.clone()))
        }
    };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (observer, observations) = mpsc::unbounded_channel();
    let events = mpsc::unbounded_channel();
    let desk = Desk {
        state: policy.state.clone(),
        journal,
        warden,
        events: events.0.clone(),
        clock: clock.clone(),
    };
    let (scribe, writer) = Scribe::start(desk)?;
    finish_recovery(leftovers, host.clone(), scribe.clone(), events.0.clone());
    let processes = host.processes().clone();
    let monitors = {
        let _inside = runtime.enter();
        let monitors = Monitors::start(&policy.groups, &processes, observer.clone())?;
        monitors.watch_freezes(&policy.freezes);
        monitors
    };
    let manager = Arc::new(Manager::from_environment());
    let parts = Parts {
        engine,
        hands: Arc::new(Hands::new(host)),
        scribe,
        monitors,
        processes,
        observer,
        observations,
        events,
        history,
        manager: manager.clone(),
        clock,
    };
    let (event_loop, handle, orders) = EventLoop::new(parts)?;
    let library = document::Library { dir: policy.experiments.clone() };
    let server = Arc::new(api::serve(&policy.api, handle, library, api::Limits::default())?);
    tracing::info!(socket = %policy.api.socket.display(), leashed = policy.leashed, "ready");
    manager.ready();
    let stuck = runtime.block_on(async {
        let end = end_of_input(until_eof);
        let signals = tokio::spawn(follow_signals(
            config.to_owned(),
            orders,
            server.clone(),
            manager.clone(),
            end,
        ));
        let stuck = event_loop.run().await;
        signals.abort();
        let _ = signals.await;
        stuck
    });
    // Everything is reverted; what the loop wrote is flushed before the API says goodbye.
    let _ = writer.join();
    if let Some(server) = Arc::into_inner(server) {
        runtime.block_on(server.stop());
    }
    // A file of events on a mount that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    tracing::info!(stuck, "stopped");
    Ok(stuck)
}

/// Ready when standard input ends; never, where that means nothing.
fn end_of_input(matters: bool) -> mpsc::UnboundedReceiver<()> {
    let (ended, end) = mpsc::unbounded_channel();
    if matters {
        thread::spawn(move || {
            // Nobody is expected to write anything; an error is an end, too.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            let _ = ended.send(());
        });
    }
    end
}

async fn follow_signals(
    config: PathBuf,
    orders: mpsc::UnboundedSender<Order>,
    server: Arc<api::Server>,
    manager: Arc<Manager>,
    mut end_of_input: mpsc::UnboundedReceiver<()>,
) {
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
    else {
        tracing::error!("no signal handlers can be had");
        return;
    };
    let mut stops = 0;
    loop {
        tokio::select! {
            _ = term.recv() => stops += 1,
            _ = int.recv() => stops += 1,
            Some(()) = end_of_input.recv() => stops += 1,
            _ = hup.recv() => {
                manager.reloading();
                match read_policy(&config) {
                    Ok(policy) => {
                        manager.remark(None);
                        tracing::info!("policy read again");
                        server.reload(&policy.api, document::Library { dir: policy.experiments.clone() });
                        let _ = orders.send(Order::Reload(Box::new(policy)));
                    }
                    Err(error) => {
                        tracing::error!("the policy stays as it was: {error}");
                        manager.remark(Some("the policy file is not valid, the old policy is in force"));
                        manager.ready();
                    }
                }
                continue;
            }
            () = tokio::time::sleep(PATIENCE), if stops > 0 => {
                tracing::error!("reverting takes too long; the warden and `vervet recover` go on");
                let _ = orders.send(Order::Hurry);
                continue;
            }
        }
        manager.stopping();
        tracing::info!(stops, "stopping: reverting everything first");
        let order = if stops > 1 { Order::Hurry } else { Order::Stop };
        let _ = orders.send(order);
    }
}

fn open_journal(state: &Path) -> Result<Journal, String> {
    Journal::open(state).map_err(|error| {
        tracing::error!(%error, "the journal cannot be used; nothing will be admitted");
        error.to_string()
    })
}

/// What recovery could not finish.
#[derive(Default)]
struct Leftovers {
    /// Reverted, but the journal did not take it.
    unrecorded: Vec<FaultId>,
    /// Not reverted yet.
    stuck: Vec<(FaultId, Undo)>,
    /// Entries of the journal that cannot be read: nobody can tell what they left.
    unreadable: usize,
}

/// Undoes what a former agent left, before anything is served.
fn recover(journal: &Journal, host: &dyn Host, engine: &mut Engine) -> Leftovers {
    match recovery::recover(journal, host, jiff::Timestamp::now()) {
        Ok(recovered) => {
            engine.inherit_stuck(u32::try_from(recovered.stuck.len()).unwrap_or(u32::MAX));
            let reverted = recovered.reverted.into_iter().map(|one| one.fault);
            let open = journal.open_intents().map(|open| open.intents).unwrap_or_default();
            let unreadable = recovered.stuck.len();
            let stuck = |fault: &FaultId| recovered.stuck.iter().any(|(other, _)| other == fault);
            let stuck: Vec<_> = open
                .into_iter()
                .filter(|intent| stuck(intent.fault()))
                .map(|intent| (intent.fault().clone(), intent.undo().clone()))
                .collect();
            Leftovers {
                unreadable: unreadable.saturating_sub(stuck.len()),
                unrecorded: if recovered.unrecorded.is_some() { reverted.collect() } else { Vec::new() },
                stuck,
            }
        }
        Err(error) => {
            tracing::error!(%error, "what a former agent left cannot be known");
            engine.inherit_stuck(1);
            Leftovers::default()
        }
    }
}

/// Goes on with what recovery could not finish, until it is done. Nothing is admitted meanwhile.
fn finish_recovery(
    leftovers: Leftovers,
    host: Arc<LinuxHost>,
    scribe: Scribe,
    events: mpsc::UnboundedSender<Event>,
) {
    let close = |scribe: &Scribe, fault| {
        scribe.write(Job::Close { fault, outcome: crate::journal::Outcome::Reverted });
    };
    leftovers.unrecorded.into_iter().for_each(|fault| close(&scribe, fault));
    let (mut stuck, unreadable) = (leftovers.stuck, leftovers.unreadable);
    if stuck.is_empty() {
        return;
    }
    thread::spawn(move || {
        while !stuck.is_empty() && !events.is_closed() {
            thread::sleep(RECOVERY_RETRY);
            let results = undo::revert(&*host, &stuck, &[]);
            for (fault, result) in results {
                if result.is_ok() {
                    tracing::info!(fault = %fault.0, "reverted at last");
                    stuck.retain(|(other, _)| *other != fault);
                    close(&scribe, fault);
                }
            }
            let left = u32::try_from(stuck.len() + unreadable).unwrap_or(u32::MAX);
            let _ = events.send(Event::Inherited { stuck: left });
        }
    });
}

/// Budgets survive restarts.
fn inherit(journal: &Journal, engine: &mut Engine, now: Now) {
    let longest =
        engine.policy().groups.iter().map(|group| group.removal.every).max().unwrap_or_default();
    let since = now.wall.checked_sub(longest).unwrap_or(jiff::Timestamp::MIN);
    match journal.recent_charges(since) {
        Ok(charges) => {
            for (group, count, at) in charges {
                let ago = Duration::try_from(now.wall.duration_since(at)).unwrap_or_default();
                engine.inherit_removal(&group, count, now.mono.minus(ago));
            }
        }
        Err(error) => tracing::error!(%error, "earlier removals cannot be known"),
    }
}

/// The same for ever on this host, and another one on each: what schedules without a seed draw from.
/// Not the machine's id itself, which is nobody else's business.
fn own_number() -> u64 {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let id = if id.trim().is_empty() { name } else { id };
    slots::own_seed(0, &format!("vervet {}", id.trim()))
}

fn facts(host: &dyn Host) -> HostFacts {
    let uname = rustix::system::uname();
    HostFacts {
        seed: own_number(),
        name: uname.nodename().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: jiff::Timestamp::now(),
        abilities: host.abilities(),
    }
}

/// Stands in where there is no journal to read.
struct NoHistory(String);

impl History for NoHistory {
    fn list(&self, _: Option<uuid::Uuid>, _: usize) -> anyhow::Result<Vec<RunView>> {
        anyhow::bail!("{}", self.0)
    }

    fn report(&self, _: uuid::Uuid) -> anyhow::Result<Option<ReportView>> {
        anyhow::bail!("{}", self.0)
    }
}
