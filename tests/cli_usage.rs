//! The command line as a user meets it: help, usage errors, files, and an agent that is not there.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use clap::CommandFactory as _;
use vervet::cli::args::Cli;

fn vervet(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vervet"));
    command.args(args).env_remove("RUST_LOG").env("NO_COLOR", "1").stdin(Stdio::null());
    command.output().expect("the program starts")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not ended by a signal")
}

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path: PathBuf = dir.path().join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

const GOOD: &str = r#"title = "One"
hypothesis = "Nothing happens"
groups = ["checkout"]
[[step]]
name = "lose one"
fault = "kill"
target = { group = "checkout", pick = 1 }
"#;

const BAD: &str = r#"title = "Two"
hypothesis = "Nothing happens"
[[step]]
name = "lose one"
fault = "kill"
target = { grupp = "checkout" }
singal = "SIGKILL"
"#;

#[test]
fn the_help_of_every_command_fits_80_columns() {
    let mut paths: Vec<Vec<String>> = vec![Vec::new()];
    collect(&Cli::command(), &[], &mut paths);
    assert!(paths.len() > 20, "the list of commands is not the real one: {paths:?}");
    for path in paths {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let output = vervet(&args);
        assert_eq!(code(&output), 0, "{args:?}: {}", err(&output));
        for line in out(&output).lines() {
            assert!(line.chars().count() <= 80, "{args:?}: {} columns: {line}", line.chars().count());
        }
    }
}

fn collect(command: &clap::Command, above: &[String], paths: &mut Vec<Vec<String>>) {
    for sub in command.get_subcommands() {
        let mut path = above.to_vec();
        path.push(sub.get_name().to_owned());
        collect(sub, &path, paths);
        paths.push(path);
    }
}

#[test]
fn every_visible_command_shows_an_example() {
    let command = Cli::command();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && !sub.has_subcommands()) {
        let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(after.contains("Example: vervet "), "{} has no example", sub.get_name());
    }
}

#[test]
fn usage_errors_are_2() {
    let cases: [&[&str]; 9] = [
        &[],
        &["frobnicate"],
        &["run"],
        &["run", "x.toml", "--seed", "many"],
        &["--socket", "/x", "--host", "http://y", "status"],
        &["runs", "--limit", "0"],
        &["runs", "--state", "sleeping"],
        &["check"],
        &["token", "new", "ci", "--role", "king"],
    ];
    for args in cases {
        assert_eq!(code(&vervet(args)), 2, "{args:?}");
    }
}

#[test]
fn no_agent_is_7_and_says_which_socket_and_how_to_start_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("none.sock").display().to_string();
    let cases: [&[&str]; 8] = [
        &["status"],
        &["runs"],
        &["faults"],
        &["halt"],
        &["resume"],
        &["plan", "by-name"],
        &["run", "by-name"],
        &["show", "0192a1b2-0000-7000-8000-000000000000"],
    ];
    for args in cases {
        let output = vervet(&[&["--socket", &socket], args].concat());
        assert_eq!(code(&output), 7, "{args:?}: {}", err(&output));
        let text = err(&output);
        assert!(text.contains(&socket) && text.contains("vervet agent --config"), "{args:?}: {text}");
    }
    // One that died leaves its socket behind: nobody listens there either.
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("bound"));
    let output = vervet(&["--socket", &stale.display().to_string(), "status"]);
    assert_eq!(code(&output), 7);
    assert!(err(&output).contains("no agent is running"), "{}", err(&output));
}

#[test]
fn with_json_an_error_is_one_document_too() {
    let output = vervet(&["--json", "--socket", "/nonexistent/vervet.sock", "status"]);
    assert_eq!(code(&output), 7);
    let document: serde_json::Value = serde_json::from_str(&out(&output)).expect("one JSON document");
    assert_eq!(document["exit"], 7);
    assert!(
        document["detail"].as_str().is_some_and(|detail| detail.contains("/nonexistent/vervet.sock"))
    );
}

