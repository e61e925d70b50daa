//! A run's event log, as a stream that can be taken up again, or as a list.
//!
//! The log is kept once, by the loop; a subscriber is a position in it. One that reads slowly, or
//! never, holds no copy and nobody up.

use std::{convert::Infallible, fmt::Write, sync::Arc, sync::PoisonError};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{RunId, unknown_run};
use crate::{
    api::{
        app::{App, off_thread},
        error::{Problem, history_unreadable},
        gate::{EVENT_STREAM, JSON, Params, quality},
    },
    runner::RunLog,
    view::{EventView, RunState, RunView},
};

/// Events in one piece of a stream, at most.
const BATCH: usize = 64;

/// The events of a run so far.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventList)]
pub struct EventList {
    #[schema(value_type = Vec<EventView>)]
    events: Vec<Arc<EventView>>,
    /// Nothing will follow.
    finished: bool,
}

/// A server-sent event as a client takes it apart.
#[derive(Debug, ToSchema)]
#[schema(as = SentEvent)]
#[expect(dead_code, reason = "only the OpenAPI document reads it")]
pub struct SentEvent {
    /// The event's `seq`: give the last one as `Last-Event-ID`.
    id: String,
    /// The event's `kind`.
    event: String,
    /// An `EventView`, JSON.
    data: String,
}

/// The events of a run, from its start or behind the one named by `Last-Event-ID` (or `after`).
///
/// As server-sent events the stream goes on until the run has finished; the id of an event is its
/// `seq`, its name its `kind`, its data an `EventView`. With `Accept: application/json` it is the
/// list so far. 204 tells a client that comes back after the last event to stay away.
#[utoipa::path(get, operation_id = "get_events", path = "/v1/runs/{id}/events", tag = "runs",
    params(
        ("id" = Uuid, Path, description = "Of the run"),
        ("after" = Option<u64>, Query, description = "Only events with a larger `seq`", minimum = 0),
        ("Last-Event-ID" = Option<u64>, Header, description = "As `after`, sent by event sources", minimum = 0),
    ),
    responses(
        (status = 200, content((EventList = "application/json"), (SentEvent = "text/event-stream"))),
        (status = 204, description = "Finished, and nothing follows the `Last-Event-ID`"),
        (status = 404, description = "There is no such run"),
    ))]
pub async fn events(
    State(app): State<Arc<App>>,
    RunId(id): RunId,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (after, resumed) = position(&params, &headers)?;
    let as_list = quality(&headers, JSON) > quality(&headers, EVENT_STREAM);
    let Some(log) = app.handle.log(id) else {
        return finished(&app, id, after, resumed, as_list).await;
    };
    let feed = Feed::new(&app, log, after);
    if as_list {
        let finished = feed.run.borrow().state == RunState::Finished;
        let events = feed.read(usize::MAX);
        return Ok(Json(EventList { events, finished }).into_response());
    }
    if resumed && feed.is_over() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let permit = app.subscribers.clone().try_acquire_owned().map_err(|_| too_many(&app))?;
    Ok(stream(Feed { _permit: Some(permit), ..feed }))
}

/// Of a run that is no longer in memory.
async fn finished(
    app: &Arc<App>,
    id: Uuid,
    after: u64,
    resumed: bool,
    as_list: bool,
) -> Result<Response, Problem> {
    let handle = app.handle.clone();
    let report = off_thread(move || handle.history().report(id).map_err(|e| history_unreadable(&e)));
    let report = report.await?.ok_or_else(|| unknown_run(&id.to_string()))?;
    let events: Vec<_> =
        report.events.into_iter().filter(|event| event.seq > after).map(Arc::new).collect();
    if as_list {
        return Ok(Json(EventList { events, finished: true }).into_response());
    }
    if resumed && events.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(event_stream(Body::from(render(&events))))
}

/// Where to begin, and whether the client has been here before.
fn position(params: &Params, headers: &HeaderMap) -> Result<(u64, bool), Problem> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
    let after = params.read("after", "the `seq` of an event", number)?;
    let Some(last) = headers.get("last-event-id") else { return Ok((after.unwrap_or(0), false)) };
    let last = last.to_str().ok().and_then(number).ok_or_else(|| {
        let detail = "`Last-Event-ID` must be the `seq` of an event";
        Problem::unprocessable("invalid_last_event_id", detail)
    })?;
    Ok((last.max(after.unwrap_or(0)), true))
}

fn too_many(app: &App) -> Problem {
    let limit = app.limits.subscribers;
    let detail = format!("{limit} clients follow events already");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_subscribers", detail)
        .with_numbers(json!({ "limit": limit }))
        .retry_after(5)
}

/// A subscriber: a position in a log.
struct Feed {
    log: Arc<RunLog>,
    /// The `seq` of the last event that was sent.
    sent: u64,
    count: watch::Receiver<u64>,
    run: watch::Receiver<Arc<RunView>>,
    stop: watch::Receiver<bool>,
    app: Arc<App>,
    /// The share of this subscriber, for as long as it lives.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Feed {
    fn new(app: &Arc<App>, log: Arc<RunLog>, sent: u64) -> Self {
        let (count, run) = (log.count.subscribe(), log.latest.subscribe());
        Self { log, sent, count, run, stop: app.stop.clone(), app: app.clone(), _permit: None }
    }

    fn read(&self, most: usize) -> Vec<Arc<EventView>> {
        let events = self.log.events.lock().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(self.sent).unwrap_or(usize::MAX).min(events.len());
        events[from..].iter().take(most).cloned().collect()
    }

    /// A finished run's last event is in the log before its view says that it has finished.
    fn is_over(&self) -> bool {
        let finished = self.run.borrow().state == RunState::Finished;
        finished && self.read(1).is_empty()
    }

    /// The next piece of the stream; `None` when nothing will follow.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Looked at before the log, so that what is said to be over really is.
            let finished = self.run.borrow_and_update().state == RunState::Finished;
            self.count.mark_unchanged();
            let batch = self.read(BATCH);
            if let Some(last) = batch.last() {
                self.sent = last.seq;
                return Some(render(&batch).into());
            }
            if finished {
                return None;
            }
            tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                changed = self.run.changed() => changed.ok()?,
                changed = self.count.changed() => changed.ok()?,
                () = tokio::time::sleep(self.app.limits.heartbeat) => {
                    return Some(Bytes::from_static(b": still here\n\n"));
                }
            }
        }
    }
}

fn stream(feed: Feed) -> Response {
    let pieces = futures_util::stream::unfold(feed, async |mut feed| {
        let piece = feed.next().await?;
        Some((Ok::<_, Infallible>(piece), feed))
    });
    event_stream(Body::from_stream(pieces))
}

fn event_stream(body: Body) -> Response {
    ([(header::CONTENT_TYPE, EVENT_STREAM)], body).into_response()
}

/// <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>; JSON
/// has no line breaks of its own.
fn render(events: &[Arc<EventView>]) -> String {
    let mut text = String::new();
    for event in events {
        let data = serde_json::to_string(event).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = write!(text, "id: {}\nevent: {}\ndata: {data}\n\n", event.seq, event.kind);
    }
    text
}
