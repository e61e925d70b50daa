//! `vervet check`: policies and experiments, any number of files, every error of each.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{
    cli::{
        Outcome,
        exit::Exit,
        source::{self, Text},
        text::count,
        ui::{Tone, Ui},
    },
    document::{self, Diagnostics, Format, Kind},
};

/// Reports on every file; 2 when any is not valid.
///
/// # Errors
/// Never: a file that cannot be read counts as not valid.
pub fn check(files: &[PathBuf], ui: &Ui) -> Outcome {
    let mut reports = Vec::new();
    let mut bad = 0_usize;
    for file in files {
        let (valid, report) = one(file, ui);
        bad += usize::from(!valid);
        reports.push(report);
    }
    if ui.json {
        ui.print_json(&json!({ "valid": bad == 0, "files": reports }));
    } else if files.len() > 1 {
        let good = files.len() - bad;
        ui.say(format!("{} valid, {} not", count(good, "file"), bad));
    }
    Ok(if bad == 0 { Exit::Passed } else { Exit::Usage })
}

fn one(file: &Path, ui: &Ui) -> (bool, Value) {
    let text = match source::read(file) {
        Ok(text) => text,
        Err(failure) => {
            if !ui.json {
                ui.warn(format!("error: {}", failure.message));
            }
            let error = json!({ "message": failure.message });
            return (false, json!({ "file": file, "valid": false, "errors": [error] }));
        }
    };
    let kind = kind(&text);
    let result = match kind {
        Kind::Policy => document::policy(&text.text, &text.name).map(|_| ()),
        Kind::Experiment => document::experiment(&text.text, &text.name, text.format).map(|_| ()),
    };
    let word = match kind {
        Kind::Policy => "policy",
        Kind::Experiment => "experiment",
    };
    let errors = result.err();
    if !ui.json {
        show(&text, word, errors.as_ref(), ui);
    }
    let list = errors.as_ref().map_or(Vec::new(), list);
    let report = json!({ "file": text.name, "kind": word, "valid": errors.is_none(), "errors": list });
    (errors.is_none(), report)
}

fn kind(text: &Text) -> Kind {
    if text.format == Format::Json { Kind::Experiment } else { document::kind_of(&text.text) }
}

fn show(text: &Text, word: &str, errors: Option<&Diagnostics>, ui: &Ui) {
    match errors {
        None => {
            ui.say(format!("{}: {}", text.name, ui.style.paint(Tone::Good, &format!("valid {word}"))));
        }
        Some(errors) => ui.warn(format!("{}\n", source::invalid(errors, text, ui).message)),
    }
}

fn list(errors: &Diagnostics) -> Vec<Value> {
    let item = |item: &document::Diagnostic| {
        json!({
            "path": item.path,
            "line": item.line,
            "column": item.column,
            "message": item.message,
            "help": item.help,
        })
    };
    errors.items.iter().map(item).collect()
}
