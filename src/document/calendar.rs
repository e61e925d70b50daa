//! Reads freezes and schedules of a policy.

use std::time::Duration;

use jiff::{Timestamp, civil, tz::TimeZone};

use super::{
    checks, later,
    reader::{Read, Report, Shape, Table, listed, nearest},
    tree::{Node, Value},
    values,
};
use crate::{
    config::{Freeze, Rhythm, Schedule, When, Window},
    policy::calendar::slots,
    units::{clip, show_duration},
};

const DAY: Duration = Duration::from_hours(24);
const LONGEST_MEAN: Duration = Duration::from_hours(24 * 366);

/// `every` of a condition, where it is not given.
const ASK_EVERY: Duration = Duration::from_secs(15);

/// The keys of which a freeze has exactly one.
const KINDS: &[&str] = &["from", "days", "calendar", "unless"];

/// A `[[freeze]]`: dates, hours of the week, a file of events, or a condition.
pub fn freeze(node: &Node, report: &Report) -> Read<Freeze> {
    let keys: &[&[&str]] =
        &[&["name", "from", "until", "zone", "days", "hours", "calendar", "unless", "every"]];
    let table = Table::open(node, report, &Shape { what: "a freeze", keys, known: later::nothing })?;
    let name = table.need("name", "name = \"peak season\"", values::line);
    let kind = match KINDS.iter().filter(|key| table.has(key)).collect::<Vec<_>>().as_slice() {
        [kind] => **kind,
        [] if table.has("until") || table.meant("from") => "from",
        [] if table.has("hours") || table.meant("days") => "days",
        [] => {
            let message =
                "when? a freeze has `from` and `until`, `days` and `hours`, `calendar` or `unless`";
            return Err(report.advise(
                node,
                message,
                "for example: from = \"2026-11-20T00:00\", until = \"2027-01-05T00:00\"",
            ));
        }
        [first, second, ..] => {
            let message = format!("a freeze goes by one thing, and this one has `{first}` already");
            let at = table.node(second).unwrap_or(node);
            return Err(report.advise(at, message, "write two freezes: each of them holds"));
        }
    };
    let of = |key: &str| match key {
        "until" => Some("from"),
        "hours" => Some("days"),
        "every" => Some("unless"),
        _ => None,
    };
    for key in ["until", "hours", "every"] {
        if let (Some(node), true) = (table.node(key), of(key) != Some(kind)) {
            let home = of(key).unwrap_or_default();
            report.error(node, format!("`{key}` belongs to `{home}`, and this freeze has `{kind}`"));
        }
    }
    let when = match kind {
        "from" => dates(&table),
        "days" => hours_of_days(&table).map(When::Weekly),
        "calendar" => {
            let zone = table.need("zone", "zone = \"Europe/Berlin\"", zone);
            let path = table.need("calendar", "", values::path);
            Ok(When::Calendar { path: path?, zone: zone?.1 })
        }
        _ => {
            if let Some(node) = table.node("zone") {
                report.error(node, "a condition holds or not, in every zone alike: leave `zone` out");
            }
            let check = table.need("unless", "", checks::condition);
            let every = values::duration(Duration::from_secs(1)..=Duration::from_hours(1));
            let every = table.or("every", ASK_EVERY, every);
            Ok(When::Unless { check: check?, every: every? })
        }
    };
    Ok(Freeze { name: name?, when: when? })
}

fn dates(table: &Table<'_>) -> Read<When> {
    let from = table.need("from", "from = \"2026-11-20T00:00\"", civil_time);
    let until = table.need("until", "until = \"2027-01-05T00:00\"", civil_time);
    let zone = table.need("zone", "zone = \"Europe/Berlin\"", zone);
    let (from, until, (zone, tz)) = (from?, until?, zone?);
    // Where a clock change makes a local time ambiguous, the freeze is the longer one.
    let from = instant(table, "from", tz.to_ambiguous_zoned(from).earlier())?;
    let until_node = table.node("until").unwrap_or(table.node);
    let until = instant(table, "until", tz.to_ambiguous_zoned(until).later())?;
    if until <= from {
        let message = "this freeze ends before it begins: `until` must be after `from`";
        return Err(table.report.error(until_node, message));
    }
    Ok(When::Dates { from, until, zone })
}

