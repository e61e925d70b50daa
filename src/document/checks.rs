//! Reads questions with a yes or no: steady-state probes, and readiness sources of groups.

use std::time::Duration;

use super::{
    address, later,
    reader::{Failed, Read, Report, Shape, Table, listed},
    tree::{Node, Value},
    values,
};
use crate::{
    config::ReadySource,
    experiment::{Check, Probe},
    host::haproxy::{Pool, is_name},
};

const CHECKS: &[&str] = &["http", "tcp", "haproxy", "command", "group"];
const EXPECT: &[&str] = &["status", "body", "within", "ready"];
const UP: &[&str] = &["within", "up"];
const PROBE: &[&str] = &["name", "backend", "expect", "every", "tolerate"];

/// `every` of a probe, where it is not given.
pub const EVERY: Duration = Duration::from_secs(1);
/// `within` of a probe, where it is not given.
pub const WITHIN: Duration = Duration::from_secs(1);
/// `within` of a readiness source, where it is not given.
pub const READY_WITHIN: Duration = Duration::from_millis(500);

/// What the kernel takes for the path of a socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;

const SHORTEST_WITHIN: Duration = Duration::from_millis(1);
const LONGEST_WITHIN: Duration = Duration::from_mins(1);

/// A `[[probe]]`: exactly one check, and what it expects.
pub fn probe(node: &Node, report: &Report) -> Read<Probe> {
    let shape = Shape { what: "a probe", keys: &[PROBE, CHECKS], known: later::nothing };
    let table = Table::open(node, report, &shape)?;
    let name = table.need("name", "name = \"checkout answers\"", values::line);
    let check = check(&table);
    let every = values::duration(Duration::from_millis(10)..=Duration::from_hours(1));
    let every = table.or("every", EVERY, every);
    let tolerate = table.or("tolerate", 0, values::count(0..=1000, "misses"));
    Ok(Probe { name: name?, check: check?, every: every?, tolerate: tolerate? })
}

fn check(table: &Table<'_>) -> Read<Check> {
    let kind = one_of(table, CHECKS, "a probe", "http = \"http://127.0.0.1:8080/healthz\"")?;
    if let (Some(node), true) = (table.node("backend"), kind != "haproxy") {
        table.report.error(node, format!("`backend` is for `haproxy`, and this probe is `{kind}`"));
    }
    let answer = match kind {
        "http" => table.need(kind, "", address::url).map(|url| {
            let (status, body, within) = (vec![200], None, WITHIN);
            Check::Http { url, status, body, within }
        }),
        "tcp" => {
            table.need(kind, "", address::endpoint).map(|address| Check::Tcp { address, within: WITHIN })
        }
        "haproxy" => pool(table).map(|pool| Check::Haproxy { pool, up: 0, within: WITHIN }),
        "group" => {
            table.need(kind, "", values::group_name).map(|group| Check::Group { group, ready: 0 })
        }
        _ => table.need(kind, "", argv).map(|argv| Check::Command { argv, within: WITHIN }),
    };
    let expect = expect(table, kind)?;
    Ok(match answer? {
        Check::Http { url, .. } => {
            let Expect { status, body, within, .. } = expect;
            Check::Http { url, status, body, within }
        }
        Check::Tcp { address, .. } => Check::Tcp { address, within: expect.within },
        Check::Command { argv, .. } => Check::Command { argv, within: expect.within },
        Check::Haproxy { pool, .. } => Check::Haproxy { pool, up: expect.ready, within: expect.within },
        Check::Group { group, .. } => Check::Group { group, ready: expect.ready },
    })
}

/// What a probe expects; its check takes the part that it has.
struct Expect {
    status: Vec<u16>,
    body: Option<String>,
    within: Duration,
    ready: u32,
}

fn expect(probe: &Table<'_>, kind: &str) -> Read<Expect> {
    let default = || Expect { status: vec![200], body: None, within: WITHIN, ready: 0 };
    let Some(node) = probe.node("expect") else {
        return match kind {
            "group" => Err(probe.missing("expect", "expect = { ready = 3 }")),
            "haproxy" => Err(probe.missing("expect", "expect = { up = 3 }")),
            _ => Ok(default()),
        };
    };
    let (what, keys): (_, &[&str]) = match kind {
        "http" => ("what an http probe expects", &EXPECT[..3]),
        "group" => ("what a group probe expects", &EXPECT[3..]),
        "haproxy" => ("what a haproxy probe expects", UP),
        "tcp" => ("what a tcp probe expects", &EXPECT[2..3]),
        _ => ("what a command probe expects", &EXPECT[2..3]),
    };
    let table = Table::open(node, probe.report, &Shape { what, keys: &[keys], known: later::nothing })?;
    let status = statuses(&table);
    let body = table.find("body", values::prose);
    let within = within(&table, WITHIN);
    let ready = match kind {
        "group" => table.need("ready", "ready = 3", ready_count),
        "haproxy" => table.need("up", "up = 3", values::count(1..=100_000, "servers")),
        _ => Ok(0),
    };
    Ok(Expect { status: status?, body: body?, within: within?, ready: ready? })
}

