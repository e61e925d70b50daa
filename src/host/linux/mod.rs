//! The real host.

pub mod clock;
pub mod exits;
pub mod headroom;
pub mod process;
pub mod procfs;
pub mod protected;
pub mod selector;
pub mod sockets;
pub mod stat;