/// A `[[schedule]]`: a cron pattern, or a mean time between runs in a window.
pub fn schedule(node: &Node, report: &Report) -> Read<Schedule> {
    let keys: &[&[&str]] = &[&[
        "name",
        "experiment",
        "enabled",
        "leashed",
        "seed",
        "cron",
        "mean_time_between",
        "min_time_between",
        "window",
        "zone",
    ]];
    let table = Table::open(node, report, &Shape { what: "a schedule", keys, known: later::nothing })?;
    let experiment = table.need("experiment", "experiment = \"kill-one-checkout\"", experiment_name);
    let name = table.find("name", values::identifier);
    let enabled = table.or("enabled", true, values::boolean);
    let leashed = table.or("leashed", false, values::boolean);
    let seed = table.find("seed", seed);
    let rhythm = match (table.has("cron"), table.has("mean_time_between")) {
        (true, false) => cron(&table),
        (false, true) => mean(&table),
        (true, true) => {
            let at = table.node("cron").unwrap_or(node);
            let message = "a schedule has `cron` or `mean_time_between`, and this one has both";
            Err(report.advise(at, message, "write two schedules, each with a `name`"))
        }
        (false, false) if table.meant("cron") || table.meant("mean_time_between") => {
            Err(super::reader::Failed)
        }
        (false, false) => Err(report.advise(
            node,
            "when? a schedule needs `cron` or `mean_time_between`",
            "for example: mean_time_between = \"2d\", or cron = \"0 10 * * Mon-Fri\"",
        )),
    };
    let experiment = experiment?;
    let schedule = Schedule {
        name: name?.unwrap_or_else(|| experiment.replace('/', ".")),
        experiment,
        enabled: enabled?,
        leashed: leashed?,
        seed: seed?,
        rhythm: rhythm?,
    };
    // Any fixed day does: the question is whether there is one at all.
    let some_day = Timestamp::from_second(1_704_067_200).unwrap_or_default();
    if matches!(schedule.rhythm, Rhythm::Cron { .. }) && slots::next(&schedule, 0, some_day).is_none() {
        let at = table.node("cron").unwrap_or(node);
        let message = "this schedule would never run: no such time lies in its window";
        return Err(report.advise(
            at,
            message,
            "compare the hours of `cron` with `window` and its zone",
        ));
    }
    Ok(schedule)
}

/// The name that a schedule has, for telling whether two have the same.
pub fn schedule_name(node: &Node) -> Option<String> {
    let text = |key| match node.get(key).map(|node| &node.value) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    text("name").or_else(|| text("experiment").map(|name| name.replace('/', ".")))
}

fn experiment_name(node: &Node, report: &Report) -> Read<String> {
    let name = values::line(node, report)?;
    if super::library::is_name(&name) {
        return Ok(name);
    }
    let message = format!("`{}` is not the name of an experiment", clip(&name));
    let help = "experiments of this host's library are named as their files are, without `.toml`";
    Err(report.advise(node, message, help))
}

fn seed(node: &Node, report: &Report) -> Read<u64> {
    let Value::Integer(number) = node.value else {
        return Err(report.mismatch(node, "a whole number"));
    };
    u64::try_from(number).map_err(|_| report.error(node, "a seed lies between 0 and 2^64 - 1"))
}

