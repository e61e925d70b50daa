//! Runs that schedules begin, and the memory of schedules: the loop's part of it. What is due, and
//! whether it may begin, the engine says.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{EventLoop, Note, StartRequest};
use crate::{
    document,
    experiment::Experiment,
    host::Host,
    policy::{
        calendar::{Memory, Outcome, Slot},
        engine::Event,
    },
    runner::scribe::Job,
};

/// How long a scheduled run waits for its experiment to be read.
const LIBRARY_PATIENCE: Duration = Duration::from_secs(30);

/// A run that a schedule begins.
pub(super) struct Launch {
    pub schedule: String,
    pub slot: Timestamp,
    pub seed: u64,
}

impl<H: Host + 'static> EventLoop<H> {
    /// Begins the run of a schedule, or says why not.
    pub(super) fn launch(&mut self, launch: Launch, result: Result<Arc<Experiment>, String>) {
        let Launch { schedule, slot, seed } = launch;
        let may = self.parts.engine.may_begin(&schedule, slot, (self.parts.clock)());
        let leashed = may.map(|planned| planned.schedule.leashed);
        let result = result.and_then(|experiment| {
            let (caller, seed) = (format!("schedule:{schedule}"), Some(seed));
            let (plan, idempotency, leashed) = (None, None, leashed?);
            let request = StartRequest { experiment, seed, plan, caller, idempotency, leashed };
            Ok(self.start(request).id)
        });
        self.handle(Event::Launched { schedule, slot, result });
    }

    /// Reads an experiment of the library, on a thread that may wait for the disk, but not for ever.
    pub(super) fn load(&self, launch: Launch, experiment: String) {
        let library = document::Library::new(&self.parts.engine.policy().experiments);
        let notes = self.notes.0.clone();
        let read = tokio::task::spawn_blocking(move || library.load(&experiment));
        tokio::spawn(async move {
            let result = match tokio::time::timeout(LIBRARY_PATIENCE, read).await {
                Ok(Ok(Ok((experiment, _)))) => Ok(Arc::new(experiment)),
                Ok(Ok(Err(error))) => Err(error.to_string()),
                Ok(Err(error)) => Err(format!("reading the experiment failed: {error}")),
                Err(_) => Err(format!("the experiment was not read within {LIBRARY_PATIENCE:?}")),
            };
            let _ = notes.send(Note::Loaded { launch, result });
        });
    }

    pub(super) fn remember(&mut self, memory: Memory) {
        let waiting = std::mem::take(&mut self.pauses);
        let answer = Box::new(move |stored| {
            for reply in waiting {
                let _ = reply.send(Some(stored));
            }
        });
        self.parts.scribe.write(Job::Remember { memory: Box::new(memory), answer });
    }
}

/// Says what became of a slot.
pub(super) fn tell_slot(slot: &Slot) {
    let (schedule, at) = (&slot.schedule, slot.at);
    match &slot.outcome {
        Outcome::Started { run } => tracing::info!(%schedule, %at, %run, "scheduled run begun"),
        Outcome::Skipped { why } => tracing::warn!(%schedule, %at, %why, "scheduled run skipped"),
        Outcome::Missed { slots } => tracing::warn!(
            %schedule, last = %at, slots,
            "scheduled runs missed (the agent or the host was not there); they are not made up for"
        ),
    }
}
