//! What makes the agent a good service of systemd: it says how it is, and logs in the journal.
//!
//! Both talk over datagram sockets that never block: neither a stopped journald nor a busy pid 1 may
//! hold up an abort. Nothing here decides anything, and without systemd nothing here does anything.

pub mod journald;
pub mod notify;
pub mod story;
