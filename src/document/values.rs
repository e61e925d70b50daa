//! Reads single values: numbers, words, times, names. Each function accepts one kind of value and
//! says what it expected otherwise.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{
    reader::{Failed, Read, Report, listed, nearest},
    tree::{Node, Value},
};
use crate::{
    experiment::{ANY_GROUP, GroupName, Percent},
    units::{self, DurationError, clip},
};

/// Bytes in texts that nothing else limits.
const LONGEST_TEXT: usize = 4096;

/// One line for people, such as a name or a title.
pub const LINE: usize = 200;

pub fn boolean(node: &Node, report: &Report) -> Read<bool> {
    match node.value {
        Value::Bool(flag) => Ok(flag),
        _ => Err(report.mismatch(node, "true or false")),
    }
}

/// A string; `expected` says what for.
pub fn string<'a>(node: &'a Node, report: &Report, expected: &str) -> Read<&'a str> {
    let Value::Text(text) = &node.value else { return Err(report.mismatch(node, expected)) };
    if text.len() > LONGEST_TEXT {
        return Err(report.error(node, format!("this text is too long: at most {LONGEST_TEXT} bytes")));
    }
    if text.trim().is_empty() {
        return Err(report.error(node, format!("expected {expected}, found an empty string")));
    }
    // They end up in terminals, logs and headers.
    match text.chars().find(|c| c.is_control() && *c != '\n') {
        Some(c) => Err(report.error(node, format!("the control character {c:?} is not allowed here"))),
        None => Ok(text),
    }
}

/// Text that may have several lines.
pub fn prose(node: &Node, report: &Report) -> Read<String> {
    string(node, report, "some text").map(str::to_owned)
}

/// A single line, at most [`LINE`] bytes.
pub fn line(node: &Node, report: &Report) -> Read<String> {
    let text = string(node, report, "a line of text")?;
    if text.contains('\n') {
        return Err(report.error(node, "this must be a single line"));
    }
    if text.len() > LINE {
        return Err(report.error(node, format!("this text is too long: at most {LINE} bytes")));
    }
    Ok(text.to_owned())
}

/// A name that also serves in addresses and metrics.
pub fn identifier(node: &Node, report: &Report) -> Read<String> {
    let name = line(node, report)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.len() <= 64 && name.chars().all(plain) {
        return Ok(name);
    }
    let help = "names have at most 64 letters, digits, `-`, `_` and `.`";
    Err(report.advise(node, format!("`{}` is not a name", clip(&name)), help))
}

pub fn group_name(node: &Node, report: &Report) -> Read<GroupName> {
    identifier(node, report).map(GroupName)
}

/// A group as an experiment names it: by its name, or `@any`.
pub fn some_group(node: &Node, report: &Report) -> Read<GroupName> {
    match &node.value {
        Value::Text(name) if name == ANY_GROUP => Ok(GroupName(name.clone())),
        Value::Text(name) if name.starts_with('@') => {
            let message = format!("`{}` is not a group", clip(name));
            Err(report.advise(node, message, format!("the only word of this kind is \"{ANY_GROUP}\"")))
        }
        _ => group_name(node, report),
    }
}

/// An absolute path.
pub fn path(node: &Node, report: &Report) -> Read<PathBuf> {
    absolute(node, report).map(PathBuf::from)
}

/// An absolute path as text.
pub fn absolute(node: &Node, report: &Report) -> Read<String> {
    let text = string(node, report, "an absolute path")?;
    if text.contains('\n') {
        return Err(report.error(node, "a path must be a single line"));
    }
    if !text.starts_with('/') {
        let message = format!("`{}` is not an absolute path", clip(text));
        return Err(report.advise(node, message, "paths begin with `/`"));
    }
    Ok(text.to_owned())
}

/// A whole number in a range; `what` names it, in the plural.
pub fn count(
    range: RangeInclusive<u32>,
    what: &'static str,
) -> impl Fn(&Node, &Report) -> Read<u32> + Clone {
    move |node, report| {
        let Value::Integer(number) = node.value else {
            return Err(report.mismatch(node, &format!("a number of {what}")));
        };
        let fits = u32::try_from(number).ok().filter(|number| range.contains(number));
        fits.ok_or_else(|| out_of_range(node, report, number, &range, what))
    }
}

fn out_of_range(
    node: &Node,
    report: &Report,
    number: i128,
    range: &RangeInclusive<u32>,
    what: &str,
) -> Failed {
    let (least, most) = (range.start(), range.end());
    if number < i128::from(*least) {
        let least = if *least == 0 { "zero".to_owned() } else { least.to_string() };
        return report.error(node, format!("the number of {what} cannot be below {least}"));
    }
    report.error(node, format!("the number of {what} cannot be above {most}"))
}

/// A TCP or UDP port.
pub fn port(node: &Node, report: &Report) -> Read<u16> {
    let Value::Integer(number) = node.value else {
        return Err(report.mismatch(node, "a port number such as 8080"));
    };
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| report.error(node, "a port number lies between 1 and 65535"))
}

