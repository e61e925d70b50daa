//! A host's state as others see it, to compare before and after: `guest/state.py` says what is in it.

use std::collections::BTreeMap;

use crate::guest::Guest;

/// How often a host that is not yet as it was is looked at again: the kernel deletes devices and
/// namespaces a little after it was asked to.
const LOOKS: u32 = 5;

/// All that a fault could have left on a host, one thing a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State(String);

impl State {
    /// Lines that are only in one of the two, each with `-` (gone) or `+` (new).
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        self.0.lines().for_each(|line| *counts.entry(line).or_default() -= 1);
        later.0.lines().for_each(|line| *counts.entry(line).or_default() += 1);
        let sign = |count: i64| if count < 0 { '-' } else { '+' };
        let changed = counts.into_iter().filter(|(_, count)| *count != 0);
        changed.map(|(line, count)| format!("{} {line}", sign(count))).collect()
    }

    /// The lines about one kind of thing (`qdisc`, `nft`, `link`, `cgroup`, `file` …).
    pub fn of(&self, kind: &str) -> Vec<&str> {
        let prefix = format!("{kind} ");
        self.0.lines().filter(|line| line.starts_with(&prefix)).collect()
    }
}

impl Guest {
    /// The state of the host now.
    #[track_caller]
    pub fn snapshot(&mut self) -> State {
        State(self.check("/opt/test/state.py"))
    }

    /// The host must be as it was.
    #[track_caller]
    pub fn must_be_as(&mut self, before: &State) {
        self.must_be_as_but_for(before, &[]);
    }

    /// The host must be as it was, but for lines that contain one of these texts.
    #[track_caller]
    pub fn must_be_as_but_for(&mut self, before: &State, but: &[&str]) {
        let mut left = Vec::new();
        for _ in 0..LOOKS {
            left = before.difference(&self.snapshot());
            left.retain(|line| !but.iter().any(|text| line.contains(text)));
            if left.is_empty() {
                return;
            }
        }
        panic!("the host is not as it was:\n{}", left.join("\n"));
    }
}
