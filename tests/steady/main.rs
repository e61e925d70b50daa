//! Steady state and capacity from real systems: each source asked against the real server of
//! Debian's packages, which the test starts in a namespace of its own and ends.

#[path = "../stories/harness.rs"]
#[allow(dead_code, reason = "shared with the stories, which use all of it")]
mod harness;
#[path = "../stories/http.rs"]
#[allow(dead_code, reason = "shared with the stories, which use all of it")]
mod http;
#[path = "../stories/worker.rs"]
#[allow(dead_code, reason = "shared with the stories, which use all of it")]
mod worker;

mod alert;
mod balanced;
mod haproxy;
mod metrics;
mod monkey;
mod names;
mod server;
mod web;
