//! Network devices and addresses over netlink.
//!
//! Layouts: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h. Devices that vervet makes carry its
//! group number: by it they are told from everybody else's.

use std::net::IpAddr;

use super::netlink::{
    Answer, Attrs, Message, NLM_F_CREATE, NLM_F_EXCL, NetlinkError, Socket, attribute, text, u16_at,
    u32_at,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const IFINFOMSG: usize = 16;

const IFF_UP: u32 = 0x1;
const IFF_NOARP: u32 = 0x80;
const IFF_MULTICAST: u32 = 0x1000;

/// `ARPHRD_ETHER`, `ARPHRD_LOOPBACK`
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;

/// "vv": the group of every device that vervet makes.
pub const GROUP: u32 = 0x7676;
/// "vvx": the group of devices on their way out, so that one request deletes them all.
const DOOMED: u32 = 0x0076_7678;

/// A network device as far as faults care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub group: u32,
    /// Its frames have Ethernet headers (loopback's do).
    pub ethernet: bool,
    pub loopback: bool,
    /// `ifb`, `tun`, `veth`, `vlan` …
    pub kind: String,
    /// The kind of the device that it is a part of: `bridge`, `bond` …
    pub part_of: Option<String>,
    /// The device below it, in the same namespace.
    pub below: Option<u32>,
}

/// All devices of the namespace.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    let answers = socket.dump(&Message::new(RTM_GETLINK, 0, &[0; IFINFOMSG], &Attrs::default()))?;
    Ok(answers.iter().filter_map(read).collect())
}

/// All addresses of the namespace's devices.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn addresses(socket: &mut Socket) -> Result<Vec<IpAddr>, NetlinkError> {
    let answers = socket.dump(&Message::new(RTM_GETADDR, 0, &[0; 8], &Attrs::default()))?;
    let address = |answer: &Answer| {
        let attrs = answer.body.get(8..)?;
        // IFA_LOCAL where there is one (IPv4), else IFA_ADDRESS
        let bytes = attribute(attrs, 2).or_else(|| attribute(attrs, 1))?;
        match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    };
    Ok(answers.iter().filter_map(address).collect())
}

/// Makes an `ifb` of vervet's, still down.
///
/// # Errors
/// What the kernel answered.
pub fn make_ifb(socket: &mut Socket, name: &str) -> Result<(), NetlinkError> {
    // IFLA_IFNAME = 3, IFLA_LINKINFO = 18 with IFLA_INFO_KIND = 1, IFLA_GROUP = 27
    let attrs =
        Attrs::default().text(3, name).nest(18, &Attrs::default().text(1, "ifb")).ne32(27, GROUP);
    socket.request(&Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &[0; IFINFOMSG], &attrs))
}

/// Marks a device as vervet's, keeps the stack from talking through it, gives it a long queue, sets it up.
///
/// # Errors
/// What the kernel answered.
pub fn adopt(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    // IFLA_TXQLEN = 13, IFLA_AF_SPEC = 26 { AF_INET6 = 10 { IFLA_INET6_ADDR_GEN_MODE = 8: none = 1 } }
    let quiet = Attrs::default().nest(10, &Attrs::default().bytes(8, &[1]));
    let attrs = Attrs::default().ne32(13, QUEUE).ne32(27, GROUP).nest(26, &quiet);
    let down = change(index, 0, 0);
    // A kernel without IPv6 refuses its part: then there is nothing to keep quiet either.
    if socket.request(&Message::new(RTM_NEWLINK, 0, &down, &attrs)).is_err() {
        let attrs = Attrs::default().ne32(13, QUEUE).ne32(27, GROUP);
        socket.request(&Message::new(RTM_NEWLINK, 0, &down, &attrs))?;
    }
    set_up(socket, index, IFF_NOARP)
}

/// Packets that may wait for the delay line.
const QUEUE: u32 = 10_000;

/// Sets a device up, with other flags beside.
///
/// # Errors
/// What the kernel answered.
pub fn set_up(socket: &mut Socket, index: u32, flags: u32) -> Result<(), NetlinkError> {
    let multicast = if flags & IFF_NOARP == 0 { 0 } else { IFF_MULTICAST };
    let header = change(index, IFF_UP | flags, IFF_UP | flags | multicast);
    socket.request(&Message::new(RTM_NEWLINK, 0, &header, &Attrs::default()))
}

/// Deletes devices of vervet's in one request: a deletion waits for every CPU to let go, so one wait
/// for all of them instead of one each.
///
/// # Errors
/// What the kernel answered.
pub fn delete(socket: &mut Socket, indices: &[u32]) -> Result<(), NetlinkError> {
    match indices {
        [] => Ok(()),
        [index] => {
            socket.request(&Message::new(RTM_DELLINK, 0, &change(*index, 0, 0), &Attrs::default()))
        }
        _ => {
            let doomed = Attrs::default().ne32(27, DOOMED);
            for index in indices {
                match socket.request(&Message::new(RTM_NEWLINK, 0, &change(*index, 0, 0), &doomed)) {
                    Err(error) if !error.is_missing() => return Err(error),
                    _ => {}
                }
            }
            socket.request(&Message::new(RTM_DELLINK, 0, &[0; IFINFOMSG], &doomed))
        }
    }
}

/// A device that vervet made, or began to delete.
#[must_use]
pub fn is_ours(link: &Link) -> bool {
    link.group == GROUP || link.group == DOOMED
}

/// struct ifinfomsg: family, padding, type, index, flags, change
fn change(index: u32, flags: u32, mask: u32) -> [u8; IFINFOMSG] {
    let mut bytes = [0; IFINFOMSG];
    for (at, field) in (1..).zip([index, flags, mask]) {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&field.to_ne_bytes());
    }
    bytes
}

fn read(answer: &Answer) -> Option<Link> {
    let body = &answer.body;
    let attrs = body.get(IFINFOMSG..)?;
    let number = |kind| attribute(attrs, kind).and_then(|value| u32_at(value, 0));
    let info = attribute(attrs, 18).unwrap_or_default();
    let hardware = u16_at(body, 2)?;
    // IFLA_LINK = 5 means something else where IFLA_LINK_NETNSID = 37 is beside it.
    let below = if attribute(attrs, 37).is_none() { number(5) } else { None };
    Some(Link {
        index: u32_at(body, 4)?,
        name: text(attribute(attrs, 3)?),
        up: u32_at(body, 8)? & IFF_UP != 0,
        group: number(27).unwrap_or_default(),
        ethernet: hardware == ETHERNET || hardware == LOOPBACK,
        loopback: hardware == LOOPBACK,
        kind: attribute(info, 1).map(text).unwrap_or_default(),
        // IFLA_MASTER = 10, IFLA_INFO_SLAVE_KIND = 4
        part_of: number(10).and_then(|_| attribute(info, 4)).map(text),
        below,
    })
}
