//! What may never be a target, whatever a selector matched.

use std::collections::BTreeMap;

use crate::{
    host::{Candidate, ProcessId},
    policy::reason::Reason,
};

/// Refuses a target that is pid 1, a kernel thread, or on the host's list of the protected (the
/// agent, its warden, SSH). `listed` gives the reason for each.
///
/// # Errors
/// The reason, naming the process.
pub fn check(targets: &[Candidate], listed: &BTreeMap<ProcessId, String>) -> Result<(), Reason> {
    for target in targets {
        let because = if target.id.pid == 1 {
            Some("it is the host's init")
        } else if target.kernel_thread {
            Some("it is a thread of the kernel")
        } else {
            listed.get(&target.id).map(String::as_str)
        };
        if let Some(because) = because {
            return Err(Reason::Protected {
                pid: target.id.pid,
                name: target.name.clone(),
                because: because.to_owned(),
            });
        }
    }
    Ok(())
}
