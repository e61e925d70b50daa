//! The customer's side: what a connection costs, seen from outside of the service.

use std::{
    io,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::timeout};

use crate::demo::supervisor::FRONT;

/// A customer gives up after this.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long it takes to be connected.
///
/// # Errors
/// When the connection is refused or takes too long.
pub async fn connect() -> io::Result<(Duration, TcpStream)> {
    let begun = Instant::now();
    let stream = timeout(PATIENCE, TcpStream::connect((Ipv4Addr::LOCALHOST, FRONT))).await??;
    Ok((begun.elapsed(), stream))
}

/// The median time to connect of `tries`; `None` when none succeeded.
pub async fn median_connect(tries: usize) -> Option<Duration> {
    let mut times = Vec::new();
    for _ in 0..tries {
        times.extend(connect().await.ok().map(|(time, _)| time));
    }
    times.sort();
    times.get(times.len() / 2).copied()
}

/// Clients that connect at the same time and stay.
#[derive(Debug, Default)]
pub struct Crowd {
    pub inside: Vec<TcpStream>,
    pub turned_away: usize,
}

/// Lets so many clients connect at once.
pub async fn crowd(clients: usize) -> Crowd {
    let attempts: Vec<_> = (0..clients).map(|_| tokio::spawn(connect())).collect();
    let mut crowd = Crowd::default();
    for attempt in attempts {
        match attempt.await {
            Ok(Ok((_, stream))) => crowd.inside.push(stream),
            _ => crowd.turned_away += 1,
        }
    }
    crowd
}

/// `0.12 ms`
#[must_use]
pub fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.0} ms") }
}
