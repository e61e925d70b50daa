//! Installing, renewing and reading back network faults.
//!
//! What carries the effect comes last, in one atomic batch: before it nothing matches. Nothing is undone
//! here when a part fails; the undo was durable before, and is the caller's to apply.

use std::{collections::BTreeMap, time::Duration};

use rustix::io::Errno;

use super::{
    diag,
    line::Ends,
    link, namespace,
    netlink::{Family, Message, NFTABLES, NetlinkError, Socket},
    nft,
    plan::{Detail, Slowing, entering, kernel, shape, table},
    rules, select,
    shape::Shape,
    tc,
};
use crate::{
    experiment::{DelayEngine, Existing},
    fault::undo::Restore,
    host::{HostError, NetAction, NetCounters, NetPlan},
};

/// Packets that may wait in `netem`: what 10 Gbit/s of ordinary frames bring in the time, within bounds.
/// netem's own default of 1000 drops at high rates.
fn netem_limit(shape: &Shape) -> u32 {
    const FRAMES_PER_MS: u128 = 833;
    let longest = shape.delay.saturating_add(shape.jitter.saturating_mul(3));
    let frames = longest.as_millis().saturating_mul(FRAMES_PER_MS).clamp(10_000, 200_000);
    u32::try_from(frames).unwrap_or(u32::MAX)
}

/// What was made and lives in this process only: the ends of delay lines, by name of the TAP device.
pub type Made = Vec<(String, Ends)>;

/// Makes the delay devices and filters of a fault: nothing is delayed yet.
///
/// # Errors
/// At the first part that failed.
pub fn prepare(plan: &NetPlan) -> Result<Made, HostError> {
    let detail = Detail::of(plan)?;
    let Some(slowing) = &detail.delay else { return Ok(Made::new()) };
    namespace::within(plan.netns.as_deref(), || slow(plan, slowing))
        .map_err(entering(plan.netns.as_deref()))?
}

/// Makes the table, which is what does it; then closes what is to be closed. Answers how many.
///
/// # Errors
/// When the kernel refused a part.
pub fn arm(plan: &NetPlan, lease: Duration) -> Result<u64, HostError> {
    let detail = Detail::of(plan)?;
    // As many units as were admitted, each where it is now.
    let selection = select::renewed(&detail.selection);
    let program = rules::program(&selection, &detail.deed);
    let name = table(&plan.fault);
    let comment = format!("vervet fault {}", plan.fault.0);
    let messages = program.messages(&name, &comment, detail.selection.hook, lease);
    let work = || {
        let mut socket = Socket::open(Family::Netfilter).map_err(kernel("open nf_tables"))?;
        socket.batch(NFTABLES, &messages).map_err(|errors| refused(&name, errors))?;
        match plan.action {
            NetAction::Cap { existing: Existing::Close, .. } => diag::close(&selection),
            _ => Ok(0),
        }
    };
    namespace::within(plan.netns.as_deref(), work).map_err(entering(plan.netns.as_deref()))?
}

fn refused(name: &str, errors: Vec<(usize, NetlinkError)>) -> HostError {
    let doing = format!("make the table {name}");
    match errors.into_iter().next() {
        Some((at, error)) => kernel(format!("{doing} (message {at})"))(error),
        None => HostError::Kernel { doing, error: "no reason given".to_owned() },
    }
}

fn slow(plan: &NetPlan, slowing: &Slowing) -> Result<Made, HostError> {
    let mut made = Made::new();
    let mut socket = Socket::open(Family::Route).map_err(kernel("open rtnetlink"))?;
    for item in &plan.restores {
        if let Restore::Sysctl { path, new, .. } = item {
            std::fs::write(path, new).map_err(|error| HostError::Kernel {
                doing: format!("write {new} to {path}"),
                error: error.to_string(),
            })?;
        }
    }
    for slowed in &slowing.devices {
        let via = &slowed.via;
        if plan.engine == Some(DelayEngine::Netem) {
            link::make_ifb(&mut socket, via).map_err(kernel("make an ifb"))?;
        } else {
            let ends = Ends::open(via, slowed.index).map_err(|error| HostError::Kernel {
                doing: format!("make the TAP device {via}"),
                error: error.to_string(),
            })?;
            made.push((via.clone(), ends));
        }
    }
    let links = link::list(&mut socket).map_err(kernel("list devices"))?;
    for slowed in &slowing.devices {
        let index = links.iter().find(|link| link.name == slowed.via).map(|link| link.index);
        let to = index.ok_or_else(|| HostError::NotFound(format!("device {} is gone", slowed.via)))?;
        if plan.engine == Some(DelayEngine::Netem) {
            let (shape, _) = shape(&plan.action).unwrap_or_else(|| unreachable!("a delay has a shape"));
            tc::make_netem(&mut socket, to, &shape, netem_limit(&shape))
                .map_err(kernel("make a netem qdisc"))?;
        }
        link::adopt(&mut socket, to).map_err(kernel(format!("set {} up", slowed.via)))?;
        redirect(&mut socket, plan, slowing, slowed.index, &slowed.name, to)?;
    }
    Ok(made)
}

