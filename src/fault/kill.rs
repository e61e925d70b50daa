//! `kill`: a signal to exact processes.

use crate::{
    experiment::{Kill, Signal},
    fault::{Effect, Injection},
    host::{Candidate, Delivery, Host, HostError, ProcessState},
};

/// Signals every process, each exactly once, those that are gone excepted.
///
/// # Errors
/// At the first process that the kernel does not let vervet signal; the ones before it were.
pub fn inject(host: &dyn Host, processes: &[Candidate], signal: Signal) -> Result<Injection, HostError> {
    let deliveries = processes
        .iter()
        .map(|process| host.signal(process.id, signal).map(|delivery| (process.id, delivery)))
        .collect::<Result<_, _>>()?;
    Ok(Injection { deliveries })
}

/// Proven when vervet's signal reached at least one target, and each that it reached is gone or,
/// for a signal that does not ask it to end, has a handler that caught it.
///
/// # Errors
/// When the process table cannot be read.
pub fn measure(
    host: &dyn Host,
    processes: &[Candidate],
    kill: &Kill,
    injection: &Injection,
) -> Result<Effect, HostError> {
    let (mut gone, mut caught, mut unmoved, mut early) = (0_u32, 0_u32, 0_u32, 0_u32);
    for process in processes {
        let delivery = injection.deliveries.iter().find(|(id, _)| *id == process.id);
        match (delivery, host.state(process.id)?) {
            (Some((_, Delivery::Gone)) | None, ProcessState::Gone) => early += 1,
            (Some((_, Delivery::Sent { .. })), ProcessState::Gone) => gone += 1,
            (Some((_, Delivery::Sent { caught: true })), _)
                if kill.then.is_none() && !kill.signal.asks_to_end() =>
            {
                caught += 1;
            }
            _ => unmoved += 1,
        }
    }
    let mut parts = vec![format!("{} sent: {gone} gone", kill.signal)];
    if caught > 0 {
        parts.push(format!("{caught} caught it and live on"));
    }
    if unmoved > 0 {
        parts.push(format!("{unmoved} still there"));
    }
    if early > 0 {
        parts.push(format!("{early} had ended before the signal"));
    }
    Ok(Effect { proven: unmoved == 0 && gone + caught > 0, summary: parts.join(", "), counters: None })
}
