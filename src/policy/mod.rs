//! What decides: readings, budgets, the limiter, plans, the lifecycle of runs.
//!
//! INVARIANT: no I/O, no async, no clock, no randomness of its own. Time, readings and seeds are
//! arguments; what is to be done is returned. `tests/purity.rs` holds this.

pub mod capacity;
pub mod time;
