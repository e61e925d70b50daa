//! The stocks of a host, real and faked.

#[path = "process_support/mod.rs"]
mod support;

use std::{fs, path::Path};

use support::{Fake, real};
use vervet::host::Stock;

fn stocked() -> Fake {
    let fake = Fake::new();
    let put = |path: &str, content: &str| put(fake.root(), path, content);
    put("meminfo", "MemTotal:       1000 kB\nMemFree:        100 kB\nMemAvailable:    400 kB\n");
    put("loadavg", "0.00 0.01 0.05 2/130 4711\n");
    put("sys/kernel/pid_max", "32768\n");
    put("sys/kernel/threads-max", "1000\n");
    put("sys/fs/file-nr", "700\t100\t5000\n");
    fake
}

fn put(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("parent")).expect("directory");
    fs::write(path, content).expect("file");
}

#[test]
fn figures_are_read_as_the_kernel_documents_them() {
    let fake = stocked();
    let headroom = fake.processes().headroom().expect("headroom");
    assert_eq!(headroom.memory, Some(Stock { free: 400 << 10, total: 1000 << 10 }));
    assert_eq!(headroom.pids, Some(Stock { free: 870, total: 1000 }));
    assert_eq!(headroom.file_handles, Some(Stock { free: 4400, total: 5000 }));
    assert_eq!(headroom.conntrack, None, "not in use");
    put(fake.root(), "sys/net/netfilter/nf_conntrack_count", "30\n");
    put(fake.root(), "sys/net/netfilter/nf_conntrack_max", "100\n");
    let headroom = fake.processes().headroom().expect("headroom");
    assert_eq!(headroom.conntrack, Some(Stock { free: 70, total: 100 }));
}

#[test]
fn the_tightest_cgroup_counts() {
    let fake = stocked();
    let mount = fake.root().join("cg");
    put(fake.root(), "self/cgroup", "3:pids:/a/b\n0::/\n");
    let mounts =
        format!("30 23 0:26 / {} rw,nosuid shared:5 - cgroup cgroup rw,pids\n", mount.display());
    put(fake.root(), "self/mountinfo", &mounts);
    put(&mount, "a/b/pids.max", "max\n");
    put(&mount, "a/b/pids.current", "1\n");
    put(&mount, "a/pids.max", "50\n");
    put(&mount, "a/pids.current", "20\n");
    let headroom = fake.processes().headroom().expect("headroom");
    assert_eq!(headroom.pids, Some(Stock { free: 30, total: 50 }));
}

#[test]
fn what_cannot_be_read_is_an_error_and_not_absent() {
    for (file, content) in [
        ("meminfo", "MemTotal: 1000 kB\n"),
        ("loadavg", "0.0 0.0\n"),
        ("sys/fs/file-nr", "x\n"),
        ("sys/kernel/pid_max", ""),
    ] {
        let fake = stocked();
        put(fake.root(), file, content);
        assert!(fake.processes().headroom().is_err(), "{file}");
        fs::remove_file(fake.root().join(file)).expect("removed");
        assert!(fake.processes().headroom().is_err(), "{file} missing");
    }
}

#[test]
fn this_host_has_some_of_each() {
    let headroom = real().headroom().expect("headroom");
    for stock in [headroom.memory, headroom.pids, headroom.file_handles] {
        let stock = stock.expect("a stock");
        assert!(stock.free > 0 && stock.free <= stock.total, "{stock:?}");
    }
}
