//! How the simulated host resolves a network fault: which objects it would make, and what of them
//! is shared with faults in force.

use serde_json::json;

use super::{
    network::{Network, Object},
    process::{Processes, glob, is_in, is_within},
};
use crate::{
    experiment::{DelayEngine, Peer, Traffic},
    fault::undo::{Restore, Undo},
    host::{Candidate, HostError, NetAction, NetPlan, NetSpec},
};

/// Priorities of vervet's filters begin here.
const FIRST_PRIORITY: u16 = 49_152;

pub(super) fn plan(
    spec: &NetSpec,
    open: &[Undo],
    network: &Network,
    processes: &Processes,
    netem: bool,
) -> Result<NetPlan, HostError> {
    let traffic = &spec.traffic;
    let netns = traffic
        .netns
        .as_ref()
        .map(|name| if name.starts_with('/') { name.clone() } else { format!("/run/netns/{name}") });
    network.reachable(netns.as_ref())?;
    for peer in traffic.to.iter().chain(&traffic.from) {
        if let Peer::Name(name) = peer
            && std::path::Path::new(name).extension().is_some_and(|last| last == "invalid")
        {
            return Err(HostError::NotFound(format!("{name}: no such name")));
        }
    }
    let devices = devices(traffic)?;
    let mut restores =
        vec![Restore::Table { netns: netns.clone(), name: format!("vervet-{}", spec.fault.0) }];
    let engine = match &spec.action {
        NetAction::Cap { .. } => None,
        NetAction::Delay { engine, .. } => {
            let engine = choose(*engine, netem)?;
            redirect(spec, open, network, netns.as_ref(), &devices, engine, &mut restores);
            Some(engine)
        }
    };
    let devices = match engine {
        Some(_) => devices.into_iter().map(|(name, _)| name.to_owned()).collect(),
        None => Vec::new(),
    };
    Ok(NetPlan {
        fault: spec.fault.clone(),
        netns,
        action: spec.action.clone(),
        engine,
        rules: rules(traffic),
        devices,
        local: local(traffic, processes)?,
        everything: is_everything(traffic),
        restores,
        detail: json!({ "simulated": true }),
    })
}

fn choose(asked: Option<DelayEngine>, netem: bool) -> Result<DelayEngine, HostError> {
    match asked {
        Some(DelayEngine::Netem) if !netem => {
            Err(HostError::Unavailable("this kernel has no netem; use engine = \"tap\"".to_owned()))
        }
        Some(engine) => Ok(engine),
        None if netem => Ok(DelayEngine::Netem),
        None => Ok(DelayEngine::Tap),
    }
}

fn devices(traffic: &Traffic) -> Result<Vec<(&'static str, u32)>, HostError> {
    let all = Network::devices();
    match &traffic.interface {
        None => Ok(all.to_vec()),
        Some(name) => match all.into_iter().find(|(device, _)| device == name) {
            Some(device) => Ok(vec![device]),
            None => Err(HostError::NotFound(format!("no device is called {name}"))),
        },
    }
}

/// The delay device, the filters that lead to it and what they stand on, in the order of undoing.
fn redirect(
    spec: &NetSpec,
    open: &[Undo],
    network: &Network,
    netns: Option<&String>,
    devices: &[(&str, u32)],
    engine: DelayEngine,
    restores: &mut Vec<Restore>,
) {
    let netns = netns.cloned();
    let link = format!("vv{}", spec.fault.0);
    let priority = free_priority(open);
    for &(device, index) in devices {
        restores.push(Restore::Filter {
            netns: netns.clone(),
            device: device.to_owned(),
            index,
            priority,
            to: link.clone(),
        });
    }
    restores.push(Restore::Link { netns: netns.clone(), name: link });
    for &(device, index) in devices {
        let item = Restore::Clsact { netns: netns.clone(), device: device.to_owned(), index };
        let there = Object::Clsact { netns: netns.clone(), device: device.to_owned() };
        // There, but in no open undo: somebody else's. It is used and stays.
        if is_open(open, &item) || !network.objects.contains_key(&there) {
            restores.push(item);
        }
    }
    if engine == DelayEngine::Tap && devices.iter().any(|(device, _)| *device == "lo") {
        for path in ["net/ipv4/conf/lo/route_localnet", "net/ipv4/conf/lo/accept_local"] {
            restores.extend(sysctl(open, network, netns.clone(), path));
        }
    }
}

/// What another fault wrote is vervet's: its old value is the one from before both.
fn sysctl(open: &[Undo], network: &Network, netns: Option<String>, path: &str) -> Option<Restore> {
    let written = open.iter().flat_map(|undo| &undo.restores).find(
        |item| matches!(item, Restore::Sysctl { netns: at, path: of, .. } if *at == netns && of == path),
    );
    if let Some(item) = written {
        return Some(item.clone());
    }
    let old = network.sysctl(&netns, path);
    (old != "1").then(|| Restore::Sysctl { netns, path: path.to_owned(), old, new: "1".to_owned() })
}

fn free_priority(open: &[Undo]) -> u16 {
    let taken = |priority: u16| {
        open.iter()
            .flat_map(|undo| &undo.restores)
            .any(|item| matches!(item, Restore::Filter { priority: of, .. } if *of == priority))
    };
    (FIRST_PRIORITY..=u16::MAX).find(|priority| !taken(*priority)).unwrap_or(u16::MAX)
}

fn is_open(open: &[Undo], item: &Restore) -> bool {
    open.iter().any(|undo| undo.restores.contains(item))
}

fn rules(traffic: &Traffic) -> Vec<String> {
    vec![serde_json::to_string(traffic).unwrap_or_default()]
}

fn is_everything(traffic: &Traffic) -> bool {
    traffic.to.is_empty()
        && traffic.from.is_empty()
        && traffic.port.is_none()
        && traffic.listen.is_none()
        && traffic.unit.is_none()
        && traffic.cgroup.is_none()
        && traffic.user.is_none()
}

fn local(traffic: &Traffic, processes: &Processes) -> Result<Vec<Candidate>, HostError> {
    let uid = traffic.user.as_deref().map(|user| processes.uid(user)).transpose()?;
    let unit = traffic.unit.as_deref().map(glob).transpose()?;
    let owned = unit.is_some() || traffic.listen.is_some() || traffic.cgroup.is_some() || uid.is_some();
    Ok(processes
        .all()
        .map(|process| &process.candidate)
        .filter(|_| owned)
        .filter(|each| traffic.listen.is_none_or(|port| each.listens.contains(&port)))
        .filter(|each| unit.as_ref().is_none_or(|glob| is_in(each, glob)))
        .filter(|each| traffic.cgroup.as_ref().is_none_or(|path| is_within(&each.cgroup, path)))
        .filter(|each| uid.is_none_or(|uid| each.uid == uid))
        .cloned()
        .collect())
}
