//! Views of the agent as lines of text: groups, faults, runs, plans, verdicts.
//!
//! Pure: the same views give the same lines. No line is wider than the style's width.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::{
    cli::{
        text::{between, clock, columns, count, duration, fit, pad, wrap},
        ui::{Style, Tone},
    },
    view::{
        AbortedBy, Cleanup, DecisionView, FaultView, GroupView, PlanView, ProbeView, ReasonView,
        RunState, RunView, StepState, StepView, Verdict,
    },
};

/// The most cells that a capacity bar has.
const CELLS: u32 = 16;

/// Enough of an id to tell runs apart: its random end would not sort, its start is the time.
#[must_use]
pub fn short_id(id: uuid::Uuid) -> String {
    id.to_string().chars().take(13).collect()
}

/// Capacity against floor: `███|▒░`. Full cells count, shaded ones are removed already but still
/// seen, light ones are missing; the bar stands at the floor.
#[must_use]
pub fn bar(group: &GroupView, style: Style) -> String {
    let (full, shaded, light) = if style.unicode { ('█', '▒', '░') } else { ('#', '+', '.') };
    let ready = group.ready.unwrap_or(0);
    let effective = group.effective.unwrap_or(0);
    let size = [group.expected, group.total, group.ready, Some(group.floor)];
    let size = size.into_iter().flatten().max().unwrap_or(0);
    // A narrow terminal needs its columns for the numbers.
    let most = u32::try_from(style.width / 5).unwrap_or(CELLS).clamp(4, CELLS);
    let cells = size.min(most);
    // Rounded down, so that the bar never shows more than there is; the floor is rounded up.
    let scale = |n: u32| if size <= most { n } else { n * cells / size };
    let floor = if size <= most { group.floor } else { (group.floor * cells).div_ceil(size) };
    let mut out = String::new();
    for cell in 0..=cells {
        if cell == floor {
            out.push('|');
        }
        if cell < cells {
            out.push(if cell < scale(effective) {
                full
            } else if cell < scale(ready) {
                shaded
            } else {
                light
            });
        }
    }
    out
}

/// How well a group is.
#[must_use]
pub fn group_tone(group: &GroupView) -> Tone {
    match group.effective {
        Some(effective) if group.fresh && group.blocked.is_none() && effective > group.floor => {
            Tone::Good
        }
        Some(effective) if group.fresh && effective >= group.floor => Tone::Warn,
        _ => Tone::Bad,
    }
}

/// One line for each group, and one for what is wrong with it.
#[must_use]
pub fn groups(groups: &[GroupView], now: Timestamp, style: Style) -> Vec<String> {
    let name_width = groups.iter().map(|group| group.name.chars().count()).max().unwrap_or(0).min(16);
    let bar_width = groups.iter().map(|group| bar(group, style).chars().count()).max().unwrap_or(0);
    let narrow = style.width < 60;
    let mut lines = Vec::new();
    for group in groups {
        let facts = group_facts(group, now, narrow);
        let bar = style.paint(group_tone(group), &pad(&bar(group, style), bar_width));
        let room = style.width.saturating_sub(2 + name_width + 2 + bar_width + 2);
        lines.push(format!("  {}  {bar}  {}", pad(&group.name, name_width), fit(&facts, room)));
        let troubles = [&group.problem, &group.blocked];
        for (trouble, what) in troubles.into_iter().zip(["no reading", "blocked"]) {
            let Some(trouble) = trouble else { continue };
            for line in wrap(&format!("{what}: {trouble}"), style.width.saturating_sub(4)) {
                lines.push(format!("    {}", style.paint(Tone::Bad, &line)));
            }
        }
    }
    lines
}

fn group_facts(group: &GroupView, now: Timestamp, narrow: bool) -> String {
    let number = |n: Option<u32>| n.map_or("?".to_owned(), |n| n.to_string());
    // Writing to a string cannot fail.
    let mut facts = format!("{} ready, floor {}", number(group.ready), group.floor);
    if group.charged > 0 {
        let _ = write!(facts, ", {} effective ({} charged)", number(group.effective), group.charged);
    }
    if !group.fresh {
        facts.push_str(", not fresh");
    }
    if narrow {
        return facts;
    }
    let budget = &group.budget;
    let _ = write!(facts, "; budget {} of {}", budget.left, budget.at_once);
    if let Some(at) = budget.room_at.filter(|_| budget.left == 0) {
        let _ = write!(facts, ", room in {}", duration(between(now, at)));
    }
    facts
}

