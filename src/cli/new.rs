//! `vervet new`: a first experiment for a service of the user's, from flags or a few questions.
//!
//! Nothing is written before everything is known, and nothing that is there is replaced unasked. The
//! agent is only looked at, and only if there is one.

use std::{
    fs::{self, File},
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::json;

use crate::{
    cli::{
        Failure, Outcome,
        args::Global,
        ask::{self, Known},
        client::Client,
        draft::{Draft, Kind, Traffic},
        exit::Exit,
        recover,
        ui::Ui,
    },
    view::GroupView,
};

/// How long an agent is looked for: it is a help, not a need.
const GLANCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args)]
pub struct New {
    /// What happens
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// Whose instances are taken; with latency and connections: watched
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Which of the group's units, such as 'checkout@*.service'
    #[arg(long, value_name = "PATTERN")]
    pub unit: Option<String>,
    /// Late or capped: what this host answers to callers of this port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub listen: Option<u16>,
    /// Late or capped: what this host sends to this port of others
    #[arg(long, value_name = "PORT", conflicts_with = "listen", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// What must go on answering, such as http://127.0.0.1:8080/healthz
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// What the experiment is called
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
    /// How long it lasts
    #[arg(long, value_name = "SPAN", default_value = "30s")]
    pub duration: String,
    /// How late answers come
    #[arg(long, value_name = "SPAN", default_value = "100ms")]
    pub delay: String,
    /// How many connections are let in
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub max: u32,
    /// Where it is written [default: KIND-GROUP.toml]; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// A policy to look the group up in, instead of the agent's
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
}

/// Writes an experiment that is valid, and says what to do with it.
///
/// # Errors
/// When answers are missing or no good, or the file is there already.
pub async fn new(args: &New, global: &Global, ui: &Ui) -> Outcome {
    let groups = groups(args, global, ui).await?;
    let mut known = Known::from(args);
    let missing = known.missing();
    if !missing.is_empty() {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Err(Failure::usage(format!(
                "missing: {}\nhelp: without a terminal to ask on, every answer is a flag; `vervet new --help` has them all",
                missing.join(", ")
            )));
        }
        let names: Option<Vec<_>> =
            groups.as_ref().map(|all| all.iter().map(|one| one.0.clone()).collect());
        let mut questions = ask::Questions { input: io::stdin().lock(), output: io::stderr() };
        known = questions.all(known, names.as_deref()).map_err(|error| unanswered(&error))?;
    }
    let draft = known.draft();
    let errors = draft.errors();
    if !errors.is_empty() {
        return Err(Failure::usage(format!("such an experiment is not valid\n{}", errors.join("\n"))));
    }
    let path = known.output.clone().unwrap_or_else(|| PathBuf::from(draft.file_name()));
    write(&path, &draft.text(), args.force, ui)?;
    said(&draft, &path, groups.as_deref(), ui);
    Ok(Exit::Passed)
}

/// The groups of the policy that was named, or of the agent, if there is one. `None`: nobody knows.
async fn groups(args: &New, global: &Global, ui: &Ui) -> Result<Option<Vec<(String, u32)>>, Failure> {
    if let Some(policy) = &args.policy {
        let policy = recover::policy(policy, ui)?;
        return Ok(Some(policy.groups.into_iter().map(|group| (group.name.0, group.floor)).collect()));
    }
    let client = Client::new(global)?;
    let answer = tokio::time::timeout(GLANCE, client.groups()).await;
    let names =
        |groups: Vec<GroupView>| groups.into_iter().map(|group| (group.name, group.floor)).collect();
    Ok(answer.ok().and_then(Result::ok).map(names))
}

fn unanswered(error: &io::Error) -> Failure {
    Failure::usage(format!("{error}; nothing was written"))
}

/// Whole or not at all, and never over somebody else's file.
fn write(path: &Path, text: &str, force: bool, ui: &Ui) -> Result<(), Failure> {
    if path == Path::new("-") {
        // The text ends its last line itself.
        if !ui.json {
            ui.say(text.trim_end());
        }
        return Ok(());
    }
    let shown = path.display();
    if path.extension().is_none_or(|end| end != "toml") {
        let message = format!("{shown} would not be taken for an experiment: let its name end in .toml");
        return Err(Failure::usage(message));
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let help = "help: -o FILE names another one, --force replaces it";
            Failure::usage(format!("{shown} is there already, and is left as it is\n{help}"))
        }
        _ => Failure::failed(format!("failed to write {shown}: {error}")),
    };
    if !force {
        let mut file = File::create_new(path).map_err(failed)?;
        return file.write_all(text.as_bytes()).map_err(|error| {
            let _ = fs::remove_file(path);
            failed(error)
        });
    }
    // Beside it first: a full disk must not cost the old one.
    let beside = path.with_extension(format!("toml.{}", std::process::id()));
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).map_err(|error| {
        let _ = fs::remove_file(&beside);
        failed(error)
    })
}

fn said(draft: &Draft, path: &Path, groups: Option<&[(String, u32)]>, ui: &Ui) {
    let file = shell_word(&path.display().to_string());
    let next = [format!("vervet plan {file}"), format!("vervet run {file}")];
    let known = draft.group.as_ref().zip(groups);
    let known = known.map(|(group, all)| all.iter().any(|(name, _)| name == group));
    let block = if known == Some(true) { None } else { draft.group_block() };
    if ui.json {
        let text = (path == Path::new("-")).then(|| draft.text());
        ui.print_json(&json!({
            "file": path, "title": draft.title(), "text": text, "next": next,
            "group": draft.group, "group_known": known, "policy": block,
        }));
        return;
    }
    if path == Path::new("-") {
        return;
    }
    ui.say(format!("{}: written, and valid\n", path.display()));
    if let (Some(block), Some(group)) = (block, &draft.group) {
        ui.say(match known {
            None => format!(
                "Unless the host's policy has a group {group:?}, its owner adds one there:\n\n{block}"
            ),
            Some(_) => {
                format!("The policy has no group {group:?}. Its owner adds one, such as:\n\n{block}")
            }
        });
    }
    ui.say(format!("next: {}   # what would happen; touches nothing\n      {}", next[0], next[1]));
}

/// As a shell takes it for one word.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./@:+".contains(c);
    if text.chars().all(plain) && !text.starts_with('-') {
        return text.to_owned();
    }
    let dash = if text.starts_with('-') { "./" } else { "" };
    format!("'{dash}{}'", text.replace('\'', "'\\''"))
}

impl From<&New> for Known {
    fn from(args: &New) -> Self {
        let listen = args.listen.map(Traffic::Listen);
        Self {
            kind: args.kind,
            group: args.group.clone(),
            unit: args.unit.clone(),
            traffic: listen.or(args.port.map(Traffic::Port)),
            url: args.url.clone(),
            title: args.title.clone(),
            output: args.output.clone(),
            duration: args.duration.clone(),
            delay: args.delay.clone(),
            max: args.max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn a_shell_takes_a_file_for_one_word() {
        assert_eq!(shell_word("lose-one.toml"), "lose-one.toml");
        assert_eq!(shell_word("lose one.toml"), "'lose one.toml'");
        assert_eq!(shell_word("it's.toml"), "'it'\\''s.toml'");
        assert_eq!(shell_word("-x.toml"), "'./-x.toml'");
    }
}
