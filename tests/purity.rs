//! What the shape of the code promises, held by reading the sources.
//!
//! A text search is a blunt tool; that is why the rules are such that their breach shows in a word.
//! Comments and the files of tests beside the sources are not read.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What decides must not know what time it is, nor reach out: all of that comes in as arguments.
/// (`jiff::Timestamp` is a value; only asking for the present is forbidden. Seeded generators are
/// arguments, too: only randomness of its own is forbidden.)
const FORBIDDEN_IN_POLICY: [&str; 37] = [
    "Instant",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "::now(",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::thread",
    "std::process",
    "std::env",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::mpsc",
    "std::sync::atomic",
    "println!",
    "eprintln!",
    "tracing::",
    "tokio",
    "futures",
    "async ",
    ".await",
    "nix::",
    "rustix",
    "libc::",
    "rusqlite",
    "reqwest",
    "hyper",
    "axum",
    "host::linux",
    "host::sim",
    "rand::rng",
    "thread_rng",
    "getrandom",
    "from_os_rng",
    "now_v7",
];

/// Who may start a program, and why. None of them is on the way of a fault, an abort or an undo.
const MAY_EXEC: [(&str, &str); 7] = [
    ("src/probe/command.rs", "the owner's own program says how many are ready, or whether all is well"),
    ("src/warden/client.rs", "the agent's second process: itself, before anything is injected"),
    ("src/cli/standalone.rs", "an agent for the time of one run: this very program, before it is asked"),
    ("src/demo/reaper.rs", "spawns what the rest of the demo hands it, to reap it"),
    ("src/demo/sandbox.rs", "the demo plays in processes of its own"),
    ("src/demo/show.rs", "the play starts the agent, as a user would"),
    ("src/demo/supervisor.rs", "the demo's service is four processes"),
];

/// Lines in a file: more are two things in one.
const MOST_LINES: usize = 700;

/// Lines that are worth a thought.
const MANY_LINES: usize = 500;

struct Source {
    /// From the root of the project.
    path: String,
    text: String,
    /// Without comments; line by line as in the file.
    code: Vec<String>,
}

impl Source {
    fn places<'a>(&'a self, word: &'a str) -> impl Iterator<Item = String> + 'a {
        let lines = self.code.iter().enumerate().filter(move |(_, line)| line.contains(word));
        lines.map(move |(at, line)| format!("{}:{}: {word}: {}", self.path, at + 1, line.trim()))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    walk(&root.join("src"), &mut files);
    files.sort();
    let sources: Vec<Source> = files
        .iter()
        .map(|file| {
            let text = fs::read_to_string(file).expect("a source is text");
            let code = text.lines().map(without_comment).collect();
            let path = file.strip_prefix(root).expect("below the root").display().to_string();
            Source { path, text, code }
        })
        .collect();
    assert!(sources.len() > 50, "the sources were not found");
    sources
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

/// Cuts a line at `//`, unless it stands in the middle of an address.
fn without_comment(line: &str) -> String {
    let mut from = 0;
    while let Some(at) = line[from..].find("//").map(|at| at + from) {
        if !line[..at].ends_with(':') {
            return line[..at].to_owned();
        }
        from = at + 2;
    }
    line.to_owned()
}

fn assert_none(breaches: &[String], rule: &str) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

#[test]
fn what_decides_cannot_act() {
    let sources = sources();
    let policy = sources
        .iter()
        .filter(|source| source.path.starts_with("src/policy/") && !source.path.ends_with("/tests.rs"));
    let breaches: Vec<String> = policy
        .flat_map(|source| FORBIDDEN_IN_POLICY.iter().flat_map(|word| source.places(word)))
        .collect();
    assert_none(&breaches, "src/policy has no clock, I/O, async, kernel or randomness of its own");
}

#[test]
fn unsafe_code_is_in_one_file() {
    let sources = sources();
    let breaches: Vec<String> = sources
        .iter()
        .filter(|source| source.path != "src/host/linux/sys.rs")
        .flat_map(|source| {
            // `unsafe_code` is the name of the lint.
            source.places("unsafe").filter(|place| !place.contains("unsafe_code"))
        })
        .collect();
    assert_none(&breaches, "unsafe code is in src/host/linux/sys.rs only");
}

#[test]
fn every_file_says_what_it_is_for() {
    let breaches: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| source.path.clone())
        .collect();
    assert_none(&breaches, "every file begins with a //! header");
}

#[test]
fn no_file_is_too_long() {
    let sources = sources();
    let lines = |source: &Source| source.text.lines().count();
    let long = |most: usize| -> Vec<String> {
        let over = sources.iter().filter(|source| lines(source) > most);
        over.map(|source| format!("{}: {} lines", source.path, lines(source))).collect()
    };
    for file in long(MANY_LINES) {
        eprintln!("long: {file}");
    }
    assert_none(&long(MOST_LINES), "no file has more than 700 lines");
}

#[test]
fn no_fault_and_no_undo_runs_a_program() {
    let may = |path: &str| MAY_EXEC.iter().any(|(file, _)| *file == path);
    let sources = sources();
    let starts = |source: &Source| -> Vec<String> {
        let words = ["Command::new", "process::Command", "execv", "posix_spawn", "libc::system"];
        // `clap::Command` describes the command line, `Command` of the CLI is its subcommands.
        let words = words.iter().flat_map(|word| source.places(word));
        words.filter(|place| !place.contains("clap::Command")).collect()
    };
    let breaches: Vec<String> =
        sources.iter().filter(|source| !may(&source.path)).flat_map(starts).collect();
    assert_none(&breaches, "only the files listed here, each with its reason, start programs");
    for (file, why) in MAY_EXEC {
        let used = sources.iter().any(|source| source.path == file && !starts(source).is_empty());
        assert!(used, "{file} starts no program any more ({why}): take it off the list");
    }
}
