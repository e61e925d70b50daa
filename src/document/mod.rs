//! Documents: texts that people write, read into the valid types of [`crate::config`] and
//! [`crate::experiment`], with every error of a file at its place.
//!
//! A text becomes a tree of values with their places; a small reader per section takes the tree
//! apart and collects what is wrong; only a document without any error becomes a value. Nothing
//! here looks at the host: whether groups, users or namespaces exist is known when a plan is made.

use crate::{config::Policy, experiment::Experiment};

mod address;
mod against;
mod calendar;
mod checks;
pub mod diagnostic;
mod experiment;
mod groups;
pub mod icalendar;
mod later;
pub mod library;
mod parse;
mod policy;
mod reader;
mod select;
mod steps;
mod tree;
mod values;
mod write;

pub use against::{against, check_against};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use library::Library;
use reader::{Failed, Read, Report};
use tree::Node;
pub use write::to_json;

/// The largest document, in bytes.
pub const LARGEST: usize = 1024 * 1024;

/// A policy to begin with: leashed, every key explained, all but what must be chosen commented out.
pub const TEMPLATE_POLICY: &str = include_str!("../../systemd/vervet.toml");

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Toml,
    Json,
}

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Policy,
    Experiment,
}

/// Reads a host's policy. `file` is only named in errors.
///
/// # Errors
/// Every error of the document.
pub fn policy(text: &str, file: &str) -> Result<Policy, Diagnostics> {
    read(text, file, Format::Toml, policy::policy)
}

/// Reads an experiment. `file` is only named in errors.
///
/// # Errors
/// Every error of the document.
pub fn experiment(text: &str, file: &str, format: Format) -> Result<Experiment, Diagnostics> {
    read(text, file, format, experiment::experiment)
}

/// Guesses what a document is from its top-level keys; an experiment when they do not tell.
#[must_use]
pub fn kind_of(text: &str) -> Kind {
    let Ok(root) = parse::tree(text, Format::Toml) else { return Kind::Experiment };
    let score = |keys: &[&str], same: fn(&str, &[&str]) -> bool| {
        root.entries().iter().filter(|entry| same(&entry.key, keys)).count()
    };
    let exact = |key: &str, keys: &[&str]| keys.contains(&key);
    let near = |key: &str, keys: &[&str]| reader::nearest(key, keys.iter().copied()).is_some();
    for same in [exact, near] {
        let (policy, experiment) = (score(&later::POLICY, same), score(&later::EXPERIMENT, same));
        if policy != experiment {
            return if policy > experiment { Kind::Policy } else { Kind::Experiment };
        }
    }
    Kind::Experiment
}

/// Checks that bytes are a text, and not too long.
///
/// # Errors
/// When there are too many bytes, or some that are not UTF-8; names the first offset and its line.
pub fn text_from_bytes<'a>(bytes: &'a [u8], file: &str) -> Result<&'a str, Diagnostics> {
    check_size(bytes.len(), file)?;
    str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let before = String::from_utf8_lossy(&bytes[..at]);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let message = format!("byte {at} (line {line}, {:#04x}) is not valid UTF-8", bytes[at]);
        let help = "documents are UTF-8 text";
        let item = Diagnostic::at("", message).with_help(help);
        let item = Diagnostic { line: Some(line), column: Some(column), ..item };
        Diagnostics { file: file.to_owned(), items: vec![item] }
    })
}

fn check_size(bytes: usize, file: &str) -> Result<(), Diagnostics> {
    if bytes <= LARGEST {
        return Ok(());
    }
    let message = format!("{bytes} bytes are too many: a document has at most {LARGEST}");
    Err(Diagnostics { file: file.to_owned(), items: vec![Diagnostic::at("", message)] })
}

fn read<T>(
    text: &str,
    file: &str,
    format: Format,
    read: impl Fn(&Node, &Report) -> Read<T>,
) -> Result<T, Diagnostics> {
    check_size(text.len(), file)?;
    let root = parse::tree(text, format).map_err(|items| Diagnostics::new(file, text, items))?;
    let report = Report::default();
    let result = read(&root, &report);
    let items = report.into_items();
    match result {
        Ok(value) if items.is_empty() => Ok(value),
        Ok(_) | Err(Failed) => Err(Diagnostics::new(file, text, items)),
    }
}
