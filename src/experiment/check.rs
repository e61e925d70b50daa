//! What the checks of steady states ask and expect, where that is more than a word: the same for
//! probes, conditions and readiness sources.
//!
//! Valid when made, like all of [`super`]; asking is `probe`'s work.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Header names as they were written, with their values.
pub type Headers = BTreeMap<String, String>;

/// Labels of an alert; `alertname` is among them.
pub type Labels = BTreeMap<String, String>;

/// A GET, and what makes its answer a good one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpCheck {
    pub url: String,
    /// Sent beside those of every request, or in their place.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// Any of them will do.
    pub status: Vec<u16>,
    /// Somewhere in the body.
    pub body: Option<String>,
    /// Each must be in the answer's head, with exactly this value.
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub answer: Headers,
    /// By JSON pointer into the body.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub json: BTreeMap<String, JsonExpect>,
    /// For all of it, connecting included.
    pub within: Duration,
    /// Judged over a window instead of answer by answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentiles: Option<Percentiles>,
}

impl HttpCheck {
    /// Expects status 200 and nothing else.
    #[must_use]
    pub fn new(url: impl Into<String>, within: Duration) -> Self {
        Self {
            url: url.into(),
            headers: Headers::new(),
            status: vec![200],
            body: None,
            answer: Headers::new(),
            json: BTreeMap::new(),
            within,
            percentiles: None,
        }
    }
}

/// What is expected of one place in a JSON document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JsonExpect {
    /// Exactly this string, number or boolean.
    Is(serde_json::Value),
    /// A number within these.
    Within(Bounds),
}

/// A lower and an upper bound, both inclusive; at least one of them is given, and finite.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    pub at_least: Option<f64>,
    pub at_most: Option<f64>,
}

impl Bounds {
    /// What is wrong with a number, if anything; what is no finite number is never right.
    #[must_use]
    pub fn broken_by(self, number: f64) -> Option<String> {
        let Self { at_least, at_most } = self;
        if !number.is_finite() {
            return Some(format!("{number}, which is no number to judge by"));
        }
        match (at_least.filter(|least| number < *least), at_most.filter(|most| number > *most)) {
            (Some(least), _) => Some(format!("{number}, and at least {least} is expected")),
            (None, Some(most)) => Some(format!("{number}, and at most {most} is expected")),
            (None, None) => None,
        }
    }
}

/// How slow a share of all answers may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Never empty, each quantile once.
    pub limits: BTreeMap<Quantile, Duration>,
    pub window: Duration,
    /// How many answers the window has at the probe's pace.
    pub answers: u32,
}

/// A share of all answers, in hundredths of a percent: 1 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Quantile(u16);

impl Quantile {
    /// Reads `p99` or `p99.9`: above zero, below a hundred, two decimals at most.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let digits = name.strip_prefix('p')?;
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let plain =
            |text: &str| (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        if !plain(whole) || !plain(fraction) {
            return None;
        }
        let hundredths = format!("{fraction:0<2}").parse::<u16>().ok()?;
        let share = whole.parse::<u16>().ok()? * 100 + hundredths;
        (share > 0).then_some(Self(share))
    }

    /// The fewest answers of which one can be beyond it: a hundred for p99.
    #[must_use]
    pub fn answers_needed(self) -> u32 {
        10_000_u32.div_ceil(10_000 - u32::from(self.0))
    }

    /// The place, counted from zero, of this quantile among so many sorted answers (the nearest
    /// rank: never between two).
    #[must_use]
    pub fn place(self, count: usize) -> usize {
        (count * usize::from(self.0)).div_ceil(10_000).max(1) - 1
    }
}

impl fmt::Display for Quantile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, hundredths) = (self.0 / 100, self.0 % 100);
        write!(f, "p{whole}")?;
        if hundredths > 0 {
            f.write_char('.')?;
            f.write_str(format!("{hundredths:02}").trim_end_matches('0'))?;
        }
        Ok(())
    }
}

/// A question to a DNS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQuestion {
    /// Taken as a whole: no search domain is added.
    pub name: String,
    /// `None`: those of the host's resolv.conf.
    pub server: Option<SocketAddr>,
    pub record: DnsRecord,
    pub within: Duration,
}

/// A question to a DNS server, and what is expected of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCheck {
    pub question: DnsQuestion,
    /// All of these must be among the records, in the form in which [`DnsRecord`] shows them.
    pub answer: Vec<String>,
    /// Records at least; never zero.
    pub at_least: u32,
}

/// Types of records that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DnsRecord {
    A,
    Aaaa,
    Cname,
    Mx,
    Ns,
    Ptr,
    Srv,
    Txt,
}

impl DnsRecord {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
            Self::Mx => "MX",
            Self::Ns => "NS",
            Self::Ptr => "PTR",
            Self::Srv => "SRV",
            Self::Txt => "TXT",
        }
    }
}

impl fmt::Display for DnsRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a Prometheus is, and when its data is too old to speak for the present.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prometheus {
    /// Of its root, without `/api/v1`.
    pub url: String,
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// A selector whose newest sample may be `max_age` old.
    pub fresh: String,
    pub max_age: Duration,
    /// For all questions of one attempt together.
    pub within: Duration,
}

/// An Alertmanager, and how it shows that alerts reach it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alertmanager {
    /// Of its root, without `/api/v2`.
    pub url: String,
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    /// An alert that always fires, and was renewed within `max_age`; `None`: taken on trust.
    pub watchdog: Option<Labels>,
    pub max_age: Duration,
    pub within: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_by_name() {
        for (name, needed) in
            [("p50", 2), ("p90", 10), ("p99", 100), ("p99.9", 1000), ("p99.99", 10_000)]
        {
            let quantile = Quantile::from_name(name).expect(name);
            assert_eq!(quantile.to_string(), name);
            assert_eq!(quantile.answers_needed(), needed, "{name}");
        }
        assert_eq!(Quantile::from_name("p99.50").map(|q| q.to_string()), Some("p99.5".to_owned()));
        assert_eq!(Quantile::from_name("p5.05").map(|q| q.to_string()), Some("p5.05".to_owned()));
        for name in ["p0", "p100", "p", "99", "p99.", "p99.999", "p-1", "p 9", "P99", "p1.2.3"] {
            assert_eq!(Quantile::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_nearest_rank() {
        let place = |name: &str, count| Quantile::from_name(name).expect(name).place(count);
        assert_eq!([place("p50", 1), place("p50", 2), place("p50", 3)], [0, 0, 1]);
        assert_eq!([place("p99", 100), place("p99", 99), place("p99", 200)], [98, 98, 197]);
        assert_eq!(place("p0.01", 3), 0);
    }

    #[test]
    fn bounds_are_inclusive_and_nothing_else_is_a_number() {
        let bounds = Bounds { at_least: Some(3.0), at_most: Some(4.0) };
        assert_eq!([3.0, 3.5, 4.0].map(|number| bounds.broken_by(number)), [None, None, None]);
        assert_eq!(bounds.broken_by(2.0).as_deref(), Some("2, and at least 3 is expected"));
        assert_eq!(bounds.broken_by(4.5).as_deref(), Some("4.5, and at most 4 is expected"));
        let open = Bounds { at_most: None, ..bounds };
        assert!([f64::NAN, f64::INFINITY].iter().all(|number| open.broken_by(*number).is_some()));
    }
}
