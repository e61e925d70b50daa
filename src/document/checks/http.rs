//! Reads what is asked by HTTP, and what is expected of the answer: head, body, and pace.

use std::{collections::BTreeMap, time::Duration};

use hyper::header::{HeaderName, HeaderValue};

use super::{
    super::{
        address, later,
        reader::{Failed, Read, Report, Shape, Table},
        tree::{Node, Value},
        values,
    },
    WITHIN, within,
};
use crate::{
    experiment::{Bounds, Check, Headers, HttpCheck, JsonExpect, Percentiles, Quantile},
    units::{clip, show_duration},
};

/// What is expected of one answer.
const ANSWER: &[&str] = &["status", "headers", "body", "json"];

/// Headers that speak of the connection, which is not the document's to shape.
const NOT_YOURS: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const MOST_HEADERS: usize = 32;
const LONGEST_HEADER: usize = 1024;
const MOST_POINTERS: usize = 32;
/// Answers that are kept for percentiles.
const MOST_ANSWERS: u128 = 20_000;

/// The keys of a check by HTTP, as `[[probe]]` and conditions have them.
pub fn check(table: &Table<'_>, every: Read<Option<Duration>>) -> Read<Check> {
    let url = table.need("http", "", address::url);
    let headers = table.or("headers", Headers::new(), headers);
    let expected = match table.node("expect") {
        Some(node) => expect(node, table.report, every),
        None => Ok(HttpCheck::new("", WITHIN)),
    };
    Ok(Check::Http(HttpCheck { url: url?, headers: headers?, ..expected? }))
}

/// What is expected of the answer of a probe, and of many of them.
fn expect(node: &Node, report: &Report, every: Read<Option<Duration>>) -> Read<HttpCheck> {
    let (node, quantiles) = without_quantiles(node);
    let keys: &[&[&str]] = &[ANSWER, &["within", "window"]];
    let shape = Shape { what: "what an http probe expects", keys, known: later::in_http };
    let table = Table::open(&node, report, &shape)?;
    let answer = answer(&table);
    let within = within(&table, WITHIN);
    let percentiles = percentiles(&table, &quantiles, every);
    Ok(HttpCheck { within: within?, percentiles: percentiles?, ..answer? })
}

/// What is expected of one answer of an instance.
pub fn instance(node: &Node, report: &Report) -> Read<HttpCheck> {
    let what = "what an http source expects";
    let table =
        Table::open(node, report, &Shape { what, keys: &[ANSWER], known: later::in_http_source })?;
    answer(&table)
}

fn answer(table: &Table<'_>) -> Read<HttpCheck> {
    let status = statuses(table);
    let body = table.find("body", values::prose);
    let answer = table.or("headers", Headers::new(), headers);
    let json = table.or("json", BTreeMap::new(), json);
    let check = HttpCheck::new("", WITHIN);
    Ok(HttpCheck { status: status?, body: body?, answer: answer?, json: json?, ..check })
}

pub fn statuses(table: &Table<'_>) -> Read<Vec<u16>> {
    table.or("status", vec![200], values::one_or_more(32, "statuses", status))
}

fn status(node: &Node, report: &Report) -> Read<u16> {
    let Value::Integer(number) = node.value else {
        return Err(report.mismatch(node, "an HTTP status such as 200"));
    };
    let status = u16::try_from(number).ok().filter(|status| (200..=599).contains(status));
    status.ok_or_else(|| report.error(node, "an HTTP status lies between 200 and 599"))
}

