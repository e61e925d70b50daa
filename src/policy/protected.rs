//! What may never be a target, whatever a selector matched.

use std::collections::BTreeMap;

use crate::{
    host::{Candidate, ProcessId, UnitCandidate},
    policy::reason::Reason,
};

/// Units without which the host cannot be reached, governed or understood, whatever type they are
/// of: a name, or the beginning of one. systemd's own names all begin alike.
const UNITS: [(&str, &str); 19] = [
    ("vervet", "it is vervet's own"),
    ("systemd-", "it is a part of systemd"),
    ("init.scope", "it is the host's init"),
    ("dbus", "it is the system bus"),
    ("ssh", "it is the way into the host"),
    ("dropbear", "it is the way into the host"),
    ("tinysshd", "it is the way into the host"),
    ("polkit", "it decides who may do what"),
    ("getty@", "it is the console's login"),
    ("serial-getty@", "it is the console's login"),
    ("console-getty.", "it is the console's login"),
    ("container-getty@", "it is the console's login"),
    ("autovt@", "it is the console's login"),
    ("user@", "it is the manager of a user's units"),
    ("user-runtime-dir@", "a user's session needs it"),
    ("network", "the host's network hangs on it"),
    ("NetworkManager", "the host's network hangs on it"),
    ("wpa_supplicant", "the host's network hangs on it"),
    ("ifup@", "the host's network hangs on it"),
];

/// Refuses units that are the host's own, that hold a protected process, or that something stands
/// against.
///
/// # Errors
/// The reason, naming the unit.
pub fn check_units(
    targets: &[UnitCandidate],
    listed: &BTreeMap<ProcessId, String>,
) -> Result<(), Reason> {
    for target in targets {
        let unit = || target.name.clone();
        let own = UNITS.iter().find(|(name, _)| target.name.starts_with(name));
        let session = target.name.starts_with("session-") && target.name.ends_with(".scope");
        let own = own.map(|(_, because)| *because).or(session.then_some("it is a user's session"));
        if let Some(because) = own {
            return Err(Reason::ProtectedUnit { unit: unit(), because: because.to_owned() });
        }
        check(&target.processes, listed)?;
        if let Some(because) = &target.against {
            return Err(Reason::UnitUnfit { unit: unit(), because: because.clone() });
        }
    }
    Ok(())
}

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
