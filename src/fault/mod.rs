//! The kinds of harm: how each is prepared, injected, measured.
//!
//! `prepare` only reads and says what will undo it; the journal makes that durable; then `inject`;
//! then `measure` says whether it took effect. Undoing is [`undo`]'s, from data alone. A fault
//! never decides whether it may happen, and never waits: where there is something to wait for before
//! the injection, it is asked again and again by [`drain`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    experiment::{FaultSpec, Kill, Signal},
    host::{
        Candidate, Delivery, FaultId, Host, HostError, NetCounters, NetPlan, NetSpec, ProcessId,
        UnitCandidate,
    },
};

pub mod connections;
pub mod kill;
pub mod latency;
pub mod pause;
pub mod undo;
pub mod unit;

use undo::Undo;

/// What ends a fault if vervet is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lease {
    /// The kernel, when it is no longer renewed.
    Kernel,
    /// The end of the process that holds it.
    Process,
    /// The warden.
    Warden,
    /// Nothing: it cannot be undone.
    None,
}

/// The exact things that a step will hit, picked by policy out of what the host resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "snake_case")]
pub enum Target {
    Processes { processes: Vec<Candidate> },
    Units { units: Vec<UnitCandidate> },
    Traffic { plan: Box<NetPlan> },
}

/// A fault ready to be injected: everything was looked up, nothing was touched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    pub fault: FaultId,
    pub spec: FaultSpec,
    pub target: Target,
    pub undo: Undo,
    pub lease: Lease,
}

impl Prepared {
    /// Its targets are signalled once, and that is not undone.
    #[must_use]
    pub fn is_kill(&self) -> bool {
        matches!(self.spec, FaultSpec::Kill(_))
    }
}

/// What an injection did at once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Injection {
    /// For `kill` and `pause`: each process and what became of the signal.
    pub deliveries: Vec<(ProcessId, Delivery)>,
}

/// The measured effect of a fault so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// It was really injected *and* had an effect on something.
    pub proven: bool,
    /// One sentence with the numbers.
    pub summary: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<NetCounters>,
}

/// Context of a preparation.
#[derive(Debug)]
pub struct Context<'a> {
    pub fault: FaultId,
    /// The seed of this step's own randomness.
    pub seed: u64,
    pub mark_mask: u32,
    pub exempt_ports: &'a [u16],
    /// Undos in force, for shared objects.
    pub open: &'a [Undo],
    /// Processes of instances that are not among the targets, where that matters.
    pub others: &'a [ProcessId],
}

/// How long a kernel lease runs from each renewal, at most.
pub const KERNEL_LEASE: Duration = Duration::from_secs(2);

/// How often kernel leases are renewed.
pub const RENEW_EVERY: Duration = Duration::from_millis(500);

/// The network fault that a specification asks for; `None` for faults on processes and units.
#[must_use]
pub fn net_spec(spec: &FaultSpec, context: &Context<'_>) -> Option<NetSpec> {
    let (traffic, action) = match spec {
        FaultSpec::Kill(_) | FaultSpec::Pause(_) | FaultSpec::Unit(_) => return None,
        FaultSpec::Latency(latency) => (&latency.traffic, latency::action(latency, context.seed)),
        FaultSpec::Connections(cap) => (&cap.traffic, connections::action(cap)),
    };
    Some(NetSpec {
        fault: context.fault.clone(),
        traffic: traffic.clone(),
        action,
        mark_mask: context.mark_mask,
        exempt_ports: context.exempt_ports.to_vec(),
        local: None,
    })
}

