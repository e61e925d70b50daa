//! A small synchronous netlink: messages with nested attributes, requests, dumps, batches.
//!
//! Formats: netlink(7), linux/netlink.h, linux/netfilter/nfnetlink.h. The kernel handles a request inside
//! of `send`, so answers are there when it returns. This module knows no family's meaning, and
//! retries nothing but interrupted calls and dumps that changed while they were read.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, send, socket_with, sockopt,
    },
};

use crate::host::linux::sys;

pub const NLM_F_REQUEST: u16 = 0x1;
pub const NLM_F_ACK: u16 = 0x4;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Text of the kernel in an acknowledgement, `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;

const NFNL_BATCH_BEGIN: u16 = 0x10;
const NFNL_BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`
pub const NFTABLES: u16 = 10;

/// Room for the acknowledgements of a thousand messages.
const BUFFER: usize = 8 << 20;
const DUMP_ATTEMPTS: u32 = 8;

/// What the kernel answered instead of doing it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NetlinkError {
    pub errno: Errno,
    /// The kernel's own words, where it gave any.
    pub text: Option<String>,
}

impl std::fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = io::Error::from(self.errno);
        match &self.text {
            Some(text) => write!(f, "{error}: {text}"),
            None => write!(f, "{error}"),
        }
    }
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

impl NetlinkError {
    /// The thing is not there (any more).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.errno, Errno::NOENT | Errno::NODEV)
    }
}

/// Attributes under construction; every integer is written as its caller ordered its bytes.
#[derive(Debug, Clone, Default)]
pub struct Attrs(pub Vec<u8>);

impl Attrs {
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A string with the zero byte that the kernel wants.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    #[must_use]
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    #[must_use]
    pub fn ne32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    #[must_use]
    pub fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    #[must_use]
    pub fn append(mut self, others: &Self) -> Self {
        self.0.extend(&others.0);
        self
    }

    #[must_use]
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }
}

/// One message without its netlink header.
#[derive(Debug, Clone)]
pub struct Message {
    pub kind: u16,
    pub flags: u16,
    pub body: Vec<u8>,
}

impl Message {
    /// `header` is the fixed part of the family, in a multiple of four bytes.
    #[must_use]
    pub fn new(kind: u16, flags: u16, header: &[u8], attrs: &Attrs) -> Self {
        let mut body = header.to_vec();
        body.extend(&attrs.0);
        Self { kind, flags, body }
    }

