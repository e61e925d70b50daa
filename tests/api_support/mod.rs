//! A served API with a small loop behind it, and clients of every kind.
//!
//! The loop keeps runs in memory and touches nothing. It counts what would have changed something.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;
use vervet::{
    api::{Limits, Server, serve},
    config::{ApiPolicy, Role, TlsPolicy, TokenPolicy},
    document::Library,
    experiment::Experiment,
    policy::calendar::{Agenda, Memory},
    runner::{Command, Handle, History, RequestError, RunLog, Snapshot, StartRequest},
    view::*,
};

pub const OBSERVER: &str = "vervet_observer";
pub const OPERATOR: &str = "vervet_operator";
pub const OWNER: &str = "vervet_owner";

/// An experiment that is over as soon as it has begun.
pub const SHORT: &str = r#"
title = "short"
hypothesis = "nothing happens"
groups = ["checkout"]
[[step]]
name = "lose a worker"
fault = "kill"
target = { group = "checkout", pick = 1 }
"#;

/// An experiment that goes on until it is aborted.
pub fn long() -> String {
    SHORT.replace("short", "long")
}

/// Everything that a test holds.
pub struct Bench {
    pub server: Option<Server>,
    pub handle: Handle,
    pub socket: PathBuf,
    pub tcp: std::net::SocketAddr,
    pub dir: tempfile::TempDir,
    /// Commands that would change something, aborts and halts included.
    pub changes: Arc<AtomicUsize>,
    pub board: Arc<Board>,
}

/// What the loop shares with its readers.
pub struct Board {
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    pub logs: Arc<RwLock<HashMap<Uuid, Arc<RunLog>>>>,
    pub past: Arc<Past>,
}

/// A history in memory.
#[derive(Default)]
pub struct Past(pub Mutex<Vec<ReportView>>);

impl History for Past {
    fn list(&self, before: Option<Uuid>, limit: usize) -> anyhow::Result<Vec<RunView>> {
        let mut runs: Vec<_> = self.0.lock().unwrap().iter().map(|report| report.run.clone()).collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.id));
        runs.retain(|run| before.is_none_or(|before| run.id < before));
        runs.truncate(limit);
        Ok(runs)
    }

    fn report(&self, run: Uuid) -> anyhow::Result<Option<ReportView>> {
        Ok(self.0.lock().unwrap().iter().find(|report| report.run.id == run).cloned())
    }
}

impl Bench {
    pub fn start() -> Self {
        Self::with(Limits::default(), |_| {})
    }

    pub fn with(limits: Limits, change: impl FnOnce(&mut ApiPolicy)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("experiments");
        std::fs::create_dir(&library).unwrap();
        std::fs::write(library.join("short.toml"), SHORT).unwrap();
        let mut policy = policy(dir.path().join("api.sock"));
        change(&mut policy);
        let changes = Arc::new(AtomicUsize::new(0));
        let (handle, board) = run_loop(changes.clone());
        let server = serve(&policy, handle.clone(), Library::new(library), limits).unwrap();
        let tcp = server.tcp_address().unwrap();
        Self { server: Some(server), handle, socket: policy.socket, tcp, dir, changes, board }
    }

    pub fn changes(&self) -> usize {
        self.changes.load(Ordering::SeqCst)
    }

    /// Over the socket, as the user that runs the tests: an owner.
    pub fn local(&self) -> reqwest::Client {
        crypto();
        reqwest::Client::builder().tls_certs_only([]).unix_socket(self.socket.as_path()).build().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.tcp)
    }

    /// A run that is going on.
    pub async fn begin(&self) -> Uuid {
        let response = self
            .local()
            .post("http://localhost/v1/runs")
            .header("content-type", "application/toml")
            .body(long())
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 202);
        let run: RunView = response.json().await.unwrap();
        run.id
    }

    /// One more event of a run.
    pub fn log(&self, run: Uuid, kind: &str) {
        let log = self.board.logs.read().unwrap()[&run].clone();
        append(&log, run, kind);
    }
}

/// reqwest has no provider of its own.
pub fn crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Over TCP, with a token.
pub fn remote(token: &str) -> reqwest::Client {
    crypto();
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    reqwest::Client::builder().tls_certs_only([]).default_headers(headers).no_proxy().build().unwrap()
}

