//! The lever.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    api::{
        access::Caller,
        app::App,
        body::{Language, Received, json_object},
        error::Problem,
    },
    view::HaltView,
};

/// Characters of a reason, at most.
const MAX_REASON: usize = 500;

/// Why the lever is pulled.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = HaltRequest)]
#[serde(deny_unknown_fields)]
pub struct HaltRequest {
    /// For those who find everything halted. No control characters.
    #[schema(min_length = 1, max_length = 500, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$")]
    reason: String,
}

/// Whether the lever is pulled.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HaltStatus)]
pub struct HaltStatus {
    halted: Option<HaltView>,
}

/// What the lever was, now that it is released.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Released)]
pub struct Released {
    /// Absent when it was not pulled.
    released: Option<HaltView>,
}

/// Whether the lever is pulled, why, by whom and since when.
#[utoipa::path(get, operation_id = "get_halt", path = "/v1/halt", tag = "halt", responses((status = 200, body = HaltStatus)))]
pub async fn show(State(app): State<Arc<App>>) -> Json<HaltStatus> {
    Json(HaltStatus { halted: app.handle.snapshot().host.halted.clone() })
}

/// Stops everything, and admits nothing until it is released. Answers when every fault is undone or
/// known to be stuck. Pulling it again changes nothing. A body is welcome, not needed.
#[utoipa::path(put, operation_id = "pull_halt", path = "/v1/halt", tag = "halt",
    request_body(content = Option<HaltRequest>, content_type = "application/json"),
    responses((status = 200, body = HaltView)))]
pub async fn pull(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    body: Received,
) -> Result<Json<HaltView>, Problem> {
    let reason = reason(&body)?;
    let halt = app.handle.halt(reason, caller.name).await?;
    Ok(Json(halt))
}

/// Releases the lever. Only an owner may.
#[utoipa::path(delete, operation_id = "release_halt", path = "/v1/halt", tag = "halt", responses((status = 200, body = Released)))]
pub async fn release(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Released>, Problem> {
    let released = app.handle.release(caller.name).await?;
    Ok(Json(Released { released }))
}

/// The reason in a body, or that there is none.
pub(super) fn reason(body: &Received) -> Result<String, Problem> {
    // In an emergency nobody should be sent back for a form.
    if body.bytes.is_empty() {
        return Ok("no reason given".to_owned());
    }
    body.language(&[Language::Json])?;
    let request: HaltRequest = json_object(&body.bytes)?;
    let reason = request.reason;
    let length = reason.chars().count();
    if length == 0 || length > MAX_REASON || reason.chars().any(char::is_control) {
        let detail = format!(
            "`reason` must have 1 to {MAX_REASON} characters, none of them control characters; \
             it has {length}"
        );
        return Err(Problem::unprocessable("invalid_field", detail)
            .with_numbers(json!({ "field": "reason", "length": length, "max": MAX_REASON })));
    }
    Ok(reason)
}
