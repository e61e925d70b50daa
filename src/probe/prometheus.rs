//! `prometheus`: the value of a query, and whether alerts fire, by its HTTP API.
//!
//! What it has not heard of lately it still answers with, for five minutes: so each attempt first
//! asks how old its newest samples are. All ages are by its own clock, never by this host's.

use std::collections::BTreeMap;

use hyper::header::DATE;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::http;
use crate::{
    experiment::{Bounds, Headers, Labels, Prometheus},
    units::show_duration,
};

/// The most that is read of an answer, in bytes.
pub const ANSWER_MAX: usize = 4 << 20;

/// A rule that has not been evaluated for so many of its intervals is not.
const INTERVALS: f64 = 3.0;

/// The Date header, by which ages are told, has whole seconds.
const SECOND: f64 = 1.0;

/// Every value of the query's result must be within the bounds.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn check(server: &Prometheus, query: &str, bounds: Bounds) -> Result<(), String> {
    let samples = value_of(server, query).await?;
    match samples.iter().find_map(|sample| Some((sample, bounds.broken_by(sample.value)?))) {
        Some((sample, wrong)) if sample.labels.is_empty() => Err(format!("{} is {wrong}", brief(query))),
        Some((sample, wrong)) => {
            Err(format!("{} of {} is {wrong}", brief(query), show_labels(&sample.labels)))
        }
        None => Ok(()),
    }
}

/// The single value of the query, as a number of instances.
///
/// # Errors
/// When it is not one whole number, or what it is made of is too old.
pub async fn count(server: &Prometheus, query: &str) -> Result<u32, String> {
    let samples = value_of(server, query).await?;
    let [sample] = samples.as_slice() else {
        let count = samples.len();
        return Err(format!("{} has {count} values, and a count is one: `sum(…)` it", brief(query)));
    };
    let value = sample.value;
    if value.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&value) {
        return Err(format!("{} is {value}, not a number of instances", brief(query)));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and in range")]
    let count = value as u32;
    Ok(count)
}

/// None of the alerts may be firing, and their rules must be there and be evaluated.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn quiet(server: &Prometheus, quiet: &[Labels]) -> Result<(), String> {
    in_time(server, async {
        fresh(server).await?;
        let names: Vec<&str> = quiet.iter().filter_map(name_of).collect();
        let filter: String = names
            .iter()
            .fold(String::new(), |filter, name| format!("{filter}&rule_name[]={}", encode(name)));
        let (groups, now): (Groups, _) =
            get(server, &format!("/api/v1/rules?type=alert{filter}")).await?;
        quiet.iter().try_for_each(|alert| judge_alert(&groups, alert, now))
    })
    .await
}

#[derive(Debug, Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    /// Seconds.
    interval: f64,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    health: String,
    last_error: Option<String>,
    last_evaluation: Timestamp,
    #[serde(default)]
    alerts: Vec<Alert>,
}

#[derive(Debug, Deserialize)]
struct Alert {
    labels: Labels,
    state: String,
}

fn judge_alert(groups: &Groups, alert: &Labels, now: Timestamp) -> Result<(), String> {
    let name = name_of(alert).unwrap_or_default();
    let mut rules = groups
        .groups
        .iter()
        .flat_map(|group| group.rules.iter().map(move |rule| (group, rule)))
        .filter(|(_, rule)| rule.kind == "alerting" && rule.name == name)
        .peekable();
    if rules.peek().is_none() {
        return Err(format!("there is no alerting rule {name}: its silence would mean nothing"));
    }
    for (group, rule) in rules {
        let firing = rule.alerts.iter().find(|firing| {
            firing.state == "firing"
                && alert.iter().all(|(label, value)| firing.labels.get(label) == Some(value))
        });
        if let Some(firing) = firing {
            return Err(format!("the alert {} is firing", show_labels(&firing.labels)));
        }
        if rule.health != "ok" {
            let why = rule.last_error.as_deref().unwrap_or("it has not been evaluated yet");
            return Err(format!("the rule of the alert {name} is {}: {}", rule.health, brief(why)));
        }
        let (age, most) = (age(rule.last_evaluation, now), group.interval * INTERVALS + SECOND);
        if age > most {
            return Err(format!(
                "the rule of the alert {name} was last evaluated {age:.0} s ago, and it should be \
                 every {} s",
                group.interval
            ));
        }
    }
    Ok(())
}

/// A value of a query's result.
#[derive(Debug)]
struct Sample {
    labels: Labels,
    value: f64,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Outcome {
    Vector(Vec<Series>),
    Scalar((f64, String)),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Debug, Deserialize)]
struct Series {
    #[serde(default)]
    metric: Labels,
    /// Absent for histograms, which are no number.
    value: Option<(f64, String)>,
}

/// The values of a query over data that is fresh: at least one.
async fn value_of(server: &Prometheus, query: &str) -> Result<Vec<Sample>, String> {
    in_time(server, async {
        fresh(server).await?;
        let samples = ask(server, query).await?;
        if samples.is_empty() {
            return Err(format!("{} has no value at all", brief(query)));
        }
        Ok(samples)
    })
    .await
}

