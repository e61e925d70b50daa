//! What `FILE|NAME` means, and reading documents with messages that point at the error.

use std::{fs, io::Read as _, path::Path};

use crate::{
    cli::{Failure, client::Document, ui::Ui},
    document::{self, Diagnostics, Format},
};

/// The most that a document may hold, in bytes: the API takes no more.
const MOST: u64 = 1 << 20;

/// A file as text, with the name that messages use.
#[derive(Debug, Clone)]
pub struct Text {
    pub name: String,
    pub text: String,
    pub format: Format,
}

/// Whether the argument means a file of this side rather than a name on the host.
#[must_use]
pub fn is_file(argument: &str) -> bool {
    let extension = Path::new(argument).extension();
    argument == "-"
        || argument.contains('/')
        || extension.is_some_and(|end| end == "toml" || end == "json")
        || Path::new(argument).exists()
}

/// What is to be run: a valid document, or a name for the agent to look up.
///
/// # Errors
/// When the file cannot be read or is not a valid experiment.
pub fn experiment(argument: &str, ui: &Ui) -> Result<Document, Failure> {
    if !is_file(argument) {
        return Ok(Document::Name(argument.to_owned()));
    }
    let text = read(Path::new(argument))?;
    document::experiment(&text.text, &text.name, text.format)
        .map_err(|errors| invalid(&errors, &text, ui))?;
    Ok(match text.format {
        Format::Toml => Document::Toml(text.text),
        Format::Json => Document::Json(text.text),
    })
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// When it cannot be read, is too large, or is not UTF-8.
pub fn read(path: &Path) -> Result<Text, Failure> {
    let dash = path == Path::new("-");
    let name = if dash { "standard input".to_owned() } else { path.display().to_string() };
    let failed = |why: String| Failure::usage(format!("failed to read {name}: {why}"));
    let mut bytes = Vec::new();
    let result = if dash {
        std::io::stdin().lock().take(MOST + 1).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
    };
    result.map_err(|error| failed(error.to_string()))?;
    if bytes.len() as u64 > MOST {
        return Err(failed("it is larger than 1 MiB".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].split(|byte| *byte == b'\n').count();
        failed(format!("it is not UTF-8 text: byte {at}, in line {line}"))
    })?;
    let json = path.extension().is_some_and(|end| end == "json")
        || (dash && text.trim_start().starts_with('{'));
    Ok(Text { name, text, format: if json { Format::Json } else { Format::Toml } })
}

/// The failure that a document with errors is.
#[must_use]
pub fn invalid(errors: &Diagnostics, text: &Text, ui: &Ui) -> Failure {
    let count = crate::cli::text::count(errors.items.len(), "error");
    let shown = errors.render(&text.text, ui.style.color);
    Failure::usage(format!("{shown}\n\n{}: {count}", text.name))
}
