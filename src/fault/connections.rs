//! `connections`: so many TCP connections and no more.

use crate::{
    experiment::Connections,
    fault::Effect,
    host::{NetAction, NetCounters},
};

/// The action that the host is to install.
#[must_use]
pub fn action(cap: &Connections) -> NetAction {
    NetAction::Cap {
        max: cap.max,
        per_source: cap.per_source,
        new_per_second: cap.new_per_second,
        excess: cap.excess,
        existing: cap.existing,
    }
}

/// Nothing can be served under this cap: it counts as the loss of every instance that it hits.
#[must_use]
pub fn is_total(cap: &Connections) -> bool {
    cap.max == Some(0) || cap.per_source == Some(0) || cap.new_per_second == Some(0)
}

/// Proven when the cap turned at least one attempt away, or closed a connection.
#[must_use]
pub fn effect(cap: &Connections, counters: &NetCounters) -> Effect {
    let NetCounters { in_place, matched, affected, closed, .. } = *counters;
    let limit = describe(cap);
    let summary = if in_place || affected > 0 || closed > 0 {
        let closed = if closed > 0 { format!(", {closed} closed at the start") } else { String::new() };
        let reached = if affected == 0 { ": the cap was never reached" } else { "" };
        format!("{limit}: {matched} attempts, {affected} turned away{closed}{reached}")
    } else {
        format!("{limit}: the kernel no longer has the cap in place")
    };
    Effect { proven: affected > 0 || closed > 0, summary, counters: Some(*counters) }
}

fn describe(cap: &Connections) -> String {
    let parts = [
        cap.max.map(|n| format!("at most {n} connections")),
        cap.per_source.map(|n| format!("at most {n} from one source")),
        cap.new_per_second.map(|n| format!("at most {n} new each second")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
