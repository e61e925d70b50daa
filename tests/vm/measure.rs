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

/// What became of visitors who came at once.
#[derive(Debug, PartialEq, Eq)]
pub struct Visits {
    /// Who got an answer.
    pub open: usize,
    /// What the others were told, each.
    pub turned_away: Vec<String>,
}

fn inside(netns: &str) -> String {
    if netns.is_empty() { String::new() } else { format!("ip netns exec {netns} ") }
}

impl Guest {
    /// Round trips of a byte on one connection, seen from a network namespace or (empty) the host's own.
    #[track_caller]
    pub fn round_trips(&mut self, netns: &str, address: &str, port: u16, count: u32) -> Times {
        self.times(netns, &format!("time {address} {port} {count}"))
    }

    /// Opens connections at once (`ADDRESS PORT COUNT …`), asks each for a page: what came of each.
    #[track_caller]
    pub fn visits(&mut self, netns: &str, places: &str) -> Visits {
        let said = self.check(&format!("{}/opt/test/net.py hold 0 {places}", inside(netns)));
        let open = said.lines().filter(|line| *line == "open").count();
        Visits {
            open,
            turned_away: said.lines().filter(|line| *line != "open").map(str::to_owned).collect(),
        }
    }

    #[track_caller]
    fn times(&mut self, netns: &str, what: &str) -> Times {
        let said = self.check(&format!("{}/opt/test/net.py {what}", inside(netns)));
        let mut times: Vec<f64> = said.lines().map(|line| line.parse().expect("a number")).collect();
        times.sort_by(f64::total_cmp);
        assert!(!times.is_empty(), "nothing was measured: {what}");
        Times(times)
    }
}