/// Names and values, as HTTP can carry them.
pub fn headers(node: &Node, report: &Report) -> Read<Headers> {
    let table = Table::open_unchecked(node, report, "headers and their values")?;
    let entries = table.node.entries();
    if entries.is_empty() {
        return Err(report.error(node, "an empty table of headers would do nothing"));
    }
    if entries.len() > MOST_HEADERS {
        let message = format!("{} headers are too many: at most {MOST_HEADERS}", entries.len());
        return Err(report.error(node, message));
    }
    let mut headers = Headers::new();
    let mut failed = None;
    for entry in entries {
        match header(&entry.key, &entry.node, &headers, report) {
            Ok(value) => drop(headers.insert(entry.key.clone(), value)),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(headers), Err)
}

fn header(name: &str, node: &Node, before: &Headers, report: &Report) -> Read<String> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(report.error(node, format!("`{}` cannot be the name of a header", clip(name))));
    }
    if NOT_YOURS.contains(&name.to_ascii_lowercase().as_str()) {
        let message = format!("`{name}` speaks of the connection, which is new for each question");
        return Err(report.advise(node, message, "leave it out"));
    }
    if let Some(other) = before.keys().find(|other| other.eq_ignore_ascii_case(name)) {
        let message = format!("`{name}` and `{other}` are the same header");
        return Err(report.error(node, message));
    }
    let value = values::string(node, report, "the value of a header")?;
    let plain = value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && value.trim() == value;
    if !plain || HeaderValue::from_str(value).is_err() {
        let help = "printable ASCII, without white space at the ends";
        return Err(report.advise(node, "this cannot be the value of a header", help));
    }
    if value.len() > LONGEST_HEADER {
        let message = format!("this value is too long: at most {LONGEST_HEADER} bytes");
        return Err(report.error(node, message));
    }
    Ok(value.to_owned())
}

/// `{ "/status" = "ok", "/ready" = { at_least = 3 } }`
fn json(node: &Node, report: &Report) -> Read<BTreeMap<String, JsonExpect>> {
    let table = Table::open_unchecked(node, report, "JSON pointers and what they find")?;
    let entries = table.node.entries();
    if entries.is_empty() {
        return Err(report.error(node, "an empty table of JSON pointers would expect nothing"));
    }
    if entries.len() > MOST_POINTERS {
        let message = format!("{} JSON pointers are too many: at most {MOST_POINTERS}", entries.len());
        return Err(report.error(node, message));
    }
    let read = entries.iter().map(|entry| {
        let pointer = check_pointer(&entry.key, &entry.node, report);
        let expect = json_expect(&entry.node, report);
        Ok((pointer?, expect?))
    });
    let read: Vec<Read<_>> = read.collect();
    read.into_iter().collect()
}

/// A JSON pointer, by RFC 6901.
pub fn pointer(node: &Node, report: &Report) -> Read<String> {
    let text = values::string(node, report, "a JSON pointer such as \"/replicas/ready\"")?;
    check_pointer(text, node, report)
}

fn check_pointer(text: &str, node: &Node, report: &Report) -> Read<String> {
    let escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if (text.is_empty() || text.starts_with('/')) && escaped && text.len() <= 512 {
        return Ok(text.to_owned());
    }
    let message = format!("`{}` is not a JSON pointer", clip(text));
    let help = if escaped {
        "RFC 6901: a path from the root such as \"/replicas/ready\" or \"/items/0/state\""
    } else {
        "RFC 6901: a `~` in a key is written `~0`, a `/` is written `~1`"
    };
    Err(report.advise(node, message, help))
}

fn json_expect(node: &Node, report: &Report) -> Read<JsonExpect> {
    let value = match &node.value {
        Value::Bool(flag) => serde_json::Value::from(*flag),
        Value::Text(text) => serde_json::Value::from(text.clone()),
        Value::Integer(number) => match i64::try_from(*number) {
            Ok(number) => serde_json::Value::from(number),
            Err(_) => return Err(report.error(node, "this number is too large")),
        },
        Value::Float(number) if number.is_finite() => serde_json::Value::from(*number),
        Value::Table(_) => {
            let keys: &[&[&str]] = &[&["at_least", "at_most"]];
            let what = "what a JSON pointer finds";
            let table = Table::open(node, report, &Shape { what, keys, known: later::nothing })?;
            return bounds(&table, "a number").map(JsonExpect::Within);
        }
        _ => {
            let expected = "a string, a number, true, false or { at_least = …, at_most = … }";
            return Err(report.mismatch(node, expected));
        }
    };
    Ok(JsonExpect::Is(value))
}

/// `at_least` and `at_most`, of which one must be there.
pub fn bounds(table: &Table<'_>, of: &str) -> Read<Bounds> {
    let at_least = table.find("at_least", number);
    let at_most = table.find("at_most", number);
    let bounds = Bounds { at_least: at_least?, at_most: at_most? };
    match (bounds.at_least, bounds.at_most) {
        (None, None) if table.meant("at_least") || table.meant("at_most") => Err(Failed),
        (None, None) => {
            let message = format!("nothing is expected of {of}: `at_least`, `at_most` or both");
            Err(table.report.advise(table.node, message, "for example: at_least = 3"))
        }
        (Some(least), Some(most)) if least > most => {
            let node = table.node("at_most").unwrap_or(table.node);
            Err(table.report.error(node, format!("nothing is at least {least} and at most {most}")))
        }
        _ => Ok(bounds),
    }
}

