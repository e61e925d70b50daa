//! Quantities as people write them: `"1m 30s"`, `"50%"`.
//!
//! Pure text in, numbers out, and back without loss. What range makes sense for a quantity is the
//! caller's to say; here only what can be said at all is decided.

use std::{fmt::Write as _, time::Duration};

use crate::experiment::Percent;

/// The longest duration that can be written: anything beyond is a slip of the pen.
pub const LONGEST: Duration = Duration::from_hours(366 * 24);

/// Units of time, longest first, in nanoseconds.
const UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("a duration cannot be empty")]
    Empty,
    #[error("a duration cannot be negative")]
    Negative,
    #[error("`{0}` is not a duration: a number is expected at `{1}`")]
    NoNumber(String, String),
    #[error("the number {0} has no unit")]
    NoUnit(String),
    #[error("unknown unit of time `{0}`")]
    UnknownUnit(String),
    #[error("units must go from long to short, each once: `{0}` is out of place")]
    Disorder(String),
    #[error("a duration cannot be finer than a nanosecond")]
    TooFine,
    #[error("a duration cannot be longer than 366 days")]
    TooLong,
}

/// Reads `"250ms"`, `"1.5s"`, `"1m 30s"`, `"1h30m"`. Units: d, h, m, s, ms, us (or µs), ns.
///
/// # Errors
/// When the text says no duration, or one above [`LONGEST`]. Zero is a duration here.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(DurationError::Empty);
    }
    if rest.starts_with('-') {
        return Err(DurationError::Negative);
    }
    let (mut total, mut next_unit) = (0_u128, 0);
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit() || c == '.');
        if number.is_empty() {
            return Err(DurationError::NoNumber(clip(text), clip(rest)));
        }
        let (unit, after) = split(after.trim_start(), char::is_alphabetic);
        let at = unit_at(number, unit)?;
        if at < next_unit {
            return Err(DurationError::Disorder(clip(unit)));
        }
        next_unit = at + 1;
        total = total.saturating_add(scaled(text, number, UNITS[at].1)?);
        rest = after.trim_start();
    }
    if total > LONGEST.as_nanos() {
        return Err(DurationError::TooLong);
    }
    u64::try_from(total).map(Duration::from_nanos).map_err(|_| DurationError::TooLong)
}

/// Writes a duration so that [`duration`] reads the same one: `1m 30s`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, nanos) in UNITS {
        let count = rest / nanos;
        rest %= nanos;
        if count > 0 {
            let gap = if text.is_empty() { "" } else { " " };
            write!(text, "{gap}{count}{unit}").expect("writing to a string succeeds");
        }
    }
    text
}

/// Why a text is not a percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PercentError {
    #[error("`{0}` is not a percentage")]
    NotOne(String),
    #[error("a percentage cannot be above 100%")]
    TooMuch,
    #[error("a percentage cannot be negative")]
    Negative,
}

/// Reads `"50%"` and `"0.5%"`.
///
/// # Errors
/// When the text is not a plain decimal number followed by `%`, or is outside 0 to 100.
pub fn percent(text: &str) -> Result<Percent, PercentError> {
    let not_one = || PercentError::NotOne(clip(text));
    let number = text.trim().strip_suffix('%').ok_or_else(not_one)?.trim_end();
    if number.starts_with('-') {
        return Err(PercentError::Negative);
    }
    if !is_decimal(number) {
        return Err(not_one());
    }
    let value: f64 = number.parse().map_err(|_| not_one())?;
    Percent::new(value).ok_or(PercentError::TooMuch)
}

