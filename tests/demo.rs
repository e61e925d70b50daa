//! `vervet demo` to its end: as root, and as a user without any privilege; nothing stays behind.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Less than the two minutes that a newcomer was promised.
const MOST: Duration = Duration::from_secs(115);

/// An unprivileged user of every system: nobody.
const NOBODY: u32 = 65534;

#[test]
fn the_demo_keeps_its_promises_as_root() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("the_demo_keeps_its_promises_as_root", "not root");
    }
    plays(None);
}

#[test]
fn the_demo_keeps_its_promises_without_root() {
    let name = "the_demo_keeps_its_promises_without_root";
    let uid = if nix::unistd::geteuid().is_root() { Some(NOBODY) } else { None };
    if let Some(why) = no_user_namespace(uid) {
        return skipped(name, &why);
    }
    plays(uid);
}

#[test]
fn where_namespaces_are_not_allowed_the_demo_says_what_to_do() {
    let name = "where_namespaces_are_not_allowed_the_demo_says_what_to_do";
    if let Some(why) = no_user_namespace(None) {
        return skipped(name, &why);
    }
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    // The limit belongs to the user namespace that the test makes; the host's stays as it is.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && \
                  exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" demo --out \"$1\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", script, env!("CARGO_BIN_EXE_vervet")])
        .arg(dir.path())
        .output()
        .expect("starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("sysctl -w user.max_user_namespaces=") && error.contains("as root"),
        "{error}"
    );
}

fn plays(uid: Option<u32>) {
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    let program = copy_for_everybody(dir.path());
    let out = dir.path().join("reports");
    fs::create_dir(&out).expect("made");
    if let Some(uid) = uid {
        std::os::unix::fs::chown(&out, Some(uid), Some(uid)).expect("given");
    }
    let before = seen_of_the_host();
    let mut command = Command::new(&program);
    command.args(["demo", "--fast", "--no-color", "--out"]).arg(&out).stdin(Stdio::null());
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let begun = Instant::now();
    let output = command.output().expect("starts");
    let (told, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(out.join("agent.log")).unwrap_or_default();
    assert_eq!(output.status.code(), Some(0), "{told}\n{error}\n{log}");
    assert!(begun.elapsed() < MOST, "it took {:?}", begun.elapsed());
    for line in told.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    let report = fs::read_to_string(out.join("report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let acts = report["acts"].as_array().expect("acts");
    assert_eq!(acts.len(), 9);
    for act in acts {
        assert_ne!(act["outcome"], "broken", "{act:#}");
        if act["outcome"] == "skipped" {
            skipped("an act of the demo", act["text"].as_str().unwrap_or_default());
        }
    }
    // These need nothing but namespaces.
    for at in [0, 1, 2, 3, 8] {
        assert_eq!(acts[at]["outcome"], "kept", "{:#}", acts[at]);
    }
    assert!(!log.is_empty(), "the agent's log is kept");
    assert_no_process_of(&program);
    assert_eq!(seen_of_the_host(), before, "links and mounts of the host");
}

#[test]
fn when_the_demo_is_killed_everything_in_it_dies() {
    let uid = if nix::unistd::geteuid().is_root() { None } else { no_user_namespace(None) };
    if let Some(why) = uid {
        return skipped("when_the_demo_is_killed_everything_in_it_dies", &why);
    }
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    let program = copy_for_everybody(dir.path());
    let before = seen_of_the_host();
    let mut demo = Command::new(&program)
        .args(["demo", "--fast", "--out"])
        .arg(dir.path().join("reports"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let told = std::io::BufReader::new(demo.stdout.take().expect("piped"));
    // Until the first act has begun: everything runs by then.
    let begun = std::io::BufRead::lines(told).map_while(Result::ok).any(|line| line.starts_with("2. "));
    assert!(begun, "the demo never began");
    demo.kill().expect("killed");
    demo.wait().expect("ended");
    assert_no_process_of(&program);
    assert_eq!(seen_of_the_host(), before);
}

/// The programs of processes are links in /proc; the copy is this test's alone.
fn assert_no_process_of(program: &Path) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left = processes_of(program);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "processes are left: {left:?}");
        std::thread::yield_now();
    }
}

fn processes_of(program: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("a process table").filter_map(Result::ok);
    entries
        .filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Links and places of mounts, less the network namespaces that other tests make and remove.
fn seen_of_the_host() -> (Vec<String>, Vec<String>) {
    let text = fs::read_to_string("/proc/net/dev").expect("links");
    let links =
        text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    let links = links.filter(|name| !name.starts_with("vvtest")).collect();
    let text = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let mounts = text.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned);
    (links, mounts.filter(|place| !place.starts_with("/run/netns")).collect())
}

fn copy_for_everybody(dir: &Path) -> std::path::PathBuf {
    let program = dir.join("vervet-under-test");
    fs::copy(env!("CARGO_BIN_EXE_vervet"), &program).expect("copied");
    for path in [dir, program.as_path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    program
}

/// Why this user can have no namespaces; asked with the system's own tool.
fn no_user_namespace(uid: Option<u32>) -> Option<String> {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "true"]);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    match command.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

fn skipped(name: &str, why: &str) {
    eprintln!("SKIPPED: {name}: {why}");
}
