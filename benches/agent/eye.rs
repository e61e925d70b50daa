//! What the kernel itself says: notifications of nftables, and the account of a process.

use std::{
    fs,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, socket_with, sockopt,
    },
};

use super::rig::Namespace;

/// `1 << (NFNLGRP_NFTABLES - 1)`
const GROUPS: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE`, and `…DELTABLE`
const NEW_TABLE: u16 = 10 << 8;
const GONE_TABLE: u16 = NEW_TABLE | 2;

/// Something happened to a table; the kernel says so at the end of the batch that did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    Made,
    Gone,
}

/// Listens to the nftables of a namespace.
pub struct Eye {
    seen: Receiver<(Instant, Seen)>,
    /// The thread behind it ends soon after this.
    _open: Arc<()>,
}

impl Eye {
    pub fn open(namespace: &Namespace) -> Self {
        let socket = namespace.within(|| {
            let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
            let socket =
                socket_with(kind.0, kind.1, kind.2, Some(netlink::NETFILTER)).expect("a socket");
            bind(&socket, &SocketAddrNetlink::new(0, GROUPS)).expect("bound");
            let _ = sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20);
            let timeout = Some(Duration::from_millis(500));
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, timeout).expect("a timeout");
            socket
        });
        let (sender, seen) = channel();
        let open = Arc::new(());
        let opened = Arc::downgrade(&open);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while opened.upgrade().is_some() {
                match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                    Ok((length, _)) => {
                        let now = Instant::now();
                        for seen in read(&buffer[..length]) {
                            let _ = sender.send((now, seen));
                        }
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => panic!("notifications of nftables: {error}"),
                }
            }
        });
        Self { seen, _open: open }
    }

    /// Forgets what was seen so far.
    pub fn clear(&self) {
        while self.seen.try_recv().is_ok() {}
    }

    /// When the `count`th of these was seen from now on.
    pub fn until(&self, wanted: Seen, count: usize) -> Instant {
        let mut left = count;
        loop {
            let (at, seen) = self.seen.recv_timeout(Duration::from_secs(30)).expect("a notification");
            left -= usize::from(seen == wanted);
            if left == 0 {
                return at;
            }
        }
    }
}

fn read(mut bytes: &[u8]) -> Vec<Seen> {
    let mut found = Vec::new();
    while let Some(header) = bytes.get(..16) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NEW_TABLE => found.push(Seen::Made),
            GONE_TABLE => found.push(Seen::Gone),
            _ => {}
        }
        bytes = bytes.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The share of memory that is a process's own, proportionally, in KiB: `Pss` and what of it is anonymous.
pub fn memory(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    (field(&text, "Pss:"), field(&text, "Pss_Anon:"))
}

/// Voluntary context switches, CPU nanoseconds and number of all threads of a process.
pub fn effort(pid: u32) -> (u64, u64, usize) {
    let (mut switches, mut nanos, mut threads) = (0, 0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        switches += field(&read("status"), "voluntary_ctxt_switches:");
        nanos += read("schedstat").split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        threads += 1;
    }
    (switches, nanos, threads)
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
