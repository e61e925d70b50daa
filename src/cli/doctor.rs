//! `vervet doctor`: what this host allows and what stands in the way, with and without an agent.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use serde::Serialize;

use crate::{
    cli::{
        Outcome,
        args::{DEFAULT_CONFIG, Global},
        client::{Client, ClientError},
        exit::Exit,
        recover::policy,
        text::columns,
        ui::{Style, Tone, Ui},
    },
    config::Policy,
    experiment::FaultKind,
    host::{Ability, Host, Stock, linux::LinuxHost},
    view::HostView,
};

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Good,
    /// Works, and should be known.
    Note,
    /// Will not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub health: Health,
    /// What was looked at.
    pub subject: String,
    /// What was found, and what to do about it.
    pub finding: String,
}

impl Finding {
    fn new(health: Health, subject: &str, finding: impl Into<String>) -> Self {
        Self { health, subject: subject.to_owned(), finding: finding.into() }
    }
}

/// Looks at everything; 0 when nothing is bad.
///
/// # Errors
/// Only for flags that make no sense.
pub async fn doctor(config: &Path, global: &Global, ui: &Ui) -> Outcome {
    let mut findings = Vec::new();
    let policy = config_finding(config, ui, &mut findings);
    if let Some(policy) = &policy {
        policy_findings(policy, &mut findings);
    }
    let socket = policy.as_ref().map(|policy| policy.api.socket.clone());
    let global = Global { socket: global.socket.clone().or(socket), ..global.clone() };
    let global = if global.host.is_some() { Global { socket: None, ..global } } else { global };
    let client = Client::new(&global)?;
    let agent = agent_finding(&client, &mut findings).await;
    match agent {
        Some(host) => from_agent(&host, &mut findings),
        None => from_host(policy.as_ref(), &mut findings),
    }
    let worst = findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Good);
    if ui.json {
        ui.print_json(&serde_json::json!({ "well": worst < Health::Bad, "findings": findings }));
    } else {
        ui.say(lines(&findings, ui.style).join("\n"));
    }
    Ok(if worst < Health::Bad { Exit::Passed } else { Exit::Failed })
}

/// The findings as aligned text.
#[must_use]
pub fn lines(findings: &[Finding], style: Style) -> Vec<String> {
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| {
            let word = match finding.health {
                Health::Good => "ok",
                Health::Note => "note",
                Health::Bad => "BAD",
            };
            vec![word.to_owned(), finding.subject.clone(), finding.finding.clone()]
        })
        .collect();
    let tone = |line: &str| match line.split(' ').next() {
        Some("BAD") => Some(Tone::Bad),
        Some("note") => Some(Tone::Warn),
        _ => None,
    };
    let paint = |line: String| tone(&line).map_or(line.clone(), |tone| style.paint(tone, &line));
    columns(&rows, style.width).into_iter().map(paint).collect()
}

fn config_finding(config: &Path, ui: &Ui, findings: &mut Vec<Finding>) -> Option<Policy> {
    let name = config.display().to_string();
    if !config.exists() {
        let example = "the agent needs one; the README shows a first policy";
        findings.push(Finding::new(Health::Bad, "policy", format!("{name} does not exist: {example}")));
        return None;
    }
    match policy(config, ui) {
        Ok(policy) => {
            findings.push(Finding::new(Health::Good, "policy", format!("{name} is valid")));
            Some(policy)
        }
        Err(failure) => {
            let first = failure.message.lines().next().unwrap_or_default().to_owned();
            let more = if config == Path::new(DEFAULT_CONFIG) { "" } else { " --config" };
            let help = format!("{first} (`vervet check {name}` shows all{more})");
            findings.push(Finding::new(Health::Bad, "policy", help.replace(" --config)", ")")));
            None
        }
    }
}

fn policy_findings(policy: &Policy, findings: &mut Vec<Finding>) {
    if policy.leashed {
        let text = "runs are decided and logged, nothing is touched; `leashed = false` changes that";
        findings.push(Finding::new(Health::Note, "leash", text));
    }
    let groups = policy.groups.len();
    let (health, text) = match groups {
        0 => {
            (Health::Note, "no capacity group is declared: the limiter has no floor to guard".to_owned())
        }
        1 => (Health::Good, "1 capacity group".to_owned()),
        groups => (Health::Good, format!("{groups} capacity groups")),
    };
    findings.push(Finding::new(health, "groups", text));
    findings.push(state_finding(&policy.state));
}

