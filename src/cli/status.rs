//! `vervet status` and `vervet faults`: "is this chaos?", answered in the first line.

use jiff::Timestamp;
use serde_json::json;

use crate::{
    cli::{
        Failure, Outcome,
        client::{Client, ClientError},
        exit::Exit,
        render,
        text::{between, count, duration, wrap},
        ui::{Style, Tone, Ui},
    },
    view::{FaultView, GroupView, HostView, RunView, StepState, StepView},
};

/// How many of the latest runs are shown.
const RUNS: u32 = 5;

/// Everything at a glance.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn status(client: &Client, ui: &Ui) -> Outcome {
    let host = client.host().await.map_err(unknown)?;
    let groups = client.groups().await?;
    let faults = client.faults().await?;
    let runs = match client.runs(None, RUNS).await {
        // Where the history cannot be read, the lever, the groups and the faults are all the more
        // worth seeing.
        Err(ClientError::Problem(problem)) if problem.status == 503 => {
            ui.warn(format!("no runs can be shown: {}", problem.render()));
            None
        }
        runs => Some(runs?),
    };
    if ui.json {
        ui.print_json(&json!({ "host": host, "groups": groups, "faults": faults, "runs": runs }));
    } else {
        let runs = runs.as_deref().unwrap_or_default();
        let all = Glance { host: &host, groups: &groups, faults: &faults, runs };
        ui.say(glance(all, Timestamp::now(), ui.style).join("\n"));
    }
    Ok(Exit::Passed)
}

/// Nobody answers: then nobody knows, and this is what to look at.
fn unknown(error: ClientError) -> Failure {
    let mut failure = Failure::from(error);
    if failure.exit == Exit::Unreachable && failure.document.is_none() {
        failure.message = format!(
            "cannot tell whether this is chaos: {}\n\
             help: what a dead agent did is undone by its warden and by the kernel within\n\
             seconds; as root, `vervet recover` undoes what may be left, and\n\
             `journalctl -u vervet -p warning` says what began and ended",
            failure.message
        );
    }
    failure
}

/// What is active now.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn faults(client: &Client, ui: &Ui) -> Outcome {
    let faults = client.faults().await?;
    if ui.json {
        ui.print_json(&faults);
    } else if faults.is_empty() {
        ui.say("no fault is in force");
    } else {
        ui.say(render::faults(&faults, Timestamp::now(), ui.style).join("\n"));
    }
    Ok(Exit::Passed)
}

/// All that a glance takes in.
#[derive(Debug, Clone, Copy)]
pub struct Glance<'a> {
    pub host: &'a HostView,
    pub groups: &'a [GroupView],
    pub faults: &'a [FaultView],
    pub runs: &'a [RunView],
}

/// The lines of `vervet status`.
#[must_use]
pub fn glance(all: Glance<'_>, now: Timestamp, style: Style) -> Vec<String> {
    let (answer, tone) = chaos(all, now);
    let mut lines: Vec<String> =
        wrap(&answer, style.width).iter().map(|line| style.paint(tone, line)).collect();
    for (text, tone) in conditions(all.host) {
        lines.extend(wrap(&text, style.width).iter().map(|line| style.paint(tone, line)));
    }
    lines.push(String::new());
    lines.push("groups".to_owned());
    lines
        .extend(or_none(render::groups(all.groups, now, style), "none declared: nothing can be killed"));
    lines.push("faults".to_owned());
    lines.extend(or_none(render::faults(all.faults, now, style), "none"));
    lines.push("latest runs".to_owned());
    let narrower = Style { width: style.width.saturating_sub(2), ..style };
    let runs = render::runs(all.runs, now, narrower).into_iter().map(|line| format!("  {line}"));
    lines.extend(or_none(runs.collect(), "none"));
    lines.push(String::new());
    let host = all.host;
    let up = duration(between(host.started_at, now));
    let about = format!("{}: vervet {}, Linux {}, up {up}", host.name, host.version, host.kernel);
    lines.extend(wrap(&about, style.width).iter().map(|line| style.paint(Tone::Dim, line)));
    lines
}

