//! Readiness sources and steady-state probes, one file each, and the monitors that ask them.
//!
//! A probe asks one question, once, and answers within the time that it was given, whatever the
//! other side does. It reports; what its answer means is policy's to say.

use crate::experiment::Check;

pub mod command;
pub mod deaths;
pub mod haproxy;
pub mod http;
pub mod members;
pub mod monitor;
pub mod process;
pub mod ready;
pub mod systemd;
pub mod tcp;

/// Asks the question of a steady-state probe. `None` for a question about a group: policy answers
/// that out of the group's readings.
///
/// The inner error says what was wrong, to people.
pub async fn ask(check: &Check) -> Option<Result<(), String>> {
    match check {
        Check::Http { url, status, body, within } => {
            Some(http::get(url, status, body.as_deref(), *within).await)
        }
        Check::Tcp { address, within } => Some(tcp::connect(address, *within).await),
        Check::Command { argv, within } => {
            Some(command::run(argv, *within).await.and_then(|ended| ended.success().map(drop)))
        }
        Check::Haproxy { pool, up, within } => Some(haproxy::at_least(pool, *up, *within).await),
        Check::Group { .. } => None,
    }
}
