//! Reads iCalendar files (RFC 5545) into the times that their events take up.
//!
//! Strict where the library that parses them is lenient: an event whose time is in doubt makes the
//! whole file unreadable, for an event that is left out could be the one in which nothing may run.
//! Where a time is ambiguous in itself, the event is the longer one. Cancelled events take no time; whether an event shows its owner as free does not matter.

use std::collections::BTreeMap;

use calcard::{
    common::timezone::Tz,
    icalendar::{
        ICalendar, ICalendarComponent, ICalendarComponentType, ICalendarProperty, ICalendarStatus,
        ICalendarValue, dates::TimeOrDelta,
    },
};
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

use crate::policy::calendar::{Span, freeze::Event};

mod check;
mod lines;
mod repeat;

/// Events, each repetition counted.
const MOST: usize = 50_000;

/// The events that are not over at `from` and begin before `until`, in order of their beginning. `zone`:
/// where all-day events and times without a zone are.
///
/// # Errors
/// What is wrong with the file, in words for people.
pub fn events(
    bytes: &[u8],
    zone: &TimeZone,
    from: Timestamp,
    until: Timestamp,
) -> Result<Vec<Event>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    let calendar = ICalendar::parse(text)
        .map_err(|_| "is not an iCalendar file (BEGIN:VCALENDAR … END:VCALENDAR)".to_owned())?;
    lines::complete(text, &calendar)?;
    let zones = check::Zones::of(&calendar);
    let (mut ours, mut series) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
    for (index, mut one) in calendar.components.into_iter().enumerate() {
        if one.component_type == ICalendarComponentType::VTimezone {
            ours.push(one);
        } else if is_event(&one) {
            let start = zones.check(&one).map_err(|error| in_doubt(&one, &error))?;
            let bounded = repeat::bound(&mut one, &start, zone, until);
            bounded.map_err(|error| in_doubt(&one, &error))?;
            // Exceptions are of the event with the same name. One without a name has none.
            series.entry(name(&one).ok_or(index)).or_default().push((one, start));
        }
    }
    let (mut all, mut events) = (0, Vec::new());
    for series in series.into_values() {
        zones.check_exceptions(&series)?;
        let more = expand(&mut ours, series, zone)?;
        all += more.len();
        if all > MOST {
            return Err(too_many());
        }
        let within = |event: &Event| event.span.until > from && event.span.from < until;
        events.extend(more.into_iter().flatten().filter(within));
    }
    events.sort_by_key(|event| (event.span.from, event.span.until));
    Ok(events)
}

/// All repetitions of an event with its exceptions, `None` for cancelled ones. `zones`: those of the
/// file.
fn expand(
    zones: &mut Vec<ICalendarComponent>,
    series: Vec<(ICalendarComponent, Start)>,
    zone: &TimeZone,
) -> Result<Vec<Option<Event>>, String> {
    let mut calendar = ICalendar { components: std::mem::take(zones) };
    let own = calendar.components.len();
    let mut starts = Vec::new();
    for (event, start) in series {
        if let Some(first) = repeat::left_out(&event, &start) {
            calendar.components.push(first);
            starts.push(start.clone());
        }
        calendar.components.push(event);
        starts.push(start);
    }
    let excluded = calendar.components.iter().flat_map(|one| &one.entries);
    let excluded = excluded.filter(|entry| entry.name == ICalendarProperty::Exdate);
    let excluded: usize = excluded.map(|entry| entry.values.len()).sum();
    // The limit counts what is excluded, too, which may be two times by the wall clock each: with so
    // many more, too many are left wherever it ends the repetitions.
    // Without a zone of its own a time stays floating; it is placed below.
    let expanded = calendar.expand_dates(Tz::Floating, MOST + 1 + 2 * excluded);
    let component = |id: u32| {
        let id = usize::try_from(id).ok()?;
        Some((calendar.components.get(id)?, starts.get(id.checked_sub(own)?)?))
    };
    if let Some(error) = expanded.errors.first() {
        let title = component(error.comp_id).map(|(event, _)| title(event)).unwrap_or_default();
        return Err(format!("the event `{title}` cannot be placed: {}", error.error));
    }
    if expanded.events.len() > MOST {
        return Err(too_many());
    }
    let mut events = Vec::new();
    for one in expanded.events {
        let (event, start) = component(one.comp_id).ok_or("has an event from nowhere")?;
        if is_cancelled(event) {
            events.push(None);
            continue;
        }
        let begin = At {
            zone: one.start.timezone(),
            naive: one.start.naive_local().and_utc().timestamp(),
            exact: one.start.timestamp(),
        };
        let end = match one.end {
            TimeOrDelta::Time(end) => End::At(At {
                zone: end.timezone(),
                naive: end.naive_local().and_utc().timestamp(),
                exact: end.timestamp(),
            }),
            TimeOrDelta::Delta(delta) => End::After(delta.num_seconds()),
        };
        let span = span(&begin, &end, start, zone).map_err(|error| in_doubt(event, error))?;
        events.push(Some(Event { title: title(event), span }));
    }
    calendar.components.truncate(own);
    *zones = calendar.components;
    Ok(events)
}

