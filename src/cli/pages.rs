//! `vervet completions` and `vervet man`: made from the declaration of the command line.

use std::{fs, io, io::Write, path::Path};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::{Failure, Outcome, args::Cli, exit::Exit};

/// Prints a completion script.
///
/// # Errors
/// When standard output cannot be written.
pub fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(&Cli::command()), "vervet", &mut script);
    print(&script)
}

/// Prints the main page, or writes one page for each command into `dir`.
///
/// # Errors
/// When the pages cannot be written.
pub fn man(dir: Option<&Path>) -> Outcome {
    let command = visible(&Cli::command());
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(|error| Failure::failed(format!("failed to render the page: {error}")))?;
        return print(&page);
    };
    let failed = |error: io::Error| {
        Failure::failed(format!("failed to write the pages to {}: {error}", dir.display()))
    };
    fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(command, dir).map_err(failed)?;
    Ok(Exit::Passed)
}

/// Without the commands that are not for people: generators list even hidden ones.
fn visible(command: &clap::Command) -> clap::Command {
    let kept: Vec<clap::Command> =
        command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned().collect();
    let mut bare = clap::Command::new("vervet")
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments().cloned())
        .subcommands(kept);
    if let Some(about) = command.get_about() {
        bare = bare.about(about.clone());
    }
    if let Some(after) = command.get_after_help() {
        bare = bare.after_help(after.clone());
    }
    bare
}

fn print(bytes: &[u8]) -> Outcome {
    match io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("failed to write the output: {error}")))
        }
        _ => Ok(Exit::Passed),
    }
}
