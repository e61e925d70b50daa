//! Cgroups that look like those of units, for stories of pauses and units.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// A cgroup of the unified hierarchy that looks like a unit's, with everything that is in it.
pub struct Cgroup {
    slice: PathBuf,
}

impl Cgroup {
    /// `None`, with a word on stderr, where this machine does not let the test make one.
    pub fn new(test: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let mount = line.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let name = format!("vvtest-{}-{test}.slice", std::process::id()).replace('_', "");
        let made = mount.map(|mount| mount.join(name)).filter(|slice| fs::create_dir(slice).is_ok());
        let Some(slice) = made else {
            eprintln!("SKIPPED: {test}: no cgroup of its own on the unified hierarchy");
            return None;
        };
        Some(Self { slice })
    }

    pub fn unit(&self, name: &str) -> PathBuf {
        let dir = self.slice.join(name);
        fs::create_dir_all(&dir).expect("a cgroup");
        dir
    }

    /// Its path below the mount.
    pub fn path_of(&self, name: &str) -> String {
        let slice = self.slice.file_name().and_then(|name| name.to_str()).expect("a name");
        format!("/{slice}/{name}")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for unit in fs::read_dir(&self.slice).into_iter().flatten().flatten() {
            let _ = fs::write(unit.path().join("cgroup.freeze"), "0");
            let begun = Instant::now();
            while fs::remove_dir(unit.path()).is_err() && begun.elapsed() < Duration::from_secs(5) {
                if !unit.path().join("cgroup.procs").exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = fs::remove_dir(&self.slice);
    }
}
