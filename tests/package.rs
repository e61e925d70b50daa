//! What is installed: the maintainer scripts, the Debian package, the static binary.
//!
//! The scripts run for real, in an empty root of the test's and with recorders in the place of what
//! they call; the package and the archive are looked at where they were built (`packaging/build`,
//! `packaging/static`). Nothing is installed on this host.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// An empty root with a booted systemd, as far as a maintainer script can see.
struct Root {
    dir: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().expect("a directory") };
        for path in ["run/systemd/system", "run/vervet", "etc/vervet", "var/lib/vervet", "bin"] {
            fs::create_dir_all(this.path(path)).expect("made");
        }
        for path in ["etc/vervet/vervet.toml", "var/lib/vervet/vervet.db"] {
            fs::write(this.path(path), "").expect("written");
        }
        for program in ["systemctl", "deb-systemd-invoke", "systemd-sysusers", "systemd-tmpfiles"] {
            this.program(program, 0);
        }
        this.program("deb-systemd-helper", 0);
        this.program("vervet", 0);
        this
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Something that writes down how it was called, and ends with `status`.
    fn program(&self, name: &str, status: i32) {
        let path = self.path("bin").join(name);
        let log = self.path("calls");
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>{}\nexit {status}\n", log.display());
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("made a program");
    }

    /// Runs a script as dpkg would: with the shell that its first line names.
    fn run(&self, script: &str, args: &[&str]) -> Output {
        let _ = fs::remove_file(self.path("calls"));
        Command::new("sh")
            .arg(Path::new("packaging/debian").join(script))
            .args(args)
            .env("DPKG_ROOT", self.dir.path())
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()))
            .env_remove("VERVET_UPGRADE_ANYWAY")
            .output()
            .expect("starts")
    }

    /// What was called in turn.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn called(&self, what: &str) -> Option<usize> {
        self.calls().iter().position(|call| call.contains(what))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_upgrade_reverts_before_anything_is_replaced() {
    let root = Root::new();
    for step in [["upgrade", "0.2.0"].as_slice(), &["remove"], &["deconfigure"]] {
        let output = root.run("prerm", step);
        assert!(output.status.success(), "{step:?}: {}", said(&output));
        let stopped = root.called("deb-systemd-invoke stop vervet.service").expect("stopped");
        let recovered = root.called("vervet recover --config").expect("recovered");
        assert!(stopped < recovered, "{:?}", root.calls());
    }
}

#[test]
fn an_upgrade_stops_where_something_is_stuck() {
    let root = Root::new();
    // 6: stuck; 7: an agent that nobody stopped still has the journal.
    for status in [6, 7, 1] {
        root.program("vervet", status);
        // The new package's script is asked when the old one's has failed: it says no, too.
        for step in [["upgrade", "0.2.0"].as_slice(), &["failed-upgrade", "0.1.0"], &["remove"]] {
            let output = root.run("prerm", step);
            assert!(!output.status.success(), "{step:?} with {status}");
            assert!(said(&output).contains("could not be undone"), "{}", said(&output));
        }
    }
    // dpkg then asks the old one to go on as it was.
    let output = root.run("postinst", &["abort-upgrade", "0.2.0"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(root.called("deb-systemd-invoke start vervet.service").is_some(), "{:?}", root.calls());

    // A policy that was never valid, and no journal: nothing to undo is in nobody's way.
    root.program("vervet", 2);
    assert!(root.run("prerm", &["remove"]).status.success());
}

#[test]
fn a_service_that_somebody_stopped_stays_stopped_after_an_upgrade() {
    let root = Root::new();
    let install = |root: &Root| {
        assert!(root.run("postinst", &["configure", "0.1.0"]).status.success());
        root.called("deb-systemd-invoke start vervet.service").is_some()
    };
    assert!(install(&root), "a fresh install starts it");
    assert!(root.run("prerm", &["upgrade", "0.2.0"]).status.success());
    assert!(install(&root), "it ran before");
    root.program("systemctl", 3);
    assert!(root.run("prerm", &["upgrade", "0.3.0"]).status.success());
    assert!(!install(&root), "it was stopped before");
    assert!(install(&root), "and that is forgotten");
}

#[test]
fn a_purge_leaves_nothing() {
    let root = Root::new();
    assert!(root.run("postrm", &["remove"]).status.success());
    assert!(root.path("var/lib/vervet/vervet.db").exists(), "a removal keeps the history");
    assert!(root.run("postrm", &["purge"]).status.success());
    for path in ["etc/vervet", "var/lib/vervet", "run/vervet"] {
        assert!(!root.path(path).exists(), "{path}");
    }
}

#[test]
fn what_is_packaged_is_valid() {
    let policy = fs::read_to_string("systemd/vervet.toml").expect("the policy");
    assert!(policy.lines().any(|line| line == "leashed = true"), "a fresh install is leashed");
    let rules = fs::read_to_string("systemd/polkit.rules").expect("the rules");
    for verb in ["start", "stop", "restart", "freeze", "thaw"] {
        assert!(rules.contains(&format!("\"{verb}\"")), "{verb}");
    }
    // The drop-in gives what the unit lacks, and the unit lacks it.
    let unit = fs::read_to_string("systemd/vervet.service").expect("the unit");
    let capabilities: Vec<&str> =
        unit.lines().filter(|line| line.contains("Capabilit") && !line.starts_with('#')).collect();
    assert_eq!(capabilities.len(), 2, "{capabilities:?}");
    assert!(!capabilities.iter().any(|line| line.contains("SYS_ADMIN")), "{capabilities:?}");
    let (bounding, ambient) = (capabilities[0], capabilities[1]);
    assert_eq!(bounding.split_once('=').expect("a list").1, ambient.split_once('=').expect("a list").1);
}

/// What was built last of this name, next to the binaries of the tests.
fn built(test: &str, ends: &str, how: &str) -> Option<PathBuf> {
    let target =
        Path::new(env!("CARGO_BIN_EXE_vervet")).ancestors().nth(2).expect("the target directory");
    let found = fs::read_dir(target.join("package")).into_iter().flatten().flatten();
    let found = found.map(|entry| entry.path());
    let newest = found
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(ends)))
        .max_by_key(|path| fs::metadata(path).and_then(|file| file.modified()).ok());
    if newest.is_none() {
        eprintln!("SKIPPED: {test}: {how} has not been run");
    }
    newest
}

