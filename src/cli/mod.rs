//! The command line: asks the agent (or, for a few commands, the host) and says what came of it.
//!
//! One file for each command that is more than a call. Everything that is shown is rendered by pure
//! functions in [`render`] and [`live`]; every way to end is an [`Exit`]. Nothing here decides what
//! may be done to a host: that is the agent's.

use std::process::ExitCode;

use serde_json::Value;

pub mod args;
pub mod ask;
pub mod calendar;
pub mod check;
pub mod client;
pub mod doctor;
pub mod draft;
pub mod exit;
pub mod feed;
pub mod follow;
pub mod lessons;
pub mod lever;
pub mod live;
pub mod new;
pub mod pages;
pub mod place;
pub mod plan;
pub mod problem;
pub mod recover;
pub mod render;
pub mod run;
pub mod runs;
pub mod source;
pub mod sse;
pub mod standalone;
pub mod status;
pub mod text;
pub mod token;
pub mod ui;

use args::{Cli, Command, Global};
use client::{Client, ClientError};
use exit::Exit;
use ui::Ui;

use crate::host::linux::LinuxHost;

/// How a command ends, when it ends as it should.
pub type Outcome = Result<Exit, Failure>;

/// Why a command could not do what it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    pub exit: Exit,
    /// For people; may have several lines.
    pub message: String,
    /// For programs: a problem document.
    pub document: Option<Value>,
}

impl Failure {
    /// It did not work.
    #[must_use]
    pub fn failed(message: String) -> Self {
        Self { exit: Exit::Failed, message, document: None }
    }

    /// It was asked wrongly.
    #[must_use]
    pub fn usage(message: String) -> Self {
        Self { exit: Exit::Usage, message, document: None }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let document = match &error {
            ClientError::Problem(problem) => serde_json::to_value(problem).ok(),
            _ => None,
        };
        Self { exit: error.exit(), message: error.to_string(), document }
    }
}

/// Does what the command line says.
#[must_use]
pub fn execute(cli: Cli) -> ExitCode {
    let Cli { global, command } = cli;
    let ui = Ui::detect(global.json, global.color);
    match dispatch(command, &global, &ui) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            report(&failure, &ui);
            failure.exit.into()
        }
    }
}

/// Errors go to standard error; with `--json` standard output still gets its one document.
fn report(failure: &Failure, ui: &Ui) {
    if ui.json {
        let document = failure.document.clone().unwrap_or_else(|| {
            serde_json::json!({ "title": "Error", "detail": failure.message, "exit": failure.exit.code() })
        });
        ui.print_json(&document);
        return;
    }
    // Compiler-style messages bring their own "error:".
    let prefix = if failure.message.starts_with("error") { "" } else { "error: " };
    ui.warn(format!("{prefix}{}", failure.message));
}

fn dispatch(command: Command, global: &Global, ui: &Ui) -> Outcome {
    match command {
        // These need no agent, and some of them no runtime.
        Command::Agent(args) => agent(&args),
        Command::Warden => warden(),
        Command::Demo(args) => crate::demo::start(&args, global, ui),
        Command::DemoPart(part) => crate::demo::part(part, ui),
        Command::Check(args) => check::check(&args.files, ui),
        Command::Recover(args) => recover::recover(&args, ui),
        Command::Token(args) => token::token(&args, ui),
        Command::Completions { shell } => pages::completions(shell),
        Command::Man { dir } => pages::man(dir.as_deref()),
        command => runtime()?.block_on(talk(command, global, ui)),
    }
}

async fn talk(command: Command, global: &Global, ui: &Ui) -> Outcome {
    if let Command::Doctor(args) = &command {
        return doctor::doctor(&args.config, global, ui).await;
    }
    if let Command::New(args) = &command {
        return new::new(args, global, ui).await;
    }
    if let Command::Run(args @ args::Run { config: Some(config), .. }) = &command {
        return standalone::run(args, config, global, ui).await;
    }
    let client = Client::new(global)?;
    match command {
        Command::Run(args) => run::run(&client, &args, ui).await,
        Command::Plan(args) => plan::plan(&client, &args, ui).await,
        Command::Runs(args) => runs::runs(&client, &args, ui).await,
        Command::Show(args) => runs::show(&client, &args, ui).await,
        Command::Watch(args) => runs::watch(&client, args.id.as_deref(), ui).await,
        Command::Abort(args) => runs::abort(&client, &args.id, ui).await,
        Command::Halt(args) => lever::halt(&client, &args.reason, ui).await,
        Command::Resume => lever::resume(&client, ui).await,
        Command::Calendar(args) => calendar::calendar(&client, &args, ui).await,
        Command::Schedules(args) => calendar::schedules(&client, args.action.as_ref(), ui).await,
        Command::Status => status::status(&client, ui).await,
        Command::Faults => status::faults(&client, ui).await,
        _ => unreachable!("dispatched without an agent"),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("failed to start: {error}")))
}

/// Runs the agent to its end. What it could not undo is the business of whoever started it.
fn agent(args: &args::Agent) -> Outcome {
    match crate::agent::run(&args.policy.config, args.until_eof) {
        Ok(0) => Ok(Exit::Passed),
        Ok(stuck) => {
            let message = format!(
                "{} could not be undone; `vervet recover` tries again",
                text::count(stuck as usize, "fault")
            );
            Err(Failure { exit: Exit::Stuck, message, document: None })
        }
        // Whoever restarts agents can tell what a restart does not help against.
        Err(error) if error.is::<crate::agent::PolicyError>() => Err(Failure::usage(error.to_string())),
        Err(error) => Err(Failure::failed(format!("{error:#}"))),
    }
}

fn warden() -> Outcome {
    let host = LinuxHost::new().map_err(|error| Failure::failed(error.to_string()))?;
    match crate::warden::main(&host) {
        Ok(()) => Ok(Exit::Passed),
        Err(error) => Err(Failure { exit: Exit::Stuck, message: format!("{error:#}"), document: None }),
    }
}