pub fn policy(socket: PathBuf) -> ApiPolicy {
    let token = |name: &str, role, secret: &str| TokenPolicy {
        name: name.to_owned(),
        role,
        sha256: Sha256::digest(secret).into(),
    };
    ApiPolicy {
        socket,
        listen: Some("127.0.0.1:0".parse().unwrap()),
        tls: None::<TlsPolicy>,
        tokens: vec![
            token("eyes", Role::Observer, OBSERVER),
            token("ci", Role::Operator, OPERATOR),
            token("boss", Role::Owner, OWNER),
        ],
        hosts: vec!["chaos.example".to_owned()],
    }
}

/// The stand-in loop, on a runtime of its own so that tests of any kind can use it.
fn run_loop(changes: Arc<AtomicUsize>) -> (Handle, Arc<Board>) {
    let (urgent, mut urgents) = mpsc::channel(64);
    let (requests, mut requested) = mpsc::channel(64);
    let (sender, snapshot) = watch::channel(Arc::new(snapshot()));
    let board = Arc::new(Board { snapshot: sender, logs: Arc::default(), past: Arc::default() });
    let handle = Handle::new(urgent, requests, snapshot, board.logs.clone(), board.past.clone());
    let shared = board.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut keys = HashMap::new();
            loop {
                let command = tokio::select! {
                    biased;
                    Some(command) = urgents.recv() => command,
                    Some(command) = requested.recv() => command,
                    else => return,
                };
                obey(&shared, &mut keys, &changes, command);
            }
        });
    });
    (handle, board)
}

type Keys = HashMap<(String, String), ([u8; 32], Uuid)>;

fn obey(board: &Board, keys: &mut Keys, changes: &AtomicUsize, command: Command) {
    let count = || changes.fetch_add(1, Ordering::SeqCst);
    match command {
        Command::Plan { experiment, seed, reply } => drop(reply.send(plan(&experiment, seed))),
        Command::Start { request, reply } => {
            let known =
                request.idempotency.as_ref().map(|key| (request.caller.clone(), key.key.clone()));
            let before = known.as_ref().and_then(|key| keys.get(key)).copied();
            let answer = match (before, &request.idempotency) {
                (Some((body, run)), Some(key)) if body == key.body => Ok(latest(board, run)),
                (Some((_, run)), _) => Err(RequestError::KeyReused(run)),
                _ => {
                    count();
                    let body = request.idempotency.as_ref().map(|key| key.body);
                    let run = begin(board, request);
                    if let (Some(known), Some(body)) = (known, body) {
                        keys.insert(known, (body, run));
                    }
                    Ok(latest(board, run))
                }
            };
            drop(reply.send(answer));
        }
        Command::Abort { run, reply, .. } => {
            count();
            end(board, run, Verdict::Aborted);
            drop(reply.send(Ok(())));
        }
        Command::Halt { reason, caller, reply } => {
            count();
            let pulled = HaltView { reason, by: caller, since: Timestamp::now(), durable: true };
            let mut answer = pulled.clone();
            update(board, |snapshot| {
                answer = snapshot.host.halted.get_or_insert(pulled).clone();
            });
            drop(reply.send(answer));
        }
        Command::Pause { schedule, pause, reply } => {
            let mut known = false;
            update(board, |snapshot| {
                known = Arc::make_mut(&mut snapshot.agenda).pause(&schedule, pause);
            });
            if known {
                count();
            }
            let _ = reply.send(known.then_some(true));
        }
        Command::Release { reply, .. } => {
            count();
            let mut released = None;
            update(board, |snapshot| released = snapshot.host.halted.take());
            drop(reply.send(Ok(released)));
        }
    }
}

fn update(board: &Board, change: impl FnOnce(&mut Snapshot)) {
    board.snapshot.send_modify(|snapshot| change(Arc::make_mut(snapshot)));
}

fn latest(board: &Board, run: Uuid) -> Arc<RunView> {
    board.logs.read().unwrap()[&run].latest.borrow().clone()
}

fn begin(board: &Board, request: StartRequest) -> Uuid {
    let run = run_view(&request);
    let id = run.id;
    let goes_on = run.title == "long";
    let log = Arc::new(RunLog {
        latest: watch::Sender::new(Arc::new(run)),
        experiment: request.experiment,
        events: Mutex::default(),
        count: watch::Sender::new(0),
    });
    board.logs.write().unwrap().insert(id, log.clone());
    append(&log, id, "created");
    publish(board);
    if !goes_on {
        end(board, id, Verdict::Passed);
    }
    id
}

