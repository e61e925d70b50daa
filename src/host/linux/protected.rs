//! What no run may target: vervet's own processes, and the way into the host.
//!
//! Only says who and why; refusing is policy's work. When in doubt a process is protected: an
//! experiment that spares one process too many is a nuisance, one that cuts the operator off is not.

use std::{collections::BTreeMap, fs, path::Path, sync::PoisonError};

use rustix::io::Errno;

use super::{
    process::{Processes, kernel, vanished},
    procfs::Place,
    selector::Look,
    sockets::{Table, socket_inodes},
};
use crate::host::{HostError, ProcessId};

/// Names of SSH servers, and of the parts into which OpenSSH 9.8 divided its own.
const SSH_SERVERS: [&[u8]; 5] = [b"sshd", b"sshd-session", b"sshd-auth", b"dropbear", b"tinysshd"];

/// Where an SSH server listens if nothing says otherwise (RFC 4253).
const SSH_PORT: u16 = 22;

/// One line of the table: enough to tell families.
struct Entry {
    id: ProcessId,
    parent: u32,
    ssh: bool,
}

impl Processes {
    /// The processes that must never be targeted, each with the reason: pid 1; vervet itself, its
    /// ancestors, its children that run the same program, and those that were declared; SSH
    /// servers, and the session leaders that they started.
    ///
    /// What is started *from* an SSH session is not protected: it may well be the service.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn protected(&self) -> Result<BTreeMap<ProcessId, String>, HostError> {
        let table = self.families()?;
        let own = std::process::id();
        let mut reasons = self.declared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for entry in table.values() {
            let reason = if entry.id.pid == 1 {
                "the host's init"
            } else if entry.id.pid == own {
                "vervet itself"
            } else if entry.ssh {
                "an SSH server or session"
            } else if table.get(&entry.parent).is_some_and(|parent| parent.ssh) {
                "the login of an SSH session"
            } else if entry.parent == own && self.runs_own_program(entry.id.pid) {
                "vervet's own helper"
            } else {
                continue;
            };
            reasons.entry(entry.id).or_insert_with(|| reason.to_owned());
        }
        let mut ancestor = table.get(&own).map(|own| own.parent);
        // Bounded: a walk while processes come and go must end.
        for _ in 0..table.len() {
            let Some(entry) = ancestor.and_then(|pid| table.get(&pid)) else { break };
            reasons.entry(entry.id).or_insert_with(|| "an ancestor of vervet".to_owned());
            ancestor = Some(entry.parent);
        }
        Ok(reasons)
    }

    /// The local TCP ports of SSH: 22, the ones that its configuration names, and every one that a
    /// server or session of it holds now (socket activation leaves the listening to others).
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn ssh_ports(&self) -> Result<Vec<u16>, HostError> {
        let mut ports = vec![SSH_PORT];
        ports.extend(configured_ports(Path::new("/etc/ssh")));
        for entry in self.families()?.values().filter(|entry| entry.ssh) {
            match self.held_ports(entry.id.pid) {
                Err(error) if vanished(error) => {}
                // Not permitted to look into another user's process: the well-known ports must do.
                Err(Errno::ACCESS | Errno::PERM) => {}
                held => ports.extend(
                    held.map_err(|error| kernel(format!("read sockets of {}", entry.id.pid), error))?,
                ),
            }
        }
        ports.sort_unstable();
        ports.dedup();
        Ok(ports)
    }

    fn families(&self) -> Result<BTreeMap<u32, Entry>, HostError> {
        let mut table = BTreeMap::new();
        let mut look = Look::default();
        let mut failed = None;
        let listed = self.proc().for_each_pid(|pid| {
            look.next();
            match look.stat(self.proc().by_pid(pid)) {
                Ok(stat) if stat.is_kernel_thread() => {}
                Ok(stat) => {
                    let id = ProcessId { pid, start: stat.start };
                    let ssh = SSH_SERVERS.contains(&stat.comm);
                    table.insert(pid, Entry { id, parent: stat.parent, ssh });
                }
                Err(error) if vanished(error) => {}
                // Hidden from this user, and so out of reach of its signals as well.
                Err(Errno::ACCESS | Errno::PERM) => {}
                Err(error) => failed = Some(kernel(format!("look at process {pid}"), error)),
            }
        });
        listed.map_err(|error| kernel("list the process table", error))?;
        failed.map_or(Ok(table), Err)
    }

    fn runs_own_program(&self, pid: u32) -> bool {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        let own_read = self.proc().root().read_link("self/exe", &mut own);
        let other_read = self.proc().by_pid(pid).read_link("exe", &mut other);
        own_read.is_ok() && other_read.is_ok() && own == other
    }

    fn held_ports(&self, pid: u32) -> Result<Vec<u16>, Errno> {
        let dir = self.proc().pin(pid)?;
        let place = Place::of(&dir);
        let inodes = socket_inodes(place)?;
        let table = Table::read(place, false)?;
        Ok(inodes.into_iter().filter_map(|inode| table.get(inode)).map(|at| at.port()).collect())
    }
}

/// `Port` and the ports in `ListenAddress` of sshd_config(5), drop-ins included. What cannot be
/// read names no port.
fn configured_ports(directory: &Path) -> Vec<u16> {
    let mut files = vec![directory.join("sshd_config")];
    if let Ok(entries) = fs::read_dir(directory.join("sshd_config.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    let texts = files.into_iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| text.lines().filter_map(port_of_line).collect::<Vec<_>>()).collect()
}

fn port_of_line(line: &str) -> Option<u16> {
    let mut words = line.split(|c: char| c.is_whitespace() || c == '=').filter(|word| !word.is_empty());
    let key = words.next()?;
    let value = words.next()?.trim_matches('"');
    if key.eq_ignore_ascii_case("Port") {
        value.parse().ok()
    } else if key.eq_ignore_ascii_case("ListenAddress") {
        value.parse::<std::net::SocketAddr>().ok().map(|address| address.port())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_configuration() {
        assert_eq!(port_of_line("Port 2222"), Some(2222));
        assert_eq!(port_of_line("  port=\"2200\" # inside"), Some(2200));
        assert_eq!(port_of_line("ListenAddress 10.0.0.1:2022"), Some(2022));
        assert_eq!(port_of_line("ListenAddress [::1]:2023"), Some(2023));
        assert_eq!(port_of_line("ListenAddress 0.0.0.0"), None);
        assert_eq!(port_of_line("#Port 22"), None);
        assert_eq!(port_of_line("PermitRootLogin no"), None);
    }
}