fn cron(table: &Table<'_>) -> Read<Rhythm> {
    let report = table.report;
    if let Some(node) = table.node("min_time_between") {
        let message =
            "`min_time_between` belongs to `mean_time_between`: a pattern says itself how often";
        report.error(node, message);
    }
    let pattern = table.need("cron", "", cron_pattern);
    let window = table.find("window", window);
    let own = table.find("zone", zone);
    let ((text, pattern), window, own) = (pattern?, window?, own?);
    let zone = match (&window, own) {
        (Some(window), None) => window.zone.clone(),
        (None, Some((_, zone))) => zone,
        (Some(_), Some(_)) => {
            let node = table.node("zone").unwrap_or(table.node);
            return Err(report.error(node, "the window has a zone already: it is the pattern's, too"));
        }
        (None, None) => {
            return Err(table.missing("zone", "zone = \"Europe/Berlin\""));
        }
    };
    Ok(Rhythm::Cron { text, pattern, zone, window })
}

fn cron_pattern(node: &Node, report: &Report) -> Read<(String, Box<croner::Cron>)> {
    let text = values::line(node, report)?;
    let parser =
        croner::parser::CronParser::builder().seconds(croner::parser::Seconds::Optional).build();
    let pattern = parser.parse(&text).map(Box::new).map_err(|error| {
        let why = error.to_string().trim_end_matches('.').replace("Component error: ", "");
        let message = format!("`{}` is not a cron pattern: {}", clip(&text), why.to_lowercase());
        let help = "minute, hour, day of the month, month, day of the week: \"0 10 * * Mon-Fri\"";
        report.advise(node, message, help)
    })?;
    Ok((text, pattern))
}

fn mean(table: &Table<'_>) -> Read<Rhythm> {
    let report = table.report;
    let days = table.need("mean_time_between", "", |node, report| {
        let mean = values::duration(Duration::from_nanos(1)..=LONGEST_MEAN)(node, report)?;
        if mean < DAY {
            let message = format!("there is one run a day at most, and {} is less", show_duration(mean));
            return Err(report.advise(node, message, "write `cron` for what runs more often"));
        }
        Ok(mean.as_secs_f64() / DAY.as_secs_f64())
    });
    let least = table.or("min_time_between", 1, |node, report| {
        let least = values::duration(Duration::from_nanos(1)..=LONGEST_MEAN)(node, report)?;
        let days = least.as_secs() / DAY.as_secs();
        if days == 0 || least != Duration::from_secs(days * DAY.as_secs()) {
            let message = "the minimum is a number of whole days with a window";
            return Err(report.advise(node, message, "for example \"1d\": never twice on one day"));
        }
        u16::try_from(days).map_err(|_| super::reader::Failed)
    });
    if let Some(node) = table.node("zone") {
        report.advise(node, "the zone is the window's", "write it into `window`");
    }
    let example = "window = { days = \"Mon-Fri\", hours = \"09:00-15:00\", zone = \"Europe/Berlin\" }";
    let window = table.need("window", example, window);
    let (days, least, window) = (days?, least?, window?);
    if f64::from(least) > days {
        let node = table.node("min_time_between").unwrap_or(table.node);
        let message = "the minimum is above the mean, which could then never be kept";
        return Err(report.advise(node, message, "raise `mean_time_between`, or lower the minimum"));
    }
    Ok(Rhythm::Mean { days, least, window })
}

/// `{ days = "Mon-Fri", hours = "09:00-15:00", zone = "Europe/Berlin" }`
fn window(node: &Node, report: &Report) -> Read<Window> {
    let keys: &[&[&str]] = &[&["days", "hours", "zone"]];
    let table = Table::open(node, report, &Shape { what: "a window", keys, known: later::nothing })?;
    hours_of_days(&table)
}