#[test]
fn a_socket_without_permission_is_7_and_names_the_group() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED: a_socket_without_permission_is_7_and_names_the_group: needs root to become another user"
        );
        return;
    }
    let dir = tempfile::tempdir_in("/tmp").expect("a directory");
    let socket = dir.path().join("agent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    let copy = dir.path().join("vervet");
    std::fs::copy(env!("CARGO_BIN_EXE_vervet"), &copy).expect("copied");
    for (path, mode) in [(dir.path(), 0o755), (copy.as_path(), 0o755), (socket.as_path(), 0o600)] {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, permissions).expect("set");
    }
    let mut command = Command::new(&copy);
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    std::os::unix::process::CommandExt::gid(&mut command, 65534);
    let output = command.arg("--socket").arg(&socket).arg("status").output().expect("starts");
    assert_eq!(code(&output), 7, "{}", err(&output));
    assert!(err(&output).contains("group `vervet`"), "{}", err(&output));
}

#[test]
fn a_token_never_travels_unencrypted() {
    let dir = tempfile::tempdir().expect("a directory");
    let token = file(&dir, "token", "vervet_secret\n");
    let output = vervet(&["--host", "http://192.0.2.1:7667", "--token-file", &token, "status"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("unencrypted"), "{}", err(&output));
    assert!(!err(&output).contains("vervet_secret"));
}

#[test]
fn check_reports_every_error_of_every_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = file(&dir, "good.toml", GOOD);
    let bad = file(&dir, "bad.toml", BAD);
    let policy = file(&dir, "policy.toml", "leashed = 7\n[[group]]\nname = \"x\"\nflor = 3\n");
    assert_eq!(code(&vervet(&["check", &good])), 0);
    let output = vervet(&["check", &good, &bad, &policy, "/nonexistent.toml"]);
    assert_eq!(code(&output), 2);
    let text = err(&output);
    for wanted in ["grupp", "singal", "bad.toml:7", "^", "leashed", "flor", "floor", "/nonexistent.toml"]
    {
        assert!(text.contains(wanted), "{wanted} is missing in:\n{text}");
    }
    assert!(out(&output).contains("1 file valid, 3 not"), "{}", out(&output));

    let output = vervet(&["check", "--json", &good, &bad]);
    assert_eq!(code(&output), 2);
    let document: serde_json::Value = serde_json::from_str(&out(&output)).expect("one JSON document");
    assert_eq!(document["files"][0]["valid"], true);
    assert!(document["files"][1]["errors"].as_array().is_some_and(|errors| errors.len() >= 2));
}

