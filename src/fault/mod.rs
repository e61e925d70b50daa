//! The kinds of harm: how each is prepared, injected, measured.
//!
//! `prepare` only reads and says what will undo it; the journal makes that durable; then `inject`;
//! then `measure` says whether it took effect. Undoing is [`undo`]'s, from data alone. A fault
//! never decides whether it may happen, and never waits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    experiment::{FaultSpec, Signal},
    host::{Candidate, Delivery, FaultId, Host, HostError, NetCounters, NetPlan, NetSpec, ProcessId},
};

pub mod connections;
pub mod kill;
pub mod latency;
pub mod undo;

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

/// What an injection did at once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Injection {
    /// For `kill`: each process and what became of the signal.
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
}

/// How long a kernel lease runs from each renewal, at most.
pub const KERNEL_LEASE: Duration = Duration::from_secs(2);

/// How often kernel leases are renewed.
pub const RENEW_EVERY: Duration = Duration::from_millis(500);

/// The network fault that a specification asks for; `None` for faults on processes.
#[must_use]
pub fn net_spec(spec: &FaultSpec, context: &Context<'_>) -> Option<NetSpec> {
    let (traffic, action) = match spec {
        FaultSpec::Kill(_) => return None,
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
    let (target, undo, lease) = match (net_spec(spec, context), target) {
        (Some(mut net), _) => {
            if let Target::Traffic { plan } = target {
                net.local = Some(plan.local.clone());
            }
            let plan = host.plan_net(&net, context.open)?;
            let undo = Undo { restores: plan.restores.clone() };
            (Target::Traffic { plan: Box::new(plan) }, undo, Lease::Kernel)
        }
        (None, target) => (target.clone(), Undo::default(), Lease::None),
    };
    Ok(Prepared { fault: context.fault.clone(), spec: spec.clone(), target, undo, lease })
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
        (_, Target::Traffic { plan }) => host.install(plan, lease).map(|()| Injection::default()),
        (spec, Target::Processes { .. }) => {
            unreachable!("{} is planned as traffic by `prepare`", spec.kind())
        }
    }
}

/// The second signal of a kill, to those of its targets that are still there.
///
/// # Errors
/// When the kernel does not permit it.
pub fn escalate(host: &dyn Host, prepared: &Prepared, signal: Signal) -> Result<Injection, HostError> {
    match &prepared.target {
        Target::Processes { processes } => kill::inject(host, processes, signal),
        Target::Traffic { .. } => Ok(Injection::default()),
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
        (FaultSpec::Latency(latency), Target::Traffic { plan }) => {
            Ok(latency::effect(latency, &host.counters(plan)?))
        }
        (FaultSpec::Connections(cap), Target::Traffic { plan }) => {
            Ok(connections::effect(cap, &host.counters(plan)?))
        }
        (spec, _) => unreachable!("{} has a target of its own kind", spec.kind()),
    }
}
