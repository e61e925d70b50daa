//! A connection to a message bus, or to a peer that speaks its protocol: one call after the other.
//!
//! Synchronous, without a thread of its own, and never longer than a deadline: it serves hands,
//! warden and recovery, which have nothing to wait with but the kernel. Knows no service.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::wire::{HEAD, Kind, Message, Value};

/// Signals that are kept for whoever asks; older ones go.
const KEPT_SIGNALS: usize = 1_000;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The peer answered with an error.
    #[error("{message} ({name})")]
    Remote { name: String, message: String },
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    /// The connection is of no use any more.
    #[error("{0}")]
    Broken(String),
}

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub socket: Socket,
    /// A bus, which wants to be greeted, and not the service itself.
    pub bus: bool,
}

/// A Unix socket, by path or by abstract name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Socket {
    Path(String),
    Abstract(String),
}

impl Address {
    /// The addresses in a list such as `unix:path=/run/dbus/system_bus_socket;unix:abstract=x`
    /// that are Unix sockets, in order.
    #[must_use]
    pub fn parse_list(list: &str) -> Vec<Self> {
        let key = |rest: &str, key: &str| {
            rest.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('=').map(unescape))
        };
        list.split(';')
            .filter_map(|one| {
                let rest = one.strip_prefix("unix:")?;
                let path = key(rest, "path").map(Socket::Path);
                let socket = path.or_else(|| key(rest, "abstract").map(Socket::Abstract))?;
                Some(Self { socket, bus: true })
            })
            .collect()
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.socket {
            Socket::Path(path) => f.write_str(path),
            Socket::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// `%41` is `A`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let digits = more.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An open connection.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    /// There is a bus between here and the service.
    routed: bool,
    serial: u32,
    signals: VecDeque<Message>,
}

/// A call of a method.
#[derive(Debug)]
pub struct Call<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
    pub arguments: Vec<Value>,
}

impl Bus {
    /// Connects, says who it is and, on a bus, greets it.
    ///
    /// # Errors
    /// When nobody listens there, or does not let this user in, or not in time.
    pub fn open(address: &Address, within: Duration) -> Result<Self, BusError> {
        let until = Instant::now() + within;
        let stream = connect_to(&address.socket, within)
            .map_err(|error| BusError::Broken(format!("{address}: {error}")))?;
        let mut bus = Self { stream, routed: address.bus, serial: 0, signals: VecDeque::new() };
        bus.authenticate(until, within)?;
        if address.bus {
            bus.call(
                &Call {
                    destination: "org.freedesktop.DBus",
                    path: "/org/freedesktop/DBus",
                    interface: "org.freedesktop.DBus",
                    member: "Hello",
                    arguments: Vec::new(),
                },
                within,
            )?;
        }
        Ok(bus)
    }

    /// Whether there is a bus between here and the service.
    #[must_use]
    pub fn is_bus(&self) -> bool {
        self.routed
    }

    /// Calls, and waits for the answer.
    ///
    /// # Errors
    /// See [`BusError`]; after all but `Remote` the connection is of no use.
    pub fn call(&mut self, call: &Call<'_>, within: Duration) -> Result<Vec<Value>, BusError> {
        let mut answers = self.call_all(std::slice::from_ref(call), within)?;
        answers.pop().unwrap_or_else(|| Err(BusError::Broken("no answer".to_owned())))
    }

    /// Calls at once, and waits for all answers; they come in the order of the calls.
    ///
    /// # Errors
    /// When the connection is of no use any more.
    pub fn call_all(
        &mut self,
        calls: &[Call<'_>],
        within: Duration,
    ) -> Result<Vec<Result<Vec<Value>, BusError>>, BusError> {
        let until = Instant::now() + within;
        let mut answers = Vec::with_capacity(calls.len());
        // So many at a time that neither side's buffer fills up while nobody reads.
        for some in calls.chunks(32) {
            let first = self.serial + 1;
            for call in some {
                self.send_call(call, until, within)?;
            }
            let mut open: Vec<Option<Result<Vec<Value>, BusError>>> = vec![None; some.len()];
            while open.iter().any(Option::is_none) {
                let message = self.receive(until, within)?;
                let at = message.reply_to.checked_sub(first).map(|at| at as usize);
                match (message.kind, at.and_then(|at| open.get_mut(at))) {
                    (Kind::Return, Some(slot)) => *slot = Some(Ok(message.body)),
                    (Kind::Error, Some(slot)) => *slot = Some(Err(remote(message))),
                    (Kind::Signal, _) => self.keep(message),
                    _ => {}
                }
            }
            answers.extend(open.into_iter().flatten());
        }
        Ok(answers)
    }

    /// The next signal that `wanted` picks, among those that came already and those to come.
    ///
    /// # Errors
    /// When none comes in time, or the connection breaks.
    pub fn wait_for<T>(
        &mut self,
        within: Duration,
        mut wanted: impl FnMut(&Message) -> Option<T>,
    ) -> Result<T, BusError> {
        let until = Instant::now() + within;
        loop {
            while let Some(signal) = self.signals.pop_front() {
                if let Some(found) = wanted(&signal) {
                    return Ok(found);
                }
            }
            let message = self.receive(until, within)?;
            if message.kind == Kind::Signal {
                self.keep(message);
            }
        }
    }

    /// The next message, of whatever kind: for those who serve.
    ///
    /// # Errors
    /// When none comes in time, or the connection breaks.
    pub fn next(&mut self, within: Duration) -> Result<Message, BusError> {
        self.receive(Instant::now() + within, within)
    }

    /// Sends a message and does not wait. Gives it a serial number.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn send(&mut self, mut message: Message, within: Duration) -> Result<u32, BusError> {
        self.serial += 1;
        message.serial = self.serial;
        self.write(&message.encode(), Instant::now() + within, within)?;
        Ok(self.serial)
    }

