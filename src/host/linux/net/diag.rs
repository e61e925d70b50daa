//! Open TCP sockets over sock_diag: finding those of a selection, closing them by cookie.
//!
//! Layouts: linux/sock_diag.h, linux/inet_diag.h, sock_diag(7). A socket is destroyed by the identity and
//! cookie that the dump gave, so one that took its place is never hit.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::io::Errno;

use super::{
    netlink::{Answer, Attrs, Family, Message, NetlinkError, Socket, attribute, u32_at},
    nft::Hook,
    plan::kernel,
    rules::{Cgroup, Selection, range},
    select,
};
use crate::{experiment::Cidr, host::HostError};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Of the request: family, protocol, extensions, padding, states; then the identity.
const IDENTITY: usize = 48;
/// `struct inet_diag_msg`
const MESSAGE: usize = 72;
/// Listening: state 10, linux/tcp_states.h
const LISTENING: u32 = 1 << 10;
/// Every state of a connection that is not over: neither TIME_WAIT, CLOSE nor LISTEN.
const OPEN: u32 = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11);

/// A socket as the dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    family: u8,
    identity: [u8; IDENTITY],
    pub local: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    pub uid: u32,
    pub inode: u32,
    pub cgroup: Option<u64>,
}

/// Closes the open connections of a selection with a reset, and says how many.
///
/// # Errors
/// When the kernel cannot list or close them.
pub fn close(selection: &Selection) -> Result<u64, HostError> {
    let doing = "close existing connections";
    let mut socket = Socket::open(Family::SockDiag).map_err(kernel(doing))?;
    let listening: BTreeSet<u16> =
        dump(&mut socket, LISTENING).map_err(kernel(doing))?.iter().map(|open| open.local.1).collect();
    let cgroups = selection.cgroup.as_ref().map(|cgroup| below(&cgroup.path)).transpose()?;
    let units = selection.units.as_ref().map(|units| below_all(units)).transpose()?;
    let mut closed = 0;
    for open in dump(&mut socket, OPEN).map_err(kernel(doing))? {
        if !selects(selection, &open, &listening, [cgroups.as_ref(), units.as_ref()]) {
            continue;
        }
        match destroy(&mut socket, &open) {
            Ok(()) => closed += 1,
            // It ended by itself meanwhile.
            Err(error) if error.errno == Errno::NOENT => {}
            Err(error) => return Err(kernel(doing)(error)),
        }
    }
    Ok(closed)
}

/// The listening sockets of the calling thread's namespace: inode and local address.
///
/// # Errors
/// When the kernel cannot list them.
pub fn listening() -> Result<Vec<(u64, SocketAddr)>, NetlinkError> {
    let mut socket = Socket::open(Family::SockDiag)?;
    let all = dump(&mut socket, LISTENING)?;
    Ok(all.into_iter().map(|open| (open.inode.into(), SocketAddr::from(open.local))).collect())
}

/// Whether this kernel closes sockets on request (`CONFIG_INET_DIAG_DESTROY`).
///
/// # Errors
/// When it does not, or not for us.
pub fn can_destroy() -> Result<(), NetlinkError> {
    let mut socket = Socket::open(Family::SockDiag)?;
    let nobody = Open {
        family: AF_INET,
        identity: [0; IDENTITY],
        local: (IpAddr::from([0; 4]), 0),
        remote: (IpAddr::from([0; 4]), 0),
        uid: 0,
        inode: 0,
        cgroup: None,
    };
    match destroy(&mut socket, &nobody) {
        Err(error) if error.errno != Errno::NOENT => Err(error),
        _ => Ok(()),
    }
}

fn dump(socket: &mut Socket, states: u32) -> Result<Vec<Open>, NetlinkError> {
    let mut all = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let request = request(SOCK_DIAG_BY_FAMILY, family, states, &[0; IDENTITY]);
        match socket.dump(&request) {
            Ok(answers) => all.extend(answers.iter().filter_map(read)),
            // A kernel without IPv6.
            Err(error) if family == AF_INET6 && error.errno == Errno::NOENT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn destroy(socket: &mut Socket, open: &Open) -> Result<(), NetlinkError> {
    socket.request(&request(SOCK_DESTROY, open.family, u32::MAX, &open.identity))
}

fn request(kind: u16, family: u8, states: u32, identity: &[u8; IDENTITY]) -> Message {
    let mut header = vec![family, TCP, 0, 0];
    header.extend(states.to_ne_bytes());
    header.extend(identity);
    Message::new(kind, 0, &header, &Attrs::default())
}

fn read(answer: &Answer) -> Option<Open> {
    let body = &answer.body;
    let identity: [u8; IDENTITY] = body.get(4..4 + IDENTITY)?.try_into().ok()?;
    let family = *body.first()?;
    let port = |at: usize| u16::from_be_bytes([identity[at], identity[at + 1]]);
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = identity.get(at..at + 16)?.try_into().ok()?;
        match family {
            AF_INET => <[u8; 4]>::try_from(&bytes[..4]).ok().map(IpAddr::from),
            _ => Some(IpAddr::from(bytes).to_canonical()),
        }
    };
    // INET_DIAG_CGROUP_ID = 21
    let cgroup = attribute(body.get(MESSAGE..)?, 21).and_then(|value| value.try_into().ok());
    Some(Open {
        family,
        identity,
        local: (address(4)?, port(0)),
        remote: (address(20)?, port(2)),
        uid: u32_at(body, 64)?,
        inode: u32_at(body, 68)?,
        cgroup: cgroup.map(u64::from_ne_bytes),
    })
}

fn selects(
    selection: &Selection,
    open: &Open,
    listening: &BTreeSet<u16>,
    cgroups: [Option<&BTreeSet<u64>>; 2],
) -> bool {
    let ((own, local), (peer, remote)) = (open.local, open.remote);
    let accepted = listening.contains(&local);
    // The same exceptions as the rules make.
    let to_itself = peer.is_loopback() || peer == own;
    let exempt = selection.exempt.contains(&local) || (to_itself && selection.exempt.contains(&remote));
    let inside = |blocks: &Vec<Cidr>| blocks.iter().any(|block| contains(block, peer));
    !exempt
        && accepted == (selection.hook == Hook::Input)
        && selection.local_port.is_none_or(|port| port == local)
        && selection.remote_port.is_none_or(|port| port == remote)
        && selection.peers.iter().all(inside)
        && selection.uid.is_none_or(|uid| uid == open.uid)
        && cgroups.into_iter().flatten().all(|ids| open.cgroup.is_some_and(|id| ids.contains(&id)))
}

fn contains(block: &Cidr, address: IpAddr) -> bool {
    let (low, high) = range(block);
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    address.is_ipv4() == block.address.is_ipv4()
        && (low..=high).contains(&range(&Cidr { address, prefix }).0)
}

/// The same for several.
fn below_all(cgroups: &[Cgroup]) -> Result<BTreeSet<u64>, HostError> {
    let each = cgroups.iter().map(|cgroup| below(&cgroup.path)).collect::<Result<Vec<_>, _>>()?;
    Ok(each.into_iter().flatten().collect())
}

/// The identifiers of a cgroup and of all below it.
fn below(path: &str) -> Result<BTreeSet<u64>, HostError> {
    let mut ids = BTreeSet::new();
    let mut left = vec![select::mount_point()?.join(path)];
    while let Some(directory) = left.pop() {
        if let Ok(metadata) = std::fs::metadata(&directory) {
            ids.insert(metadata.ino());
        }
        left.extend(children(&directory));
    }
    Ok(ids)
}

fn children(directory: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let entries = entries.filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}
