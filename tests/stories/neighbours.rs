//! Two runs at once, on groups of their own: what ends one leaves the other as it was.

use serde_json::Value;

use crate::harness::{SLOW, cap_step, experiment, guests, slow_step, snapshot, story, tool, visit};

/// The table of a run's first step, without what moves by itself: counters, and timeouts.
fn table(run: &str) -> Value {
    let all: Value = serde_json::from_str(&tool("nft", &["-j", "list", "ruleset"])).expect("JSON");
    // The random end of the run's id, and the step.
    let name = format!("vervet_{}0", &run[run.len() - 10..]);
    let of_it = |item: &&Value| {
        let table = item.as_object().and_then(|item| item.values().next());
        table.is_some_and(|object| object["table"] == *name || object["name"] == *name)
    };
    let mut items: Vec<Value> =
        all["nftables"].as_array().expect("a list").iter().filter(of_it).cloned().collect();
    assert!(items.len() > 3, "no table {name} in {all:#}");
    items.iter_mut().for_each(still);
    Value::Array(items)
}

fn still(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for key in ["packets", "bytes", "expires", "timeout"] {
                map.remove(key);
            }
            map.values_mut().for_each(still);
        }
        Value::Array(items) => items.iter_mut().for_each(still),
        _ => {}
    }
}

#[test]
fn aborting_one_run_leaves_the_other_as_it_was() {
    story("aborting_one_run_leaves_the_other_as_it_was", |stage| {
        stage.workers("shop", 8001..=8002);
        stage.workers("bank", 8011..=8012);
        let groups = [stage.group("shop", 1, "1h"), stage.group("bank", 1, "1h")].concat();
        stage.policy("leashed = false", "concurrent_runs = 2", &groups);
        stage.start();
        stage.calm("shop", 2);
        stage.calm("bank", 2);
        let before = snapshot();
        for aborted in [0, 1] {
            let runs = [
                stage.in_force(&experiment("\"shop\"", &slow_step(8001, "30s"))),
                stage.in_force(&experiment("\"bank\"", &slow_step(8011, "30s"))),
            ];
            let third = stage.play(&experiment("\"bank\"", &cap_step(8012, "30s")));
            assert_eq!(third["why"]["reason"], "too_many_runs", "{third:#}");
            assert!(visit(8001).expect("answers") > SLOW && visit(8011).expect("answers") > SLOW);
            let other = 1 - aborted;
            let then = table(&runs[other]);
            assert!(
                !then.as_array().expect("a list").is_empty(),
                "{}",
                tool("nft", &["list", "ruleset"])
            );

            let run = stage.call("DELETE", &format!("/v1/runs/{}", runs[aborted]), "").expect(200);
            assert_eq!(
                (&run["aborted_by"], &run["cleanup"]),
                (&"operator".into(), &"clean".into()),
                "{run:#}"
            );
            assert_eq!(table(&runs[other]), then);
            assert_eq!(stage.run(&runs[other])["state"], "running");
            let ports = [8001, 8011];
            assert!(visit(ports[aborted]).expect("answers") < SLOW);
            assert!(visit(ports[other]).expect("answers") > SLOW);
            assert!(visit(ports[other] + 1).expect("answers") < SLOW);

            stage.call("DELETE", &format!("/v1/runs/{}", runs[other]), "").expect(200);
            stage.assert_as_before(&before);
        }
    });
}

#[test]
fn a_delay_and_a_cap_do_not_disturb_each_other() {
    story("a_delay_and_a_cap_do_not_disturb_each_other", |stage| {
        stage.workers("shop", 8001..=8002);
        stage.workers("bank", 8011..=8012);
        let groups = [stage.group("shop", 1, "1h"), stage.group("bank", 1, "1h")].concat();
        stage.policy("leashed = false", "concurrent_runs = 2", &groups);
        stage.start();
        stage.calm("shop", 2);
        stage.calm("bank", 2);
        let before = snapshot();
        let slow = stage.in_force(&experiment("\"shop\"", &slow_step(8001, "30s")));
        let cap = stage.in_force(&experiment("\"bank\"", &cap_step(8011, "30s")));
        assert_eq!(guests(8011, 4).len(), 2);
        let then = table(&cap);
        stage.call("DELETE", &format!("/v1/runs/{slow}"), "").expect(200);
        assert_eq!(table(&cap), then);
        let let_in = stage.until("old guests are forgotten", |_| {
            let guests = guests(8011, 4);
            (guests.len() == 2).then_some(guests)
        });
        assert!(visit(8001).expect("answers") < SLOW);
        drop(let_in);
        stage.call("DELETE", &format!("/v1/runs/{cap}"), "").expect(200);
        assert_eq!(guests(8011, 4).len(), 4);
        stage.assert_as_before(&before);
    });
}
