//! What the library would pass over, or understand in its own way, must be an error.

use std::collections::BTreeSet;

use calcard::{
    common::{PartialDateTime, timezone::Tz},
    icalendar::{
        ICalendar, ICalendarComponent, ICalendarEntry, ICalendarParameterName, ICalendarPeriod,
        ICalendarProperty, ICalendarValue, timezone::TzResolver,
    },
};
use jiff::tz::TimeZone;

use super::{Start, exact, in_doubt, known, lines::times};

/// What an event says once at most.
const ONCE: [ICalendarProperty; 7] = [
    ICalendarProperty::Uid,
    ICalendarProperty::Dtstart,
    ICalendarProperty::Dtend,
    ICalendarProperty::Duration,
    ICalendarProperty::Rrule,
    ICalendarProperty::RecurrenceId,
    ICalendarProperty::Status,
];

/// The zones of a file, and those that everybody knows.
pub(super) struct Zones(TzResolver<String>);

impl Zones {
    pub(super) fn of(calendar: &ICalendar) -> Self {
        Self(calendar.build_owned_tz_resolver())
    }

    /// When an event begins, if nothing about it is in doubt.
    ///
    /// # Errors
    /// What is in doubt, to be said of the event.
    pub(super) fn check(&self, event: &ICalendarComponent) -> Result<Start, String> {
        for entry in &event.entries {
            self.check_entry(entry)?;
        }
        if let Some(name) = ONCE.iter().find(|name| times(event, name) > 1) {
            return Err(format!("has more than one {}", name.as_str()));
        }
        let has = |name| times(event, &name) > 0;
        if has(ICalendarProperty::Dtend) && has(ICalendarProperty::Duration) {
            return Err("has a DTEND and a DURATION".to_owned());
        }
        let (entry, date) = date(event, &ICalendarProperty::Dtstart).ok_or("has no DTSTART")?;
        let zone = self.zone(entry, date);
        let repeats = has(ICalendarProperty::Rrule) || has(ICalendarProperty::Rdate);
        for entry in &event.entries {
            for value in &entry.values {
                self.check_beside(entry, value, date, zone, repeats)?;
            }
        }
        let unread = || "has a DTSTART that cannot be read".to_owned();
        let naive = date.to_date_time().ok_or_else(unread)?.date_time.and_utc().timestamp();
        let place = match zone {
            None => None,
            Some(zone) => Some(known(zone).ok_or("is in a zone that this host does not know")?),
        };
        Ok(Start {
            civil: TimeZone::UTC.to_datetime(exact(naive).ok_or_else(unread)?),
            zone: place,
            whole_days: !date.has_time(),
        })
    }

    fn check_entry(&self, entry: &ICalendarEntry) -> Result<(), String> {
        let right: fn(&ICalendarValue) -> bool = match entry.name {
            ICalendarProperty::Dtstart
            | ICalendarProperty::Dtend
            | ICalendarProperty::RecurrenceId
            | ICalendarProperty::Exdate
            | ICalendarProperty::Rdate => |value| {
                let dates = dates(value);
                !dates.is_empty() && dates.into_iter().all(is_date)
            },
            ICalendarProperty::Rrule => |value| match value {
                ICalendarValue::RecurrenceRule(rule) => rule.rscale.is_none() && rule.skip.is_none(),
                _ => false,
            },
            ICalendarProperty::Duration => |value| matches!(value, ICalendarValue::Duration(_)),
            _ => return Ok(()),
        };
        let name = entry.name.as_str();
        let one = !matches!(entry.name, ICalendarProperty::Rdate | ICalendarProperty::Exdate);
        if entry.values.is_empty() || (one && entry.values.len() > 1) || !entry.values.iter().all(right)
        {
            return Err(format!("has a {name} that cannot be read"));
        }
        let Some(zone) = entry.tz_id() else { return Ok(()) };
        let Some(named) = self.0.resolve(zone) else {
            return Err(format!("has a {name} in an unknown zone, `{zone}`"));
        };
        if !named.is_utc() && entry.values.iter().flat_map(dates).any(PartialDateTime::has_zone) {
            return Err(format!("has a {name} in the zone `{zone}` and in UTC"));
        }
        Ok(())
    }

