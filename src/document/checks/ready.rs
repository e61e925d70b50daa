//! Reads where a group's ready count comes from.

use super::{
    super::{
        address, later,
        reader::{Failed, Read, Report, Shape, Table},
        tree::{Node, Value},
        values,
    },
    READY_WITHIN, argv, dns, http, one_of, only_for, pool, prometheus, within,
};
use crate::{
    config::ReadySource,
    experiment::{Headers, HttpCheck},
};

const SOURCES: &[&str] = &["http", "tcp", "dns", "prometheus", "haproxy", "command"];

/// What belongs to some sources only, and to which.
const DETAILS: &[&str] = &[
    "status", "body", "headers", "expect", "count", "total", "server", "type", "query", "fresh",
    "max_age", "backend",
];
const OF: &[(&str, &[&str])] = &[
    ("status", &["http"]),
    ("body", &["http"]),
    ("headers", &["http", "prometheus"]),
    ("expect", &["http"]),
    ("count", &["http"]),
    ("total", &["http"]),
    ("server", &["dns"]),
    ("type", &["dns"]),
    ("query", &["prometheus"]),
    ("fresh", &["prometheus"]),
    ("max_age", &["prometheus"]),
    ("backend", &["haproxy"]),
];

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
    let keys: &[&[&str]] = &[SOURCES, DETAILS, &["within"]];
    let table = Table::open(node, report, &Shape { what, keys, known: later::in_ready })?;
    let kind = one_of(&table, SOURCES, what, "http = \"http://127.0.0.1:{port}/healthz\"")?;
    only_for(&table, OF, kind, "a source");
    let within = within(&table, READY_WITHIN);
    match kind {
        "http" => by_http(&table, within),
        "tcp" => {
            let port = table.need("tcp", "", listening_port);
            Ok(ReadySource::Tcp { port: port?, within: within? })
        }
        "haproxy" => Ok(ReadySource::Haproxy { pool: pool(&table)?, within: within? }),
        "dns" => dns::source(&table, within).map(ReadySource::Dns),
        "prometheus" => {
            let (server, query) = prometheus::source(&table, within)?;
            Ok(ReadySource::Prometheus { server, query })
        }
        _ => {
            let argv = table.need("command", "", argv);
            Ok(ReadySource::Command { argv: argv?, within: within? })
        }
    }
}

fn by_http(table: &Table<'_>, within: Read<std::time::Duration>) -> Read<ReadySource> {
    let counts = table.has("count");
    // Placeholders are a member's own: who counts for all has none.
    let url = if counts { address::url } else { address::member_url };
    let url = table.need("http", "", url);
    let headers = table.or("headers", Headers::new(), http::headers);
    let (count, total) = (table.find("count", http::pointer), table.find("total", http::pointer));
    if let (false, Some(node)) = (counts || table.meant("count"), table.node("total")) {
        let help = "for example: count = \"/replicas/ready\"";
        table.report.advise(node, "`total` goes with `count`: without it each member is asked", help);
    }
    let answer = match table.node("expect") {
        Some(node) => {
            for key in ["status", "body"] {
                if let Some(node) = table.node(key) {
                    let message = format!("`{key}` belongs into `expect`, now that there is one");
                    table.report.error(node, message);
                }
            }
            http::instance(node, table.report)
        }
        None => {
            let (status, body) = (http::statuses(table), table.find("body", values::prose));
            let check = HttpCheck::new("", READY_WITHIN);
            status.and_then(|status| Ok(HttpCheck { status, body: body?, ..check }))
        }
    };
    let ask = HttpCheck { url: url?, headers: headers?, within: within?, ..answer? };
    let total = total?;
    Ok(match count? {
        Some(count) => ReadySource::HttpCount { ask, count, total },
        None => ReadySource::Http(ask),
    })
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
    let words =
        ["process", "systemd", "tcp", "http", "dns", "prometheus", "haproxy", "command"].into_iter();
    values::no_such(node, report, "a readiness source", word, words)
}