fn end(board: &Board, run: Uuid, verdict: Verdict) {
    let Some(log) = board.logs.read().unwrap().get(&run).cloned() else { return };
    if log.latest.borrow().state == RunState::Finished {
        return;
    }
    append(&log, run, "finished");
    log.latest.send_modify(|run| {
        let run = Arc::make_mut(run);
        run.state = RunState::Finished;
        run.verdict = Some(verdict);
        run.cleanup = Cleanup::Clean;
        run.finished_at = Some(Timestamp::now());
    });
    publish(board);
}

fn append(log: &RunLog, run: Uuid, kind: &str) {
    let mut events = log.events.lock().unwrap();
    let seq = events.len() as u64 + 1;
    events.push(Arc::new(EventView {
        seq,
        at: Timestamp::now(),
        run,
        step: None,
        kind: kind.to_owned(),
        message: format!("event {seq}"),
        data: json!({}),
    }));
    drop(events);
    log.count.send_replace(seq);
}

fn publish(board: &Board) {
    let mut runs: Vec<_> =
        board.logs.read().unwrap().values().map(|log| log.latest.borrow().clone()).collect();
    runs.sort_by_key(|run| std::cmp::Reverse(run.id));
    update(board, |snapshot| snapshot.runs = runs);
}

fn run_view(request: &StartRequest) -> RunView {
    RunView {
        id: Uuid::now_v7(),
        title: request.experiment.title.clone(),
        hypothesis: request.experiment.hypothesis.clone(),
        state: RunState::Running,
        verdict: None,
        cleanup: Cleanup::InForce,
        aborted_by: None,
        why: None,
        seed: request.seed.unwrap_or(7),
        leashed: false,
        caller: request.caller.clone(),
        created_at: Timestamp::now(),
        finished_at: None,
        steps: vec![],
        probes: vec![],
    }
}

fn plan(experiment: &Experiment, seed: Option<u64>) -> Result<PlanView, RequestError> {
    if experiment.title == "impossible" {
        return Err(RequestError::Rejected(ReasonView {
            reason: "nothing_matches".to_owned(),
            message: "the selector matches no process".to_owned(),
            numbers: json!({ "step": 0 }),
        }));
    }
    Ok(PlanView {
        title: experiment.title.clone(),
        digest: "0123456789abcdef".to_owned(),
        seed: seed.unwrap_or(7),
        decision: DecisionView::Refuse {
            why: ReasonView {
                reason: "floor".to_owned(),
                message: "group checkout has 3 ready, floor 3".to_owned(),
                numbers: json!({ "ready": 3, "floor": 3 }),
            },
        },
        steps: vec![],
    })
}

/// A host with one group.
pub fn snapshot() -> Snapshot {
    let now = Timestamp::now();
    let host = HostView {
        name: "test".to_owned(),
        version: "0.1.0".to_owned(),
        kernel: "6.1".to_owned(),
        started_at: now,
        leashed: false,
        halted: None,
        frozen: None,
        problems: vec![],
        faults: vec![],
    };
    let group = GroupView {
        name: "checkout".to_owned(),
        floor: 3,
        expected: Some(4),
        ready: Some(4),
        total: Some(4),
        taken_at: Some(now),
        fresh: true,
        problem: None,
        charged: 1,
        effective: Some(3),
        budget: BudgetView { at_once: 1, every_ms: 30_000, left: 0, room_at: Some(now) },
        blocked: None,
        members: vec![],
    };
    let policy = "[[schedule]]\nexperiment = \"kill-one\"\ncron = \"0 10 * * Mon-Fri\"\nzone = \"UTC\"\n\
                  [[freeze]]\nname = \"weekend\"\ndays = \"Sat-Sun\"\nzone = \"UTC\"\n";
    let policy = vervet::document::policy(policy, "vervet.toml").unwrap();
    let agenda = Arc::new(Agenda::new(&policy, 1, Ok(Memory::default()), now));
    Snapshot { host, groups: vec![group], runs: vec![], faults: vec![], agenda }
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, headers, body }
    }

    pub fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or("")
    }

    /// A problem document, as every answer that is not a success must be.
    pub fn assert_problem(&self, status: u16, reason: &str) {
        assert_eq!((self.status, self.reason()), (status, reason), "{self:#?}");
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:#?}");
        assert_eq!(self.body["status"], status, "{self:#?}");
        assert_eq!(self.body["type"], format!("urn:vervet:problem:{reason}"));
        assert!(!self.body["detail"].as_str().unwrap().is_empty());
        assert!(!self.body["title"].as_str().unwrap().is_empty());
    }
}

/// Long enough for anything that works, short enough for a test that does not.
pub const PATIENCE: Duration = Duration::from_secs(10);
