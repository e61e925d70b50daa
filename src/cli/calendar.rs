//! `vervet calendar` and `vervet schedules`: what runs by itself, what is frozen, and why.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::{
    cli::{
        Outcome,
        args::{Calendar, ScheduleAction},
        client::Client,
        exit::Exit,
        text::{between, columns, count, duration, indent, wrap},
        ui::{Style, Tone, Ui},
    },
    view::{CalendarView, ScheduleView, SlotState, SlotView},
};

/// The next weeks.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn calendar(client: &Client, args: &Calendar, ui: &Ui) -> Outcome {
    let now = Timestamp::now();
    let days = |days: u16| SignedDuration::from_hours(24 * i64::from(days));
    let from = now.checked_sub(days(args.past)).unwrap_or(now);
    let until = now.checked_add(days(args.weeks * 7)).unwrap_or(now);
    // A year ahead is what the agent shows at most, the past included.
    let until = until.min(from.checked_add(days(366)).unwrap_or(until));
    let calendar = client.calendar(from, until).await?;
    if ui.json {
        ui.print_json(&calendar);
    } else {
        ui.say(lines(&calendar, now, ui.style).join("\n"));
    }
    Ok(Exit::Passed)
}

/// The lines of `vervet calendar`.
#[must_use]
pub fn lines(calendar: &CalendarView, now: Timestamp, style: Style) -> Vec<String> {
    let mut out = Vec::new();
    for problem in &calendar.problems {
        let text = format!("just now nothing would run: {}", problem.message);
        out.extend(wrap(&text, style.width).iter().map(|line| style.paint(Tone::Warn, line)));
    }
    let (past, coming): (Vec<_>, Vec<_>) = calendar.slots.iter().partition(|slot| {
        matches!(slot.state, SlotState::Started | SlotState::Skipped | SlotState::Missed)
    });
    let narrower = Style { width: style.width.saturating_sub(2), ..style };
    let rows = |slots: &[&SlotView]| {
        let rows: Vec<_> = slots.iter().map(|slot| row(slot, now)).collect();
        columns(&rows, narrower.width).into_iter().map(|line| format!("  {line}")).collect::<Vec<_>>()
    };
    if !past.is_empty() {
        out.push("past".to_owned());
        out.extend(rows(&past));
    }
    let until = calendar.truncated_at.unwrap_or(calendar.until);
    out.push(format!("coming, until {}", day(until)));
    if coming.is_empty() {
        out.push("  nothing runs by itself".to_owned());
    }
    out.extend(rows(&coming));
    if calendar.truncated_at.is_some() {
        out.push(indent("… and more than fits beyond that", 2, style.width));
    }
    out.push("frozen".to_owned());
    let mut frozen: Vec<Vec<String>> = Vec::new();
    for one in &calendar.conditions {
        let because = one.because.clone().unwrap_or_default();
        let state = if one.frozen { "now" } else { "not now" };
        let why = if one.frozen { because } else { "by a condition, which holds".to_owned() };
        frozen.push(vec![state.to_owned(), one.freeze.clone(), why]);
    }
    for one in &calendar.freezes {
        let name =
            one.title.as_ref().map_or(one.freeze.clone(), |title| format!("{}: {title}", one.freeze));
        frozen.push(vec![day(one.from), format!("to {}", day(one.until)), name]);
    }
    if frozen.is_empty() {
        out.push("  never".to_owned());
    }
    out.extend(columns(&frozen, narrower.width).into_iter().map(|line| format!("  {line}")));
    out
}

fn row(slot: &SlotView, now: Timestamp) -> Vec<String> {
    let state = match slot.state {
        SlotState::Expected if slot.at >= now => format!("in {}", duration(between(now, slot.at))),
        SlotState::Expected => "now".to_owned(),
        SlotState::Held => "held".to_owned(),
        SlotState::Started => "run".to_owned(),
        SlotState::Skipped => "skipped".to_owned(),
        SlotState::Missed => "missed".to_owned(),
    };
    let what = match (&slot.run, &slot.why) {
        (Some(run), _) => format!("{}: run {run}", slot.schedule),
        (None, Some(why)) => format!("{}: {why}", slot.schedule),
        (None, None) if slot.schedule == slot.experiment => slot.schedule.clone(),
        (None, None) => format!("{}: {}", slot.schedule, slot.experiment),
    };
    vec![wall(&slot.local), state, what]
}