    /// A time beside the beginning. The library fills in what is missing, and takes the difference of
    /// two zones for time.
    fn check_beside(
        &self,
        entry: &ICalendarEntry,
        value: &ICalendarValue,
        start: &PartialDateTime,
        start_zone: Option<Tz>,
        repeats: bool,
    ) -> Result<(), String> {
        let name = entry.name.as_str();
        if !matches!(
            entry.name,
            ICalendarProperty::Dtend | ICalendarProperty::Rdate | ICalendarProperty::Exdate
        ) {
            return Ok(());
        }
        for date in dates(value) {
            let zone = self.zone(entry, date);
            let floats = zone.is_none() && date.has_time();
            if (zone.is_some() && start_zone.is_none()) || (floats && start.has_zone()) {
                return Err(format!("has a zone for one of DTSTART and {name} alone"));
            }
            let zone = zone.or(start_zone).unwrap_or(Tz::Floating);
            if entry.name == ICalendarProperty::Dtend
                && repeats
                && Some(zone) != start_zone.or(Some(Tz::Floating))
            {
                return Err("repeats, and has a DTEND in another zone than DTSTART".to_owned());
            }
            if entry.name == ICalendarProperty::Rdate && date.to_date_time_with_tz(zone).is_none() {
                return Err("has an RDATE in an hour that the clocks skip or repeat".to_owned());
            }
        }
        Ok(())
    }

    /// Exceptions must each be of one repetition, and the only one.
    ///
    /// # Errors
    /// What is in doubt.
    pub(super) fn check_exceptions(&self, series: &[(ICalendarComponent, Start)]) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (event, start) in series {
            let Some((entry, date)) = date(event, &ICalendarProperty::RecurrenceId) else { continue };
            let wrong = |what: &str| Err(in_doubt(event, what));
            if entry.parameters(&ICalendarParameterName::Range).next().is_some() {
                return wrong("has a RECURRENCE-ID with a RANGE, which is not understood");
            }
            let zone = self.zone(entry, date);
            let repeats = |event| times(event, &ICalendarProperty::Rrule) > 0;
            let mut others = series.iter().filter(|(event, _)| repeats(event));
            let zoned = zone.is_some() || start.zone.is_some();
            if date.has_time() && others.any(|(_, other)| other.zone.is_some() != zoned) {
                return wrong(
                    "has a zone for one of RECURRENCE-ID and the DTSTART of what repeats alone",
                );
            }
            let own = self::date(event, &ICalendarProperty::Dtstart);
            let zone = zone.or_else(|| own.and_then(|(entry, date)| self.zone(entry, date)));
            let at = date.to_date_time_with_tz(zone.unwrap_or(Tz::Floating));
            if at.is_some_and(|at| !seen.insert((sequence(event), at.timestamp()))) {
                return wrong("has the RECURRENCE-ID of another one");
            }
        }
        Ok(())
    }

    /// The zone that a time names by itself.
    fn zone(&self, entry: &ICalendarEntry, date: &PartialDateTime) -> Option<Tz> {
        if date.has_zone() { Some(Tz::UTC) } else { self.0.resolve(entry.tz_id()?) }
    }
}

fn date<'a>(
    event: &'a ICalendarComponent,
    name: &ICalendarProperty,
) -> Option<(&'a ICalendarEntry, &'a PartialDateTime)> {
    let entry = event.entries.iter().find(|entry| entry.name == *name)?;
    Some((entry, *dates(entry.values.first()?).first()?))
}

fn dates(value: &ICalendarValue) -> Vec<&PartialDateTime> {
    match value {
        ICalendarValue::PartialDateTime(date) => vec![date],
        ICalendarValue::Period(ICalendarPeriod::Range { start, end }) => vec![start, end],
        ICalendarValue::Period(ICalendarPeriod::Duration { start, .. }) => vec![start],
        _ => Vec::new(),
    }
}

/// There is such a day and time; and no offset but that of UTC, which is all that there may be.
fn is_date(date: &PartialDateTime) -> bool {
    let utc = date.tz_hour.unwrap_or(0) == 0 && date.tz_minute.unwrap_or(0) == 0;
    date.to_date_time().is_some() && utc
}

fn sequence(event: &ICalendarComponent) -> Option<i64> {
    let mut entries = event.entries.iter().filter(|entry| entry.name == ICalendarProperty::Sequence);
    match entries.next_back()?.values.first() {
        Some(ICalendarValue::Integer(number)) => Some(*number),
        _ => None,
    }
}
