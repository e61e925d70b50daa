//! Schedules and the calendar: read off the latest snapshot; pauses are orders to the loop.

use std::sync::Arc;

use axum::{Extension, Json, extract::State, http::StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{Segments, halt::reason};
use crate::{
    api::{
        access::Caller,
        app::{App, off_thread},
        body::Received,
        error::Problem,
        gate::Params,
    },
    host::linux::clock,
    policy::calendar::Pause,
    runner::RequestError,
    view::{CalendarView, ScheduleView},
};

/// What is shown where nobody says how much.
const SHOWN: SignedDuration = SignedDuration::from_hours(24 * 14);
/// What is shown at most.
const MOST: SignedDuration = SignedDuration::from_hours(24 * 366);

/// All schedules of this host.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScheduleList)]
pub struct ScheduleList {
    schedules: Vec<ScheduleView>,
}

/// A schedule that was just paused or resumed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PausedSchedule)]
pub struct PausedSchedule {
    schedule: ScheduleView,
    /// It is on disk and will survive a restart of the agent.
    durable: bool,
}

/// Why it is paused.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = PauseRequest)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes a body that is read as a halt's is")]
pub struct PauseRequest {
    /// For those who wonder why nothing runs. No control characters.
    #[schema(min_length = 1, max_length = 500, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$")]
    reason: String,
}

/// From when to when.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters that are read one by one")]
pub struct CalendarQuery {
    /// RFC 3339; now, where it is not given. What became of slots in the past is shown as far as it is
    /// remembered.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<String>,
    /// RFC 3339; two weeks after now, or after a later `from`, where it is not given. At most 366 days after it.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<String>,
}

/// Every schedule: when it runs next, whether it is paused, what became of its latest slot.
#[utoipa::path(get, operation_id = "list_schedules", path = "/v1/schedules", tag = "schedules",
    responses((status = 200, body = ScheduleList)))]
pub async fn list(State(app): State<Arc<App>>) -> Json<ScheduleList> {
    let snapshot = app.handle.snapshot();
    Json(ScheduleList { schedules: snapshot.agenda.schedule_views(snapshot.host.leashed) })
}

/// Pauses a schedule until it is resumed, restarts of the agent included. Pausing it again changes
/// nothing. A run of it that is under way goes on. A body is welcome, not needed.
#[utoipa::path(put, operation_id = "pause_schedule", path = "/v1/schedules/{name}/pause", tag = "schedules",
    params(("name" = String, Path, description = "The name of the schedule")),
    request_body(content = Option<PauseRequest>, content_type = "application/json"),
    responses((status = 200, body = PausedSchedule), (status = 404, description = "There is no such schedule")))]
pub async fn pause(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Segments([name]): Segments<1>,
    body: Received,
) -> Result<Json<PausedSchedule>, Problem> {
    let pause = Pause { reason: reason(&body)?, by: caller.name, since: clock::now().wall };
    set(&app, name, Some(pause)).await
}

/// Resumes a schedule. What was missed meanwhile is not made up for.
#[utoipa::path(delete, operation_id = "resume_schedule", path = "/v1/schedules/{name}/pause", tag = "schedules",
    params(("name" = String, Path, description = "The name of the schedule")),
    responses((status = 200, body = PausedSchedule), (status = 404, description = "There is no such schedule")))]
pub async fn resume(
    State(app): State<Arc<App>>,
    Segments([name]): Segments<1>,
) -> Result<Json<PausedSchedule>, Problem> {
    set(&app, name, None).await
}

async fn set(
    app: &Arc<App>,
    name: String,
    pause: Option<Pause>,
) -> Result<Json<PausedSchedule>, Problem> {
    let durable = match app.handle.pause(name.clone(), pause).await {
        Err(RequestError::NotFound) => return Err(unknown(&name)),
        answer => answer?,
    };
    let snapshot = app.handle.snapshot();
    let views = snapshot.agenda.schedule_views(snapshot.host.leashed);
    let schedule = views.into_iter().find(|schedule| schedule.name == name);
    let schedule = schedule.ok_or_else(|| unknown(&name))?;
    Ok(Json(PausedSchedule { schedule, durable }))
}

fn unknown(name: &str) -> Problem {
    let detail = format!("this host has no schedule {name:?}; GET /v1/schedules lists them");
    Problem::new(StatusCode::NOT_FOUND, "unknown_schedule", detail)
        .with_numbers(json!({ "schedule": name }))
}

/// What will run and what is frozen, and why; what became of the latest slots.
#[utoipa::path(get, operation_id = "get_calendar", path = "/v1/calendar", tag = "schedules",
    params(CalendarQuery), responses((status = 200, body = CalendarView)))]
pub async fn show(State(app): State<Arc<App>>, params: Params) -> Result<Json<CalendarView>, Problem> {
    let time = |text: &str| text.parse::<Timestamp>().ok();
    let now = clock::now();
    let from = params.read("from", "a time such as 2026-11-23T00:00:00Z", time)?.unwrap_or(now.wall);
    let until = params.read("until", "a time such as 2026-12-07T00:00:00Z", time)?;
    let weeks = || from.max(now.wall).checked_add(SHOWN).unwrap_or(Timestamp::MAX);
    let until = until.unwrap_or_else(weeks);
    if until < from || until.duration_since(from) > MOST {
        let detail = "`until` must not be before `from`, nor more than 366 days after it";
        return Err(Problem::unprocessable("invalid_field", detail.to_owned())
            .with_numbers(json!({ "field": "until", "from": from, "until": until })));
    }
    // A year of a busy schedule is work.
    off_thread(move || {
        let snapshot = app.handle.snapshot();
        let mut calendar = snapshot.agenda.calendar(from, until, now);
        calendar.problems.clone_from(&snapshot.host.problems);
        Ok(calendar)
    })
    .await
    .map(Json)
}
