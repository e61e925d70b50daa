//! The bounds on every connection and request. A client can use up its own share, never the lever's.

use std::time::Duration;

/// How much of everything a listener gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections, on each listener of its own. One more sheds the one that has been idle longest.
    pub connections: usize,
    /// For a TLS handshake.
    pub handshake: Duration,
    /// For a whole request head, and between two requests of one connection.
    pub head: Duration,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// For a whole request body.
    pub body: Duration,
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Bodies beyond [`SMALL_BODY`] that are read at once.
    pub large_bodies: usize,
    /// For a client to take some of what is written to it.
    pub write: Duration,
    /// How long a closing connection still swallows what the client had under way, so that the
    /// client gets to read the answer rather than a reset.
    pub linger: Duration,
    /// Streams of events at once.
    pub subscribers: usize,
    /// Between two comments on a silent stream of events.
    pub heartbeat: Duration,
    /// How long open requests may take to end when the API stops.
    pub stop: Duration,
}

/// Bodies up to this size are always read at once: the lever's are among them.
pub const SMALL_BODY: usize = 16 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(10),
            head_bytes: 32 * 1024,
            body: Duration::from_secs(10),
            body_bytes: 1024 * 1024,
            large_bodies: 16,
            write: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            subscribers: 256,
            heartbeat: Duration::from_secs(15),
            stop: Duration::from_secs(2),
        }
    }
}
