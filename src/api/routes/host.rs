//! What is known of this host without asking anybody: all of it is read off the latest snapshot.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    api::{app::App, error::Problem, metrics as rendering},
    view::{FaultView, GroupView, HostView},
};

/// That something is as it should be.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Status)]
pub struct StatusView {
    /// `ok`
    status: &'static str,
}

/// All capacity groups.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GroupList)]
pub struct GroupList {
    groups: Vec<GroupView>,
}

/// All faults that are active now.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FaultList)]
pub struct FaultList {
    faults: Vec<FaultView>,
}

/// The agent is alive.
#[utoipa::path(get, operation_id = "get_health", path = "/healthz", tag = "agent", responses((status = 200, body = StatusView)))]
pub async fn health() -> Json<StatusView> {
    Json(StatusView { status: "ok" })
}

/// The agent could admit something. It is also ready while halted, frozen or leashed.
#[utoipa::path(get, operation_id = "get_readiness", path = "/readyz", tag = "agent", responses(
    (status = 200, body = StatusView),
    (status = 503, description = "Stopping, or something keeps it from admitting anything"),
))]
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<StatusView>, Problem> {
    if app.handle.urgent.is_closed() {
        return Err(not_ready("the agent is shutting down", &["stopping"]));
    }
    let snapshot = app.handle.snapshot();
    let reasons: Vec<_> = snapshot.host.problems.iter().map(|why| why.reason.as_str()).collect();
    match reasons.as_slice() {
        [] => Ok(Json(StatusView { status: "ok" })),
        // Everybody can ask: the codes are told, the sentences are `/v1/host`'s.
        reasons => Err(not_ready("nothing can be admitted; /v1/host says why", reasons)),
    }
}

fn not_ready(detail: &str, reasons: &[&str]) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail)
        .with_numbers(json!({ "reasons": reasons }))
        .retry_after(5)
}

/// Everything that a dashboard wants, as OpenMetrics text.
#[utoipa::path(get, operation_id = "get_metrics", path = "/metrics", tag = "agent", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
))]
pub async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let text = rendering::render(&app.counters, &app.handle.snapshot(), Timestamp::now());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text)
}

/// This host and its agent: versions, levers, and which faults are available, or why not.
#[utoipa::path(get, operation_id = "get_host", path = "/v1/host", tag = "host", responses((status = 200, body = HostView)))]
pub async fn host(State(app): State<Arc<App>>) -> Json<HostView> {
    Json(app.handle.snapshot().host.clone())
}

/// The capacity groups: readings, floors, charges, budgets.
#[utoipa::path(get, operation_id = "get_groups", path = "/v1/groups", tag = "host", responses((status = 200, body = GroupList)))]
pub async fn groups(State(app): State<Arc<App>>) -> Json<GroupList> {
    Json(GroupList { groups: app.handle.snapshot().groups.clone() })
}

/// What is active on this host now, with lease and deadline.
#[utoipa::path(get, operation_id = "get_faults", path = "/v1/faults", tag = "host", responses((status = 200, body = FaultList)))]
pub async fn faults(State(app): State<Arc<App>>) -> Json<FaultList> {
    Json(FaultList { faults: app.handle.snapshot().faults.clone() })
}
