//! Reads what is asked of a Prometheus or an Alertmanager: the value of a query, or that alerts are
//! quiet.

use std::{sync::LazyLock, time::Duration};

use regex::Regex;

use super::{
    super::{
        address,
        reader::{Failed, Read, Report, Table},
        tree::{Node, Value},
        values,
    },
    WITHIN, expect, http, within,
};
use crate::{
    experiment::{Alertmanager, Check, Headers, Labels, Prometheus},
    units::clip,
};

/// What is older speaks of the past: two scrapes at the interval that Prometheus has by default, and
/// twice the time after which it tells an Alertmanager again.
const MAX_AGE: Duration = Duration::from_mins(2);

/// Of every target there is one after each scrape, whether it went well or not.
const FRESH: &str = "up";

/// A name, matchers of labels, or both. Of anything else `timestamp()` gives the time at which it was
/// asked, and the age would be zero whenever the last sample came.
static SELECTOR: LazyLock<Regex> = LazyLock::new(|| {
    let value = r#""([^"\\\n]|\\[^\n])*"|'([^'\\\n]|\\[^\n])*'|`[^`]*`"#;
    let matcher = format!(r"[A-Za-z_][A-Za-z0-9_]*\s*(=|!=|=~|!~)\s*({value})");
    let matchers = format!(r"{matcher}(\s*,\s*{matcher})*(\s*,)?");
    let name = "[A-Za-z_:][A-Za-z0-9_:]*";
    let selector = format!(r"^\s*({name}(\s*\{{\s*({matchers})?\s*\}})?|\{{\s*{matchers}\s*\}})\s*$");
    Regex::new(&selector).unwrap_or_else(|error| unreachable!("{error}"))
});

const MOST_ALERTS: usize = 32;
const MOST_LABELS: usize = 16;

/// The keys of a check by Prometheus.
pub fn prometheus(table: &Table<'_>) -> Read<Check> {
    let report = table.report;
    match (table.node("query"), table.node("quiet")) {
        (Some(_), Some(node)) => {
            let message = "a probe has one question, and this one has a `query` already";
            Err(report.error(node, message))
        }
        (None, None) if table.meant("query") || table.meant("quiet") => Err(Failed),
        (None, None) => {
            let help = "for example: query = \"sum(up{job='checkout'})\", or quiet = \"HighErrorRate\"";
            Err(report.advise(table.node, "what is prometheus to be asked?", help))
        }
        (Some(_), None) => {
            let query = table.need("query", "", query);
            let keys = &["at_least", "at_most", "max_age", "within"];
            let (max_age, within, bounds) =
                expect(table, "what a prometheus probe expects", keys, |expect| match expect {
                    Some(expect) => {
                        let bounds = http::bounds(expect, "the query's value");
                        Ok((max_age(expect)?, within(expect, WITHIN)?, bounds?))
                    }
                    None => Err(table.missing("expect", "expect = { at_least = 3 }")),
                })?;
            let server = server(table, Ok(max_age), Ok(within))?;
            Ok(Check::Prometheus { server, query: query?, bounds })
        }
        (None, Some(_)) => {
            let quiet = table.need("quiet", "", quiet);
            let (max_age, within) = of_quiet(table)?;
            Ok(Check::PrometheusQuiet { server: server(table, Ok(max_age), Ok(within))?, quiet: quiet? })
        }
    }
}

/// The keys of a readiness source by Prometheus.
pub fn source(table: &Table<'_>, within: Read<Duration>) -> Read<(Prometheus, String)> {
    let example = "query = \"sum(up{job='checkout'})\"";
    let query = table.need("query", example, query);
    let server = server(table, max_age(table), within);
    Ok((server?, query?))
}

/// The keys of a check by Alertmanager.
pub fn alertmanager(table: &Table<'_>) -> Read<Check> {
    let url = table.need("alertmanager", "", root);
    let headers = table.or("headers", Headers::new(), http::headers);
    let quiet = table.need("quiet", "quiet = \"HighErrorRate\"", quiet);
    let watchdog = match table.node("watchdog") {
        Some(node) => watchdog(node, table.report),
        None if table.meant("watchdog") => Err(Failed),
        None => {
            let message = "an Alertmanager is quiet, too, when nobody tells it anything any more";
            let help = "`watchdog = \"NAME\"` names an alert that always fires (`expr: vector(1)`); \
                        `watchdog = false` takes it on trust";
            Err(table.report.advise(table.node, message, help))
        }
    };
    let of_quiet = of_quiet(table);
    let (url, headers, (max_age, within)) = (url?, headers?, of_quiet?);
    let server = Alertmanager { url, headers, watchdog: watchdog?, max_age, within };
    Ok(Check::AlertmanagerQuiet { server, quiet: quiet? })
}

fn of_quiet(table: &Table<'_>) -> Read<(Duration, Duration)> {
    let keys = &["max_age", "within"];
    expect(table, "what is expected of alerts", keys, |expect| match expect {
        Some(expect) => Ok((max_age(expect)?, within(expect, WITHIN)?)),
        None => Ok((MAX_AGE, WITHIN)),
    })
}

