//! The thread that writes: journal, history, the halt file; and that tells the warden.
//!
//! Nothing waits for it but an injection. Reverting never does: outcomes that cannot be written
//! are kept here and tried again.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::{
    halt,
    host::FaultId,
    journal::{self, Journal, Ledger as _},
    policy::{
        calendar::Memory,
        engine::{Event, Intent, NotDurable},
        time::{Moment, Now},
    },
    runner::{Idempotency, StartRequest},
    schedules,
    view::{EventView, HaltView, RunView},
    warden::Warden,
};

/// How often a failing journal is tried.
const RETRY: Duration = Duration::from_secs(1);
/// How long an idempotency key is remembered.
const KEY_LIFE: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
/// How often old history is pruned.
const PRUNE_EVERY: Duration = Duration::from_hours(1);

/// Something to write.
pub enum Job {
    /// A run that has just been created.
    Begin {
        run: Box<RunView>,
        experiment: serde_json::Value,
        key: Option<Idempotency>,
    },
    /// Durable, and held by the warden, before the answer.
    Commit {
        intent: Box<Intent>,
        now: Moment,
    },
    /// The fault is over.
    Close {
        fault: FaultId,
        outcome: journal::Outcome,
    },
    Events(Vec<EventView>),
    Save(Box<RunView>),
    /// Makes a halt durable; the answer says whether it is.
    Halt {
        halt: HaltView,
        answer: Box<dyn FnOnce(bool) + Send>,
    },
    /// Makes the end of a halt durable.
    Release {
        answer: Box<dyn FnOnce(Result<(), String>) + Send>,
    },
    /// Makes the memory of schedules durable; the answer says whether it is.
    Remember {
        memory: Box<Memory>,
        answer: Box<dyn FnOnce(bool) + Send>,
    },
    /// Looks an idempotency key up.
    Lookup {
        request: Box<StartRequest>,
        answer: Box<dyn FnOnce(Box<StartRequest>, Looked) + Send>,
    },
}

/// What is known of an idempotency key.
pub type Looked = Result<Option<([u8; 32], Uuid)>, String>;

/// The thread's address.
#[derive(Clone, Debug)]
pub struct Scribe {
    jobs: mpsc::Sender<Job>,
}

/// What the thread needs.
pub struct Desk {
    pub state: PathBuf,
    /// The journal, or why it cannot be used at all.
    pub journal: Result<Journal, String>,
    pub warden: Option<Warden>,
    pub events: UnboundedSender<Event>,
    pub clock: Arc<dyn Fn() -> Now + Send + Sync>,
}

impl Scribe {
    /// Starts the thread. It ends, with everything written that can be, when every `Scribe` is gone.
    ///
    /// # Errors
    /// When the host has no room for a thread.
    pub fn start(desk: Desk) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (jobs, work) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("vervet-journal".to_owned())
            .stack_size(1 << 20)
            .spawn(move || {
                let work = || Writer::new(desk).work(&work);
                // Nobody would hear of an undo that is not written: see `workers`.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                    std::process::abort();
                }
            })?;
        Ok((Self { jobs }, thread))
    }

    /// Queues a job.
    pub fn write(&self, job: Job) {
        // The thread ends only after its last sender; a panic in it shows as an unanswered commit.
        let _ = self.jobs.send(job);
    }
}

struct Writer {
    desk: Desk,
    /// Outcomes that are not written yet.
    unwritten: Vec<(FaultId, journal::Outcome)>,
    /// The journal failed the last time.
    failing: bool,
    /// Faults whose end is still to come: as long as there are any, the warden is looked after.
    held: BTreeSet<FaultId>,
    pruned_at: Moment,
}

impl Writer {
    fn new(desk: Desk) -> Self {
        let pruned_at = (desk.clock)().mono;
        Self { desk, unwritten: Vec::new(), failing: false, held: BTreeSet::new(), pruned_at }
    }

