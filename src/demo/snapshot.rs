//! What can be seen of the sandbox's kernel state, as lines: to compare before and after.
//!
//! Asks the kernel itself (netlink, /proc), not vervet's own code, so that the comparison is worth
//! something. Counters and times are left out: they move whatever anybody does.

use std::{fs, io, os::fd::AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Messages of rtnetlink(7) and of nf_tables (linux/netfilter/nf_tables.h, subsystem 10).
const RTM_GETLINK: u16 = 18;
const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
const NFT_MSG_GETTABLE: u16 = 10 << 8 | 1;
const NFT_MSG_GETRULE: u16 = 10 << 8 | 7;
/// Attributes that hold a name: IFLA_IFNAME, TCA_KIND, NFTA_TABLE_NAME, NFTA_RULE_TABLE.
const IFLA_IFNAME: u16 = 3;
const TCA_KIND: u16 = 1;
const NFTA_NAME: u16 = 1;

const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// One line for each object.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn take() -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    let route = SockProtocol::NetlinkRoute;
    for name in names(route, RTM_GETLINK, &[0; 16], 16, IFLA_IFNAME)? {
        lines.push(format!("link {name}"));
    }
    for name in names(route, RTM_GETQDISC, &[0; 20], 20, TCA_KIND)? {
        lines.push(format!("qdisc {name}"));
    }
    lines.extend(filters()?.into_iter().map(|name| format!("filter on lo: {name}")));
    // Without nf_tables there is nothing of it that could be left.
    let netfilter = SockProtocol::NetlinkNetFilter;
    for (what, kind) in [("table", NFT_MSG_GETTABLE), ("rule of table", NFT_MSG_GETRULE)] {
        for name in names(netfilter, kind, &[0; 4], 4, NFTA_NAME).unwrap_or_default() {
            lines.push(format!("nftables {what} {name}"));
        }
    }
    lines.extend(sysctls());
    Ok(lines)
}

/// Filters on the loopback's clsact egress (parent ffff:fff3); none where there is no clsact.
fn filters() -> io::Result<Vec<String>> {
    let mut message = vec![0_u8; 20];
    message[4..8].copy_from_slice(&1_i32.to_ne_bytes());
    message[12..16].copy_from_slice(&0xffff_fff3_u32.to_ne_bytes());
    match names(SockProtocol::NetlinkRoute, RTM_GETTFILTER, &message, 20, TCA_KIND) {
        Err(error) if error.raw_os_error().is_some() => Ok(Vec::new()),
        answer => answer,
    }
}

fn sysctls() -> Vec<String> {
    let mut lines = Vec::new();
    for device in ["all", "default", "lo"] {
        for name in ["accept_local", "route_localnet", "rp_filter", "forwarding"] {
            let path = format!("/proc/sys/net/ipv4/conf/{device}/{name}");
            if let Ok(value) = fs::read_to_string(&path) {
                lines.push(format!("{path} = {}", value.trim()));
            }
        }
    }
    lines
}

/// Dumps objects and gives the text attribute `wanted` of each, behind a fixed part of `fixed` bytes.
fn names(
    protocol: SockProtocol,
    kind: u16,
    body: &[u8],
    fixed: usize,
    wanted: u16,
) -> io::Result<Vec<String>> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(u32::try_from(HEADER + body.len()).map_err(io::Error::other)?.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let got = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..got];
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while rest.len() >= HEADER {
            let length = number(rest, 0, 4) as usize;
            let length = length.clamp(HEADER, rest.len());
            let (part, more) = rest.split_at(length);
            match u16::try_from(number(part, 4, 2)) {
                Ok(NLMSG_DONE) => return Ok(found),
                Ok(NLMSG_ERROR) => {
                    let code = i32::from_ne_bytes(number(part, HEADER, 4).to_ne_bytes());
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => found.extend(attribute(part.get(HEADER + fixed..).unwrap_or_default(), wanted)),
            }
            rest = more.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        }
    }
}

fn attribute(mut rest: &[u8], wanted: u16) -> Option<String> {
    while rest.len() >= 4 {
        let length = (number(rest, 0, 2) as usize).clamp(4, rest.len());
        // The upper two bits are flags.
        if number(rest, 2, 2) & 0x3fff == u32::from(wanted) {
            let text = &rest[4..length];
            let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
            return Some(String::from_utf8_lossy(&text[..end]).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// An unsigned number of 2 or 4 bytes in the host's order; zero beyond the end.
fn number(bytes: &[u8], at: usize, size: usize) -> u32 {
    match bytes.get(at..at + size) {
        Some([a, b]) => u32::from(u16::from_ne_bytes([*a, *b])),
        Some([a, b, c, d]) => u32::from_ne_bytes([*a, *b, *c, *d]),
        _ => 0,
    }
}