/// `2026-11-23T10:00:00-05:00[America/New_York]` as `Mon 23 Nov 10:00 -05:00`.
fn wall(local: &str) -> String {
    match local.parse::<jiff::Zoned>() {
        Ok(zoned) if zoned.second() != 0 => zoned.strftime("%a %d %b %H:%M:%S %:z").to_string(),
        Ok(zoned) => zoned.strftime("%a %d %b %H:%M %:z").to_string(),
        Err(_) => local.to_owned(),
    }
}

fn day(at: Timestamp) -> String {
    at.strftime("%a %d %b %Y %H:%M UTC").to_string()
}

/// Lists schedules, pauses one, resumes one.
///
/// # Errors
/// When the agent cannot be asked, or there is no such schedule.
pub async fn schedules(client: &Client, action: Option<&ScheduleAction>, ui: &Ui) -> Outcome {
    let (name, reason) = match action {
        None => {
            let schedules = client.schedules().await?;
            if ui.json {
                ui.print_json(&schedules);
            } else if schedules.is_empty() {
                ui.say("nothing runs by itself: the policy has no [[schedule]]");
            } else {
                ui.say(list(&schedules, Timestamp::now(), ui.style).join("\n"));
            }
            return Ok(Exit::Passed);
        }
        Some(ScheduleAction::Pause { name, reason, .. }) => (name, Some(reason.as_str())),
        Some(ScheduleAction::Resume { name, .. }) => (name, None),
    };
    let names = match name {
        Some(name) => vec![name.clone()],
        None => client.schedules().await?.into_iter().map(|schedule| schedule.name).collect(),
    };
    let mut done = Vec::new();
    for name in names {
        let (schedule, durable) = client.pause(&name, reason).await?;
        if !ui.json {
            ui.say(change(&schedule, Timestamp::now()));
            if !durable {
                let text = "not on disk: a restart of the agent would forget it";
                ui.say(ui.style.paint(Tone::Bad, text));
            }
        }
        done.push(json!({ "schedule": schedule, "durable": durable }));
    }
    if ui.json {
        ui.print_json(&done);
    }
    Ok(Exit::Passed)
}

fn change(schedule: &ScheduleView, now: Timestamp) -> String {
    match (&schedule.paused, schedule.next) {
        (Some(pause), _) => {
            format!(
                "{} is paused since {} by {}: {}",
                schedule.name, pause.since, pause.by, pause.reason
            )
        }
        (None, Some(next)) => {
            format!("{} runs again, next in {}", schedule.name, duration(between(now, next)))
        }
        (None, None) => format!("{} is not paused, and not enabled in the policy", schedule.name),
    }
}

/// The lines of `vervet schedules`.
#[must_use]
pub fn list(schedules: &[ScheduleView], now: Timestamp, style: Style) -> Vec<String> {
    let mut out = Vec::new();
    for schedule in schedules {
        let (state, tone) = match (&schedule.paused, schedule.next) {
            (Some(pause), _) => {
                let since = duration(between(pause.since, now));
                let text = format!("paused by {} {since} ago: {}", pause.by, pause.reason);
                (text, Tone::Warn)
            }
            (None, Some(next)) => (format!("next in {}", duration(between(now, next))), Tone::Good),
            (None, None) => ("not enabled".to_owned(), Tone::Warn),
        };
        let leashed = if schedule.leashed { ", leashed" } else { "" };
        let head = format!("{}: {state}{leashed}", schedule.name);
        out.extend(wrap(&head, style.width).iter().map(|line| style.paint(tone, line)));
        let window = schedule.window.as_ref().map(|window| format!(", {window}")).unwrap_or_default();
        let mut more = vec![format!("runs {}, {}{window}", schedule.experiment, schedule.rhythm)];
        more.extend(
            schedule.next.map(|next| format!("next at {next}; draws from seed {}", schedule.seed)),
        );
        more.extend(schedule.last.as_ref().map(|last| last_slot(last, now)));
        out.extend(more.iter().map(|line| indent(line, 2, style.width)));
    }
    let paused = schedules.iter().filter(|schedule| schedule.paused.is_some()).count();
    if paused > 0 {
        out.push(format!(
            "{} paused; `vervet schedules resume NAME` resumes",
            count(paused, "schedule")
        ));
    }
    out
}

fn last_slot(last: &SlotView, now: Timestamp) -> String {
    let ago = duration(between(last.at, now));
    match (last.state, &last.run, &last.why) {
        (_, Some(run), _) => format!("last {ago} ago: run {run}"),
        (SlotState::Missed, _, why) => {
            let more = why.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
            format!("last {ago} ago: missed{more}")
        }
        (_, _, why) => format!("last {ago} ago: skipped, {}", why.clone().unwrap_or_default()),
    }
}