/// Is this chaos? The answer first, then what it rests on.
fn chaos(all: Glance<'_>, now: Timestamp) -> (String, Tone) {
    let host = &all.host.name;
    let unsettled = all.host.problems.iter().find(|problem| problem.reason == "cleanup_stuck");
    if let Some(fault) = all.faults.iter().find(|fault| fault.state == StepState::Stuck) {
        let what = active(fault, all.runs, now);
        return (format!("Yes, and it is STUCK on {host}: {what}; undoing it is retried"), Tone::Bad);
    }
    if let Some(problem) = unsettled {
        return (format!("Yes, perhaps, and it is STUCK on {host}: {}", problem.message), Tone::Bad);
    }
    if !all.faults.is_empty() {
        let which: Vec<String> = all.faults.iter().map(|fault| active(fault, all.runs, now)).collect();
        let (count, is) =
            (count(all.faults.len(), "fault"), if which.len() == 1 { "is" } else { "are" });
        let text = format!("Yes: {count} of vervet {is} active on {host}: {}", which.join("; "));
        return (text, Tone::Warn);
    }
    let no = format!("No: vervet changes nothing on {host} now");
    if let Some(run) = all.runs.iter().find(|run| run.finished_at.is_none()) {
        return (format!("{no}, but a run has begun ({})", run.title), Tone::Warn);
    }
    let last = match last_fault(all.runs) {
        Some((run, step, at)) => {
            let ago = duration(between(at, now));
            format!("last fault ended {ago} ago: {} {:?} of {:?}", step.fault, step.name, run.title)
        }
        None => "no fault in the latest runs".to_owned(),
    };
    (format!("{no} ({last})"), Tone::Good)
}

/// One fault, by whom it is, and how much longer.
fn active(fault: &FaultView, runs: &[RunView], now: Timestamp) -> String {
    let title = runs.iter().find(|run| run.id == fault.run).map(|run| format!(" of {:?}", run.title));
    let end = match fault.deadline {
        Some(at) if at > now => format!("ends in {} at the latest", duration(between(now, at))),
        Some(_) => "is ending".to_owned(),
        None => "without a deadline".to_owned(),
    };
    format!("{} {:?}{}, {end}", fault.fault, fault.step, title.unwrap_or_default())
}

/// The fault that was the last to end.
fn last_fault(runs: &[RunView]) -> Option<(&RunView, &StepView, Timestamp)> {
    let real = runs.iter().filter(|run| !run.leashed);
    let ended = real.flat_map(|run| run.steps.iter().map(move |step| (run, step)));
    ended
        .filter_map(|(run, step)| {
            step.injected_at?;
            Some((run, step, step.undone_at?))
        })
        .max_by_key(|(_, _, at)| *at)
}

fn conditions(host: &HostView) -> Vec<(String, Tone)> {
    let mut out = Vec::new();
    if let Some(halt) = &host.halted {
        let durable = if halt.durable { "" } else { ", NOT on disk" };
        out.push((
            format!("halted since {} by {}: {}{durable}", halt.since, halt.by, halt.reason),
            Tone::Warn,
        ));
    }
    if let Some(freeze) = &host.frozen {
        out.push((format!("frozen: {}", super::text::freeze(freeze)), Tone::Warn));
    }
    if host.leashed {
        let text =
            "leashed: runs are decided and logged, nothing is touched (leashed = false unleashes)";
        out.push((text.to_owned(), Tone::Warn));
    }
    // The halt and the freeze have lines of their own.
    let others = host.problems.iter().filter(|one| !["halted", "frozen"].contains(&one.reason.as_str()));
    out.extend(others.map(|problem| (format!("problem: {}", problem.message), Tone::Bad)));
    out
}

fn or_none(lines: Vec<String>, none: &str) -> Vec<String> {
    if lines.is_empty() { vec![format!("  {none}")] } else { lines }
}
