//! Whole stories through the real binary: an agent with a policy of its own, real workers that the
//! test started, real faults in a network namespace that nobody else sees.
//!
//! One file for each promise. A story starts nothing outside of its [`harness::Stage`], which ends
//! everything that it started, and says SKIPPED where this machine does not let it play.

mod harness;
mod http;
mod worker;

mod crash;
mod floor;
mod journal;
mod neighbours;
mod policy;
mod repeat;
mod trouble;
mod way_out;
