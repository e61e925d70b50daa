//! Freezes: times in which nothing runs. What is not known is frozen.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

use crate::{
    config::{Freeze, When},
    policy::time::{Moment, Now},
};

/// A condition that was not asked for this many times its `every` is not known any more.
const STALE: u32 = 3;

/// From a moment to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: Timestamp,
    /// Exclusive.
    pub until: Timestamp,
}

impl Span {
    #[must_use]
    pub fn contains(&self, at: Timestamp) -> bool {
        self.from <= at && at < self.until
    }
}

/// What was last seen of what a freeze goes by.
#[derive(Debug, Clone, PartialEq)]
pub enum Sight {
    /// The events of a file, or why they cannot be known. They reach from `from` up to `until`.
    Events { spans: Result<Vec<Event>, String>, from: Timestamp, until: Timestamp },
    /// An answer to a condition, and when it was asked.
    Checked { outcome: Result<(), String>, at: Moment },
}

/// An event of a calendar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What it is called; empty where nobody said.
    pub title: String,
    pub span: Span,
}

/// The latest sights, by the freeze's name.
pub type Sights = BTreeMap<String, Sight>;

/// A freeze that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    pub name: String,
    /// Where that can be known.
    pub until: Option<Timestamp>,
    /// Beyond what the name says: the event, what the check answered, why it is not known.
    pub because: Option<String>,
}

/// The freeze in force, the one that lasts longest if there are several; one whose end nobody knows
/// counts as longest.
#[must_use]
pub fn frozen(freezes: &[Freeze], sights: &Sights, now: Now) -> Option<Frozen> {
    let in_force = freezes.iter().filter_map(|freeze| one(freeze, sights.get(&freeze.name), now));
    in_force.max_by_key(|frozen| frozen.until.unwrap_or(Timestamp::MAX))
}

fn one(freeze: &Freeze, sight: Option<&Sight>, now: Now) -> Option<Frozen> {
    let frozen = |until, because| Some(Frozen { name: freeze.name.clone(), until, because });
    match (&freeze.when, sight) {
        (When::Dates { from, until, .. }, _) => {
            let span = Span { from: *from, until: *until };
            span.contains(now.wall).then_some(()).and_then(|()| frozen(Some(*until), None))
        }
        (When::Weekly(window), _) => frozen(Some(window.closed_around(now.wall)?.until), None),
        (When::Calendar { path, .. }, Some(Sight::Events { spans, from, until })) => match spans {
            Err(error) => frozen(None, Some(error.clone())),
            Ok(_) if now.wall < *from => {
                let path = path.display();
                frozen(None, Some(format!("{path} was not read since the clock went back")))
            }
            Ok(_) if now.wall >= *until => {
                frozen(None, Some(format!("{} was not read again in time", path.display())))
            }
            Ok(events) => {
                let events = events.iter().filter(|event| event.span.contains(now.wall));
                let event = events.max_by_key(|event| event.span.until)?;
                let title = (!event.title.is_empty()).then(|| event.title.clone());
                frozen(Some(event.span.until), title)
            }
        },
        (When::Calendar { path, .. }, _) => {
            frozen(None, Some(format!("{} was not read yet", path.display())))
        }
        (When::Unless { every, .. }, Some(Sight::Checked { outcome, at })) => match outcome {
            Err(error) => frozen(None, Some(error.clone())),
            Ok(()) if now.mono > stale_at(*at, *every) => {
                let age = now.mono.since(*at).as_secs();
                frozen(None, Some(format!("its check was last answered {age} s ago")))
            }
            Ok(()) => None,
        },
        (When::Unless { .. }, _) => frozen(None, Some("its check was not answered yet".to_owned())),
    }
}

fn stale_at(at: Moment, every: Duration) -> Moment {
    // A check may take its time, too: a minute is the longest there is.
    at.plus(every.saturating_mul(STALE)).plus(Duration::from_mins(1))
}

/// When a freeze begins next by the clock alone, if nothing is frozen now.
#[must_use]
pub fn next_begin(freezes: &[Freeze], sights: &Sights, after: Timestamp) -> Option<Timestamp> {
    let begins = freezes.iter().filter_map(|freeze| match (&freeze.when, sights.get(&freeze.name)) {
        (When::Dates { from, .. }, _) => Some(*from),
        (When::Weekly(window), _) => window.next_closed(after).map(|span| span.from),
        (When::Calendar { .. }, Some(Sight::Events { spans: Ok(events), .. })) => {
            let begins = events.iter().map(|event| event.span.from);
            begins.filter(|from| *from > after).min()
        }
        _ => None,
    });
    begins.filter(|from| *from > after).min()
}

/// The times in which a freeze is in force between two moments, as far as they can be known, with
/// what is known of each; the first ones, at most `most`.
#[must_use]
pub fn spans(
    freeze: &Freeze,
    sight: Option<&Sight>,
    from: Timestamp,
    until: Timestamp,
    most: usize,
) -> Vec<(Span, Option<String>)> {
    let within = |span: &Span| span.from < until && span.until > from;
    match (&freeze.when, sight) {
        (When::Dates { from, until, .. }, _) => {
            let span = Span { from: *from, until: *until };
            if within(&span) { vec![(span, None)] } else { Vec::new() }
        }
        (When::Weekly(window), _) => {
            let mut spans: Vec<_> = window.closed_around(from).into_iter().collect();
            let mut at = spans.last().map_or(from, |span| span.until);
            while spans.len() < most {
                let Some(next) = window.next_closed(at).filter(within) else { break };
                // Days that touch are one time.
                let whole = window.closed_around(next.from).unwrap_or(next);
                at = whole.until;
                spans.push(whole);
            }
            spans.into_iter().map(|span| (span, None)).collect()
        }
        (When::Calendar { .. }, Some(Sight::Events { spans: Ok(events), .. })) => {
            let events = events.iter().filter(|event| within(&event.span));
            let title = |event: &Event| (!event.title.is_empty()).then(|| event.title.clone());
            events.take(most).map(|event| (event.span, title(event))).collect()
        }
        _ => Vec::new(),
    }
}
