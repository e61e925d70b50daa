//! Looks at what freezes go by outside of the policy: files of events, and conditions.
//!
//! A file that cannot be read or understood, and a check without an answer, are told as such; that they
//! freeze is policy's to say.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, timeout},
};

use super::Asker;
use crate::{
    document::icalendar,
    experiment::Check,
    host::linux::clock,
    policy::calendar::{Sight, freeze::Event},
};

/// How often a file is looked at for a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How far events are looked up; repeated ones have no end of their own.
const AHEAD: SignedDuration = SignedDuration::from_hours(24 * 400);
/// Events that are over are known for this long, so that a clock that is set back a little freezes
/// nothing.
const BEHIND: SignedDuration = SignedDuration::from_hours(1);
/// A file that does not change is read again after this long, for the days that came closer.
const AGAIN: SignedDuration = SignedDuration::from_hours(24);
/// The largest file, in bytes.
const LARGEST: u64 = 4 << 20;
/// How long the host may take for a look at a file: it may be another host's, which does not answer.
const PATIENCE: Duration = Duration::from_secs(30);

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
        let from = now.checked_sub(BEHIND).unwrap_or(Timestamp::MIN);
        let until = now.checked_add(AHEAD).unwrap_or(Timestamp::MAX);
        let hangs = || {
            let spans = Err(format!("{}: cannot be read: the host does not answer", path.display()));
            // Whether anybody listens matters to the look after this one.
            let _ = tell(Sight::Events { spans, from, until });
        };
        let file = path.clone();
        let Some(seen) = answer(spawn_blocking(move || mark(&file)), PATIENCE, hangs).await else {
            last = None;
            continue;
        };
        let mark = seen.unwrap_or_else(|error| Err(error.to_string()));
        if last.as_ref().is_some_and(|(old, at)| *old == mark && is_fresh(*at, now)) {
            continue;
        }
        let (file, zone) = (path.clone(), zone.clone());
        let look = spawn_blocking(move || read(&file, &zone, from, until));
        let Some(seen) = answer(look, PATIENCE, hangs).await else {
            last = None;
            continue;
        };
        let spans = seen.unwrap_or_else(|error| Err(format!("reading failed: {error}")));
        last = Some((mark, now));
        if !tell(Sight::Events { spans, from, until }) {
            return;
        }
    }
}

/// What was read at `at` need not be read again for the sake of the time alone. Before that moment
/// nothing is known.
fn is_fresh(at: Timestamp, now: Timestamp) -> bool {
    at <= now && now.duration_since(at) < AGAIN
}

/// What a look says. One that hangs is told once, and gone on with once it has ended: no other one is
/// begun beside it, and what it says by then is not worth a word. That is `None`.
async fn answer<T>(
    mut look: JoinHandle<T>,
    within: Duration,
    hangs: impl FnOnce(),
) -> Option<Result<T, JoinError>> {
    if let Ok(seen) = timeout(within, &mut look).await {
        return Some(seen);
    }
    hangs();
    let _ = look.await;
    None
}

fn mark(file: &Path) -> Mark {
    let file = std::fs::metadata(file).map_err(|error| error.to_string())?;
    Ok((file.mtime(), file.mtime_nsec(), file.ino(), file.len()))
}

fn read(file: &Path, zone: &TimeZone, from: Timestamp, until: Timestamp) -> Result<Vec<Event>, String> {
    let named = |error: String| format!("{}: {error}", file.display());
    let bytes = crate::state_file::read(file, LARGEST + 1);
    let bytes = bytes.map_err(|error| named(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > LARGEST {
        return Err(named("is too long to be a calendar".to_owned()));
    }
    icalendar::events(&bytes, zone, from, until).map_err(named)
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::{sync::mpsc::unbounded_channel, time::sleep};

    use super::*;

    #[test]
    fn what_was_read_later_than_now_is_not_fresh() {
        let at: Timestamp = "2026-11-22T12:00Z".parse().unwrap();
        let hours = SignedDuration::from_hours;
        assert!(is_fresh(at, at) && is_fresh(at, at + hours(23)));
        assert!(!is_fresh(at, at + hours(24)));
        assert!(!is_fresh(at, at - hours(1)) && !is_fresh(at, at - hours(24 * 400)));
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_told_and_waited_for() {
        let quick = answer(spawn_blocking(|| 1), PATIENCE, || panic!("it did not hang")).await;
        assert_eq!(quick.unwrap().unwrap(), 1);

        let (free, held) = mpsc::channel();
        let (told, mut hangs) = unbounded_channel();
        let look = spawn_blocking(move || held.recv());
        let tell = move || told.send(()).unwrap();
        let all =
            tokio::spawn(async move { answer(look, Duration::from_millis(10), tell).await.is_none() });
        hangs.recv().await.unwrap();
        // Whoever asks again waits for the end of the first look.
        sleep(Duration::from_millis(50)).await;
        assert!(!all.is_finished());
        free.send(()).unwrap();
        assert!(all.await.unwrap());
        assert_eq!(hangs.recv().await, None, "told twice");
    }

    #[tokio::test]
    async fn a_file_is_read_and_read_again_when_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("days.ics");
        let (sender, mut sights) = unbounded_channel();
        let follow = follow_file(path.clone(), TimeZone::UTC, move |sight| sender.send(sight).is_ok());
        let follow = tokio::spawn(follow);
        let before = clock::now().wall;
        let Some(Sight::Events { spans, from, until }) = sights.recv().await else { panic!() };
        assert!(spans.unwrap_err().contains("cannot be read"));
        assert!(from < before && before < until);
        std::fs::write(&path, "BEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n").unwrap();
        let Some(Sight::Events { spans, .. }) = sights.recv().await else { panic!() };
        assert_eq!(spans, Ok(Vec::new()));
        follow.abort();
    }
}
