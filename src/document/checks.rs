//! Reads questions with a yes or no: steady-state probes, and the same questions as conditions.
//!
//! Readiness sources of groups are [`ready()`]'s. What a check asks and what it expects are tables of
//! their own, so the same word (`headers`) can stand in both.

use std::time::Duration;

use super::{
    address, later,
    reader::{Failed, Read, Report, Shape, Table, listed},
    tree::{Node, Value},
    values,
};
use crate::experiment::{Check, Probe};

mod dns;
mod haproxy;
mod http;
mod prometheus;
mod ready;

pub use haproxy::pool;
pub use ready::ready;

const CHECKS: &[&str] =
    &["http", "tcp", "dns", "prometheus", "alertmanager", "haproxy", "command", "group"];
/// Without `group`: what holds of a group the limiter asks by itself.
const CONDITIONS: &[&str] = &["http", "tcp", "dns", "prometheus", "alertmanager", "haproxy", "command"];
const PROBE: &[&str] = &["name", "expect", "every", "tolerate"];

/// What belongs to the question of some checks only, and to which.
const QUESTION: &[&str] = &["headers", "server", "query", "quiet", "fresh", "watchdog", "backend"];
const ASKED_OF: &[(&str, &[&str])] = &[
    ("headers", &["http", "prometheus", "alertmanager"]),
    ("server", &["dns"]),
    ("query", &["prometheus"]),
    ("quiet", &["prometheus", "alertmanager"]),
    ("fresh", &["prometheus"]),
    ("watchdog", &["alertmanager"]),
    ("backend", &["haproxy"]),
];

/// `every` of a probe, where it is not given.
pub const EVERY: Duration = Duration::from_secs(1);
/// `within` of a probe, where it is not given.
pub const WITHIN: Duration = Duration::from_secs(1);
/// `within` of a readiness source, where it is not given.
pub const READY_WITHIN: Duration = Duration::from_millis(500);

const SHORTEST_WITHIN: Duration = Duration::from_millis(1);
const LONGEST_WITHIN: Duration = Duration::from_mins(1);

/// A `[[probe]]`: exactly one check, and what it expects.
pub fn probe(node: &Node, report: &Report) -> Read<Probe> {
    let keys: &[&[&str]] = &[PROBE, CHECKS, QUESTION];
    let shape = Shape { what: "a probe", keys, known: later::nothing };
    let table = Table::open(node, report, &shape)?;
    let name = table.need("name", "name = \"checkout answers\"", values::line);
    let every = values::duration(Duration::from_millis(10)..=Duration::from_hours(1));
    let every = table.or("every", EVERY, every);
    let check = check(&table, shape.what, CHECKS, every.map(Some));
    let tolerate = table.or("tolerate", 0, values::count(0..=1000, "misses"));
    Ok(Probe { name: name?, check: check?, every: every?, tolerate: tolerate? })
}

/// A single question with what it expects, outside of any experiment.
///
/// # Errors
/// When it is not exactly one check, or asks for more than its answer.
pub fn condition(node: &Node, report: &Report) -> Read<Check> {
    let keys: &[&[&str]] = &[CONDITIONS, QUESTION, &["expect"]];
    let shape = Shape { what: "a condition", keys, known: later::in_condition };
    let table = Table::open(node, report, &shape)?;
    check(&table, shape.what, CONDITIONS, Ok(None))
}

/// `every`: the pace at which it is asked, if that is said beside it.
fn check(
    table: &Table<'_>,
    what: &str,
    checks: &'static [&'static str],
    every: Read<Option<Duration>>,
) -> Read<Check> {
    let kind = one_of(table, checks, what, "http = \"http://127.0.0.1:8080/healthz\"")?;
    only_for(table, ASKED_OF, kind, what);
    match kind {
        "http" => http::check(table, every),
        "dns" => dns::check(table),
        "prometheus" => prometheus::prometheus(table),
        "alertmanager" => prometheus::alertmanager(table),
        "haproxy" => haproxy::check(table),
        "tcp" => {
            let address = table.need(kind, "", address::endpoint);
            let within = expect(table, "what a tcp probe expects", &["within"], within_of);
            Ok(Check::Tcp { address: address?, within: within? })
        }
        "group" => {
            let group = table.need(kind, "", values::some_group);
            if !table.has("expect") {
                return Err(table.missing("expect", "expect = { ready = 3 }"));
            }
            let ready = expect(table, "what a group probe expects", &["ready"], |expect| {
                expect.map_or(Ok(0), |table| table.need("ready", "ready = 3", ready_count))
            });
            Ok(Check::Group { group: group?, ready: ready? })
        }
        _ => {
            let argv = table.need(kind, "", argv);
            let within = expect(table, "what a command probe expects", &["within"], within_of);
            Ok(Check::Command { argv: argv?, within: within? })
        }
    }
}