/// Looks everything up that an injection needs. Touches nothing.
///
/// A network target is planned anew, because undos that came into force since it was resolved
/// change what is shared. Whose traffic it is was the decision's question, and is not asked again.
///
/// # Errors
/// When the host lacks what the fault needs.
pub fn prepare(
    host: &dyn Host,
    spec: &FaultSpec,
    target: &Target,
    context: &Context<'_>,
) -> Result<Prepared, HostError> {
    let (target, restores, lease) = match (net_spec(spec, context), spec, target) {
        (Some(mut net), ..) => {
            if let Target::Traffic { plan } = target {
                net.local = Some(plan.local.clone());
            }
            let plan = host.plan_net(&net, context.open)?;
            let restores = plan.restores.clone();
            (Target::Traffic { plan: Box::new(plan) }, restores, Lease::Kernel)
        }
        (None, FaultSpec::Pause(_), Target::Processes { processes }) => {
            (target.clone(), pause::prepare_processes(host, processes)?, Lease::Warden)
        }
        (None, FaultSpec::Pause(_), Target::Units { units }) => {
            (target.clone(), pause::prepare_units(host, units)?, Lease::Warden)
        }
        (None, FaultSpec::Unit(_), Target::Units { units }) => {
            (target.clone(), unit::prepare(host, units)?, Lease::Warden)
        }
        (None, FaultSpec::Kill(Kill { drain: Some(drain), .. }), Target::Processes { processes }) => {
            (target.clone(), kill::prepare_drain(host, processes, drain, context.others)?, Lease::Warden)
        }
        (None, _, target) => (target.clone(), Vec::new(), Lease::None),
    };
    let undo = Undo { restores };
    Ok(Prepared { fault: context.fault.clone(), spec: spec.clone(), target, undo, lease })
}

/// Takes a kill's victims out of the rotation (`begin`), and says how many sessions they still have.
///
/// # Errors
/// When the load balancer does not do it or does not say so, or somebody put a victim back meanwhile.
pub fn drain(host: &dyn Host, prepared: &Prepared, begin: bool) -> Result<u32, HostError> {
    kill::drain(host, &prepared.undo.restores, begin)
}

/// Does it. `lease` is how long the kernel may keep a network fault without renewal.
///
/// # Errors
/// When a part of it failed; the caller then reverts.
pub fn inject(host: &dyn Host, prepared: &Prepared, lease: Duration) -> Result<Injection, HostError> {
    match (&prepared.spec, &prepared.target) {
        (FaultSpec::Kill(kill), Target::Processes { processes }) => {
            kill::inject(host, processes, kill.signal)
        }
        (FaultSpec::Pause(_), Target::Processes { processes }) => {
            pause::inject_processes(host, processes)
        }
        (FaultSpec::Pause(_), Target::Units { .. }) => {
            pause::inject_units(host, &prepared.undo.restores)
        }
        (FaultSpec::Unit(fault), Target::Units { units }) => unit::inject(host, units, fault.action),
        (_, Target::Traffic { plan }) => host.install(plan, lease).map(|()| Injection::default()),
        (spec, _) => unreachable!("{} has a target of its own kind", spec.kind()),
    }
}

/// The second signal of a kill, to those of its targets that are still there.
///
/// # Errors
/// When the kernel does not permit it.
pub fn escalate(host: &dyn Host, prepared: &Prepared, signal: Signal) -> Result<Injection, HostError> {
    match &prepared.target {
        Target::Processes { processes } => kill::inject(host, processes, signal),
        Target::Units { .. } | Target::Traffic { .. } => Ok(Injection::default()),
    }
}

/// Reads back what an injected fault did so far.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn measure(
    host: &dyn Host,
    prepared: &Prepared,
    injection: &Injection,
) -> Result<Effect, HostError> {
    match (&prepared.spec, &prepared.target) {
        (FaultSpec::Kill(kill), Target::Processes { processes }) => {
            kill::measure(host, processes, kill, injection)
        }
        (FaultSpec::Pause(_), Target::Processes { processes }) => {
            pause::measure_processes(host, processes, injection)
        }
        (FaultSpec::Pause(_), Target::Units { units }) => pause::measure_units(host, units),
        (FaultSpec::Unit(fault), Target::Units { units }) => unit::measure(host, units, fault.action),
        (FaultSpec::Latency(latency), Target::Traffic { plan }) => {
            Ok(latency::effect(latency, &host.counters(plan)?))
        }
        (FaultSpec::Connections(cap), Target::Traffic { plan }) => {
            Ok(connections::effect(cap, &host.counters(plan)?))
        }
        (spec, _) => unreachable!("{} has a target of its own kind", spec.kind()),
    }
}