    fn keep(&mut self, signal: Message) {
        if self.signals.len() == KEPT_SIGNALS {
            self.signals.pop_front();
        }
        self.signals.push_back(signal);
    }

    fn send_call(&mut self, call: &Call<'_>, until: Instant, within: Duration) -> Result<(), BusError> {
        let mut message = Message::new(Kind::Call);
        self.serial += 1;
        message.serial = self.serial;
        call.path.clone_into(&mut message.path);
        call.interface.clone_into(&mut message.interface);
        call.member.clone_into(&mut message.member);
        if self.routed {
            call.destination.clone_into(&mut message.destination);
        }
        message.body.clone_from(&call.arguments);
        self.write(&message.encode(), until, within)
    }

    /// EXTERNAL: the kernel tells the peer who this is. "Authentication Protocol" in the
    /// specification.
    fn authenticate(&mut self, until: Instant, within: Duration) -> Result<(), BusError> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        // The digits of the number, each as two of the hexadecimal code of its character: `3n`.
        let mut hello = "\0AUTH EXTERNAL ".to_owned();
        for digit in uid.chars() {
            hello.extend(['3', digit]);
        }
        self.write(format!("{hello}\r\n").as_bytes(), until, within)?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 512 {
                return Err(BusError::Broken("it does not speak the protocol of D-Bus".to_owned()));
            }
            let mut byte = [0];
            self.read(&mut byte, until, within)?;
            line.push(byte[0]);
        }
        if !line.starts_with(b"OK ") {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(BusError::Broken(format!("it does not let this user in: {said}")));
        }
        self.write(b"BEGIN\r\n", until, within)
    }

    fn receive(&mut self, until: Instant, within: Duration) -> Result<Message, BusError> {
        loop {
            let mut head = [0; HEAD];
            self.read(&mut head, until, within)?;
            let length = Message::whole_length(&head).map_err(BusError::Broken)?;
            let mut bytes = vec![0; length];
            bytes[..HEAD].copy_from_slice(&head);
            self.read(&mut bytes[HEAD..], until, within)?;
            if let Some(message) = Message::decode(&bytes).map_err(BusError::Broken)? {
                return Ok(message);
            }
        }
    }

    fn read(&mut self, mut into: &mut [u8], until: Instant, within: Duration) -> Result<(), BusError> {
        while !into.is_empty() {
            let left = left(until, within)?;
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(into));
            match moved(read)? {
                Some(0) => return Err(BusError::Broken("the other side hung up".to_owned())),
                Some(count) => into = &mut into[count..],
                None => {}
            }
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8], until: Instant, within: Duration) -> Result<(), BusError> {
        while !bytes.is_empty() {
            let left = left(until, within)?;
            let written =
                self.stream.set_write_timeout(Some(left)).and_then(|()| self.stream.write(bytes));
            bytes = &bytes[moved(written)?.unwrap_or(0)..];
        }
        Ok(())
    }
}

/// `connect` on a Unix socket waits while the peer's backlog is full, but not beyond the time to
/// send: unix(7), socket(7).
fn connect_to(socket: &Socket, within: Duration) -> rustix::io::Result<UnixStream> {
    let address = match socket {
        Socket::Path(path) => SocketAddrUnix::new(path.as_str())?,
        Socket::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
    };
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(within))?;
    connect(&fd, &address)?;
    Ok(UnixStream::from(fd))
}

fn remote(message: Message) -> BusError {
    let text = message.body.first().and_then(Value::as_str).unwrap_or("refused").to_owned();
    BusError::Remote { name: message.error, message: text }
}

/// What is left until then; a socket's limit of zero would mean none.
fn left(until: Instant, within: Duration) -> Result<Duration, BusError> {
    let left = until.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) { Err(BusError::Late(within)) } else { Ok(left) }
}

/// How many bytes went over; `None` when there is only time to be looked at again.
fn moved(result: std::io::Result<usize>) -> Result<Option<usize>, BusError> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(BusError::Broken(error.to_string())),
    }
}
