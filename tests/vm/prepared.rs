//! Guests that were put to sleep once, so that every story wakes the same host in two seconds.
//!
//! `booted` has systemd up and nothing of vervet; `installed` is that with the package, as `apt` left it.
//! Both are kept below `$CARGO_TARGET_DIR/vm/` by a hash of all that goes in, made under a lock by whichever
//! story comes first, and never written again: machines write to overlays of their own.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

use crate::{
    guest::Guest,
    machine::{Machine, Source},
};

/// Everything here decides what is put to sleep.
const MAKERS: [&str; 3] =
    [include_str!("prepared.rs"), include_str!("machine.rs"), include_str!("qmp.rs")];

/// Tools of the guest, for looking at it from outside of vervet. Found in /opt/test.
const TOOLS: [(&str, &str); 4] = [
    ("gone.py", include_str!("guest/gone.py")),
    ("state.py", include_str!("guest/state.py")),
    ("net.py", include_str!("guest/net.py")),
    ("watch.py", include_str!("guest/watch.py")),
];
/// Where the package lies in the guest.
pub const PACKAGE: &str = "/root/vervet.deb";

/// How far the host has come when a story begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// systemd is up. The package lies at [`PACKAGE`].
    Booted,
    /// `apt-get install` has installed it, and changed nothing since.
    Installed,
}

/// A guest at this stage; `None` and why where this machine cannot have one.
pub fn guest(stage: Stage) -> Result<Guest, Absent> {
    let vm = target().join("vm");
    let base = fs::canonicalize(vm.join("base"))
        .map_err(|_| Absent::Cannot("there is no image; tests/vm/image says why".to_owned()))?;
    for tool in ["qemu-system-x86_64", "qemu-img", "setpriv"] {
        let found = Command::new(tool).arg("--version").output().is_ok();
        found.then_some(()).ok_or_else(|| Absent::Cannot(format!("{tool} is missing")))?;
    }
    let package = package()?;
    let source = prepared(&vm, &base, &package, stage).map_err(Absent::Broken)?;
    Guest::start(&source).map_err(Absent::Broken)
}

/// Why there is no guest.
#[derive(Debug)]
pub enum Absent {
    /// This machine cannot have one.
    Cannot(String),
    /// It should have been there.
    Broken(String),
}

/// The directory that cargo builds in.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a parent").to_owned()
}

/// The newest package that was built.
fn package() -> Result<PathBuf, Absent> {
    let none = || Absent::Cannot("no package was built; packaging/build does".to_owned());
    let entries = fs::read_dir(target().join("package")).map_err(|_| none())?;
    let debs = entries.flatten().filter(|entry| {
        let (path, name) = (entry.path(), entry.file_name());
        name.to_string_lossy().starts_with("vervet_")
            && path.extension().is_some_and(|kind| kind == "deb")
    });
    let modified = |entry: &fs::DirEntry| entry.metadata().and_then(|data| data.modified()).ok();
    debs.max_by_key(modified).map(|entry| entry.path()).ok_or_else(none)
}

/// Where to wake a guest at this stage; puts one to sleep if there is none yet.
fn prepared(vm: &Path, base: &Path, package: &Path, stage: Stage) -> Result<Source, String> {
    let file = File::create(vm.join("prepare.lock")).map_err(|error| format!("a lock: {error}"))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.to_string())?;
    let boot = Source { base: base.to_owned(), disk: base.join("disk.qcow2"), memory: None };
    let image = base.file_name().unwrap_or_default().as_encoded_bytes();
    let mut hash = Sha256::new();
    MAKERS.iter().chain(TOOLS.iter().map(|(_, text)| text)).for_each(|text| hash.update(text));
    hash.update(image);
    hash.update(bytes(package)?);
    let key = hash.finalize().iter().take(8).fold(String::new(), |key, byte| format!("{key}{byte:02x}"));
    let booted = make(vm, &format!("booted-{key}"), &boot, |guest| {
        guest.up();
        // polkit starts when somebody who is not root first asks systemd for something: not in a story.
        guest.check("mkdir -p /opt/test && systemctl is-active dbus && systemctl start polkit");
        for (name, text) in TOOLS {
            guest.write_file(&format!("/opt/test/{name}"), text);
        }
        guest.check("chmod 0755 /opt/test/* && sync");
        guest.send_file(package, PACKAGE)
    })?;
    if stage == Stage::Booted {
        return Ok(booted);
    }
    make(vm, &format!("installed-{key}"), &booted, |guest| {
        guest.check(&format!("apt-get install -y {PACKAGE} && sync"));
        guest.wait_for("the service is active", 60, "systemctl is-active vervet");
        Ok(())
    })
}

/// A guest asleep under this name, made by `prepare` from another one unless it is there.
fn make(
    vm: &Path,
    name: &str,
    from: &Source,
    prepare: impl FnOnce(&mut Guest) -> Result<(), String>,
) -> Result<Source, String> {
    let (dir, kind) = (vm.join(name), name.split('-').next().unwrap_or(name));
    let source = Source {
        base: from.base.clone(),
        disk: dir.join("disk.qcow2"),
        memory: Some(dir.join("memory")),
    };
    if dir.join("memory").exists() {
        return Ok(source);
    }
    // Who was killed over it left its work behind; nobody else is at it, for we hold the lock.
    forget(vm, "falling-asleep-")?;
    let work =
        tempfile::Builder::new().prefix("falling-asleep-").tempdir_in(vm).map_err(|e| e.to_string())?;
    let sockets = tempfile::tempdir().map_err(|error| error.to_string())?;
    let machine = Machine::start_on(from, &work.path().join("disk.qcow2"), sockets.path())?;
    let mut guest = Guest::on(machine)?;
    prepare(&mut guest)?;
    guest.sleep(&work.path().join("memory"))?;
    forget(vm, &format!("{kind}-"))?;
    fs::rename(work.keep(), &dir).map_err(|error| format!("keep {name}: {error}"))?;
    Ok(source)
}

/// What was made of something else before is of no use any more.
fn forget(vm: &Path, prefix: &str) -> Result<(), String> {
    for entry in fs::read_dir(vm).map_err(|error| error.to_string())?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_dir_all(entry.path()).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("{}: {error}", path.display()))
}