    fn work(mut self, jobs: &mpsc::Receiver<Job>) {
        loop {
            let job = if self.failing || !self.unwritten.is_empty() || !self.held.is_empty() {
                jobs.recv_timeout(RETRY)
            } else {
                jobs.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
            };
            match job {
                Ok(job) => self.take(job, jobs),
                Err(mpsc::RecvTimeoutError::Timeout) => self.retry(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        self.flush();
    }

    fn take(&mut self, job: Job, jobs: &mpsc::Receiver<Job>) {
        let mut next = Some(job);
        // Outcomes that are queued together are written together: one sync for a halt of many.
        while let Some(job) = next.take() {
            match job {
                Job::Close { fault, outcome } => {
                    if let Some(warden) = &mut self.desk.warden
                        && let Err(error) = warden.release(&fault)
                    {
                        tracing::warn!(%error, "the warden was not told that a fault is over");
                    }
                    self.held.remove(&fault);
                    self.unwritten.push((fault, outcome));
                    next = jobs.try_recv().ok();
                }
                other => {
                    self.flush();
                    self.one(other);
                }
            }
        }
        self.flush();
        self.prune();
    }

    fn one(&mut self, job: Job) {
        match job {
            Job::Begin { run, experiment, key } => {
                self.written(|journal| journal.begin(&run, &experiment, key.as_ref()));
            }
            Job::Commit { intent, now } => {
                let (run, step) = (intent.run, intent.step);
                let result = self.commit(*intent, now);
                let _ = self.desk.events.send(Event::Committed { run, step, result });
            }
            Job::Events(events) => {
                self.written(|journal| journal.append_events(&events));
            }
            Job::Save(run) => {
                self.written(|journal| journal.save_run(&run));
            }
            Job::Halt { halt, answer } => {
                let stored = halt::store(&self.desk.state, &halt);
                if let Err(error) = &stored {
                    tracing::error!(%error, "the halt is in force but not on disk");
                }
                answer(stored.is_ok());
            }
            Job::Release { answer } => {
                answer(halt::clear(&self.desk.state).map_err(|error| error.to_string()));
            }
            Job::Remember { memory, answer } => {
                // Without the journal this may be another agent's directory.
                let mine = self.desk.journal.as_ref().map_err(Clone::clone);
                let stored = mine.and_then(|_| {
                    schedules::store(&self.desk.state, &memory).map_err(|error| error.to_string())
                });
                if let Err(error) = &stored {
                    tracing::error!(%error, "the memory of schedules is not on disk");
                }
                answer(stored.is_ok());
            }
            Job::Lookup { request, answer } => {
                let looked = self.look_up(&request);
                answer(request, looked);
            }
            Job::Close { .. } => unreachable!("taken by `take`"),
        }
    }

    fn commit(&mut self, intent: Intent, now: Moment) -> Result<(), NotDurable> {
        let remaining = intent.deadline.map_or(Duration::ZERO, |(deadline, _)| deadline.since(now));
        let record = journal::Intent {
            run: intent.run,
            step: u32::try_from(intent.step).unwrap_or(u32::MAX),
            prepared: (*intent.prepared).clone(),
            charges: intent.charges,
            opened_at: intent.opened_at,
            deadline: intent.deadline.map(|(_, wall)| wall),
        };
        let journal = self.desk.journal.as_ref().map_err(|error| NotDurable::Journal(error.clone()))?;
        if let Err(error) = journal.commit(&record) {
            self.failing = true;
            return Err(NotDurable::Journal(error.to_string()));
        }
        self.held.insert(record.prepared.fault.clone());
        if record.prepared.undo.restores.is_empty() {
            return Ok(());
        }
        match &mut self.desk.warden {
            Some(warden) => warden
                .hold(&record.prepared.fault, &record.prepared.undo, Some(remaining))
                .map_err(|error| NotDurable::Warden(error.to_string())),
            None => Err(NotDurable::Warden("it could not be started".to_owned())),
        }
    }

    fn look_up(&self, request: &StartRequest) -> Looked {
        let journal = self.desk.journal.as_ref().map_err(Clone::clone)?;
        let Some(key) = &request.idempotency else { return Ok(None) };
        let since = (self.desk.clock)().wall.checked_sub(KEY_LIFE).unwrap_or(Timestamp::MIN);
        journal.idempotency(&request.caller, &key.key, since).map_err(|error| error.to_string())
    }

    /// Writes outcomes that are waiting.
    fn flush(&mut self) {
        if self.unwritten.is_empty() {
            return;
        }
        let (outcomes, at) = (std::mem::take(&mut self.unwritten), (self.desk.clock)().wall);
        if !self.written(|journal| journal.close(&outcomes, at)) {
            self.unwritten = outcomes;
        }
    }

    fn retry(&mut self) {
        if !self.held.is_empty()
            && let Some(warden) = &mut self.desk.warden
        {
            match warden.check() {
                Ok(overdue) if overdue.is_empty() => {}
                Ok(overdue) => {
                    tracing::error!(?overdue, "the warden had to revert what the agent was late with");
                }
                Err(error) => tracing::error!(%error, "there is no warden"),
            }
        }
        self.flush();
        if self.failing && self.desk.journal.is_ok() && self.written(journal::Ledger::probe_write) {
            tracing::info!("the journal takes writes again");
        }
    }

    /// Does one write and tells the engine when the journal begins or ceases to fail.
    fn written(&mut self, write: impl FnOnce(&Journal) -> Result<(), journal::JournalError>) -> bool {
        let Ok(journal) = &self.desk.journal else { return false };
        let result = write(journal).map_err(|error| error.to_string());
        let (was, ok) = (self.failing, result.is_ok());
        self.failing = !ok;
        if let Err(error) = &result
            && !was
        {
            tracing::error!(%error, "the journal cannot be written");
        }
        if was == ok {
            let _ = self.desk.events.send(Event::Journal(result));
        }
        ok
    }

    fn prune(&mut self) {
        let now = (self.desk.clock)();
        if now.mono.since(self.pruned_at) >= PRUNE_EVERY {
            self.pruned_at = now.mono;
            if let Ok(journal) = &self.desk.journal {
                match journal.prune(now.wall) {
                    // More another time soon, not now: an injection may be waiting.
                    Ok(pruned) if pruned.more => self.pruned_at = now.mono.minus(PRUNE_EVERY),
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "old history could not be pruned"),
                }
            }
        }
    }
}