fn hours_of_days(table: &Table<'_>) -> Read<Window> {
    let days = table.need("days", "days = \"Mon-Fri\"", days);
    let hours = table.or("hours", (0, 24 * 60), hours);
    let zone = table.need("zone", "zone = \"Europe/Berlin\"", zone);
    let ((from, until), (_, zone)) = (hours?, zone?);
    Ok(Window { days: days?, from, until, zone })
}

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// `"Mon-Fri"`, `"Sat,Sun"`, `"daily"`.
fn days(node: &Node, report: &Report) -> Read<[bool; 7]> {
    let text = values::line(node, report)?;
    if text.trim() == "daily" {
        return Ok([true; 7]);
    }
    let day = |name: &str| {
        let at = DAYS.iter().position(|day| day.eq_ignore_ascii_case(name.trim()));
        at.ok_or_else(|| {
            let message = format!("`{}` is not a day of the week", clip(name.trim()));
            let near = nearest(name.trim(), DAYS.iter().copied());
            let help = match near {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("valid here: {}, and `daily`", listed(DAYS.iter().copied())),
            };
            report.advise(node, message, help)
        })
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let mut at = first;
        days[at] = true;
        while at != last {
            at = (at + 1) % 7;
            days[at] = true;
        }
    }
    Ok(days)
}

/// `"09:00-15:00"`; `"22:00-04:00"` ends on the day after.
fn hours(node: &Node, report: &Report) -> Read<(u16, u16)> {
    let text = values::line(node, report)?;
    let bad = || {
        let message = format!("`{}` is not a span of hours", clip(&text));
        report.advise(
            node,
            message,
            "write it as \"09:00-15:00\"; \"22:00-04:00\" ends on the day after",
        )
    };
    let (from, until) = text.split_once('-').ok_or_else(bad)?;
    let (from, until) = (minutes(from).ok_or_else(bad)?, minutes(until).ok_or_else(bad)?);
    if from == until || from == 24 * 60 || until == 0 {
        let help = "the whole day is \"00:00-24:00\"";
        return Err(report.advise(node, "these hours are empty, or could mean a whole day", help));
    }
    Ok((from, until))
}

fn minutes(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let two = |digits: &str| {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (two(hour)?, two(minute)?);
    (minute < 60 && hour * 60 + minute <= 24 * 60).then_some(hour * 60 + minute)
}

fn instant(table: &Table<'_>, key: &str, time: Result<jiff::Zoned, jiff::Error>) -> Read<Timestamp> {
    let node = table.node(key).unwrap_or(table.node);
    time.map(|time| time.timestamp()).map_err(|error| table.report.error(node, error.to_string()))
}

/// A date and a time of day, without an offset: the zone says which.
fn civil_time(node: &Node, report: &Report) -> Read<civil::DateTime> {
    const EXPECTED: &str = "a date and time such as \"2026-11-20T00:00\"";
    let text = match &node.value {
        Value::Text(text) | Value::Datetime(text) => text.as_str(),
        _ => return Err(report.mismatch(node, EXPECTED)),
    };
    if text.parse::<Timestamp>().is_ok() {
        let message = "a local time has no offset: `zone` says which one applies";
        return Err(report.advise(node, message, "write it as \"2026-11-20T00:00\""));
    }
    let shaped = text.len() <= 40 && !text.contains('[');
    text.parse().ok().filter(|_| shaped).ok_or_else(|| {
        let message = format!("`{}` is not {EXPECTED}", clip(text));
        report.error(node, message)
    })
}

fn zone(node: &Node, report: &Report) -> Read<(String, TimeZone)> {
    let name = values::string(node, report, "the name of a time zone such as \"Europe/Berlin\"")?;
    if let Ok(zone) = TimeZone::get(name) {
        return Ok((name.to_owned(), zone));
    }
    let known: Vec<_> = jiff::tz::db().available().collect();
    let message = format!("this host knows no time zone `{}`", clip(name));
    Err(match nearest(name, known.iter().map(jiff::tz::TimeZoneName::as_str)) {
        Some(near) => report.advise(node, message, format!("did you mean \"{near}\"?")),
        None if known.len() < 2 => {
            report.advise(node, message, "install the host's zones (tzdata), or use \"UTC\"")
        }
        None => report.advise(node, message, "IANA names look like \"Europe/Berlin\""),
    })
}
