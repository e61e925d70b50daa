//! Words that have a meaning in later versions, or in the other kind of document.
//!
//! They are neither unknown nor ignored: using one is an error that says what to do instead.

use super::reader::Known;

const FAULTS: [&str; 15] = [
    "loss",
    "corrupt",
    "duplicate",
    "reorder",
    "bandwidth",
    "partition",
    "dns",
    "cpu",
    "memory",
    "disk",
    "io",
    "handles",
    "clock",
    "storm",
    "host",
];

/// Top-level keys of policies, [`EXPERIMENT`]'s excepted.
pub const POLICY: [&str; 9] =
    ["leashed", "state", "experiments", "api", "limits", "network", "group", "freeze", "schedule"];

/// Top-level keys of experiments.
pub const EXPERIMENT: [&str; 6] = ["title", "hypothesis", "groups", "recovery", "probe", "step"];

/// Nothing is known beside the valid keys.
pub fn nothing(_: &str) -> Option<Known> {
    None
}

/// Top-level keys of a policy.
pub fn in_policy(key: &str) -> Option<Known> {
    match key {
        "step" | "probe" | "hypothesis" | "title" | "recovery" => Some(Known {
            message: format!("`{key}` belongs in an experiment, and this is a policy"),
            help: "experiments are files of their own, in the directory `experiments`".to_owned(),
        }),
        _ => None,
    }
}

/// Top-level keys of an experiment.
pub fn in_experiment(key: &str) -> Option<Known> {
    let home = match key {
        "leashed" | "state" | "experiments" | "api" | "limits" | "network" | "group" | "freeze"
        | "schedule" => key,
        _ => return None,
    };
    let help = match home {
        "group" => "an experiment names groups that the policy declares: `groups = [\"…\"]`",
        _ => "the host's owner writes it in vervet.toml",
    };
    Some(Known {
        message: format!("`{home}` belongs in the host's policy, and this is an experiment"),
        help: help.to_owned(),
    })
}

/// Keys of traffic selectors.
pub fn in_traffic(key: &str) -> Option<Known> {
    (key == "container").then(|| Known {
        message: "a container's traffic is chosen by its network namespace".to_owned(),
        help: "write `netns = \"container:NAME\"`".to_owned(),
    })
}

/// Keys of what an HTTP probe expects.
pub fn in_http(key: &str) -> Option<Known> {
    (key == "header").then(|| Known {
        message: "unknown key `header` in what an http probe expects".to_owned(),
        help: "write `headers = { Cache-Control = \"no-store\" }`".to_owned(),
    })
}

/// Keys of what an HTTP readiness source expects.
pub fn in_http_source(key: &str) -> Option<Known> {
    match key {
        "within" => Some(Known {
            message: "`within` of a readiness source stands beside `http`".to_owned(),
            help: "move it out of `expect`".to_owned(),
        }),
        "window" => Some(no_percentiles()),
        _ if crate::experiment::Quantile::from_name(key).is_some() => Some(no_percentiles()),
        _ => in_http(key),
    }
}

fn no_percentiles() -> Known {
    Known {
        message: "percentiles are for probes: an instance is ready at one time or not".to_owned(),
        help: "`within` bounds each answer; a `[[probe]]` can have `p99 = \"300ms\"`".to_owned(),
    }
}

/// Keys of conditions.
pub fn in_condition(key: &str) -> Option<Known> {
    match key {
        "group" => Some(Known {
            message: "a condition asks the world outside, and the groups are the limiter's".to_owned(),
            help: "a group's `floor` holds at all times; leave it out".to_owned(),
        }),
        "name" | "every" | "tolerate" => Some(Known {
            message: format!("`{key}` belongs to a probe, and this is a condition"),
            help: "a condition has one check and what it expects".to_owned(),
        }),
        _ => None,
    }
}

/// Keys of readiness sources.
pub fn in_ready(key: &str) -> Option<Known> {
    match key {
        "alertmanager" => Some(Known {
            message: "an Alertmanager counts no instances".to_owned(),
            help: "a probe can ask it whether an alert is active".to_owned(),
        }),
        "process" => Some(Known {
            message: "`process` is a word, not a key".to_owned(),
            help: "write `ready = \"process\"`, or nothing: it is the default".to_owned(),
        }),
        "systemd" => Some(Known {
            message: "`systemd` is a word, not a key".to_owned(),
            help: "write `ready = \"systemd\"`".to_owned(),
        }),
        _ => None,
    }
}

/// The value of a step's `fault`.
pub fn fault(word: &str) -> Option<Known> {
    let help = "this version has `kill`, `pause`, `unit`, `latency` and `connections`";
    FAULTS.contains(&word).then(|| later(&format!("the fault `{word}`"), help)).flatten()
}

#[expect(clippy::unnecessary_wraps, reason = "its callers return it among other answers")]
fn later(what: &str, help: &str) -> Option<Known> {
    Some(Known { message: format!("{what} is known, but not in this version"), help: help.to_owned() })
}
