//! Connections as a customer sees them, measured in the guest on its own clock.

use crate::guest::Guest;

/// Round trips, in milliseconds, sorted.
#[derive(Debug, Clone)]
pub struct Times(Vec<f64>);

impl Times {
    pub fn least(&self) -> f64 {
        self.0[0]
    }

    pub fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    pub fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// What lies between these fractions of the sample: an emulated processor's worst is no property
    /// of the network.
    pub fn between(&self, low: f64, high: f64) -> (f64, f64) {
        (self.0[quantile(self.0.len(), low)], self.0[quantile(self.0.len(), high)])
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index in a small sample"
)]
fn quantile(length: usize, fraction: f64) -> usize {
    ((length - 1) as f64 * fraction).round() as usize
}

impl Guest {
    /// Round trips of a byte on one connection, seen from a network namespace or (empty) the host's own.
    #[track_caller]
    pub fn round_trips(&mut self, netns: &str, address: &str, port: u16, count: u32) -> Times {
        self.times(netns, &format!("time {address} {port} {count}"))
    }

    /// What new connections take.
    #[track_caller]
    pub fn connects(&mut self, netns: &str, address: &str, port: u16, count: u32) -> Times {
        self.times(netns, &format!("connect {address} {port} {count}"))
    }

    #[track_caller]
    fn times(&mut self, netns: &str, what: &str) -> Times {
        let inside = if netns.is_empty() { String::new() } else { format!("ip netns exec {netns} ") };
        let said = self.check(&format!("{inside}/opt/test/net.py {what}"));
        let mut times: Vec<f64> = said.lines().map(|line| line.parse().expect("a number")).collect();
        times.sort_by(f64::total_cmp);
        assert!(!times.is_empty(), "nothing was measured: {what}");
        Times(times)
    }
}
