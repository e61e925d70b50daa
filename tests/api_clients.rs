//! Clients that stall, crowd, stop reading, come back, or should not have come.

mod api_support;

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    time::{Duration, Instant},
};

use api_support::*;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use uuid::Uuid;
use vervet::{
    api::{Limits, ServeError, serve},
    document::Library,
};

/// What the lever is promised to take at most.
const PROMISE: Duration = Duration::from_millis(100);

/// Halts and aborts over connections of their own, on the socket and over TCP.
async fn assert_the_lever_answers(bench: &Bench, run: Uuid) {
    let local = async |request: String| {
        let mut stream = UnixStream::connect(&bench.socket).await.unwrap();
        exchange(&mut stream, &request).await
    };
    let remote = async |request: String| {
        let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
        exchange(&mut stream, &request).await
    };
    let head =
        format!("HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OWNER}\r\nConnection: close");
    let halt = format!("PUT /v1/halt {head}\r\nContent-Length: 0\r\n\r\n");
    let abort = format!("DELETE /v1/runs/{run} {head}\r\n\r\n");
    let status = format!("GET /v1/host {head}\r\n\r\n");
    for request in [halt, abort, status] {
        let begin = Instant::now();
        let answer = local(request.clone()).await;
        let took = begin.elapsed();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(took < PROMISE, "over the socket: {took:?}");
        let begin = Instant::now();
        let answer = remote(request).await;
        let took = begin.elapsed();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(took < PROMISE, "over TCP: {took:?}");
    }
}

/// Sends bytes, reads the answer to its end.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    read_to_end(stream).await
}

async fn read_to_end<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end").unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_thousand_idle_connections_do_not_keep_the_lever_from_answering() {
    vervet::api::listen::raise_open_files();
    let bench = Bench::start();
    let run = bench.begin().await;
    let mut crowd: Vec<TcpStream> = Vec::new();
    let mut local: Vec<UnixStream> = Vec::new();
    for at in 0..1000 {
        let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
        if at % 2 == 0 {
            stream.write_all(b"PUT /v1/halt HTTP/1.1\r\nHost: loc").await.unwrap();
        }
        crowd.push(stream);
        local.push(UnixStream::connect(&bench.socket).await.unwrap());
    }
    assert_the_lever_answers(&bench, run).await;
}

#[tokio::test]
async fn a_crowd_beyond_the_limit_is_shed_from_its_longest_idle_end() {
    let bench = Bench::with(Limits { connections: 16, ..Limits::default() }, |_| {});
    let run = bench.begin().await;
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(TcpStream::connect(bench.tcp).await.unwrap());
    }
    assert_the_lever_answers(&bench, run).await;
    assert_eq!(read_to_end(&mut crowd[0]).await, "", "the first was closed");
    let last = crowd.last_mut().unwrap();
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(exchange(last, request).await.starts_with("HTTP/1.1 200"), "the last was kept");
}

#[tokio::test]
async fn clients_stalled_in_mid_request_hold_nobody_up_and_are_given_up() {
    let short = Duration::from_millis(300);
    let limits = Limits { head: short, body: short, ..Limits::default() };
    let bench = Bench::with(limits, |_| {});
    let run = bench.begin().await;
    let mut head = TcpStream::connect(bench.tcp).await.unwrap();
    head.write_all(b"PUT /v1/halt HTTP/1.1\r\nHost: localh").await.unwrap();
    let mut body = TcpStream::connect(bench.tcp).await.unwrap();
    let begun = format!(
        "PUT /v1/halt HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OWNER}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{\"reas"
    );
    body.write_all(begun.as_bytes()).await.unwrap();
    let before = bench.changes();
    let slow = read_to_end(&mut body).await;
    assert!(slow.starts_with("HTTP/1.1 408") && slow.contains("body_timeout"), "{slow}");
    // Nothing was said in time: nothing is answered, or a timeout.
    let slow = read_to_end(&mut head).await;
    assert!(slow.is_empty() || slow.starts_with("HTTP/1.1 408"), "{slow}");
    assert_eq!(bench.changes(), before);
    assert_the_lever_answers(&bench, run).await;
}

