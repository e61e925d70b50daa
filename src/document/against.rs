//! What an experiment asks for beyond what a policy grants, as far as the two texts alone can tell.
//!
//! Advice for writers: the limiter decides on the day, with readings, and trusts nothing said here.

use std::time::Duration;

use super::{
    Diagnostic, Diagnostics, Format, parse,
    reader::{listed, nearest},
};
use crate::{
    config::{GroupPolicy, Policy},
    experiment::{
        ANY_GROUP, Check, Experiment, FaultSpec, GroupName, Kill, Pause, Pick, Step, UnitFault,
    },
    units::show_duration,
};

/// Everything in the experiment that this policy will refuse. The errors have paths, no places.
#[must_use]
pub fn against(policy: &Policy, experiment: &Experiment) -> Vec<Diagnostic> {
    let groups = experiment.groups.iter().enumerate();
    let groups = groups.filter_map(|(at, name)| group(policy, name, &format!("groups[{at}]")));
    let probes = experiment.probes.iter().enumerate();
    let probes =
        probes.filter_map(|(at, probe)| self::probe(policy, &probe.check, &format!("probe[{at}]")));
    let steps = experiment.steps.iter().enumerate();
    let steps = steps.flat_map(|(at, step)| self::step(policy, step, &format!("step[{at}]")));
    groups.chain(probes).chain(steps).collect()
}

/// The same, each error at its place in the text that the experiment was read from.
///
/// # Errors
/// When the policy would refuse something.
pub fn check_against(
    policy: &Policy,
    experiment: &Experiment,
    text: &str,
    file: &str,
    format: Format,
) -> Result<(), Diagnostics> {
    let mut items = against(policy, experiment);
    if items.is_empty() {
        return Ok(());
    }
    if let Ok(root) = parse::tree(text, format) {
        for item in &mut items {
            item.span = root.locate(&item.path).and_then(|node| node.span.clone());
        }
    }
    Err(Diagnostics::new(file, text, items))
}

fn declared<'a>(policy: &'a Policy, name: &GroupName) -> Option<&'a GroupPolicy> {
    policy.groups.iter().find(|group| group.name == *name)
}

fn group(policy: &Policy, name: &GroupName, path: &str) -> Option<Diagnostic> {
    if declared(policy, name).is_some() {
        return None;
    }
    if name.0 == ANY_GROUP {
        let none = !policy.groups.iter().any(|group| group.monkey);
        let message = "no group of this host's policy opted in to be drawn";
        return none
            .then(|| Diagnostic::at(path, message).with_help("`monkey = true` in a `[[group]]` does"));
    }
    let names = || policy.groups.iter().map(|group| group.name.0.as_str());
    let help = match nearest(&name.0, names()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None if policy.groups.is_empty() => "the policy declares no group yet".to_owned(),
        None => format!("the policy declares {}", listed(names())),
    };
    let message = format!("this host's policy declares no group `{name}`");
    Some(Diagnostic::at(path, message).with_help(help))
}

fn probe(policy: &Policy, check: &Check, path: &str) -> Option<Diagnostic> {
    let Check::Group { group, ready } = check else { return None };
    let expected = declared(policy, group)?.expected?;
    let message = format!("group `{group}` is expected to have {expected} instances, never {ready}");
    (*ready > expected).then(|| Diagnostic::at(format!("{path}.expect.ready"), message))
}

fn step(policy: &Policy, step: &Step, path: &str) -> Vec<Diagnostic> {
    let limits = &policy.limits;
    let too_long = |key: &str, span: Option<Duration>| {
        let span = span.filter(|span| *span > limits.duration)?;
        let (span, most) = (show_duration(span), show_duration(limits.duration));
        let message = format!("{span} is longer than this host's policy allows a step: {most}");
        Some(
            Diagnostic::at(format!("{path}.{key}"), message).with_help("the limit is `limits.duration`"),
        )
    };
    let mut found = vec![too_long("duration", step.duration)];
    if let FaultSpec::Kill(kill) = &step.fault {
        found.push(too_long("then.after", kill.then.map(|then| then.after)));
        found.push(too_long("drain.within", kill.drain.as_ref().map(|drain| drain.within)));
    }
    if let FaultSpec::Kill(Kill { target, .. })
    | FaultSpec::Pause(Pause { target })
    | FaultSpec::Unit(UnitFault { target, .. }) = &step.fault
    {
        found.push(match target.pick {
            Pick::Count(count) if count > limits.targets_per_step => {
                let most = limits.targets_per_step;
                let message = format!("this host's policy allows {most} targets in a step, not {count}");
                let error = Diagnostic::at(format!("{path}.target.pick"), message);
                Some(error.with_help("the limit is `limits.targets_per_step`"))
            }
            _ => None,
        });
    }
    found.into_iter().flatten().collect()
}
