//! `kill`: a signal to exact processes; before it, perhaps, a way out of the load balancer's rotation.
//!
//! Who waits for the sessions of a draining server is the engine.

use std::collections::BTreeSet;

use crate::{
    experiment::{Drain, Kill, Signal},
    fault::{Effect, Injection, undo::Restore},
    host::{
        Candidate, Delivery, Host, HostError, ProcessId, ProcessState,
        haproxy::{Aside, Pool, Server},
    },
};

/// What puts the servers of the victims back. `others`: instances of groups that are not meant.
///
/// # Errors
/// When a victim is no server of the backend, when one of the others is behind the same server, when somebody else keeps a server from its work
/// already, or when the load balancer would not let vervet drain it.
pub fn prepare_drain(
    host: &dyn Host,
    processes: &[Candidate],
    drain: &Drain,
    others: &[ProcessId],
) -> Result<Vec<Restore>, HostError> {
    let pool = &drain.pool;
    host.may_drain(pool)?;
    let servers = host.servers(pool)?;
    let mut restores = Vec::new();
    for process in processes {
        let listens = host.listens(process.id)?;
        let mut own = servers.iter().filter(|(server, _)| server.leads_to(&listens)).peekable();
        if own.peek().is_none() {
            let on: Vec<String> = listens.iter().map(ToString::to_string).collect();
            let all: Vec<String> = servers.iter().map(|(server, _)| server.describe()).collect();
            return Err(HostError::NotFound(format!(
                "process {} ({}) is no server of the backend `{}`: it listens on {}, and the servers are {}",
                process.id.pid,
                process.name,
                pool.backend,
                listed(&on),
                listed(&all)
            )));
        }
        for (server, aside) in own {
            if *aside != Aside::No {
                return Err(HostError::Unavailable(format!(
                    "server {}/{} was taken out of the rotation by somebody else ({}); vervet would have to \
                     put it back at the end",
                    pool.backend, server.name, server.status
                )));
            }
            if let Some(other) = also_behind(host, server, others)? {
                return Err(HostError::Unavailable(format!(
                    "server {}/{} leads to process {} as well, which is another instance: draining it would \
                     take both",
                    pool.backend, server.name, other.pid
                )));
            }
            restores.push(Restore::Undrain { pool: pool.clone(), server: server.name.clone() });
        }
    }
    restores.sort();
    restores.dedup();
    Ok(restores)
}

/// The one of these processes to which the server leads, if there is one.
fn also_behind(
    host: &dyn Host,
    server: &Server,
    others: &[ProcessId],
) -> Result<Option<ProcessId>, HostError> {
    for other in others {
        match host.listens(*other) {
            Ok(listens) if server.leads_to(&listens) => return Ok(Some(*other)),
            // Gone, or in another network namespace: nobody of this host leads there.
            Ok(_) | Err(HostError::NotFound(_) | HostError::Unavailable(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn listed(words: &[String]) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// See [`crate::fault::drain`].
///
/// # Errors
/// When the load balancer does not do it or does not say so, or somebody put a server back.
pub fn drain(host: &dyn Host, restores: &[Restore], begin: bool) -> Result<u32, HostError> {
    let mine: Vec<(&Pool, &String)> = restores
        .iter()
        .filter_map(|item| match item {
            Restore::Undrain { pool, server } => Some((pool, server)),
            _ => None,
        })
        .collect();
    if begin {
        // One time for all of them: whoever is slow holds up a step, not an abort.
        let pools: BTreeSet<&Pool> = mine.iter().map(|(pool, _)| *pool).collect();
        for pool in pools {
            let servers = mine.iter().filter(|(other, _)| *other == pool);
            let servers: Vec<String> = servers.map(|(_, server)| (*server).clone()).collect();
            host.drain(pool, &servers)?;
        }
    }
    let mut sessions = 0_u32;
    for pool in mine.iter().map(|(pool, _)| *pool).collect::<BTreeSet<_>>() {
        let servers = host.servers(pool)?;
        for (_, name) in mine.iter().filter(|(other, _)| *other == pool) {
            let found = servers.iter().find(|(server, aside)| server.name == **name && aside.drains());
            let Some((server, _)) = found else {
                return Err(HostError::NotFound(format!(
                    "server {}/{name} does not drain any more: somebody put it back, or HAProxy was \
                     started anew",
                    pool.backend
                )));
            };
            sessions = sessions.saturating_add(server.sessions);
        }
    }
    Ok(sessions)
}

/// Signals every process, each exactly once, those that are gone excepted.
///
/// # Errors
/// At the first process that the kernel does not let vervet signal; the ones before it were.
pub fn inject(host: &dyn Host, processes: &[Candidate], signal: Signal) -> Result<Injection, HostError> {
    let deliveries = processes
        .iter()
        .map(|process| host.signal(process.id, signal).map(|delivery| (process.id, delivery)))
        .collect::<Result<_, _>>()?;
    Ok(Injection { deliveries })
}

/// Proven when vervet's signal reached at least one target, and each that it reached is gone or,
/// for a signal that does not ask it to end, has a handler that caught it.
///
/// # Errors
/// When the process table cannot be read.
pub fn measure(
    host: &dyn Host,
    processes: &[Candidate],
    kill: &Kill,
    injection: &Injection,
) -> Result<Effect, HostError> {
    let (mut gone, mut caught, mut unmoved, mut early) = (0_u32, 0_u32, 0_u32, 0_u32);
    for process in processes {
        let delivery = injection.deliveries.iter().find(|(id, _)| *id == process.id);
        match (delivery, host.state(process.id)?) {
            (Some((_, Delivery::Gone)) | None, ProcessState::Gone) => early += 1,
            (Some((_, Delivery::Sent { .. })), ProcessState::Gone) => gone += 1,
            (Some((_, Delivery::Sent { caught: true })), _)
                if kill.then.is_none() && !kill.signal.asks_to_end() =>
            {
                caught += 1;
            }
            _ => unmoved += 1,
        }
    }
    let mut parts = vec![format!("{} sent: {gone} gone", kill.signal)];
    if caught > 0 {
        parts.push(format!("{caught} caught it and live on"));
    }
    if unmoved > 0 {
        parts.push(format!("{unmoved} still there"));
    }
    if early > 0 {
        parts.push(format!("{early} had ended before the signal"));
    }
    Ok(Effect { proven: unmoved == 0 && gone + caught > 0, summary: parts.join(", "), counters: None })
}
