//! A document as a tree of values that know where they were written.
//!
//! TOML and JSON both become this tree, so that every rule is stated once. Nothing here knows what
//! keys mean.

use std::ops::Range;

use crate::units::clip;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub value: Value,
    /// Bytes of the source; `None` in JSON and for the whole document.
    pub span: Option<Range<usize>>,
    /// Such as `step[1].delay`; empty for the whole document.
    pub path: String,
}

/// What TOML and JSON can say.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// Saturated: no key takes a number near the ends.
    Integer(i128),
    Float(f64),
    Text(String),
    /// A TOML date or time, as TOML writes it.
    Datetime(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key of a table with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_span: Option<Range<usize>>,
    pub node: Node,
}

impl Node {
    /// The kind of value, with its article, for messages.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a number with a fraction",
            Value::Text(_) => "a string",
            Value::Datetime(_) => "a date or time",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// The value under a key, if this is a table that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The entries of a table in the order of the document; none for any other value.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        if let Value::Table(entries) = &self.value { entries } else { &[] }
    }

    /// The node with this path, in this node or below it.
    #[must_use]
    pub fn locate(&self, path: &str) -> Option<&Self> {
        if self.path == path {
            return Some(self);
        }
        match &self.value {
            Value::List(items) => items.iter().find_map(|item| item.locate(path)),
            Value::Table(entries) => entries.iter().find_map(|entry| entry.node.locate(path)),
            _ => None,
        }
    }
}

/// The path of a key in the table at `path`. What grows beyond all reason is cut.
#[must_use]
pub fn key_path(path: &str, key: &str) -> String {
    let key = clip(key);
    match path {
        "" => key,
        long if long.len() > LONGEST_PATH => long.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

/// In bytes. No valid path comes near; documents made to exhaust memory do.
const LONGEST_PATH: usize = 256;
