//! The real host.

pub mod clock;
pub mod net;
pub mod sys;
