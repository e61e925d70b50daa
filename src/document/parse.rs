//! TOML and JSON into the tree, with every syntax error and every key that is given twice.

use std::{
    cell::{Cell, RefCell},
    fmt,
    ops::Range,
};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

use super::{
    Format,
    diagnostic::Diagnostic,
    tree::{Entry, Node, Value, key_path},
};

/// No valid document comes near this number of values.
const MOST_VALUES: usize = 20_000;

const TOO_MANY: &str = "too many values: no valid document has more than 20000";

/// Reads a text; the errors are not yet in order.
///
/// # Errors
/// When it is not well formed, or names a key twice in one table.
pub fn tree(text: &str, format: Format) -> Result<Node, Vec<Diagnostic>> {
    match format {
        Format::Toml => toml_tree(text),
        Format::Json => json_tree(text),
    }
}

fn toml_tree(text: &str) -> Result<Node, Vec<Diagnostic>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(toml_error).collect());
    }
    let mut left = MOST_VALUES;
    if !root.get_ref().iter().all(|(_, value)| fits(value.get_ref(), &mut left)) {
        return Err(vec![Diagnostic::at("", TOO_MANY)]);
    }
    let value = toml_table(root.into_inner(), "");
    Ok(Node { value, span: None, path: String::new() })
}

/// Takes one off `left` for the value and each one in it; false when it runs out.
fn fits(value: &DeValue<'_>, left: &mut usize) -> bool {
    let Some(fewer) = left.checked_sub(1) else { return false };
    *left = fewer;
    match value {
        DeValue::Array(items) => items.iter().all(|item| fits(item.get_ref(), left)),
        DeValue::Table(table) => table.iter().all(|(_, value)| fits(value.get_ref(), left)),
        _ => true,
    }
}

fn toml_error(error: &toml::de::Error) -> Diagnostic {
    let message = format!("invalid TOML: {}", error.message());
    Diagnostic { span: error.span(), ..Diagnostic::at("", message) }
}

fn toml_table(table: DeTable<'_>, path: &str) -> Value {
    let mut entries: Vec<Entry> = table
        .into_iter()
        .map(|(key, value)| {
            let key_span = Some(key.span());
            let key = key.into_inner().into_owned();
            let span = value.span();
            let node = toml_node(value.into_inner(), span, key_path(path, &key));
            Entry { key, key_span, node }
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_span.as_ref().map(|span| span.start));
    Value::Table(entries)
}

fn toml_node(value: DeValue<'_>, span: Range<usize>, path: String) -> Node {
    let value = match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => Value::Integer(integer(number.as_str(), number.radix())),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Bool(flag),
        DeValue::Datetime(time) => Value::Datetime(time.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .into_iter()
                .enumerate()
                .map(|(at, item)| {
                    let span = item.span();
                    toml_node(item.into_inner(), span, format!("{path}[{at}]"))
                })
                .collect(),
        ),
        DeValue::Table(table) => toml_table(table, &path),
    };
    Node { value, span: Some(span), path }
}

fn integer(digits: &str, radix: u32) -> i128 {
    let limit = if digits.starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(digits, radix).unwrap_or(limit)
}

fn json_tree(text: &str) -> Result<Node, Vec<Diagnostic>> {
    let state = State { twice: RefCell::default(), left: Cell::new(MOST_VALUES) };
    let mut json = serde_json::Deserializer::from_str(text);
    let node = Json { path: String::new(), state: &state }
        .deserialize(&mut json)
        .and_then(|node| json.end().map(|()| node))
        .map_err(|error| vec![json_error(text, &error)])?;
    let twice = state.twice.into_inner();
    if twice.is_empty() { Ok(node) } else { Err(twice) }
}

fn json_error(text: &str, error: &serde_json::Error) -> Diagnostic {
    // serde_json ends its texts with the position, which is shown in its own place.
    let said = error.to_string();
    let message = said.split(" at line ").next().unwrap_or(&said);
    let start = position(text, error.line(), error.column());
    Diagnostic { span: Some(start..start + 1), ..Diagnostic::at("", format!("invalid JSON: {message}")) }
}

/// The byte at a line (from 1) and a column (in bytes, from 1; 0 is the end of the line before).
fn position(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (before + column.saturating_sub(1)).min(text.len())
}

/// Builds nodes straight from the parser, because maps would lose keys that are given twice.
struct Json<'a> {
    path: String,
    state: &'a State,
}

struct State {
    twice: RefCell<Vec<Diagnostic>>,
    left: Cell<usize>,
}

impl Json<'_> {
    fn node(self, value: Value) -> Node {
        Node { value, span: None, path: self.path }
    }
}

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let left = self.state.left.get();
        self.state.left.set(left.checked_sub(1).ok_or_else(|| de::Error::custom(TOO_MANY))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(self.node(Value::Null))
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Node, E> {
        Ok(self.node(Value::Bool(flag)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Node, E> {
        Ok(self.node(Value::Integer(number.into())))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Node, E> {
        Ok(self.node(Value::Integer(number.into())))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Node, E> {
        Ok(self.node(Value::Float(number)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Node, E> {
        Ok(self.node(Value::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        let seed = |at: usize| Json { path: format!("{}[{at}]", self.path), state: self.state };
        while let Some(node) = items.next_element_seed(seed(nodes.len()))? {
            nodes.push(node);
        }
        Ok(self.node(Value::List(nodes)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = key_path(&self.path, &key);
            if !seen.insert(key.clone()) {
                let error = Diagnostic::at(path.clone(), "this key is given twice");
                self.state.twice.borrow_mut().push(error);
            }
            let node = map.next_value_seed(Json { path, state: self.state })?;
            entries.push(Entry { key, key_span: None, node });
        }
        Ok(self.node(Value::Table(entries)))
    }
}