/// The filter on one device, read back after.
fn redirect(
    socket: &mut Socket,
    plan: &NetPlan,
    slowing: &Slowing,
    device: u32,
    name: &str,
    to: u32,
) -> Result<(), HostError> {
    let ours = plan
        .restores
        .iter()
        .any(|item| matches!(item, Restore::Clsact { index, .. } if *index == device));
    if ours {
        match tc::make_clsact(socket, device) {
            Err(error) if error.errno != Errno::EXIST => {
                return Err(kernel(format!("make clsact on {name}"))(error));
            }
            _ => {}
        }
    }
    let Slowing { classifier, priority, mark, mask, .. } = *slowing;
    let filter = tc::Redirect { device, priority, mark, mask, to };
    let doing = || format!("redirect marked packets of {name}");
    tc::add_redirect(socket, classifier, &filter).map_err(kernel(doing()))?;
    let found = tc::egress_filters(socket, device).map_err(kernel(doing()))?;
    let right = |found: &&tc::Found| {
        found.priority == priority && found.to == Some(to) && found.matches == Some((mark, mask))
    };
    if found.iter().any(|filter| right(&filter)) {
        return Ok(());
    }
    // A match that the kernel silently ignored would redirect everything.
    Err(HostError::Kernel { doing: doing(), error: "the kernel installed something else".to_owned() })
}

/// Renews the leases of faults, all those of one namespace in one batch. What has lapsed stays so.
pub fn renew(leases: &[(&NetPlan, Duration)]) -> Vec<Result<(), HostError>> {
    let mut results: Vec<Result<(), HostError>> = vec![Ok(()); leases.len()];
    let mut by_namespace: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (at, (plan, _)) in leases.iter().enumerate() {
        by_namespace.entry(plan.netns.as_deref()).or_default().push(at);
    }
    for (netns, members) in by_namespace {
        let work = || renew_here(leases, &members);
        match namespace::within(netns, work) {
            Ok(outcomes) => {
                for (at, outcome) in outcomes {
                    results[at] = outcome;
                }
            }
            Err(absent) => {
                let error = entering(netns)(absent);
                members.iter().for_each(|at| results[*at] = Err(error.clone()));
            }
        }
    }
    results
}

fn renew_here(
    leases: &[(&NetPlan, Duration)],
    members: &[usize],
) -> Vec<(usize, Result<(), HostError>)> {
    let all = |error: HostError| members.iter().map(|at| (*at, Err(error.clone()))).collect();
    let mut socket = match Socket::open(Family::Netfilter) {
        Ok(socket) => socket,
        Err(error) => return all(kernel("open nf_tables")(error)),
    };
    let mut left = members.to_vec();
    let mut outcomes = Vec::new();
    while !left.is_empty() {
        let messages: Vec<Message> = left
            .iter()
            .flat_map(|at| {
                let (plan, lease) = leases[*at];
                let table = table(&plan.fault);
                [
                    nft::delete_elements(&table, rules::LEASE, &rules::lease_elements(None)),
                    nft::add_elements(&table, rules::LEASE, &rules::lease_elements(Some(lease))),
                ]
            })
            .collect();
        let Err(errors) = socket.batch(NFTABLES, &messages) else { break };
        // A lease that has lapsed fails its batch: the others go on without it.
        let mut failed: BTreeMap<usize, NetlinkError> = BTreeMap::new();
        for (message, error) in errors {
            failed.entry(message / 2).or_insert(error);
        }
        let mut position = 0;
        left.retain(|at| {
            let error = failed.remove(&position);
            position += 1;
            let Some(error) = error else { return true };
            let doing = format!("renew the lease of fault {}", leases[*at].0.fault.0);
            let lapsed = || HostError::NotFound(format!("{doing}: it has lapsed"));
            let error = if error.is_missing() { lapsed() } else { kernel(doing)(error) };
            outcomes.push((*at, Err(error)));
            false
        });
    }
    for at in left {
        outcomes.push((at, follow_units(&mut socket, leases[at].0)));
    }
    outcomes
}

