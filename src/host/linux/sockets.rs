//! Who listens where: the kernel's table of TCP sockets, and the processes that hold them.
//!
//! The table belongs to a network namespace. The kernel is asked for the agent's own by sock_diag; those
//! of others are read through a process that is in them. Format of /proc/PID/net/tcp and tcp6:
//! Documentation/networking/proc_net_tcp.rst in the kernel's source.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::ffi::OsStrExt,
    rc::Rc,
};

use rustix::io::Errno;

use super::{
    net::diag,
    procfs::{Place, ProcFs},
};

/// TCP_LISTEN, linux/tcp_states.h.
const LISTEN: &[u8] = b"0A";

/// Local addresses of TCP sockets by the inode of the socket.
#[derive(Debug, Default)]
pub struct Table(HashMap<u64, SocketAddr>);

/// The listening sockets of each network namespace that was looked into, during one look.
#[derive(Debug, Default)]
pub struct Namespaces {
    own: Option<Vec<u8>>,
    tables: HashMap<Vec<u8>, Rc<Table>>,
}

/// The TCP sockets on which a process listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listens {
    pub addresses: Vec<SocketAddr>,
    /// They are in another network namespace than the agent, which cannot reach them.
    pub elsewhere: bool,
}

impl Table {
    /// The sockets of the namespace of the process at `place`; only the listening ones, which the
    /// kernel lists before all others, or all.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn read(place: Place<'_>, listening_only: bool) -> Result<Self, Errno> {
        let mut table = HashMap::new();
        for file in ["net/tcp", "net/tcp6"] {
            match place.open(file) {
                Ok(fd) => read_table(File::from(fd), listening_only, &mut table)?,
                // Without IPv6 there is no such file.
                Err(Errno::NOENT) if file == "net/tcp6" => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(table))
    }

    #[must_use]
    pub fn get(&self, inode: u64) -> Option<SocketAddr> {
        self.0.get(&inode).copied()
    }

    fn has_port(&self, port: u16) -> bool {
        self.0.values().any(|address| address.port() == port)
    }
}

impl Namespaces {
    /// Where the process at `place` listens; with `port` given, nothing unless it is among them.
    ///
    /// # Errors
    /// When its namespace or its descriptors cannot be read: `ACCESS` without CAP_SYS_PTRACE.
    pub fn listens(
        &mut self,
        proc: &ProcFs,
        place: Place<'_>,
        port: Option<u16>,
    ) -> Result<Listens, Errno> {
        let (table, elsewhere) = self.table(proc, place)?;
        if table.0.is_empty() || port.is_some_and(|port| !table.has_port(port)) {
            return Ok(Listens { addresses: Vec::new(), elsewhere });
        }
        let mut addresses: Vec<_> =
            socket_inodes(place)?.into_iter().filter_map(|inode| table.get(inode)).collect();
        addresses.sort_unstable_by_key(|address| (address.port(), address.ip()));
        addresses.dedup();
        if port.is_some_and(|port| addresses.iter().all(|address| address.port() != port)) {
            addresses.clear();
        }
        Ok(Listens { addresses, elsewhere })
    }

    fn table(&mut self, proc: &ProcFs, place: Place<'_>) -> Result<(Rc<Table>, bool), Errno> {
        if self.own.is_none() {
            let mut own = Vec::new();
            proc.root().read_link("self/ns/net", &mut own)?;
            self.own = Some(own);
        }
        let mut namespace = Vec::new();
        place.read_link("ns/net", &mut namespace)?;
        let elsewhere = self.own.as_ref() != Some(&namespace);
        if let Some(table) = self.tables.get(&namespace) {
            return Ok((Rc::clone(table), elsewhere));
        }
        let table = Rc::new(match Self::asked(&namespace) {
            Some(table) => table,
            None => Table::read(place, true)?,
        });
        self.tables.insert(namespace, Rc::clone(&table));
        Ok((table, elsewhere))
    }
}

impl Namespaces {
    /// The table of the namespace that this thread is in, by sock_diag. Reading /proc for it would have
    /// the kernel walk every bucket of its connections, which are hundreds of thousands.
    fn asked(namespace: &[u8]) -> Option<Table> {
        let own = std::fs::read_link("/proc/thread-self/ns/net").ok()?;
        if own.as_os_str().as_bytes() != namespace {
            return None;
        }
        let listening = diag::listening().ok()?;
        Some(Table(listening.into_iter().filter(|(inode, _)| *inode != 0).collect()))
    }
}

/// The inodes of the sockets that the process at `place` holds.
///
/// # Errors
/// When its descriptors cannot be listed.
pub fn socket_inodes(place: Place<'_>) -> Result<Vec<u64>, Errno> {
    let mut inodes = Vec::new();
    place.for_each_link("fd", |target| {
        let inode = target.strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]"));
        inodes.extend(inode.and_then(super::stat::number::<u64>));
    })?;
    Ok(inodes)
}

fn read_table(
    file: File,
    listening_only: bool,
    table: &mut HashMap<u64, SocketAddr>,
) -> Result<(), Errno> {
    let mut lines = BufReader::with_capacity(16 * 1024, file);
    let mut line = Vec::with_capacity(256);
    let mut heading = true;
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line);
        if read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))? == 0 {
            return Ok(());
        }
        if std::mem::take(&mut heading) {
            continue;
        }
        let Some((local, state, inode)) = fields(&line) else { continue };
        if listening_only && state != LISTEN {
            return Ok(());
        }
        // Sockets that no process holds any more have inode 0.
        if let (Some(address), true) = (address(local), inode != 0) {
            table.insert(inode, address);
        }
    }
}

fn fields(line: &[u8]) -> Option<(&[u8], &[u8], u64)> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let local = words.nth(1)?;
    let state = words.nth(1)?;
    let inode = super::stat::number(words.nth(5)?)?;
    Some((local, state, inode))
}

/// `0100007F:1F90`: each group of eight digits is a word of the address in the machine's order.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = std::str::from_utf8(text).ok()?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    let words = ip.len() / 8;
    if !matches!(words, 1 | 4) || ip.len() % 8 != 0 || !ip.is_ascii() {
        return None;
    }
    for word in 0..words {
        let value = u32::from_str_radix(&ip[word * 8..word * 8 + 8], 16).ok()?;
        bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let ip = if words == 1 {
        IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_words_in_the_machines_order() {
        assert_eq!(address(b"0100007F:1F90"), "127.0.0.1:8080".parse().ok());
        assert_eq!(address(b"00000000000000000000000001000000:0016"), "[::1]:22".parse().ok());
        assert_eq!(address(b"0100007:1F90"), None);
        assert_eq!(address("0100007\u{e9}:1F90".as_bytes()), None);
        assert_eq!(address(b"0100007F"), None);
    }

    #[test]
    fn a_line_of_the_table() {
        let line = b"   0: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1526 1 0 100 0 0 10 0\n";
        assert_eq!(fields(line), Some((&b"00000000:07E8"[..], &b"0A"[..], 1526)));
        assert_eq!(fields(b"  sl  local_address"), None);
    }
}