/// The start of a text, for use in a message: at most 40 characters.
#[must_use]
pub fn clip(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

fn unit_at(number: &str, unit: &str) -> Result<usize, DurationError> {
    // Both code points that print as "µ": MICRO SIGN and GREEK SMALL LETTER MU.
    let plain = if matches!(unit, "\u{b5}s" | "\u{3bc}s") { "us" } else { unit };
    match UNITS.iter().position(|(name, _)| *name == plain) {
        Some(at) => Ok(at),
        None if unit.is_empty() => Err(DurationError::NoUnit(clip(number))),
        None => Err(DurationError::UnknownUnit(clip(unit))),
    }
}

/// `number` times `nanos`, exactly.
fn scaled(text: &str, number: &str, nanos: u128) -> Result<u128, DurationError> {
    if !is_decimal(number) {
        return Err(DurationError::NoNumber(clip(text), clip(number)));
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    // Nanoseconds in a day have 14 digits; a longer fraction is finer than one in any unit.
    if whole.trim_start_matches('0').len() > 20 {
        return Err(DurationError::TooLong);
    }
    let places =
        u32::try_from(fraction.len()).ok().filter(|n| *n <= 14).ok_or(DurationError::TooFine)?;
    let digits = |text: &str| text.bytes().fold(0_u128, |n, b| n * 10 + u128::from(b - b'0'));
    let parts = digits(fraction) * nanos;
    let scale = 10_u128.pow(places);
    if !parts.is_multiple_of(scale) {
        return Err(DurationError::TooFine);
    }
    Ok(digits(whole) * nanos + parts / scale)
}

/// Digits with at most one point between them.
fn is_decimal(number: &str) -> bool {
    let mut halves = number.splitn(2, '.');
    halves.all(|half| !half.is_empty() && half.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(text: &str) -> u128 {
        duration(text).unwrap().as_nanos()
    }

    #[test]
    fn durations_are_read_exactly() {
        assert_eq!(ns("250ms"), 250_000_000);
        assert_eq!(ns("1.5s"), 1_500_000_000);
        assert_eq!(ns("1m 30s"), 90_000_000_000);
        assert_eq!(ns("1h30m"), 5_400_000_000_000);
        assert_eq!(ns(" 2 d "), 172_800_000_000_000);
        assert_eq!(ns("3µs"), 3_000);
        assert_eq!(ns("0.1us"), 100);
        assert_eq!(ns("0s"), 0);
    }

    #[test]
    fn what_is_no_duration_says_why() {
        let why = |text: &str| duration(text).unwrap_err().to_string();
        assert_eq!(why(""), "a duration cannot be empty");
        assert_eq!(why("-5s"), "a duration cannot be negative");
        assert_eq!(why("250"), "the number 250 has no unit");
        assert_eq!(why("5sec"), "unknown unit of time `sec`");
        assert_eq!(why("1s 1m"), "units must go from long to short, each once: `m` is out of place");
        assert_eq!(why("1s 2s"), "units must go from long to short, each once: `s` is out of place");
        assert_eq!(why("soon"), "`soon` is not a duration: a number is expected at `soon`");
        assert_eq!(why("1.2.3s"), "`1.2.3s` is not a duration: a number is expected at `1.2.3`");
        assert_eq!(why("0.1ns"), "a duration cannot be finer than a nanosecond");
        assert_eq!(why("367d"), "a duration cannot be longer than 366 days");
        assert_eq!(why(&format!("{}s", "9".repeat(100))), "a duration cannot be longer than 366 days");
        assert_eq!(why("99999999999999999999d"), "a duration cannot be longer than 366 days");
    }

    #[test]
    fn percentages_are_plain_numbers_up_to_a_hundred() {
        assert_eq!(percent("50%"), Ok(Percent::new(50.0).unwrap()));
        assert_eq!(percent("0.5 %"), Ok(Percent::new(0.5).unwrap()));
        assert_eq!(percent("100.1%"), Err(PercentError::TooMuch));
        assert_eq!(percent("-1%"), Err(PercentError::Negative));
        for text in ["50", "%", "1e1%", "NaN%", ".5%", "5.%", "+5%", "inf%"] {
            assert_eq!(percent(text), Err(PercentError::NotOne(text.to_owned())), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_shown_duration_is_read_back(nanos in 0..=366 * 86_400_000_000_000_u64) {
            let exact = Duration::from_nanos(nanos);
            proptest::prop_assert_eq!(duration(&show_duration(exact)), Ok(exact));
        }

        #[test]
        fn no_text_makes_units_panic(text in "[0-9.a-zµ% -]{0,40}") {
            let _ = (duration(&text), percent(&text));
        }
    }
}
