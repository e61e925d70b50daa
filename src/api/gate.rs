//! The one table of what each route needs: which role, which query keys, which kinds of answers.
//!
//! A route that is not in the table does not answer. The OpenAPI document is completed from it too,
//! so what is said and what is done cannot drift apart.

use axum::{
    extract::{FromRequestParts, MatchedPath, Query, Request},
    http::{HeaderMap, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::config::Role;

use super::{
    access::{Caller, require},
    error::{self, Problem},
};

pub const JSON: &str = "application/json";
pub const EVENT_STREAM: &str = "text/event-stream";
pub const OPEN_METRICS: &str = "application/openmetrics-text";

/// What a route needs and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub method: &'static str,
    pub path: &'static str,
    /// `None`: open to everybody who can connect.
    pub role: Option<Role>,
    /// The keys that its query may have.
    pub query: &'static [&'static str],
    /// Media types of its answers, the usual one first.
    pub produces: &'static [&'static str],
}

const fn rule(method: &'static str, path: &'static str, role: Option<Role>) -> Rule {
    Rule { method, path, role, query: &[], produces: &[JSON] }
}

/// Every route there is.
pub const RULES: [Rule; 24] = {
    use Role::{Observer, Operator, Owner};
    [
        rule("GET", "/healthz", None),
        rule("GET", "/readyz", None),
        Rule { produces: &[OPEN_METRICS], ..rule("GET", "/metrics", Some(Observer)) },
        rule("GET", "/openapi.json", Some(Observer)),
        rule("GET", "/v1/host", Some(Observer)),
        rule("GET", "/v1/groups", Some(Observer)),
        rule("GET", "/v1/faults", Some(Observer)),
        rule("GET", "/v1/experiments", Some(Observer)),
        rule("GET", "/v1/experiments/{name}", Some(Observer)),
        rule("GET", "/v1/experiments/{folder}/{name}", Some(Observer)),
        rule("GET", "/v1/schedules", Some(Observer)),
        rule("PUT", "/v1/schedules/{name}/pause", Some(Operator)),
        rule("DELETE", "/v1/schedules/{name}/pause", Some(Operator)),
        Rule { query: &["from", "until"], ..rule("GET", "/v1/calendar", Some(Observer)) },
        Rule { query: &["seed"], ..rule("POST", "/v1/plans", Some(Operator)) },
        Rule { query: &["seed", "plan"], ..rule("POST", "/v1/runs", Some(Operator)) },
        Rule {
            query: &["state", "verdict", "limit", "before"],
            ..rule("GET", "/v1/runs", Some(Observer))
        },
        rule("GET", "/v1/runs/{id}", Some(Observer)),
        rule("DELETE", "/v1/runs/{id}", Some(Operator)),
        Rule {
            query: &["after"],
            produces: &[EVENT_STREAM, JSON],
            ..rule("GET", "/v1/runs/{id}/events", Some(Observer))
        },
        rule("GET", "/v1/runs/{id}/report", Some(Observer)),
        rule("GET", "/v1/halt", Some(Observer)),
        rule("PUT", "/v1/halt", Some(Operator)),
        rule("DELETE", "/v1/halt", Some(Owner)),
    ]
};

/// The rule of a route; HEAD asks what GET would say.
#[must_use]
pub fn find(method: &str, path: &str) -> Option<&'static Rule> {
    const TABLE: &[Rule] = &RULES;
    let method = if method == "HEAD" { "GET" } else { method };
    TABLE.iter().find(|rule| rule.method == method && rule.path == path)
}

/// Whether a path is open to everybody, before anything is known of the caller.
#[must_use]
pub fn is_open(path: &str) -> bool {
    RULES.iter().any(|rule| rule.role.is_none() && rule.path == path)
}