/// When an event begins that is not an exception or a repetition of itself.
#[derive(Clone)]
struct Start {
    /// By the wall clock of its zone.
    civil: civil::DateTime,
    /// Its zone; `None`: the owner's.
    zone: Option<TimeZone>,
    /// A day, not a time of a day.
    whole_days: bool,
}

/// A moment as the library tells it.
struct At {
    zone: Tz,
    /// In seconds, by the wall clock of the zone.
    naive: i64,
    /// In seconds; says nothing if there is no zone.
    exact: i64,
}

enum End {
    At(At),
    /// Seconds after the beginning.
    After(i64),
}

fn span(begin: &At, end: &End, start: &Start, zone: &TimeZone) -> Result<Span, &'static str> {
    let beyond = "is beyond all time";
    let own = start.zone.as_ref().unwrap_or(zone);
    let moment = |at: &At, late: bool| match at.zone {
        Tz::Floating => place(at.naive, own, late),
        _ => exact(at.exact),
    };
    let from = moment(begin, false).ok_or(beyond)?;
    let until = match end {
        End::At(end) => moment(end, true).ok_or(beyond)?,
        End::After(seconds) => {
            let zone = match begin.zone {
                Tz::Floating => own,
                zone => &known(zone).ok_or("is in a zone that this host does not know")?,
            };
            let by_the_clock = place(begin.naive + seconds, zone, true).ok_or(beyond)?;
            let after = from.checked_add(SignedDuration::from_secs(*seconds)).map_err(|_| beyond)?;
            // An hour more or less where a change of the clocks is between; days are days.
            if start.whole_days { by_the_clock } else { by_the_clock.max(after) }
        }
    };
    if until < from {
        return Err("ends before it begins");
    }
    // Who writes a day that ends on the same day means that day.
    if until == from && start.whole_days {
        return Err("ends on the day on which it begins");
    }
    Ok(Span { from, until })
}

fn too_many() -> String {
    format!("has more than {MOST} events, each repetition counted")
}

fn in_doubt(event: &ICalendarComponent, error: &str) -> String {
    format!("the event `{}` {error}", title(event))
}

fn is_event(component: &ICalendarComponent) -> bool {
    component.component_type == ICalendarComponentType::VEvent
}

fn is_cancelled(event: &ICalendarComponent) -> bool {
    let cancelled = ICalendarValue::Status(ICalendarStatus::Cancelled);
    event.entries.iter().any(|entry| entry.values.contains(&cancelled))
}

/// What ties exceptions to their event.
fn name(event: &ICalendarComponent) -> Option<String> {
    let name = event.entries.iter().find(|entry| entry.name == ICalendarProperty::Uid)?;
    match name.values.first() {
        Some(ICalendarValue::Text(text)) => Some(text.clone()),
        _ => None,
    }
}

fn title(event: &ICalendarComponent) -> String {
    let summary = event.entries.iter().find(|entry| entry.name == ICalendarProperty::Summary);
    match summary.and_then(|entry| entry.values.first()) {
        Some(ICalendarValue::Text(text)) => {
            text.chars().filter(|c| !c.is_control()).take(super::values::LINE).collect()
        }
        _ => String::new(),
    }
}

/// A zone of the library's; `None` where there is none, or the host does not know it.
fn known(zone: Tz) -> Option<TimeZone> {
    match zone {
        Tz::Floating => None,
        zone if zone.is_utc() => Some(TimeZone::UTC),
        Tz::Fixed(offset) => {
            Some(jiff::tz::Offset::from_seconds(offset.local_minus_utc()).ok()?.to_time_zone())
        }
        // Names such as "W. Europe Standard Time" are the library's to know.
        Tz::Tz(_) => TimeZone::get(&zone.name()?).ok(),
    }
}

/// A time by the wall clock, in seconds, in a zone; where a clock change makes it ambiguous, the
/// event is the longer one.
fn place(naive: i64, zone: &TimeZone, late: bool) -> Option<Timestamp> {
    let time: civil::DateTime = TimeZone::UTC.to_datetime(exact(naive)?);
    let ambiguous = zone.to_ambiguous_zoned(time);
    let zoned = if late { ambiguous.later() } else { ambiguous.earlier() };
    Some(zoned.ok()?.timestamp())
}

fn exact(seconds: i64) -> Option<Timestamp> {
    Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_secs(seconds)).ok()
}

#[cfg(test)]
mod tests;
