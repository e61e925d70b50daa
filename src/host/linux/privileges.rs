//! Privileges of the agent's children: the warden has the agent's, everything else has none.
//!
//! A service manager hands capabilities to a process that is not root's by its ambient set,
//! capabilities(7), which every program that it executes would inherit: a probe that an operator wrote
//! could then do all that the agent can. So the set is emptied first thing, and filled for the moment
//! in which the warden is started. The agent's own permitted capabilities are not touched. An agent
//! that is root's has no ambient set: its children are root's.

use std::{io, sync::OnceLock};

use rustix::thread::{
    CapabilitySet, capability_is_in_ambient_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set,
};

/// What was in the ambient set when the agent began.
static KEPT: OnceLock<CapabilitySet> = OnceLock::new();

/// Keeps the process's capabilities from its children. To be called before there is a second thread:
/// every thread has an ambient set of its own, and inherits its maker's.
///
/// # Errors
/// When the kernel does not do it.
pub fn keep() -> io::Result<()> {
    let mut kept = CapabilitySet::empty();
    for one in CapabilitySet::all().iter() {
        // A capability that this kernel does not know is in no set of it.
        if capability_is_in_ambient_set(one).unwrap_or(false) {
            kept |= one;
        }
    }
    if !kept.is_empty() {
        clear_ambient_capability_set()?;
    }
    KEPT.get_or_init(|| kept);
    Ok(())
}

/// Calls `start`, which starts a process, with the capabilities that [`keep`] took away.
///
/// # Errors
/// When the kernel does not do it; nothing was started then.
pub fn with_kept<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let kept = KEPT.get().copied().unwrap_or_else(CapabilitySet::empty);
    if kept.is_empty() {
        return start();
    }
    let raised = kept.iter().try_for_each(|one| configure_capability_in_ambient_set(one, true));
    let started = raised.map_err(io::Error::from).and_then(|()| start());
    // Where this fails, so would the next start of a probe: it must not inherit them.
    clear_ambient_capability_set()?;
    started
}
