//! An experiment back into a document: the keys that a person would write.
//!
//! What it writes is read back as the same experiment. Defaults are written out where they are
//! harmless to repeat, and left out where the reader would call them useless (a jitter of zero).

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::{
    experiment::{
        Connections, Drain, Experiment, FaultSpec, Kill, Latency, Order, Peer, Percent, Pick, Probe,
        ProcessSelector, ProcessTarget, Start, Step, Traffic,
    },
    units::show_duration,
};

mod checks;

/// The document of an experiment, as JSON that [`super::experiment()`] accepts.
#[must_use]
pub fn to_json(experiment: &Experiment) -> Value {
    let mut keys = Map::new();
    put(&mut keys, "title", &experiment.title);
    put(&mut keys, "hypothesis", &experiment.hypothesis);
    put(&mut keys, "groups", &experiment.groups);
    put(&mut keys, "recovery", show_duration(experiment.recovery));
    if !experiment.probes.is_empty() {
        keys.insert("probe".to_owned(), experiment.probes.iter().map(probe).collect());
    }
    keys.insert("step".to_owned(), experiment.steps.iter().map(step).collect());
    Value::Object(keys)
}

/// Serializes what cannot fail to: texts, numbers, lists and plain enums.
fn put(keys: &mut Map<String, Value>, key: &str, value: impl serde::Serialize) {
    keys.insert(key.to_owned(), json!(value));
}

fn put_some(keys: &mut Map<String, Value>, key: &str, value: Option<impl serde::Serialize>) {
    if let Some(value) = value {
        put(keys, key, value);
    }
}

fn put_span(keys: &mut Map<String, Value>, key: &str, span: Duration) {
    if !span.is_zero() {
        put(keys, key, show_duration(span));
    }
}

fn probe(probe: &Probe) -> Value {
    let mut keys = Map::new();
    put(&mut keys, "name", &probe.name);
    checks::put_check(&mut keys, &probe.check);
    put_span(&mut keys, "every", probe.every);
    put(&mut keys, "tolerate", probe.tolerate);
    Value::Object(keys)
}

fn step(step: &Step) -> Value {
    let mut keys = Map::new();
    put(&mut keys, "name", &step.name);
    put(&mut keys, "fault", step.fault.kind());
    match &step.fault {
        FaultSpec::Kill(kill) => put_kill(&mut keys, kill),
        FaultSpec::Pause(pause) => {
            keys.insert("target".to_owned(), target(&pause.target));
        }
        FaultSpec::Unit(unit) => {
            keys.insert("target".to_owned(), target(&unit.target));
            put(&mut keys, "action", unit.action);
        }
        FaultSpec::Latency(latency) => put_latency(&mut keys, latency),
        FaultSpec::Connections(cap) => put_connections(&mut keys, cap),
    }
    put_some(&mut keys, "duration", step.duration.map(show_duration));
    match step.start {
        Start::AfterPrevious => {}
        Start::WithPrevious => put(&mut keys, "start", "with previous"),
    }
    if step.charge > 0 {
        put(&mut keys, "charge", step.charge);
    }
    Value::Object(keys)
}

fn put_kill(keys: &mut Map<String, Value>, kill: &Kill) {
    keys.insert("target".to_owned(), target(&kill.target));
    put(keys, "signal", kill.signal);
    if let Some(then) = kill.then {
        put(keys, "then", json!({ "signal": then.signal, "after": show_duration(then.after) }));
    }
    if let Some(Drain { pool, within, late }) = &kill.drain {
        let (haproxy, backend, within) = (&pool.haproxy, &pool.backend, show_duration(*within));
        let drain = json!({ "haproxy": haproxy, "backend": backend, "within": within, "late": late });
        put(keys, "drain", drain);
    }
}

fn put_latency(keys: &mut Map<String, Value>, latency: &Latency) {
    keys.insert("traffic".to_owned(), traffic(&latency.traffic));
    put(keys, "delay", show_duration(latency.delay));
    if !latency.jitter.is_zero() {
        put(keys, "jitter", show_duration(latency.jitter));
        put(keys, "distribution", latency.distribution);
        if latency.correlation != Percent::ZERO {
            put(keys, "correlation", latency.correlation.to_string());
        }
    }
    put_some(keys, "engine", latency.engine);
}

fn put_connections(keys: &mut Map<String, Value>, cap: &Connections) {
    keys.insert("traffic".to_owned(), traffic(&cap.traffic));
    put_some(keys, "max", cap.max);
    put_some(keys, "per_source", cap.per_source);
    put_some(keys, "new_per_second", cap.new_per_second);
    put(keys, "excess", cap.excess);
    put(keys, "existing", cap.existing);
}

fn target(target: &ProcessTarget) -> Value {
    let mut keys = processes(&target.select);
    match target.pick {
        Pick::Count(count) => put(&mut keys, "pick", count),
        Pick::Percent(percent) => put(&mut keys, "pick", percent.to_string()),
        Pick::All => put(&mut keys, "pick", "all"),
    }
    if target.order != Order::Random {
        put(&mut keys, "order", target.order);
    }
    Value::Object(keys)
}

fn processes(select: &ProcessSelector) -> Map<String, Value> {
    let ProcessSelector {
        group,
        unit,
        container,
        name,
        exe,
        cmdline,
        user,
        listen,
        cgroup,
        pidfile,
        older_than,
    } = select;
    let mut keys = Map::new();
    put_some(&mut keys, "group", group.as_ref());
    put_some(&mut keys, "unit", unit.as_ref());
    put_some(&mut keys, "container", container.as_ref());
    put_some(&mut keys, "name", name.as_ref());
    put_some(&mut keys, "exe", exe.as_ref());
    put_some(&mut keys, "cmdline", cmdline.as_ref());
    put_some(&mut keys, "user", user.as_ref());
    put_some(&mut keys, "listen", *listen);
    put_some(&mut keys, "cgroup", cgroup.as_ref());
    put_some(&mut keys, "pidfile", pidfile.as_ref());
    put_some(&mut keys, "older_than", older_than.map(show_duration));
    keys
}

fn traffic(traffic: &Traffic) -> Value {
    let Traffic { to, from, port, listen, protocol, unit, cgroup, user, interface, netns } = traffic;
    let mut keys = Map::new();
    for (key, peers) in [("to", to), ("from", from)] {
        if !peers.is_empty() {
            put(&mut keys, key, peers.iter().map(peer).collect::<Vec<_>>());
        }
    }
    put_some(&mut keys, "port", *port);
    put_some(&mut keys, "listen", *listen);
    put_some(&mut keys, "protocol", *protocol);
    put_some(&mut keys, "unit", unit.as_ref());
    put_some(&mut keys, "cgroup", cgroup.as_ref());
    put_some(&mut keys, "user", user.as_ref());
    put_some(&mut keys, "interface", interface.as_ref());
    put_some(&mut keys, "netns", netns.as_ref());
    Value::Object(keys)
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Block(block) => block.to_string(),
        Peer::Name(name) => name.clone(),
    }
}
