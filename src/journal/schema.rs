//! The file: how it is made, recognised, locked and opened. Knows nothing of what is stored.
//!
//! INVARIANT: a file that exists is never replaced or emptied. A new one is complete before it
//! gets its name, so a file cut short is damage, not a beginning.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};
use rustix::fs::{FlockOperation, flock};

use super::JournalError;

/// Name of the file below the state directory.
pub const FILE: &str = "vervet.db";

const LOCK: &str = "vervet.lock";

/// "vrvt", in SQLite's header at offset 68.
const APPLICATION_ID: i64 = 0x7672_7674;

const VERSION: i64 = 1;

/// JSON columns hold what their types serialise to; times are nanoseconds since 1970 in UTC.
const TABLES: &str = "
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    finished INTEGER NOT NULL,
    clean INTEGER NOT NULL,
    view TEXT NOT NULL,
    experiment TEXT NOT NULL
) STRICT;
CREATE INDEX runs_unsettled ON runs (id) WHERE finished = 0 OR clean = 0;
CREATE TABLE events (
    run TEXT NOT NULL,
    seq INTEGER NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE intents (
    fault TEXT PRIMARY KEY,
    run TEXT NOT NULL,
    intent TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    injected INTEGER NOT NULL DEFAULT 0,
    open INTEGER NOT NULL DEFAULT 1,
    outcome TEXT,
    closed_at INTEGER
) STRICT;
CREATE INDEX intents_open ON intents (opened_at) WHERE open = 1;
CREATE INDEX intents_run ON intents (run);
CREATE TABLE charges (
    at INTEGER NOT NULL,
    capacity_group TEXT NOT NULL,
    instances INTEGER NOT NULL,
    fault TEXT NOT NULL
) STRICT;
CREATE INDEX charges_at ON charges (at);
CREATE INDEX charges_fault ON charges (fault);
CREATE TABLE idempotency (
    caller TEXT NOT NULL,
    key TEXT NOT NULL,
    body BLOB NOT NULL,
    run TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE probe (id INTEGER PRIMARY KEY CHECK (id = 1), at INTEGER NOT NULL) STRICT;
";

/// The directory, made if missing (0700). One that others may write to is refused.
pub fn directory(state: &Path) -> Result<(), JournalError> {
    let failed = |error: io::Error| JournalError::from_io(state, &error);
    DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(failed)?;
    let mode = fs::metadata(state).map_err(failed)?.mode();
    if mode & 0o022 == 0 { Ok(()) } else { Err(JournalError::Exposed { path: state.to_owned() }) }
}

/// Held for as long as the journal is open. The kernel releases it with its holder's death.
#[derive(Debug)]
pub struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub fn take(state: &Path) -> Result<Self, JournalError> {
        let path = state.join(LOCK);
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // Root opens it, too, in a directory that is not root's: no link may lead it elsewhere.
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let mut file = match opened {
            Ok(file) => file,
            // Recovery must work on a file system that went read-only under the agent.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => match File::open(&path) {
                Ok(file) => file,
                Err(_) => return Ok(Self { _file: None }),
            },
            Err(error) => return Err(JournalError::from_io(&path, &error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(JournalError::Locked { path: state.join(FILE), holder: holder(&mut file) });
            }
            Err(error) => return Err(JournalError::from_io(&path, &error.into())),
        }
        give_to_owner_of(state, &file);
        // The pid is for the message only: what counts is the lock, so a full disk is no obstacle.
        let _ = file.set_len(0).and_then(|()| file.rewind());
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self { _file: Some(file) })
    }
}

/// Root recovers what an agent of another user left: that agent must be able to go on with the files.
/// (SQLite does the same for those that it makes beside the journal.)
fn give_to_owner_of(state: &Path, file: &File) {
    if rustix::process::geteuid().is_root()
        && let Ok(directory) = fs::metadata(state)
        && directory.uid() != 0
    {
        let _ = std::os::unix::fs::fchown(file, Some(directory.uid()), Some(directory.gid()));
    }
}

