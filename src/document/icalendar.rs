//! Reads iCalendar files (RFC 5545) into the times that their events take up.
//!
//! Strict where the library that parses them is lenient: an event whose time is in doubt makes the
//! whole file unreadable, for an event that is left out could be the one in which nothing may run.
//! Cancelled events take no time; whether an event shows its owner as free does not matter.

use std::str::FromStr as _;

use calcard::{
    common::{PartialDateTime, timezone::Tz},
    icalendar::{
        ICalendar, ICalendarComponent, ICalendarComponentType, ICalendarProperty, ICalendarStatus,
        ICalendarValue, dates::TimeOrDelta,
    },
};
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

use crate::policy::calendar::{Span, freeze::Event};

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
    let mut calendar = ICalendar::parse(text)
        .map_err(|_| "is not an iCalendar file (BEGIN:VCALENDAR … END:VCALENDAR)".to_owned())?;
    if !text.trim_end().to_ascii_uppercase().ends_with("END:VCALENDAR") {
        return Err("is cut off: END:VCALENDAR is missing".to_owned());
    }
    check(&calendar)?;
    for event in calendar.components.iter_mut().filter(|one| is_event(one)) {
        bound(event, until);
    }
    // Without a zone of its own a time stays floating; it is placed below.
    let expanded = calendar.expand_dates(Tz::Floating, MOST + 1);
    if let Some(error) = expanded.errors.first() {
        let title = component(&calendar, error.comp_id).map(title).unwrap_or_default();
        return Err(format!("the event `{title}` cannot be placed: {}", error.error));
    }
    if expanded.events.len() > MOST {
        return Err(format!("has more than {MOST} events, each repetition counted"));
    }
    let mut events = Vec::new();
    for one in expanded.events {
        let Some(event) = component(&calendar, one.comp_id).filter(|event| is_event(event)) else {
            continue;
        };
        if is_cancelled(event) {
            continue;
        }
        let naive = one.start.naive_local().and_utc().timestamp();
        let floating = matches!(one.start.timezone(), Tz::Floating);
        let place =
            |naive: i64, late: bool| place(naive, own_zone(event).as_ref().unwrap_or(zone), late);
        let begin = if floating { place(naive, false) } else { exact(one.start.timestamp()) };
        let end = match one.end {
            TimeOrDelta::Time(end) if matches!(end.timezone(), Tz::Floating) => {
                place(end.naive_local().and_utc().timestamp(), true)
            }
            TimeOrDelta::Time(end) => exact(end.timestamp()),
            TimeOrDelta::Delta(delta) if floating => place(naive + delta.num_seconds(), true),
            TimeOrDelta::Delta(delta) => exact(one.start.timestamp() + delta.num_seconds()),
        };
        let beyond = || format!("the event `{}` is beyond all time", title(event));
        let span = Span { from: begin.ok_or_else(beyond)?, until: end.ok_or_else(beyond)? };
        if span.until > from && span.from < until {
            events.push(Event { title: title(event), span });
        }
    }
    events.sort_by_key(|event| (event.span.from, event.span.until));
    Ok(events)
}

/// What the library would pass over must be an error.
fn check(calendar: &ICalendar) -> Result<(), String> {
    let zones = calendar.build_tz_resolver();
    for event in calendar.components.iter().filter(|one| is_event(one)) {
        for entry in &event.entries {
            let right: fn(&ICalendarValue) -> bool = match entry.name {
                ICalendarProperty::Dtstart
                | ICalendarProperty::Dtend
                | ICalendarProperty::RecurrenceId
                | ICalendarProperty::Exdate => is_date,
                ICalendarProperty::Rdate => {
                    |value| is_date(value) || matches!(value, ICalendarValue::Period(_))
                }
                ICalendarProperty::Rrule => |value| matches!(value, ICalendarValue::RecurrenceRule(_)),
                ICalendarProperty::Duration => |value| matches!(value, ICalendarValue::Duration(_)),
                _ => continue,
            };
            let name = entry.name.as_str();
            if entry.values.is_empty() || !entry.values.iter().all(right) {
                return Err(format!("the {name} of the event `{}` cannot be read", title(event)));
            }
            if let Some(zone) = entry.tz_id().filter(|zone| zones.resolve(zone).is_none()) {
                let title = title(event);
                return Err(format!(
                    "the {name} of the event `{title}` is in an unknown zone, `{zone}`"
                ));
            }
        }
        if !event.entries.iter().any(|entry| entry.name == ICalendarProperty::Dtstart) {
            return Err(format!("the event `{}` has no DTSTART", title(event)));
        }
    }
    Ok(())
}

fn is_date(value: &ICalendarValue) -> bool {
    matches!(value, ICalendarValue::PartialDateTime(date) if date.to_date_time().is_some())
}

/// Ends repetitions a little beyond `until`: most have no end of their own.
fn bound(event: &mut ICalendarComponent, until: Timestamp) {
    let last = until.to_zoned(TimeZone::UTC).date();
    let last = last.checked_add(jiff::Span::new().days(2)).unwrap_or(last);
    for value in event.entries.iter_mut().flat_map(|entry| &mut entry.values) {
        if let ICalendarValue::RecurrenceRule(rule) = value {
            let day = |date: &PartialDateTime| (date.year, date.month, date.day);
            let end = PartialDateTime {
                year: u16::try_from(last.year()).ok(),
                month: Some(last.month().unsigned_abs()),
                day: Some(last.day().unsigned_abs()),
                hour: Some(0),
                minute: Some(0),
                second: Some(0),
                tz_hour: Some(0),
                tz_minute: Some(0),
                tz_minus: false,
            };
            let ends_before = rule.until.as_ref().is_some_and(|until| day(until) <= day(&end));
            if rule.count.is_none() && !ends_before {
                rule.until = Some(end);
            }
        }
    }
}