/// The path of the route that answered, on its way to the request counters.
#[derive(Debug, Clone)]
pub struct Route(pub &'static str);

/// Stands before every handler.
pub async fn gate(request: Request, next: Next) -> Response {
    match checked(&request) {
        Ok(rule) => {
            let mut response = next.run(request).await;
            response.extensions_mut().insert(Route(rule.path));
            response
        }
        Err(problem) => problem.into_response(),
    }
}

fn checked(request: &Request) -> Result<&'static Rule, Problem> {
    let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(rule) = find(request.method().as_str(), path) else {
        return Err(error::internal("find the rule of a route", &path));
    };
    if let Some(role) = rule.role {
        match request.extensions().get::<Caller>() {
            Some(caller) => require(caller, role)?,
            None => return Err(error::internal("tell who is calling", &path)),
        }
    }
    check_query(request.uri(), rule)?;
    check_accept(request.headers(), rule)?;
    Ok(rule)
}

fn check_query(uri: &Uri, rule: &Rule) -> Result<(), Problem> {
    let pairs = pairs(uri)?;
    for (at, (key, _)) in pairs.iter().enumerate() {
        if !rule.query.contains(&key.as_str()) {
            return Err(unknown_key(key, rule));
        }
        if pairs[..at].iter().any(|(before, _)| before == key) {
            let detail = format!("the query has `{key}` more than once");
            return Err(Problem::unprocessable("duplicate_query_key", detail)
                .with_numbers(json!({ "key": key })));
        }
    }
    Ok(())
}

fn unknown_key(key: &str, rule: &Rule) -> Problem {
    let known = match rule.query {
        [] => "this route takes none".to_owned(),
        keys => format!("this route knows {}", keys.join(", ")),
    };
    Problem::unprocessable("unknown_query_key", format!("unknown query key `{key}`; {known}"))
        .with_numbers(json!({ "key": key, "known": rule.query }))
}

fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, Problem> {
    match Query::<Vec<(String, String)>>::try_from_uri(uri) {
        Ok(Query(pairs)) => Ok(pairs),
        Err(error) => Err(Problem::new(StatusCode::BAD_REQUEST, "malformed_query", error.to_string())),
    }
}

fn check_accept(headers: &HeaderMap, rule: &Rule) -> Result<(), Problem> {
    if rule.produces.iter().any(|kind| quality(headers, kind) > 0.0) {
        return Ok(());
    }
    let detail =
        format!("the Accept header admits none of what this gives: {}", rule.produces.join(", "));
    Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail)
        .with_numbers(json!({ "available": rule.produces })))
}

/// How much the client wants a media type, 0 to 1: RFC 9110, 12.5.1. The most specific range counts.
#[must_use]
pub fn quality(headers: &HeaderMap, kind: &str) -> f32 {
    let mut best = None;
    for value in headers.get_all(header::ACCEPT) {
        for range in value.to_str().unwrap_or("").split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or("").to_ascii_lowercase();
            let Some(specific) = specificity(&name, kind) else { continue };
            let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            let weight = weight.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0));
            if best.is_none_or(|(before, _)| specific > before) {
                best = Some((specific, weight));
            }
        }
    }
    match best {
        Some((_, weight)) => weight,
        None if headers.contains_key(header::ACCEPT) => 0.0,
        None => 1.0,
    }
}

fn specificity(range: &str, kind: &str) -> Option<u8> {
    let family = kind.split('/').next().unwrap_or("");
    if range == kind {
        Some(2)
    } else if range.strip_suffix("/*") == Some(family) {
        Some(1)
    } else {
        (range == "*/*").then_some(0)
    }
}

/// The query of a request whose keys the gate has let through.
#[derive(Debug, Clone)]
pub struct Params(Vec<(String, String)>);

impl Params {
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of a key, read by `read`.
    ///
    /// # Errors
    /// 422 with what is `wanted`, when `read` does not take it.
    pub fn read<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => {
                let detail = format!("`{key}` must be {wanted}, not `{value}`");
                Err(Problem::unprocessable("invalid_query_value", detail)
                    .with_numbers(json!({ "key": key, "value": value })))
            }
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        pairs(&parts.uri).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_range_of_accept_counts() {
        let ask = |accept: &str, kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            quality(&headers, kind) > 0.0
        };
        assert!(
            ask("*/*", JSON)
                && ask("application/*;q=0.1", JSON)
                && ask("text/html, Application/JSON", JSON)
        );
        assert!(!ask("text/html", JSON) && !ask("application/json;q=0, */*", JSON) && !ask("", JSON));
        assert!(quality(&HeaderMap::new(), JSON) > 0.0);
    }
}
