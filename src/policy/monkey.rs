//! Experiments over no group in particular: `@any` stands for one group, drawn with the run's seed
//! among those whose owner opted in. What is run, planned and recorded names the group.

use std::sync::Arc;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;

use crate::{
    config::GroupPolicy,
    experiment::{ANY_GROUP, Check, Experiment, FaultSpec, GroupName, Kill, Pause, UnitFault},
    policy::reason::Reason,
};

/// Steps draw from streams of their own, by their index; this is none of them.
const STREAM: u64 = u64::MAX;

/// The experiment with the drawn group in the place of `@any`; the same one if it names its groups.
///
/// # Errors
/// When no group opted in.
pub fn draw(
    experiment: &Arc<Experiment>,
    groups: &[GroupPolicy],
    seed: u64,
) -> Result<Arc<Experiment>, Reason> {
    if !experiment.groups.iter().any(|group| group.0 == ANY_GROUP) {
        return Ok(Arc::clone(experiment));
    }
    let mut candidates: Vec<&GroupName> =
        groups.iter().filter(|group| group.monkey).map(|group| &group.name).collect();
    // The draw does not depend on the order in which the policy lists them.
    candidates.sort();
    if candidates.is_empty() {
        return Err(Reason::NobodyOptedIn);
    }
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(STREAM);
    let drawn = candidates[rng.random_range(0..candidates.len())].clone();
    let mut concrete = Experiment::clone(experiment);
    let name = |group: &mut GroupName| {
        if group.0 == ANY_GROUP {
            *group = drawn.clone();
        }
    };
    concrete.groups.iter_mut().for_each(name);
    for probe in &mut concrete.probes {
        if let Check::Group { group, .. } = &mut probe.check {
            name(group);
        }
    }
    for step in &mut concrete.steps {
        let target = match &mut step.fault {
            FaultSpec::Kill(Kill { target, .. })
            | FaultSpec::Pause(Pause { target })
            | FaultSpec::Unit(UnitFault { target, .. }) => target,
            FaultSpec::Latency(_) | FaultSpec::Connections(_) => continue,
        };
        target.select.group.iter_mut().for_each(name);
    }
    Ok(Arc::new(concrete))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::document::{self, Format};

    fn groups(names: &[(&str, bool)]) -> Vec<GroupPolicy> {
        let one = |(name, monkey): &(&str, bool)| {
            format!(
                "[[group]]\nname = \"{name}\"\nfloor = 1\nmembers = {{ name = \"x\" }}\nmonkey = {monkey}\n"
            )
        };
        let text: String = names.iter().map(one).collect();
        document::policy(&text, "x").unwrap().groups
    }

    fn experiment() -> Arc<Experiment> {
        let text = "title = \"T\"\nhypothesis = \"H\"\ngroups = [\"@any\"]\n\
                    [[probe]]\nname = \"p\"\ngroup = \"@any\"\nexpect = { ready = 1 }\n\
                    [[step]]\nname = \"s\"\nfault = \"kill\"\ntarget = { group = \"@any\" }\n";
        Arc::new(document::experiment(text, "x", Format::Toml).unwrap())
    }

    #[test]
    fn each_group_that_opted_in_is_drawn_as_often_as_another_and_no_other_ever() {
        let all = groups(&[("a", true), ("b", false), ("c", true), ("d", true)]);
        let mut drawn = BTreeMap::<String, u32>::new();
        for seed in 0..3_000 {
            let one = draw(&experiment(), &all, seed).unwrap();
            assert!(!format!("{one:?}").contains(ANY_GROUP), "{one:?}");
            *drawn.entry(one.groups[0].0.clone()).or_default() += 1;
        }
        assert_eq!(drawn.keys().collect::<Vec<_>>(), ["a", "c", "d"]);
        assert!(drawn.values().all(|count| (880..1_120).contains(count)), "{drawn:?}");
    }

    #[test]
    fn the_draw_follows_the_seed_whatever_the_order_of_the_policy() {
        let (one, other) = (groups(&[("a", true), ("b", true)]), groups(&[("b", true), ("a", true)]));
        for seed in 0..50 {
            assert_eq!(draw(&experiment(), &one, seed), draw(&experiment(), &other, seed));
        }
    }

    #[test]
    fn without_anybody_who_opted_in_there_is_no_run() {
        assert_eq!(draw(&experiment(), &groups(&[("a", false)]), 1), Err(Reason::NobodyOptedIn));
        assert_eq!(draw(&experiment(), &[], 1), Err(Reason::NobodyOptedIn));
    }
}
