//! What every handler holds: the way to the loop, the library, and the shares of clients.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{Semaphore, watch};

use crate::{document::Library, runner::Handle};

use super::{access::Access, error::Problem, limits::Limits, metrics::Counters};

/// Shared by all connections.
pub struct App {
    pub handle: Handle,
    pub library: RwLock<Library>,
    pub access: RwLock<Arc<Access>>,
    pub limits: Limits,
    /// True when the API is to stop.
    pub stop: watch::Receiver<bool>,
    pub counters: Counters,
    pub large_bodies: Semaphore,
    pub subscribers: Arc<Semaphore>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl App {
    #[must_use]
    pub fn new(
        handle: Handle,
        library: Library,
        access: Access,
        limits: Limits,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            handle,
            library: RwLock::new(library),
            access: RwLock::new(Arc::new(access)),
            limits,
            stop,
            counters: Counters::default(),
            large_bodies: Semaphore::new(limits.large_bodies),
            subscribers: Arc::new(Semaphore::new(limits.subscribers)),
        }
    }

    #[must_use]
    pub fn access(&self) -> Arc<Access> {
        self.access.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn library(&self) -> Library {
        self.library.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs what reads files or takes long to compute away from the threads that answer the lever.
///
/// # Errors
/// What `work` says, or 500 when it panicked.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(super::error::internal("work a request out", &error)),
    }
}
