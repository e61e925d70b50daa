//! Readiness sources and steady-state probes, one file each, and the monitors that ask them.
//!
//! A probe asks one question, once, and answers within the time that it was given, whatever the
//! other side does. It reports; what its answer means is policy's to say.

use tokio::time::Instant;

use crate::experiment::{Check, HttpCheck};

pub mod alertmanager;
pub mod answer;
pub mod command;
pub mod deaths;
pub mod dns;
pub mod freezes;
pub mod haproxy;
pub mod http;
pub mod members;
pub mod monitor;
pub mod percentile;
pub mod process;
pub mod prometheus;
pub mod ready;
pub mod systemd;
pub mod tcp;

/// Asks one question again and again, and keeps what its answer takes from one attempt to the next.
#[derive(Debug)]
pub struct Asker {
    check: Check,
    /// Where a window of answers is judged.
    window: Option<percentile::Window>,
}

impl Asker {
    #[must_use]
    pub fn new(check: &Check) -> Self {
        let window = match check {
            Check::Http(HttpCheck { percentiles: Some(expect), .. }) => {
                Some(percentile::Window::new(expect.clone()))
            }
            _ => None,
        };
        Self { check: check.clone(), window }
    }

    /// Asks once. `None`: nothing can be said. So it is while a window of answers has not been seen
    /// whole, and for a question about a group: policy answers that out of the group's readings.
    ///
    /// The inner error says what was wrong, to people.
    pub async fn ask(&mut self) -> Option<Result<(), String>> {
        match &self.check {
            Check::Http(check) => {
                let began = Instant::now();
                let outcome = answer::ask(check).await;
                match self.window.as_mut() {
                    Some(window) => {
                        let said = window.add(began, began.elapsed(), outcome)?;
                        Some(said.map_err(|error| format!("{} {error}", check.url)))
                    }
                    None => Some(outcome),
                }
            }
            Check::Dns(check) => Some(dns::check(check).await),
            Check::Prometheus { server, query, bounds } => {
                Some(prometheus::check(server, query, *bounds).await)
            }
            Check::PrometheusQuiet { server, quiet } => Some(prometheus::quiet(server, quiet).await),
            Check::AlertmanagerQuiet { server, quiet } => Some(alertmanager::quiet(server, quiet).await),
            Check::Tcp { address, within } => Some(tcp::connect(address, *within).await),
            Check::Command { argv, within } => {
                Some(command::run(argv, *within).await.and_then(|ended| ended.success().map(drop)))
            }
            Check::Haproxy { pool, up, within } => Some(haproxy::at_least(pool, *up, *within).await),
            Check::Group { .. } => None,
        }
    }
}
