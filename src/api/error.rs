//! Everything that is not a success, as an RFC 9457 problem document.
//!
//! The one place where errors of the other parts become HTTP statuses and stable reason codes.
//! A problem's text is for people and may change; its `reason` is for programs and may not.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::{runner::RequestError, view::ReasonView};

/// The media type of every answer that is not a success.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What a problem says on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemView {
    /// `urn:vervet:problem:` and the reason.
    #[serde(rename = "type")]
    pub kind: String,
    /// The reason in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What is wrong, with the numbers, and what would make it right.
    pub detail: String,
    /// For programs: `snake_case`, never changed.
    pub reason: String,
    /// The numbers and names behind it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schema(value_type = Object, required = false)]
    pub numbers: Value,
    /// For documents: everything that is wrong, in the order of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<DocumentErrorView>,
}

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = DocumentError)]
pub struct DocumentErrorView {
    /// Where in the document: `step[0].duration`
    pub path: String,
    /// From 1.
    pub line: Option<u32>,
    /// In characters, from 1.
    pub column: Option<u32>,
    pub message: String,
    /// The nearest valid word, or what to write instead.
    pub help: Option<String>,
}

/// A problem on its way out: the document, and headers that belong to it.
#[derive(Debug, Clone)]
pub struct Problem(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    view: ProblemView,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem with a stable `reason` code.
    #[must_use]
    pub fn new(status: StatusCode, reason: &str, detail: impl Into<String>) -> Self {
        let view = ProblemView {
            kind: format!("urn:vervet:problem:{reason}"),
            title: title(reason),
            status: status.as_u16(),
            detail: detail.into(),
            reason: reason.to_owned(),
            numbers: Value::Null,
            errors: Vec::new(),
        };
        Self(Box::new(Inner { view, headers: Vec::new() }))
    }

    /// 422: understood, and wrong.
    #[must_use]
    pub fn unprocessable(reason: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, reason, detail)
    }

    /// The numbers and names behind it, an object.
    #[must_use]
    pub fn with_numbers(mut self, numbers: Value) -> Self {
        self.0.view.numbers = numbers;
        self
    }

    /// What is wrong with a document, each.
    #[must_use]
    pub fn with_errors(mut self, errors: Vec<DocumentErrorView>) -> Self {
        self.0.view.errors = errors;
        self
    }

    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Says that the connection ends with this answer: its stream is not to be trusted any more.
    #[must_use]
    pub fn closing(self) -> Self {
        self.with_header(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// Try again in so many seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u16) -> Self {
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    #[must_use]
    pub fn view(&self) -> &ProblemView {
        &self.0.view
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Inner { view, headers } = *self.0;
        // A struct of strings and JSON values always serializes.
        let body = serde_json::to_vec(&view).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(view.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = HeaderValue::from_static(PROBLEM_JSON);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        for (name, value) in headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let text = error.to_string();
        match error {
            RequestError::NotFound => Self::new(StatusCode::NOT_FOUND, "unknown_run", text),
            RequestError::KeyReused(run) => {
                Self::unprocessable("idempotency_key_reused", text).with_numbers(json!({ "run": run }))
            }
            RequestError::Rejected(why) => Self::from(why),
            RequestError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", text).retry_after(5)
            }
        }
    }
}

/// The request was fine and this host, as it is, cannot do it: 409. Unless it cannot write just now.
impl From<ReasonView> for Problem {
    fn from(why: ReasonView) -> Self {
        let status = match why.reason.as_str() {
            "journal_unavailable" | "release_not_durable" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, &why.reason, why.message).with_numbers(why.numbers)
    }
}

/// Something that is the agent's own fault; the detail is logged, not told.
#[must_use]
pub fn internal(what: &str, error: &dyn std::fmt::Display) -> Problem {
    tracing::error!("failed to {what}: {error}");
    let detail = format!("the agent failed to {what}; its log says why");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
}

/// The history cannot be read: what is in memory can still be asked for.
#[must_use]
pub fn history_unreadable(error: &anyhow::Error) -> Problem {
    tracing::error!("failed to read the history: {error:#}");
    let detail = format!("the history cannot be read: {error:#}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "history_unreadable", detail).retry_after(5)
}

/// The directory of experiments cannot be read.
#[must_use]
pub fn library_unreadable(error: &std::io::Error) -> Problem {
    let detail = format!("the library cannot be read: {error}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "library_unreadable", detail)
}

/// A problem for a bare status, as the HTTP machinery gives it.
#[must_use]
pub fn of_status(status: StatusCode) -> Problem {
    let words = status.canonical_reason().unwrap_or("error").to_ascii_lowercase();
    let reason: String =
        words.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    Problem::new(status, &reason, words)
}

/// `unknown_run` to `Unknown run`.
fn title(reason: &str) -> String {
    let mut words = reason.replace('_', " ");
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    words
}
