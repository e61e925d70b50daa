//! The real host.

pub mod clock;
