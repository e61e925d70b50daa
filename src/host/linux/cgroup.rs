//! The freezer of cgroup v2: all of a cgroup stops and goes on at once, without a signal.
//!
//! Plain files below the cgroup2 mount. The service manager is not asked: what undoes a freeze must
//! not depend on it. A cgroup is told from a later one of its path by the number of its directory,
//! which the kernel gives out once. Source: Documentation/admin-guide/cgroup-v2.rst, "cgroup.freeze".

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags, openat},
};

use crate::host::{Freezer, HostError};

/// How long thawed processes may take to go on, as far as this waits for it.
const THAW_WITHIN: Duration = Duration::from_millis(500);

/// The cgroup2 mount of this host.
#[derive(Debug)]
pub struct Cgroups {
    mount: Option<PathBuf>,
}

impl Cgroups {
    /// Finds the mount in `mountinfo`: /proc/self/mountinfo but for tests.
    #[must_use]
    pub fn new(mountinfo: &Path) -> Self {
        let text = fs::read_to_string(mountinfo).unwrap_or_default();
        Self { mount: text.lines().find_map(cgroup2_mount) }
    }

    /// Whether there is a freezer; says what is missing.
    ///
    /// # Errors
    /// When there is none.
    pub fn check(&self) -> Result<(), HostError> {
        let mount = self.mount()?;
        // The root has no freezer of its own, but every cgroup below it has.
        let entries = fs::read_dir(mount).map_err(|error| kernel("list the cgroups", &error))?;
        let mut below = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        match below.next() {
            Some(path) if !path.join("cgroup.freeze").exists() => Err(no_freezer()),
            // access(2) would answer without the capabilities that the agent has.
            Some(path) => File::options()
                .write(true)
                .open(path.join("cgroup.freeze"))
                .map_or_else(|error| Err(kernel("freeze units", &error)), |_| Ok(())),
            None => Ok(()),
        }
    }

    /// The freezer of a cgroup; `None` when the cgroup is gone.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn freezer(&self, cgroup: &str) -> Result<Option<Freezer>, HostError> {
        let doing = || format!("look at the freezer of {cgroup}");
        let Some(place) = self.open(cgroup).map_err(|error| widen(&doing(), error))? else {
            return Ok(None);
        };
        let read = || -> std::io::Result<Freezer> {
            Ok(Freezer {
                id: place.id,
                asked: place.read("cgroup.freeze")?.trim() == "1",
                frozen: is_frozen(&place.read("cgroup.events")?),
            })
        };
        match read() {
            Ok(freezer) => Ok(Some(freezer)),
            Err(error) if is_gone(&error) => {
                if place.still_there() {
                    Err(no_freezer())
                } else {
                    Ok(None)
                }
            }
            Err(error) => Err(kernel(&doing(), &error)),
        }
    }

    /// Tells exactly this cgroup to freeze.
    ///
    /// # Errors
    /// When it is gone, another one by now, or not this user's to change.
    pub fn freeze(&self, cgroup: &str, id: u64) -> Result<(), HostError> {
        let doing = format!("freeze {cgroup}");
        let changed = || HostError::NotFound(format!("{cgroup} has changed since the plan"));
        let place = self.open(cgroup).map_err(|error| widen(&doing, error))?;
        let place = place.filter(|place| place.id == id).ok_or_else(changed)?;
        match place.write("cgroup.freeze", "1") {
            Err(error) if is_gone(&error) => Err(changed()),
            written => written.map_err(|error| kernel(&doing, &error)),
        }
    }

    /// Lets exactly this cgroup go on. Gone, replaced by another or thawed already is success.
    ///
    /// # Errors
    /// When it does not, or is not this user's to change.
    pub fn thaw(&self, cgroup: &str, id: u64) -> Result<(), HostError> {
        let doing = format!("thaw {cgroup}");
        let place = self.open(cgroup).map_err(|error| widen(&doing, error))?;
        let Some(place) = place.filter(|place| place.id == id) else { return Ok(()) };
        let thaw = || -> std::io::Result<()> {
            if place.read("cgroup.freeze")?.trim() == "1" {
                place.write("cgroup.freeze", "0")?;
                place.wait_until_thawed();
            }
            Ok(())
        };
        match thaw() {
            Err(error) if is_gone(&error) => Ok(()),
            thawed => thawed.map_err(|error| kernel(&doing, &error)),
        }
    }

    fn mount(&self) -> Result<&Path, HostError> {
        self.mount.as_deref().ok_or_else(|| {
            HostError::Unavailable(
                "there is no cgroup2 mount; boot with systemd.unified_cgroup_hierarchy=1, or pause \
                 processes instead of units"
                    .to_owned(),
            )
        })
    }

    fn open(&self, cgroup: &str) -> Result<Option<Place>, HostError> {
        let path = self.mount()?.join(cgroup.trim_matches('/'));
        let plain = cgroup.split('/').all(|part| part != "..");
        if !plain || cgroup.trim_matches('/').is_empty() {
            return Err(HostError::NotFound(format!("`{cgroup}` is not the path of a cgroup")));
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NOFOLLOW;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => {
                let dir = File::from(fd);
                let id = dir.metadata().map_err(|error| kernel("open the cgroup", &error))?.ino();
                Ok(Some(Place { dir, id }))
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(kernel("open the cgroup", &error.into())),
        }
    }
}

