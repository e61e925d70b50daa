//! A journal that takes no writes: nothing new begins, what is in force is undone, nothing is lost.

use std::{fs, io::Write as _, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};

use crate::harness::{SLOW, Stage, experiment, kill_step, slow_step, snapshot, story, visit};

/// A small disk of its own at the state directory, gone with the story's mount namespace.
fn small_disk(stage: &Stage, flags: MsFlags) {
    let state = stage.path("state");
    fs::create_dir(&state).expect("made");
    mount(Some("tmpfs"), &state, Some("tmpfs"), flags, Some("size=4m,mode=700")).expect("mounted");
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).expect("made");
    let mut block = vec![0_u8; 1 << 16];
    while !block.is_empty() {
        if file.write_all(&block).is_err() {
            block.truncate(block.len() / 2);
        }
    }
}

fn assert_refused(stage: &mut Stage) {
    for step in [slow_step(8002, "1s"), kill_step("shop", 1)] {
        let run = stage.play(&experiment("\"shop\"", &step));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        assert_eq!(run["why"]["reason"], "journal_unavailable", "{run:#}");
    }
    assert!(stage.workers.iter_mut().all(|worker| worker.lives()));
    assert!(visit(8002).expect("answers") < SLOW);
}

#[test]
fn on_a_full_disk_nothing_begins_and_what_is_in_force_ends() {
    story("on_a_full_disk_nothing_begins_and_what_is_in_force_ends", |stage| {
        small_disk(stage, MsFlags::empty());
        stage.workers("shop", 8001..=8004);
        stage.policy("leashed = false", "concurrent_runs = 2", &stage.group("shop", 3, "1h"));
        stage.start();
        stage.calm("shop", 4);
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &slow_step(8001, "30s")));
        fill(&stage.path("state/filler"));
        assert_refused(stage);
        assert!(visit(8001).expect("answers") > SLOW);
        let run = stage.call("DELETE", &format!("/v1/runs/{id}"), "").expect(200);
        assert_eq!((&run["verdict"], &run["cleanup"]), (&"aborted".into(), &"clean".into()), "{run:#}");
        assert!(visit(8001).expect("answers") < SLOW);
        stage.assert_as_before(&before);

        // There is room again.
        fs::remove_file(stage.path("state/filler")).expect("removed");
        let run = stage.until("runs are admitted again", |stage| {
            let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 1)));
            (run["verdict"] != "refused").then_some(run)
        });
        assert_eq!(run["verdict"], "passed", "{run:#}");
    });
}

#[test]
fn a_fault_that_outlives_its_agent_on_a_full_disk_is_undone() {
    story("a_fault_that_outlives_its_agent_on_a_full_disk_is_undone", |stage| {
        small_disk(stage, MsFlags::empty());
        stage.workers("shop", 8001..=8004);
        stage.policy("leashed = false", "", &stage.group("shop", 3, "1h"));
        stage.start();
        stage.calm("shop", 4);
        let before = snapshot();
        stage.in_force(&experiment("\"shop\"", &slow_step(8001, "30s")));
        fill(&stage.path("state/filler"));
        let warden = stage.agent().warden();
        crate::harness::send(warden, Signal::SIGSTOP);
        stage.agent().kill();
        crate::harness::send(warden, Signal::SIGKILL);
        stage.start();
        assert!(visit(8001).expect("answers") < SLOW);
        stage.assert_as_before(&before);
        let run = stage.play(&experiment("\"shop\"", &slow_step(8001, "1s")));
        assert_eq!(run["verdict"], "refused", "{run:#}");
    });
}

#[test]
fn on_a_read_only_disk_nothing_begins() {
    story("on_a_read_only_disk_nothing_begins", |stage| {
        small_disk(stage, MsFlags::MS_RDONLY);
        stage.workers("shop", 8001..=8004);
        stage.policy("leashed = false", "", &stage.group("shop", 3, "1h"));
        stage.start();
        stage.until("all are ready", |stage| (stage.group_now("shop")["ready"] == 4).then_some(()));
        assert_refused(stage);
    });
}

#[test]
fn a_journal_of_garbage_is_kept_and_nothing_begins() {
    story("a_journal_of_garbage_is_kept_and_nothing_begins", |stage| {
        let garbage = b"this is no database, and somebody may still want to look at it\n".repeat(200);
        fs::create_dir(stage.path("state")).expect("made");
        fs::write(stage.path("state/vervet.db"), &garbage).expect("written");
        stage.workers("shop", 8001..=8004);
        stage.policy("leashed = false", "", &stage.group("shop", 3, "1h"));
        stage.start();
        stage.until("all are ready", |stage| (stage.group_now("shop")["ready"] == 4).then_some(()));
        assert_refused(stage);
        let host = stage.get("/v1/host");
        assert!(host["problems"].to_string().contains("journal_unavailable"), "{host:#}");
        assert_eq!(stage.cli(&["status"]).status.code(), Some(0));
        assert_eq!(stage.call("GET", "/readyz", "").status, 503);
        let halt = stage.call("PUT", "/v1/halt", "{\"reason\": \"a look\"}").expect(200);
        assert_eq!(halt["durable"], true, "{halt:#}");
        stage.agent().signal(Signal::SIGTERM);
        assert_eq!(stage.agent().wait().code(), Some(0));
        assert_eq!(fs::read(stage.path("state/vervet.db")).expect("kept"), garbage);
    });
}
