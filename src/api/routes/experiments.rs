//! The library of experiments on this host.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Segments;
use crate::{
    api::{
        app::{App, off_thread},
        error::{Problem, library_unreadable},
        request::from_library,
    },
    document::{self, library::Entry},
    experiment::Experiment,
};

/// The library.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExperimentList)]
pub struct ExperimentList {
    experiments: Vec<ExperimentSummary>,
}

/// An experiment of the library, at a glance.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExperimentSummary)]
pub struct ExperimentSummary {
    /// What it is asked for by.
    name: String,
    /// Empty when its file is not valid.
    title: String,
    hypothesis: String,
    /// Why its file cannot be used.
    error: Option<String>,
}

/// An experiment of the library.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExperimentDocument)]
pub struct ExperimentDocument {
    name: String,
    title: String,
    hypothesis: String,
    groups: Vec<String>,
    /// The document, as it could be sent to `/v1/runs`.
    #[schema(value_type = Object)]
    document: Value,
}

/// The experiments that this host has by name, those with errors too.
#[utoipa::path(get, operation_id = "list_experiments", path = "/v1/experiments", tag = "experiments",
    responses((status = 200, body = ExperimentList)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<ExperimentList>, Problem> {
    let library = app.library();
    off_thread(move || {
        let entries = library.list().map_err(|error| library_unreadable(&error))?;
        let summary = |Entry { name, title, hypothesis, error }| ExperimentSummary {
            name,
            title,
            hypothesis,
            error,
        };
        Ok(Json(ExperimentList { experiments: entries.into_iter().map(summary).collect() }))
    })
    .await
}

/// One experiment, whole.
#[utoipa::path(get, operation_id = "get_experiment", path = "/v1/experiments/{name}", tag = "experiments",
    params(("name" = String, Path, description = "As the list has it")),
    responses(
        (status = 200, body = ExperimentDocument),
        (status = 404, description = "The library has no experiment of this name"),
        (status = 409, description = "The library has two files of this name"),
    ))]
pub async fn one(
    State(app): State<Arc<App>>,
    Segments([name]): Segments<1>,
) -> Result<Json<ExperimentDocument>, Problem> {
    load(&app, name).await
}

/// One experiment of a folder of the library, whole.
#[utoipa::path(get, operation_id = "get_experiment_in_folder", path = "/v1/experiments/{folder}/{name}", tag = "experiments",
    params(
        ("folder" = String, Path, description = "The part of its name before the slash"),
        ("name" = String, Path, description = "The part of its name behind the slash"),
    ),
    responses(
        (status = 200, body = ExperimentDocument),
        (status = 404, description = "The library has no experiment of this name"),
        (status = 409, description = "The library has two files of this name"),
    ))]
pub async fn one_in_folder(
    State(app): State<Arc<App>>,
    Segments([folder, name]): Segments<2>,
) -> Result<Json<ExperimentDocument>, Problem> {
    load(&app, format!("{folder}/{name}")).await
}

async fn load(app: &App, name: String) -> Result<Json<ExperimentDocument>, Problem> {
    let library = app.library();
    off_thread(move || {
        let experiment = from_library(&library, &name)?;
        let document = document::to_json(&experiment);
        let groups = experiment.groups.iter().map(|group| group.0.clone()).collect();
        let Experiment { title, hypothesis, .. } = experiment;
        Ok(Json(ExperimentDocument { name, title, hypothesis, groups, document }))
    })
    .await
}
