//! The halt lever's memory: a small file below the state directory.
//!
//! Whoever cannot read it must take it for pulled: an empty or garbled file halts, and so an
//! operator can halt an agent that is not running by `touch halt.json`. It is a file of its own, not
//! a row of the journal, so that the lever works where the journal does not.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::{state_file, view::HaltView};

const FILE: &str = "halt.json";

/// Longer is not ours.
const MAX_BYTES: u64 = 64 * 1024;

/// Why the lever is not on disk as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}; check the space, the mount and the permissions of this path", path.display())]
pub struct HaltError {
    path: PathBuf,
    error: io::Error,
}

/// The halt in force, if any. Never fails: what cannot be read is a halt.
#[must_use]
pub fn load(state: &Path) -> Option<HaltView> {
    let path = state.join(FILE);
    let error = match state_file::read(&path, MAX_BYTES) {
        Ok(text) => match serde_json::from_slice::<HaltView>(&text) {
            Ok(halt) => return Some(HaltView { durable: true, ..halt }),
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
    };
    let changed = fs::metadata(&path).and_then(|file| file.modified()).ok();
    Some(HaltView {
        reason: format!(
            "unreadable halt file {} ({error}); release the halt to remove it",
            path.display()
        ),
        by: "vervet".to_owned(),
        since: changed.and_then(|time| Timestamp::try_from(time).ok()).unwrap_or(Timestamp::UNIX_EPOCH),
        durable: true,
    })
}

/// Makes the halt survive a restart. Returns when it is on the disk.
///
/// When the disk has no room for the reason, an empty file is tried: that halts too.
///
/// # Errors
/// When neither could be written; the halt then holds for the life of this agent only.
pub fn store(state: &Path, halt: &HaltView) -> Result<(), HaltError> {
    let path = state.join(FILE);
    write(state, halt)
        .or_else(|error| bare(state, &path).map_err(|_| error))
        .map_err(|error| HaltError { path, error })
}

/// Releases the lever. Returns when that is on the disk.
///
/// # Errors
/// When the file could not be removed; the halt is then still in force.
pub fn clear(state: &Path) -> Result<(), HaltError> {
    let path = state.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| state_file::sync(state)),
    }
    .map_err(|error| HaltError { path, error })
}

fn write(state: &Path, halt: &HaltView) -> io::Result<()> {
    let durable = HaltView { durable: true, ..halt.clone() };
    state_file::replace(state, FILE, &serde_json::to_vec(&durable)?)
}

/// An older halt that is there already stays as it is.
fn bare(state: &Path, path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?.sync_all()?;
    state_file::sync(state)
}
