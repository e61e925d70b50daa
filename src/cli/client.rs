//! The agent's API from outside: over its socket, or over TCP to another host.
//!
//! Every call has a time limit, and every failure says what was tried and what to do. Answers are
//! made safe to print here, once, for everybody.

use std::{error::Error as _, io, path::Path, time::Duration};

use jiff::Timestamp;
use reqwest::{Method, RequestBuilder, Response, header};
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    cli::{
        args::Global,
        exit::Exit,
        place::{Place, chain, place, read_token, refuse_clear_text, with_trust},
        problem::Problem,
        text,
    },
    view::{
        CalendarView, FaultView, GroupView, HaltView, HostView, PlanView, ReportView, RunView,
        ScheduleView,
    },
};

/// For a call that only reads or enqueues.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For a call that answers when faults are undone.
const UNDO_TIMEOUT: Duration = Duration::from_mins(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A way to the agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: reqwest::Url,
    place: Place,
    token: Option<header::HeaderValue>,
}

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Flags or files of this side.
    #[error("{0}")]
    Setup(String),
    #[error(
        "no agent is running: nothing listens on {0}\n\
         help: start it with `systemctl start vervet` or `vervet agent --config FILE`;\n\
         if it listens elsewhere, name the socket with --socket PATH"
    )]
    NotRunning(Place),
    #[error(
        "no permission to talk to the agent on {0}\n\
         help: join the group `vervet` (`usermod -aG vervet $USER`, then log in again), or be root"
    )]
    Denied(Place),
    #[error("failed to reach the agent at {place}: {error}")]
    Unreachable { place: Place, error: String },
    #[error(
        "no trust in the agent at {place}: {error}\n\
         help: --ca FILE names the certificate authority that signed its certificate;\n\
         --cert FILE shows a certificate of your own, where it wants one"
    )]
    Tls { place: Place, error: String },
    #[error("the agent at {place} did not answer within {}", text::duration(*.within))]
    Timeout { place: Place, within: Duration },
    #[error(
        "the agent at {place} answers in a way that this version ({}) does not understand: {error}\n\
         help: compare with `vervet --version` on that host",
        env!("CARGO_PKG_VERSION")
    )]
    Skew { place: Place, error: String },
    #[error("{}", .0.render())]
    Problem(Box<Problem>),
}

impl ClientError {
    /// How a command ends that meets it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Setup(_) => Exit::Usage,
            Self::Problem(problem) => problem.exit(),
            _ => Exit::Unreachable,
        }
    }

    /// The agent has no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.status == 404)
    }
}

/// What to run, as it goes over the wire.
#[derive(Debug, Clone)]
pub enum Document {
    Toml(String),
    Json(String),
    /// The name of an experiment that the host keeps.
    Name(String),
}

/// What goes with a document.
#[derive(Debug, Clone, Default)]
pub struct Start {
    pub seed: Option<u64>,
    pub plan: Option<String>,
    pub idempotency_key: Option<String>,
}

