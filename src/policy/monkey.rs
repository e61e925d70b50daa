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
