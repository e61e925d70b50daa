//! From a traffic selector to an exact selection: names looked up, ports checked, devices found.
//!
//! Only reads. Names of peers and users are looked up by the agent, in its own namespace, whatever
//! namespace the traffic is in.

use std::{
    net::{IpAddr, ToSocketAddrs},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    link::{self, Link},
    nft::Hook,
    rules::{Cgroup, Selection, range},
};
use crate::{
    experiment::{Cidr, Peer, Protocol, Traffic},
    host::{
        HostError, NetAction, NetSpec,
        unit::{self, Glob},
    },
};

/// SSH's port stays reachable whatever matches.
const SSH: u16 = 22;

/// Resolves everything of a selector but the devices.
///
/// # Errors
/// When a name, user or cgroup does not resolve, or the keys contradict each other.
pub fn selection(spec: &NetSpec) -> Result<Selection, HostError> {
    let traffic = &spec.traffic;
    let cap = matches!(spec.action, NetAction::Cap { .. });
    let hook = if cap { direction(traffic)? } else { Hook::Output };
    let protocol = protocol(traffic, cap)?;
    let exempt = exempt(spec);
    if let Some(port) =
        traffic.listen.filter(|port| protocol == Some(Protocol::Tcp) && exempt.contains(port))
    {
        return Err(HostError::Unavailable(format!(
            "port {port} is vervet's API or SSH: the way out stays open; choose another port"
        )));
    }
    if hook == Hook::Input && traffic.user.is_some() {
        return Err(HostError::Unavailable(
            "a cap on accepted connections cannot be limited to a user: the kernel does not know whose \
             they will be; name a port or a cgroup"
                .to_owned(),
        ));
    }
    Ok(Selection {
        hook,
        protocol,
        local_port: traffic.listen,
        remote_port: traffic.port,
        peers: peers(traffic)?,
        uid: traffic.user.as_deref().map(uid).transpose()?,
        cgroup: traffic.cgroup.as_deref().map(cgroup).transpose()?,
        units: traffic.unit.as_deref().map(units).transpose()?,
        interface: traffic.interface.clone(),
        exempt,
    })
}

/// The selection names no port, peer or owner.
#[must_use]
pub fn is_everything(traffic: &Traffic) -> bool {
    let Traffic { to, from, port, listen, unit, cgroup, user, .. } = traffic;
    to.is_empty()
        && from.is_empty()
        && port.is_none()
        && listen.is_none()
        && unit.is_none()
        && cgroup.is_none()
        && user.is_none()
}

/// The devices that selected traffic can leave by.
///
/// # Errors
/// When there is none, or the one that was named cannot be slowed.
pub fn devices(selection: &Selection, links: &[Link], local: &[IpAddr]) -> Result<Vec<Link>, HostError> {
    if let Some(name) = &selection.interface {
        let link = links.iter().find(|link| link.name == *name);
        let link = link.ok_or_else(|| HostError::NotFound(format!("there is no device {name}")))?;
        if !link.ethernet || link::is_ours(link) {
            let why = format!("device {name} does not carry Ethernet frames; choose one that does");
            return Err(HostError::Unavailable(why));
        }
        return Ok(vec![link.clone()]);
    }
    let found: Vec<Link> = links
        .iter()
        .filter(|link| link.up && link.ethernet && !link::is_ours(link))
        .filter(|link| !link.loopback || reaches_local(selection, local))
        // Traffic of a bridge or bond leaves through the whole first, of a VLAN through what is below.
        .filter(|link| !matches!(link.part_of.as_deref(), Some("bridge" | "bond" | "team")))
        .filter(|link| {
            !(link.below.is_some() && matches!(link.kind.as_str(), "vlan" | "macvlan" | "ipvlan"))
        })
        .cloned()
        .collect();
    if found.is_empty() {
        let why = "no device is up that the selected traffic could leave by; name one as `interface`";
        return Err(HostError::Unavailable(why.to_owned()));
    }
    Ok(found)
}

/// A selected peer may be this host itself.
fn reaches_local(selection: &Selection, local: &[IpAddr]) -> bool {
    selection.peers.iter().all(|blocks| {
        blocks.iter().any(|block| {
            let (low, high) = range(block);
            let inside = |address: &IpAddr| {
                let host = Cidr { address: *address, prefix: if address.is_ipv4() { 32 } else { 128 } };
                address.is_ipv4() == block.address.is_ipv4() && (low..=high).contains(&range(&host).0)
            };
            // All of 127.0.0.0/8 is local, whatever part of it a block names.
            let loopback = block.address.is_ipv4() && low <= 0x7fff_ffff && high >= 0x7f00_0000;
            loopback || local.iter().any(inside) || inside(&std::net::Ipv6Addr::LOCALHOST.into())
        })
    })
}

/// New connections either come in or go out.
fn direction(traffic: &Traffic) -> Result<Hook, HostError> {
    let accepted = traffic.listen.is_some() || !traffic.from.is_empty();
    let called = traffic.port.is_some() || !traffic.to.is_empty();
    match (accepted, called) {
        (true, true) => Err(HostError::NotFound(
            "no connection is both accepted (`listen`, `from`) and called (`port`, `to`); keep one side"
                .to_owned(),
        )),
        (true, false) => Ok(Hook::Input),
        (false, _) => Ok(Hook::Output),
    }
}

