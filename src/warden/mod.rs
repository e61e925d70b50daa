//! The warden: a second, tiny process that undoes what the agent can no longer undo.
//!
//! The agent starts it first and tells it the undo of every fault before it injects. They talk over
//! a socket pair, which is the warden's standard input: one JSON object a line, each request
//! answered before the next.
//!
//! ```text
//! agent                                warden
//!   hold(fault, undo, remaining) ──►   remembers it
//!   inject            ◄── ok
//!   …                                  deadline + 1 s and not released: reverts this one
//!   revert
//!   release(fault)    ──►              forgets it
//!   dies, by whatever ──►              end of file: reverts all that it holds, exits
//! ```
//!
//! The warden decides nothing but that, and never touches the journal: the next start of the agent
//! finds the intents open, reverts once more, which changes nothing, and closes them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{fault::undo::Undo, host::FaultId};

mod client;
mod process;

pub use client::{Launch, Warden, WardenError};
pub use process::{Left, main, main_loop};

/// How long after a deadline the warden leaves the undo to the agent.
pub const GRACE: Duration = Duration::from_secs(1);

/// Longest line, in bytes. An undo is a few hundred.
const MAX_LINE: usize = 1 << 20;

/// Most faults held at once.
const MAX_HOLDS: usize = 10_000;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
enum Request {
    /// `remaining_ms` until the deadline; none: until it is released.
    Hold {
        fault: FaultId,
        undo: Undo,
        remaining_ms: Option<u64>,
    },
    /// Of a fault that is not held: no error.
    Release {
        fault: FaultId,
    },
    Check,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Reply {
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// To a check: faults that were reverted because their deadline had passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overdue: Vec<FaultId>,
}

/// Takes one line off the front of `buffer`.
fn take_line(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = buffer.iter().position(|byte| *byte == b'\n')?;
    let mut line: Vec<u8> = buffer.drain(..=end).collect();
    line.pop();
    Some(line)
}

fn line<T: Serialize>(message: &T) -> Vec<u8> {
    let mut text = serde_json::to_vec(message).unwrap_or_default();
    text.push(b'\n');
    text
}
