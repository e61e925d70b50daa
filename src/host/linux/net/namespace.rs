//! Network namespaces: resolving their names, and doing a piece of work inside of one.
//!
//! A thread enters, does the work and ends; so no thread of the pool is ever left in a foreign
//! namespace, and no cached socket keeps a deleted namespace alive.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::host::HostError;

/// Why the work was not done in the namespace.
#[derive(Debug)]
pub enum Absent {
    /// There is no such namespace.
    Gone,
    /// It may not be entered.
    Denied(io::Error),
}

/// Absolute path of a namespace given by name (below /run/netns) or by absolute path.
///
/// # Errors
/// When there is no such namespace.
pub fn resolve(netns: &str) -> Result<String, HostError> {
    let path = if netns.starts_with('/') { netns.to_owned() } else { format!("/run/netns/{netns}") };
    let valid = !netns.is_empty() && (netns.starts_with('/') || !netns.contains('/'));
    if valid && Path::new(&path).exists() {
        Ok(path)
    } else {
        Err(HostError::NotFound(format!("there is no network namespace {netns} ({path})")))
    }
}

/// Does `work` in the namespace; `None` is the caller's own, and needs no thread.
///
/// # Errors
/// When the namespace is gone or may not be entered.
pub fn within<T: Send>(netns: Option<&str>, work: impl FnOnce() -> T + Send) -> Result<T, Absent> {
    let Some(path) = netns else { return Ok(work()) };
    let file = File::open(path).map_err(|error| match error.raw_os_error() {
        // A process that is gone has no namespaces: /proc says so with either.
        Some(libc::ENOENT | libc::ESRCH) => Absent::Gone,
        _ => Absent::Denied(error),
    })?;
    if is_own(&file) {
        return Ok(work());
    }
    in_thread(|| {
        enter(&file)?;
        Ok(work())
    })
}

/// Enters a namespace for the rest of the calling thread's life.
///
/// # Errors
/// When the file is not a network namespace (any more), or the caller lacks the privilege.
pub fn enter(file: &File) -> Result<(), Absent> {
    match move_into_link_name_space(std::os::fd::AsFd::as_fd(file), Some(LinkNameSpaceType::Network)) {
        Ok(()) => Ok(()),
        // A mount point below /run/netns whose namespace was unmounted is an ordinary file.
        Err(rustix::io::Errno::INVAL) => Err(Absent::Gone),
        Err(errno) => Err(Absent::Denied(errno.into())),
    }
}

/// Does `work` in a new, empty network namespace that ends with it.
///
/// # Errors
/// When the caller may not make one.
pub fn within_new<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let result = in_thread(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Absent::Denied(errno.into()))?;
        Ok(work())
    });
    result.map_err(|absent| match absent {
        Absent::Gone => io::Error::from(io::ErrorKind::NotFound),
        Absent::Denied(error) => error,
    })
}

/// The file is the namespace of the calling thread.
fn is_own(file: &File) -> bool {
    let same = |own: std::fs::Metadata, other: std::fs::Metadata| {
        own.dev() == other.dev() && own.ino() == other.ino()
    };
    match (std::fs::metadata("/proc/thread-self/ns/net"), file.metadata()) {
        (Ok(own), Ok(other)) => same(own, other),
        _ => false,
    }
}

fn in_thread<T: Send>(work: impl FnOnce() -> Result<T, Absent> + Send) -> Result<T, Absent> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("vervet-netns".to_owned())
            .stack_size(256 << 10)
            .spawn_scoped(scope, work)
            .map_err(Absent::Denied)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
