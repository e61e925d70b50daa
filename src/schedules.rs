//! The memory of schedules: what is paused, and up to when slots were dealt with. A small file below the
//! state directory.
//!
//! Whoever cannot read it must take every schedule for paused. It is not thrown away then, but put aside.

use std::{fs, io, path::Path};

use crate::{policy::calendar::Memory, state_file};

const FILE: &str = "schedules.json";

/// Where an unreadable one is kept.
const ASIDE: &str = "schedules.json.unreadable";

/// Longer is not ours.
const MAX_BYTES: u64 = 1024 * 1024;

/// What a former agent left; nothing where there was none.
///
/// # Errors
/// Why it cannot be read, in words for people. It stays where it is until there is another one.
pub fn load(state: &Path) -> Result<Memory, String> {
    let path = state.join(FILE);
    match state_file::read(&path, MAX_BYTES) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Memory::default()),
        Err(error) => Err(error.to_string()),
    }
    .map_err(|error| {
        let aside = state.join(ASIDE);
        format!("{} is unreadable ({error}); it will be kept as {}", path.display(), aside.display())
    })
}

/// Makes it survive a restart. Returns when it is on the disk. One that could not be read is put aside.
///
/// # Errors
/// When it could not be written; what was there before still is.
pub fn store(state: &Path, memory: &Memory) -> io::Result<()> {
    let path = state.join(FILE);
    if path.exists() && load(state).is_err() {
        // A second name, not another one: at no moment is there no file.
        let aside = state.join(ASIDE);
        let _ = fs::remove_file(&aside);
        fs::hard_link(&path, &aside)?;
    }
    state_file::replace(state, FILE, &serde_json::to_vec(memory)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::calendar::Pause;

    #[test]
    fn it_comes_back_as_it_was_and_what_is_garbled_is_kept_aside() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(load(state.path()), Ok(Memory::default()));
        let mut memory = Memory::default();
        let (reason, by) = ("game day".to_owned(), "uid 0".to_owned());
        let since = jiff::Timestamp::UNIX_EPOCH;
        memory.paused.insert("monkey".to_owned(), Pause { reason, by, since });
        store(state.path(), &memory).unwrap();
        assert_eq!(load(state.path()), Ok(memory));
        fs::write(state.path().join(FILE), "{ garbled").unwrap();
        let error = load(state.path()).unwrap_err();
        assert!(error.contains("kept as"), "{error}");
        // Until there is another one, whoever asks again is told the same.
        assert!(load(state.path()).is_err());
        store(state.path(), &Memory::default()).unwrap();
        assert_eq!(load(state.path()), Ok(Memory::default()));
        assert_eq!(fs::read_to_string(state.path().join(ASIDE)).unwrap(), "{ garbled");
    }
}
