//! A journal in memory that loses, in a crash, what was not synced.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use uuid::Uuid;
use vervet::{
    experiment::GroupName,
    host::FaultId,
    journal::{Intent, JournalError, Ledger, OpenIntents, Outcome, Unsettled},
    runner::Idempotency,
    view::{EventView, RunState, RunView},
};

/// What the disk has, and what would be lost with the machine.
#[derive(Default)]
pub struct MemoryLedger {
    now: RefCell<Pages>,
    synced: RefCell<Pages>,
    /// The disk takes nothing.
    pub full: RefCell<bool>,
    /// No power will be lost in this life: what was synced need not be kept apart.
    pub safe: std::cell::Cell<bool>,
}

#[derive(Default, Clone)]
struct Pages {
    intents: BTreeMap<FaultId, (Intent, Option<Outcome>)>,
    charges: Vec<(GroupName, u32, Timestamp, FaultId)>,
    runs: BTreeMap<Uuid, RunView>,
    events: BTreeMap<(Uuid, u64), EventView>,
}

impl MemoryLedger {
    /// The machine dies: only what was synced is left.
    pub fn lose_power(&self) {
        assert!(!self.safe.get());
        *self.now.borrow_mut() = self.synced.borrow().clone();
    }

    /// Whether a durable intent is like this. (Intents are synced, so what is there is durable.)
    pub fn any_intent(&self, like: impl Fn(&Intent) -> bool) -> bool {
        self.now.borrow().intents.values().any(|(intent, _)| like(intent))
    }

    pub fn runs(&self) -> Vec<RunView> {
        self.now.borrow().runs.values().cloned().collect()
    }

    pub fn events_of(&self, run: Uuid) -> Vec<String> {
        let events = self.now.borrow();
        let of_run = events.events.range((run, 0)..=(run, u64::MAX));
        of_run
            .map(|(_, event)| format!("{} {:?} {}: {}", event.at, event.step, event.kind, event.message))
            .collect()
    }

    fn write<T>(&self, sync: bool, work: impl FnOnce(&mut Pages) -> T) -> Result<T, JournalError> {
        if *self.full.borrow() {
            return Err(JournalError::DiskFull { path: PathBuf::from("memory") });
        }
        let value = work(&mut self.now.borrow_mut());
        if sync && !self.safe.get() {
            *self.synced.borrow_mut() = self.now.borrow().clone();
        }
        Ok(value)
    }
}

impl Ledger for MemoryLedger {
    fn begin(
        &self,
        run: &RunView,
        _: &serde_json::Value,
        _: Option<&Idempotency>,
    ) -> Result<(), JournalError> {
        self.write(false, |pages| drop(pages.runs.insert(run.id, run.clone())))
    }

    fn commit(&self, intent: &Intent) -> Result<(), JournalError> {
        self.write(true, |pages| {
            let fault = intent.fault().clone();
            for (group, count) in &intent.charges {
                pages.charges.push((group.clone(), *count, intent.opened_at, fault.clone()));
            }
            pages.intents.insert(fault, (intent.clone(), None));
        })
    }

    fn mark_injected(&self, _: &FaultId) -> Result<(), JournalError> {
        Ok(())
    }

    fn close(&self, outcomes: &[(FaultId, Outcome)], _: Timestamp) -> Result<(), JournalError> {
        self.write(true, |pages| {
            for (fault, outcome) in outcomes {
                if let Some((_, end)) = pages.intents.get_mut(fault) {
                    *end = Some(outcome.clone());
                }
                if *outcome == Outcome::NeverInjected {
                    pages.charges.retain(|(.., of)| of != fault);
                }
            }
        })
    }

    fn open_intents(&self) -> Result<OpenIntents, JournalError> {
        let pages = self.now.borrow();
        let open = |end: &Option<Outcome>| matches!(end, None | Some(Outcome::Stuck { .. }));
        let intents =
            pages.intents.values().filter(|(_, end)| open(end)).map(|(intent, _)| intent.clone());
        Ok(OpenIntents { intents: intents.collect(), unreadable: Vec::new() })
    }

    fn recent_charges(
        &self,
        since: Timestamp,
    ) -> Result<Vec<(GroupName, u32, Timestamp)>, JournalError> {
        let pages = self.now.borrow();
        let recent = pages.charges.iter().filter(|(_, _, at, _)| *at >= since);
        Ok(recent.map(|(group, count, at, _)| (group.clone(), *count, *at)).collect())
    }

    fn save_run(&self, run: &RunView) -> Result<(), JournalError> {
        self.write(run.state == RunState::Finished, |pages| drop(pages.runs.insert(run.id, run.clone())))
    }

    fn append_events(&self, events: &[EventView]) -> Result<(), JournalError> {
        self.write(false, |pages| {
            for event in events {
                pages.events.entry((event.run, event.seq)).or_insert_with(|| event.clone());
            }
        })
    }

    fn unsettled(&self) -> Result<Vec<Unsettled>, JournalError> {
        let pages = self.now.borrow();
        let runs = pages.runs.values().filter(|run| run.state != RunState::Finished);
        Ok(runs
            .map(|run| Unsettled {
                run: run.clone(),
                events: pages.events.range((run.id, 0)..=(run.id, u64::MAX)).count() as u64,
            })
            .collect())
    }

    fn probe_write(&self) -> Result<(), JournalError> {
        self.write(true, |_| ())
    }
}
