//! `haproxy`: the load balancer's own view of who is up.
//!
//! A server counts as up while it gets new requests and its last check succeeded. That a process is
//! alive, or listens, is not asked: who gets no requests is no capacity.

use std::time::Duration;

use crate::{
    host::{
        Member,
        haproxy::{Health, Pool, Server},
        linux::{haproxy, process::Found},
    },
    probe::ready::reachable,
};

/// Asks for the servers of a backend, on a thread that may wait so long.
///
/// # Errors
/// Why there is no telling, in words for people.
pub async fn servers(pool: &Pool, within: Duration) -> Result<Vec<Server>, String> {
    let pool = pool.clone();
    let asked = tokio::task::spawn_blocking(move || haproxy::servers(&pool, within)).await;
    asked.map_err(|error| format!("asking HAProxy failed: {error}"))?.map_err(String::from)
}

/// At least so many servers must be up.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn at_least(pool: &Pool, up: u32, within: Duration) -> Result<(), String> {
    let servers = servers(pool, within).await?;
    let found = servers.iter().filter(|server| server.health == Health::Up).count();
    if u32::try_from(found).unwrap_or(u32::MAX) >= up {
        return Ok(());
    }
    let others = servers.iter().filter(|server| server.health != Health::Up);
    let others: Vec<String> = others.map(Server::describe).collect();
    let others = if others.is_empty() { String::new() } else { format!(": {}", others.join(", ")) };
    Err(format!("{}: {found} of {} servers are up, not {up}{others}", pool.backend, servers.len()))
}

/// Each member with whether HAProxy has it up. One that HAProxy does not know gets no requests and
/// is not ready; one that it knows under several names must be up under each. Servers that lead to
/// no member are somebody else's: no count of theirs is added to this group.
///
/// # Errors
/// When HAProxy has an opinion of none of them, or does not check one.
pub fn judge(
    pool: &Pool,
    servers: &[Server],
    living: Vec<(Found, bool)>,
) -> Result<Vec<Member>, String> {
    let (mut members, mut known) = (Vec::with_capacity(living.len()), 0_u32);
    for (found, runs) in living {
        let listens = reachable(&found)?;
        let mut ready = runs;
        let mut own = servers.iter().filter(|server| server.leads_to(&listens)).peekable();
        match own.peek() {
            None => ready = false,
            Some(_) => known += 1,
        }
        for server in own {
            if server.health == Health::Unchecked {
                return Err(format!(
                    "HAProxy does not check server {}/{}, so it cannot know whether it is up: add `check` to \
                     its line",
                    pool.backend, server.name
                ));
            }
            ready &= server.health == Health::Up;
        }
        members.push(Member { process: found.candidate, ready });
    }
    if known == 0 && !members.is_empty() {
        let servers: Vec<String> = servers.iter().map(Server::describe).collect();
        return Err(format!(
            "none of the {} members listens where a server of the backend `{}` is: {}",
            members.len(),
            pool.backend,
            if servers.is_empty() { "it has no servers".to_owned() } else { servers.join(", ") }
        ));
    }
    Ok(members)
}
