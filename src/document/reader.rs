//! Reads tables key by key and collects every error instead of stopping at the first.
//!
//! Reading functions return [`Failed`] once what is wrong has been reported, so that the caller goes
//! on with the other keys and gives up only when it needs the value. What keys mean is not known here.

use std::cell::{Cell, RefCell};

use super::{
    diagnostic::Diagnostic,
    tree::{Entry, Node, Value, key_path},
};
use crate::units::clip;

/// No value: why not has been reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

pub type Read<T> = Result<T, Failed>;

/// More errors than these are counted, not shown.
const MOST_ERRORS: usize = 100;

/// Collects what is wrong.
#[derive(Debug, Default)]
pub struct Report {
    items: RefCell<Vec<Diagnostic>>,
    more: Cell<usize>,
}

impl Report {
    /// Reports an error at a node.
    pub fn error(&self, node: &Node, message: impl Into<String>) -> Failed {
        self.push(Diagnostic { span: node.span.clone(), ..Diagnostic::at(&node.path, message) })
    }

    /// Reports an error at a node and what to do about it.
    pub fn advise(&self, node: &Node, message: impl Into<String>, help: impl Into<String>) -> Failed {
        let error = Diagnostic::at(&node.path, message).with_help(help);
        self.push(Diagnostic { span: node.span.clone(), ..error })
    }

    /// Reports a value of the wrong type.
    pub fn mismatch(&self, node: &Node, expected: &str) -> Failed {
        let message = format!("expected {expected}, found {}", node.describe());
        match node.value {
            Value::Null => self.advise(node, message, "leave the key out instead"),
            _ => self.error(node, message),
        }
    }

    pub fn push(&self, item: Diagnostic) -> Failed {
        let mut items = self.items.borrow_mut();
        if items.len() < MOST_ERRORS {
            items.push(item);
        } else {
            self.more.set(self.more.get() + 1);
        }
        Failed
    }

    /// Further errors are only counted, so the caller need not look for words.
    fn is_full(&self) -> bool {
        self.items.borrow().len() >= MOST_ERRORS
    }

    /// All that was reported.
    #[must_use]
    pub fn into_items(self) -> Vec<Diagnostic> {
        let mut items = self.items.into_inner();
        if self.more.get() > 0 {
            items.push(Diagnostic::at("", format!("and {} more errors", self.more.get())));
        }
        items
    }
}

/// What a table is and which keys it has.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// With its article: "a step".
    pub what: &'a str,
    /// The valid keys, in the order in which a message lists them.
    pub keys: &'a [&'a [&'static str]],
    /// What to say about keys that are known, but not valid here.
    pub known: fn(&str) -> Option<Known>,
}

impl Shape<'_> {
    fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().copied().flatten().copied()
    }
}

/// An explanation of a key or a word that is not valid where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub message: String,
    pub help: String,
}

