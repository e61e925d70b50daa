//! The document that describes the API, OpenAPI 3.1.
//!
//! Paths, parameters and bodies come from the handlers. What the gate and the body reader do to
//! every route alike (roles, unknown keys, sizes, media types) is added here from the same table
//! that they obey.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{
    error::{DocumentErrorView, PROBLEM_JSON, ProblemView},
    gate::{self, Rule},
};
use crate::{config::Role, view};

/// What the handlers do not say.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "vervet",
        description = "A chaos-engineering agent that cannot take more than the host's owner allowed. \
            Every answer that is not a success is a problem document (RFC 9457) with a stable `reason`."
    ),
    tags(
        (name = "agent", description = "Is it well?"),
        (name = "host", description = "What it knows of this host"),
        (name = "experiments", description = "The library"),
        (name = "schedules", description = "Runs that begin by themselves, and times in which none does"),
        (name = "runs", description = "Plans, runs, and what became of them"),
        (name = "halt", description = "The lever that stops everything"),
    ),
    components(schemas(ProblemView, DocumentErrorView, view::EventView, view::EffectView))
)]
pub struct Document;

/// The document as it is served.
#[must_use]
pub fn complete(document: &utoipa::openapi::OpenApi) -> Value {
    // Made of maps with string keys, which always serialize.
    let mut value = serde_json::to_value(document).unwrap_or_default();
    say_how_large(&mut value);
    value["components"]["securitySchemes"] = json!({
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "Over TCP, always. On the Unix socket the kernel says who is calling.",
        },
    });
    if let Some(schemas) = value["components"]["schemas"].as_object_mut() {
        schemas.extend(document_schemas());
    }
    value["paths"]["/openapi.json"]["get"] = json!({
        "tags": ["agent"],
        "summary": "This document.",
        "operationId": "get_openapi",
        "responses": { "200": {
            "description": "OpenAPI 3.1",
            "content": { "application/json": { "schema": { "type": "object" } } },
        } },
    });
    for rule in &gate::RULES {
        let operation = &mut value["paths"][rule.path][rule.method.to_lowercase()];
        finish(operation, rule);
    }
    value
}

/// utoipa knows of signed integers only, and a format says less than a maximum does.
fn say_how_large(value: &mut Value) {
    if value["minimum"] == 0 {
        match value["format"].as_str() {
            Some("int32") => (value["format"], value["maximum"]) = (json!("uint32"), json!(u32::MAX)),
            Some("int64") => (value["format"], value["maximum"]) = (json!("uint64"), json!(u64::MAX)),
            _ => {}
        }
    }
    match value {
        Value::Object(fields) => fields.values_mut().for_each(say_how_large),
        Value::Array(items) => items.iter_mut().for_each(say_how_large),
        _ => {}
    }
}

fn finish(operation: &mut Value, rule: &Rule) {
    if matches!(rule.path, "/v1/plans" | "/v1/runs") && rule.method == "POST" {
        operation["requestBody"] = start_body(rule.path == "/v1/runs");
    }
    operation["security"] = match rule.role {
        Some(_) => json!([{ "token": [] }]),
        None => json!([]),
    };
    if let Some(role) = rule.role {
        operation["x-role"] = json!(role);
    }
    let has_body = operation.get("requestBody").is_some();
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, description) in common(rule.role, has_body) {
        responses.entry(status).or_insert_with(|| json!({ "description": description }));
    }
    describe(responses);
}

/// Statuses that do not depend on the handler.
fn common(role: Option<Role>, has_body: bool) -> Vec<(&'static str, &'static str)> {
    let mut common = vec![
        ("400", "Not a well-formed request"),
        ("406", "The Accept header admits none of the media types"),
        ("421", "The Host header is not a name of this agent"),
        ("422", "Understood and wrong: an unknown key or field, or a bad value"),
        ("500", "The agent's own fault; its log says more"),
        ("503", "Stopping, or too busy just now"),
    ];
    if role.is_some() {
        common.push(("401", "Over TCP a valid bearer token is needed"));
        common.push(("403", "The caller's role does not reach"));
    }
    if has_body {
        common.push(("408", "The body did not arrive in time"));
        common.push(("413", "The body is larger than 1 MiB"));
        common.push(("415", "The body is in another language or encoding"));
    }
    common
}

/// Everything that is not a success has a problem document.
fn describe(responses: &mut Map<String, Value>) {
    for (status, response) in responses.iter_mut() {
        if status.starts_with('2') {
            if response["description"] == "" {
                response["description"] = json!("As asked");
            }
            continue;
        }
        let schema = json!({ "$ref": "#/components/schemas/Problem" });
        response["content"] = json!({ PROBLEM_JSON: { "schema": schema } });
        let headers: &[_] = match status.as_str() {
            "401" => &["WWW-Authenticate"],
            "415" => &["Accept"],
            _ => &[],
        };
        for name in headers {
            response["headers"][name] = json!({ "schema": { "type": "string" } });
        }
    }
}

fn start_body(is_run: bool) -> Value {
    let document = json!({ "$ref": "#/components/schemas/Experiment" });
    let mut properties = json!({
        "experiment": {
            "description": "The name of an experiment of the library, or a document",
            "oneOf": [{ "type": "string", "minLength": 1 }, document],
        },
        "seed": { "type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX },
    });
    if is_run {
        properties["plan"] = json!({ "type": ["string", "null"], "pattern": "^[!-~]{1,128}$" });
    }
    let wrapped = json!({
        "type": "object",
        "required": ["experiment"],
        "properties": properties,
        "additionalProperties": false,
    });
    json!({
        "required": true,
        "description": "An experiment in TOML or JSON; or, in JSON, the name of one with what goes with it",
        "content": {
            "application/json": { "schema": { "oneOf": [wrapped, document] } },
            "application/toml": { "schema": { "type": "string" } },
        },
    })
}

/// The shape of experiments. What their values must be beyond that is said by the errors.
fn document_schemas() -> Map<String, Value> {
    // A constant; a test reads it.
    serde_json::from_str(include_str!("documents.schema.json")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schemas_of_documents_are_there() {
        let schemas = document_schemas();
        assert_eq!(schemas["Experiment"]["type"], "object");
        for kind in crate::experiment::FaultKind::ALL {
            let step = schemas.values().find(|s| s["properties"]["fault"]["const"] == kind.as_str());
            assert!(step.is_some(), "{kind}");
        }
    }
}
