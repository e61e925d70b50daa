//! Readiness sources and steady-state probes, one file each, and the monitors that ask them.
//!
//! A probe asks one question, once, and answers within the time that it was given, whatever the
//! other side does. It reports; what its answer means is policy's to say.

use crate::experiment::Check;

pub mod command;
pub mod deaths;
pub mod freezes;
pub mod http;
pub mod members;
pub mod monitor;
pub mod process;
pub mod ready;
pub mod systemd;
pub mod tcp;

/// Asks one question again and again, and keeps what its answer takes from one attempt to the next.
#[derive(Debug)]
pub struct Asker {
    check: Check,
}

impl Asker {
    #[must_use]
    pub fn new(check: &Check) -> Self {
        Self { check: check.clone() }
    }

    /// Asks once. `None` for a question about a group: policy answers that out of the group's
    /// readings.
    ///
    /// The inner error says what was wrong, to people.
    pub async fn ask(&mut self) -> Option<Result<(), String>> {
        match &self.check {
            Check::Http { url, status, body, within } => {
                Some(http::get(url, status, body.as_deref(), *within).await)
            }
            Check::Tcp { address, within } => Some(tcp::connect(address, *within).await),
            Check::Command { argv, within } => {
                Some(command::run(argv, *within).await.and_then(|ended| ended.success().map(drop)))
            }
            Check::Group { .. } => None,
        }
    }
}
