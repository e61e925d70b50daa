//! How a story is told: a guest, what happens, and on failure the guest's last words.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::{
    guest::Guest,
    prepared::{Absent, Stage, guest},
};

/// Plays a story on a host of its own. Its name is that of the test.
pub fn story(name: &str, stage: Stage, play: impl FnOnce(&mut Guest)) {
    let mut guest = match guest(stage) {
        Ok(guest) => guest,
        Err(Absent::Cannot(why)) => return eprintln!("SKIPPED: {name}: {why}"),
        Err(Absent::Broken(why)) => panic!("no guest: {why}"),
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| play(&mut guest))) {
        let words = catch_unwind(AssertUnwindSafe(|| guest.last_words()));
        eprintln!("{}", words.unwrap_or_else(|_| "the guest says nothing any more".to_owned()));
        resume_unwind(panic);
    }
}
