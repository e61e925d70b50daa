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
        "schedule" => later("`[[schedule]]`", "start runs from a timer of your own: `vervet run NAME`"),
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
        "schedule" => return in_policy(key),
        "leashed" | "state" | "experiments" | "api" | "limits" | "network" | "group" | "freeze" => key,
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

/// Keys of readiness sources.
pub fn in_ready(key: &str) -> Option<Known> {
    match key {
        "prometheus" => later(
            &format!("the readiness source `{key}`"),
            "a `command` that prints the number of ready instances can ask it",
        ),
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
