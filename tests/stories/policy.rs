//! What the owner's file says holds: the leash, freezes, and no half-read policy; and what is wrong
//! with a file is said so that it can be put right.

use nix::sys::signal::Signal;

use crate::harness::{SLOW, experiment, kill_step, slow_step, snapshot, story, visit};

#[test]
fn a_leashed_agent_decides_and_touches_nothing() {
    story("a_leashed_agent_decides_and_touches_nothing", |stage| {
        stage.workers("shop", 8001..=8004);
        // Not said is leashed.
        stage.policy("", "", &stage.group("shop", 3, "1h"));
        stage.start();
        stage.calm("shop", 4);
        let before = snapshot();
        for step in [kill_step("shop", 1), slow_step(8001, "500ms")] {
            let id = stage.begin(&experiment("\"shop\"", &step));
            // Through all of the step's time, not only at its end.
            stage.until("it is over", |stage| {
                assert_eq!(snapshot(), before, "it touched something");
                (stage.run(&id)["state"] == "finished").then_some(())
            });
            let run = stage.run(&id);
            assert_eq!(run["verdict"], "inconclusive", "{run:#}");
            assert_eq!(run["why"]["reason"], "leashed", "{run:#}");
            assert_eq!(run["leashed"], true);
            assert!(
                run["steps"][0]["targets"].as_array().is_some_and(|lines| !lines.is_empty()),
                "{run:#}"
            );
        }
        // It refuses what an agent without a leash refuses.
        let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 2)));
        assert_eq!(
            (&run["verdict"], &run["why"]["reason"]),
            (&"refused".into(), &"floor".into()),
            "{run:#}"
        );
        let file = stage.write("slow.toml", &experiment("\"shop\"", &slow_step(8001, "200ms")));
        assert_eq!(stage.cli(&["run", file.to_str().expect("UTF-8")]).status.code(), Some(5));
        assert!(stage.workers.iter_mut().all(|worker| worker.lives()));
    });
}

#[test]
fn in_a_freeze_nothing_runs() {
    story("in_a_freeze_nothing_runs", |stage| {
        stage.workers("shop", 8001..=8004);
        let freeze = "[[freeze]]\nname = \"for ever\"\nfrom = \"2000-01-01T00:00\"\n\
                      until = \"2100-01-01T00:00\"\nzone = \"UTC\"\n";
        let group = stage.group("shop", 3, "1h");
        stage.policy("leashed = false", "", &format!("{group}{freeze}"));
        stage.start();
        stage.calm("shop", 4);
        for step in [kill_step("shop", 1), slow_step(8001, "1s")] {
            let run = stage.play(&experiment("\"shop\"", &step));
            assert_eq!(run["verdict"], "refused", "{run:#}");
            assert_eq!(run["why"]["reason"], "frozen", "{run:#}");
            assert_eq!(run["why"]["numbers"]["freeze"], "for ever", "{run:#}");
        }
        assert!(visit(8001).expect("answers") < SLOW);
        assert!(stage.workers.iter_mut().all(|worker| worker.lives()));
    });
}

#[test]
fn a_policy_is_read_again_whole_or_not_at_all() {
    story("a_policy_is_read_again_whole_or_not_at_all", |stage| {
        stage.four_workers("1h");
        let good = std::fs::read_to_string(stage.path("vervet.toml")).expect("read");
        // A lower floor, a removed leash, and a mistake behind them.
        let broken = good.replace("floor = 3", "floor = 1") + "flor = 2\n";
        stage.write("vervet.toml", &broken);
        stage.agent().signal(Signal::SIGHUP);
        stage.until("it says no", |stage| {
            stage.log().contains("the policy stays as it was").then_some(())
        });
        assert!(stage.log().contains("did you mean"), "{}", stage.log());
        assert_eq!(stage.group_now("shop")["floor"], 3);
        let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 2)));
        assert_eq!(run["verdict"], "refused", "{run:#}");

        // With a fault in force, a policy that is right takes effect and the fault goes on or ends: but
        // never stays for ever.
        stage.write("vervet.toml", &good.replace("leashed = false", "leashed = true"));
        stage.agent().signal(Signal::SIGHUP);
        stage.until("the leash is on", |stage| (stage.get("/v1/host")["leashed"] == true).then_some(()));
        stage.calm("shop", 4);
        let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 1)));
        assert_eq!(run["why"]["reason"], "leashed", "{run:#}");
        assert!(stage.workers.iter_mut().all(|worker| worker.lives()));
    });
}

#[test]
fn a_bad_file_is_shown_with_its_line() {
    story("a_bad_file_is_shown_with_its_line", |stage| {
        stage.four_workers("1h");
        let text = experiment("\"shop\"", &slow_step(8001, "0s").replace("delay", "dealy"));
        let file = stage.write("bad.toml", &text);
        let file = file.to_str().expect("UTF-8").to_owned();
        for command in ["run", "plan", "check"] {
            let output = stage.cli(&[command, &file]);
            let words = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(output.status.code(), Some(2), "{words}");
            let wanted = ["bad.toml:8", "bad.toml:9", "^", "did you mean", "delay", "duration = \"0s\""];
            for wanted in wanted {
                assert!(words.contains(wanted), "no {wanted:?} in\n{words}");
            }
        }
        assert_eq!(stage.get("/v1/runs")["runs"].as_array().map(Vec::len), Some(0));
        let answer = stage.call("POST", "/v1/runs", &text);
        let errors = answer.expect(422)["errors"].as_array().expect("errors").clone();
        assert!(errors.len() >= 2 && errors.iter().all(|error| error["line"].is_u64()), "{errors:#?}");
    });
}

#[test]
fn without_an_agent_every_command_says_so() {
    story("without_an_agent_every_command_says_so", |stage| {
        let file = stage.write("one.toml", &experiment("\"shop\"", &kill_step("shop", 1)));
        let file = file.to_str().expect("UTF-8");
        let commands: [&[&str]; 6] =
            [&["status"], &["run", file], &["plan", file], &["halt"], &["faults"], &["runs"]];
        for command in commands {
            let output = stage.cli(command);
            let words = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(7), "{command:?}: {words}");
            assert!(words.contains("vervet agent --config"), "{command:?}: {words}");
        }
    });
}
