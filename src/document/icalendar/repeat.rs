//! Where repetitions begin and end.

use calcard::{
    common::{PartialDateTime, timezone::Tz},
    icalendar::{
        ICalendar, ICalendarComponent, ICalendarEntry, ICalendarProperty, ICalendarRecurrenceRule,
        ICalendarValue,
    },
};
use jiff::{Span, Timestamp, civil, tz::TimeZone};

use super::{Start, exact, place};

/// Ends repetitions by the wall clock of their beginning, as the library goes by it: where their own
/// end is, and in any case a little beyond `until`, for most have no end of their own. Where it is in
/// doubt, the later end. `zone`: the owner's.
///
/// # Errors
/// When an end cannot be read; to be said of the event.
pub(super) fn bound(
    event: &mut ICalendarComponent,
    start: &Start,
    zone: &TimeZone,
    until: Timestamp,
) -> Result<(), String> {
    let horizon = until.to_zoned(TimeZone::UTC).datetime();
    let horizon = horizon.checked_add(Span::new().days(2)).unwrap_or(horizon).max(start.civil);
    for value in event.entries.iter_mut().flat_map(|entry| &mut entry.values) {
        if let ICalendarValue::RecurrenceRule(rule) = value {
            let last = match &rule.until {
                Some(until) => last(until, start.zone.as_ref(), zone)
                    .ok_or("has an RRULE with an UNTIL that cannot be read")?,
                None => horizon,
            };
            end(rule, last.min(horizon));
        }
    }
    Ok(())
}

/// The first one of an event that repeats, by itself, if its rule does not say it, too: the library goes
/// by the rule.
pub(super) fn left_out(event: &ICalendarComponent, start: &Start) -> Option<ICalendarComponent> {
    let is_rule = |entry: &ICalendarEntry| entry.name == ICalendarProperty::Rrule;
    let mut rule = event.clone();
    rule.entries.retain(|entry| is_rule(entry) || entry.name == ICalendarProperty::Dtstart);
    if !rule.entries.iter().any(is_rule) {
        return None;
    }
    for entry in &mut rule.entries {
        entry.params.clear();
    }
    let first = ICalendar { components: vec![rule] }.expand_dates(Tz::Floating, 1);
    let first = first.events.first().map(|first| first.start.naive_local().and_utc().timestamp());
    if first.and_then(exact).map(|first| TimeZone::UTC.to_datetime(first)) == Some(start.civil) {
        return None;
    }
    let mut first = event.clone();
    first.entries.retain(|entry| {
        !matches!(
            entry.name,
            ICalendarProperty::Rrule | ICalendarProperty::Rdate | ICalendarProperty::RecurrenceId
        )
    });
    Some(first)
}

/// The end by the wall clock of the beginning.
fn last(until: &PartialDateTime, own: Option<&TimeZone>, zone: &TimeZone) -> Option<civil::DateTime> {
    let date = until.to_date_time()?;
    if date.offset.is_some_and(|offset| offset.local_minus_utc() != 0) {
        return None;
    }
    let seconds = date.date_time.and_utc().timestamp();
    let said = TimeZone::UTC.to_datetime(exact(seconds)?);
    if date.offset.is_some() {
        let last = latest(exact(seconds)?, own.unwrap_or(zone))?;
        // Programs that write a time without a zone, or a day, may mean the same hour or day here.
        return Some(if own.is_some() { last } else { last.max(said) });
    }
    // A day is meant whole.
    let whole = if until.has_time() { 0 } else { 24 * 60 * 60 - 1 };
    let said = TimeZone::UTC.to_datetime(exact(seconds + whole)?);
    let owners = match own {
        // Where the beginning is in UTC, who wrote the end without a zone may have meant the owner's.
        Some(own) if *own == TimeZone::UTC => own.to_datetime(place(seconds + whole, zone, true)?),
        _ => said,
    };
    Some(said.max(owners))
}

/// The latest time by the wall clock until a moment: it may have been set back before.
fn latest(at: Timestamp, zone: &TimeZone) -> Option<civil::DateTime> {
    let before = zone.preceding(at).next().map(|change| change.timestamp());
    let before = before.and_then(|change| change.checked_sub(Span::new().seconds(1)).ok());
    before.into_iter().chain([at]).map(|at| zone.to_datetime(at)).max()
}

fn end(rule: &mut ICalendarRecurrenceRule, last: civil::DateTime) {
    rule.until = Some(PartialDateTime {
        year: u16::try_from(last.year()).ok(),
        month: Some(last.month().unsigned_abs()),
        day: Some(last.day().unsigned_abs()),
        hour: Some(last.hour().unsigned_abs()),
        minute: Some(last.minute().unsigned_abs()),
        second: Some(last.second().unsigned_abs()),
        tz_hour: None,
        tz_minute: None,
        tz_minus: false,
    });
}