fn server(table: &Table<'_>, max_age: Read<Duration>, within: Read<Duration>) -> Read<Prometheus> {
    let url = table.need("prometheus", "", root);
    let headers = table.or("headers", Headers::new(), http::headers);
    let fresh = table.or("fresh", FRESH.to_owned(), selector);
    Ok(Prometheus { url: url?, headers: headers?, fresh: fresh?, max_age: max_age?, within: within? })
}

/// The URL under which an API begins, without a query.
fn root(node: &Node, report: &Report) -> Read<String> {
    let url = address::url(node, report)?;
    if url.contains(['?', '#']) || url.contains("/api/v") {
        let help = "write the root alone, such as \"http://127.0.0.1:9090\"";
        return Err(report.advise(node, "the API's own paths are added to this URL", help));
    }
    Ok(url)
}

fn max_age(table: &Table<'_>) -> Read<Duration> {
    if table.meant("max_age") {
        // What is compared with it has nothing to say about the default.
        return Err(Failed);
    }
    let spans = values::duration(Duration::from_millis(100)..=Duration::from_hours(1));
    table.or("max_age", MAX_AGE, spans)
}

fn query(node: &Node, report: &Report) -> Read<String> {
    values::string(node, report, "a query in PromQL").map(str::to_owned)
}

/// What has samples of its own, whose age can be told.
fn selector(node: &Node, report: &Report) -> Read<String> {
    let text = values::string(node, report, "a selector in PromQL")?;
    if SELECTOR.is_match(text) {
        return Ok(text.to_owned());
    }
    let message = "prometheus only tells how old the samples of a plain selector are";
    let help = "a name, labels or both, such as \"up{job='checkout'}\"; what a function, operator, range or \
                offset gives seems new at any time";
    Err(report.advise(node, message, help))
}

fn quiet(node: &Node, report: &Report) -> Read<Vec<Labels>> {
    values::one_or_more(MOST_ALERTS, "alerts", alert)(node, report)
}

/// A name, or labels with `alertname` among them.
fn alert(node: &Node, report: &Report) -> Read<Labels> {
    let Value::Table(entries) = &node.value else {
        let name = values::string(node, report, "the name of an alert")?;
        return Ok(Labels::from([("alertname".to_owned(), name.to_owned())]));
    };
    if entries.len() > MOST_LABELS {
        return Err(report.error(node, format!("at most {MOST_LABELS} labels")));
    }
    let read = entries.iter().map(|entry| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !entry.key.chars().all(plain) || entry.key.starts_with(|c: char| c.is_ascii_digit()) {
            let message = format!("`{}` cannot be the name of a label", clip(&entry.key));
            return Err(report.error(&entry.node, message));
        }
        let value = values::string(&entry.node, report, "the value of a label")?;
        Ok((entry.key.clone(), value.to_owned()))
    });
    let read: Vec<Read<_>> = read.collect();
    let labels: Labels = read.into_iter().collect::<Read<_>>()?;
    if !labels.contains_key("alertname") {
        let message = "which alert? its name is the label `alertname`";
        let help = "for example: { alertname = \"HighErrorRate\", job = \"checkout\" }";
        return Err(report.advise(node, message, help));
    }
    Ok(labels)
}

fn watchdog(node: &Node, report: &Report) -> Read<Option<Labels>> {
    match node.value {
        Value::Bool(false) => Ok(None),
        Value::Bool(true) => {
            Err(report.error(node, "which one? write the name of an alert that always fires"))
        }
        _ => alert(node, report).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_says_the_same() {
        let schema = include_str!("../../api/documents.schema.json");
        let pattern = serde_json::to_string(SELECTOR.as_str()).expect("text");
        assert_eq!(schema.matches(&format!("\"pattern\": {pattern}\n")).count(), 2, "{pattern}");
    }

    #[test]
    fn only_a_plain_selector_has_an_age() {
        for text in [
            "up",
            " up ",
            "job:up:sum",
            "up{}",
            "up{job='checkout'}",
            "up {job=\"a\", instance =~ '10[.]0.*', zone != `b`,}",
            "{__name__=\"up\"}",
            "up{path=\"/a (b) [5m] @ - \\\"{}\\\" offset\"}",
            "up{\n  job='checkout',\n}",
            "rate",
        ] {
            assert!(SELECTOR.is_match(text), "{text}");
        }
        for text in [
            "",
            "{}",
            "5",
            "sum(up)",
            "(up)",
            "up[5m]",
            "up offset 5m",
            "up @ start()",
            "up{job='a'} offset -5m",
            "up{job='a'}[5m]",
            "up + 0",
            "-up",
            "up or down",
            "up{job='a'} or up{job='b'}",
            "up{job=checkout}",
            "up{job='checkout}",
            "up{job='a' x='b'}",
            "up{'job'}",
            "up) or (vector(1)",
            "up{job='a'} # up",
            "1up",
            "up{job='a\\'}",
        ] {
            assert!(!SELECTOR.is_match(text), "{text}");
        }
    }
}