/// Opens the table `expect`, if there is one, and reads it.
fn expect<T>(
    table: &Table<'_>,
    what: &str,
    keys: &[&'static str],
    read: impl FnOnce(Option<&Table<'_>>) -> Read<T>,
) -> Read<T> {
    let Some(node) = table.node("expect") else { return read(None) };
    let shape = Shape { what, keys: &[keys], known: later::nothing };
    read(Some(&Table::open(node, table.report, &shape)?))
}

fn within_of(expect: Option<&Table<'_>>) -> Read<Duration> {
    expect.map_or(Ok(WITHIN), |table| within(table, WITHIN))
}

/// Reports keys that belong to other kinds of question than this.
fn only_for(table: &Table<'_>, keys: &[(&str, &[&'static str])], kind: &str, what: &str) {
    for (key, kinds) in keys.iter().filter(|(_, kinds)| !kinds.contains(&kind)) {
        if let Some(node) = table.node(key) {
            let kinds = listed(kinds.iter().copied());
            let what = what.trim_start_matches("a ");
            table.report.error(node, format!("`{key}` is for {kinds}, and this {what} is `{kind}`"));
        }
    }
}

fn ready_count(node: &Node, report: &Report) -> Read<u32> {
    if let Value::Integer(0) = node.value {
        return Err(report.error(node, "a group always has at least 0 ready: this would ask nothing"));
    }
    values::count(1..=100_000, "ready instances")(node, report)
}

fn within(table: &Table<'_>, default: Duration) -> Read<Duration> {
    table.or("within", default, values::duration(SHORTEST_WITHIN..=LONGEST_WITHIN))
}

/// A program with its arguments. There is no shell.
fn argv(node: &Node, report: &Report) -> Read<Vec<String>> {
    if let Value::Text(_) = node.value {
        let help =
            "a program and its arguments, without a shell: [\"/usr/bin/test\", \"-e\", \"/run/ok\"]";
        return Err(report.advise(node, "expected a list of strings, found a string", help));
    }
    let argument = |node: &Node, report: &Report| match &node.value {
        Value::Text(text) if text.is_empty() => Ok(String::new()),
        _ => values::prose(node, report),
    };
    let argv = values::list(64, "strings", argument)(node, report)?;
    match argv.first() {
        Some(program) if program.starts_with('/') => Ok(argv),
        Some(_) => Err(report.advise(
            node,
            "the program must be an absolute path",
            "the agent looks in no PATH: write \"/usr/bin/…\"",
        )),
        None => Err(report.error(node, "an empty list names no program")),
    }
}

/// The one key that is given of several that exclude each other.
fn one_of(
    table: &Table<'_>,
    keys: &'static [&'static str],
    what: &str,
    example: &str,
) -> Read<&'static str> {
    let given: Vec<&'static str> = keys.iter().copied().filter(|key| table.has(key)).collect();
    let names = listed(keys.iter().copied()).replace(" and ", " or ");
    match given.as_slice() {
        [one] => Ok(one),
        [] => Err(nothing_asked(table, keys, format!("{what} needs one of {names}"), example)),
        [first, second, ..] => {
            let node = table.node(second).unwrap_or(table.node);
            let message =
                format!("{what} has exactly one of {names}, and this one has `{first}` already");
            Err(table.report.error(node, message))
        }
    }
}

/// An unknown key that was probably meant to be one of them has been reported already.
fn nothing_asked(table: &Table<'_>, keys: &[&str], message: String, example: &str) -> Failed {
    if keys.iter().any(|key| table.meant(key))
        || table.node.entries().iter().any(|entry| later::in_ready(&entry.key).is_some())
    {
        return Failed;
    }
    table.report.advise(table.node, message, format!("for example: {example}"))
}
