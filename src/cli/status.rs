//! `vervet status` and `vervet faults`: "is this chaos?", answered in the first line.

use jiff::Timestamp;
use serde_json::json;

use crate::{
    cli::{
        Outcome,
        client::{Client, ClientError},
        exit::Exit,
        render,
        text::{between, count, duration, wrap},
        ui::{Style, Tone, Ui},
    },
    view::{FaultView, GroupView, HostView, RunView, StepState},
};

/// How many of the latest runs are shown.
const RUNS: u32 = 5;

/// Everything at a glance.
///
/// # Errors
/// When the agent cannot be asked.
pub async fn status(client: &Client, ui: &Ui) -> Outcome {
    let host = client.host().await?;
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
    let (answer, tone) = chaos(all);
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

fn chaos(all: Glance<'_>) -> (String, Tone) {
    let host = &all.host.name;
    if all.faults.iter().any(|fault| fault.state == StepState::Stuck) {
        return (
            format!("CHAOS IS STUCK on {host}: a fault could not be undone, and is retried"),
            Tone::Bad,
        );
    }
    if !all.faults.is_empty() {
        let titles: Vec<&str> = all
            .runs
            .iter()
            .filter(|run| all.faults.iter().any(|fault| fault.run == run.id))
            .map(|run| run.title.as_str())
            .collect();
        let by = if titles.is_empty() { String::new() } else { format!(" ({})", titles.join("; ")) };
        return (
            format!("This is chaos: {} in force on {host}{by}", count(all.faults.len(), "fault")),
            Tone::Warn,
        );
    }
    if let Some(run) = all.runs.iter().find(|run| run.finished_at.is_none()) {
        return (format!("No chaos yet: a run has begun on {host} ({})", run.title), Tone::Warn);
    }
    (format!("No chaos: nothing is in force on {host}"), Tone::Good)
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
        out.push((format!("frozen until {}: {}", freeze.until, freeze.name), Tone::Warn));
    }
    if host.leashed {
        let text =
            "leashed: runs are decided and logged, nothing is touched (leashed = false unleashes)";
        out.push((text.to_owned(), Tone::Warn));
    }
    out.extend(host.problems.iter().map(|problem| (format!("problem: {}", problem.message), Tone::Bad)));
    out
}

fn or_none(lines: Vec<String>, none: &str) -> Vec<String> {
    if lines.is_empty() { vec![format!("  {none}")] } else { lines }
}