fn ready_count(node: &Node, report: &Report) -> Read<u32> {
    if let Value::Integer(0) = node.value {
        return Err(report.error(node, "a group always has at least 0 ready: this would ask nothing"));
    }
    values::count(1..=100_000, "ready instances")(node, report)
}

fn statuses(table: &Table<'_>) -> Read<Vec<u16>> {
    table.or("status", vec![200], values::one_or_more(32, "statuses", status))
}

fn status(node: &Node, report: &Report) -> Read<u16> {
    let Value::Integer(number) = node.value else {
        return Err(report.mismatch(node, "an HTTP status such as 200"));
    };
    let status = u16::try_from(number).ok().filter(|status| (200..=599).contains(status));
    status.ok_or_else(|| report.error(node, "an HTTP status lies between 200 and 599"))
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

/// The backend of an HAProxy, in a table with its keys.
pub fn pool(table: &Table<'_>) -> Read<Pool> {
    let socket = |node: &Node, report: &Report| {
        let path = values::absolute(node, report)?;
        if path.len() > SOCKET_PATH_MAX {
            return Err(report.error(node, "no socket can have a path of more than 107 bytes"));
        }
        Ok(path)
    };
    let haproxy = table.need("haproxy", "haproxy = \"/run/haproxy/admin.sock\"", socket);
    let backend = table.need("backend", "backend = \"checkout\"", backend);
    Ok(Pool { haproxy: haproxy?, backend: backend? })
}

fn backend(node: &Node, report: &Report) -> Read<String> {
    let name = values::line(node, report)?;
    if is_name(&name) {
        return Ok(name);
    }
    let help = "HAProxy's names have letters, digits, `-`, `_`, `.` and `:`";
    Err(report.advise(node, format!("`{name}` is not the name of a backend"), help))
}

const SOURCES: &[&str] = &["http", "tcp", "haproxy", "command"];

/// `ready` of a group: a word, or a table with exactly one source.
pub fn ready(node: &Node, report: &Report) -> Read<ReadySource> {
    if let Value::Text(word) = &node.value {
        return match word.as_str() {
            "process" => Ok(ReadySource::Process),
            "systemd" => Ok(ReadySource::Systemd),
            "tcp" => Ok(ReadySource::Tcp { port: None, within: READY_WITHIN }),
            _ => Err(no_source(node, report, word)),
        };
    }
    let what = "a readiness source";
    let keys: &[&[&str]] = &[SOURCES, &["status", "body", "within", "backend"]];
    let table = Table::open(node, report, &Shape { what, keys, known: later::in_ready })?;
    let kind = one_of(&table, SOURCES, what, "http = \"http://127.0.0.1:{port}/healthz\"")?;
    if kind != "http" {
        for key in ["status", "body"] {
            if let Some(node) = table.node(key) {
                report.error(node, format!("`{key}` is for `http`, and this source is `{kind}`"));
            }
        }
    }
    if let (Some(node), true) = (table.node("backend"), kind != "haproxy") {
        report.error(node, format!("`backend` is for `haproxy`, and this source is `{kind}`"));
    }
    let within = within(&table, READY_WITHIN);
    match kind {
        "haproxy" => Ok(ReadySource::Haproxy { pool: pool(&table)?, within: within? }),
        "http" => {
            let url = table.need("http", "", address::member_url);
            let (status, body) = (statuses(&table), table.find("body", values::prose));
            Ok(ReadySource::Http { url: url?, status: status?, body: body?, within: within? })
        }
        "tcp" => {
            let port = table.need("tcp", "", listening_port);
            Ok(ReadySource::Tcp { port: port?, within: within? })
        }
        _ => {
            let argv = table.need("command", "", argv);
            Ok(ReadySource::Command { argv: argv?, within: within? })
        }
    }
}

/// A port, or `"all"`: each that the member listens on.
fn listening_port(node: &Node, report: &Report) -> Read<Option<u16>> {
    match &node.value {
        Value::Text(text) if text == "all" => Ok(None),
        Value::Text(_) => {
            Err(report
                .error(node, "expected a port number, or \"all\" for each that a member listens on"))
        }
        _ => values::port(node, report).map(Some),
    }
}

fn no_source(node: &Node, report: &Report, word: &str) -> Failed {
    if let Some(known) = later::in_ready(word) {
        return report.advise(node, known.message, known.help);
    }
    if SOURCES.contains(&word) {
        let help = format!("write `ready = {{ {word} = … }}`");
        return report.advise(node, format!("`{word}` needs to know whom to ask"), help);
    }
    let words = ["process", "systemd", "tcp", "http", "haproxy", "command"].into_iter();
    values::no_such(node, report, "a readiness source", word, words)
}
