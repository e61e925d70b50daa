//! Requests, good and bad: status, reason, and that a bad one changes nothing.

mod api_support;

use api_support::*;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use vervet::view::{RunState, RunView};

/// A bad request and what must be said about it.
struct Bad {
    what: &'static str,
    request: RequestBuilder,
    status: u16,
    reason: &'static str,
}

#[tokio::test]
async fn bad_requests_are_told_why_and_change_nothing() {
    let bench = Bench::start();
    let run = bench.begin().await;
    let before = bench.changes();
    let all = bad_bodies(&bench)
        .into_iter()
        .chain(bad_fields(&bench))
        .chain(bad_targets(&bench, &run.to_string()))
        .chain(bad_callers(&bench, &run.to_string()));
    let mut count = 0;
    for Bad { what, request, status, reason } in all {
        let answer = Answer::of(request).await;
        eprintln!("{what}: {} {}", answer.status, answer.reason());
        answer.assert_problem(status, reason);
        count += 1;
    }
    assert!(count > 60, "{count} cases");
    assert_eq!(bench.changes(), before, "something was changed");
    let now: RunView = get(&bench, &format!("/v1/runs/{run}")).await;
    assert_eq!(now.state, RunState::Running);
    let halt: Value = get(&bench, "/v1/halt").await;
    assert_eq!(halt, json!({ "halted": null }));
}

async fn get<T: serde::de::DeserializeOwned>(bench: &Bench, path: &str) -> T {
    let request = bench.local().get(format!("http://localhost{path}"));
    request.send().await.unwrap().json().await.unwrap()
}

fn post(bench: &Bench, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    let url = format!("http://localhost{path}");
    bench.local().post(url).header("content-type", kind).body(body)
}

const TOML: &str = "application/toml";
const JSON: &str = "application/json";

