//! Reads a whole experiment: its parts, and what must agree between them.

use std::time::Duration;

use super::{
    checks, later,
    reader::{Read, Report, Shape, Table, nearest},
    steps,
    tree::{Node, Value},
    values,
};
use crate::{
    experiment::{ANY_GROUP, Experiment},
    units::clip,
};

/// Steps in one experiment.
pub const MOST_STEPS: usize = 64;
/// Probes in one experiment.
pub const MOST_PROBES: usize = 64;
/// Groups that one experiment may touch, or a policy declare.
pub const MOST_GROUPS: usize = 256;

/// `recovery`, where it is not given.
pub const RECOVERY: Duration = Duration::from_secs(30);

/// Reads the root of a document.
pub fn experiment(root: &Node, report: &Report) -> Read<Experiment> {
    let what = "an experiment";
    let shape = Shape { what, keys: &[&later::EXPERIMENT], known: later::in_experiment };
    let table = Table::open(root, report, &shape)?;
    let title =
        table.need("title", "title = \"Checkout survives the loss of one worker\"", values::line);
    let hypothesis =
        table.need("hypothesis", "hypothesis = \"Customers notice nothing\"", values::prose);
    let groups = values::list(MOST_GROUPS, "groups", values::some_group);
    let groups = table.or("groups", Vec::new(), groups);
    let recovery = values::duration(Duration::from_millis(10)..=steps::LONGEST_STEP);
    let recovery = table.or("recovery", RECOVERY, recovery);
    let probes = values::list(MOST_PROBES, "probes", checks::probe);
    let probes = table.or("probe", Vec::new(), probes);
    let steps = values::list(MOST_STEPS, "steps", steps::step);
    let steps = table.need("step", "a section `[[step]]` with a `name` and a `fault`", steps);
    check_names(&table);
    check_groups(&table);
    check_first(&table);
    let experiment = Experiment {
        title: title?,
        hypothesis: hypothesis?,
        groups: groups?,
        probes: probes?,
        steps: steps?,
        recovery: recovery?,
    };
    check_charges(&experiment, &table)?;
    Ok(experiment)
}

fn items<'a>(table: &Table<'a>, key: &str) -> &'a [Node] {
    match table.node(key).map(|node| &node.value) {
        Some(Value::List(items)) if items.len() <= MOST_GROUPS => items,
        _ => &[],
    }
}

fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.get(key).map(|node| &node.value) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

fn check_names(table: &Table<'_>) {
    for (key, what) in [("probe", "the name"), ("step", "the name")] {
        values::unique(items(table, key), table.report, what, "name", |node| {
            text(node, "name").map(str::to_owned)
        });
    }
    values::unique(items(table, "groups"), table.report, "the name", "", |node| match &node.value {
        Value::Text(name) => Some(name.clone()),
        _ => None,
    });
}

/// Every group that a probe or a target names must be declared in `groups`.
fn check_groups(table: &Table<'_>) {
    let declared: Vec<&str> = items(table, "groups")
        .iter()
        .filter_map(|node| if let Value::Text(name) = &node.value { Some(name.as_str()) } else { None })
        .collect();
    let probes = items(table, "probe").iter().filter_map(|probe| probe.get("group"));
    let targets = items(table, "step").iter().filter_map(|step| step.get("target")?.get("group"));
    if table.meant("groups") {
        return;
    }
    if let (Some(at), true) = (declared.iter().position(|name| *name == ANY_GROUP), declared.len() > 1) {
        let message = format!("`{ANY_GROUP}` stands for one group, and no other goes with it");
        let node = &items(table, "groups")[at];
        table.report.advise(node, message, format!("write `groups = [\"{ANY_GROUP}\"]`"));
    }
    for node in probes.chain(targets) {
        let Value::Text(name) = &node.value else { continue };
        if declared.contains(&name.as_str()) {
            continue;
        }
        let message = format!("the group `{}` is not declared in `groups`", clip(name));
        let help = match nearest(name, declared.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("`groups` says what the experiment means to touch: add \"{}\"", clip(name)),
        };
        table.report.advise(node, message, help);
    }
}

/// The first step has no previous one, and there must be a first step.
fn check_first(table: &Table<'_>) {
    let Some(node) = table.node("step") else { return };
    let Value::List(steps) = &node.value else { return };
    let Some(first) = steps.first() else {
        table.report.error(node, "an experiment needs at least one step");
        return;
    };
    if text(first, "start") == Some("with previous") {
        let start = first.get("start").unwrap_or(first);
        table.report.error(start, "the first step has no previous one to start with");
    }
}

/// A charge is taken from groups, so there must be one.
fn check_charges(experiment: &Experiment, table: &Table<'_>) -> Read<()> {
    if !experiment.groups.is_empty() {
        return Ok(());
    }
    for (step, node) in experiment.steps.iter().zip(items(table, "step")) {
        if step.charge > 0 {
            let node = node.get("charge").unwrap_or(node);
            let message = "the experiment touches no group that could be charged";
            return Err(table.report.advise(node, message, "name it in `groups`"));
        }
    }
    Ok(())
}