fn protocol(traffic: &Traffic, cap: bool) -> Result<Option<Protocol>, HostError> {
    let ports = traffic.port.is_some() || traffic.listen.is_some();
    match traffic.protocol {
        Some(Protocol::Udp | Protocol::Icmp) if cap => {
            Err(HostError::NotFound("only TCP has connections to cap".to_owned()))
        }
        Some(Protocol::Icmp) if ports => Err(HostError::NotFound("ICMP has no ports".to_owned())),
        Some(protocol) => Ok(Some(protocol)),
        None if cap || ports => Ok(Some(Protocol::Tcp)),
        None => Ok(None),
    }
}

fn exempt(spec: &NetSpec) -> Vec<u16> {
    let mut ports = spec.exempt_ports.clone();
    ports.push(SSH);
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn peers(traffic: &Traffic) -> Result<Vec<Vec<Cidr>>, HostError> {
    let sides = [&traffic.to, &traffic.from];
    sides.into_iter().filter(|side| !side.is_empty()).map(|side| blocks(side)).collect()
}

fn blocks(peers: &[Peer]) -> Result<Vec<Cidr>, HostError> {
    let mut blocks = Vec::new();
    for peer in peers {
        match peer {
            Peer::Block(block) => blocks.push(*block),
            Peer::Name(name) => blocks.extend(look_up(name)?),
        }
    }
    blocks.sort_by_key(|block| (block.address, block.prefix));
    blocks.dedup();
    Ok(blocks)
}

fn look_up(name: &str) -> Result<Vec<Cidr>, HostError> {
    let found = (name, 0)
        .to_socket_addrs()
        .map_err(|error| HostError::NotFound(format!("no address is known for {name}: {error}")))?;
    let block = |address: IpAddr| Cidr { address, prefix: if address.is_ipv4() { 32 } else { 128 } };
    Ok(found.map(|address| block(address.ip())).collect())
}

fn uid(user: &str) -> Result<u32, HostError> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    match nix::unistd::User::from_name(user) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(HostError::NotFound(format!("there is no user {user}"))),
        Err(error) => Err(HostError::Kernel {
            doing: format!("look up the user {user}"),
            error: error.to_string(),
        }),
    }
}

/// The identifier of a cgroup is the inode number of its directory.
fn cgroup(path: &str) -> Result<Cgroup, HostError> {
    let components: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if components.is_empty() || components.contains(&"..") {
        return Err(HostError::NotFound(format!("{path} does not name a cgroup below the root")));
    }
    let directory = mount_point()?.join(components.join("/"));
    let metadata = std::fs::metadata(&directory).ok().filter(std::fs::Metadata::is_dir);
    let metadata = metadata
        .ok_or_else(|| HostError::NotFound(format!("there is no cgroup {}", directory.display())))?;
    let level = u32::try_from(components.len()).unwrap_or(u32::MAX);
    Ok(Cgroup { id: metadata.ino(), level, path: components.join("/") })
}

/// The cgroups of the units that a pattern means, in order of their paths.
fn units(pattern: &str) -> Result<Vec<Cgroup>, HostError> {
    let glob = Glob::new(pattern)
        .map_err(|error| HostError::NotFound(format!("`{pattern}` cannot select units: {error}")))?;
    let mut found = Vec::new();
    find_units(&mount_point()?, "", &glob, &mut found);
    if found.is_empty() {
        let why = format!("no unit {pattern} runs: systemd has made no cgroup for one");
        return Err(HostError::NotFound(why));
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Units are in the root or in slices; what is below a unit is its own.
fn find_units(mount: &Path, above: &str, glob: &Glob, found: &mut Vec<Cgroup>) {
    // Gone since it was listed.
    let Ok(entries) = std::fs::read_dir(mount.join(above)) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if above.is_empty() { name.clone() } else { format!("{above}/{name}") };
        if name.strip_suffix(".slice").is_some() {
            find_units(mount, &path, glob, found);
        } else if unit::of_cgroup(path.as_bytes()).is_some_and(|unit| glob.matches(unit)) {
            found.extend(cgroup(&path));
        }
    }
}

/// The cgroups that the units of a selection have by now: those that started anew have others.
#[must_use]
pub fn renewed(selection: &Selection) -> Selection {
    let mut selection = selection.clone();
    for unit in selection.units.iter_mut().flatten() {
        // One that is not there keeps the old one, which matches nothing.
        if let Ok(now) = cgroup(&unit.path) {
            *unit = now;
        }
    }
    selection
}

/// Where the unified hierarchy is mounted: /sys/fs/cgroup, or below it on hybrid hosts.
///
/// # Errors
/// When it is not mounted.
pub fn mount_point() -> Result<PathBuf, HostError> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let unified = mounts.lines().find_map(|line| {
        // proc(5): fields up to " - ", then type, source, options
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4).map(str::to_owned))?
    });
    unified.map(|path| Path::new(&path).to_owned()).ok_or_else(|| {
        HostError::Unavailable("no cgroup2 hierarchy is mounted; mount one at /sys/fs/cgroup".to_owned())
    })
}
