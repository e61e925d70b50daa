//! Structured logs in the journal of systemd, by its native protocol.
//!
//! A record is one datagram of fields: `NAME=value` and a newline, or for a value of several lines
//! the name, a newline, its length in 64 bits little-endian, the value and a newline
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>). The socket does not block: a record that
//! journald has no room for is lost, for what logs here also undoes faults.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// The most that is told of one value, in bytes: a record of some of them still fits a datagram.
const LONGEST: usize = 16 << 10;

/// Fields that stand beside the message; all others are told in it as well.
const BESIDE: [&str; 9] =
    ["run", "step", "group", "fault", "fault_id", "reason", "event", "experiment", "data"];

/// The logs of this process go to the journal.
static IN_USE: AtomicBool = AtomicBool::new(false);

/// Logs in the journal.
#[derive(Debug)]
pub struct Journald {
    socket: UnixDatagram,
}

impl Journald {
    /// When standard error of this process is the journal: JOURNAL_STREAM names the device and
    /// inode of the stream that systemd.exec(5) connected, and somebody may have redirected it since.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let (device, inode) = stream.split_once(':')?;
        let stderr = rustix::fs::fstat(io::stderr()).ok()?;
        if (device.parse(), inode.parse()) != (Ok(stderr.st_dev), Ok(stderr.st_ino)) {
            return None;
        }
        let this = Self::connect(Path::new(SOCKET)).ok()?;
        IN_USE.store(true, Ordering::Relaxed);
        Some(this)
    }

    /// # Errors
    /// When nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    fn send(&self, level: Level, fields: &Fields) {
        let mut record = Vec::with_capacity(512);
        put(&mut record, "MESSAGE", &fields.message());
        put(&mut record, "PRIORITY", priority(level));
        put(&mut record, "SYSLOG_IDENTIFIER", "vervet");
        for (name, value) in &fields.others {
            match *name {
                // Of several groups each is a field of its own, so that each can be asked for.
                "group" => value.lines().for_each(|group| put(&mut record, "GROUP", group)),
                "run" => put(&mut record, "RUN_ID", value),
                name => put(&mut record, &name.to_ascii_uppercase(), value),
            }
        }
        // There is nobody to be told that there is nobody to be told.
        let _ = self.socket.send(&record);
    }
}

/// The logs of this process go to the journal, with fields.
#[must_use]
pub fn in_use() -> bool {
    IN_USE.load(Ordering::Relaxed)
}

impl<S: Subscriber> Layer<S> for Journald {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.send(*event.metadata().level(), &fields);
    }
}

/// syslog(3): 3 error, 4 warning, 6 informational, 7 debug.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

fn put(record: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(LONGEST)];
    record.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        record.push(b'\n');
        record.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        record.push(b'=');
    }
    record.extend_from_slice(value.as_bytes());
    record.push(b'\n');
}

/// What an event says.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: BTreeMap<&'static str, String>,
}

impl Fields {
    /// Readable by itself.
    fn message(&self) -> String {
        let error = self.others.get("error").map(|error| format!(": {error}")).unwrap_or_default();
        let others: Vec<String> = self
            .others
            .iter()
            .filter(|(name, _)| **name != "error" && !BESIDE.contains(name))
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
        format!("{}{error}{others}", self.message)
    }

    fn set(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => drop(self.others.insert(name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
}