/// Documents that are wrong, one way each.
fn bad_bodies(bench: &Bench) -> Vec<Bad> {
    let kill = |line: &str| format!("{SHORT}{line}\n");
    let latency = |keys: &str| {
        format!(
            "title = \"t\"\nhypothesis = \"h\"\n[[step]]\nname = \"s\"\nfault = \"latency\"\n\
             traffic = {{ listen = 8080 }}\n{keys}\n"
        )
    };
    let bad = [
        ("no document", String::new()),
        ("not TOML", "title = ".to_owned()),
        ("an unknown key", format!("titel = \"x\"\n{SHORT}")),
        ("an unknown key of a step", kill("singal = \"SIGTERM\"")),
        ("a wrong type", SHORT.replace("\"short\"", "7")),
        ("a number for a string", kill("signal = 9")),
        ("an empty selector", SHORT.replace("group = \"checkout\", ", "")),
        ("a zero pick", SHORT.replace("pick = 1", "pick = 0")),
        ("a negative pick", SHORT.replace("pick = 1", "pick = -1")),
        ("a huge pick", SHORT.replace("pick = 1", "pick = 99999999999999999999")),
        ("a percentage over 100", SHORT.replace("pick = 1", "pick = \"101%\"")),
        ("a negative percentage", SHORT.replace("pick = 1", "pick = \"-5%\"")),
        ("a zero duration", latency("delay = \"10ms\"\nduration = \"0s\"")),
        ("a negative duration", latency("delay = \"10ms\"\nduration = \"-5s\"")),
        ("a huge duration", latency("delay = \"10ms\"\nduration = \"99999999999999999999h\"")),
        ("a bare number as duration", latency("delay = \"10ms\"\nduration = 5")),
        ("a zero delay", latency("delay = \"0ms\"\nduration = \"5s\"")),
        (
            "a correlation over 100",
            latency("delay = \"9ms\"\njitter = \"1ms\"\ncorrelation = \"250%\"\nduration = \"5s\""),
        ),
        ("an infinite number", latency("delay = inf\nduration = \"5s\"")),
        ("no steps", "title = \"t\"\nhypothesis = \"h\"\n".to_owned()),
    ];
    let mut all: Vec<Bad> = Vec::new();
    for (what, body) in bad {
        for path in ["/v1/runs", "/v1/plans"] {
            let request = post(bench, path, TOML, body.clone());
            all.push(Bad { what, request, status: 422, reason: "invalid_experiment" });
        }
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for (what, kind, body) in [
        ("invalid UTF-8", TOML, b"title = \"\xff\xfe\"".to_vec()),
        ("invalid UTF-8 in JSON", JSON, b"{\"title\": \"\xff\"}".to_vec()),
        ("not JSON", JSON, b"{\"title\":".to_vec()),
        ("an array", JSON, b"[]".to_vec()),
        ("a deep nesting", JSON, deep.into_bytes()),
        ("a huge number in JSON", JSON, b"{\"title\": 1e999}".to_vec()),
        ("a document within, of a wrong type", JSON, b"{\"experiment\": 5}".to_vec()),
        ("a document within, with an unknown key", JSON, b"{\"experiment\": {\"x\": 1}}".to_vec()),
    ] {
        let request = post(bench, "/v1/runs", kind, body);
        all.push(Bad { what, request, status: 422, reason: "invalid_experiment" });
    }
    all
}

/// What stands around documents, and other bodies.
fn bad_fields(bench: &Bench) -> Vec<Bad> {
    let run = |what, body: &str, status, reason| {
        let request = post(bench, "/v1/runs", JSON, body.to_owned());
        Bad { what, request, status, reason }
    };
    let halt = |what, kind: &str, body: &[u8], status, reason| {
        let request = bench.local().put("http://localhost/v1/halt");
        let request = request.header("content-type", kind).body(body.to_vec());
        Bad { what, request, status, reason }
    };
    let long = format!("{{\"reason\":\"{}\"}}", "x".repeat(501));
    let keyed = |what, key: &[u8]| {
        let key = reqwest::header::HeaderValue::from_bytes(key).unwrap();
        let request = post(bench, "/v1/runs", TOML, SHORT).header("idempotency-key", key);
        Bad { what, request, status: 422, reason: "invalid_idempotency_key" }
    };
    vec![
        run("an unknown field", r#"{"experiment":"short","sed":1}"#, 422, "invalid_body"),
        run("a field twice", r#"{"experiment":"short","seed":1,"seed":2}"#, 422, "invalid_body"),
        run("a negative seed", r#"{"experiment":"short","seed":-1}"#, 422, "invalid_field"),
        run("a seed of a wrong type", r#"{"experiment":"short","seed":"1"}"#, 422, "invalid_field"),
        run("a fraction as seed", r#"{"experiment":"short","seed":1.5}"#, 422, "invalid_field"),
        run(
            "a huge seed",
            r#"{"experiment":"short","seed":18446744073709551616}"#,
            422,
            "invalid_field",
        ),
        run("a plan of a wrong type", r#"{"experiment":"short","plan":5}"#, 422, "invalid_field"),
        run("an empty plan", r#"{"experiment":"short","plan":""}"#, 422, "invalid_field"),
        run("an unknown experiment", r#"{"experiment":"shortt"}"#, 404, "unknown_experiment"),
        run("a path", r#"{"experiment":"../../etc/passwd"}"#, 404, "unknown_experiment"),
        halt("an unknown field", JSON, br#"{"reason":"x","until":1}"#, 422, "invalid_body"),
        halt("no reason in a body", JSON, b"{}", 422, "invalid_body"),
        halt("an array of the fields", JSON, br#"["x"]"#, 422, "invalid_body"),
        halt("a wrong type", JSON, br#"{"reason":5}"#, 422, "invalid_body"),
        halt("an empty reason", JSON, br#"{"reason":""}"#, 422, "invalid_field"),
        halt("control characters", JSON, br#"{"reason":"\u001b[2J"}"#, 422, "invalid_field"),
        halt("a long reason", JSON, long.as_bytes(), 422, "invalid_field"),
        halt("not JSON", JSON, b"reason", 422, "invalid_body"),
        halt("invalid UTF-8", JSON, b"{\"reason\":\"\xff\"}", 422, "invalid_body"),
        halt("another type", "text/plain", b"because", 415, "unsupported_media_type"),
        keyed("an empty key", b""),
        keyed("a key with a space", b"a b"),
        keyed("a key that is not ASCII", b"\xc3\xa9"),
        keyed("a long key", &[b'k'; 256]),
    ]
}

/// Wrong routes, methods, queries, types, sizes.
fn bad_targets(bench: &Bench, run: &str) -> Vec<Bad> {
    let local = bench.local();
    let bad = |what, method: &str, path: &str, status, reason| {
        let url = format!("http://localhost{path}");
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        Bad { what, request: local.request(method, url), status, reason }
    };
    let accept = |what, path: &str, accept: &str| {
        let request = local.get(format!("http://localhost{path}")).header("accept", accept);
        Bad { what, request, status: 406, reason: "not_acceptable" }
    };
    let typed = |what, kind: &str| Bad {
        what,
        request: post(bench, "/v1/runs", kind, SHORT),
        status: 415,
        reason: "unsupported_media_type",
    };
    let nobody = "018f0000-0000-7000-8000-000000000000";
    let (report, events) = (format!("/v1/runs/{run}/report"), format!("/v1/runs/{run}/events"));
    vec![
        bad("no such route", "GET", "/v1/nothing", 404, "unknown_route"),
        bad("no such route, other method", "POST", "/v2/runs", 404, "unknown_route"),
        bad("a slash too many", "GET", "/v1/host/", 404, "unknown_route"),
        bad("no web page", "GET", "/", 404, "unknown_route"),
        bad("an unknown run", "GET", &format!("/v1/runs/{nobody}"), 404, "unknown_run"),
        bad("an unknown run's report", "GET", &format!("/v1/runs/{nobody}/report"), 404, "unknown_run"),
        bad("an unknown run's events", "GET", &format!("/v1/runs/{nobody}/events"), 404, "unknown_run"),
        bad("abort of an unknown run", "DELETE", &format!("/v1/runs/{nobody}"), 404, "unknown_run"),
        bad("not an id", "DELETE", "/v1/runs/all", 404, "unknown_run"),
        bad("an id that is not UTF-8", "GET", "/v1/runs/%ff", 400, "malformed_path"),
        bad("an unknown experiment", "GET", "/v1/experiments/shor", 404, "unknown_experiment"),
        bad("a path out", "GET", "/v1/experiments/..%2f..%2fetc", 404, "unknown_experiment"),
        bad("an unknown schedule", "PUT", "/v1/schedules/monky/pause", 404, "unknown_schedule"),
        bad(
            "resume of an unknown schedule",
            "DELETE",
            "/v1/schedules/monky/pause",
            404,
            "unknown_schedule",
        ),
        bad(
            "a calendar without a time",
            "GET",
            "/v1/calendar?from=tomorrow",
            422,
            "invalid_query_value",
        ),
        bad(
            "a calendar that ends before it begins",
            "GET",
            "/v1/calendar?from=2026-11-23T00:00:00Z&until=2026-11-22T00:00:00Z",
            422,
            "invalid_field",
        ),
        bad(
            "a calendar of many years",
            "GET",
            "/v1/calendar?from=2026-01-01T00:00:00Z&until=2036-01-01T00:00:00Z",
            422,
            "invalid_field",
        ),
        bad("a wrong method", "DELETE", "/v1/runs", 405, "method_not_allowed"),
        bad("a wrong method for the halt", "POST", "/v1/halt", 405, "method_not_allowed"),
        bad("an invented method", "BREW", "/v1/host", 405, "method_not_allowed"),
        bad("an unknown query key", "GET", "/v1/runs?stat=finished", 422, "unknown_query_key"),
        bad(
            "a query where there is none",
            "DELETE",
            &format!("/v1/runs/{run}?force=1"),
            422,
            "unknown_query_key",
        ),
        bad("a query key twice", "GET", "/v1/runs?limit=1&limit=2", 422, "duplicate_query_key"),
        bad("a bad state", "GET", "/v1/runs?state=done", 422, "invalid_query_value"),
        bad("a bad verdict", "GET", "/v1/runs?verdict=", 422, "invalid_query_value"),
        bad("a zero limit", "GET", "/v1/runs?limit=0", 422, "invalid_query_value"),
        bad("a limit too high", "GET", "/v1/runs?limit=201", 422, "invalid_query_value"),
        bad("a negative limit", "GET", "/v1/runs?limit=-1", 422, "invalid_query_value"),
        bad("a bad cursor", "GET", "/v1/runs?before=1", 422, "invalid_query_value"),
        bad("a bad position", "GET", &format!("{events}?after=x"), 422, "invalid_query_value"),
        accept("an HTML report", &report, "text/html"),
        accept("a JUnit report", &report, "application/xml"),
        accept("JSON refused", "/v1/host", "application/json;q=0"),
        typed("no known type", "text/plain"),
        typed("a form", "application/x-www-form-urlencoded"),
        typed("another charset", "application/toml; charset=latin1"),
        Bad {
            what: "a body of 2 MiB",
            request: post(bench, "/v1/runs", TOML, vec![b'#'; 2 << 20]),
            status: 413,
            reason: "body_too_large",
        },
        Bad {
            what: "a compressed body",
            request: post(bench, "/v1/runs", TOML, SHORT).header("content-encoding", "gzip"),
            status: 415,
            reason: "unsupported_content_encoding",
        },
        Bad {
            what: "a seed in query and body",
            request: post(bench, "/v1/runs?seed=1", JSON, r#"{"experiment":"short","seed":1}"#),
            status: 422,
            reason: "given_twice",
        },
        Bad {
            what: "a bad Last-Event-ID",
            request: local.get(format!("http://localhost{events}")).header("last-event-id", "-1"),
            status: 422,
            reason: "invalid_last_event_id",
        },
    ]
}

/// No token, a wrong one, a role too low, another host's name.
fn bad_callers(bench: &Bench, run: &str) -> Vec<Bad> {
    crypto();
    let nobody = Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
    let bad = |what, request, status, reason| Bad { what, request, status, reason };
    let (eyes, ci) = (remote(OBSERVER), remote(OPERATOR));
    let url = |path: &str| bench.url(path);
    let run = url(&format!("/v1/runs/{run}"));
    let toml = |request: RequestBuilder| request.header("content-type", TOML).body(SHORT);
    let auth = |value: &str| nobody.get(url("/v1/host")).header("authorization", value.to_owned());
    vec![
        bad("no token", nobody.get(url("/v1/host")), 401, "token_missing"),
        bad("no token, no route", nobody.get(url("/v1/nothing")), 401, "token_missing"),
        bad("no token for metrics", nobody.get(url("/metrics")), 401, "token_missing"),
        bad("no token for an abort", nobody.delete(&run), 401, "token_missing"),
        bad("no token for a halt", nobody.put(url("/v1/halt")), 401, "token_missing"),
        bad("a wrong token", remote("vervet_nobody").get(url("/v1/host")), 401, "token_invalid"),
        bad("an empty token", auth("Bearer "), 401, "token_invalid"),
        bad("another scheme", auth("Basic dmVydmV0OnZlcnZldA=="), 401, "token_invalid"),
        bad("an observer runs", toml(eyes.post(url("/v1/runs"))), 403, "role_too_low"),
        bad("an observer plans", toml(eyes.post(url("/v1/plans"))), 403, "role_too_low"),
        bad("an observer aborts", eyes.delete(&run), 403, "role_too_low"),
        bad("an observer halts", eyes.put(url("/v1/halt")), 403, "role_too_low"),
        bad("an observer releases", eyes.delete(url("/v1/halt")), 403, "role_too_low"),
        bad("an operator releases", ci.delete(url("/v1/halt")), 403, "role_too_low"),
        bad(
            "a rebound name",
            ci.put(url("/v1/halt")).header("host", "evil.example"),
            421,
            "host_not_allowed",
        ),
        bad(
            "a rebound name, open route",
            nobody.get(url("/healthz")).header("host", "evil.example"),
            421,
            "host_not_allowed",
        ),
    ]
}

#[tokio::test]
async fn refusals_carry_what_a_client_needs_to_do_better() {
    let bench = Bench::start();
    let local = bench.local();
    let answer = Answer::of(local.patch("http://localhost/v1/halt")).await;
    let allow = answer.headers["allow"].to_str().unwrap();
    for method in ["GET", "PUT", "DELETE"] {
        assert!(allow.contains(method), "{allow}");
    }
    let answer = Answer::of(remote("").get(bench.url("/v1/host"))).await;
    assert!(answer.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
    let answer = Answer::of(remote(OPERATOR).delete(bench.url("/v1/halt"))).await;
    assert_eq!(answer.body["numbers"], json!({ "needed": "owner", "role": "operator" }));
    let answer = Answer::of(post(&bench, "/v1/runs", JSON, r#"{"experiment":"shrt"}"#)).await;
    assert_eq!(answer.body["numbers"]["nearest"], "short");
    let body = SHORT.replace("title", "titel");
    let answer = Answer::of(post(&bench, "/v1/runs", TOML, body)).await;
    let errors = answer.body["errors"].as_array().unwrap();
    let wrong = errors.iter().find(|e| e["message"].as_str().unwrap().contains("titel")).unwrap();
    assert_eq!((&wrong["line"], &wrong["column"]), (&json!(2), &json!(1)), "{wrong}");
    assert!(wrong["help"].as_str().unwrap().contains("title"), "{wrong}");
    let body = r#"{"experiment": {"title": "t", "step": [{"falt": "kill"}]}}"#;
    let answer = Answer::of(post(&bench, "/v1/runs", JSON, body)).await;
    let errors = answer.body["errors"].as_array().unwrap();
    assert!(errors.iter().any(|e| e["path"] == "step[0].falt"), "{errors:#?}");
}

#[tokio::test]
async fn a_run_by_document_by_name_and_within_json() {
    let bench = Bench::start();
    let document = json!({
        "title": "short",
        "hypothesis": "nothing happens",
        "groups": ["checkout"],
        "step": [{ "name": "s", "fault": "kill", "target": { "group": "checkout", "pick": 1 } }],
    });
    for (path, kind, body) in [
        ("/v1/runs?seed=11", TOML, SHORT.to_owned()),
        ("/v1/runs?seed=11", JSON, document.to_string()),
        ("/v1/runs?seed=11", JSON, r#"{"experiment":"short"}"#.to_owned()),
        ("/v1/runs", JSON, r#"{"experiment":"short","seed":11}"#.to_owned()),
        ("/v1/runs", JSON, json!({ "experiment": document, "seed": 11, "plan": "abc" }).to_string()),
    ] {
        let answer = Answer::of(post(&bench, path, kind, body)).await;
        assert_eq!(answer.status, 202, "{answer:#?}");
        let run: RunView = serde_json::from_value(answer.body).unwrap();
        assert_eq!((run.seed, run.title.as_str()), (11, "short"));
        let location = answer.headers["location"].to_str().unwrap();
        assert_eq!(location, format!("/v1/runs/{}", run.id));
        assert_eq!(get::<RunView>(&bench, location).await.id, run.id);
        assert!(run.caller.starts_with("socket:"), "{}", run.caller);
    }
    let plan = Answer::of(post(&bench, "/v1/plans", TOML, SHORT)).await;
    assert_eq!((plan.status, &plan.body["decision"]["verdict"]), (200, &json!("refuse")));
    let body = SHORT.replace("\"short\"", "\"impossible\"");
    let plan = Answer::of(post(&bench, "/v1/plans", TOML, body)).await;
    plan.assert_problem(409, "nothing_matches");
    assert_eq!(plan.body["numbers"], json!({ "step": 0 }));
}

#[tokio::test]
async fn an_idempotency_key_begins_one_run() {
    let bench = Bench::start();
    let send = |body: String| {
        Answer::of(post(&bench, "/v1/runs", TOML, body).header("idempotency-key", "build-7"))
    };
    let first = send(SHORT.to_owned()).await;
    assert_eq!(first.status, 202);
    assert!(!first.headers.contains_key("idempotent-replayed"));
    let again = send(SHORT.to_owned()).await;
    assert_eq!((again.status, &again.body["id"]), (202, &first.body["id"]));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(bench.changes(), 1);
    let other = send(long()).await;
    other.assert_problem(422, "idempotency_key_reused");
    assert_eq!(other.body["numbers"]["run"], first.body["id"]);
    // The key is the caller's own.
    let request = remote(OPERATOR).post(bench.url("/v1/runs")).header("idempotency-key", "build-7");
    let elsewhere = Answer::of(request.header("content-type", TOML).body(SHORT)).await;
    assert_ne!(elsewhere.body["id"], first.body["id"]);
}

#[tokio::test]
async fn the_lever_is_pulled_by_operators_and_released_by_owners() {
    let bench = Bench::start();
    let url = bench.url("/v1/halt");
    let pull = |reason| remote(OPERATOR).put(&url).json(&json!({ "reason": reason }));
    let first = Answer::of(pull("smoke")).await;
    assert_eq!((first.status, &first.body["reason"]), (200, &json!("smoke")));
    assert_eq!(first.body["by"], "token:ci");
    let again = Answer::of(pull("fire")).await;
    assert_eq!(again.body, first.body, "pulling it again changes nothing");
    let shown = Answer::of(remote(OBSERVER).get(&url)).await;
    assert_eq!(shown.body["halted"], first.body);
    let released = Answer::of(remote(OWNER).delete(&url)).await;
    assert_eq!((released.status, &released.body["released"]), (200, &first.body));
    let nothing = Answer::of(remote(OWNER).delete(&url)).await;
    assert_eq!((nothing.status, &nothing.body["released"]), (200, &Value::Null));
    // In an emergency no body is needed.
    assert_eq!(Answer::of(remote(OPERATOR).put(&url)).await.status, 200);
}

#[tokio::test]
async fn aborting_is_safe_any_number_of_times() {
    let bench = Bench::start();
    let run = bench.begin().await;
    for _ in 0..3 {
        let request = remote(OPERATOR).delete(bench.url(&format!("/v1/runs/{run}")));
        let answer = Answer::of(request).await;
        assert_eq!((answer.status, &answer.body["verdict"]), (200, &json!("aborted")));
    }
}

#[tokio::test]
async fn runs_are_listed_in_pages_that_miss_none() {
    let bench = Bench::start();
    let mut all = Vec::new();
    for at in 0..7 {
        let body = if at % 2 == 0 { SHORT.to_owned() } else { long() };
        let answer = Answer::of(post(&bench, "/v1/runs", TOML, body)).await;
        all.push(answer.body["id"].clone());
    }
    all.reverse();
    // The two oldest are in the history only, the next one in both.
    for (at, id) in all.iter().enumerate().skip(4) {
        let id: uuid::Uuid = serde_json::from_value(id.clone()).unwrap();
        let run = get::<RunView>(&bench, &format!("/v1/runs/{id}")).await;
        let report = vervet::view::ReportView { run, experiment: json!({}), events: vec![] };
        bench.board.past.0.lock().unwrap().push(report);
        if at > 4 {
            bench.board.logs.write().unwrap().remove(&id);
            bench
                .board
                .snapshot
                .send_modify(|s| std::sync::Arc::make_mut(s).runs.retain(|r| r.id != id));
        }
    }
    let pages = async |filter: &str, limit: usize| {
        let mut ids = Vec::new();
        let mut next = Value::Null;
        loop {
            let mut path = format!("/v1/runs?limit={limit}{filter}");
            if let Some(before) = next.as_str() {
                path = format!("{path}&before={before}");
            }
            let page: Value = get(&bench, &path).await;
            let runs = page["runs"].as_array().unwrap();
            assert!(runs.len() <= limit);
            ids.extend(runs.iter().map(|run| run["id"].clone()));
            next = page["next"].clone();
            if next.is_null() {
                return ids;
            }
            assert_eq!(runs.len(), limit);
        }
    };
    for limit in 1..9 {
        assert_eq!(pages("", limit).await, all, "pages of {limit}");
    }
    let finished: Vec<_> = all.iter().step_by(2).cloned().collect();
    assert_eq!(pages("&state=finished", 2).await, finished);
    assert_eq!(pages("&verdict=passed&state=finished", 3).await, finished);
    assert!(pages("&verdict=failed", 3).await.is_empty());
    let old = all[6].as_str().unwrap();
    assert_eq!(get::<Value>(&bench, &format!("/v1/runs/{old}/report")).await["run"]["id"], *old);
    let gone = Answer::of(bench.local().delete(format!("http://localhost/v1/runs/{old}"))).await;
    assert_eq!(gone.status, 200, "a run of the past is as aborted as it will ever be");
}

#[tokio::test]
async fn the_calendar_and_its_schedules() {
    let bench = Bench::start();
    crypto();
    let range = "from=2099-11-20T00:00:00Z&until=2099-11-24T00:00:00Z";
    let calendar: Value = get(&bench, &format!("/v1/calendar?{range}")).await;
    let slots = calendar["slots"].as_array().unwrap();
    let days: Vec<_> = slots.iter().map(|slot| slot["at"].as_str().unwrap()).collect();
    assert_eq!(days, ["2099-11-20T10:00:00Z", "2099-11-23T10:00:00Z"], "Friday and Monday");
    assert!(slots.iter().all(|slot| slot["state"] == "expected"), "{calendar:#}");
    let freeze = &calendar["freezes"][0];
    assert_eq!(
        (&freeze["freeze"], &freeze["from"]),
        (&json!("weekend"), &json!("2099-11-21T00:00:00Z"))
    );

    let observer = remote(OBSERVER).put(bench.url("/v1/schedules/kill-one/pause"));
    Answer::of(observer).await.assert_problem(403, "role_too_low");
    let pause = remote(OPERATOR).put(bench.url("/v1/schedules/kill-one/pause"));
    let paused = Answer::of(pause.json(&json!({ "reason": "release day" }))).await;
    assert_eq!((paused.status, &paused.body["durable"]), (200, &json!(true)), "{paused:#?}");
    assert_eq!(paused.body["schedule"]["paused"]["reason"], "release day");
    // Again, without a body: the first reason stands.
    let again = Answer::of(remote(OPERATOR).put(bench.url("/v1/schedules/kill-one/pause"))).await;
    assert_eq!(again.body["schedule"]["paused"]["reason"], "release day");
    let held: Value = get(&bench, &format!("/v1/calendar?{range}")).await;
    assert!(held["slots"][0]["why"].as_str().unwrap().contains("release day"), "{held:#}");
    assert_eq!(held["slots"][0]["state"], "held");
    let resume = remote(OPERATOR).delete(bench.url("/v1/schedules/kill-one/pause"));
    assert_eq!(Answer::of(resume).await.body["schedule"]["paused"], Value::Null);
    let all: Value = get(&bench, "/v1/schedules").await;
    assert_eq!(all["schedules"][0]["rhythm"], "cron 0 10 * * Mon-Fri", "{all:#}");
}

#[tokio::test]
async fn what_is_known_of_the_host() {
    let bench = Bench::start();
    crypto();
    let nobody = Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
    for open in ["/healthz", "/readyz"] {
        assert_eq!(Answer::of(nobody.get(bench.url(open))).await.status, 200);
    }
    bench.begin().await;
    let eyes = remote(OBSERVER);
    let groups = Answer::of(eyes.get(bench.url("/v1/groups"))).await;
    assert_eq!(groups.body["groups"][0]["effective"], 3);
    assert_eq!(Answer::of(eyes.get(bench.url("/v1/host"))).await.body["name"], "test");
    let faults = Answer::of(eyes.get(bench.url("/v1/faults"))).await;
    assert_eq!(faults.body, json!({ "faults": [] }));
    let library = Answer::of(eyes.get(bench.url("/v1/experiments"))).await;
    assert_eq!(library.body["experiments"][0]["name"], "short");
    let one = Answer::of(eyes.get(bench.url("/v1/experiments/short"))).await;
    assert_eq!(one.body["document"]["step"][0]["fault"], "kill");
    let metrics = Answer::of(eyes.get(bench.url("/metrics"))).await;
    let text = metrics.body.as_str().unwrap();
    for line in [
        "vervet_group_ready{group=\"checkout\"} 4",
        "vervet_group_floor{group=\"checkout\"} 3",
        "vervet_group_effective{group=\"checkout\"} 3",
        "vervet_group_budget_left{group=\"checkout\"} 0",
        "vervet_halted 0",
        "vervet_leashed 0",
        "vervet_runs_active 1",
        "vervet_schedule_paused{schedule=\"kill-one\"} 0",
        "vervet_schedule_next_seconds{schedule=\"kill-one\"}",
        "vervet_runs_total{verdict=\"passed\"} 0",
        "vervet_http_requests_total{method=\"GET\",route=\"/v1/groups\",status=\"200\"} 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