/// A finite number.
fn number(node: &Node, report: &Report) -> Read<f64> {
    match node.value {
        Value::Integer(number) => match i32::try_from(number) {
            Ok(number) => Ok(f64::from(number)),
            #[expect(clippy::cast_precision_loss, reason = "so far out it is a matter of taste")]
            Err(_) => Ok(number as f64),
        },
        Value::Float(number) if number.is_finite() => Ok(number),
        _ => Err(report.mismatch(node, "a number such as 3 or 0.95")),
    }
}

/// The table without the keys that name quantiles, and those.
fn without_quantiles(node: &Node) -> (Node, Vec<(String, Node)>) {
    let is_quantile = |key: &str| {
        key.strip_prefix('p').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let mut rest = node.clone();
    let mut quantiles = Vec::new();
    if let Value::Table(entries) = &mut rest.value {
        let found = entries.extract_if(.., |entry| is_quantile(&entry.key));
        quantiles = found.map(|entry| (entry.key, entry.node)).collect();
    }
    (rest, quantiles)
}

fn percentiles(
    table: &Table<'_>,
    quantiles: &[(String, Node)],
    every: Read<Option<Duration>>,
) -> Read<Option<Percentiles>> {
    let report = table.report;
    let spans = values::duration(Duration::from_millis(100)..=Duration::from_hours(1));
    let window = table.find("window", spans);
    let limits: Vec<Read<_>> = quantiles.iter().map(|(key, node)| limit(key, node, report)).collect();
    let limits: BTreeMap<Quantile, Duration> = limits.into_iter().collect::<Read<_>>()?;
    let (window, every) = (window?, every?);
    let Some((slowest, _)) = limits.last_key_value() else {
        return match table.node("window") {
            None => Ok(None),
            Some(node) => {
                let message = "a window of what? there is no percentile such as `p99`";
                Err(report.advise(node, message, "for example: p99 = \"300ms\""))
            }
        };
    };
    let Some(every) = every else {
        let message = "a percentile is of many answers, and a condition asks once";
        return Err(report.advise(table.node, message, "let `within` bound the one answer"));
    };
    let Some(window) = window else {
        return Err(table.missing("window", "window = \"10s\""));
    };
    let node = table.node("window").unwrap_or(table.node);
    let answers = window.as_nanos() / every.as_nanos().max(1);
    let needed = slowest.answers_needed();
    if answers < u128::from(needed) {
        let message = format!(
            "{slowest} needs {needed} answers at least, and every {} there are {answers} in {}",
            show_duration(every),
            show_duration(window)
        );
        let help = format!(
            "a window of \"{}\", a shorter `every`, or a lower percentile",
            show_duration(every * needed)
        );
        return Err(report.advise(node, message, help));
    }
    if answers > MOST_ANSWERS {
        let message = format!("{answers} answers are too many to keep: at most {MOST_ANSWERS}");
        return Err(report.advise(node, message, "a shorter window, or a longer `every`"));
    }
    let answers = u32::try_from(answers).unwrap_or(u32::MAX);
    Ok(Some(Percentiles { limits, window, answers }))
}

fn limit(key: &str, node: &Node, report: &Report) -> Read<(Quantile, Duration)> {
    if let (Value::Table(_), [fraction, ..]) = (&node.value, node.entries()) {
        let message = format!("TOML reads `{key}.{}` as two keys", clip(&fraction.key));
        return Err(report.advise(
            node,
            message,
            format!("quote it: \"{key}.{}\"", clip(&fraction.key)),
        ));
    }
    let Some(quantile) = Quantile::from_name(key) else {
        let message = format!("`{}` is no percentile", clip(key));
        let help = "above p0 and below p100, with two decimals at most: p50, p99, \"p99.9\"";
        return Err(report.advise(node, message, help));
    };
    let limit = values::duration(Duration::from_micros(10)..=super::LONGEST_WITHIN)(node, report)?;
    Ok((quantile, limit))
}