fn holder(file: &mut File) -> String {
    let mut pid = String::new();
    match file.take(20).read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    }
}

/// Opens the file for the one writer, making it if there is none.
pub fn open(state: &Path) -> Result<(Connection, PathBuf), JournalError> {
    let path = state.join(FILE);
    // Not what a link leads to: see `Lock::take`.
    match fs::symlink_metadata(&path) {
        Ok(found) => examine(&path, &found)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(state, &path)?,
        Err(error) => return Err(JournalError::from_io(&path, &error)),
    }
    let failed = |error: rusqlite::Error| JournalError::from_sqlite(&path, &error);
    let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    recognise(&connection, &path)?;
    tune(&connection).map_err(failed)?;
    check(&connection, &path)?;
    Ok((connection, path))
}

/// Opens it for a reader beside the writer.
pub fn open_for_reading(path: &Path) -> Result<Connection, JournalError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|error| JournalError::from_sqlite(path, &error))
}

fn connect(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(1))?;
    Ok(connection)
}

/// Makes a complete file under another name, then gives it its own.
fn create(state: &Path, path: &Path) -> Result<(), JournalError> {
    let failed = |error: io::Error| JournalError::from_io(path, &error);
    for suffix in ["-wal", "-shm"] {
        let beside = state.join(format!("{FILE}{suffix}"));
        if fs::metadata(&beside).is_ok_and(|found| found.len() > 0) {
            let detail = format!("{} is there but {FILE} is gone", beside.display());
            return Err(JournalError::Corrupt { path: path.to_owned(), detail });
        }
    }
    // Left by a crash in the middle of this very function: nothing was ever stored in it.
    let fresh = state.join("vervet.db.new");
    for leftover in [fresh.clone(), state.join("vervet.db.new-journal")] {
        match fs::remove_file(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed)?;
    fill(&fresh).map_err(|error| JournalError::from_sqlite(path, &error))?;
    give_to_owner_of(state, &file);
    file.sync_all().map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)?;
    File::open(state).and_then(|dir| dir.sync_all()).map_err(failed)
}

fn fill(fresh: &Path) -> rusqlite::Result<()> {
    let connection = connect(fresh, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.execute_batch(&format!(
        "BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; {TABLES} COMMIT;"
    ))?;
    connection.close().map_err(|(_, error)| error)
}

/// What can be said of a file before SQLite sees it.
fn examine(path: &Path, found: &fs::Metadata) -> Result<(), JournalError> {
    if !found.is_file() {
        return Err(JournalError::Foreign { path: path.to_owned() });
    }
    if found.len() == 0 {
        return Err(JournalError::Corrupt { path: path.to_owned(), detail: "it is empty".to_owned() });
    }
    if found.mode() & 0o077 != 0 {
        // Best effort: the directory above is what keeps others out.
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    }
    Ok(())
}

fn recognise(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let number = |pragma: &str| {
        connection
            .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map_err(|error| JournalError::from_sqlite(path, &error))
    };
    if number("application_id")? != APPLICATION_ID {
        return Err(JournalError::Foreign { path: path.to_owned() });
    }
    match number("user_version")? {
        VERSION => Ok(()),
        found if found > VERSION => {
            Err(JournalError::Newer { path: path.to_owned(), found, known: VERSION })
        }
        found => Err(JournalError::Corrupt {
            path: path.to_owned(),
            detail: format!("schema version {found} was never used"),
        }),
    }
}

fn tune(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // The writer checkpoints when nobody waits for it, never in the middle of a commit.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // So that the next start needs no new files: they could not be made on a full disk.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "foreign_keys", false)
}

/// Checks the part that undoing depends on. History is looked at when it is read: checking all of
/// it would make the start wait for what may be hundreds of megabytes.
fn check(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(intents)", [], |row| row.get(0))
        .map_err(|error| JournalError::from_sqlite(path, &error))?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(JournalError::Corrupt { path: path.to_owned(), detail: verdict })
    }
}
