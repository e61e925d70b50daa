//! HAProxy's stats socket: a small client of its commands, each with an end in time and size.
//!
//! Runs no program. Changes nothing but the administrative state of servers that it is named.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use crate::{
    fault::undo::Restore,
    host::{
        HostError,
        haproxy::{self, Aside, Pool, Server, is_name},
    },
};

/// How long a command of a drain or its undo may take, its connection included.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest answer that is read, in bytes: some thousand servers.
const ANSWER_MAX: usize = 2 << 20;
/// A queue of connections that is full is tried again after this.
const CROWDED: Duration = Duration::from_millis(5);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silence {
    /// Nobody has this socket: what HAProxy knew at run time is gone with it.
    Gone(String),
    Failed(String),
}

impl From<Silence> for String {
    fn from(silence: Silence) -> Self {
        match silence {
            Silence::Gone(why) | Silence::Failed(why) => why,
        }
    }
}

impl From<Silence> for HostError {
    fn from(silence: Silence) -> Self {
        Self::Unavailable(silence.into())
    }
}

/// The servers of a backend, within this time.
///
/// # Errors
/// When HAProxy does not say so whole and in time.
pub fn servers(pool: &Pool, within: Duration) -> Result<Vec<Server>, Silence> {
    if !is_name(&pool.backend) {
        return Err(Silence::Failed(format!("`{}` is not the name of a backend", pool.backend)));
    }
    // Both backend (2) and servers (4): the line of the backend shows that there is one.
    let answer =
        ask(pool, &format!("show stat {} 6 -1", pool.backend), Instant::now() + within, within)?;
    let own = addresses()?;
    haproxy::servers(pool, &answer, &|ip| ip.is_loopback() || own.contains(&ip)).map_err(Silence::Failed)
}

/// The same for a drain, each with who keeps it from its work.
///
/// # Errors
/// When HAProxy does not say so whole and in time.
pub fn servers_aside(pool: &Pool) -> Result<Vec<(Server, Aside)>, HostError> {
    let servers = servers(pool, PATIENCE)?;
    let states =
        ask(pool, &format!("show servers state {}", pool.backend), Instant::now() + PATIENCE, PATIENCE)?;
    let mut states = haproxy::asides(pool, &states).map_err(HostError::Unavailable)?;
    let with = |server: Server| {
        let aside = states.remove(&server.name);
        let missing = || HostError::Unavailable(format!("HAProxy tells no state of {}", server.name));
        Ok((server.clone(), aside.ok_or_else(missing)?))
    };
    servers.into_iter().map(with).collect()
}

/// Whether the socket lets a server be drained. Changes nothing.
///
/// # Errors
/// When it does not, or HAProxy does not answer.
pub fn may_drain(pool: &Pool) -> Result<(), HostError> {
    let answer = ask(pool, "show cli level", Instant::now() + PATIENCE, PATIENCE)?;
    if answer.trim() == "admin" {
        return Ok(());
    }
    let Pool { haproxy, .. } = pool;
    Err(HostError::Unavailable(format!(
        "the socket {haproxy} permits what level `{}` does, and draining needs `level admin` in its `stats \
         socket` line",
        answer.trim()
    )))
}

/// Takes servers out of the rotation, all within one time; their sessions go on.
///
/// # Errors
/// When HAProxy does not do it.
pub fn drain(pool: &Pool, servers: &[String]) -> Result<(), HostError> {
    let deadline = Instant::now() + PATIENCE;
    for server in servers {
        set(pool, server, "drain", deadline)?.map_err(HostError::Unavailable)?;
    }
    Ok(())
}

/// Puts servers back that are draining; one result each, in order. Nobody there to ask, no such
/// server, or one that does not drain any more: nothing is left to undo. All of one socket within
/// one time: who hangs there holds up no more than that, and the others are tried again later.
pub fn undrain_all(items: &[Restore], done: &mut [Result<(), HostError>]) {
    let mut deadlines: BTreeMap<&str, Instant> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        let Restore::Undrain { pool, server } = item else { continue };
        let deadline = deadlines.entry(&pool.haproxy).or_insert_with(|| Instant::now() + PATIENCE);
        done[at] = undrain(pool, server, *deadline);
    }
}

fn undrain(pool: &Pool, server: &str, deadline: Instant) -> Result<(), HostError> {
    if Instant::now() >= deadline {
        let message = format!("the HAProxy at {} did not answer in time for {server}", pool.haproxy);
        return Err(HostError::Unavailable(message));
    }
    for _ in 0..2 {
        let state = ask(pool, &format!("show servers state {}", pool.backend), deadline, PATIENCE);
        let state = match state {
            Err(Silence::Gone(_)) => return Ok(()),
            Ok(answer) if haproxy::is_unknown(&answer) => return Ok(()),
            state => state?,
        };
        let states = haproxy::asides(pool, &state).map_err(HostError::Unavailable)?;
        if !states.get(server).is_some_and(|aside| aside.drains()) {
            return Ok(());
        }
        match set(pool, server, "ready", deadline) {
            Err(Silence::Gone(_)) => return Ok(()),
            answer => answer?.map_err(HostError::Unavailable)?,
        }
        // Once more around: what was asked is looked at.
    }
    Err(HostError::Unavailable(format!("{}/{server} still drains after it was put back", pool.backend)))
}

