//! Whole stories through the real binary: an agent with a policy of its own, real workers that the
//! test started, real faults in a network namespace that nobody else sees.
//!
//! One file for each promise. A story starts nothing outside of its [`harness::Stage`], which ends
//! everything that it started, and says SKIPPED where this machine does not let it play.

mod cgroup;
mod harness;
mod http;
mod worker;

#[path = "../systemd_support/mod.rs"]
mod systemd_support;

mod crash;
mod floor;
mod guard;
mod journal;
mod neighbours;
mod pause;
mod policy;
mod repeat;
mod schedule;
mod trouble;
mod units;
mod verdict;
mod way_out;
