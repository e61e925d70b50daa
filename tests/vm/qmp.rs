//! The dialogue with qemu itself (QMP): one JSON object per line, answers in order, events between.
//!
//! Everything has a limit of time; whatever does not go as it should ends the story.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// The longest that qemu may take to answer a command.
const PATIENCE: Duration = Duration::from_mins(1);
/// The longest that memory may take to be written or read.
const MOVE: Duration = Duration::from_mins(3);

/// A connection to the machine's monitor.
#[derive(Debug)]
pub struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Takes up the dialogue.
    ///
    /// # Errors
    /// When qemu does not greet, or ends.
    pub fn new(stream: UnixStream) -> Result<Self, String> {
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        let mut qmp = Self { lines: BufReader::new(stream) };
        qmp.read()?;
        qmp.command("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// One command, and what it returned.
    ///
    /// # Errors
    /// What qemu said, or that it said nothing.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": name, "arguments": arguments }));
        let stream = self.lines.get_mut();
        stream.write_all(line.as_bytes()).map_err(|error| format!("tell qemu {name}: {error}"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("qemu refused {name}: {error}"));
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Stops the machine and writes its memory and devices to a file.
    ///
    /// # Errors
    /// What qemu said, or that it took too long.
    pub fn sleep(&mut self, file: &str) -> Result<(), String> {
        self.command("stop", &json!({}))?;
        self.command("migrate-set-parameters", &json!({ "max-bandwidth": 8_u64 << 30 }))?;
        self.command("migrate", &json!({ "uri": format!("exec:exec cat >'{file}'") }))?;
        self.until("query-migrate", "completed", &["failed", "cancelled"])
    }

    /// Waits until a machine that was started from such a file runs.
    ///
    /// # Errors
    /// What qemu said, or that it took too long.
    pub fn wake(&mut self) -> Result<(), String> {
        self.until("query-status", "paused", &["shutdown", "internal-error", "io-error"])?;
        self.command("cont", &json!({}))?;
        self.until("query-status", "running", &["shutdown", "internal-error", "io-error"])
    }

    fn until(&mut self, query: &str, wanted: &str, bad: &[&str]) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let answer = self.command(query, &json!({}))?;
            match answer["status"].as_str() {
                Some(status) if status == wanted => return Ok(()),
                Some(status) if bad.contains(&status) => return Err(format!("{query}: {answer}")),
                _ if begun.elapsed() > MOVE => return Err(format!("{query} takes too long: {answer}")),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn read(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err("qemu ended".to_owned()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{error} in {line}")),
            Err(error) => Err(format!("qemu does not answer: {error}")),
        }
    }
}
