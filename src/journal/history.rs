//! The journal's other half: finished runs with their events, for reading, and their pruning.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::{Journal, JournalError, Sync, decode, intents::id, nanos, schema};
use crate::{
    runner::History,
    view::{ReportView, RunView},
};

/// How long history is kept.
const KEEP: SignedDuration = SignedDuration::from_hours(90 * 24);

/// How many runs are kept.
const KEEP_RUNS: i64 = 10_000;

/// How long an idempotency key is honoured.
const KEEP_KEYS: SignedDuration = SignedDuration::from_hours(24);

/// Runs that one call prunes at most, so that no commit waits long behind it.
const PRUNE_AT_ONCE: i64 = 200;

/// What a pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    pub runs: u64,
    /// There may be more to prune: call again when nothing else is to be written.
    pub more: bool,
}

impl Journal {
    /// Forgets some of what is older than 90 days or beyond 10,000 runs, the oldest first, and
    /// idempotency keys older than a day. Never a run that is not finished and clean.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn prune(&self, now: Timestamp) -> Result<Pruned, JournalError> {
        let oldest = nanos(now.saturating_sub(KEEP).unwrap_or(Timestamp::MIN));
        let oldest_key = nanos(now.saturating_sub(KEEP_KEYS).unwrap_or(Timestamp::MIN));
        let pruned = self.write(Sync::Later, |transaction| {
            let runs: Vec<String> = transaction
                .prepare_cached(
                    "SELECT id FROM runs
                     WHERE finished = 1 AND clean = 1
                       AND (created_at < ?1
                            OR id <= (SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?2))
                       AND NOT EXISTS (SELECT 1 FROM intents WHERE run = id AND open = 1)
                     ORDER BY id LIMIT ?3",
                )?
                .query_map(params![oldest, KEEP_RUNS, PRUNE_AT_ONCE], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            for run in &runs {
                for statement in [
                    "DELETE FROM events WHERE run = ?1",
                    "DELETE FROM intents WHERE run = ?1",
                    "DELETE FROM runs WHERE id = ?1",
                ] {
                    transaction.prepare_cached(statement)?.execute([run])?;
                }
            }
            transaction.execute("DELETE FROM charges WHERE at < ?1", [oldest])?;
            transaction.execute("DELETE FROM idempotency WHERE at < ?1", [oldest_key])?;
            Ok(runs.len())
        })?;
        self.tidy();
        let full = i64::try_from(pruned).is_ok_and(|runs| runs >= PRUNE_AT_ONCE);
        Ok(Pruned { runs: pruned as u64, more: full })
    }
}

/// Reads the history beside the writer, over a connection of its own.
#[derive(Debug)]
pub struct Reader {
    connection: Mutex<Connection>,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        Ok(Self { connection: Mutex::new(schema::open_for_reading(path)?) })
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> anyhow::Result<T> {
        // A reader that panicked left nothing half done: it only reads.
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(work(&connection)?)
    }
}

impl History for Reader {
    fn list(&self, before: Option<Uuid>, limit: usize) -> anyhow::Result<Vec<RunView>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT view FROM runs WHERE finished = 1 AND (?1 IS NULL OR id < ?1)
                     ORDER BY id DESC LIMIT ?2",
                )?
                .query_map(params![before.map(id), limit], |row| decode(row.get_ref(0)?.as_str()?))?
                .collect()
        })
    }

    fn report(&self, run: Uuid) -> anyhow::Result<Option<ReportView>> {
        self.read(|connection| {
            // One transaction, so that the events are those of this view.
            let snapshot = connection.unchecked_transaction()?;
            let found = snapshot
                .prepare_cached("SELECT view, experiment FROM runs WHERE id = ?1")?
                .query_row([id(run)], |row| {
                    Ok((decode(row.get_ref(0)?.as_str()?)?, decode(row.get_ref(1)?.as_str()?)?))
                })
                .optional()?;
            let Some((view, experiment)) = found else { return Ok(None) };
            let events = snapshot
                .prepare_cached("SELECT event FROM events WHERE run = ?1 ORDER BY seq")?
                .query_map([id(run)], |row| decode(row.get_ref(0)?.as_str()?))?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Some(ReportView { run: view, experiment, events }))
        })
    }
}
