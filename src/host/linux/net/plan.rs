//! Resolving a network fault against a host: what will be installed where, and what undoes it.
//!
//! Only reads. Everything that could fail for want of privileges, modules or free marks fails here, with
//! what to do about it, while nothing is touched.

use serde::{Deserialize, Serialize};

use super::{
    link,
    namespace::{self, Absent},
    netlink::{Family, NetlinkError, Socket},
    nft,
    probe::Probe,
    rules::{self, Deed, Selection},
    select,
    shape::Shape,
    tc::{self, Classifier},
};
use crate::{
    experiment::{DelayEngine, Existing},
    fault::undo::{Restore, Undo},
    host::{FaultId, HostError, NetAction, NetPlan, NetSpec},
};

/// Priorities of vervet's filters: this plus the value of the mark. Late, so that others come first.
const PRIORITIES: u16 = 0x7600;
/// Faults of one namespace that can be told apart by priority.
const VALUES: u32 = 0x0fff;
/// One hexadecimal digit numbers the devices of a fault.
const DEVICES: usize = 16;
/// `IFNAMSIZ` without the zero byte
const NAME: usize = 15;

/// What `install` needs beside the plan itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    pub selection: Selection,
    pub deed: Deed,
    pub delay: Option<Slowing>,
}

/// The tc half of a delay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slowing {
    pub classifier: Classifier,
    pub priority: u16,
    pub mark: u32,
    pub mask: u32,
    pub devices: Vec<Slowed>,
}

/// A device whose marked egress goes through another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slowed {
    pub name: String,
    pub index: u32,
    /// The delay device's name.
    pub via: String,
}

impl Detail {
    /// # Errors
    /// When the plan is not one of this host's.
    pub fn of(plan: &NetPlan) -> Result<Self, HostError> {
        serde_json::from_value(plan.detail.clone()).map_err(|error| HostError::Kernel {
            doing: "read the plan".to_owned(),
            error: error.to_string(),
        })
    }
}

/// The table of a fault.
#[must_use]
pub fn table(fault: &FaultId) -> String {
    format!("vervet_{}", fault.0)
}

/// What `NetAction::Delay` asks of a delay device.
#[must_use]
pub fn shape(action: &NetAction) -> Option<(Shape, u64)> {
    match *action {
        NetAction::Delay { delay, jitter, correlation, distribution, seed, .. } => {
            Some((Shape { delay, jitter, correlation, distribution }, seed))
        }
        NetAction::Cap { .. } => None,
    }
}

/// Turns a netlink error into the host's.
pub fn kernel(doing: impl Into<String>) -> impl FnOnce(NetlinkError) -> HostError {
    let doing = doing.into();
    move |error| match error.errno {
        rustix::io::Errno::PERM => HostError::Unavailable(format!(
            "{doing}: not permitted; run vervet as root, or give it CAP_NET_ADMIN"
        )),
        _ => HostError::Kernel { doing, error: error.to_string() },
    }
}

/// Turns a namespace that cannot be entered into an error.
pub fn entering(netns: Option<&str>) -> impl FnOnce(Absent) -> HostError {
    let name = netns.unwrap_or("the agent's own").to_owned();
    move |absent| match absent {
        Absent::Gone => HostError::NotFound(format!("the network namespace {name} is gone")),
        Absent::Denied(error) => HostError::Unavailable(format!(
            "enter the network namespace {name}: {error}; run vervet as root, or give it CAP_SYS_ADMIN"
        )),
    }
}

/// Resolves a fault. `probe` says what the kernel can do.
///
/// # Errors
/// When the selector does not resolve, or the host lacks something.
pub fn plan(probe: &Probe, spec: &NetSpec, open: &[Undo]) -> Result<NetPlan, HostError> {
    check_name(&spec.fault)?;
    if spec.traffic.cgroup.is_some() || spec.traffic.unit.is_some() {
        probe.cgroup.clone().map_err(HostError::Unavailable)?;
    }
    let netns = spec.traffic.netns.as_deref().map(namespace::resolve).transpose()?;
    let selection = select::selection(spec)?;
    let resolve = || match spec.action {
        NetAction::Delay { engine, .. } => delay(probe, spec, selection, netns.as_deref(), engine, open),
        NetAction::Cap { .. } => cap(probe, spec, selection, netns.as_deref()),
    };
    namespace::within(netns.as_deref(), || {
        may_change_tables()?;
        resolve()
    })
    .map_err(entering(netns.as_deref()))?
}

