//! The journal's verbs on intents: opened before an injection, closed after the undo.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Transaction, params};
use uuid::Uuid;

use super::{
    Intent, Journal, JournalError, Ledger, OpenIntents, Outcome, Sync, Unreadable, Unsettled, decode,
    encode, nanos, timestamp,
};
use crate::{
    experiment::GroupName,
    host::FaultId,
    runner::Idempotency,
    view::{Cleanup, EventView, RunState, RunView},
};

impl Ledger for Journal {
    fn begin(
        &self,
        run: &RunView,
        experiment: &serde_json::Value,
        key: Option<&Idempotency>,
    ) -> Result<(), JournalError> {
        self.write(Sync::Later, |transaction| {
            put_run(transaction, run, Some(experiment))?;
            if let Some(Idempotency { key, body }) = key {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute(params![run.caller, key, body, id(run.id), nanos(run.created_at)])?;
            }
            Ok(())
        })
    }

    fn commit(&self, intent: &Intent) -> Result<(), JournalError> {
        let fault = &intent.fault().0;
        let opened_at = nanos(intent.opened_at);
        let fresh = self.write(Sync::Now, |transaction| {
            // An id is used again only if its random bits repeat; a closed one may then go.
            let rows = transaction
                .prepare_cached(
                    "INSERT INTO intents (fault, run, intent, opened_at) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (fault) DO UPDATE SET run = ?2, intent = ?3, opened_at = ?4,
                         injected = 0, open = 1, outcome = NULL, closed_at = NULL
                     WHERE open = 0",
                )?
                .execute(params![fault, id(intent.run), encode(intent)?, opened_at])?;
            for (group, instances) in intent.charges.iter().filter(|_| rows == 1) {
                transaction
                    .prepare_cached("INSERT INTO charges VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![opened_at, group.0, instances, fault])?;
            }
            Ok(rows == 1)
        })?;
        if fresh {
            Ok(())
        } else {
            Err(JournalError::Duplicate { path: self.path.clone(), fault: fault.clone() })
        }
    }

    fn mark_injected(&self, fault: &FaultId) -> Result<(), JournalError> {
        self.write(Sync::Later, |transaction| {
            transaction
                .prepare_cached("UPDATE intents SET injected = 1 WHERE fault = ?1")?
                .execute([&fault.0])
                .map(drop)
        })
    }

    fn close(&self, outcomes: &[(FaultId, Outcome)], at: Timestamp) -> Result<(), JournalError> {
        if outcomes.is_empty() {
            return Ok(());
        }
        self.write(Sync::Now, |transaction| {
            outcomes.iter().try_for_each(|(fault, outcome)| close_one(transaction, fault, outcome, at))
        })?;
        self.tidy();
        Ok(())
    }

    fn open_intents(&self) -> Result<OpenIntents, JournalError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT fault, intent, run FROM intents WHERE open = 1 ORDER BY opened_at, rowid",
            )?;
            let mut rows = query.query([])?;
            let mut open = OpenIntents::default();
            while let Some(row) = rows.next()? {
                match serde_json::from_str(row.get_ref(1)?.as_str().unwrap_or_default()) {
                    Ok(intent) => open.intents.push(intent),
                    Err(error) => open.unreadable.push(Unreadable {
                        fault: FaultId(row.get(0)?),
                        run: parse_id(row.get_ref(2)?.as_str()?)?,
                        error: error.to_string(),
                    }),
                }
            }
            Ok(open)
        })
    }

    fn recent_charges(
        &self,
        since: Timestamp,
    ) -> Result<Vec<(GroupName, u32, Timestamp)>, JournalError> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT capacity_group, instances, at FROM charges WHERE at >= ?1 ORDER BY at, rowid",
                )?
                .query_map([nanos(since)], |row| {
                    Ok((GroupName(row.get(0)?), row.get(1)?, timestamp(row.get(2)?)))
                })?
                .collect()
        })
    }

    fn save_run(&self, run: &RunView) -> Result<(), JournalError> {
        let sync = if run.state == RunState::Finished { Sync::Now } else { Sync::Later };
        self.write(sync, |transaction| put_run(transaction, run, None))?;
        self.tidy();
        Ok(())
    }

    fn append_events(&self, events: &[EventView]) -> Result<(), JournalError> {
        if events.is_empty() {
            return Ok(());
        }
        self.write(Sync::Later, |transaction| {
            let mut insert =
                transaction.prepare_cached("INSERT OR IGNORE INTO events VALUES (?1, ?2, ?3)")?;
            for event in events {
                insert.execute(params![
                    id(event.run),
                    i64::try_from(event.seq).unwrap_or(i64::MAX),
                    encode(event)?
                ])?;
            }
            Ok(())
        })
    }

    fn unsettled(&self) -> Result<Vec<Unsettled>, JournalError> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT view, (SELECT coalesce(max(seq), 0) FROM events WHERE run = id)
                     FROM runs WHERE finished = 0 OR clean = 0 ORDER BY id",
                )?
                .query_map([], |row| {
                    let events = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
                    Ok(Unsettled { run: decode(row.get_ref(0)?.as_str()?)?, events })
                })?
                .collect()
        })
    }

    fn probe_write(&self) -> Result<(), JournalError> {
        let now = nanos(Timestamp::now());
        self.write(Sync::Now, |transaction| {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO probe VALUES (1, ?1)")?
                .execute([now])
                .map(drop)
        })
    }
}

impl Journal {
    /// The body and the run of an idempotency key that this caller used at or after `since`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn idempotency(
        &self,
        caller: &str,
        key: &str,
        since: Timestamp,
    ) -> Result<Option<([u8; 32], Uuid)>, JournalError> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT body, run FROM idempotency WHERE caller = ?1 AND key = ?2 AND at >= ?3",
                )?
                .query_row(params![caller, key, nanos(since)], |row| {
                    Ok((row.get(0)?, parse_id(row.get_ref(1)?.as_str()?)?))
                })
                .optional()
        })
    }
}

fn close_one(
    transaction: &Transaction<'_>,
    fault: &FaultId,
    outcome: &Outcome,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let stuck = matches!(outcome, Outcome::Stuck { .. });
    let rows = transaction
        .prepare_cached(
            "UPDATE intents SET outcome = ?2, closed_at = ?3, open = ?4 WHERE fault = ?1 AND open = 1",
        )?
        .execute(params![fault.0, encode(outcome)?, nanos(at), stuck])?;
    if rows == 1 && *outcome == Outcome::NeverInjected {
        transaction.prepare_cached("DELETE FROM charges WHERE fault = ?1")?.execute([&fault.0])?;
    }
    Ok(())
}

fn put_run(
    transaction: &Transaction<'_>,
    run: &RunView,
    experiment: Option<&serde_json::Value>,
) -> rusqlite::Result<()> {
    let finished = run.state == RunState::Finished;
    let clean = run.cleanup == Cleanup::Clean;
    transaction
        .prepare_cached(
            "INSERT INTO runs VALUES (?1, ?2, ?3, ?4, ?5, coalesce(?6, 'null'))
             ON CONFLICT (id) DO UPDATE SET finished = ?3, clean = ?4, view = ?5,
                 experiment = coalesce(?6, experiment)",
        )?
        .execute(params![
            id(run.id),
            nanos(run.created_at),
            finished,
            clean,
            encode(run)?,
            experiment.map(encode).transpose()?
        ])
        .map(drop)
}

pub(super) fn id(run: Uuid) -> String {
    run.hyphenated().to_string()
}

pub(super) fn parse_id(text: &str) -> rusqlite::Result<Uuid> {
    Uuid::parse_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}
