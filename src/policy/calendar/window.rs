//! Windows: hours of some days of the week, by the wall clock of a zone.
//!
//! Where a clock change makes an edge ambiguous or skips it, a window for runs is the shorter one,
//! a freeze the longer one.

use jiff::{
    Timestamp, ToSpan as _,
    civil::{Date, DateTime, Time},
    tz::AmbiguousZoned,
};

use crate::config::Window;

use super::freeze::Span;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// Which of the readings of an ambiguous edge.
#[derive(Clone, Copy)]
enum Edges {
    Shorter,
    Longer,
}

impl Window {
    /// Whether a run may begin at `at`.
    #[must_use]
    pub fn is_open(&self, at: Timestamp) -> bool {
        self.around(at, Edges::Shorter).is_some()
    }

    /// The longest that could be meant around `at`: for freezes.
    #[must_use]
    pub fn closed_around(&self, at: Timestamp) -> Option<Span> {
        let mut whole = self.around(at, Edges::Longer)?;
        // Days that touch are one time: a week has seven.
        for _ in 0..7 {
            match self.around(whole.until, Edges::Longer) {
                Some(next) => whole.until = next.until,
                None => break,
            }
        }
        Some(whole)
    }

    /// The window that begins on this day, if it has one. Absent, too, where a clock change leaves
    /// nothing of it.
    #[must_use]
    pub fn on(&self, day: Date) -> Option<Span> {
        self.span(day, Edges::Shorter)
    }

    /// The first window that ends after `at`, within a fortnight.
    #[must_use]
    pub fn next_open(&self, at: Timestamp) -> Option<Span> {
        self.days_from(at).find_map(|day| self.on(day).filter(|span| span.until > at))
    }

    /// The first window that begins after `at`, for freezes; within a fortnight.
    #[must_use]
    pub fn next_closed(&self, at: Timestamp) -> Option<Span> {
        let mut days = self.days_from(at);
        days.find_map(|day| self.span(day, Edges::Longer).filter(|span| span.from > at))
    }

    fn days_from(&self, at: Timestamp) -> impl Iterator<Item = Date> {
        // The window of the day before may reach into this one.
        let first = at.to_zoned(self.zone.clone()).date().saturating_sub(1.day());
        (0..16).filter_map(move |days| first.checked_add(days.days()).ok())
    }

    fn around(&self, at: Timestamp, edges: Edges) -> Option<Span> {
        let today = at.to_zoned(self.zone.clone()).date();
        let days = [today.yesterday().ok(), Some(today)];
        let spans = days.into_iter().flatten().filter_map(|day| self.span(day, edges));
        spans.filter(|span| span.contains(at)).max_by_key(|span| span.until)
    }

    fn span(&self, day: Date, edges: Edges) -> Option<Span> {
        if !self.days[usize::from(day.weekday().to_monday_zero_offset().unsigned_abs())] {
            return None;
        }
        let over_midnight = self.until <= self.from;
        let last = if over_midnight { day.tomorrow().ok()? } else { day };
        let (from, until) = (minute(day, self.from)?, minute(last, self.until)?);
        let zone = |time: DateTime| self.zone.to_ambiguous_zoned(time);
        let (from, until) = match edges {
            Edges::Shorter => (later(zone(from))?, earlier(zone(until))?),
            Edges::Longer => (earlier(zone(from))?, later(zone(until))?),
        };
        (from < until).then_some(Span { from, until })
    }
}

fn minute(day: Date, minutes: u16) -> Option<DateTime> {
    if minutes == DAY {
        return Some(day.tomorrow().ok()?.to_datetime(Time::midnight()));
    }
    let (hour, minute) = (i8::try_from(minutes / 60).ok()?, i8::try_from(minutes % 60).ok()?);
    Some(day.at(hour, minute, 0, 0))
}

fn earlier(time: AmbiguousZoned) -> Option<Timestamp> {
    time.earlier().ok().map(|zoned| zoned.timestamp())
}

fn later(time: AmbiguousZoned) -> Option<Timestamp> {
    time.later().ok().map(|zoned| zoned.timestamp())
}
