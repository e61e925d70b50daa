//! Text for people: wrapping, aligned columns, durations, and strings made safe to print.
//!
//! Pure functions of their arguments. Widths are counted in characters.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::view::FreezeView;

/// Replaces what a terminal would act on. Names and command lines come from any process of a host.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// [`clean`] for every string of a document.
pub fn clean_value(value: &mut Value) {
    match value {
        Value::String(text) if text.chars().any(char::is_control) => *text = clean(text),
        Value::Array(items) => items.iter_mut().for_each(clean_value),
        Value::Object(fields) => fields.values_mut().for_each(clean_value),
        _ => {}
    }
}

/// A freeze that is in force, in a line.
#[must_use]
pub fn freeze(freeze: &FreezeView) -> String {
    let until = freeze.until.map(|until| format!(" until {until}")).unwrap_or_default();
    let because = freeze.because.as_ref().map(|because| format!(" ({because})")).unwrap_or_default();
    format!("{}{until}{because}", freeze.name)
}

/// Number of characters.
#[must_use]
pub fn width(text: &str) -> usize {
    text.chars().count()
}

/// Cut to `most` characters, the last one an ellipsis where something was lost.
#[must_use]
pub fn fit(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most.saturating_sub(1)).collect();
    if most > 0 {
        cut.push('…');
    }
    cut
}

/// Cut to `most` characters and filled with spaces up to it.
#[must_use]
pub fn pad(text: &str, most: usize) -> String {
    let mut fitted = fit(text, most);
    fitted.extend(std::iter::repeat_n(' ', most.saturating_sub(width(&fitted))));
    fitted
}

/// Breaks at spaces so that no line is wider than `most`; a word that is wider is broken.
#[must_use]
pub fn wrap(text: &str, most: usize) -> Vec<String> {
    let most = most.max(8);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let mut word: Vec<char> = word.chars().collect();
            let gap = usize::from(!line.is_empty());
            if width(&line) + gap + word.len() > most && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            while word.len() > most {
                lines.push(word.drain(..most).collect());
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

/// `text` wrapped, every line behind `indent` spaces.
#[must_use]
pub fn indent(text: &str, by: usize, most: usize) -> String {
    let lines = wrap(text, most.saturating_sub(by));
    lines.iter().map(|line| format!("{:by$}{line}", "")).collect::<Vec<_>>().join("\n")
}

/// Rows in aligned columns two spaces apart; the last column is wrapped under itself.
#[must_use]
pub fn columns(rows: &[Vec<String>], most: usize) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    if count == 0 {
        return Vec::new();
    }
    let widest = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|c| width(c)).max();
    let mut widths: Vec<usize> = (0..count - 1).map(|at| widest(at).unwrap_or(0)).collect();
    // The last column keeps at least a quarter of the line: the widest of the others gives way.
    let room = most.saturating_sub(most / 4 + 2 * widths.len());
    while widths.iter().sum::<usize>() > room {
        let Some(widest) = widths.iter_mut().max() else { break };
        *widest -= 1;
    }
    rows.iter().flat_map(|row| columns_row(row, &widths, most)).collect()
}

fn columns_row(row: &[String], widths: &[usize], most: usize) -> Vec<String> {
    let mut head = String::new();
    for (at, width) in widths.iter().enumerate() {
        head.push_str(&pad(row.get(at).map_or("", String::as_str), *width));
        head.push_str("  ");
    }
    let last = row.get(widths.len()).map_or("", String::as_str);
    let hang = width(&head);
    let mut lines = Vec::new();
    for (at, part) in wrap(last, most.saturating_sub(hang)).into_iter().enumerate() {
        let line = if at == 0 { format!("{head}{part}") } else { format!("{:hang$}{part}", "") };
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// `850ms`, `4.2s`, `42s`, `12m 05s`, `3h 07m`, `5d 04h`
#[must_use]
pub fn duration(time: Duration) -> String {
    let (seconds, millis) = (time.as_secs(), time.as_millis());
    match seconds {
        0 => format!("{millis}ms"),
        1..10 if time.subsec_millis() >= 100 => format!("{seconds}.{}s", time.subsec_millis() / 100),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `m:ss`, for what counts down.
#[must_use]
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Time from `earlier` to `later`; zero when it is the other way round.
#[must_use]
pub fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// `3 faults`, `1 fault`, `2 tries`
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_never_exceeds_the_width_and_loses_nothing() {
        let text = "refused: group checkout has 4 ready, floor 3 averyveryverylongwordindeed end";
        for most in 8..90 {
            let lines = wrap(text, most);
            assert!(lines.iter().all(|line| width(line) <= most), "{most}: {lines:?}");
            let squeeze = |text: &str| text.replace(' ', "");
            assert_eq!(squeeze(&lines.concat()), squeeze(text));
        }
    }

    #[test]
    fn columns_align_and_wrap_the_last_one_under_itself() {
        let rows = vec![
            vec!["a".to_owned(), "one two three four five six seven".to_owned()],
            vec!["bcd".to_owned(), "x".to_owned()],
        ];
        let lines = columns(&rows, 24);
        assert_eq!(lines, ["a    one two three four", "     five six seven", "bcd  x"]);
    }

    #[test]
    fn escape_sequences_of_foreign_processes_never_reach_the_terminal() {
        let mut value = serde_json::json!({ "a": ["\u{1b}[2Jx", { "b": "fine" }] });
        clean_value(&mut value);
        assert_eq!(value, serde_json::json!({ "a": ["\u{fffd}[2Jx", { "b": "fine" }] }));
    }

    #[test]
    fn durations_read_well() {
        let cases = [
            (0, "0ms"),
            (999, "999ms"),
            (4_250, "4.2s"),
            (5_000, "5s"),
            (59_000, "59s"),
            (725_000, "12m 05s"),
        ];
        for (millis, text) in cases {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(clock(Duration::from_secs(65)), "1:05");
    }
}
