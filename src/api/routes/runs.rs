//! Plans and runs: asking for them, looking at them, aborting them.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{RunId, unknown_run};
use crate::{
    api::{
        access::Caller,
        app::{App, off_thread},
        body::Received,
        error::{Problem, history_unreadable},
        gate::Params,
        request::{self, Asked},
    },
    runner::{Handle, Idempotency, RequestError, StartRequest},
    view::{PlanView, ReportView, RunState, RunView, Verdict},
};

/// Runs on a page, if nothing else is asked for, and at most.
const PAGE: usize = 50;
const MAX_PAGE: usize = 200;
/// How many runs one request looks through for those that it wants.
const MAX_LOOK: usize = 5000;

/// A page of runs, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunList)]
pub struct RunList {
    #[schema(value_type = Vec<RunView>)]
    runs: Vec<Arc<RunView>>,
    /// Where the next page begins: give it as `before`. Absent on the last page.
    next: Option<Uuid>,
}

/// The query of a list of runs; read by [`wanted`].
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only the OpenAPI document reads it")]
struct ListQuery {
    /// Only runs in this state.
    state: Option<RunState>,
    /// Only runs that came to this.
    verdict: Option<Verdict>,
    /// Runs on the page.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Only runs that were created before this one.
    before: Option<Uuid>,
}

/// Decides on an experiment exactly as a run would, and touches nothing.
#[utoipa::path(post, operation_id = "make_plan", path = "/v1/plans", tag = "runs",
    params(("seed" = Option<u64>, Query, description = "Decides every random pick", minimum = 0)),
    responses(
        (status = 200, body = PlanView),
        (status = 404, description = "The library has no experiment of this name"),
        (status = 409, description = "Valid, and this host, as it is, cannot do it"),
    ))]
pub async fn plan(
    State(app): State<Arc<App>>,
    params: Params,
    body: Received,
) -> Result<Json<PlanView>, Problem> {
    let asked = ask(&app, &params, body).await?;
    if asked.plan.is_some() {
        let detail = "`plan` is for runs: a plan has no plan to hold it to";
        return Err(
            Problem::unprocessable("unknown_field", detail).with_numbers(json!({ "field": "plan" }))
        );
    }
    Ok(Json(app.handle.plan(asked.experiment, asked.seed).await?))
}

/// Starts a run. Answers when it exists; it may be finished (refused) by then.
#[utoipa::path(post, operation_id = "start_run", path = "/v1/runs", tag = "runs",
    params(
        ("seed" = Option<u64>, Query, description = "Decides every random pick", minimum = 0),
        ("plan" = Option<String>, Query,
            description = "The digest of a plan: refused if anything resolves differently now"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
            pattern = "^[!-~]+$",
            description = "The same key and request again answer with the run that they began"),
    ),
    responses(
        (status = 202, body = RunView, headers(
            ("Location" = String, description = "Of the run"),
            ("Idempotent-Replayed" = String, description = "`true` when the key began it before"),
        )),
        (status = 404, description = "The library has no experiment of this name"),
        (status = 409, description = "Valid, and this host, as it is, cannot do it"),
    ))]
pub async fn start(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    params: Params,
    body: Received,
) -> Result<Response, Problem> {
    let idempotency = idempotency(&headers, &uri, &body)?;
    let asked = ask(&app, &params, body).await?;
    let (keyed, since) = (idempotency.is_some(), Timestamp::now());
    let Asked { experiment, seed, plan } = asked;
    let request =
        StartRequest { experiment, seed, plan, caller: caller.name, idempotency, leashed: false };
    let run = app.handle.start(request).await?;
    let location = format!("/v1/runs/{}", run.id);
    let replayed = keyed && run.created_at < since;
    let mut response = (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(run)).into_response();
    if replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

async fn ask(app: &Arc<App>, params: &Params, body: Received) -> Result<Asked, Problem> {
    let (library, params) = (app.library(), params.clone());
    off_thread(move || request::asked(&library, &params, &body)).await
}

fn idempotency(headers: &HeaderMap, uri: &Uri, body: &Received) -> Result<Option<Idempotency>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let (Some(key), more) = (keys.next(), keys.next()) else { return Ok(None) };
    let visible = (1..=255).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic);
    let Some(key) = key.to_str().ok().filter(|_| visible && more.is_none()) else {
        let detail = "`Idempotency-Key` must be one word of 1 to 255 visible ASCII characters";
        return Err(Problem::unprocessable("invalid_idempotency_key", detail));
    };
    let mut hash = Sha256::new();
    hash.update(uri.query().unwrap_or("").as_bytes());
    hash.update([0]);
    hash.update(&body.bytes);
    Ok(Some(Idempotency { key: key.to_owned(), body: hash.finalize().into() }))
}

/// Runs, newest first.
#[utoipa::path(get, operation_id = "list_runs", path = "/v1/runs", tag = "runs", params(ListQuery),
    responses((status = 200, body = RunList)))]
pub async fn list(State(app): State<Arc<App>>, params: Params) -> Result<Json<RunList>, Problem> {
    let wanted = wanted(&params)?;
    let handle = app.handle.clone();
    off_thread(move || page(&handle, &wanted)).await.map(Json)
}