/// A time span within bounds.
pub fn duration(bounds: RangeInclusive<Duration>) -> impl Fn(&Node, &Report) -> Read<Duration> + Clone {
    move |node, report| {
        const EXPECTED: &str = "a duration such as \"250ms\"";
        if let Value::Integer(number @ 1..) = node.value {
            let message = format!("expected {EXPECTED}, found an integer");
            let help = format!("a number needs a unit: \"{number}ms\", \"{number}s\" or \"{number}m\"");
            return Err(report.advise(node, message, help));
        }
        let Value::Text(text) = &node.value else { return Err(report.mismatch(node, EXPECTED)) };
        let duration = units::duration(text).map_err(|error| no_duration(node, report, &error))?;
        let (least, most) = (*bounds.start(), *bounds.end());
        if duration.is_zero() {
            return Err(report.error(node, "a duration of zero would do nothing"));
        }
        if duration < least {
            let least = units::show_duration(least);
            return Err(report.error(node, format!("too short: at least \"{least}\" here")));
        }
        if duration > most {
            let most = units::show_duration(most);
            return Err(report.error(node, format!("too long: at most \"{most}\" here")));
        }
        Ok(duration)
    }
}

fn no_duration(node: &Node, report: &Report, error: &DurationError) -> Failed {
    let message = error.to_string();
    match error {
        DurationError::NoUnit(number) => {
            let help = format!("for example \"{number}ms\", \"{number}s\" or \"{number}m\"");
            report.advise(node, message, help)
        }
        DurationError::UnknownUnit(_) => {
            report.advise(node, message, "the units are `d`, `h`, `m`, `s`, `ms`, `us` and `ns`")
        }
        DurationError::Empty | DurationError::NoNumber(..) => {
            report.advise(node, message, "durations look like \"250ms\", \"1.5s\" or \"1m 30s\"")
        }
        _ => report.error(node, message),
    }
}

/// `"50%"`; zero is one.
pub fn percent(node: &Node, report: &Report) -> Read<Percent> {
    const EXPECTED: &str = "a percentage such as \"50%\"";
    let Value::Text(text) = &node.value else {
        if let Value::Integer(number) = node.value {
            let message = format!("expected {EXPECTED}, found an integer");
            return Err(report.advise(node, message, format!("percentages are strings: \"{number}%\"")));
        }
        return Err(report.mismatch(node, EXPECTED));
    };
    units::percent(text).map_err(|error| match error {
        units::PercentError::NotOne(_) => {
            report.advise(node, error.to_string(), "percentages look like \"50%\" or \"0.5%\"")
        }
        _ => report.error(node, error.to_string()),
    })
}

/// One of a few words; `what` names the choice.
pub fn word<T: Copy>(
    what: &'static str,
    words: &'static [(&'static str, T)],
) -> impl Fn(&Node, &Report) -> Read<T> {
    move |node, report| {
        let names = || words.iter().map(|(name, _)| *name);
        let text = string(node, report, &format!("{what}: one of {}", listed(names())))?;
        match words.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(*value),
            None => Err(no_such(node, report, what, text, names())),
        }
    }
}

/// Reports a word that is not among the valid ones.
pub fn no_such<'a>(
    node: &Node,
    report: &Report,
    what: &str,
    text: &str,
    words: impl Iterator<Item = &'a str> + Clone,
) -> Failed {
    let message = format!("`{}` is not {what}", clip(text));
    match nearest(text, words.clone()) {
        Some(near) => report.advise(node, message, format!("did you mean \"{near}\"?")),
        None => report.advise(node, message, format!("valid here: {}", listed(words))),
    }
}

/// A list of at most so many items; all of them are read, whatever is wrong with one.
pub fn list<'a, T>(
    most: usize,
    what: &'static str,
    read: impl Fn(&'a Node, &'a Report) -> Read<T>,
) -> impl Fn(&'a Node, &'a Report) -> Read<Vec<T>> {
    move |node, report| {
        let Value::List(items) = &node.value else {
            return Err(report.mismatch(node, &format!("a list of {what}")));
        };
        if items.len() > most {
            let message = format!("{} {what} are too many: at most {most}", items.len());
            return Err(report.error(node, message));
        }
        let read: Vec<Read<T>> = items.iter().map(|item| read(item, report)).collect();
        read.into_iter().collect()
    }
}

/// A list, or a single item in its place.
pub fn one_or_more<'a, T>(
    most: usize,
    what: &'static str,
    read: impl Fn(&'a Node, &'a Report) -> Read<T>,
) -> impl Fn(&'a Node, &'a Report) -> Read<Vec<T>> {
    move |node, report| {
        let Value::List(items) = &node.value else { return read(node, report).map(|one| vec![one]) };
        if items.is_empty() {
            return Err(report.error(node, format!("an empty list of {what} matches nothing")));
        }
        list(most, what, &read)(node, report)
    }
}

/// Reports every item whose key an earlier item has too.
pub fn unique<K: PartialEq>(
    nodes: &[Node],
    report: &Report,
    what: &str,
    key: &str,
    of: impl Fn(&Node) -> Option<K>,
) {
    let keys: Vec<Option<K>> = nodes.iter().map(&of).collect();
    for (at, node) in nodes.iter().enumerate() {
        let Some(first) = keys[..at].iter().position(|other| other.is_some() && *other == keys[at])
        else {
            continue;
        };
        let place = node.get(key).unwrap_or(node);
        let first = &nodes[first];
        report.error(place, format!("{what} of `{}` is the same: each needs its own", first.path));
    }
}