fn state_finding(state: &Path) -> Finding {
    let name = state.display();
    let Ok(metadata) = fs::metadata(state) else {
        return match state.parent().filter(|parent| writable(parent)) {
            Some(_) => Finding::new(Health::Good, "state", format!("{name} will be made by the agent")),
            None => Finding::new(
                Health::Bad,
                "state",
                format!(
                    "{name} does not exist and this user cannot make it: run as root, or set `state`"
                ),
            ),
        };
    };
    if !metadata.is_dir() {
        return Finding::new(Health::Bad, "state", format!("{name} is not a directory"));
    }
    if metadata.mode() & 0o022 != 0 {
        let text =
            format!("others can write to {name}, and so to what undoes faults: chmod go-w {name}");
        return Finding::new(Health::Bad, "state", text);
    }
    if !writable(state) {
        let text = format!("this user cannot write to {name}: faults need a durable undo there");
        return Finding::new(Health::Bad, "state", text);
    }
    Finding::new(Health::Good, "state", format!("{name} is writable by its owner alone"))
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

async fn agent_finding(client: &Client, findings: &mut Vec<Finding>) -> Option<HostView> {
    let place = client.place();
    match client.host().await {
        Ok(host) => {
            let own = env!("CARGO_PKG_VERSION");
            let (health, text) = if host.version == own {
                (Health::Good, format!("version {own} answers on {place}"))
            } else {
                (Health::Note, format!("version {} answers on {place}, this is {own}", host.version))
            };
            findings.push(Finding::new(health, "agent", text));
            Some(host)
        }
        Err(ClientError::NotRunning(_)) => {
            let text =
                format!("none runs on {place}: what follows is what one started by this user could do");
            findings.push(Finding::new(Health::Note, "agent", text));
            None
        }
        Err(error) => {
            findings.push(Finding::new(Health::Bad, "agent", error.to_string()));
            None
        }
    }
}

fn from_agent(host: &HostView, findings: &mut Vec<Finding>) {
    findings.extend(host.problems.iter().map(|p| Finding::new(Health::Bad, "agent", p.message.clone())));
    if let Some(halt) = &host.halted {
        let text = format!("since {} by {}: {}", halt.since, halt.by, halt.reason);
        findings.push(Finding::new(Health::Note, "halted", text));
    }
    if let Some(freeze) = &host.frozen {
        findings.push(Finding::new(Health::Note, "frozen", super::text::freeze(freeze)));
    }
    let abilities = host.faults.iter().map(|view| Ability {
        fault: view.fault,
        variant: view.variant.clone(),
        available: view.available,
        reason: view.reason.clone(),
    });
    findings.extend(ability_findings(&abilities.collect::<Vec<_>>()));
}

fn from_host(policy: Option<&Policy>, findings: &mut Vec<Finding>) {
    let host = match LinuxHost::new() {
        Ok(host) => host,
        Err(error) => return findings.push(Finding::new(Health::Bad, "host", error.to_string())),
    };
    findings.extend(ability_findings(&host.abilities()));
    match host.headroom() {
        Ok(headroom) => {
            let stocks = [
                ("memory", headroom.memory),
                ("pids", headroom.pids),
                ("file handles", headroom.file_handles),
                ("conntrack", headroom.conntrack),
            ];
            let limits = policy.map(|policy| policy.limits.headroom);
            for (at, (what, stock)) in stocks.into_iter().enumerate() {
                let limit = limits.map(|l| [l.memory, l.pids, l.file_handles, l.conntrack][at].get());
                findings.extend(stock.map(|stock| stock_finding(what, stock, limit)));
            }
        }
        Err(error) => findings.push(Finding::new(Health::Bad, "headroom", error.to_string())),
    }
}

fn stock_finding(what: &str, stock: Stock, limit: Option<f64>) -> Finding {
    let percent = if stock.total == 0 { 0.0 } else { stock.free as f64 * 100.0 / stock.total as f64 };
    let text = format!("{percent:.0}% free");
    match limit {
        Some(limit) if percent < limit => {
            let text = format!("{text}, and {limit}% must stay free: nothing would be admitted");
            Finding::new(Health::Bad, what, text)
        }
        _ => Finding::new(Health::Good, what, text),
    }
}

/// A fault that has one way to be done is well; a way that is missing beside it is worth a note.
fn ability_findings(abilities: &[Ability]) -> Vec<Finding> {
    let one = |ability: &Ability| {
        let any = abilities.iter().any(|other| other.fault == ability.fault && other.available);
        let subject = match &ability.variant {
            Some(variant) => format!("{} ({variant})", ability.fault),
            None => ability.fault.to_string(),
        };
        let reason = ability.reason.clone();
        let health = match (ability.available, any) {
            (true, _) => Health::Good,
            // A host without systemd is as well as any other.
            (false, _) if ability.fault == FaultKind::Unit => Health::Note,
            (false, true) => Health::Note,
            (false, false) => Health::Bad,
        };
        let fallback = if ability.available { "available" } else { "not available" };
        Finding::new(health, &subject, reason.unwrap_or_else(|| fallback.to_owned()))
    };
    abilities.iter().map(one).collect()
}
