//! The journal: what is about to be done, durable before it is done; and the history of runs.
//!
//! One SQLite file below the state directory, in WAL mode, written by one process and by one
//! thread of it. Two kinds of writes:
//!
//! - **Synced** (an intent, its outcome, the end of a run): returns when the disk has it. Costs one
//!   fsync of the write-ahead log, and nothing else that waits for a disk.
//! - **Ordered** (the beginning of a run, its events): in the log at once, so the death of the agent
//!   cannot lose it; on the disk with the next synced write, so the death of the machine loses it
//!   only together with everything after it. What has touched nothing need not wait for a disk.
//!
//! The log is a prefix of what happened, always. The journal decides nothing, injects nothing and
//! reverts nothing; reverting never waits for it.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    experiment::GroupName,
    fault::{Lease, Prepared, undo::Undo},
    host::FaultId,
    runner::Idempotency,
    view::{EventView, RunView},
};

mod error;
mod history;
mod intents;
pub mod recovery;
mod schema;

pub use error::JournalError;
pub use history::{Pruned, Reader};
pub use schema::FILE;

/// What is about to be done, and all that it takes to undo it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    pub run: Uuid,
    /// Index of the step, from 0.
    pub step: u32,
    pub prepared: Prepared,
    /// Instances taken from groups, charged in full from `opened_at` on.
    pub charges: Vec<(GroupName, u32)>,
    pub opened_at: Timestamp,
    /// When the fault ends at the latest; absent for what ends by itself.
    pub deadline: Option<Timestamp>,
}

impl Intent {
    #[must_use]
    pub fn fault(&self) -> &FaultId {
        &self.prepared.fault
    }

    #[must_use]
    pub fn undo(&self) -> &Undo {
        &self.prepared.undo
    }

    #[must_use]
    pub fn lease(&self) -> Lease {
        self.prepared.lease
    }
}

/// How an intent ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Undone, or over by itself.
    Reverted,
    /// It came to nothing; its charges are given back.
    NeverInjected,
    /// Its revert failed. It stays open until a later outcome replaces this one.
    Stuck { errors: Vec<String> },
}

/// The intents that are open, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OpenIntents {
    pub intents: Vec<Intent>,
    /// Records that do not make sense. Their faults cannot be reverted from here.
    pub unreadable: Vec<Unreadable>,
}

/// An open intent that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub fault: FaultId,
    pub run: Uuid,
    pub error: String,
}

/// A run that its agent did not bring to an end, or whose faults are not all undone.
#[derive(Debug, Clone, PartialEq)]
pub struct Unsettled {
    pub run: RunView,
    /// Number of its events so far.
    pub events: u64,
}

/// What the loop needs of the journal to inject and to recover. [`Journal`] is the real one; the
/// simulation has one that loses what was not synced.
pub trait Ledger {
    /// Records a new run, and the idempotency key that began it, at once. Ordered.
    ///
    /// # Errors
    /// When it could not be written; the run must not go on then.
    fn begin(
        &self,
        run: &RunView,
        experiment: &serde_json::Value,
        key: Option<&Idempotency>,
    ) -> Result<(), JournalError>;

    /// Records an intent. Synced: when this returns, it is on the disk.
    ///
    /// # Errors
    /// When it is not; nothing may be injected then.
    fn commit(&self, intent: &Intent) -> Result<(), JournalError>;

    /// Records that an injection returned without an error. Ordered.
    ///
    /// # Errors
    /// When it could not be written; recovery then reverts a little more than it must.
    fn mark_injected(&self, fault: &FaultId) -> Result<(), JournalError>;

    /// Records how intents ended, all at once. Synced. Unknown faults are ignored, and an outcome
    /// is replaced only if it was [`Outcome::Stuck`].
    ///
    /// # Errors
    /// When it could not be written; keep the outcomes and try again.
    fn close(&self, outcomes: &[(FaultId, Outcome)], at: Timestamp) -> Result<(), JournalError>;

    /// Intents without an outcome, and those that are stuck.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn open_intents(&self) -> Result<OpenIntents, JournalError>;

