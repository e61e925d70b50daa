//! As little HTTP as it takes to talk to the agent without adding time of one's own.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);

/// One connection that is kept open.
pub struct Client(BufReader<UnixStream>);

impl Client {
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn get(&mut self, path: &str) -> io::Result<(u16, Value)> {
        self.call("GET", path, None)
    }

    pub fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> io::Result<(u16, Value)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        self.send(method, path, "application/json", &body)?;
        let (status, length) = self.head()?;
        let mut bytes = vec![0; length.unwrap_or_default()];
        self.0.read_exact(&mut bytes)?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    /// Starts a run; its id.
    pub fn run(&mut self, experiment: &Value) -> String {
        let (status, run) = self.call("POST", "/v1/runs", Some(experiment)).expect("an answer");
        assert_eq!(status, 202, "{run:#}");
        run["id"].as_str().expect("an id").to_owned()
    }

    /// Turns into the stream of a run's events.
    pub fn events(mut self, run: &str) -> Events {
        let path = format!("/v1/runs/{run}/events");
        self.send("GET", &path, "text/event-stream", "").expect("sent");
        let (status, _) = self.head().expect("an answer");
        assert_eq!(status, 200);
        Events(self.0)
    }

    fn send(&mut self, method: &str, path: &str, kind: &str, body: &str) -> io::Result<()> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {kind}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(head.as_bytes())
    }

    fn head(&mut self) -> io::Result<(u16, Option<usize>)> {
        let (mut status, mut length, mut line) = (0, None, String::new());
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = line.trim_end();
            if let Some(rest) = text.strip_prefix("HTTP/1.1 ") {
                status = rest.get(..3).and_then(|code| code.parse().ok()).unwrap_or_default();
            } else if let Some((name, value)) = text.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse().ok();
                }
            } else if text.is_empty() {
                return Ok((status, length));
            }
        }
    }
}

/// A run's events as they come. Chunk sizes between them look like no event, and are passed over.
pub struct Events(BufReader<UnixStream>);

impl Events {
    /// Reads until the `count`th event of this kind.
    pub fn until(&mut self, kind: &str, count: usize) -> Instant {
        let (mut line, mut seen, mut said) = (String::new(), 0, String::new());
        while seen < count {
            line.clear();
            let length = self.0.read_line(&mut line).expect("an event");
            assert!(length > 0, "the stream ended before {count} times {kind}:\n{said}");
            if line.starts_with("data:") {
                said.push_str(&line);
            }
            if line.strip_prefix("event:").is_some_and(|event| event.trim() == kind) {
                seen += 1;
            }
        }
        Instant::now()
    }
}