/// The word for a step's state.
#[must_use]
pub fn step_state(state: StepState) -> &'static str {
    match state {
        StepState::Pending => "pending",
        StepState::Preparing => "preparing",
        StepState::Waiting => "waiting",
        StepState::Injecting => "injecting",
        StepState::InForce => "in force",
        StepState::Reverting => "reverting",
        StepState::Done => "done",
        StepState::Skipped => "skipped",
        StepState::Stuck => "STUCK",
    }
}

fn step_tone(step: &StepView) -> Tone {
    match step.state {
        StepState::Stuck => Tone::Bad,
        StepState::InForce | StepState::Injecting | StepState::Reverting => Tone::Warn,
        StepState::Done if step.effect.as_ref().is_some_and(|effect| effect.proven) => Tone::Good,
        _ => Tone::Dim,
    }
}

/// One line for each step; `width` of them all.
#[must_use]
pub fn steps(steps: &[StepView], now: Timestamp, style: Style) -> Vec<String> {
    let narrow = style.width < 60;
    let name_width = steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
    let name_width = name_width.min(if narrow { style.width.saturating_sub(15).min(18) } else { 30 });
    let line = |(at, step): (usize, &StepView)| {
        let state = style.paint(step_tone(step), &pad(step_state(step.state), 9));
        let head = format!("{:>3} {}  {state}", at + 1, pad(&step.name, name_width));
        let used = 3 + 1 + name_width + 2 + 9;
        let note = step_note(step, now);
        let fault = if narrow { String::new() } else { format!("  {}", pad(step.fault.as_str(), 11)) };
        let room = style.width.saturating_sub(used + fault.len() + 2);
        format!("{head}{fault}  {}", fit(&note, room)).trim_end().to_owned()
    };
    steps.iter().enumerate().map(line).collect()
}

fn step_note(step: &StepView, now: Timestamp) -> String {
    match (step.state, step.waiting_until, step.deadline) {
        (StepState::Waiting, Some(until), _) => {
            format!("budget: {} more", duration(between(now, until)))
        }
        (StepState::InForce, _, Some(deadline)) => format!("{} left", clock(between(now, deadline))),
        (StepState::Stuck, ..) => step.errors.last().cloned().unwrap_or_default(),
        _ => step.effect.as_ref().map_or(String::new(), |effect| effect.summary.clone()),
    }
}

/// One line for each probe.
#[must_use]
pub fn probes(probes: &[ProbeView], style: Style) -> Vec<String> {
    let line = |probe: &ProbeView| {
        let misses = if probe.misses == 0 {
            "none missed".to_owned()
        } else {
            format!(
                "{} missed, {} in a row of {} forgiven",
                probe.misses, probe.worst_row, probe.tolerate
            )
        };
        let last = probe.last_miss.as_ref().map_or(String::new(), |miss| format!(" (last: {miss})"));
        let text =
            format!("probe {}: {}, {misses}{last}", probe.name, count(probe.attempts as usize, "try"));
        let tone = if held(probe) == Some(false) { Tone::Bad } else { Tone::Dim };
        format!("    {}", style.paint(tone, &fit(&text, style.width.saturating_sub(4))))
    };
    probes.iter().map(line).collect()
}

/// Whether a probe held throughout; `None` while it is not known.
#[must_use]
pub fn held(probe: &ProbeView) -> Option<bool> {
    if probe.before == Some(false) || probe.after == Some(false) || probe.worst_row > probe.tolerate {
        return Some(false);
    }
    (probe.before == Some(true) && probe.after == Some(true)).then_some(true)
}

/// The three separate verdicts and why, with numbers.
#[must_use]
pub fn verdict(run: &RunView, style: Style) -> Vec<String> {
    let (word, tone) = verdict_word(run);
    let mut rows: Vec<(&str, String, Tone)> = vec![("verdict", word, tone)];
    if let Some(why) = &run.why {
        rows.push(("why", why.message.clone(), Tone::Strong));
    }
    rows.extend(effects(run));
    rows.extend(hypotheses(run));
    rows.push(host_row(run));
    rows.push(("repeat", format!("seed {}, run {}", run.seed, run.id), Tone::Dim));
    let mut lines = Vec::new();
    for (label, text, tone) in rows {
        for (at, line) in wrap(&text, style.width.saturating_sub(12)).into_iter().enumerate() {
            let label = if at == 0 { label } else { "" };
            lines.push(format!("{}  {}", pad(label, 10), style.paint(tone, &line)));
        }
    }
    lines
}