/// One cgroup, by a descriptor of its directory: whatever is made under its name later is not it.
struct Place {
    dir: File,
    id: u64,
}

impl Place {
    fn file(&self, name: &str, flags: OFlags) -> std::io::Result<File> {
        Ok(File::from(openat(&self.dir, name, flags | OFlags::CLOEXEC, Mode::empty())?))
    }

    fn read(&self, name: &str) -> std::io::Result<String> {
        let mut text = String::new();
        self.file(name, OFlags::RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(&self, name: &str, text: &str) -> std::io::Result<()> {
        self.file(name, OFlags::WRONLY)?.write_all(text.as_bytes())
    }

    /// A removed directory has no links.
    fn still_there(&self) -> bool {
        self.dir.metadata().is_ok_and(|meta| meta.nlink() > 0) && self.read("cgroup.procs").is_ok()
    }

    /// Each change of `cgroup.events` is an exceptional condition, poll(2). An ancestor that is
    /// frozen keeps it as it is, which is not for this to change.
    fn wait_until_thawed(&self) {
        let Ok(mut events) = self.file("cgroup.events", OFlags::RDONLY) else { return };
        let until = Instant::now() + THAW_WITHIN;
        loop {
            let mut text = String::new();
            use std::io::Seek as _;
            if events.rewind().and_then(|()| events.read_to_string(&mut text)).is_err()
                || !is_frozen(&text)
            {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            let Ok(left) = Timespec::try_from(left) else { return };
            let mut polled = [PollFd::new(&events, PollFlags::PRI)];
            if !poll(&mut polled, Some(&left)).is_ok_and(|count| count > 0) {
                return;
            }
        }
    }
}

fn is_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// NODEV is what kernfs says of a file whose cgroup has been removed.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn no_freezer() -> HostError {
    HostError::Unavailable(
        "this kernel's cgroups have no freezer; version 5.2 or later is needed".to_owned(),
    )
}

fn kernel(doing: &str, error: &std::io::Error) -> HostError {
    if error.kind() == ErrorKind::PermissionDenied {
        return HostError::Unavailable(format!(
            "vervet is not permitted to {doing}: cgroup.freeze belongs to root; run the agent as root, or \
             give it CAP_DAC_OVERRIDE"
        ));
    }
    HostError::Kernel { doing: doing.to_owned(), error: error.to_string() }
}

fn widen(doing: &str, error: HostError) -> HostError {
    match error {
        HostError::Kernel { error, .. } => HostError::Kernel { doing: doing.to_owned(), error },
        other => other,
    }
}

/// The mount point in a line of mountinfo if its filesystem is cgroup2, proc_pid_mountinfo(5).
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    (kind.split(' ').next() == Some("cgroup2")).then_some(())?;
    let point = mount.split(' ').nth(4)?;
    Some(PathBuf::from(point.replace("\\040", " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_both_layouts() {
        let hybrid = "42 29 0:37 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let legacy = "35 30 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids";
        assert_eq!(cgroup2_mount(legacy), None);
        assert_eq!(cgroup2_mount("nonsense"), None);
    }
}
