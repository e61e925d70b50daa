//! Looks at what freezes go by outside of the policy: files of events, and conditions.
//!
//! A file that cannot be read or understood, and a check without an answer, are told as such; that they
//! freeze is policy's to say.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use tokio::time::{MissedTickBehavior, interval};

use super::Asker;
use crate::{document::icalendar, experiment::Check, host::linux::clock, policy::calendar::Sight};

/// How often a file is looked at for a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How far events are looked up; repeated ones have no end of their own.
const AHEAD: SignedDuration = SignedDuration::from_hours(24 * 400);
/// A file that does not change is read again after this long, for the days that came closer.
const AGAIN: SignedDuration = SignedDuration::from_hours(24);
/// The largest file, in bytes.
const LARGEST: u64 = 4 << 20;

/// What tells one content of a file from another one without reading it: changed when, which file, how
/// long. `Err`: why it cannot be looked at.
type Mark = Result<(i64, i64, u64, u64), String>;

/// Reads the file now, and whenever it has changed, until nobody listens.
pub async fn follow_file(path: PathBuf, zone: TimeZone, tell: impl Fn(Sight) -> bool) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<(Mark, Timestamp)> = None;
    loop {
        ticks.tick().await;
        let now = clock::now().wall;
        let mark = mark(path.clone()).await;
        let fresh = |(old, at): &(Mark, Timestamp)| *old == mark && now.duration_since(*at) < AGAIN;
        if last.as_ref().is_some_and(fresh) {
            continue;
        }
        let until = now.checked_add(AHEAD).unwrap_or(Timestamp::MAX);
        let (file, zone) = (path.clone(), zone.clone());
        let look = tokio::task::spawn_blocking(move || {
            let named = |error: String| format!("{}: {error}", file.display());
            let bytes = crate::state_file::read(&file, LARGEST + 1);
            let bytes = bytes.map_err(|error| named(format!("cannot be read: {error}")))?;
            if bytes.len() as u64 > LARGEST {
                return Err(named("is too long to be a calendar".to_owned()));
            }
            icalendar::events(&bytes, &zone, now, until).map_err(named)
        });
        let spans = look.await.unwrap_or_else(|error| Err(format!("reading failed: {error}")));
        last = Some((mark, now));
        if !tell(Sight::Events { spans, until }) {
            return;
        }
    }
}

async fn mark(path: PathBuf) -> Mark {
    let look = tokio::task::spawn_blocking(move || std::fs::metadata(path));
    match look.await {
        Ok(Ok(file)) => Ok((file.mtime(), file.mtime_nsec(), file.ino(), file.len())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks the condition now and then every `every`, until nobody listens.
pub async fn ask(check: Check, every: Duration, tell: impl Fn(Sight) -> bool) {
    let mut asker = Asker::new(&check);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let at = clock::boottime();
        let unasked = || Err("a group is no condition".to_owned());
        let outcome = asker.ask().await.unwrap_or_else(unasked);
        if !tell(Sight::Checked { outcome, at }) {
            return;
        }
    }
}
