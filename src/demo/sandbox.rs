//! The outer process: makes the namespaces, spawns the stage into them, waits.
//!
//! Runs before any other thread exists, as user namespaces demand it. Holds the write end of the
//! stage's standard input for as long as it lives: when that breaks, the stage ends, and with it
//! (it is pid 1 of its namespace) everything else in there.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};

use crate::cli::{Failure, Outcome, args::Demo, exit::Exit, ui::Ui};

const PRIVATE: CloneFlags =
    CloneFlags::CLONE_NEWNET.union(CloneFlags::CLONE_NEWPID).union(CloneFlags::CLONE_NEWNS);

/// Plays the demo in a sandbox of its own; its outcome is the exit code.
///
/// # Errors
/// When there can be no sandbox, or no directory for the reports.
pub fn enter(args: &Demo, ui: &Ui) -> Outcome {
    let out = out_dir(args.out.as_deref())?;
    let program = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("failed to find this program: {error}")))?;
    make_namespaces()?;
    let mut command = Command::new(program);
    command.args(["demo-part", "stage", "--out"]).arg(&out);
    command.args(["--color", if ui.style.color { "always" } else { "never" }]);
    if args.fast {
        command.arg("--fast");
    }
    let mut stage = command
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::failed(format!("failed to enter the sandbox: {error}")))?;
    // Never closed by hand: `wait` would close it first, and the stage lives as long as it is open.
    let lifeline = stage.stdin.take();
    let status = stage
        .wait()
        .map_err(|error| Failure::failed(format!("failed to wait for the sandbox: {error}")))?;
    drop(lifeline);
    match status.code() {
        Some(0) => Ok(Exit::Passed),
        Some(_) => Ok(Exit::Failed),
        None => Err(Failure::failed(format!("the sandbox ended early: {status}"))),
    }
}

/// As root without a user namespace, where that is possible: device nodes stay usable then.
fn make_namespaces() -> Result<(), Failure> {
    if geteuid().is_root() && unshare(PRIVATE).is_ok() {
        return Ok(());
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(PRIVATE | CloneFlags::CLONE_NEWUSER).map_err(not_allowed)?;
    let map = |file: &str, text: String| {
        fs::write(file, text).map_err(|error| {
            Failure::failed(format!("failed to write {file}: {error}\n{}", how_to_allow()))
        })
    };
    // user_namespaces(7): without it, an unprivileged process may not map its group.
    map("/proc/self/setgroups", "deny".to_owned())?;
    map("/proc/self/uid_map", format!("0 {uid} 1"))?;
    map("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn not_allowed(error: Errno) -> Failure {
    Failure::failed(format!("no private namespaces here: {}\n{}", error.desc(), how_to_allow()))
}

/// What stands in the way of user namespaces on this host, and what to do about it.
pub(super) fn how_to_allow() -> String {
    let knobs = [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    let closed: Vec<&str> = knobs
        .into_iter()
        .filter(|(file, bad, _)| fs::read_to_string(file).is_ok_and(|text| text.trim() == *bad))
        .map(|(_, _, fix)| fix)
        .collect();
    if closed.is_empty() {
        "help: run it as root; in a container, with the privilege to make namespaces".to_owned()
    } else {
        format!("help: run it as root, or allow it: sysctl -w {}", closed.join(" "))
    }
}

/// An absolute path to an existing directory that this user can write.
fn out_dir(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    let made = |path: &Path| -> io::Result<PathBuf> {
        fs::create_dir_all(path)?;
        let path = path.canonicalize()?;
        rustix::fs::access(&path, rustix::fs::Access::WRITE_OK)?;
        Ok(path)
    };
    if let Some(path) = asked {
        return made(path).map_err(|error| {
            Failure::usage(format!("failed to write to --out {}: {error}", path.display()))
        });
    }
    if let Ok(path) = made(Path::new("vervet-demo")) {
        return Ok(path);
    }
    // Made by this process and nobody else: a name in a shared directory can be taken by others.
    let path = std::env::temp_dir().join(format!("vervet-demo-{}", std::process::id()));
    fs::create_dir(&path).and_then(|()| path.canonicalize()).map_err(|error| {
        Failure::failed(format!(
            "failed to make a directory for the reports, here or as {}: {error}; name one with --out DIR",
            path.display()
        ))
    })
}
