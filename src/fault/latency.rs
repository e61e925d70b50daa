//! `latency`: what leaves the host for the selected traffic leaves it later.

use crate::{
    experiment::Latency,
    fault::Effect,
    host::{NetAction, NetCounters},
};

/// The action that the host is to install.
#[must_use]
pub fn action(latency: &Latency, seed: u64) -> NetAction {
    NetAction::Delay {
        delay: latency.delay,
        jitter: latency.jitter,
        correlation: latency.correlation,
        distribution: latency.distribution,
        engine: latency.engine,
        seed,
    }
}

/// Proven when at least one packet was delayed.
#[must_use]
pub fn effect(latency: &Latency, counters: &NetCounters) -> Effect {
    let delay_ms = latency.delay.as_secs_f64() * 1e3;
    let summary = match (counters.in_place, counters.affected) {
        (false, 0) => "the kernel no longer has the delay in place".to_owned(),
        (true, 0) => format!("a delay of {delay_ms} ms is in place, but no packet has met it"),
        (_, packets) => match counters.mean_delay_us {
            Some(mean) => format!(
                "{packets} packets delayed by {delay_ms} ms (measured mean {:.3} ms)",
                mean as f64 / 1e3
            ),
            None => format!("{packets} packets delayed by {delay_ms} ms"),
        },
    };
    Effect { proven: counters.affected > 0, summary, counters: Some(*counters) }
}