impl Client {
    /// A client for the place that the flags name.
    ///
    /// # Errors
    /// When a flag or a file that it names is no good. Does not connect yet.
    pub fn new(global: &Global) -> Result<Self, ClientError> {
        // May be installed already; either way there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let place = place(global)?;
        let token = global.token_file.as_deref().map(read_token).transpose()?;
        let builder = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("vervet/", env!("CARGO_PKG_VERSION")));
        let (builder, base) = match &place {
            // No authority needs to be trusted for a socket; this also saves reading them all.
            Place::Socket(path) => {
                (builder.tls_certs_only([]).unix_socket(path.as_path()), "http://localhost/".parse())
            }
            Place::Url(url) => (with_trust(builder, global)?, Ok(url.clone())),
        };
        let setup = |error: String| ClientError::Setup(format!("failed to set up the client: {error}"));
        let http = builder.build().map_err(|error| setup(chain(&error)))?;
        let base = base.map_err(|_| setup("bad base address".to_owned()))?;
        if let (Some(_), Place::Url(url)) = (&token, &place) {
            refuse_clear_text(url)?;
        }
        Ok(Self { http, base, place, token })
    }

    /// A client for one socket.
    ///
    /// # Errors
    /// When there can be no client.
    pub fn on_socket(path: &Path) -> Result<Self, ClientError> {
        let global = Global {
            socket: Some(path.to_owned()),
            host: None,
            token_file: None,
            ca: None,
            cert: None,
            json: false,
            color: crate::cli::args::ColorWhen::Never,
            log: None,
        };
        Self::new(&global)
    }

    /// Where this client looks for the agent.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// # Errors
    /// As every call: see [`ClientError`].
    pub async fn host(&self) -> Result<HostView, ClientError> {
        self.typed(self.get("v1/host").await?)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn groups(&self) -> Result<Vec<GroupView>, ClientError> {
        self.typed(list(self.get("v1/groups").await?, "groups"))
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn faults(&self) -> Result<Vec<FaultView>, ClientError> {
        self.typed(list(self.get("v1/faults").await?, "faults"))
    }

    /// The newest `limit` runs, newest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn runs(&self, state: Option<&str>, limit: u32) -> Result<Vec<RunView>, ClientError> {
        let mut runs: Vec<RunView> = Vec::new();
        let limit = limit as usize;
        loop {
            let page = (limit - runs.len()).min(100);
            let mut path = format!("v1/runs?limit={page}");
            if let Some(state) = state {
                path.push_str("&state=");
                path.push_str(state);
            }
            if let Some(last) = runs.last() {
                path = format!("{path}&before={}", last.id);
            }
            let more: Vec<RunView> = self.typed(list(self.get(&path).await?, "runs"))?;
            let end = more.len() < page;
            runs.extend(more);
            if end || runs.len() >= limit {
                runs.truncate(limit);
                return Ok(runs);
            }
        }
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn run(&self, id: Uuid) -> Result<RunView, ClientError> {
        self.typed(self.get(&format!("v1/runs/{id}")).await?)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn report(&self, id: Uuid) -> Result<ReportView, ClientError> {
        self.typed(self.get(&format!("v1/runs/{id}/report")).await?)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn plan(&self, document: &Document, seed: Option<u64>) -> Result<PlanView, ClientError> {
        let start = Start { seed, ..Start::default() };
        let request = self.with_document(Method::POST, "v1/plans", document, &start)?;
        self.typed(self.answer(request, CALL_TIMEOUT).await?)
    }

    /// Begins a run; it may be over already when this answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn start(&self, document: &Document, start: &Start) -> Result<RunView, ClientError> {
        let mut request = self.with_document(Method::POST, "v1/runs", document, start)?;
        if let Some(key) = &start.idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        self.typed(self.answer(request, CALL_TIMEOUT).await?)
    }

    /// Aborts a run; answers when it is undone.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn abort(&self, id: Uuid) -> Result<RunView, ClientError> {
        let request = self.request(Method::DELETE, &format!("v1/runs/{id}"))?;
        self.typed(self.answer(request, UNDO_TIMEOUT).await?)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn halt(&self, reason: &str) -> Result<HaltView, ClientError> {
        let body = serde_json::json!({ "reason": reason });
        let request = self.request(Method::PUT, "v1/halt")?.json(&body);
        self.typed(self.answer(request, UNDO_TIMEOUT).await?)
    }

    /// Releases the halt; gives the one that was released, if there was one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn resume(&self) -> Result<Option<HaltView>, ClientError> {
        let answer = self.answer(self.request(Method::DELETE, "v1/halt")?, CALL_TIMEOUT).await?;
        self.typed(list(answer, "released"))
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn schedules(&self) -> Result<Vec<ScheduleView>, ClientError> {
        self.typed(list(self.get("v1/schedules").await?, "schedules"))
    }

    /// What will run from `from` on, for `days` days.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn calendar(
        &self,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<CalendarView, ClientError> {
        let query = [("from", from.to_string()), ("until", until.to_string())];
        self.typed(self.get(&form("v1/calendar", &query)).await?)
    }

    /// Pauses a schedule, or resumes it where no reason is given. Says whether that is on disk.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pause(
        &self,
        schedule: &str,
        reason: Option<&str>,
    ) -> Result<(ScheduleView, bool), ClientError> {
        let path = format!("v1/schedules/{schedule}/pause");
        let request = match reason {
            Some(reason) => {
                self.request(Method::PUT, &path)?.json(&serde_json::json!({ "reason": reason }))
            }
            None => self.request(Method::DELETE, &path)?,
        };
        let answer = self.answer(request, CALL_TIMEOUT).await?;
        let durable = answer["durable"].as_bool().unwrap_or_default();
        Ok((self.typed(list(answer, "schedule"))?, durable))
    }

    /// The events of a run behind the one numbered `last`; the caller reads the body.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self, id: Uuid, last: u64) -> Result<Response, ClientError> {
        let mut request = self
            .request(Method::GET, &format!("v1/runs/{id}/events"))?
            .header(header::ACCEPT, "text/event-stream");
        if last > 0 {
            request = request.header("Last-Event-ID", last.to_string());
        }
        // The head must come soon; the body may take as long as the run.
        let response = match tokio::time::timeout(CALL_TIMEOUT, request.send()).await {
            Ok(sent) => sent.map_err(|error| self.explain(&error, CALL_TIMEOUT))?,
            Err(_) => return Err(self.timed_out(CALL_TIMEOUT)),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap_or_default();
        Err(ClientError::Problem(Box::new(Problem::parse(status, &body))))
    }

    /// GET, whatever it answers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.answer(self.request(Method::GET, path)?, CALL_TIMEOUT).await
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, ClientError> {
        let url = self.base.join(path).map_err(|error| {
            ClientError::Setup(format!("no such path on the agent: {path}: {error}"))
        })?;
        let mut request = self.http.request(method, url).header(header::ACCEPT, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        Ok(request)
    }

    fn with_document(
        &self,
        method: Method,
        path: &str,
        document: &Document,
        start: &Start,
    ) -> Result<RequestBuilder, ClientError> {
        let mut query = Vec::new();
        query.extend(start.seed.map(|seed| ("seed", seed.to_string())));
        query.extend(start.plan.clone().map(|plan| ("plan", plan)));
        let url = form(path, &query);
        let (kind, body) = match document {
            Document::Toml(text) => ("application/toml", text.clone()),
            Document::Json(text) => ("application/json", text.clone()),
            Document::Name(name) => {
                ("application/json", serde_json::json!({ "experiment": name }).to_string())
            }
        };
        Ok(self.request(method, &url)?.header(header::CONTENT_TYPE, kind).body(body))
    }

    async fn answer(&self, request: RequestBuilder, within: Duration) -> Result<Value, ClientError> {
        let response =
            request.timeout(within).send().await.map_err(|error| self.explain(&error, within))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.explain(&error, within))?;
        if !status.is_success() {
            return Err(ClientError::Problem(Box::new(Problem::parse(status.as_u16(), &body))));
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        let mut value = serde_json::from_slice(&body).map_err(|error| self.skew(&error))?;
        text::clean_value(&mut value);
        Ok(value)
    }

    fn typed<T: DeserializeOwned>(&self, value: Value) -> Result<T, ClientError> {
        serde_json::from_value(value).map_err(|error| self.skew(&error))
    }

    fn skew(&self, error: &serde_json::Error) -> ClientError {
        ClientError::Skew { place: self.place.clone(), error: error.to_string() }
    }

    fn timed_out(&self, within: Duration) -> ClientError {
        ClientError::Timeout { place: self.place.clone(), within }
    }

    fn explain(&self, error: &reqwest::Error, within: Duration) -> ClientError {
        let place = self.place.clone();
        if let (Some(kind), Place::Socket(_)) = (io_kind(error), &place) {
            match kind {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    return ClientError::NotRunning(place);
                }
                io::ErrorKind::PermissionDenied => return ClientError::Denied(place),
                _ => {}
            }
        }
        if error.is_timeout() {
            return self.timed_out(within);
        }
        let error = chain(error);
        let tls = ["certificate", "TLS", "tls", "handshake", "UnknownIssuer"];
        if tls.iter().any(|word| error.contains(word)) {
            return ClientError::Tls { place, error };
        }
        ClientError::Unreachable { place, error }
    }
}

/// A list, bare or inside of an object.
fn list(mut value: Value, key: &str) -> Value {
    match value.get_mut(key) {
        Some(inner) => inner.take(),
        None => value,
    }
}

fn form(path: &str, query: &[(&str, String)]) -> String {
    let encode = |text: &str| -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        text.bytes()
            .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect()
    };
    let pairs: Vec<String> =
        query.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        source = inner.source();
    }
    None
}
