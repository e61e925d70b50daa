//! Putting things back, from data alone.
//!
//! Tables first, because they are what has an effect; filters before the devices that they point at,
//! because a filter to nowhere eats packets; `clsact` and sysctls last. What is missing is success.
//! One failure never keeps the rest from being put back.

use std::{collections::BTreeMap, io};

use rustix::io::Errno;

use super::{
    Lines, link,
    namespace::{self, Absent},
    netlink::{Family, NFTABLES, NetlinkError, Socket},
    nft,
    plan::{entering, kernel},
    tc,
};
use crate::{fault::undo::Restore, host::HostError};

type Results = Vec<(usize, Result<(), HostError>)>;

/// Puts back every network item; one result each, in order.
pub fn restore(items: &[Restore], lines: &Lines) -> Vec<Result<(), HostError>> {
    let mut results: Vec<Result<(), HostError>> = items.iter().map(|_| Ok(())).collect();
    let mut by_namespace: BTreeMap<Option<&str>, Vec<(usize, &Restore)>> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        match netns(item) {
            Some(netns) => by_namespace.entry(netns).or_default().push((at, item)),
            None => results[at] = Err(not_network(item)),
        }
    }
    for (netns, mut members) in by_namespace {
        members.sort_by(|a, b| a.1.cmp(b.1));
        match namespace::within(netns, || restore_here(&members, lines)) {
            Ok(outcomes) => {
                for (at, outcome) in outcomes {
                    results[at] = outcome;
                }
            }
            // With a namespace goes everything in it; what holds a part of it in this process must go too.
            Err(Absent::Gone) => drop(stop_lines(&members, lines)),
            Err(absent) => {
                let error = entering(netns)(absent);
                members.iter().for_each(|(at, _)| results[*at] = Err(error.clone()));
            }
        }
    }
    results
}

fn not_network(item: &Restore) -> HostError {
    HostError::Kernel { doing: format!("restore {item:?}"), error: "not of the network".to_owned() }
}

#[expect(clippy::option_option, reason = "the outer one says whether it is of the network at all")]
fn netns(item: &Restore) -> Option<Option<&str>> {
    match item {
        Restore::Table { netns, .. }
        | Restore::Filter { netns, .. }
        | Restore::Link { netns, .. }
        | Restore::Clsact { netns, .. }
        | Restore::Sysctl { netns, .. } => Some(netns.as_deref()),
        Restore::Continue { .. }
        | Restore::Thaw { .. }
        | Restore::Start { .. }
        | Restore::Undrain { .. } => None,
    }
}

fn restore_here(members: &[(usize, &Restore)], lines: &Lines) -> Results {
    let mut results = tables(members);
    let others = members.iter().any(|(_, item)| !matches!(item, Restore::Table { .. }));
    if !others {
        return results;
    }
    let mut socket = match Socket::open(Family::Route) {
        Ok(socket) => socket,
        Err(error) => {
            let error = kernel("open rtnetlink")(error);
            results.extend(members.iter().map(|(at, _)| (*at, Err(error.clone()))));
            return results;
        }
    };
    results.extend(members.iter().filter_map(|(at, item)| match item {
        Restore::Filter { index, priority, to, .. } => {
            Some((*at, filter(&mut socket, *index, *priority, to)))
        }
        _ => None,
    }));
    results.extend(links(&mut socket, members, lines));
    results.extend(members.iter().filter_map(|(at, item)| match item {
        Restore::Clsact { device, index, .. } => Some((*at, clsact(&mut socket, device, *index))),
        Restore::Sysctl { path, old, new, .. } => Some((*at, sysctl(path, old, new))),
        _ => None,
    }));
    results
}

/// All tables in one atomic batch; one by one if that fails.
fn tables(members: &[(usize, &Restore)]) -> Results {
    let wanted: Vec<(usize, &str)> = members
        .iter()
        .filter_map(|(at, item)| match item {
            Restore::Table { name, .. } => Some((*at, name.as_str())),
            _ => None,
        })
        .collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let failed = |error: NetlinkError| {
        let error = kernel("list nftables")(error);
        wanted.iter().map(|(at, _)| (*at, Err(error.clone()))).collect()
    };
    let listed = Socket::open(Family::Netfilter)
        .and_then(|mut socket| socket.dump(&nft::list_tables()).map(|answers| (socket, answers)));
    let (mut socket, answers) = match listed {
        Ok(listed) => listed,
        Err(error) => return failed(error),
    };
    let present: BTreeMap<String, u64> = answers.iter().filter_map(nft::table).collect();
    let doomed: Vec<_> = wanted
        .iter()
        .filter_map(|(_, name)| present.get(*name))
        .map(|handle| nft::delete_table_by_handle(*handle))
        .collect();
    if doomed.is_empty() || socket.batch(NFTABLES, &doomed).is_ok() {
        return wanted.into_iter().map(|(at, _)| (at, Ok(()))).collect();
    }
    let mut one = |name: &str| match socket.batch(NFTABLES, &[nft::delete_table(name)]) {
        Err(errors) => match errors.into_iter().next() {
            Some((_, error)) if !error.is_missing() => {
                Err(kernel(format!("delete the table {name}"))(error))
            }
            _ => Ok(()),
        },
        Ok(()) => Ok(()),
    };
    wanted.into_iter().map(|(at, name)| (at, one(name))).collect()
}

