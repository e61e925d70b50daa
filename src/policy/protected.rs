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

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> UnitCandidate {
        UnitCandidate {
            name: name.to_owned(),
            instance: "1".to_owned(),
            cgroup: format!("/system.slice/{name}"),
            processes: Vec::new(),
            against: None,
        }
    }

    #[test]
    fn the_hosts_own_units_are_never_targets() {
        let own = [
            "vervet.service",
            "systemd-journald.service",
            "systemd-logind.service",
            "systemd-udevd.service",
            "systemd-networkd.service",
            "systemd-resolved.service",
            "dbus.service",
            "dbus-broker.service",
            "ssh.service",
            "sshd@7.service",
            "polkit.service",
            "init.scope",
            "getty@tty1.service",
            "serial-getty@ttyS0.service",
            "user@1000.service",
            "session-3.scope",
            "networking.service",
        ];
        for name in own {
            let refused = check_units(&[unit(name)], &BTreeMap::new());
            assert!(matches!(refused, Err(Reason::ProtectedUnit { .. })), "{name}: {refused:?}");
        }
        for name in ["checkout@1.service", "session-store.service", "nginx.service"] {
            assert_eq!(check_units(&[unit(name)], &BTreeMap::new()), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_unit_with_a_protected_process_is_as_protected() {
        let id = ProcessId { pid: 70, start: 7 };
        let mut holds = unit("checkout@1.service");
        holds.processes.push(Candidate {
            id,
            parent: 1,
            name: "sshd".to_owned(),
            cmdline: "sshd".to_owned(),
            uid: 0,
            cgroup: holds.cgroup.clone(),
            unit: Some(holds.name.clone()),
            container: None,
            listens: Vec::new(),
            kernel_thread: false,
        });
        let listed = [(id, "an SSH server or session".to_owned())].into();
        let refused = check_units(std::slice::from_ref(&holds), &listed);
        assert!(matches!(refused, Err(Reason::Protected { pid: 70, .. })), "{refused:?}");
        let mut unfit = unit("checkout@2.service");
        unfit.against = Some("because".to_owned());
        let refused = check_units(&[unfit], &BTreeMap::new()).unwrap_err();
        assert_eq!(refused.to_string(), "unit checkout@2.service is not touched: because");
    }
}
