//! The dialogue with the guest agent (qemu-ga), and no more: requests, answers, limits of time.
//!
//! The protocol is one JSON object per line each way, over a virtio-serial port. After a reset the
//! guest may get what was sent to its predecessor: every dialogue begins with a number of its own, and
//! answers before that number are dropped.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// The longest that the agent may take for a request. It does not wait for programs.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often a guest that is not there yet is called.
const CALL: Duration = Duration::from_secs(1);

/// What a program in the guest did.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code, or 128 and the signal that ended it.
    pub code: i64,
    pub stdout: String,
    pub stderr: String,
}

/// A connection to the guest agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    pending: Vec<u8>,
    number: u64,
}

impl Agent {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new(), number: u64::from(std::process::id()) << 16 }
    }

    /// Begins a dialogue, as soon as an agent is there.
    ///
    /// # Errors
    /// When none is there within the limit.
    pub fn sync(&mut self, limit: Duration) -> Result<(), String> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            self.number += 1;
            let request = json!({ "execute": "guest-sync", "arguments": { "id": self.number } });
            // 0xFF makes the agent forget half of a line that it may have got before.
            self.send(&[&[0xff], format!("{request}\n").as_bytes()].concat())?;
            let until = Instant::now() + CALL;
            while let Some(answer) = self.answer(until)? {
                if answer["return"] == json!(self.number) {
                    return Ok(());
                }
            }
        }
        Err(format!("the guest says nothing for {limit:?}"))
    }

    /// One request, and what it returned.
    ///
    /// # Errors
    /// What the agent said, or that it said nothing.
    pub fn request(&mut self, name: &str, arguments: &Value) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        self.send(line.as_bytes())?;
        match self.answer(Instant::now() + PATIENCE)? {
            None => Err(format!("the guest does not answer {name}")),
            Some(answer) if answer.get("error").is_some() => Err(format!("{name}: {}", answer["error"])),
            Some(mut answer) => Ok(answer["return"].take()),
        }
    }

    /// Starts a program; its id in the guest.
    ///
    /// # Errors
    /// What the agent said.
    pub fn start(&mut self, program: &str, args: &[&str], input: &[u8]) -> Result<i64, String> {
        let arguments = json!({
            "path": program, "arg": args, "capture-output": true, "input-data": STANDARD.encode(input),
        });
        let answer = self.request("guest-exec", &arguments)?;
        answer["pid"].as_i64().ok_or_else(|| format!("guest-exec: {answer}"))
    }

    /// What a program did, if it has ended. Can be asked once.
    ///
    /// # Errors
    /// What the agent said.
    pub fn ended(&mut self, pid: i64) -> Result<Option<Output>, String> {
        let answer = self.request("guest-exec-status", &json!({ "pid": pid }))?;
        if answer["exited"] != json!(true) {
            return Ok(None);
        }
        let text = |key: &str| {
            let bytes = STANDARD.decode(answer[key].as_str().unwrap_or_default()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let signal = answer["signal"].as_i64().map(|signal| 128 + signal);
        let code = answer["exitcode"].as_i64().or(signal).unwrap_or(-1);
        Ok(Some(Output { code, stdout: text("out-data"), stderr: text("err-data") }))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|error| format!("reach the guest: {error}"))
    }

    /// The next answer, if one comes in time.
    fn answer(&mut self, until: Instant) -> Result<Option<Value>, String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).filter(|byte| *byte != 0xff).collect();
                // What an agent before this one had half said is no answer.
                if let Ok(answer) = serde_json::from_slice(&line) {
                    return Ok(Some(answer));
                }
                continue;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
            let mut bytes = [0; 8_192];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err("qemu ended".to_owned()),
                Ok(count) => self.pending.extend(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(format!("reach the guest: {error}")),
            }
        }
    }
}
