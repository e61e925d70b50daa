//! Reading a request's body: bounded in bytes, in time, and in how many are read at once.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::{
    app::App,
    error::Problem,
    gate::JSON,
    limits::SMALL_BODY,
    pool::{Phase, Place},
};

/// What a body may be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Json,
    Toml,
}

pub const TOML: &str = "application/toml";

/// A whole body and what its sender says it is.
#[derive(Debug)]
pub struct Received {
    pub bytes: Bytes,
    content_type: Option<String>,
}

impl Received {
    /// The language of the body, one of `allowed`.
    ///
    /// # Errors
    /// 415, with the types that would do.
    pub fn language(&self, allowed: &'static [Language]) -> Result<Language, Problem> {
        let given = self.content_type.as_deref().unwrap_or("");
        let mut parts = given.split(';').map(|part| part.trim().to_ascii_lowercase());
        let language = match parts.next().as_deref() {
            Some(JSON) => Some(Language::Json),
            Some(TOML) => Some(Language::Toml),
            _ => None,
        };
        let utf8 = parts.all(|part| part.is_empty() || part.trim_matches('"') == "charset=utf-8");
        let language = language.filter(|language| utf8 && allowed.contains(language));
        language.ok_or_else(|| unsupported(given, allowed))
    }
}

impl FromRequest<Arc<App>> for Received {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        refuse_encoding(&parts.headers)?;
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let content_type =
            content_type.map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned());
        let place = parts.extensions.get::<Arc<Place>>();
        if let Some(place) = place {
            place.enter(Phase::Receiving);
        }
        let read = timeout(app.limits.body, collect(app, body)).await;
        if let Some(place) = place {
            place.enter(Phase::Working);
        }
        let bytes = read.unwrap_or_else(|_| {
            let within = app.limits.body;
            let detail = format!("the body was not all there within {within:?}");
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail).closing())
        })?;
        Ok(Self { bytes, content_type })
    }
}

/// A JSON object with the fields of `T` and no others. (Alone, serde would take an array for it, too.)
///
/// # Errors
/// 422 `invalid_body`, with the place.
pub fn json_object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    let invalid = |detail: String| Problem::unprocessable("invalid_body", detail);
    if !is_json_object(bytes) {
        return Err(invalid("the body must be a JSON object".to_owned()));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        invalid(format!("the body is not valid: {error}"))
            .with_numbers(json!({ "line": error.line(), "column": error.column() }))
    })
}

/// Whether a text, if it is JSON at all, is an object.
pub fn is_json_object(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'{')
}

async fn collect(app: &App, mut body: Body) -> Result<Bytes, Problem> {
    let limit = app.limits.body_bytes;
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let mut bytes = Vec::new();
    let mut permit = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let detail = format!("the body cannot be read: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "malformed_body", detail).closing()
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        if bytes.len() + data.len() > SMALL_BODY && permit.is_none() {
            permit = Some(app.large_bodies.try_acquire().map_err(|_| busy())?);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.into())
}

fn refuse_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_content_encoding",
            "a body is taken as it is, without a content encoding",
        )),
        _ => Ok(()),
    }
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("a body may have {limit} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
        .with_numbers(json!({ "limit": limit }))
        .closing()
}

fn busy() -> Problem {
    let detail = "too many large bodies are being read";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).closing().retry_after(1)
}

fn unsupported(given: &str, allowed: &'static [Language]) -> Problem {
    let names: Vec<_> = allowed
        .iter()
        .map(|language| match language {
            Language::Json => JSON,
            Language::Toml => TOML,
        })
        .collect();
    let names = names.join(", ");
    let given = if given.is_empty() { "no Content-Type".to_owned() } else { format!("`{given}`") };
    let detail = format!("the body must be {names} in UTF-8, not {given}");
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail);
    match names.parse() {
        Ok(names) => problem.with_header(header::ACCEPT, names),
        Err(_) => problem,
    }
}