/// The inner error is HAProxy's own no.
fn set(
    pool: &Pool,
    server: &str,
    state: &str,
    deadline: Instant,
) -> Result<Result<(), String>, Silence> {
    if !is_name(&pool.backend) || !is_name(server) {
        return Err(Silence::Failed(format!("`{}/{server}` is no server's name", pool.backend)));
    }
    let command = format!("set server {}/{server} state {state}", pool.backend);
    let answer = ask(pool, &command, deadline, PATIENCE)?;
    Ok(match answer.trim() {
        "" => Ok(()),
        _ if haproxy::is_unknown(&answer) && state == "ready" => Ok(()),
        said => Err(haproxy::refusal(pool, said)
            .unwrap_or_else(|| format!("HAProxy did not take `{command}`: {}", first_line(said)))),
    })
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(100).collect()
}

/// One command, one connection, one answer to its end. `within` is what the deadline was, for words.
fn ask(pool: &Pool, command: &str, deadline: Instant, within: Duration) -> Result<String, Silence> {
    let socket = pool.haproxy.as_str();
    let broken =
        |doing: &str, error: Errno| Silence::Failed(format!("{doing} {socket} failed: {error}"));
    let late = || Silence::Failed(format!("the HAProxy at {socket} did not answer within {within:?}"));
    let connection = reach(socket, deadline, &late)?;
    let mut left = format!("{command}\n").into_bytes();
    while !left.is_empty() {
        match rustix::io::write(&connection, &left) {
            Ok(written) => drop(left.drain(..written)),
            Err(Errno::AGAIN) => wait(&connection, PollFlags::OUT, deadline).ok_or_else(late)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(broken("asking", error)),
        }
    }
    let (mut answer, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        match rustix::io::read(&connection, &mut buffer[..]) {
            Ok(0) => break,
            Ok(count) if answer.len() + count > ANSWER_MAX => {
                let message =
                    format!("the answer of the HAProxy at {socket} is longer than {ANSWER_MAX} bytes");
                return Err(Silence::Failed(message));
            }
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(Errno::AGAIN) => wait(&connection, PollFlags::IN, deadline).ok_or_else(late)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(broken("hearing", error)),
        }
        // One that never stops talking does not hold anybody either.
        if Instant::now() >= deadline {
            return Err(late());
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if !haproxy::is_whole(&answer) {
        return Err(Silence::Failed(format!("the answer of the HAProxy at {socket} breaks off")));
    }
    Ok(answer)
}

/// A connection that never blocks.
fn reach(socket: &str, deadline: Instant, late: &dyn Fn() -> Silence) -> Result<OwnedFd, Silence> {
    let failed = |error: Errno| Silence::Failed(format!("{socket} cannot be reached: {error}"));
    let address = SocketAddrUnix::new(Path::new(socket)).map_err(failed)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let connection =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    loop {
        match connect(&connection, &address) {
            Ok(()) => return Ok(connection),
            Err(Errno::NOENT) => {
                return Err(Silence::Gone(format!("there is no socket {socket}: does HAProxy run?")));
            }
            Err(Errno::CONNREFUSED) => {
                return Err(Silence::Gone(format!("nobody answers at {socket}: does HAProxy run?")));
            }
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(Silence::Failed(format!(
                    "vervet may not use the socket {socket}: its `stats socket` line says who may"
                )));
            }
            // Its queue is full: somebody who hangs, or is very busy.
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => thread::sleep(CROWDED),
            Err(Errno::AGAIN | Errno::INTR) => return Err(late()),
            Err(error) => return Err(failed(error)),
        }
    }
}

/// `None` when the time is over.
fn wait(connection: &OwnedFd, what: PollFlags, deadline: Instant) -> Option<()> {
    let left = deadline.checked_duration_since(Instant::now())?;
    let left = Timespec::try_from(left).ok()?;
    match poll(&mut [PollFd::new(connection, what)], Some(&left)) {
        Ok(0) => None,
        // An error of the connection shows in the next call.
        _ => Some(()),
    }
}

/// The addresses of this host's interfaces.
fn addresses() -> Result<Vec<IpAddr>, Silence> {
    let all = nix::ifaddrs::getifaddrs();
    let all = all.map_err(|error| Silence::Failed(format!("reading this host's addresses: {error}")))?;
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
    };
    Ok(all.filter_map(|interface| interface.address.and_then(ip)).collect())
}
