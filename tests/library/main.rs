//! What people take from here and run themselves, run: the experiments of the library, the page about
//! pipelines, an agent for the time of one run, experiments that `vervet new` wrote.
//!
//! All of it goes through the real program, against services that the test started.

#[path = "../stories/cgroup.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod cgroup;
#[path = "../stories/harness.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod harness;
#[path = "../stories/http.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod http;
#[path = "../systemd_support/mod.rs"]
mod systemd_support;
#[path = "../stories/worker.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod worker;

mod instance;
mod page;
mod rows;
mod scenes;
mod shop;
mod standalone;
