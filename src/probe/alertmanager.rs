//! `alertmanager`: whether alerts are active there, neither silenced nor inhibited.
//!
//! It knows no rules, only what it is told: when nobody tells it anything more, all is quiet. So an
//! alert that always fires has to be there as well, and lately renewed.

use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::timeout;

use super::prometheus::{age, brief, encode, fetch, name_of, show_labels};
use crate::{
    experiment::{Alertmanager, Labels},
    units::show_duration,
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    labels: Labels,
    updated_at: Timestamp,
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    silenced_by: Vec<String>,
    #[serde(default)]
    inhibited_by: Vec<String>,
}

impl Alert {
    fn is(&self, wanted: &Labels) -> bool {
        wanted.iter().all(|(label, value)| self.labels.get(label) == Some(value))
    }
}

/// None of the alerts may be active, and the watchdog must be.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn quiet(server: &Alertmanager, quiet: &[Labels]) -> Result<(), String> {
    let Alertmanager { url, within, .. } = server;
    match timeout(*within, judge(server, quiet)).await {
        Ok(result) => result.map_err(|error| format!("alertmanager {url}: {error}")),
        Err(_) => Err(format!("alertmanager {url}: did not answer within {within:?}")),
    }
}

async fn judge(server: &Alertmanager, quiet: &[Labels]) -> Result<(), String> {
    let names = quiet.iter().chain(&server.watchdog).filter_map(name_of);
    let (alerts, now) = active(server, names).await?;
    // A silenced watchdog is a watchdog: silences are about telling people.
    if let Some(watchdog) = &server.watchdog {
        let (name, most) = (show_labels(watchdog), server.max_age);
        let seen = alerts.iter().filter(|alert| alert.is(watchdog)).map(|alert| alert.updated_at).max();
        let Some(seen) = seen else {
            return Err(format!("the watchdog {name} is not there: alerts may not reach it"));
        };
        let age = age(seen, now);
        if age > most.as_secs_f64() {
            let most = show_duration(most);
            return Err(format!(
                "the watchdog {name} was last renewed {age:.0} s ago, and {most} is the most"
            ));
        }
    }
    let heard =
        |alert: &&Alert| alert.status.silenced_by.is_empty() && alert.status.inhibited_by.is_empty();
    let active = alerts.iter().filter(heard).find(|alert| quiet.iter().any(|wanted| alert.is(wanted)));
    match active {
        Some(alert) => Err(format!("the alert {} is active", show_labels(&alert.labels))),
        None => Ok(()),
    }
}

/// The alerts of these names, silenced and inhibited ones too.
async fn active(
    server: &Alertmanager,
    names: impl Iterator<Item = &str>,
) -> Result<(Vec<Alert>, Timestamp), String> {
    let names: Vec<String> = names.map(regex::escape).collect();
    let names = names.join("|").replace('\\', "\\\\").replace('"', "\\\"");
    let filter = encode(&format!("alertname=~\"{names}\""));
    let path = format!("/api/v2/alerts?active=true&silenced=true&inhibited=true&filter={filter}");
    let (status, body, now) = fetch(&server.url, &server.headers, &path, server.within).await?;
    if status != 200 {
        return Err(format!("answered {status}: {}", brief(String::from_utf8_lossy(&body).trim())));
    }
    let alerts = serde_json::from_slice(&body)
        .map_err(|error| format!("answered as no Alertmanager does: {error}"))?;
    Ok((alerts, now))
}