/// `aborted (by the limiter)`, and its colour.
#[must_use]
pub fn verdict_word(run: &RunView) -> (String, Tone) {
    let (word, tone) = match run.verdict {
        None => return (run_state(run.state).to_owned(), Tone::Warn),
        Some(Verdict::Passed) => ("passed", Tone::Good),
        Some(Verdict::Failed) => ("failed", Tone::Bad),
        Some(Verdict::Refused) => ("refused", Tone::Warn),
        Some(Verdict::Aborted) => ("aborted", Tone::Warn),
        Some(Verdict::Inconclusive) => ("inconclusive", Tone::Warn),
    };
    let by = run.aborted_by.map_or(String::new(), |by| format!(" ({})", aborted_by(by)));
    let leashed = if run.leashed { " (leashed: decided, not done)" } else { "" };
    (format!("{word}{by}{leashed}"), tone)
}

/// The word for a run's state.
#[must_use]
pub fn run_state(state: RunState) -> &'static str {
    match state {
        RunState::Preflight => "preflight",
        RunState::Running => "running",
        RunState::Reverting => "reverting",
        RunState::Finished => "finished",
    }
}

fn aborted_by(by: AbortedBy) -> &'static str {
    match by {
        AbortedBy::Limiter => "by the limiter",
        AbortedBy::Operator => "by an operator",
        AbortedBy::Halt => "by the halt",
        AbortedBy::Shutdown => "by the agent's shutdown",
        AbortedBy::Freeze => "by a freeze",
        AbortedBy::Crash => "by the agent's death",
    }
}

fn effects(run: &RunView) -> Vec<(&'static str, String, Tone)> {
    // After a crash only the undoing of a step may be on record.
    let begun = |step: &&StepView| step.injected_at.is_some() || step.undone_at.is_some();
    let begun: Vec<&StepView> = run.steps.iter().filter(begun).collect();
    if begun.is_empty() {
        return vec![("effect", "none: nothing was injected".to_owned(), Tone::Dim)];
    }
    let mut rows = Vec::new();
    for (at, step) in begun.iter().enumerate() {
        let (word, summary, tone) = match &step.effect {
            Some(effect) if effect.proven => ("proven", effect.summary.as_str(), Tone::Good),
            Some(effect) => ("not proven", effect.summary.as_str(), Tone::Warn),
            None => ("not measured", "the step ended before it could be", Tone::Warn),
        };
        let label = if at == 0 { "effect" } else { "" };
        rows.push((label, format!("{word}: {}: {summary}", step.name), tone));
    }
    rows
}

fn hypotheses(run: &RunView) -> Vec<(&'static str, String, Tone)> {
    if run.probes.is_empty() {
        return vec![("hypothesis", "not asked: the experiment has no probes".to_owned(), Tone::Dim)];
    }
    let mut rows = Vec::new();
    for (at, probe) in run.probes.iter().enumerate() {
        let (word, tone) = match held(probe) {
            Some(true) => ("held", Tone::Good),
            Some(false) => ("did not hold", Tone::Bad),
            None => ("not judged", Tone::Dim),
        };
        let label = if at == 0 { "hypothesis" } else { "" };
        let ProbeView { name, attempts, misses, worst_row, tolerate, .. } = probe;
        let numbers =
            format!("{misses} of {attempts} missed, {worst_row} in a row ({tolerate} forgiven)");
        rows.push((label, format!("{word}: {name}: {numbers}"), tone));
    }
    rows
}

fn host_row(run: &RunView) -> (&'static str, String, Tone) {
    match run.cleanup {
        Cleanup::Clean => ("host", "clean: nothing of this run is left on it".to_owned(), Tone::Good),
        Cleanup::InForce => ("host", "faults of this run are in force".to_owned(), Tone::Warn),
        Cleanup::Stuck => {
            let errors: Vec<&str> =
                run.steps.iter().flat_map(|step| step.errors.iter().map(String::as_str)).collect();
            let text = format!("STUCK: not all could be undone, and is retried: {}", errors.join("; "));
            ("host", text, Tone::Bad)
        }
    }
}

