//! How many connections a listener has, and which of them go first when there are too many.
//!
//! A connection that waits for its client can be shed; one that works for it is not. So a crowd of
//! idle or stalled clients never keeps a new one, who may want to pull the lever, outside.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

/// What a connection is doing, from the first to be shed to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No request yet, or not a whole head of one.
    Waiting,
    /// A request whose body is not all there.
    Receiving,
    /// An answer on its way, or a stream of events.
    Sending,
    /// A request being worked on: never shed.
    Working,
}

/// The connections of one listener.
#[derive(Debug)]
pub struct Pool {
    capacity: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    open: HashMap<u64, Arc<Place>>,
}

/// What the pool knows of one connection.
#[derive(Debug)]
pub struct Place {
    phase: Mutex<(Phase, Instant)>,
    shed: Notify,
}

/// A place in the pool, held for as long as the connection is open.
#[derive(Debug)]
pub struct Admission {
    pool: Arc<Pool>,
    id: u64,
    pub place: Arc<Place>,
}

impl Pool {
    #[must_use]
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, inner: Mutex::default() })
    }

    /// A place for one more connection; takes that of another one if it must. `None`: every
    /// connection is being worked for.
    #[must_use]
    pub fn admit(self: &Arc<Self>) -> Option<Admission> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.open.len() >= self.capacity && !inner.shed_one() {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let place =
            Arc::new(Place { phase: Mutex::new((Phase::Waiting, Instant::now())), shed: Notify::new() });
        inner.open.insert(id, place.clone());
        Some(Admission { pool: self.clone(), id, place })
    }

    /// Closes up to `count` connections that wait for their clients, longest first.
    pub fn shed(&self, count: usize) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..count {
            if !inner.shed_one() {
                return;
            }
        }
    }
}

impl Inner {
    fn shed_one(&mut self) -> bool {
        let first = self
            .open
            .iter()
            .map(|(id, place)| (place.phase(), *id))
            .filter(|((phase, _), _)| *phase < Phase::Working)
            .min();
        let Some((_, id)) = first else { return false };
        if let Some(place) = self.open.remove(&id) {
            place.shed.notify_one();
        }
        true
    }
}

impl Place {
    /// The phase begins anew.
    pub fn enter(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = (phase, Instant::now());
    }

    /// Returns when the connection must go.
    pub async fn shed(&self) {
        self.shed.notified().await;
    }

    fn phase(&self) -> (Phase, Instant) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut inner = self.pool.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_goes_first_and_the_working_never() {
        let pool = Pool::new(3);
        let working = pool.admit().unwrap();
        working.place.enter(Phase::Working);
        let receiving = pool.admit().unwrap();
        receiving.place.enter(Phase::Receiving);
        let idle = pool.admit().unwrap();
        let open = |admission: &Admission| pool.inner.lock().unwrap().open.contains_key(&admission.id);

        let fourth = pool.admit().unwrap();
        assert!(!open(&idle) && open(&receiving) && open(&working));
        fourth.place.enter(Phase::Working);

        let fifth = pool.admit().unwrap();
        assert!(!open(&receiving) && open(&working) && open(&fourth));
        fifth.place.enter(Phase::Working);

        assert!(pool.admit().is_none());
        drop(fifth);
        assert!(pool.admit().is_some());
    }
}