/// Deletes the filter of this priority that redirects to the device named `to`, or to nowhere since
/// that device is gone. Nobody else's filter of that priority is touched.
fn filter(socket: &mut Socket, device: u32, priority: u16, to: &str) -> Result<(), HostError> {
    let doing = || format!("delete the filter to {to}");
    let filters = match tc::egress_filters(socket, device) {
        Ok(filters) => filters,
        Err(error) if absent(&error) => return Ok(()),
        Err(error) => return Err(kernel(doing())(error)),
    };
    let links = link::list(socket).map_err(kernel(doing()))?;
    let target = links.iter().find(|link| link.name == to).map(|link| link.index);
    let ours = |found: &&tc::Found| {
        let gone = found.to.is_some_and(|index| !links.iter().any(|link| link.index == index));
        found.priority == priority && found.to.is_some() && (gone || found.to == target)
    };
    match filters.iter().find(ours) {
        None => Ok(()),
        Some(found) => match tc::delete_filter(socket, device, priority, &found.kind) {
            Err(error) if !absent(&error) => Err(kernel(doing())(error)),
            _ => Ok(()),
        },
    }
}

/// Deletes delay devices: lines first let go what they hold, then all devices go in one request.
fn links(socket: &mut Socket, members: &[(usize, &Restore)], lines: &Lines) -> Results {
    let names: Vec<(usize, &str)> = link_names(members);
    if names.is_empty() {
        return Vec::new();
    }
    // The descriptors live until the devices are deleted: closing them would delete one by one.
    let held = stop_lines(members, lines);
    let outcome = link::list(socket).and_then(|links| {
        let ours = |name: &str| links.iter().find(|link| link.name == name && link::is_ours(link));
        let doomed: Vec<u32> =
            names.iter().filter_map(|(_, name)| ours(name)).map(|l| l.index).collect();
        link::delete(socket, &doomed)
    });
    drop(held);
    let outcome = match outcome {
        Err(error) if !absent(&error) => Err(kernel("delete the delay devices")(error)),
        _ => Ok(()),
    };
    names.into_iter().map(|(at, _)| (at, outcome.clone())).collect()
}

fn link_names<'a>(members: &[(usize, &'a Restore)]) -> Vec<(usize, &'a str)> {
    let name = |(at, item): &(usize, &'a Restore)| match item {
        Restore::Link { name, .. } => Some((*at, name.as_str())),
        _ => None,
    };
    members.iter().filter_map(name).collect()
}

fn stop_lines(members: &[(usize, &Restore)], lines: &Lines) -> Vec<super::line::Ends> {
    let stopped: Vec<_> = link_names(members)
        .into_iter()
        .filter_map(|(_, name)| super::locked(lines).remove(name))
        .collect();
    stopped.into_iter().filter_map(super::line::Line::stop).collect()
}

fn clsact(socket: &mut Socket, device: &str, index: u32) -> Result<(), HostError> {
    let doing = || format!("delete clsact of {device}");
    let is_clsact = match tc::ingress_qdisc(socket, index) {
        Ok(kind) => kind.as_deref() == Some("clsact"),
        Err(error) if absent(&error) => return Ok(()),
        Err(error) => return Err(kernel(doing())(error)),
    };
    // Somebody else has come to use it: it is theirs now.
    if !is_clsact || tc::has_filters(socket, index).map_err(kernel(doing()))? {
        return Ok(());
    }
    match tc::delete_clsact(socket, index) {
        Err(error) if !absent(&error) => Err(kernel(doing())(error)),
        _ => Ok(()),
    }
}

fn sysctl(path: &str, old: &str, new: &str) -> Result<(), HostError> {
    let failed = |error: io::Error| HostError::Kernel {
        doing: format!("write {old} to {path}"),
        error: error.to_string(),
    };
    match std::fs::read_to_string(path) {
        Ok(content) if content.trim_end() == new => std::fs::write(path, old).map_err(failed),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// The device, qdisc or filter is not there: the kernel says so in several ways.
fn absent(error: &NetlinkError) -> bool {
    error.is_missing() || error.errno == Errno::INVAL
}