/// What is in force, one block each.
#[must_use]
pub fn faults(faults: &[FaultView], now: Timestamp, style: Style) -> Vec<String> {
    let mut lines = Vec::new();
    for fault in faults {
        let left = fault.deadline.map_or("no deadline".to_owned(), |deadline| {
            format!("{} left", clock(between(now, deadline)))
        });
        let lease = format!("{:?}", fault.lease).to_lowercase();
        let head = format!("{} {}: {}", fault.fault, step_state(fault.state), fault.step);
        let tail = format!("{left}, lease {lease}, run {}", short_id(fault.run));
        let tone = if fault.state == StepState::Stuck { Tone::Bad } else { Tone::Warn };
        for line in wrap(&head, style.width.saturating_sub(2)) {
            lines.push(format!("  {}", style.paint(tone, &line)));
        }
        for text in std::iter::once(&tail).chain(&fault.targets) {
            lines.extend(wrap(text, style.width.saturating_sub(6)).iter().map(|l| format!("      {l}")));
        }
    }
    lines
}

/// A list of runs.
#[must_use]
pub fn runs(runs: &[RunView], now: Timestamp, style: Style) -> Vec<String> {
    let row = |run: &RunView| {
        let stuck = if run.cleanup == Cleanup::Stuck { " STUCK" } else { "" };
        let word = match (run.verdict, run.aborted_by) {
            (None, _) => run_state(run.state).to_owned(),
            (Some(verdict), _) => format!("{verdict:?}").to_lowercase(),
        };
        vec![
            short_id(run.id),
            format!("{word}{stuck}"),
            format!("{} ago", duration(between(run.created_at, now))),
            run.title.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    columns(&rows, style.width)
}

/// What would happen, and whether it may.
#[must_use]
pub fn plan(plan: &PlanView, now: Timestamp, style: Style) -> Vec<String> {
    let mut lines = wrap(&plan.title, style.width);
    for (at, step) in plan.steps.iter().enumerate() {
        lines.push(String::new());
        lines.extend(wrap(&format!("{}. {} ({})", at + 1, step.name, step.fault), style.width));
        let charges: Vec<String> = step
            .charges
            .iter()
            .map(|charge| format!("{} of {}", charge.instances, charge.group))
            .collect();
        let charges = if charges.is_empty() { "nothing".to_owned() } else { charges.join(", ") };
        let mut rows: Vec<(String, String)> = Vec::new();
        for (at, target) in step.targets.iter().enumerate() {
            rows.push((if at == 0 { "hits" } else { "" }.to_owned(), target.clone()));
        }
        rows.push(("charges".to_owned(), charges));
        rows.push(("limiter".to_owned(), decision(&step.decision, now)));
        for (label, text) in rows {
            for (at, line) in wrap(&text, style.width.saturating_sub(12)).into_iter().enumerate() {
                lines.push(format!("   {}{line}", pad(if at == 0 { &label } else { "" }, 9)));
            }
        }
    }
    lines.push(String::new());
    let tone = match plan.decision {
        DecisionView::Admit => Tone::Good,
        DecisionView::Wait { .. } => Tone::Warn,
        DecisionView::Refuse { .. } => Tone::Bad,
    };
    for line in wrap(&decision(&plan.decision, now), style.width) {
        lines.push(style.paint(tone, &line));
    }
    lines.extend(wrap(&format!("seed {}, digest {}", plan.seed, plan.digest), style.width));
    lines
}

/// The limiter's answer as one sentence.
#[must_use]
pub fn decision(decision: &DecisionView, now: Timestamp) -> String {
    match decision {
        DecisionView::Admit => "admitted".to_owned(),
        DecisionView::Wait { until, why } => {
            format!("waits {}: {}", duration(between(now, *until)), why.message)
        }
        DecisionView::Refuse { why } => refusal(why),
    }
}

/// `refused: …`, said once.
#[must_use]
pub fn refusal(why: &ReasonView) -> String {
    if why.message.starts_with("refused") {
        why.message.clone()
    } else {
        format!("refused: {}", why.message)
    }
}
