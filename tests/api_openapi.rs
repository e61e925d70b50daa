//! The OpenAPI document is true: schemathesis drives the served API from it and finds no violation.

mod api_support;

use std::process::Command;

use api_support::*;

#[tokio::test]
async fn schemathesis_finds_no_violation() {
    let bench = Bench::start();
    // One that is over: the stream of a run that goes on has no end to wait for.
    let request = bench.local().post("http://localhost/v1/runs").body(SHORT);
    assert_eq!(Answer::of(request.header("content-type", "application/toml")).await.status, 202);
    let (url, tmp) = (bench.url(""), env!("CARGO_TARGET_TMPDIR"));
    let drive = move || {
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/run"))
            .args([&url, OWNER, &format!("{tmp}/schemathesis")])
            .output()
    };
    let output = tokio::task::spawn_blocking(drive).await.unwrap().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => eprintln!("{}", out.lines().rev().take(20).collect::<Vec<_>>().join("\n")),
        Some(77) => eprintln!("SKIPPED: schemathesis_finds_no_violation: {err}"),
        _ => panic!("{out}\n{err}"),
    }
}

/// What the document says of every operation, whatever drives it.
#[tokio::test]
async fn every_operation_says_who_may_and_what_it_answers() {
    let bench = Bench::start();
    let document = Answer::of(remote(OBSERVER).get(bench.url("/openapi.json"))).await.body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            ids.push(operation["operationId"].as_str().expect(&what).to_owned());
            assert!(operation["summary"].is_string(), "{what} has no summary");
            let open = ["/healthz", "/readyz"].contains(&path.as_str());
            assert_eq!(operation["security"].as_array().unwrap().is_empty(), open, "{what}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let problem = response["content"]["application/problem+json"].is_object();
                assert_eq!(problem, !status.starts_with('2'), "{what} {status}");
            }
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "operation ids are unique");
}
