//! The load balancer of the simulated host: servers by port, which can be told to drain.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::{
    host::{
        HostError,
        haproxy::{Aside, Health, Server},
    },
    policy::time::Moment,
};

/// All servers, by name.
#[derive(Debug, Default)]
pub(super) struct Balancer {
    by_name: BTreeMap<String, One>,
    pub drains: Vec<String>,
}

#[derive(Debug)]
struct One {
    port: u16,
    finishes: Option<Duration>,
    draining: Option<Moment>,
}

impl Balancer {
    pub(super) fn add(&mut self, name: &str, port: u16, finishes: Option<Duration>) {
        self.by_name.insert(name.to_owned(), One { port, finishes, draining: None });
    }

    pub(super) fn servers(&self, now: Moment) -> Vec<(Server, Aside)> {
        let one = |(name, one): (&String, &One)| {
            let idle = one.draining.zip(one.finishes).is_some_and(|(at, takes)| now >= at.plus(takes));
            let server = Server {
                name: name.clone(),
                address: Some(SocketAddr::from(([127, 0, 0, 1], one.port))),
                here: true,
                health: if one.draining.is_some() { Health::NotUp } else { Health::Up },
                status: if one.draining.is_some() { "DRAIN" } else { "UP" }.to_owned(),
                sessions: u32::from(!idle),
            };
            (server, if one.draining.is_some() { Aside::Draining } else { Aside::No })
        };
        self.by_name.iter().map(one).collect()
    }

    pub(super) fn drain(&mut self, name: &str, now: Moment) -> Result<(), HostError> {
        let server = self.by_name.get_mut(name);
        let server = server.ok_or_else(|| HostError::NotFound(format!("no server {name}")))?;
        server.draining.get_or_insert(now);
        self.drains.push(name.to_owned());
        Ok(())
    }

    pub(super) fn undrain(&mut self, name: &str) {
        if let Some(server) = self.by_name.get_mut(name) {
            server.draining = None;
        }
    }

    pub(super) fn forget(&mut self) {
        for server in self.by_name.values_mut() {
            server.draining = None;
        }
    }

    pub(super) fn draining(&self) -> impl Iterator<Item = &String> {
        self.by_name.iter().filter(|(_, server)| server.draining.is_some()).map(|(name, _)| name)
    }

    pub(super) fn drains_any_of(&self, ports: &[u16]) -> bool {
        self.by_name.values().any(|server| server.draining.is_some() && ports.contains(&server.port))
    }
}
