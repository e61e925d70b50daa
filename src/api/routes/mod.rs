//! The handlers: parse, enqueue, render. What they may assume has been checked by `gate`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{FromRequestParts, Path},
    http::{Method, StatusCode, Uri, request::Parts},
    middleware,
    response::IntoResponse,
};
use serde_json::json;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{app::App, error::Problem, gate, openapi};

mod calendar;
mod events;
mod experiments;
mod halt;
mod host;
mod runs;

/// Every route, behind the gate, with its OpenAPI document.
pub fn router(app: Arc<App>) -> Router {
    let (router, document) = documented();
    let document = Arc::new(openapi::complete(&document));
    let serve_document = axum::routing::get(move || std::future::ready(Json(document.clone())));
    router
        .route("/openapi.json", serve_document)
        .route_layer(middleware::from_fn(gate::gate))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(unknown_route)
        .with_state(app)
}

/// The routes and what utoipa knows of them.
fn documented() -> (Router<Arc<App>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(host::health))
        .routes(routes!(host::ready))
        .routes(routes!(host::metrics))
        .routes(routes!(host::host))
        .routes(routes!(host::groups))
        .routes(routes!(host::faults))
        .routes(routes!(experiments::list))
        .routes(routes!(experiments::one))
        .routes(routes!(experiments::one_in_folder))
        .routes(routes!(calendar::list))
        .routes(routes!(calendar::pause, calendar::resume))
        .routes(routes!(calendar::show))
        .routes(routes!(runs::plan))
        .routes(routes!(runs::start, runs::list))
        .routes(routes!(runs::one, runs::abort))
        .routes(routes!(events::events))
        .routes(routes!(runs::report))
        .routes(routes!(halt::show, halt::pull, halt::release))
        .split_for_parts()
}

async fn unknown_route(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}; /openapi.json has the routes", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "unknown_route", detail)
}

async fn method_not_allowed(method: Method, uri: Uri) -> impl IntoResponse {
    let detail = format!("{} does not know {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

/// The id of a run, out of the path.
struct RunId(Uuid);

impl<S: Send + Sync> FromRequestParts<S> for RunId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Segments([id]) = Segments::from_request_parts(parts, state).await?;
        match id.parse() {
            Ok(uuid) => Ok(Self(uuid)),
            Err(_) => Err(unknown_run(&id)),
        }
    }
}

/// The variable segments of a path.
struct Segments<const N: usize>([String; N]);

impl<S: Send + Sync, const N: usize> FromRequestParts<S> for Segments<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let malformed = |detail| Problem::new(StatusCode::BAD_REQUEST, "malformed_path", detail);
        let Path(segments) = Path::<Vec<String>>::from_request_parts(parts, state)
            .await
            .map_err(|error| malformed(error.body_text()))?;
        let segments = segments.try_into();
        segments.map(Self).map_err(|_| malformed("another number of segments".to_owned()))
    }
}

fn unknown_run(id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown_run", format!("there is no run {id}"))
        .with_numbers(json!({ "run": id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_route_has_a_rule_and_every_rule_a_route() {
        let (_, document) = documented();
        let document = openapi::complete(&document);
        let mut documented = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                documented.push((method.to_uppercase(), path.clone()));
            }
        }
        let mut ruled: Vec<_> =
            gate::RULES.iter().map(|rule| (rule.method.to_owned(), rule.path.to_owned())).collect();
        documented.sort();
        ruled.sort();
        assert_eq!(documented, ruled);
    }
}
