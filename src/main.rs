//! Arguments, tracing, exit codes; nothing else.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use vervet::cli::{
    self,
    args::{Cli, Command},
};

fn main() -> ExitCode {
    // Usage errors end here with 2, as everywhere.
    let cli = Cli::parse();
    start_logging(&cli);
    cli::execute(cli)
}

/// Logs go to standard error: `--log`, else RUST_LOG, else what a command of this kind needs.
fn start_logging(cli: &Cli) {
    let usual = match cli.command {
        Command::Agent(_) | Command::Warden => "info",
        _ => "error",
    };
    let asked = cli.global.log.clone().or_else(|| std::env::var("RUST_LOG").ok());
    let filter = EnvFilter::try_new(asked.as_deref().unwrap_or(usual));
    if let Err(error) = &filter {
        eprintln!("warning: the log filter is not understood ({error}); using {usual}");
    }
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(usual));
    // The journal of systemd stamps the time itself.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    if journal { builder.without_time().init() } else { builder.init() }
}