/// An open table, its unknown keys reported.
#[derive(Debug)]
pub struct Table<'a> {
    pub node: &'a Node,
    pub report: &'a Report,
    entries: &'a [Entry],
    /// Keys that unknown ones were taken for: their absence needs no error of its own.
    meant: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// # Errors
    /// When the node is not a table. Unknown keys are reported, but the table is read all the same.
    pub fn open(node: &'a Node, report: &'a Report, shape: &Shape<'_>) -> Read<Self> {
        let mut table = Self::open_unchecked(node, report, shape.what)?;
        let entries = table.entries;
        let strangers = entries.iter().filter(|entry| !shape.keys().any(|key| key == entry.key));
        table.meant =
            strangers.filter_map(|entry| report_stranger(entry, report, shape, entries)).collect();
        Ok(table)
    }

    /// Leaves unknown keys alone.
    ///
    /// # Errors
    /// When the node is not a table.
    pub fn open_unchecked(node: &'a Node, report: &'a Report, what: &str) -> Read<Self> {
        let Value::Table(entries) = &node.value else {
            return Err(report.mismatch(node, &format!("{what} (a table)")));
        };
        Ok(Self { node, report, entries, meant: Vec::new() })
    }

    /// The value of a key.
    pub fn node(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    pub fn has(&self, key: &str) -> bool {
        self.node(key).is_some()
    }

    /// An unknown key was reported that probably meant this one.
    pub fn meant(&self, key: &str) -> bool {
        self.meant.contains(&key)
    }

    /// Reads an optional key.
    pub fn find<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a Node, &'a Report) -> Read<T>,
    ) -> Read<Option<T>> {
        self.node(key).map(|node| read(node, self.report)).transpose()
    }

    /// Reads a key with a default.
    pub fn or<T>(
        &self,
        key: &str,
        default: T,
        read: impl FnOnce(&'a Node, &'a Report) -> Read<T>,
    ) -> Read<T> {
        self.find(key, read).map(|found| found.unwrap_or(default))
    }

    /// Reads a key that must be there. `example` shows how to write it.
    pub fn need<T>(
        &self,
        key: &str,
        example: &str,
        read: impl FnOnce(&'a Node, &'a Report) -> Read<T>,
    ) -> Read<T> {
        match self.find(key, read)? {
            Some(value) => Ok(value),
            None => Err(self.missing(key, example)),
        }
    }

    /// Reports that a key is missing, unless a misspelt one has been reported in its place.
    pub fn missing(&self, key: &str, example: &str) -> Failed {
        if self.meant(key) {
            return Failed;
        }
        let message = format!("the key `{key}` is missing");
        let error = Diagnostic::at(key_path(&self.node.path, key), message);
        let error = error.with_help(format!("for example: {example}"));
        self.report.push(Diagnostic { span: self.node.span.clone(), ..error })
    }
}

/// Reports a key that does not belong here; returns the one that was probably meant.
fn report_stranger(
    entry: &Entry,
    report: &Report,
    shape: &Shape<'_>,
    entries: &[Entry],
) -> Option<&'static str> {
    let error = |message: String, help: String| {
        let error = Diagnostic::at(&entry.node.path, message).with_help(help);
        report.push(Diagnostic { span: entry.key_span.clone(), ..error });
    };
    if let Some(known) = (shape.known)(&entry.key) {
        error(known.message, known.help);
        return None;
    }
    if report.is_full() {
        error(String::new(), String::new());
        return None;
    }
    let absent = || shape.keys().filter(|key| !entries.iter().any(|entry| entry.key == *key));
    let near = synonym(&entry.key, absent()).or_else(|| nearest(&entry.key, shape.keys()));
    let message = format!("unknown key `{}` in {}", clip(&entry.key), shape.what);
    match near {
        Some(key) => error(message, format!("did you mean `{key}`?")),
        None => error(message, format!("the keys here are {}", listed(shape.keys()))),
    }
    near
}

/// The word that was probably meant.
#[must_use]
pub fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 100 {
        return None;
    }
    let lower = word.to_lowercase().replace('-', "_");
    words
        .map(|known| (strsim::damerau_levenshtein(&lower, &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= known.len().max(lower.len()).div_ceil(3).min(3))
        .filter(|(distance, known)| *distance < known.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Words for one item each, for people: "`a`, `b` and `c`".
#[must_use]
pub fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|word| format!("`{word}`")).collect();
    match words.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// Names that other tools use for what is meant here.
fn synonym(key: &str, mut keys: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    const SYNONYMS: [(&str, &[&str]); 11] = [
        ("within", &["timeout", "deadline", "max_latency"]),
        ("every", &["interval", "period", "frequency"]),
        ("hypothesis", &["description", "summary"]),
        ("title", &["name"]),
        ("fault", &["type", "kind", "action", "attack"]),
        ("target", &["selector", "select", "process", "processes"]),
        ("pick", &["count", "quantity", "number", "limit"]),
        ("delay", &["latency", "time"]),
        ("floor", &["min", "minimum", "min_ready"]),
        ("tolerate", &["retries", "failures", "threshold"]),
        ("body", &["contains", "content"]),
    ];
    keys.find(|valid| SYNONYMS.iter().any(|(meant, others)| meant == valid && others.contains(&key)))
}