fn check_name(fault: &FaultId) -> Result<(), HostError> {
    let plain = !fault.0.is_empty() && fault.0.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain && fault.0.len() + 3 <= NAME {
        return Ok(());
    }
    Err(HostError::Unavailable(format!("{} does not fit into a device name: too many steps", fault.0)))
}

/// Asking for a table wants the same privilege as changing one.
fn may_change_tables() -> Result<(), HostError> {
    let mut socket = Socket::open(Family::Netfilter).map_err(kernel("open nf_tables"))?;
    match socket.request(&nft::get_table("vervet")) {
        Err(error) if !error.is_missing() => Err(kernel("ask nftables")(error)),
        _ => Ok(()),
    }
}

fn cap(
    probe: &Probe,
    spec: &NetSpec,
    selection: Selection,
    netns: Option<&str>,
) -> Result<NetPlan, HostError> {
    let NetAction::Cap { max, per_source, new_per_second, excess, existing } = spec.action else {
        unreachable!("only caps are planned here")
    };
    probe.cap.clone().map_err(HostError::Unavailable)?;
    if existing == Existing::Close {
        probe.destroy.clone().map_err(HostError::Unavailable)?;
        if selection.interface.is_some() {
            let why = "open connections cannot be told apart by device: drop `interface`, or keep them";
            return Err(HostError::Unavailable(why.to_owned()));
        }
    }
    let deed = Deed::Cap { max, per_source, new_per_second, excess };
    let restores = vec![Restore::Table { netns: netns.map(str::to_owned), name: table(&spec.fault) }];
    finish(spec, netns, None, Vec::new(), restores, &Detail { selection, deed, delay: None })
}

fn delay(
    probe: &Probe,
    spec: &NetSpec,
    selection: Selection,
    netns: Option<&str>,
    wanted: Option<DelayEngine>,
    open: &[Undo],
) -> Result<NetPlan, HostError> {
    let engine = probe.engine(wanted).map_err(HostError::Unavailable)?;
    let classifier = probe.classifier.clone().map_err(HostError::Unavailable)?;
    let mut socket = Socket::open(Family::Route).map_err(kernel("open rtnetlink"))?;
    let links = link::list(&mut socket).map_err(kernel("list devices"))?;
    let local = link::addresses(&mut socket).map_err(kernel("list addresses"))?;
    let found = select::devices(&selection, &links, &local)?;
    if found.len() > DEVICES {
        let why = format!(
            "the traffic can leave by {} devices, {DEVICES} are the most; name one as `interface`",
            found.len()
        );
        return Err(HostError::Unavailable(why));
    }
    let own = |name: &Option<String>| name.as_deref() == netns;
    let mut used: Vec<u16> = open
        .iter()
        .flat_map(|undo| &undo.restores)
        .filter_map(|item| match item {
            Restore::Filter { netns, priority, .. } if own(netns) => Some(*priority),
            _ => None,
        })
        .collect();
    let mut clsacts = Vec::new();
    for link in &found {
        let filters = tc::egress_filters(&mut socket, link.index).map_err(kernel("list filters"))?;
        used.extend(filters.iter().map(|filter| filter.priority));
        let clsact = Restore::Clsact {
            netns: netns.map(str::to_owned),
            device: link.name.clone(),
            index: link.index,
        };
        let shared = open.iter().any(|undo| undo.restores.contains(&clsact));
        match tc::ingress_qdisc(&mut socket, link.index).map_err(kernel("list qdiscs"))?.as_deref() {
            Some("clsact") if !shared => {}
            Some("clsact") | None => clsacts.push(clsact),
            Some(other) => {
                return Err(HostError::Unavailable(format!(
                    "device {} has a qdisc `{other}` where `clsact` must go; replace it by `clsact`, which can \
                     do the same",
                    link.name
                )));
            }
        }
    }
    let (mark, priority) = free_mark(spec.mark_mask, &used)?;
    let devices: Vec<Slowed> = (0_u8..)
        .zip(&found)
        .map(|(at, link)| Slowed {
            name: link.name.clone(),
            index: link.index,
            via: format!("vv{}{at:x}", spec.fault.0),
        })
        .collect();
    let mut restores =
        vec![Restore::Table { netns: netns.map(str::to_owned), name: table(&spec.fault) }];
    restores.extend(devices.iter().map(|slowed| Restore::Filter {
        netns: netns.map(str::to_owned),
        device: slowed.name.clone(),
        index: slowed.index,
        priority,
        to: slowed.via.clone(),
    }));
    restores.extend(
        devices
            .iter()
            .map(|slowed| Restore::Link { netns: netns.map(str::to_owned), name: slowed.via.clone() }),
    );
    restores.extend(clsacts);
    if engine == DelayEngine::Tap && found.iter().any(|link| link.loopback) {
        restores.extend(sysctls(netns, open)?);
    }
    let indices = found.iter().map(|link| link.index).collect();
    let deed = Deed::Mark { mark, mask: spec.mark_mask, devices: indices };
    let names = found.iter().map(|link| link.name.clone()).collect();
    let slowing = Slowing { classifier, priority, mark, mask: spec.mark_mask, devices };
    finish(spec, netns, Some(engine), names, restores, &Detail { selection, deed, delay: Some(slowing) })
}