/// The newest sample of what is to be fresh must be young enough.
async fn fresh(server: &Prometheus) -> Result<(), String> {
    let Prometheus { fresh, max_age, .. } = server;
    let ages = ask(server, &format!("time() - max(timestamp({fresh}))")).await?;
    let Some(age) = ages.first().map(|sample| sample.value) else {
        return Err(format!("it has no sample of {}: nothing tells how old its data is", brief(fresh)));
    };
    if age <= max_age.as_secs_f64() {
        return Ok(());
    }
    let most = show_duration(*max_age);
    Err(format!("its newest sample of {} is {age:.1} s old, and {most} is the most", brief(fresh)))
}

async fn ask(server: &Prometheus, query: &str) -> Result<Vec<Sample>, String> {
    let (outcome, _): (Outcome, _) =
        get(server, &format!("/api/v1/query?query={}", encode(query))).await?;
    let number = |text: &str| {
        text.parse::<f64>().map_err(|_| format!("{} is {}, not a number", brief(query), brief(text)))
    };
    match outcome {
        Outcome::Scalar((_, value)) => {
            Ok(vec![Sample { labels: Labels::new(), value: number(&value)? }])
        }
        Outcome::Vector(series) => series
            .into_iter()
            .map(|series| {
                let Some((_, value)) = series.value else {
                    return Err(format!("{} is a histogram, not a number", brief(query)));
                };
                Ok(Sample { labels: series.metric, value: number(&value)? })
            })
            .collect(),
        Outcome::Matrix(_) | Outcome::String(_) => {
            Err(format!("{} gives neither a vector nor a scalar", brief(query)))
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reply<T> {
    status: String,
    data: Option<T>,
    error_type: Option<String>,
    error: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

async fn get<T: DeserializeOwned>(server: &Prometheus, path: &str) -> Result<(T, Timestamp), String> {
    let (status, body, now) = fetch(&server.url, &server.headers, path, server.within).await?;
    let reply: Reply<T> = serde_json::from_slice(&body).map_err(|error| match status {
        200 => format!("answered as no Prometheus does: {error}"),
        _ => format!("answered {status}"),
    })?;
    // A part of an answer: what is missing in it may be what matters.
    if let Some(warning) = reply.warnings.first() {
        return Err(format!("answered with a warning: {}", brief(warning)));
    }
    match reply.data {
        Some(data) if status == 200 && reply.status == "success" => Ok((data, now)),
        _ => {
            let kind = reply.error_type.unwrap_or_else(|| status.to_string());
            let error = reply.error.unwrap_or_default();
            Err(format!("answered with an error: {}: {}", brief(&kind), brief(&error)))
        }
    }
}

/// One answer of an API: status, body, and the time by its own clock.
pub(super) async fn fetch(
    root: &str,
    headers: &Headers,
    path: &str,
    within: std::time::Duration,
) -> Result<(u16, Vec<u8>, Timestamp), String> {
    let url = format!("{}{path}", root.trim_end_matches('/'));
    let fetched = http::get(&url, headers, within, async |answer| {
        let status = answer.status().as_u16();
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        let now = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        let now = now.ok_or("answered without the time (the header `Date`)")?;
        Ok((status, http::whole(answer.into_body(), ANSWER_MAX).await?, now.timestamp()))
    });
    // The caller says whom it asked; the query in the URL is of no use to people.
    fetched.await.map_err(|error| match error.strip_prefix(&url) {
        Some(rest) => rest.trim_start().to_owned(),
        None => error,
    })
}

async fn in_time<T>(
    server: &Prometheus,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let Prometheus { url, within, .. } = server;
    match timeout(*within, work).await {
        Ok(result) => result.map_err(|error| format!("prometheus {url}: {error}")),
        Err(_) => Err(format!("prometheus {url}: did not answer within {within:?}")),
    }
}

/// Seconds from one time to the next.
pub(super) fn age(then: Timestamp, now: Timestamp) -> f64 {
    SignedDuration::as_secs_f64(&now.duration_since(then))
}

/// The name of an alert.
pub(super) fn name_of(labels: &Labels) -> Option<&str> {
    labels.get("alertname").map(String::as_str)
}

/// `{job="x"}`, with the name in front of it.
pub(super) fn show_labels(labels: &Labels) -> String {
    let name = labels.get("__name__").or_else(|| labels.get("alertname")).cloned().unwrap_or_default();
    let rest: BTreeMap<&str, &str> = labels
        .iter()
        .filter(|(label, _)| !matches!(label.as_str(), "__name__" | "alertname"))
        .map(|(label, value)| (label.as_str(), value.as_str()))
        .collect();
    let rest: Vec<String> = rest.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
    let shown = if rest.is_empty() { name } else { format!("{name}{{{}}}", rest.join(", ")) };
    brief(&shown)
}

/// So much of a text that a message stays one.
pub(super) fn brief(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// For the query of a URL.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
