//! The floor: one of four may go, and no word or plan gets a second one.

use std::process::Output;

use crate::harness::{Stage, experiment, kill_step, story};

fn code(output: &Output) -> i32 {
    output.status.code().expect("not ended by a signal")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn alive(stage: &mut Stage) -> usize {
    stage.workers.iter_mut().filter_map(|worker| worker.lives().then_some(())).count()
}

#[test]
fn one_of_four_may_go_and_no_second_one() {
    story("one_of_four_may_go_and_no_second_one", |stage| {
        stage.four_workers("1h");
        let one = stage.write("one.toml", &experiment("\"shop\"", &kill_step("shop", 1)));
        let one = one.to_str().expect("UTF-8");
        let output = stage.cli(&["run", one]);
        assert_eq!(code(&output), 0, "{}", text(&output));
        assert_eq!(alive(stage), 3);

        // By the command line and by REST alike: refused, with the numbers.
        let output = stage.cli(&["run", one]);
        assert_eq!(code(&output), 3, "{}", text(&output));
        let words = text(&output);
        assert!(
            words.contains("3 ready") && words.contains("floor 3") && words.contains("leave 2"),
            "{words}"
        );
        let run = stage.play(&experiment("\"shop\"", &kill_step("shop", 1)));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        assert_eq!(run["why"]["reason"], "floor", "{run:#}");
        assert_eq!(run["why"]["numbers"]["floor"], 3, "{run:#}");
        assert_eq!(run["why"]["numbers"]["left"], 2, "{run:#}");
        assert_eq!(alive(stage), 3);
    });
}

#[test]
fn a_second_kill_waits_for_the_budget() {
    story("a_second_kill_waits_for_the_budget", |stage| {
        stage.workers("shop", 8001..=8004);
        // The floor has room for two: only the budget is in the way.
        stage.policy("leashed = false", "wait = \"20s\"", &stage.group("shop", 2, "2s"));
        stage.start();
        stage.calm("shop", 4);
        let kill = experiment("\"shop\"", &kill_step("shop", 1));
        let first = stage.play(&kill);
        assert_eq!(first["verdict"], "passed", "{first:#}");
        let plan = stage.call("POST", "/v1/plans", &kill).expect(200);
        assert_eq!(plan["decision"]["verdict"], "wait", "{plan:#}");
        assert_eq!(plan["decision"]["why"]["reason"], "budget_used", "{plan:#}");
        let id = stage.begin(&kill);
        let second = stage.finished(&id);
        assert_eq!(second["verdict"], "passed", "{second:#}");
        let at = |run: &serde_json::Value| -> jiff::Timestamp {
            run["steps"][0]["injected_at"].as_str().expect("injected").parse().expect("a time")
        };
        let between = at(&second).duration_since(at(&first));
        assert!(between.as_millis() >= 2000, "only {between} between two removals");
        assert!(stage.events(&id).iter().any(|event| event["kind"] == "waiting"));
        assert_eq!(alive(stage), 2);
    });
}

#[test]
fn what_asks_for_too_much_is_refused_before_anything_is_touched() {
    story("what_asks_for_too_much_is_refused_before_anything_is_touched", |stage| {
        stage.workers("shop", 8001..=8004);
        stage.workers("bank", 8011..=8012);
        let groups = [stage.group("shop", 3, "1h"), stage.group("bank", 1, "1h")].concat();
        stage.policy("leashed = false", "", &groups);
        stage.start();
        stage.calm("shop", 4);
        stage.calm("bank", 2);

        // Two at once.
        let two = experiment("\"shop\"", &kill_step("shop", 2));
        let plan = stage.call("POST", "/v1/plans", &two).expect(200);
        assert_eq!(plan["decision"]["verdict"], "refuse", "{plan:#}");
        let file = stage.write("two.toml", &two);
        let output = stage.cli(&["plan", file.to_str().expect("UTF-8")]);
        assert_eq!(code(&output), 3, "{}", text(&output));
        let run = stage.play(&two);
        assert_eq!(
            (&run["verdict"], &run["why"]["reason"]),
            (&"refused".into(), &"floor".into()),
            "{run:#}"
        );
        assert_eq!(run["why"]["numbers"]["charge"], 2, "{run:#}");

        // A group that it does not declare, reached by another name.
        let marker = stage.marker("bank");
        let step = format!(
            "[[step]]\nname = \"stray\"\nfault = \"kill\"\ntarget = {{ cmdline = \"{marker}\", pick = 1 }}\n"
        );
        let run = stage.play(&experiment("\"shop\"", &step));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        assert_eq!(run["why"]["reason"], "undeclared_group", "{run:#}");
        assert_eq!(run["why"]["numbers"]["group"], "bank", "{run:#}");

        // An empty selector never means everything; neither does one that matches nothing.
        let step = "[[step]]\nname = \"all\"\nfault = \"kill\"\ntarget = { pick = 1 }\n";
        let answer = stage.call("POST", "/v1/runs", &experiment("\"shop\"", step));
        assert_eq!(answer.status, 422, "{answer:?}");
        let file = stage.write("empty.toml", &experiment("\"shop\"", step));
        let output = stage.cli(&["run", file.to_str().expect("UTF-8")]);
        assert_eq!(code(&output), 2, "{}", text(&output));
        let step = "[[step]]\nname = \"none\"\nfault = \"kill\"\ntarget = { name = \"no-such-name\", pick = 1 }\n";
        let run = stage.play(&experiment("\"shop\"", step));
        assert_eq!(run["verdict"], "refused", "{run:#}");
        assert_eq!(run["why"]["reason"], "nothing_matches", "{run:#}");

        assert_eq!(alive(stage), 6, "somebody was touched");
    });
}
