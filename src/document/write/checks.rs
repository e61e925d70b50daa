//! Checks back into the keys of a probe: what is asked, and what is expected.

use serde_json::{Map, Value, json};

use super::{put, put_some, put_span};
use crate::experiment::{
    Alertmanager, Bounds, Check, DnsCheck, Headers, HttpCheck, JsonExpect, Labels, Prometheus,
};

/// Puts the check's own keys, and `expect`.
pub fn put_check(keys: &mut Map<String, Value>, check: &Check) {
    let mut expect = Map::new();
    match check {
        Check::Http(check) => put_http(keys, &mut expect, check),
        Check::Tcp { address, within } => {
            put(keys, "tcp", address);
            put_span(&mut expect, "within", *within);
        }
        Check::Dns(check) => put_dns(keys, &mut expect, check),
        Check::Prometheus { server, query, bounds } => {
            put_prometheus(keys, &mut expect, server);
            put(keys, "query", query);
            put_bounds(&mut expect, *bounds);
        }
        Check::PrometheusQuiet { server, quiet } => {
            put_prometheus(keys, &mut expect, server);
            put_quiet(keys, quiet);
        }
        Check::AlertmanagerQuiet { server, quiet } => {
            put_alertmanager(keys, &mut expect, server);
            put_quiet(keys, quiet);
        }
        Check::Command { argv, within } => {
            put(keys, "command", argv);
            put_span(&mut expect, "within", *within);
        }
        Check::Haproxy { pool, up, within } => {
            put(keys, "haproxy", &pool.haproxy);
            put(keys, "backend", &pool.backend);
            put(&mut expect, "up", up);
            put_span(&mut expect, "within", *within);
        }
        Check::Group { group, ready } => {
            put(keys, "group", group);
            put(&mut expect, "ready", ready);
        }
    }
    put(keys, "expect", expect);
}

fn put_http(keys: &mut Map<String, Value>, expect: &mut Map<String, Value>, check: &HttpCheck) {
    let HttpCheck { url, headers, status, body, answer, json, within, percentiles } = check;
    put(keys, "http", url);
    put_headers(keys, headers);
    put(expect, "status", status);
    put_headers(expect, answer);
    put_some(expect, "body", body.as_ref());
    if !json.is_empty() {
        let json = json.iter().map(|(pointer, wanted)| (pointer.clone(), show_expect(wanted)));
        expect.insert("json".to_owned(), json.collect());
    }
    put_span(expect, "within", *within);
    if let Some(percentiles) = percentiles {
        for (quantile, limit) in &percentiles.limits {
            put_span(expect, &quantile.to_string(), *limit);
        }
        put_span(expect, "window", percentiles.window);
    }
}

fn put_headers(keys: &mut Map<String, Value>, headers: &Headers) {
    if !headers.is_empty() {
        put(keys, "headers", headers);
    }
}

fn show_expect(wanted: &JsonExpect) -> Value {
    match wanted {
        JsonExpect::Is(value) => value.clone(),
        JsonExpect::Within(bounds) => {
            let mut keys = Map::new();
            put_bounds(&mut keys, *bounds);
            Value::Object(keys)
        }
    }
}

fn put_bounds(keys: &mut Map<String, Value>, bounds: Bounds) {
    put_some(keys, "at_least", bounds.at_least);
    put_some(keys, "at_most", bounds.at_most);
}

fn put_dns(keys: &mut Map<String, Value>, expect: &mut Map<String, Value>, check: &DnsCheck) {
    let DnsCheck { question, answer, at_least } = check;
    put(keys, "dns", &question.name);
    put_some(keys, "server", question.server);
    put(expect, "type", question.record);
    if !answer.is_empty() {
        put(expect, "answer", answer);
    }
    put(expect, "at_least", at_least);
    put_span(expect, "within", question.within);
}

fn put_prometheus(keys: &mut Map<String, Value>, expect: &mut Map<String, Value>, server: &Prometheus) {
    let Prometheus { url, headers, fresh, max_age, within } = server;
    put(keys, "prometheus", url);
    put_headers(keys, headers);
    put(keys, "fresh", fresh);
    put_span(expect, "max_age", *max_age);
    put_span(expect, "within", *within);
}

fn put_alertmanager(
    keys: &mut Map<String, Value>,
    expect: &mut Map<String, Value>,
    server: &Alertmanager,
) {
    let Alertmanager { url, headers, watchdog, max_age, within } = server;
    put(keys, "alertmanager", url);
    put_headers(keys, headers);
    keys.insert("watchdog".to_owned(), watchdog.as_ref().map_or(json!(false), |labels| json!(labels)));
    put_span(expect, "max_age", *max_age);
    put_span(expect, "within", *within);
}

fn put_quiet(keys: &mut Map<String, Value>, quiet: &[Labels]) {
    put(keys, "quiet", quiet);
}