/// A unit that was started anew has a new cgroup: it is added, so that the fault goes on. The old
/// one is gone and its number is not used again.
fn follow_units(socket: &mut Socket, plan: &NetPlan) -> Result<(), HostError> {
    let planned = Detail::of(plan)?.selection;
    if planned.units.is_none() {
        return Ok(());
    }
    let selection = select::renewed(&planned);
    let table = table(&plan.fault);
    let add = |level| {
        let elements = rules::unit_elements(&selection, level);
        nft::ensure_elements(&table, &rules::unit_set(level), &elements)
    };
    let messages: Vec<Message> = selection.levels().into_iter().map(add).collect();
    socket.batch(NFTABLES, &messages).map_err(|errors| {
        let error = errors.into_iter().next().map(|(_, error)| error.to_string());
        let doing = format!("follow the units of fault {}", plan.fault.0);
        HostError::Kernel { doing, error: error.unwrap_or_default() }
    })
}

/// Reads back whether everything of a fault is there, and what it counted.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn counters(plan: &NetPlan) -> Result<NetCounters, HostError> {
    let detail = Detail::of(plan)?;
    let work = || {
        let mut counters = read_table(&table(&plan.fault))?;
        if let Some(slowing) = &detail.delay {
            let (complete, packets) = read_filters(slowing)?;
            counters.in_place &= complete;
            counters.affected = packets;
        }
        Ok(counters)
    };
    match namespace::within(plan.netns.as_deref(), work) {
        Ok(counters) => counters,
        Err(namespace::Absent::Gone) => Ok(NetCounters::default()),
        Err(absent) => Err(entering(plan.netns.as_deref())(absent)),
    }
}

fn read_table(name: &str) -> Result<NetCounters, HostError> {
    let mut socket = Socket::open(Family::Netfilter).map_err(kernel("open nf_tables"))?;
    let mut counters = NetCounters::default();
    let objects = match socket.dump(&nft::list_objects(name)) {
        Ok(objects) => objects,
        Err(error) if error.is_missing() => return Ok(counters),
        Err(error) => return Err(kernel(format!("read the counters of {name}"))(error)),
    };
    for (table, counter, packets) in objects.iter().filter_map(nft::counter) {
        match counter.as_str() {
            _ if table != name => {}
            rules::MATCHED => counters.matched = packets,
            rules::AFFECTED => counters.affected = packets,
            _ => {}
        }
    }
    match socket.dump(&nft::list_elements(name, rules::LEASE)) {
        Ok(elements) => {
            counters.in_place = nft::count_elements(&elements) == rules::lease_elements(None).len();
            Ok(counters)
        }
        Err(error) if error.is_missing() => Ok(counters),
        Err(error) => Err(kernel(format!("read the lease of {name}"))(error)),
    }
}

/// Whether every filter is in place with its device, and how many packets they redirected.
fn read_filters(slowing: &Slowing) -> Result<(bool, u64), HostError> {
    let mut socket = Socket::open(Family::Route).map_err(kernel("open rtnetlink"))?;
    let links = link::list(&mut socket).map_err(kernel("list devices"))?;
    let (mut complete, mut packets) = (true, 0);
    for slowed in &slowing.devices {
        let via = links.iter().find(|link| link.name == slowed.via && link.up);
        let filters = match tc::egress_filters(&mut socket, slowed.index) {
            Ok(filters) => filters,
            Err(error) if error.is_missing() || error.errno == Errno::INVAL => Vec::new(),
            Err(error) => return Err(kernel("list filters")(error)),
        };
        let ours = filters.iter().find(|filter| {
            filter.priority == slowing.priority
                && filter.matches == Some((slowing.mark, slowing.mask))
                && via.is_some_and(|via| filter.to == Some(via.index))
        });
        complete &= ours.is_some();
        packets += ours.map_or(0, |filter| filter.packets);
    }
    Ok((complete, packets))
}
