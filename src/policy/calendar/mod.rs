//! When runs begin by themselves, and when nothing runs: schedules, windows, freezes.
//!
//! All of it is arithmetic on times that are handed in. What a freeze goes by outside of the policy
//! (a file of events, a check) is looked at by `probe::freezes`, and arrives here as a [`Sight`].

pub mod agenda;
pub mod freeze;
pub mod show;
pub mod slots;
pub mod window;

pub use agenda::{Agenda, Memory, Outcome, Pause, Slot};
pub use freeze::{Frozen, Sight, Span};

#[cfg(test)]
mod tests;