    /// What was charged to groups at or after `since`, oldest first, given-back charges excepted.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn recent_charges(&self, since: Timestamp)
    -> Result<Vec<(GroupName, u32, Timestamp)>, JournalError>;

    /// Replaces the view of a run. Synced for a finished run, else ordered.
    ///
    /// # Errors
    /// When it could not be written.
    fn save_run(&self, run: &RunView) -> Result<(), JournalError>;

    /// Adds events. Ordered. One that is there already (same run and number) is kept as it was.
    ///
    /// # Errors
    /// When they could not be written.
    fn append_events(&self, events: &[EventView]) -> Result<(), JournalError>;

    /// Runs that are not finished or not clean, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn unsettled(&self) -> Result<Vec<Unsettled>, JournalError>;

    /// Whether the disk takes a synced write now.
    ///
    /// # Errors
    /// Why it does not.
    fn probe_write(&self) -> Result<(), JournalError>;
}

/// The journal of this host, open for the one process that may write to it.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    path: PathBuf,
    synced: Cell<Option<bool>>,
    writes: Cell<u32>,
    _lock: schema::Lock,
}

/// Writes between two checkpoints. About four pages each, so the log stays near 4 MiB.
const WRITES_PER_CHECKPOINT: u32 = 256;

impl Journal {
    /// Opens the journal below `state`, making both if there is nothing. Does not need to write to
    /// a journal that exists, so that recovery works on a full disk.
    ///
    /// # Errors
    /// Which file is in the way and what to do about it. The file is kept as it is.
    pub fn open(state: &Path) -> Result<Self, JournalError> {
        schema::directory(state)?;
        let lock = schema::Lock::take(state)?;
        let (connection, path) = schema::open(state)?;
        Ok(Self { connection, path, synced: Cell::new(None), writes: Cell::new(0), _lock: lock })
    }

    /// Access to the history for other threads. Never blocks the writer.
    ///
    /// # Errors
    /// When the file cannot be opened once more.
    pub fn reader(&self) -> Result<Reader, JournalError> {
        Reader::open(&self.path)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write<T>(
        &self,
        sync: Sync,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        let attempt = || {
            self.set_sync(sync == Sync::Now)?;
            // Rolls back when dropped without a commit.
            let transaction =
                Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        let value = attempt().map_err(|error| self.failed(&error))?;
        if sync == Sync::Now {
            self.really_synced()?;
        }
        self.writes.set(self.writes.get().saturating_add(1));
        Ok(value)
    }

    /// On a file system that has become read-only (an emergency remount, as after errors of the disk),
    /// files that are open take writes and syncs without an error, and none of it reaches the disk.
    fn really_synced(&self) -> Result<(), JournalError> {
        match rustix::fs::statvfs(&self.path) {
            Ok(status) if status.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) => {
                let detail = "the file system has become read-only".to_owned();
                Err(JournalError::ReadOnly { path: self.path.clone(), detail })
            }
            _ => Ok(()),
        }
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, JournalError> {
        work(&self.connection).map_err(|error| self.failed(&error))
    }

    /// In WAL mode a commit under FULL syncs the log and with it all commits before it; one under
    /// NORMAL does not sync. <https://www.sqlite.org/pragma.html#pragma_synchronous>
    fn set_sync(&self, full: bool) -> rusqlite::Result<()> {
        if self.synced.get() != Some(full) {
            let level = if full { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.synced.set(Some(full));
        }
        Ok(())
    }

    /// Moves the log into the file now and then. Called after writes that no injection waits for.
    fn tidy(&self) {
        if self.writes.get() >= WRITES_PER_CHECKPOINT {
            self.writes.set(0);
            // A failure (readers at work, a full disk) costs nothing: the log keeps growing until
            // the next one, and what is in it is as durable as before.
            let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        }
    }

    fn failed(&self, error: &rusqlite::Error) -> JournalError {
        JournalError::from_sqlite(&self.path, error)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// On the disk when the call returns.
    Now,
    /// On the disk with the next synced write.
    Later,
}

fn nanos(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn encode<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn decode<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}
