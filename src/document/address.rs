//! Reads what names a place in the network: blocks, hosts, URLs, devices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    reader::{Read, Report},
    tree::Node,
    values::string,
};
use crate::{
    experiment::{Cidr, Peer},
    units::clip,
};

/// A block such as `10.0.0.0/8`, an address, or a host name.
pub fn peer(node: &Node, report: &Report) -> Read<Peer> {
    let text = string(node, report, "a block of addresses or a host name")?;
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    match (address.parse::<IpAddr>(), prefix) {
        (Ok(address), None) => Ok(Peer::Block(Cidr { address, prefix: width(address) })),
        (Ok(address), Some(prefix)) => block(node, report, address, prefix).map(Peer::Block),
        (Err(_), None) if is_host(text) => Ok(Peer::Name(text.to_owned())),
        _ => {
            let message = format!("`{}` is neither a block of addresses nor a host name", clip(text));
            let help = "write \"10.0.0.0/8\", \"2001:db8::/32\", \"192.0.2.7\" or \"db.example.net\"";
            Err(report.advise(node, message, help))
        }
    }
}

fn block(node: &Node, report: &Report, address: IpAddr, prefix: &str) -> Read<Cidr> {
    let width = width(address);
    let plain = prefix.bytes().all(|byte| byte.is_ascii_digit());
    let Some(prefix) = prefix.parse().ok().filter(|prefix| plain && *prefix <= width) else {
        let message = format!("`/{}` is not a prefix of {address}", clip(prefix));
        return Err(report.advise(node, message, format!("prefixes go from /0 to /{width}")));
    };
    let network = masked(address, prefix);
    if network != address {
        let message = format!("`{address}/{prefix}` has bits set beyond its prefix");
        let help =
            format!("the block is \"{network}/{prefix}\", the address alone \"{address}/{width}\"");
        return Err(report.advise(node, message, help));
    }
    Ok(Cidr { address, prefix })
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

/// Letters, digits, `-` and `_` between dots; a last label of digits would be a mistyped address.
#[must_use]
pub fn is_host(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(plain) && !label.starts_with('-')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or(name);
    name.len() <= 253 && name.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name or an address that a Host header may carry, without a port.
pub fn host(node: &Node, report: &Report) -> Read<String> {
    let text = string(node, report, "a host name or an address")?;
    if is_host(text) || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let message = format!("`{}` is not a host name", clip(text));
    Err(report.advise(node, message, "without a scheme and without a port: \"chaos.example.net\""))
}

/// An address to listen on.
pub fn listen(node: &Node, report: &Report) -> Read<SocketAddr> {
    let text = string(node, report, "an address and a port such as \"127.0.0.1:7667\"")?;
    text.parse().map_err(|_| {
        let message = format!("`{}` is not an address with a port", clip(text));
        report.advise(
            node,
            message,
            "write \"127.0.0.1:7667\" or \"[::1]:7667\"; names are not looked up",
        )
    })
}

/// Where to connect to: `host:port`.
pub fn endpoint(node: &Node, report: &Report) -> Read<String> {
    let text = string(node, report, "a host and a port such as \"127.0.0.1:5432\"")?;
    let named = || {
        let (host, port) = text.rsplit_once(':')?;
        let port: u16 = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
        Some(is_host(host) && port > 0)
    };
    if text.parse::<SocketAddr>().is_ok_and(|at| at.port() > 0) || named().unwrap_or(false) {
        return Ok(text.to_owned());
    }
    let message = format!("`{}` is not a host with a port", clip(text));
    Err(report.advise(
        node,
        message,
        "write \"127.0.0.1:5432\", \"[::1]:5432\" or \"db.example.net:5432\"",
    ))
}

/// A URL of `http` or `https`.
pub fn url(node: &Node, report: &Report) -> Read<String> {
    let text = string(node, report, "a URL such as \"http://127.0.0.1:8080/healthz\"")?;
    if text.contains('{') {
        let help = "`{port}` and `{pid}` stand for a member's own, in `ready` of a group";
        return Err(report.advise(node, "this URL has a placeholder that nothing fills in", help));
    }
    check_url(node, report, text, text)
}

/// A URL in which `{port}` and `{pid}` stand for a member's own.
pub fn member_url(node: &Node, report: &Report) -> Read<String> {
    let text = string(node, report, "a URL such as \"http://127.0.0.1:{port}/healthz\"")?;
    let sample = text.replace("{port}", "1").replace("{pid}", "1");
    if sample.contains('{') {
        let message = format!("`{}` has an unknown placeholder", clip(text));
        return Err(report.advise(node, message, "there are `{port}` and `{pid}`, a member's own"));
    }
    check_url(node, report, text, &sample)
}

fn check_url(node: &Node, report: &Report, text: &str, sample: &str) -> Read<String> {
    let bad = |why: &str| {
        let help = "write a URL such as \"http://127.0.0.1:8080/healthz\"";
        report.advise(node, format!("`{}` is not a URL: {why}", clip(text)), help)
    };
    let url = reqwest::Url::parse(sample).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("its scheme is neither http nor https"));
    }
    if text.chars().any(char::is_whitespace) {
        return Err(bad("it contains white space"));
    }
    if url.password().is_some() {
        let help = "reports show URLs to everyone; let a `command` keep the secret";
        return Err(report.advise(node, "a URL here must not carry a password", help));
    }
    Ok(text.to_owned())
}

/// A network device: at most 15 bytes, netdevice(7).
pub fn interface(node: &Node, report: &Report) -> Read<String> {
    let name = string(node, report, "the name of a network device such as \"eth0\"")?;
    let odd = name.contains(['/', ':']) || name.chars().any(char::is_whitespace);
    if name.len() > 15 || odd || matches!(name, "." | "..") {
        return Err(
            report.error(node, format!("`{}` cannot be the name of a network device", clip(name)))
        );
    }
    Ok(name.to_owned())
}

/// A container's name, or its id.
pub fn container(node: &Node, report: &Report) -> Read<String> {
    let name = string(node, report, "the name or id of a container")?;
    if is_container(name) {
        return Ok(name.to_owned());
    }
    let help = "write its name, \"POD/CONTAINER\" for one of Kubernetes, or 12 digits of its id";
    Err(report.advise(node, format!("`{}` cannot be a container's name", clip(name)), help))
}

fn is_container(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/\\@:".contains(&byte);
    name.len() <= 512 && name.bytes().all(plain) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// A network namespace: a name below /run/netns, an absolute path, or a container's.
pub fn netns(node: &Node, report: &Report) -> Read<String> {
    let name = string(node, report, "the name or path of a network namespace")?;
    if name.strip_prefix("container:").is_some_and(is_container) {
        return Ok(name.to_owned());
    }
    let named = !name.contains('/') && !matches!(name, "." | "..") && name.len() <= 255;
    if named || name.starts_with('/') {
        return Ok(name.to_owned());
    }
    let help = "a name as `ip netns` shows it, or an absolute path";
    Err(report.advise(node, format!("`{}` cannot be a network namespace", clip(name)), help))
}
