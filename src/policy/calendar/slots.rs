//! Slots: the moments at which a schedule's runs begin. A function of the schedule and a seed alone, so
//! that the future can be shown and the past replayed.
//!
//! A mean time between runs works as Netflix's Chaos Monkey does: at most one in each day's window, its
//! minute drawn evenly in it. With no minimum beyond the next day, each day's chance is one over the
//! mean. A longer minimum closes days after a run; the chance on the others is so much higher that the
//! mean stays what was promised. Days are days with a window: with Monday to Friday, two days after
//! Thursday is Monday.

use jiff::{Timestamp, ToSpan as _, civil::Date};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;
use sha2::{Digest as _, Sha256};

use crate::config::{Rhythm, Schedule, Window};

/// The first day of every chain of draws. Any day would do, as long as it is always the same.
const FIRST_DAY: Date = jiff::civil::date(2024, 1, 1);

/// Nobody looks further ahead for the next slot.
const HORIZON_DAYS: i32 = 5 * 366;

/// Patterns and windows that never meet are given up after so many windows.
const MOST_WINDOWS: usize = 2_000;

/// What the draws of a schedule follow from, where its owner gave no seed.
#[must_use]
pub fn own_seed(host: u64, schedule: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(host.to_be_bytes());
    hash.update(schedule);
    number(&hash.finalize())
}

/// The seed of the run that begins in this slot.
#[must_use]
pub fn run_seed(seed: u64, slot: Timestamp) -> u64 {
    let mut hash = Sha256::new();
    hash.update(seed.to_be_bytes());
    hash.update(slot.as_second().to_be_bytes());
    number(&hash.finalize())
}

/// 53 bits: they survive JSON in every language.
fn number(digest: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(bytes) >> 11
}

/// The slots after `after` up to and including `until`, in order, at most `most`.
#[must_use]
pub fn slots(
    schedule: &Schedule,
    seed: u64,
    after: Timestamp,
    until: Timestamp,
    most: usize,
) -> Vec<Timestamp> {
    match &schedule.rhythm {
        Rhythm::Cron { pattern, zone, window, .. } => {
            let mut slots = Vec::new();
            let mut at = after;
            while slots.len() < most {
                match next_cron(pattern, zone, window.as_ref(), at) {
                    Some(slot) if slot <= until => slots.push(slot),
                    _ => break,
                }
                at = slots.last().copied().unwrap_or(until);
            }
            slots
        }
        Rhythm::Mean { days, least, window } => {
            let draws = Draws::new(seed, *days, *least, window, after);
            let slots = draws.take_while(|slot| *slot <= until).filter(|slot| *slot > after);
            slots.take(most).collect()
        }
    }
}

/// The first slot after `after`, if there is one in the next five years.
#[must_use]
pub fn next(schedule: &Schedule, seed: u64, after: Timestamp) -> Option<Timestamp> {
    match &schedule.rhythm {
        Rhythm::Cron { pattern, zone, window, .. } => next_cron(pattern, zone, window.as_ref(), after),
        Rhythm::Mean { days, least, window } => {
            // Of a clock that is wrong by decades, too, something can be said.
            let first = FIRST_DAY.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
            let horizon = (i64::from(HORIZON_DAYS) * 24).hours();
            let horizon = after.max(first).checked_add(horizon).ok()?;
            let mut draws = Draws::new(seed, *days, *least, window, after);
            draws.find(|slot| *slot > after).filter(|slot| *slot <= horizon)
        }
    }
}

fn next_cron(
    pattern: &croner::Cron,
    zone: &jiff::tz::TimeZone,
    window: Option<&Window>,
    after: Timestamp,
) -> Option<Timestamp> {
    let (mut from, mut inclusive) = (after, false);
    for _ in 0..MOST_WINDOWS {
        let next = pattern.find_next_occurrence(&from.to_zoned(zone.clone()), inclusive).ok()?;
        let next = next.timestamp();
        let Some(window) = window else { return Some(next) };
        if window.is_open(next) {
            return Some(next);
        }
        // On to the next window: a pattern of every second would take all night.
        let open = window.next_open(next)?;
        from = open.from.max(next);
        inclusive = open.from > next;
    }
    None
}

/// The slots of a mean time between, from the first day on.
struct Draws<'a> {
    rng: ChaCha12Rng,
    window: &'a Window,
    /// Every day that is not closed by the minimum has this chance.
    chance: f64,
    least: u32,
    /// Days with a window so far, and the number of the one that had the last run.
    windows: u32,
    last: Option<u32>,
    day: Option<Date>,
}

impl<'a> Draws<'a> {
    fn new(seed: u64, days: f64, least: u16, window: &'a Window, after: Timestamp) -> Self {
        // Only a longer minimum makes a day depend on the ones before it.
        let first = if least > 1 {
            FIRST_DAY
        } else {
            let day = after.to_zoned(window.zone.clone()).date();
            day.saturating_sub(1.day()).max(FIRST_DAY)
        };
        // The mean of the days from a run to the next is `least - 1` closed ones and 1 / chance.
        let chance = 1.0 / (days - f64::from(least) + 1.0).max(1.0);
        Self {
            rng: ChaCha12Rng::seed_from_u64(seed),
            window,
            chance,
            least: u32::from(least),
            windows: 0,
            last: None,
            day: Some(first),
        }
    }

    /// What this day's numbers come to, whether it is closed or not.
    fn draw(&mut self, day: Date) -> Option<Timestamp> {
        let span = self.window.on(day)?;
        let minutes = (span.until.as_second() - span.from.as_second()) / 60;
        // A stream for each day: independent of how many numbers the others drew.
        let days = FIRST_DAY.until(day).map_or(0, |span| span.get_days());
        self.rng.set_stream(u64::from(days.unsigned_abs()));
        self.rng.set_word_pos(0);
        let hit = self.rng.random::<f64>() < self.chance;
        let minute = self.rng.random_range(0..minutes.max(1));
        self.windows += 1;
        let closed = self.last.is_some_and(|last| self.windows < last + self.least);
        if !hit || closed {
            return None;
        }
        self.last = Some(self.windows);
        span.from.checked_add(minute.minutes()).ok()
    }
}

impl Iterator for Draws<'_> {
    type Item = Timestamp;

    fn next(&mut self) -> Option<Timestamp> {
        // Five years without a hit: the mean is beyond all sense, or the window never opens.
        for _ in 0..HORIZON_DAYS {
            let day = self.day?;
            self.day = day.tomorrow().ok();
            if let Some(slot) = self.draw(day) {
                return Some(slot);
            }
        }
        None
    }
}
