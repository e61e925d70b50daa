//! `process`: a member that is alive is ready. One that a signal stopped is alive but serves
//! nobody: it counts as there and not ready.

use crate::host::{HostError, ProcessId, ProcessState, linux::process::Processes};

/// Whether each process is ready; `None` for the ones that are gone.
///
/// # Errors
/// When the process table cannot be read.
pub fn ready(processes: &Processes, ids: &[ProcessId]) -> Result<Vec<Option<bool>>, HostError> {
    ids.iter()
        .map(|id| {
            Ok(match processes.state(*id)? {
                ProcessState::Running => Some(true),
                ProcessState::Stopped => Some(false),
                ProcessState::Gone => None,
            })
        })
        .collect()
}
