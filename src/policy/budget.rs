//! The removal budget: so many in any window of a given length, whoever caused them.

use std::collections::VecDeque;

use crate::{config::Removal, policy::time::Moment};

/// The removals of a group that may still count, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    removals: VecDeque<(Moment, u32)>,
}

/// Whether a removal fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Now,
    /// It will at this moment, if nothing else is removed until then.
    At(Moment),
    /// It is larger than the whole budget.
    Never,
}

impl Ledger {
    /// Notes `count` removals. Moments may come slightly out of order (a journal's, after a restart).
    pub fn record(&mut self, at: Moment, count: u32) {
        if count > 0 {
            let place = self.removals.partition_point(|(earlier, _)| *earlier <= at);
            self.removals.insert(place, (at, count));
        }
    }

    /// A removal that was noted when it was decided has happened only now.
    pub fn postpone(&mut self, noted: Moment, count: u32, happened: Moment) {
        if let Some(place) = self.removals.iter().position(|entry| *entry == (noted, count)) {
            self.removals.remove(place);
            self.record(happened, count);
        }
    }

    /// Removals in the window that ends now. One made at `t` counts before `t + every`.
    #[must_use]
    pub fn used(&self, rule: Removal, now: Moment) -> u32 {
        self.removals
            .iter()
            .filter(|(at, _)| counts(*at, rule, now))
            .fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// When `count` more would fit.
    #[must_use]
    pub fn room(&self, count: u32, rule: Removal, now: Moment) -> Room {
        if count > rule.at_once {
            return Room::Never;
        }
        let mut used = self.used(rule, now);
        if used.saturating_add(count) <= rule.at_once {
            return Room::Now;
        }
        for (at, removed) in self.removals.iter().filter(|(at, _)| counts(*at, rule, now)) {
            used -= removed;
            if used + count <= rule.at_once {
                return Room::At(at.plus(rule.every));
            }
        }
        unreachable!("an empty window has room for what is not larger than the budget")
    }

    /// Forgets what no longer counts.
    pub fn trim(&mut self, rule: Removal, now: Moment) {
        while self.removals.front().is_some_and(|(at, _)| !counts(*at, rule, now)) {
            self.removals.pop_front();
        }
    }
}

fn counts(at: Moment, rule: Removal, now: Moment) -> bool {
    now < at.plus(rule.every)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const RULE: Removal = Removal { at_once: 2, every: Duration::from_secs(30) };

    fn at(seconds: u64) -> Moment {
        Moment::default().plus(Duration::from_secs(seconds))
    }

    #[test]
    fn room_returns_as_the_oldest_falls_out() {
        let mut ledger = Ledger::default();
        ledger.record(at(10), 1);
        ledger.record(at(20), 1);
        assert_eq!(ledger.room(1, RULE, at(25)), Room::At(at(40)));
        assert_eq!(ledger.room(2, RULE, at(25)), Room::At(at(50)));
        assert_eq!(ledger.room(1, RULE, at(40)), Room::Now);
        assert_eq!(ledger.room(3, RULE, at(90)), Room::Never);
    }

    proptest! {
        /// Whoever waits until the ledger says so never exceeds the budget in any window.
        #[test]
        fn no_window_holds_more_than_the_budget(
            at_once in 1_u32..4, every in 1_u64..60, wishes in prop::collection::vec((0_u64..50, 1_u32..4), 1..40),
        ) {
            let rule = Removal { at_once, every: Duration::from_secs(every) };
            let mut ledger = Ledger::default();
            let mut now = at(0);
            let mut made: Vec<(Moment, u32)> = Vec::new();
            for (pause, count) in wishes {
                now = now.plus(Duration::from_secs(pause));
                match ledger.room(count, rule, now) {
                    Room::Now => {}
                    Room::At(later) => {
                        prop_assert!(later > now);
                        now = later;
                        prop_assert_eq!(ledger.room(count, rule, now), Room::Now);
                    }
                    Room::Never => { prop_assert!(count > at_once); continue; }
                }
                ledger.record(now, count);
                ledger.trim(rule, now);
                made.push((now, count));
                let in_window: u32 = made.iter()
                    .filter(|(at, _)| now < at.plus(rule.every)).map(|(_, count)| count).sum();
                prop_assert!(in_window <= at_once);
            }
        }
    }
}
