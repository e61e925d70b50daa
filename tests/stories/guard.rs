//! The guards themselves go wrong: two agents on one host, an agent that hangs for a while, a warden
//! that dies, and an agent killed at any moment of a run.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::harness::{
    PROMPT, SLOW, cap_step, experiment, guests, is_warden, kill_step, send, slow_step, snapshot, story,
    visit,
};
use crate::worker::Worker;

#[test]
fn another_agent_does_not_touch_what_is_in_force() {
    story("another_agent_does_not_touch_what_is_in_force", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &slow_step(8001, "30s")));
        let config = stage.path("vervet.toml");
        let config = config.to_str().expect("UTF-8").to_owned();

        // On the same socket.
        let output = stage.cli_command(&["agent", "--config", &config]).output().expect("runs");
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("another agent"), "{words}");
        assert!(visit(8001).expect("answers") > SLOW, "the second agent undid it");
        assert!(stage.agent().exited().is_none() && stage.socket().exists());

        // A recovery while the agent lives.
        let output = stage.cli(&["recover", "--config", &config]);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert!(visit(8001).expect("answers") > SLOW, "the recovery undid it");

        // On a socket of its own, but the same state.
        let text = std::fs::read_to_string(&config).expect("read").replace("vervet.sock", "other.sock");
        let config = stage.write("other.toml", &text);
        let mut command = stage.cli_command(&["agent", "--log", "info", "--config"]);
        let log = std::fs::File::create(stage.path("other.log")).expect("a log");
        let mut other = command.arg(config).stdout(Stdio::null()).stderr(log).spawn().expect("starts");
        let other_socket = stage.path("other.sock");
        let run = stage.until("the other one ends or refuses", |_| {
            if other.try_wait().expect("asked").is_some() {
                return Some(None);
            }
            let text = experiment("\"shop\"", &kill_step("shop", 1));
            let kind = [("Content-Type", "application/toml")];
            crate::http::call(&other_socket, "POST", "/v1/runs", &kind, &text).map(Some)
        });
        if let Some(answer) = run {
            let run = answer.expect(202);
            assert_eq!(run["why"]["reason"], "journal_unavailable", "{run:#}");
            send(other.id(), Signal::SIGTERM);
        }
        other.wait().expect("ended");
        assert!(stage.workers.iter_mut().all(Worker::lives));
        assert!(visit(8001).expect("answers") > SLOW, "the other agent undid it");
        assert_eq!(stage.run(&id)["state"], "running");
        stage.call("DELETE", &format!("/v1/runs/{id}"), "").expect(200);
        stage.assert_as_before(&before);
    });
}

#[test]
fn an_agent_that_hung_does_not_go_on_as_if_nothing_had_been() {
    story("an_agent_that_hung_does_not_go_on_as_if_nothing_had_been", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let id = stage.in_force(&experiment("\"shop\"", &slow_step(8001, "20s")));
        stage.agent().signal(Signal::SIGSTOP);
        let since = Instant::now();
        stage.until("the kernel has ended it", |_| {
            visit(8001).is_ok_and(|time| time < SLOW).then_some(())
        });
        assert!(since.elapsed() > Duration::from_millis(500), "that was not the lease");
        std::thread::sleep(Duration::from_millis(2200).saturating_sub(since.elapsed()));
        stage.agent().signal(Signal::SIGCONT);
        let run = stage.finished(&id);
        assert_eq!((&run["verdict"], &run["cleanup"]), (&"aborted".into(), &"clean".into()), "{run:#}");
        eprintln!("{}", run["why"]["message"]);
        assert!(visit(8001).expect("answers") < SLOW);
        stage.assert_as_before(&before);
    });
}

#[test]
fn no_fault_without_a_warden() {
    story("no_fault_without_a_warden", |stage| {
        stage.four_workers("1h");
        let before = snapshot();
        let first = stage.agent().warden();
        send(first, Signal::SIGKILL);
        let id = stage.begin(&experiment("\"shop\"", &slow_step(8001, "30s")));
        let run = stage.until("it is in force or refused", |stage| {
            let run = stage.run(&id);
            (run["state"] == "finished" || run["steps"][0]["state"] == "in_force").then_some(run)
        });
        eprintln!("without a warden: {} {}", run["state"], run["why"]);
        if run["state"] == "finished" {
            assert_eq!(run["why"]["reason"], "warden_unavailable", "{run:#}");
        } else {
            // Then there is another one, and it knows what to do.
            let second = stage.agent().warden();
            assert!(second != first && is_warden(second));
            let since = Instant::now();
            stage.agent().kill();
            stage.until("the warden is done", |_| (!is_warden(second)).then_some(()));
            assert!(since.elapsed() < PROMPT * 2);
            assert!(visit(8001).expect("answers") < SLOW);
        }
        stage.assert_as_before(&before);
    });
}

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    story("killed_at_any_moment_it_leaves_nothing", |stage| {
        stage.workers("shop", 8001..=8004);
        let group = stage.group("shop", 3, "100ms");
        stage.policy("leashed = false", "wait = \"20s\"", &group);
        let before = snapshot();
        let steps =
            format!("{}{}start = \"with previous\"\n", slow_step(8001, "30s"), cap_step(8002, "30s"));
        let text = experiment("\"shop\"", &steps);
        // How long it takes from the request to the last fault says where the moments are.
        stage.start();
        stage.calm("shop", 4);
        let begun = Instant::now();
        let id = stage.in_force(&text);
        let whole = begun.elapsed();
        stage.call("DELETE", &format!("/v1/runs/{id}"), "").expect(200);
        stage.agent().kill();
        let mut in_force = 0;
        for round in 0..16_u32 {
            stage.start();
            stage.calm("shop", 4);
            let id = stage.begin(&text);
            std::thread::sleep(whole * round / 10);
            let warden = stage.agent().warden();
            // Every other time nobody is left to undo anything before the next start.
            let alone = round % 2 == 1;
            if alone {
                send(warden, Signal::SIGSTOP);
            }
            stage.agent().kill();
            if alone {
                send(warden, Signal::SIGKILL);
            }
            stage.until("the warden is gone", |_| (!is_warden(warden)).then_some(()));
            if alone {
                in_force += u32::from(snapshot() != before);
            } else {
                stage.assert_as_before(&before);
            }
            stage.start();
            stage.assert_as_before(&before);
            assert!(visit(8001).expect("answers") < SLOW, "round {round}");
            assert_eq!(guests(8002, 4).len(), 4, "round {round}");
            let answer = stage.call("GET", &format!("/v1/runs/{id}"), "");
            // One that was never admitted may be forgotten: it is written down with its first intent.
            let admitted = |line: &str| line.contains(&id) && line.contains("\"admitted\"");
            if answer.status != 404 || stage.log().lines().any(admitted) {
                let run = answer.expect(200);
                assert_eq!(run["state"], "finished", "{run:#}");
                assert_eq!(run["cleanup"], "clean", "{run:#}");
            }
            assert_eq!(stage.active(), 0);
            stage.agent().kill();
        }
        eprintln!("killed 8 times with the warden, {in_force} of them with something in force");
        assert!((1..=8).contains(&in_force), "the moments were all alike: {in_force} of 8");
        assert!(stage.workers.iter_mut().all(Worker::lives));
    });
}