#[test]
fn the_package_has_all_its_parts() {
    let Some(package) = built("the_package_has_all_its_parts", ".deb", "packaging/build") else {
        return;
    };
    let dpkg = |args: &[&str]| {
        let output =
            Command::new("dpkg-deb").args(args).arg(&package).output().expect("dpkg-deb starts");
        String::from_utf8(output.stdout).expect("text")
    };
    let list = dpkg(&["--contents"]);
    for path in [
        "/usr/bin/vervet",
        "/lib/systemd/system/vervet.service",
        "/usr/lib/sysusers.d/vervet.conf",
        "/usr/lib/tmpfiles.d/vervet.conf",
        "/usr/share/polkit-1/rules.d/50-vervet.rules",
        "/etc/vervet/vervet.toml",
        "/etc/vervet/experiments/monkey.toml",
        "/usr/share/vervet/experiments/loss/kill-one-checkout.toml",
        "/usr/share/man/man1/vervet.1.gz",
        "/usr/share/man/man1/vervet-run.1.gz",
        "/usr/share/bash-completion/completions/vervet",
        "/usr/share/zsh/vendor-completions/_vervet",
        "/usr/share/fish/vendor_completions.d/vervet.fish",
        "/usr/share/doc/vervet/copyright",
        "/usr/share/doc/vervet/changelog.gz",
    ] {
        assert!(
            list.lines().any(|line| line.ends_with(&format!(".{path}"))),
            "{path} is missing:\n{list}"
        );
    }
    // All of the library, in its directories.
    let library = vervet::document::Library::new(concat!(env!("CARGO_MANIFEST_DIR"), "/experiments"));
    for entry in library.list().expect("read") {
        let path = format!("./usr/share/vervet/experiments/{}.toml", entry.name);
        assert!(list.lines().any(|line| line.ends_with(&path)), "{path} is missing:\n{list}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        assert!(dpkg(&["--info"]).contains(script), "{script}");
    }
    let fields = dpkg(&["--field"]);
    assert!(fields.contains("Recommends: polkitd"), "{fields}");
    let conffiles = Command::new("dpkg-deb").arg("--info").arg(&package).arg("conffiles").output();
    let conffiles = String::from_utf8(conffiles.expect("dpkg-deb starts").stdout).expect("text");
    assert_eq!(conffiles.trim(), "/etc/vervet/vervet.toml\n/etc/vervet/experiments/monkey.toml");
}

#[test]
fn the_static_binary_needs_nothing_and_runs() {
    let test = "the_static_binary_needs_nothing_and_runs";
    let Some(archive) = built(test, "-linux.tar.gz", "packaging/static") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(dir.path()).status();
    assert!(unpacked.expect("tar starts").success());
    let inside =
        fs::read_dir(dir.path()).expect("read").next().expect("one directory").expect("read").path();
    for part in
        ["INSTALL.md", "systemd/vervet.service", "systemd/vervet.toml", "experiments", "man/vervet.1"]
    {
        assert!(inside.join(part).exists(), "{part}");
    }
    let binary = inside.join("vervet");
    // ELF without a program header that names an interpreter: elf(5), PT_INTERP is 3.
    let bytes = fs::read(&binary).expect("read");
    let half = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (table, size, count) = (usize::try_from(word(32)).expect("an offset"), half(54), half(56));
    for header in 0..count {
        let at = table + header * size;
        assert_ne!(half(at), 3, "it wants to be loaded by somebody");
    }
    // In an empty root there is no library that it could load, whatever it does.
    let run = |args: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(args).env("NO_COLOR", "1");
        command.output().expect("starts")
    };
    let version = run(&["--version"]);
    assert_eq!(
        String::from_utf8_lossy(&version.stdout).trim(),
        concat!("vervet ", env!("CARGO_PKG_VERSION"))
    );
    let policy = inside.join("systemd/vervet.toml");
    let experiment = inside.join("experiments/loss/kill-one-checkout.toml");
    let check = run(&["check", policy.to_str().expect("text"), experiment.to_str().expect("text")]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let doctor = run(&["doctor", "--config", policy.to_str().expect("text")]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("kill") && said.contains("connections"), "{said}");
}