#[test]
fn check_and_run_read_standard_input_and_files_before_they_ask_anybody() {
    for (text, wanted) in [(GOOD, 0), (BAD, 2)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vervet"))
            .args(["check", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("read");
        assert_eq!(child.wait().expect("ends").code(), Some(wanted));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let bad = file(&dir, "bad.toml", BAD);
    // An invalid file is 2 even where there is no agent to refuse it.
    for command in ["run", "plan"] {
        let output = vervet(&["--socket", "/nonexistent/vervet.sock", command, &bad]);
        assert_eq!(code(&output), 2, "{}", err(&output));
        assert!(err(&output).contains("singal"), "{}", err(&output));
    }
}

#[test]
fn a_token_is_random_and_its_lines_are_a_valid_policy() {
    let dir = tempfile::tempdir().expect("a directory");
    let (one, other) = (vervet(&["token", "new", "ci"]), vervet(&["token", "new", "ci"]));
    assert_eq!(out(&one).lines().count(), 1, "only the secret is on standard output");
    assert_ne!(out(&one), out(&other));
    let text = err(&one);
    let lines = text.split_once("\n\n").map(|(_, lines)| lines).expect("lines for the policy");
    assert!(!lines.contains(out(&one).trim()), "the secret is not for the policy");
    let policy = file(&dir, "vervet.toml", lines);
    assert_eq!(code(&vervet(&["check", &policy])), 0, "{lines}");
    assert_eq!(code(&vervet(&["token", "new", "two words"])), 2);
}

#[test]
fn completions_and_pages_name_every_command_and_hide_the_inner_ones() {
    for shell in ["bash", "zsh", "fish"] {
        let script = out(&vervet(&["completions", shell]));
        assert!(script.contains("doctor") && !script.contains("demo-part"), "{shell}");
    }
    assert!(out(&vervet(&["man"])).contains("vervet"));
    let dir = tempfile::tempdir().expect("a directory");
    let man = dir.path().join("man1");
    assert_eq!(code(&vervet(&["man", &man.display().to_string()])), 0);
    let page = |name: &str| Path::new(&man).join(name).exists();
    assert!(page("vervet.1") && page("vervet-run.1") && page("vervet-token-new.1"));
    assert!(!page("vervet-demo-part.1") && !page("vervet-warden.1"));
}

#[test]
fn doctor_works_without_an_agent_and_says_what_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let text = format!(
        "state = \"{}\"\n[api]\nsocket = \"{}\"\n",
        state.display(),
        dir.path().join("none.sock").display()
    );
    let policy = file(&dir, "vervet.toml", &text);
    let output = vervet(&["doctor", "--json", "--config", &policy]);
    let document: serde_json::Value = serde_json::from_str(&out(&output)).expect("one JSON document");
    let findings = document["findings"].as_array().expect("findings");
    let health = |subject: &str| {
        findings.iter().find(|one| one["subject"] == subject).map(|one| one["health"].clone())
    };
    assert_eq!(health("policy"), Some("good".into()));
    assert_eq!(health("agent"), Some("note".into()));
    assert!(health("kill").is_some());
    assert!(!state.exists(), "looking makes nothing");
    let output = vervet(&["doctor", "--config", "/nonexistent/vervet.toml"]);
    assert_eq!(code(&output), 1);
    assert!(out(&output).lines().all(|line| line.chars().count() <= 80), "{}", out(&output));
}

#[test]
fn recover_finds_a_clean_host_clean() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state").display().to_string();
    let output = vervet(&["recover", "--state", &state]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).contains("clean"), "{}", out(&output));
    let output = vervet(&["recover", "--config", "/nonexistent/vervet.toml"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("--state DIR"), "{}", err(&output));
}

/// `vervet new` with all that it needs, where no agent is.
fn new_kill(dir: &tempfile::TempDir, more: &[&str]) -> Output {
    let base = ["--socket", "/nonexistent/vervet.sock", "new", "--kind", "kill", "--group", "checkout"];
    let url = ["--url", "http://127.0.0.1:8080/healthz"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_vervet"));
    command.args(base).args(url).args(more).current_dir(dir.path());
    command.env("NO_COLOR", "1").stdin(Stdio::null()).output().expect("starts")
}

#[test]
fn new_writes_a_valid_experiment_and_says_what_is_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let title = "Who's \"there\"? \\ ☃ # no comment";
    let output = new_kill(&dir, &["--title", title]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    let said = out(&output);
    for wanted in [
        "kill-checkout.toml: written",
        "vervet plan kill-checkout.toml",
        "vervet run kill-checkout.toml",
    ] {
        assert!(said.contains(wanted), "{wanted} is missing in:\n{said}");
    }
    let path = dir.path().join("kill-checkout.toml");
    assert_eq!(code(&vervet(&["check", &path.display().to_string()])), 0);
    let text = std::fs::read_to_string(&path).expect("written");
    let table: toml::Table = text.parse().expect("TOML");
    assert_eq!(table["title"].as_str(), Some(title));
    assert!(text.starts_with("# Kill one of several instances"), "{text}");
    // The block for the policy is one that a policy can have, and then it is not offered any more.
    let (start, end) = (said.find("[[group]]").expect("a block"), said.find("\nnext:").expect("next"));
    let policy = file(&dir, "vervet.toml", &said[start..end]);
    assert_eq!(code(&vervet(&["check", &policy])), 0, "{said}");
    let output = new_kill(&dir, &["--policy", &policy, "-o", "other.toml"]);
    assert!(code(&output) == 0 && !out(&output).contains("[[group]]"), "{}", out(&output));
}

#[test]
fn new_prints_or_tells_in_json_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = new_kill(&dir, &["-o", "-"]);
    let printed = file(&dir, "printed.toml", &out(&output));
    assert_eq!(code(&vervet(&["check", &printed])), 0, "{}", out(&output));
    let output = new_kill(&dir, &["--json"]);
    let told: serde_json::Value = serde_json::from_str(&out(&output)).expect("one JSON document");
    assert_eq!(
        (&told["file"], &told["group_known"]),
        (&"kill-checkout.toml".into(), &serde_json::Value::Null)
    );
}

#[test]
fn new_replaces_nothing_unasked_and_writes_nothing_that_is_not_valid() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = file(&dir, "kill-checkout.toml", "precious");
    let output = new_kill(&dir, &[]);
    assert_eq!(code(&output), 2);
    assert!(
        err(&output).contains("is there already") && err(&output).contains("--force"),
        "{}",
        err(&output)
    );
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "precious");
    let cases: [(&[&str], &str); 6] = [
        (&["--title", "two\nlines"], "--title: "),
        (&["--duration", "soon"], "--duration: "),
        (&["--duration", "0s", "--force"], "--duration: "),
        (&["-o", "experiment.json"], "end in .toml"),
        (&["-o", "/nonexistent/x.toml"], "failed to write"),
        (&["--policy", "/nonexistent.toml"], "/nonexistent.toml"),
    ];
    for (more, wanted) in cases {
        let output = new_kill(&dir, more);
        assert!(matches!(code(&output), 1 | 2), "{more:?}");
        assert!(err(&output).contains(wanted), "{more:?}: {}", err(&output));
    }
    let files: Vec<_> = std::fs::read_dir(dir.path()).expect("read").flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "precious");
    assert_eq!(code(&new_kill(&dir, &["--force"])), 0);
    assert_eq!(code(&vervet(&["check", &path])), 0);
    assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 1, "nothing beside it");
}