#[tokio::test]
async fn a_subscriber_that_never_reads_holds_nobody_up_and_is_given_up() {
    let limits = Limits { write: Duration::from_millis(300), subscribers: 1, ..Limits::default() };
    let bench = Bench::with(limits, |_| {});
    let run = bench.begin().await;
    let mut silent = UnixStream::connect(&bench.socket).await.unwrap();
    let request = format!("GET /v1/runs/{run}/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    silent.write_all(request.as_bytes()).await.unwrap();
    silent.readable().await.unwrap();
    // More than any buffer between here and there holds.
    for _ in 0..50_000 {
        bench.log(run, "noise");
    }
    assert_the_lever_answers(&bench, run).await;
    // The only share of subscribers is free again when the silent one was given up.
    let begin = Instant::now();
    let url = format!("http://localhost/v1/runs/{run}/events");
    loop {
        let response = bench.local().get(&url).send().await.unwrap();
        if response.status() == 200 {
            break;
        }
        assert_eq!(response.status(), 503);
        assert!(begin.elapsed() < PATIENCE, "the silent subscriber is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn events_are_followed_and_taken_up_again() {
    let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
    let bench = Bench::with(limits, |_| {});
    let run = bench.begin().await;
    let url = format!("http://localhost/v1/runs/{run}/events");
    let response = bench.local().get(&url).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut pieces = response.bytes_stream();
    let mut text = String::new();
    let mut until = async |wanted: &str| {
        while !text.contains(wanted) {
            let piece = timeout(PATIENCE, pieces.next()).await.expect("a piece in time");
            let Some(piece) = piece else { panic!("{wanted} is not in {text}") };
            text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
    };
    until("id: 1\nevent: created\ndata: {\"seq\":1,").await;
    until(": still here\n\n").await;
    bench.log(run, "injected");
    until("id: 2\nevent: injected\n").await;
    bench.log(run, "reverted");
    until("id: 3\n").await;
    drop(pieces);

    // Another client comes back behind the second one, and stays to the end.
    let resumed = bench.local().get(&url).header("last-event-id", "2").send().await.unwrap();
    bench.local().delete(format!("http://localhost/v1/runs/{run}")).send().await.unwrap();
    let text = timeout(PATIENCE, resumed.text()).await.expect("an end").unwrap();
    let ids: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(ids, ["3", "4"], "{text}");
    assert!(text.contains("event: finished"));
    let after = Answer::of(bench.local().get(format!("{url}?after=3"))).await;
    assert!(after.body.as_str().unwrap().starts_with("id: 4\n"), "{after:#?}");
    let over = Answer::of(bench.local().get(&url).header("last-event-id", "4")).await;
    assert_eq!(over.status, 204, "an event source is told to stay away");
    let list = Answer::of(bench.local().get(&url).header("accept", "application/json")).await;
    assert_eq!(
        (list.body["events"].as_array().unwrap().len(), &list.body["finished"]),
        (4, &json!(true))
    );

    // Out of memory, into the history: the same events.
    let report: Value =
        Answer::of(bench.local().get(format!("http://localhost/v1/runs/{run}/report"))).await.body;
    bench.board.past.0.lock().unwrap().push(serde_json::from_value(report).unwrap());
    bench.board.logs.write().unwrap().clear();
    let past = Answer::of(bench.local().get(&url).header("last-event-id", "2")).await;
    assert_eq!(past.body.as_str().unwrap(), text.replace(": still here\n\n", ""));
}

#[tokio::test]
async fn what_is_not_http_gets_a_problem_document_too() {
    let bench = Bench::start();
    let long = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(200));
    for (request, status, reason) in [
        ("hello\r\n\r\n", "400", "malformed_request"),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n", "400", "malformed_request"),
        ("GET /healthz HTTP/1.1\r\n\r\n", "400", "host_missing"),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "400", "host_missing"),
        (
            "GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "421",
            "host_not_allowed",
        ),
        (long.as_str(), "431", "request_head_too_large"),
        (many.as_str(), "431", "request_head_too_large"),
    ] {
        let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
        // Where the connection is kept, this ends it.
        let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        let _ = stream.write_all(request.as_bytes()).await;
        let answer = read_to_end(&mut stream).await;
        let shown = answer.chars().take(600).collect::<String>();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}");
        assert!(answer.contains("content-type: application/problem+json"), "{shown}");
        assert!(answer.contains(&format!("\"reason\":\"{reason}\"")), "{shown}");
    }
}

#[tokio::test]
async fn a_chunked_body_is_bounded_as_well() {
    let bench = Bench::start();
    let mut stream = TcpStream::connect(bench.tcp).await.unwrap();
    let head = format!(
        "POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OWNER}\r\n\
         Content-Type: application/toml\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "#".repeat(0x10000));
    for _ in 0..32 {
        if stream.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
    assert_eq!(bench.changes(), 0);
}

#[tokio::test]
async fn the_socket_is_its_owners_and_a_stale_one_is_replaced() {
    let bench = Bench::start();
    let metadata = std::fs::metadata(&bench.socket).unwrap();
    assert!(metadata.file_type().is_socket());
    let mode = metadata.permissions().mode() & 0o777;
    let group = nix::unistd::Group::from_name("vervet").unwrap();
    assert_eq!(mode, if group.is_some() { 0o660 } else { 0o600 });

    let at = |socket: std::path::PathBuf| {
        let policy = policy(socket);
        let other = Bench::start();
        // Only the listeners matter: the handle is of a loop that has gone.
        serve(&policy, other.handle.clone(), Library::new("/nonexistent"), Limits::default())
    };
    let Err(ServeError::Socket { why, .. }) = at(bench.socket.clone()) else { panic!("in use") };
    assert!(why.contains("another agent"), "{why}");

    let stale = bench.dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let server = at(stale.clone()).unwrap();
    assert!(UnixStream::connect(&stale).await.is_ok());
    server.stop().await;
    assert!(!stale.exists(), "it disappears with its server");

    let file = bench.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(at(file.clone()).is_err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let long = bench.dir.path().join("x".repeat(120));
    let Err(ServeError::Socket { why, .. }) = at(long) else { panic!("too long") };
    assert!(why.contains("107"), "{why}");
}

#[tokio::test]
async fn stopping_ends_streams_and_closes_the_doors() {
    let mut bench = Bench::start();
    let run = bench.begin().await;
    let url = format!("http://localhost/v1/runs/{run}/events");
    let response = bench.local().get(&url).send().await.unwrap();
    let stopped = tokio::spawn(bench.server.take().unwrap().stop());
    let text = timeout(PATIENCE, response.text()).await.expect("the stream ends").unwrap();
    assert!(text.starts_with("id: 1\n"));
    timeout(PATIENCE, stopped).await.expect("it stops").unwrap();
    assert!(TcpStream::connect(bench.tcp).await.is_err());
    assert!(!bench.socket.exists());
}

#[tokio::test]
async fn a_reloaded_policy_has_other_tokens() {
    let bench = Bench::start();
    let mut policy = policy(bench.socket.clone());
    policy.tokens.retain(|token| token.name != "ci");
    policy.hosts.clear();
    let library = Library::new(bench.dir.path());
    bench.server.as_ref().unwrap().reload(&policy, library);
    let gone = Answer::of(remote(OPERATOR).get(bench.url("/v1/host"))).await;
    gone.assert_problem(401, "token_invalid");
    assert_eq!(Answer::of(remote(OWNER).get(bench.url("/v1/host"))).await.status, 200);
}

/// Another user of this machine, if the tests may become one.
#[tokio::test]
async fn a_local_user_without_the_group_is_turned_away() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED: a_local_user_without_the_group_is_turned_away: only root can become another user"
        );
        return;
    }
    let bench = Bench::start();
    std::fs::set_permissions(bench.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&bench.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let ask = |path: &str| {
        let mut command = tokio::process::Command::new("curl");
        command.args(["-s", "-m", "5", "--unix-socket"]).arg(&bench.socket);
        command.arg(format!("http://localhost{path}")).uid(65_534).gid(65_534);
        command
    };
    let Ok(output) = ask("/v1/host").output().await else {
        eprintln!("SKIPPED: a_local_user_without_the_group_is_turned_away: there is no curl");
        return;
    };
    let problem: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&problem["status"], &problem["reason"]), (&json!(403), &json!("peer_not_allowed")));
    let open = ask("/healthz").output().await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&open.stdout).unwrap(), json!({ "status": "ok" }));
}
