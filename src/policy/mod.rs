//! What decides: readings, budgets, the limiter, plans, the lifecycle of runs.
//!
//! INVARIANT: no I/O, no async, no clock, no randomness of its own. Time, readings and seeds are
//! arguments; what is to be done is returned. `tests/purity.rs` holds this.

pub mod budget;
pub mod calendar;
pub mod capacity;
pub mod engine;
pub mod limiter;
pub mod monkey;
pub mod plan;
pub mod protected;
pub mod reason;
pub mod time;