#[test]
fn new_without_a_terminal_lists_what_is_missing() {
    let cases: [(&[&str], &[&str]); 3] = [
        (&[], &["--kind", "--group", "--url"]),
        (&["--kind", "latency", "--url", "http://x/"], &["--listen or --port"]),
        (&["--kind", "unit", "--group", "x"], &["--url"]),
    ];
    for (args, missing) in cases {
        let output = vervet(&[&["--socket", "/nonexistent/vervet.sock", "new"], args].concat());
        assert_eq!(code(&output), 2, "{args:?}");
        let first = err(&output).lines().next().unwrap_or_default().to_owned();
        assert_eq!(first, format!("error: missing: {}", missing.join(", ")));
    }
}

/// On a terminal of its own, made by script(1): its standard input is what is typed.
#[test]
fn new_asks_on_a_terminal_and_writes_nothing_before_the_last_answer() {
    const NAME: &str = "new_asks_on_a_terminal_and_writes_nothing_before_the_last_answer";
    if Command::new("script").arg("--version").output().is_err() {
        return eprintln!("SKIPPED: {NAME}: there is no script(1)");
    }
    let play = |typed: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        let line = format!("{} --socket /nonexistent/s new", env!("CARGO_BIN_EXE_vervet"));
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .current_dir(dir.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        child.stdin.take().expect("piped").write_all(typed.as_bytes()).expect("typed");
        let output = child.wait_with_output().expect("ends");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let files: Vec<_> = std::fs::read_dir(dir.path()).expect("read").flatten().collect();
        (output.status.code(), said, files.len(), dir)
    };
    let (status, said, files, dir) = play("pause\nweb\n\n\n\n");
    assert_eq!((status, files), (Some(0), 1), "{said}");
    assert!(said.contains("What is to happen?") && said.contains("vervet run pause-web.toml"), "{said}");
    let written = dir.path().join("pause-web.toml").display().to_string();
    assert_eq!(code(&vervet(&["check", &written])), 0, "{said}");
    // The end of the input, and Ctrl-C.
    for typed in ["pause\nweb\n\u{4}", "pause\nweb\n\u{3}"] {
        let (status, said, files, _dir) = play(typed);
        assert_eq!(files, 0, "{said}");
        assert_ne!(status, Some(0), "{said}");
    }
}
