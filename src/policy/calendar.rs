//! Freezes: times in which nothing runs.

use jiff::Timestamp;

use crate::config::Freeze;

/// The freeze in force at `wall`, the one that lasts longest if there are several.
#[must_use]
pub fn frozen(freezes: &[Freeze], wall: Timestamp) -> Option<&Freeze> {
    freezes
        .iter()
        .filter(|freeze| freeze.from <= wall && wall < freeze.until)
        .max_by_key(|freeze| freeze.until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_exclusive_and_the_longest_wins() {
        let freeze = |name: &str, from: &str, until: &str| Freeze {
            name: name.to_owned(),
            from: from.parse().unwrap(),
            until: until.parse().unwrap(),
            zone: "UTC".to_owned(),
        };
        let freezes = [
            freeze("short", "2026-11-20T00:00Z", "2026-11-21T00:00Z"),
            freeze("long", "2026-11-20T12:00Z", "2026-11-25T00:00Z"),
        ];
        let name = |at: &str| frozen(&freezes, at.parse().unwrap()).map(|freeze| freeze.name.as_str());
        assert_eq!(name("2026-11-19T23:59:59Z"), None);
        assert_eq!(name("2026-11-20T00:00Z"), Some("short"));
        assert_eq!(name("2026-11-20T13:00Z"), Some("long"));
        assert_eq!(name("2026-11-24T23:59:59Z"), Some("long"));
        assert_eq!(name("2026-11-25T00:00Z"), None);
    }
}
