//! What can go wrong with the journal, told apart by what the operator has to do about it.
//!
//! Texts fit after "failed to …: " and name the file. No error leads to a fresh file in the place
//! of an old one: whatever is found is kept.

use std::{io, path::Path, path::PathBuf};

use rusqlite::ErrorCode;

/// Why the journal could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it open.
    #[error(
        "{}: {holder} uses this journal; stop it first (a live agent reverts by itself: `vervet halt`)",
        path.display()
    )]
    Locked { path: PathBuf, holder: String },
    /// Not a journal of vervet's.
    #[error(
        "{}: this is not a vervet journal and is left as it is; move it away or set another `state` directory",
        path.display()
    )]
    Foreign { path: PathBuf },
    /// Written by a later version.
    #[error(
        "{}: written by a newer vervet (schema {found}, this one knows {known}); install that version again",
        path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    /// It does not read as a journal, or its content makes no sense.
    #[error(
        "{}: the journal is damaged ({detail}) and is kept for inspection; check the host for what is \
         left of faults (`vervet doctor`), then move the file away",
        path.display()
    )]
    Corrupt { path: PathBuf, detail: String },
    /// No space left, or a quota reached.
    #[error(
        "{}: the disk is full; free some space there. No fault is injected meanwhile; reverting still works",
        path.display()
    )]
    DiskFull { path: PathBuf },
    /// The file, its directory or its file system does not admit writing.
    #[error(
        "{}: not writable ({detail}); check the mount, the owner and the permissions of this path",
        path.display()
    )]
    ReadOnly { path: PathBuf, detail: String },
    /// Others could replace it.
    #[error("{}: others may write to this directory; `chmod go-w` it", path.display())]
    Exposed { path: PathBuf },
    /// The device said no.
    #[error("{}: {detail}; check the disk (kernel log)", path.display())]
    Io { path: PathBuf, detail: String },
    /// Somebody else holds a lock inside of the file, such as a database shell.
    #[error("{}: another program keeps this file locked; close it", path.display())]
    Busy { path: PathBuf },
    /// The same fault is open already.
    #[error("{}: fault {fault} is open already", path.display())]
    Duplicate { path: PathBuf, fault: String },
}

impl JournalError {
    /// A stable code for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "journal_locked",
            Self::Foreign { .. } => "journal_foreign",
            Self::Newer { .. } => "journal_newer",
            Self::Corrupt { .. } => "journal_corrupt",
            Self::DiskFull { .. } => "journal_disk_full",
            Self::ReadOnly { .. } => "journal_read_only",
            Self::Exposed { .. } => "journal_exposed",
            Self::Io { .. } => "journal_io",
            Self::Busy { .. } => "journal_busy",
            Self::Duplicate { .. } => "journal_duplicate",
        }
    }

    pub(super) fn from_io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::ReadOnly { path, detail: error.to_string() }
            }
            _ => Self::Io { path, detail: error.to_string() },
        }
    }

    /// Result codes: <https://www.sqlite.org/rescode.html>.
    pub(super) fn from_sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        let detail = error.to_string();
        let path = path.to_owned();
        let Some(code) = error.sqlite_error_code() else {
            // A column of another type than the schema says, a row where there must be one.
            return Self::Corrupt { path, detail };
        };
        match code {
            ErrorCode::DiskFull => Self::DiskFull { path },
            // ENOSPC surfaces as an I/O error where SQLite extends the file of its shared memory.
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen if is_full(&path) => {
                Self::DiskFull { path }
            }
            ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::AuthorizationForStatementDenied => Self::ReadOnly { path, detail },
            ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::TypeMismatch
            | ErrorCode::ConstraintViolation
            | ErrorCode::Unknown => Self::Corrupt { path, detail },
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy { path },
            _ => Self::Io { path, detail },
        }
    }
}

fn is_full(path: &Path) -> bool {
    let at = path.parent().unwrap_or(path);
    rustix::fs::statvfs(at).is_ok_and(|stat| stat.f_bavail == 0)
}
