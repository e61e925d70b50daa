//! Arguments, tracing, exit codes; nothing else.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};
use vervet::{
    cli::{
        self,
        args::{Cli, Command},
    },
    host::linux::sys,
    service::journald::Journald,
};

fn main() -> ExitCode {
    sys::names_without_plugins();
    // Usage errors end here with 2, as everywhere.
    let cli = Cli::parse();
    start_logging(&cli);
    cli::execute(cli)
}

/// Logs go to the journal where that is what standard error is, else to standard error: `--log`,
/// else RUST_LOG, else what a command of this kind needs.
fn start_logging(cli: &Cli) {
    let journald = Journald::from_environment();
    let usual = match cli.command {
        Command::Agent(_) | Command::Warden => "info",
        Command::Recover(_) if journald.is_some() => "info",
        _ => "error",
    };
    let asked = cli.global.log.clone().or_else(|| std::env::var("RUST_LOG").ok());
    let filter = EnvFilter::try_new(asked.as_deref().unwrap_or(usual));
    if let Err(error) = &filter {
        eprintln!("warning: the log filter is not understood ({error}); using {usual}");
    }
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(usual));
    let registry = tracing_subscriber::registry().with(filter);
    if let Some(journald) = journald {
        return registry.with(journald).init();
    }
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    // Whoever collects it for a journal stamps the time itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry.with(stderr.without_time()).init();
    } else {
        registry.with(stderr).init();
    }
}