struct Wanted {
    state: Option<RunState>,
    verdict: Option<Verdict>,
    limit: usize,
    before: Option<Uuid>,
}

impl Wanted {
    fn admits(&self, run: &RunView) -> bool {
        self.state.is_none_or(|state| run.state == state)
            && self.verdict.is_none_or(|verdict| run.verdict == Some(verdict))
    }
}

fn wanted(params: &Params) -> Result<Wanted, Problem> {
    let limit = |text: &str| text.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
    Ok(Wanted {
        state: params.read("state", "preflight, running, reverting or finished", word)?,
        verdict: params.read("verdict", "passed, failed, refused, aborted or inconclusive", word)?,
        limit: params.read("limit", "1 to 200", limit)?.unwrap_or(PAGE),
        before: params.read("before", "the id of a run", |text| text.parse().ok())?,
    })
}

fn word<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(Value::String(text.to_owned())).ok()
}

fn page(handle: &Handle, wanted: &Wanted) -> Result<RunList, Problem> {
    let mut runs = Vec::new();
    let mut before = wanted.before;
    let mut looked = 0;
    loop {
        let next = newest(handle, before, MAX_PAGE)?;
        let last_page = next.len() < MAX_PAGE;
        for run in next {
            looked += 1;
            before = Some(run.id);
            if wanted.admits(&run) {
                if runs.len() == wanted.limit {
                    let next = runs.last().map(|run: &Arc<RunView>| run.id);
                    return Ok(RunList { runs, next });
                }
                runs.push(run);
            }
        }
        if last_page || looked >= MAX_LOOK {
            return Ok(RunList { runs, next: before.filter(|_| !last_page) });
        }
    }
}

/// The newest runs before one of them, of memory and history; where both have it, memory's view.
fn newest(handle: &Handle, before: Option<Uuid>, limit: usize) -> Result<Vec<Arc<RunView>>, Problem> {
    let snapshot = handle.snapshot();
    let stored = handle.history().list(before, limit).map_err(|error| history_unreadable(&error))?;
    let live = snapshot.runs.iter().filter(|run| before.is_none_or(|before| run.id < before)).cloned();
    let merged: BTreeMap<Uuid, Arc<RunView>> =
        stored.into_iter().map(Arc::new).chain(live).map(|run| (run.id, run)).collect();
    Ok(merged.into_values().rev().take(limit).collect())
}

/// One run.
#[utoipa::path(get, operation_id = "get_run", path = "/v1/runs/{id}", tag = "runs",
    params(("id" = Uuid, Path, description = "Of the run")),
    responses((status = 200, body = RunView), (status = 404, description = "There is no such run")))]
pub async fn one(State(app): State<Arc<App>>, RunId(id): RunId) -> Result<Json<Arc<RunView>>, Problem> {
    find(&app, id).await.map(Json)
}

async fn find(app: &Arc<App>, id: Uuid) -> Result<Arc<RunView>, Problem> {
    if let Some(log) = app.handle.log(id) {
        return Ok(log.latest.borrow().clone());
    }
    if let Some(run) = app.handle.snapshot().runs.iter().find(|run| run.id == id) {
        return Ok(run.clone());
    }
    stored(app, id).await.map(|report| Arc::new(report.run))
}

async fn stored(app: &Arc<App>, id: Uuid) -> Result<ReportView, Problem> {
    let handle = app.handle.clone();
    let report =
        off_thread(move || handle.history().report(id).map_err(|error| history_unreadable(&error)));
    report.await?.ok_or_else(|| unknown_run(&id.to_string()))
}

/// Aborts a run, and answers when its faults are undone or known to be stuck. Safe in any state, any
/// number of times.
#[utoipa::path(delete, operation_id = "abort_run", path = "/v1/runs/{id}", tag = "runs",
    params(("id" = Uuid, Path, description = "Of the run")),
    responses((status = 200, body = RunView), (status = 404, description = "There is no such run")))]
pub async fn abort(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RunId(id): RunId,
) -> Result<Json<Arc<RunView>>, Problem> {
    match app.handle.abort(id, caller.name).await {
        Ok(run) => Ok(Json(run)),
        // It may be over and out of memory: then it is as aborted as it will ever be.
        Err(RequestError::NotFound) => find(&app, id).await.map(Json),
        Err(error) => Err(error.into()),
    }
}

/// Everything about a run: its end, the experiment as it was run, and its events.
#[utoipa::path(get, operation_id = "get_report", path = "/v1/runs/{id}/report", tag = "runs",
    params(("id" = Uuid, Path, description = "Of the run")),
    responses((status = 200, body = ReportView), (status = 404, description = "There is no such run")))]
pub async fn report(State(app): State<Arc<App>>, RunId(id): RunId) -> Result<Json<ReportView>, Problem> {
    let Some(log) = app.handle.log(id) else { return stored(&app, id).await.map(Json) };
    off_thread(move || {
        let run = log.latest.borrow().as_ref().clone();
        let events = log.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let events = events.iter().map(|event| event.as_ref().clone()).collect();
        let experiment = crate::document::to_json(&log.experiment);
        Ok(ReportView { run, experiment, events })
    })
    .await
    .map(Json)
}
