//! The files of the demo: the policy of its host, and its experiments. They are left behind for the
//! reader beside the reports.

use std::path::Path;

/// How far apart removals must be.
pub fn removal_every(fast: bool) -> std::time::Duration {
    std::time::Duration::from_secs(if fast { 5 } else { 8 })
}

/// The owner's file.
#[must_use]
pub fn policy(base: &Path, fast: bool) -> String {
    let every = removal_every(fast).as_secs();
    let base = base.display();
    format!(
        r#"# What the owner of this host allows.
leashed = false
state = "{base}/state"
experiments = "{base}/experiments"

[api]
socket = "{base}/vervet.sock"

[limits]
duration = "1m"
wait = "30s"
headroom = {{ memory = "1%", pids = "1%", file_handles = "1%", conntrack = "1%" }}

[[group]]
name = "checkout"
floor = 3
expected = 4
members = {{ cmdline = "demo-part worker" }}
ready = {{ http = "http://127.0.0.1:{{port}}/healthz", status = 200, within = "500ms" }}
poll = "100ms"
stale_after = "2s"
settle = "1s"
removal = {{ at_once = 1, every = "{every}s" }}
"#
    )
}

/// Name and text of every experiment.
pub const EXPERIMENTS: [(&str, &str); 7] = [
    ("kill-two", KILL_TWO),
    ("kill-one", KILL_ONE),
    ("slow", SLOW),
    ("cap", CAP),
    ("slow-long", SLOW_LONG),
    ("cap-long", CAP_LONG),
    ("both-long", BOTH_LONG),
];

const KILL_TWO: &str = r#"title = "Lose two workers"
hypothesis = "Nobody notices that half of the workers are gone"
groups = ["checkout"]

[[step]]
name = "lose two workers"
fault = "kill"
target = { group = "checkout", pick = 2 }
"#;

const KILL_ONE: &str = r#"title = "Checkout survives the loss of one worker"
hypothesis = "Customers notice nothing while one of four workers is gone"
groups = ["checkout"]

[[probe]]
name = "checkout answers"
http = "http://127.0.0.1:8080/checkout"
expect = { status = 200, within = "1s" }
every = "200ms"
tolerate = 2

[[step]]
name = "lose a worker"
fault = "kill"
target = { group = "checkout", pick = 1 }
signal = "SIGKILL"
duration = "2s"
"#;

const SLOW: &str = r#"title = "Checkout is slow, and answers"
hypothesis = "Customers get their answer, later"
groups = ["checkout"]

[[probe]]
name = "checkout answers"
http = "http://127.0.0.1:8080/checkout"
expect = { status = 200, within = "2s" }
every = "500ms"
tolerate = 2

[[step]]
name = "80 ms more"
fault = "latency"
traffic = { listen = 8080 }
delay = "80ms"
duration = "4s"
"#;

const CAP: &str = r#"title = "Forty connections and no more"
hypothesis = "The workers stay ready while the door is too small"
groups = ["checkout"]

[[probe]]
name = "the workers are ready"
group = "checkout"
expect = { ready = 3 }
every = "500ms"

[[step]]
name = "forty connections"
fault = "connections"
traffic = { listen = 8080 }
max = 40
excess = "reset"
duration = "4s"
"#;

const SLOW_LONG: &str = r#"title = "A slow afternoon"
hypothesis = "Nothing worse happens meanwhile"
groups = ["checkout"]

[[step]]
name = "80 ms more"
fault = "latency"
traffic = { listen = 8080 }
delay = "80ms"
duration = "40s"
"#;

const CAP_LONG: &str = r#"title = "A narrow door"
hypothesis = "Nothing worse happens meanwhile"
groups = ["checkout"]

[[step]]
name = "four connections"
fault = "connections"
traffic = { listen = 8080 }
max = 4
excess = "reset"
duration = "40s"
"#;

const BOTH_LONG: &str = r#"title = "A slow afternoon at a narrow door"
hypothesis = "Nothing worse happens meanwhile"
groups = ["checkout"]

[[step]]
name = "80 ms more"
fault = "latency"
traffic = { listen = 8080 }
delay = "80ms"
duration = "40s"

[[step]]
name = "four connections"
fault = "connections"
traffic = { listen = 8080 }
max = 4
excess = "reset"
duration = "40s"
start = "with previous"
"#;

#[cfg(test)]
mod tests {
    use crate::document::{self, Format};

    #[test]
    fn every_document_of_the_demo_is_valid() {
        for fast in [true, false] {
            let policy = super::policy(std::path::Path::new("/run/vervet"), fast);
            document::policy(&policy, "vervet.toml").expect("valid");
        }
        for (name, text) in super::EXPERIMENTS {
            document::experiment(text, name, Format::Toml).expect("valid");
        }
    }
}