    fn write(&self, out: &mut Vec<u8>, flags: u16, sequence: u32) {
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        out.extend(length.to_ne_bytes());
        out.extend(self.kind.to_ne_bytes());
        out.extend((self.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend(0_u32.to_ne_bytes());
        out.extend(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// A message of a dump: everything behind the netlink header.
#[derive(Debug, Clone)]
pub struct Answer {
    pub body: Vec<u8>,
}

/// Walks attributes; stops at the first that is not well formed.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
#[must_use]
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A string attribute, up to its zero byte.
#[must_use]
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[must_use]
pub fn be64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?))
}

/// The netlink families in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Route,
    Netfilter,
    SockDiag,
}

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    family: Family,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// # Errors
    /// When the kernel lacks the family.
    pub fn open(family: Family) -> Result<Self, NetlinkError> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
            Family::SockDiag => Some(netlink::SOCK_DIAG),
        };
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        // Forcing needs a capability; without it the ordinary limit must do.
        if sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&fd, BUFFER);
        }
        if sockopt::set_socket_send_buffer_size_force(&fd, BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&fd, BUFFER);
        }
        // Texts in errors are a convenience: old kernels have none.
        let _ = sys::netlink_option(fd.as_fd(), sys::NETLINK_EXT_ACK);
        let _ = sys::netlink_option(fd.as_fd(), sys::NETLINK_CAP_ACK);
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(Duration::from_secs(5)))?;
        Ok(Self { fd: Some(fd), family, sequence: 1, buffer: vec![0; 1 << 16] })
    }

    /// Sends one message and waits for its acknowledgement.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn request(&mut self, message: &Message) -> Result<(), NetlinkError> {
        let mut out = Vec::new();
        let sequence = self.next(1);
        message.write(&mut out, NLM_F_ACK, sequence);
        self.send(&out)?;
        loop {
            for (header, body) in self.receive(RecvFlags::empty())? {
                if header.sequence == sequence && header.kind == NLMSG_ERROR {
                    return outcome(&header, &body);
                }
            }
        }
    }

    /// Sends one message and collects the answers up to the end of the dump.
    ///
    /// # Errors
    /// What the kernel answered, or that the data changed under every one of several attempts.
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Answer>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(answers) = self.dump_once(message)? {
                return Ok(answers);
            }
        }
        Err(Errno::INTR.into())
    }

    /// Sends messages as one atomic batch of a netfilter subsystem: all of them take effect, or none.
    ///
    /// # Errors
    /// One entry for each message that failed, by its index; none of the batch took effect.
    pub fn batch(
        &mut self,
        subsystem: u16,
        messages: &[Message],
    ) -> Result<(), Vec<(usize, NetlinkError)>> {
        let whole = |error: NetlinkError| vec![(0, error)];
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX - 2);
        let first = self.next(count.saturating_add(2));
        // struct nfgenmsg: family, version, subsystem in network order
        let edge = [0, 0, subsystem.to_be_bytes()[0], subsystem.to_be_bytes()[1]];
        let mut out = Vec::with_capacity(messages.len() * 128 + 64);
        Message::new(NFNL_BATCH_BEGIN, 0, &edge, &Attrs::default()).write(&mut out, 0, first);
        for (at, message) in (1..).zip(messages) {
            // Errors are reported unasked; one acknowledgement, of the last, says that all is well.
            let flags = if at == count { NLM_F_ACK } else { 0 };
            message.write(&mut out, flags, first + at);
        }
        Message::new(NFNL_BATCH_END, 0, &edge, &Attrs::default()).write(&mut out, 0, first + count + 1);
        self.send(&out).map_err(whole)?;
        let (mut failed, mut done) = (Vec::new(), false);
        loop {
            let answers = match self.receive(RecvFlags::DONTWAIT) {
                Ok(answers) => answers,
                Err(error) if error.errno == Errno::AGAIN => break,
                Err(error) => return Err(whole(error)),
            };
            for (header, body) in answers.iter().filter(|(header, _)| header.kind == NLMSG_ERROR) {
                let at = header.sequence.wrapping_sub(first);
                match outcome(header, body) {
                    Ok(()) => done |= at == count,
                    Err(error) => failed.push((at.saturating_sub(1) as usize, error)),
                }
            }
        }
        match (failed.is_empty(), done) {
            (true, true) => Ok(()),
            (true, false) => Err(whole(Errno::IO.into())),
            (false, _) => Err(failed),
        }
    }

    fn dump_once(&mut self, message: &Message) -> Result<Option<Vec<Answer>>, NetlinkError> {
        let mut out = Vec::new();
        let sequence = self.next(1);
        message.write(&mut out, NLM_F_DUMP, sequence);
        self.send(&out)?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        loop {
            for (header, body) in self.receive(RecvFlags::empty())? {
                if header.sequence != sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_ERROR => outcome(&header, &body)?,
                    NLMSG_DONE => return Ok((!interrupted).then_some(answers)),
                    _ => answers.push(Answer { body }),
                }
            }
        }
    }

    fn next(&mut self, count: u32) -> u32 {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let fd = self.fd.as_ref().ok_or(Errno::BADF)?;
        loop {
            match send(fd, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn receive(&mut self, flags: RecvFlags) -> Result<Vec<(Header, Vec<u8>)>, NetlinkError> {
        let fd = self.fd.as_ref().ok_or(Errno::BADF)?;
        let length = loop {
            match recv(fd, &mut self.buffer[..], flags) {
                Ok((length, _)) => break length,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut rest = &self.buffer[..length];
        let mut messages = Vec::new();
        while let Some(header) = Header::read(rest) {
            let Some(body) = rest.get(HEADER..header.length) else { break };
            messages.push((header, body.to_vec()));
            rest = rest.get(header.length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

/// Closing a netfilter socket waits until the kernel has freed everything that was deleted, by whomever
/// (`nft_rcv_nl_event`): tens of milliseconds in which the effect has long ended. A thread of its own
/// does the waiting.
impl Drop for Socket {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if self.family == Family::Netfilter {
            // Without that thread it is closed here.
            let _ = closer().map(|closer| closer.send(fd));
        }
    }
}

fn closer() -> Option<&'static Sender<OwnedFd>> {
    static CLOSER: OnceLock<Option<Sender<OwnedFd>>> = OnceLock::new();
    let start = || {
        let (sender, receiver) = channel();
        let close = move || receiver.into_iter().for_each(drop);
        let thread = std::thread::Builder::new().name("vervet-close".to_owned()).stack_size(64 << 10);
        thread.spawn(close).is_ok().then_some(sender)
    };
    CLOSER.get_or_init(start).as_ref()
}

#[derive(Debug, Clone, Copy)]
struct Header {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            length: usize::try_from(u32_at(bytes, 0)?).ok()?,
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
        })
    }
}

/// `struct nlmsgerr`: a negative errno, the header of the request, and extended texts behind it.
fn outcome(header: &Header, body: &[u8]) -> Result<(), NetlinkError> {
    let code = u32_at(body, 0).unwrap_or_default().cast_signed();
    if code == 0 {
        return Ok(());
    }
    let request = u32_at(body, 4).map_or(HEADER, |length| length as usize);
    let skip = 4 + if header.flags & NLM_F_CAPPED == 0 { request.next_multiple_of(4) } else { HEADER };
    let text = (header.flags & NLM_F_ACK_TLVS != 0)
        .then(|| attribute(body.get(skip..).unwrap_or_default(), ERROR_TEXT).map(text))
        .flatten();
    Err(NetlinkError { errno: Errno::from_raw_os_error(code.saturating_neg()), text })
}