fn component(calendar: &ICalendar, id: u32) -> Option<&ICalendarComponent> {
    calendar.components.get(usize::try_from(id).ok()?)
}

fn is_event(component: &ICalendarComponent) -> bool {
    component.component_type == ICalendarComponentType::VEvent
}

fn is_cancelled(event: &ICalendarComponent) -> bool {
    let cancelled = ICalendarValue::Status(ICalendarStatus::Cancelled);
    event.entries.iter().any(|entry| entry.values.contains(&cancelled))
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

/// The zone that an event's beginning names, where this host knows it.
fn own_zone(event: &ICalendarComponent) -> Option<TimeZone> {
    let start = event.entries.iter().find(|entry| entry.name == ICalendarProperty::Dtstart)?;
    let zone = start.tz_id()?;
    // Names such as "W. Europe Standard Time" are the library's to know.
    let known = Tz::from_str(zone).ok()?.name()?;
    TimeZone::get(&known).ok()
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
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Vec<Event>, String> {
        let text = format!("BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\n{body}END:VCALENDAR\r\n");
        let zone = TimeZone::get("America/New_York").unwrap();
        let (from, until) = ("2026-11-01T00:00Z", "2027-12-01T00:00Z");
        events(text.as_bytes(), &zone, from.parse().unwrap(), until.parse().unwrap())
    }

    fn event(lines: &str) -> String {
        format!("BEGIN:VEVENT\r\nUID:1\r\nSUMMARY:Peak\\, season\r\n{lines}END:VEVENT\r\n")
    }

    fn spans(body: &str) -> Vec<String> {
        let show = |event: Event| format!("{} {}", event.span.from, event.span.until);
        read(body).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn all_day_events_are_the_owners_days_clock_changes_included() {
        let one = event("DTSTART;VALUE=DATE:20261126\r\n");
        assert_eq!(spans(&one), ["2026-11-26T05:00:00Z 2026-11-27T05:00:00Z"]);
        assert_eq!(read(&one).unwrap()[0].title, "Peak, season");
        // The last day of October to the second of November 2027 has no change, 6 to 8 has.
        let over = event("DTSTART;VALUE=DATE:20271106\r\nDTEND;VALUE=DATE:20271108\r\n");
        assert_eq!(spans(&over), ["2027-11-06T04:00:00Z 2027-11-08T05:00:00Z"]);
    }

    #[test]
    fn repetitions_without_an_end_are_bounded_and_exceptions_hold() {
        let weekly = event(
            "DTSTART;TZID=Europe/Berlin:20261030T180000\r\nDTEND;TZID=Europe/Berlin:20261030T200000\r\n\
             RRULE:FREQ=WEEKLY\r\nEXDATE;TZID=Europe/Berlin:20261113T180000\r\n",
        );
        let spans = spans(&weekly);
        assert_eq!(spans[0], "2026-11-06T17:00:00Z 2026-11-06T19:00:00Z");
        assert_eq!(spans[1], "2026-11-20T17:00:00Z 2026-11-20T19:00:00Z");
        assert_eq!(spans.len(), 55, "{spans:?}");
        // The same hours by the wall clock in summer.
        assert!(spans.contains(&"2027-06-04T16:00:00Z 2027-06-04T18:00:00Z".to_owned()));
    }

    #[test]
    fn many_endless_repetitions_do_not_starve_each_other() {
        let body: String = (0..20)
            .map(|n| event(&format!("DTSTART;VALUE=DATE:200001{:02}\r\nRRULE:FREQ=DAILY\r\n", n + 1)))
            .collect();
        let error = read(&body).unwrap_err();
        assert!(error.contains("more than"), "{error}");
        let yearly = event("DTSTART;VALUE=DATE:20001225\r\nRRULE:FREQ=YEARLY\r\n").repeat(100);
        assert_eq!(spans(&yearly).len(), 100);
    }

    #[test]
    fn cancelled_events_take_no_time() {
        assert!(read(&event("DTSTART;VALUE=DATE:20261126\r\nSTATUS:CANCELLED\r\n")).unwrap().is_empty());
        let shown_as_free = event("DTSTART;VALUE=DATE:20261126\r\nTRANSP:TRANSPARENT\r\n");
        assert_eq!(read(&shown_as_free).unwrap().len(), 1);
    }

    #[test]
    fn what_is_in_doubt_is_an_error() {
        for (body, word) in [
            (event("DTSTART:tomorrow\r\n"), "DTSTART"),
            (event(""), "DTSTART"),
            (event("DTSTART;TZID=Mars/Olympus:20261126T100000\r\n"), "unknown zone"),
            (event("DTSTART;VALUE=DATE:20261126\r\nRRULE:FREQ=SOMETIMES\r\n"), "RRULE"),
            (event("DTSTART;VALUE=DATE:20261126\r\nDTEND:x\r\n"), "DTEND"),
        ] {
            let error = read(&body).expect_err(&body);
            assert!(error.contains(word), "{error}");
        }
        let zone = TimeZone::UTC;
        let (from, until) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let cut = b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nDTSTART:20261126T100000Z\r\n";
        for bad in [&b""[..], b"hello", b"\xff\xfe", cut] {
            assert!(events(bad, &zone, from, until).is_err());
        }
    }
}
