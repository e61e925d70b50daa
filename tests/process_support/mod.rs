//! Shared by the tests of processes and probes: children that cannot outlive their test, and a
//! /proc made of files.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::sync::mpsc::UnboundedReceiver;
use vervet::{
    host::{ProcessId, linux::process::Processes},
    probe::monitor::Observation,
};

/// How long an observation may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The first observation for which `choose` gives something.
pub async fn observed<T>(
    seen: &mut UnboundedReceiver<Observation>,
    choose: impl Fn(Observation) -> Option<T>,
) -> T {
    let search = async {
        loop {
            if let Some(chosen) = choose(seen.recv().await.expect("monitors live")) {
                return chosen;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("an observation")
}

/// A child that is killed by pid, and reaped, when the test lets go of it.
pub struct Kid(pub Child);

impl Kid {
    /// `sleep` under a name of the test's own choice (its `argv[0]` and, by a copy, its comm).
    pub fn sleeper(tag: &str) -> Self {
        Self::spawn(Command::new("/usr/bin/sleep").arg0(tag).arg("600"))
    }

    pub fn spawn(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a child");
        // In the middle of exec a process has its new program but no command line yet.
        let (own, id) = (fs::read_link("/proc/self/exe").expect("exe"), child.id());
        while fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|exe| exe == own)
            || fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|arguments| arguments.is_empty())
        {
            std::thread::yield_now();
        }
        Self(child)
    }

    pub fn id(&self) -> ProcessId {
        real().identify(self.0.id()).expect("identify").expect("alive")
    }

    pub fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Kid {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn real() -> Processes {
    Processes::new(Path::new("/proc")).expect("/proc")
}

/// A tree that looks like /proc.
pub struct Fake {
    pub dir: tempfile::TempDir,
}

impl Fake {
    pub fn new() -> Self {
        let fake = Self { dir: tempfile::tempdir().expect("a directory") };
        fs::create_dir_all(fake.root().join("self/ns")).expect("self");
        symlink("net:[1]", fake.root().join("self/ns/net")).expect("link");
        symlink("/bin/agent", fake.root().join("self/exe")).expect("link");
        fake
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn processes(&self) -> Processes {
        Processes::new(self.root()).expect("a tree")
    }

    /// A process with everything that is usually there.
    pub fn add(&self, pid: u32, comm: &str, cmdline: &str) -> PathBuf {
        self.add_raw(pid, comm, 'S', 0, 1000 + u64::from(pid), cmdline)
    }

    pub fn add_raw(
        &self,
        pid: u32,
        comm: &str,
        state: char,
        flags: u32,
        start: u64,
        cmdline: &str,
    ) -> PathBuf {
        let dir = self.root().join(pid.to_string());
        fs::create_dir_all(dir.join("fd")).expect("fd");
        fs::create_dir_all(dir.join("ns")).expect("ns");
        fs::create_dir_all(dir.join("net")).expect("net");
        let content =
            format!("{pid} ({comm}) {state} 1 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0\n");
        fs::write(dir.join("stat"), content).expect("stat");
        fs::write(dir.join("cmdline"), cmdline.replace(' ', "\0") + "\0").expect("cmdline");
        fs::write(dir.join("status"), "Name:\tx\nUid:\t1000\t0\t0\t0\n").expect("status");
        fs::write(dir.join("cgroup"), "1:name=systemd:/x\n0::/system.slice/a.service\n")
            .expect("cgroup");
        symlink("/usr/bin/thing", dir.join("exe")).expect("exe");
        symlink("net:[1]", dir.join("ns/net")).expect("ns");
        fs::write(dir.join("net/tcp"), TCP_HEAD).expect("tcp");
        dir
    }
}

pub const TCP_HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when \
                            retrnsmt   uid  timeout inode\n";
