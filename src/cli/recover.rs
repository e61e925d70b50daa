//! `vervet recover`: undoes what a dead agent left behind, from its journal, without an agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde_json::json;

use crate::{
    cli::{
        Failure, Outcome,
        args::Recover,
        exit::Exit,
        source,
        text::count,
        ui::{Tone, Ui},
    },
    config::{DEFAULT_STATE, Policy},
    document,
    host::linux::LinuxHost,
    journal::{
        self, Journal, JournalError,
        recovery::{Recovered, recover as revert_all},
    },
    service::journald,
};

/// Reverts all that the journal holds open, and says what that was; 6 when something is stuck.
///
/// # Errors
/// When the policy or the journal cannot be read; nothing was touched then.
pub fn recover(args: &Recover, ui: &Ui) -> Outcome {
    let state = match &args.state {
        Some(state) => state.clone(),
        None => state_of(&args.config, ui)?,
    };
    // Where nothing was ever written there is nothing to undo, and nothing is made.
    if !is_journal(&state) {
        return Ok(said(&Recovered::default(), ui));
    }
    let journal = Journal::open(&state).map_err(|error| unreadable(&error))?;
    let host =
        LinuxHost::new().map_err(|error| Failure::failed(format!("failed to recover: {error}")))?;
    let recovered = revert_all(&journal, &host, Timestamp::now()).map_err(|error| unreadable(&error))?;
    Ok(said(&recovered, ui))
}

/// The state directory that the policy names. A policy that was broken meanwhile must not keep faults
/// in force: what can be made of it is enough, where a journal is found by that.
fn state_of(config: &Path, ui: &Ui) -> Result<PathBuf, Failure> {
    let failure = match policy(config, ui) {
        Ok(policy) => return Ok(policy.state),
        Err(failure) => failure,
    };
    let text = fs::read_to_string(config).unwrap_or_default();
    let table: toml::Table = toml::from_str(&text).unwrap_or_default();
    let named = table.get("state").and_then(toml::Value::as_str);
    let state = PathBuf::from(named.unwrap_or(DEFAULT_STATE));
    if !is_journal(&state) {
        return Err(with_help(failure));
    }
    let (config, state_dir) = (config.display(), state.display());
    ui.warn(format!("warning: {config} is not valid; going by the journal in {state_dir}"));
    Ok(state)
}

/// There is a journal, or what is left of one.
fn is_journal(state: &Path) -> bool {
    ["", "-wal"].iter().any(|suffix| state.join(format!("{}{suffix}", journal::FILE)).exists())
}

/// The policy, or why it cannot be used.
///
/// # Errors
/// When it cannot be read or is not valid.
pub fn policy(config: &Path, ui: &Ui) -> Result<Policy, Failure> {
    let text = source::read(config)?;
    document::policy(&text.text, &text.name).map_err(|errors| source::invalid(&errors, &text, ui))
}

fn with_help(failure: Failure) -> Failure {
    let help = "help: `--state DIR` names the agent's state directory, and no policy is needed then";
    Failure { message: format!("{}\n{help}", failure.message), ..failure }
}

fn unreadable(error: &JournalError) -> Failure {
    let help = "help: if the agent runs, it does this by itself: `vervet status`";
    let exit = match error.reason() {
        "journal_locked" | "journal_read_only" => Exit::Unreachable,
        _ => Exit::Failed,
    };
    Failure { exit, message: format!("failed to recover: {error}\n{help}"), document: None }
}

fn said(recovered: &Recovered, ui: &Ui) -> Exit {
    let stuck = !recovered.stuck.is_empty();
    if ui.json {
        let reverted: Vec<_> = recovered
            .reverted
            .iter()
            .map(|one| json!({ "fault": one.fault, "run": one.run, "step": one.step, "kind": one.kind, "what": one.what, "undone": one.undone }))
            .collect();
        let stuck: Vec<_> = recovered
            .stuck
            .iter()
            .map(|(fault, errors)| json!({ "fault": fault, "errors": errors }))
            .collect();
        let unrecorded = recovered.unrecorded.as_ref().map(ToString::to_string);
        ui.print_json(&json!({
            "reverted": reverted, "stuck": stuck, "runs": recovered.runs, "unrecorded": unrecorded,
        }));
    } else {
        lines(recovered, ui);
    }
    if stuck { Exit::Stuck } else { Exit::Passed }
}

fn lines(recovered: &Recovered, ui: &Ui) {
    // In the journal recovery has said that much already, with fields.
    let told = journald::in_use();
    for one in recovered.reverted.iter().filter(|one| one.undone && !told) {
        ui.say(format!("undone: {} of run {}: {}", one.kind, one.run, one.what));
    }
    for (fault, errors) in recovered.stuck.iter().filter(|_| !told) {
        ui.say(ui.style.paint(Tone::Bad, &format!("STUCK: {}: {}", fault.0, errors.join("; "))));
    }
    for run in &recovered.runs {
        ui.say(format!("run {run} is recorded as ended by the agent's death"));
    }
    if let Some(error) = &recovered.unrecorded {
        ui.warn(format!("warning: not recorded, the next recovery will repeat it: {error}"));
    }
    let undone = recovered.reverted.iter().filter(|one| one.undone).count();
    match (undone, recovered.stuck.len()) {
        (0, 0) => ui.say("nothing was left behind: the host is clean"),
        (undone, 0) => ui.say(format!("{} undone: the host is clean", count(undone, "fault"))),
        (undone, stuck) => ui.say(format!("{} undone, {stuck} stuck", count(undone, "fault"))),
    }
}
