//! The lines of an iCalendar file, counted beside the library: it passes over what it does not
//! understand, and stops where it thinks that the file ends.

use calcard::icalendar::{ICalendar, ICalendarComponent, ICalendarProperty};

/// What the time of an event hangs on.
const WEIGHTY: [ICalendarProperty; 9] = [
    ICalendarProperty::Uid,
    ICalendarProperty::Dtstart,
    ICalendarProperty::Dtend,
    ICalendarProperty::Duration,
    ICalendarProperty::Rrule,
    ICalendarProperty::Rdate,
    ICalendarProperty::Exdate,
    ICalendarProperty::RecurrenceId,
    ICalendarProperty::Status,
];

const CALENDAR: &str = "VCALENDAR";
const EVENT: &str = "VEVENT";

/// One calendar with nothing around it, each end the end of what begins last, and each event and what
/// its time hangs on understood by the library.
///
/// # Errors
/// What is wrong, in words for people.
pub(super) fn complete(text: &str, calendar: &ICalendar) -> Result<(), String> {
    let counted = count(&unfold(text))?;
    let events = || calendar.components.iter().filter(|one| super::is_event(one));
    if events().count() != counted.events {
        return Err(format!("has {} events, of which {} can be read", counted.events, events().count()));
    }
    for (name, lines) in WEIGHTY.iter().zip(counted.weighty) {
        if events().map(|event| times(event, name)).sum::<usize>() != lines {
            return Err(format!("has an event with a {} that cannot be read", name.as_str()));
        }
    }
    Ok(())
}

/// How many lines of an event have this name.
pub(super) fn times(event: &ICalendarComponent, name: &ICalendarProperty) -> usize {
    event.entries.iter().filter(|entry| entry.name == *name).count()
}

#[derive(Default)]
struct Counted {
    events: usize,
    /// Lines of events, by their names.
    weighty: [usize; WEIGHTY.len()],
}

fn count(text: &str) -> Result<Counted, String> {
    let mut counted = Counted::default();
    let mut open: Vec<String> = Vec::new();
    let mut over = false;
    for line in text.split(['\r', '\n']).map(str::trim).filter(|line| !line.is_empty()) {
        if over {
            return Err("has more behind its END:VCALENDAR".to_owned());
        }
        let name = line.split([':', ';']).next().unwrap_or_default().trim().to_ascii_uppercase();
        let value = line.split_once(':').map_or("", |(_, value)| value).trim().to_ascii_uppercase();
        match (name.as_str(), open.last().map(String::as_str)) {
            ("BEGIN", within) => {
                if (within == Some(CALENDAR) || value != EVENT)
                    && (within.is_none() == (value == CALENDAR))
                {
                    counted.events += usize::from(value == EVENT);
                    open.push(value);
                } else {
                    return Err(format!("has a BEGIN:{value} in a wrong place"));
                }
            }
            ("END", Some(within)) if within == value => {
                open.pop();
                over = open.is_empty();
            }
            ("END", _) => return Err(format!("has an END:{value} in a wrong place")),
            (_, None) => return Err("has more before its BEGIN:VCALENDAR".to_owned()),
            (name, Some(EVENT)) => {
                if let Some(index) = WEIGHTY.iter().position(|one| one.as_str() == name) {
                    counted.weighty[index] += 1;
                }
            }
            _ => (),
        }
    }
    match open.last() {
        Some(within) => Err(format!("is cut off: END:{within} is missing")),
        None => Ok(counted),
    }
}

/// Long lines are written as several, all but the first one with a blank before.
fn unfold(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    text.replace("\n ", "").replace("\n\t", "")
}
