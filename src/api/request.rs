//! What a plan or a run is asked for with: a document, or the name of one in the library.

use std::sync::Arc;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{
    document::{self, Diagnostics, Format, Library, library::LibraryError},
    experiment::Experiment,
};

use super::{
    body::{Language, Received, is_json_object, json_object},
    error::{DocumentErrorView, Problem},
    gate::Params,
};

/// What a request comes down to.
#[derive(Debug)]
pub struct Asked {
    pub experiment: Arc<Experiment>,
    pub seed: Option<u64>,
    /// The digest of a plan.
    pub plan: Option<String>,
}

/// The longest digest that is looked at.
const MAX_DIGEST: usize = 128;

/// A request that carries its document or its name in a field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped<'a> {
    #[serde(borrow)]
    experiment: &'a RawValue,
    #[serde(borrow)]
    seed: Option<&'a RawValue>,
    #[serde(borrow)]
    plan: Option<&'a RawValue>,
}

/// Reads a request's body and query.
///
/// # Errors
/// 415 for another language, 422 for what is wrong with the document or the fields around it, 404
/// for a name that the library does not have.
pub fn asked(library: &Library, params: &Params, body: &Received) -> Result<Asked, Problem> {
    let language = body.language(&[Language::Json, Language::Toml])?;
    let text = document::text_from_bytes(&body.bytes, "body").map_err(|e| invalid(&e))?;
    let seed = params.read("seed", "a whole number below 2^64", whole)?;
    let plan = params.read("plan", "the digest of a plan", digest)?;
    if language == Language::Json && is_wrapped(text) {
        return unwrap(library, text, seed, plan);
    }
    let format = match language {
        Language::Json => Format::Json,
        Language::Toml => Format::Toml,
    };
    let experiment = document::experiment(text, "body", format).map_err(|e| invalid(&e))?;
    Ok(Asked { experiment: Arc::new(experiment), seed, plan })
}

/// An object with a field `experiment`, which no document has.
fn is_wrapped(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Peek {
        experiment: Option<serde::de::IgnoredAny>,
    }
    is_json_object(text.as_bytes())
        && serde_json::from_str::<Peek>(text).is_ok_and(|peek| peek.experiment.is_some())
}

fn unwrap(
    library: &Library,
    text: &str,
    seed: Option<u64>,
    plan: Option<String>,
) -> Result<Asked, Problem> {
    let wrapped: Wrapped<'_> = json_object(text.as_bytes())?;
    let experiment = match serde_json::from_str::<String>(wrapped.experiment.get()) {
        Ok(name) => from_library(library, &name)?,
        Err(_) => document::experiment(wrapped.experiment.get(), "body", Format::Json)
            .map_err(|e| invalid(&e))?,
    };
    let number = |text: &str| serde_json::from_str::<u64>(text).ok();
    let field_seed = field("seed", "a whole number below 2^64", wrapped.seed, number)?;
    let text = |text: &str| digest(&serde_json::from_str::<String>(text).ok()?);
    let field_plan = field("plan", "the digest of a plan", wrapped.plan, text)?;
    Ok(Asked {
        experiment: Arc::new(experiment),
        seed: once("seed", seed, field_seed)?,
        plan: once("plan", plan, field_plan)?,
    })
}

/// An experiment by name.
///
/// # Errors
/// 404 for a name that the library does not have, 422 for an invalid file, 503 for one that cannot
/// be read.
pub fn from_library(library: &Library, name: &str) -> Result<Experiment, Problem> {
    library.load(name).map(|(experiment, _)| experiment).map_err(|error| library_problem(&error))
}

fn library_problem(error: &LibraryError) -> Problem {
    let text = error.to_string();
    match error {
        LibraryError::Name(name) => Problem::new(StatusCode::NOT_FOUND, "unknown_experiment", text)
            .with_numbers(json!({ "name": name })),
        LibraryError::NotFound { name, near } => {
            Problem::new(StatusCode::NOT_FOUND, "unknown_experiment", text)
                .with_numbers(json!({ "name": name, "nearest": near }))
        }
        LibraryError::Ambiguous(name) => {
            Problem::new(StatusCode::CONFLICT, "ambiguous_experiment", text)
                .with_numbers(json!({ "name": name }))
        }
        LibraryError::Unreadable { .. } => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "library_unreadable", text)
        }
        LibraryError::Invalid { diagnostics, .. } => invalid(diagnostics),
    }
}

fn field<T>(
    name: &str,
    wanted: &str,
    value: Option<&RawValue>,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Problem> {
    let Some(value) = value else { return Ok(None) };
    match read(value.get()) {
        Some(value) => Ok(Some(value)),
        None => Err(Problem::unprocessable("invalid_field", format!("`{name}` must be {wanted}"))
            .with_numbers(json!({ "field": name }))),
    }
}

fn once<T>(name: &str, query: Option<T>, field: Option<T>) -> Result<Option<T>, Problem> {
    if query.is_some() && field.is_some() {
        let detail = format!("`{name}` is given in the query and in the body");
        return Err(Problem::unprocessable("given_twice", detail).with_numbers(json!({ "field": name })));
    }
    Ok(query.or(field))
}

fn whole(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn digest(text: &str) -> Option<String> {
    let fits = (1..=MAX_DIGEST).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.to_owned())
}

/// 422, with everything that is wrong with a document.
pub fn invalid(diagnostics: &Diagnostics) -> Problem {
    let errors = document_errors(diagnostics);
    let detail = match errors.as_slice() {
        [one] => format!("the experiment is not valid: {}", one.message),
        many => format!("the experiment is not valid: {} errors", many.len()),
    };
    Problem::unprocessable("invalid_experiment", detail).with_errors(errors)
}

/// Diagnostics as they go over the wire.
fn document_errors(diagnostics: &Diagnostics) -> Vec<DocumentErrorView> {
    let number = |number: Option<usize>| number.and_then(|number| u32::try_from(number).ok());
    let view = |item: &document::Diagnostic| DocumentErrorView {
        path: item.path.clone(),
        line: number(item.line),
        column: number(item.column),
        message: item.message.clone(),
        help: item.help.clone(),
    };
    diagnostics.items.iter().map(view).collect()
}