/// The lowest value of vervet's bits whose priority nobody uses.
fn free_mark(mask: u32, used: &[u16]) -> Result<(u32, u16), HostError> {
    let shift = mask.trailing_zeros();
    let most = mask.checked_shr(shift).unwrap_or_default().min(VALUES);
    let priority = |value: u32| PRIORITIES + u16::try_from(value).unwrap_or_default();
    (1..=most)
        .find(|value| !used.contains(&priority(*value)))
        .map(|value| (value << shift, priority(value)))
        .ok_or_else(|| {
            HostError::Unavailable(format!(
                "all {most} values of vervet's packet marks ({mask:#x}) are in use; widen the mark mask of the \
                 policy, or wait"
            ))
        })
}

const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/lo/route_localnet";
const ACCEPT_LOCAL: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";
const RP_FILTER: &str = "/proc/sys/net/ipv4/conf/lo/rp_filter";
const RP_FILTER_ALL: &str = "/proc/sys/net/ipv4/conf/all/rp_filter";

/// What lets frames that come back to `lo` without their route pass: IPv4 validates their source
/// (Documentation/networking/ip-sysctl.rst). IPv6 does not.
fn sysctls(netns: Option<&str>, open: &[Undo]) -> Result<Vec<Restore>, HostError> {
    let mut wanted = vec![(ROUTE_LOCALNET, "1"), (ACCEPT_LOCAL, "1")];
    let held = |path: &str| {
        open.iter().flat_map(|undo| &undo.restores).find(|item| {
            matches!(item, Restore::Sysctl { netns: n, path: p, .. } if n.as_deref() == netns && p == path)
        })
    };
    // Strict reverse-path filtering (1) beats loose (2) only where no greater value is set.
    let strict = read(RP_FILTER)?.max(read(RP_FILTER_ALL)?) == "1";
    if strict || held(RP_FILTER).is_some() {
        wanted.push((RP_FILTER, "2"));
    }
    let mut items = Vec::new();
    for (path, new) in wanted {
        if let Some(item) = held(path) {
            items.push(item.clone());
            continue;
        }
        let old = read(path)?;
        if old != new {
            let (path, new) = (path.to_owned(), new.to_owned());
            items.push(Restore::Sysctl { netns: netns.map(str::to_owned), path, old, new });
        }
    }
    Ok(items)
}

fn read(path: &str) -> Result<String, HostError> {
    std::fs::read_to_string(path)
        .map(|content| content.trim_end().to_owned())
        .map_err(|error| HostError::Kernel { doing: format!("read {path}"), error: error.to_string() })
}

fn finish(
    spec: &NetSpec,
    netns: Option<&str>,
    engine: Option<DelayEngine>,
    devices: Vec<String>,
    restores: Vec<Restore>,
    detail: &Detail,
) -> Result<NetPlan, HostError> {
    let program = rules::program(&detail.selection, &detail.deed);
    let detail_json = serde_json::to_value(detail).map_err(|error| HostError::Kernel {
        doing: "write the plan".to_owned(),
        error: error.to_string(),
    })?;
    Ok(NetPlan {
        fault: spec.fault.clone(),
        netns: netns.map(str::to_owned),
        action: spec.action.clone(),
        engine,
        rules: program.words(detail.selection.hook),
        devices,
        local: Vec::new(),
        everything: select::is_everything(&spec.traffic),
        restores,
        detail: detail_json,
    })
}
