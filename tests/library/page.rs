//! docs/ci.md: its commands do what it says, as they are written there.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use crate::harness::story;

const NAME: &str = "the_page_about_pipelines_runs_as_it_is_written";

/// The commands of a page, block by block.
fn blocks(page: &str) -> Vec<String> {
    let parts = page.split("\n```sh\n").skip(1);
    parts.map(|part| part.split("\n```").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_page_about_pipelines_runs_as_it_is_written() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ci.md");
    let page = fs::read_to_string(page).expect("read");
    let blocks = blocks(&page);
    assert!(blocks.len() >= 8, "{} blocks", blocks.len());
    for program in ["bash", "curl", "jq", "python3"] {
        if Command::new(program).arg("--version").output().is_err() {
            return eprintln!("SKIPPED: {NAME}: there is no {program}");
        }
    }
    // Its ports are fixed, as the reader's are: a network of its own has them all free.
    story(NAME, |stage| {
        let mut script = String::new();
        for (number, block) in blocks.iter().enumerate() {
            let _ = writeln!(script, "echo 'block {number}' >&2\n{block}");
        }
        script += "echo to the end\n";
        let script = stage.write("page.sh", &script);
        let work = stage.path("work");
        fs::create_dir(&work).expect("made");
        let program = Path::new(env!("CARGO_BIN_EXE_vervet")).parent().expect("a directory");
        let path = std::env::var("PATH").unwrap_or_default();
        // The last word: none of its processes may outlive it, whatever it did.
        let output = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-eu"])
            .arg(&script)
            .current_dir(&work)
            .env("PATH", format!("{}:{path}", program.display()))
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .output()
            .expect("starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        let log = fs::read_to_string(work.join("agent.log")).unwrap_or_default();
        assert!(output.status.success(), "{}\n{said}\n{error}\n{log}", output.status);
        assert!(said.ends_with("to the end\n"), "{said}\n{error}");
        assert!(said.contains("nothing was left behind"), "{said}");
    });
}
