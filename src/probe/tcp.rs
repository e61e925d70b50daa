//! `tcp`: a connection is accepted.
//!
//! It shows that the kernel accepts for the service, not that the service answers: `http` does.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpStream, ToSocketAddrs},
    time::timeout,
};

/// Connects to `host:port`, looking the name up if it is one, and closes the connection again.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn connect(address: &str, within: Duration) -> Result<(), String> {
    bounded(address, address, within).await
}

/// Connects to an address on which a process of this host listens.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn connect_listener(address: SocketAddr, within: Duration) -> Result<(), String> {
    bounded(&reachable(address)[..], &address.to_string(), within).await
}

/// Where a listener can be reached from this host. One on all IPv6 addresses may serve IPv4 too,
/// and does so alone on hosts whose loopback has no IPv6 address.
fn reachable(address: SocketAddr) -> Vec<SocketAddr> {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port());
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), address.port());
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![v4],
        IpAddr::V6(ip) if ip.is_unspecified() => vec![v6, v4],
        _ => vec![address],
    }
}

async fn bounded(to: impl ToSocketAddrs, name: &str, within: Duration) -> Result<(), String> {
    match timeout(within, TcpStream::connect(to)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("no connection to {name}: {error}")),
        Err(_) => Err(format!("no connection to {name} within {within:?}")),
    }
}
