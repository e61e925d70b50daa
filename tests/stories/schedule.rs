//! What runs by itself: schedules, the monkey, pauses, and freezes that begin in the middle of a run.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::harness::{Stage, experiment, snapshot, story};

use crate::pause::pause_step;

/// A schedule for every second: as often as there can be one.
fn every_second(name: &str, more: &str) -> String {
    format!(
        "[[schedule]]\nname = \"{name}\"\nexperiment = \"{name}\"\ncron = \"* * * * * *\"\nzone = \"UTC\"\n{more}\n"
    )
}

fn library(stage: &Stage, name: &str, text: &str) {
    let dir = stage.path("experiments");
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join(format!("{name}.toml")), text).expect("written");
}

fn schedule(stage: &Stage, name: &str) -> Value {
    let all = stage.get("/v1/schedules")["schedules"].as_array().expect("schedules").clone();
    all.into_iter().find(|one| one["name"] == name).expect("the schedule")
}

/// The runs that schedules began, newest first.
fn scheduled(stage: &Stage) -> Vec<Value> {
    let runs = stage.get("/v1/runs?limit=200")["runs"].as_array().expect("runs").clone();
    let by_schedule = |run: &Value| run["caller"].as_str().is_some_and(|by| by.starts_with("schedule:"));
    runs.into_iter().filter(by_schedule).collect()
}

fn monkey() -> String {
    let text = include_str!("../../experiments/monkey.toml");
    text.replace("duration = \"60s\"", "duration = \"200ms\"")
}

#[test]
fn the_monkey_takes_one_of_a_group_that_opted_in_and_never_a_spared_one() {
    story("the_monkey_takes_one_of_a_group_that_opted_in_and_never_a_spared_one", |stage| {
        stage.workers("shop", 8001..=8003);
        stage.workers("bank", 8011..=8013);
        library(stage, "monkey", &monkey());
        let groups = stage.group("shop", 0, "200ms")
            + "monkey = true\nspare = { listen = 8001 }\n"
            + &stage.group("bank", 1, "200ms");
        let runs = groups + &every_second("monkey", "");
        stage.policy("leashed = false", "wait = \"5s\"", &runs);
        stage.start();
        stage.until("it has taken all that it may", |stage| {
            let passed = scheduled(stage).into_iter().filter(|run| run["verdict"] == "passed");
            (passed.count() == 2).then_some(())
        });
        // The next ones find nobody who is not spared.
        let refused = stage.until("one is refused", |stage| {
            scheduled(stage).into_iter().find(|run| run["verdict"] == "refused")
        });
        assert_eq!(refused["why"]["reason"], "all_spared", "{refused:#}");
        let lives: Vec<bool> = stage.workers.iter_mut().map(crate::worker::Worker::lives).collect();
        assert_eq!(
            lives,
            [true, false, false, true, true, true],
            "of the one group only, and not the spared"
        );
        let report = stage.get(&format!("/v1/runs/{}/report", refused["id"].as_str().expect("an id")));
        assert_eq!(
            report["experiment"]["groups"],
            serde_json::json!(["shop"]),
            "the report names the group"
        );
    });
}

#[test]
fn a_leashed_schedule_touches_nothing_on_an_unleashed_host() {
    story("a_leashed_schedule_touches_nothing_on_an_unleashed_host", |stage| {
        stage.workers("shop", 8001..=8003);
        library(stage, "monkey", &monkey());
        let group = stage.group("shop", 1, "200ms") + "monkey = true\n";
        stage.policy("leashed = false", "", &(group + &every_second("monkey", "leashed = true")));
        stage.start();
        let run = stage.until("it has run", |stage| {
            scheduled(stage).into_iter().find(|run| run["verdict"] == "inconclusive")
        });
        assert_eq!(
            (run["leashed"].as_bool(), run["why"]["reason"].as_str()),
            (Some(true), Some("leashed"))
        );
        assert!(stage.workers.iter_mut().all(crate::worker::Worker::lives));
    });
}

#[test]
fn a_pause_survives_a_restart_and_what_was_missed_is_said_and_not_made_up_for() {
    story("a_pause_survives_a_restart_and_what_was_missed_is_said_and_not_made_up_for", |stage| {
        stage.workers("shop", 8001..=8002);
        library(stage, "rest", &experiment("\"shop\"", &pause_step("100ms")));
        let rest = stage.group("shop", 0, "10ms") + &every_second("rest", "");
        stage.policy("leashed = false", "", &rest);
        stage.start();
        stage.until("it runs by itself", |stage| (!scheduled(stage).is_empty()).then_some(()));

        let paused = stage.cli(&["schedules", "pause", "rest", "--reason", "release day"]);
        assert_eq!(paused.status.code(), Some(0), "{paused:?}");
        let said = String::from_utf8_lossy(&paused.stdout).into_owned();
        assert!(said.contains("release day") && !said.contains("not on disk"), "{said}");
        stage.until("a slot is skipped for it", |stage| {
            let last = schedule(stage, "rest")["last"].clone();
            let why = last["why"].as_str().unwrap_or_default();
            (last["state"] == "skipped" && why.contains("release day")).then_some(())
        });

        stage.agent().kill();
        // As if that had been an hour ago.
        let memory = stage.path("state/schedules.json");
        let mut text: Value = serde_json::from_slice(&fs::read(&memory).expect("read")).expect("JSON");
        let hour = jiff::Timestamp::now() - Duration::from_hours(1);
        text["seen"]["rest"] = serde_json::json!(hour);
        fs::write(&memory, text.to_string()).expect("written");
        stage.start();
        let after = schedule(stage, "rest");
        assert_eq!(after["paused"]["reason"], "release day", "{after:#}");
        let begun = scheduled(stage).len();
        // More than a minute of slots is told in one line, and none of them is run.
        let missed = stage.until("the missed ones are told", |stage| {
            let calendar = stage.get(&format!("/v1/calendar?from={hour}"));
            let slots = calendar["slots"].as_array().expect("slots").clone();
            slots.into_iter().find(|slot| slot["state"] == "missed")
        });
        assert!(missed["why"].as_str().is_some_and(|why| why.contains("before it")), "{missed:#}");
        assert!(stage.log().contains("scheduled runs missed"), "{}", stage.log());
        assert_eq!(scheduled(stage).len(), begun, "a missed slot was made up for");

        let resumed = stage.cli(&["schedules", "resume", "--all"]);
        assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
        stage.until("it runs again", |stage| (scheduled(stage).len() > begun).then_some(()));
        let unknown = stage.cli(&["schedules", "pause", "rst"]);
        assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
        assert!(String::from_utf8_lossy(&unknown.stderr).contains("no schedule"), "{unknown:?}");
    });
}

/// A run that holds two workers still, until a freeze ends it.
fn aborted_by_freeze(stage: &mut Stage, begin: impl FnOnce(&Stage)) -> Value {
    let before = snapshot();
    stage.calm("shop", 2);
    let id = stage.in_force(&experiment("\"shop\"", &pause_step("60s")));
    begin(stage);
    let run = stage.finished(&id);
    assert_eq!((run["verdict"].as_str(), run["aborted_by"].as_str()), (Some("aborted"), Some("freeze")));
    assert_eq!(run["cleanup"], "clean");
    stage.assert_as_before(&before);
    let refused = stage.play(&experiment("\"shop\"", &pause_step("60s")));
    assert_eq!(refused["why"]["reason"], "frozen", "{refused:#}");
    run
}

#[test]
fn a_condition_that_ceases_to_hold_aborts_what_runs_and_admits_again_when_it_holds() {
    story("a_condition_that_ceases_to_hold_aborts_what_runs_and_admits_again_when_it_holds", |stage| {
        stage.workers("shop", 8001..=8002);
        let calm = stage.write("calm", "");
        let check =
            format!("unless = {{ command = [\"/usr/bin/test\", \"-e\", \"{}\"] }}", calm.display());
        let freeze = format!("[[freeze]]\nname = \"outage\"\n{check}\nevery = \"1s\"\n");
        stage.policy("leashed = false", "", &(stage.group("shop", 0, "10ms") + &freeze));
        stage.start();
        let run = aborted_by_freeze(stage, |_| fs::remove_file(&calm).expect("removed"));
        let why = run["why"]["message"].as_str().expect("a reason").to_owned();
        assert!(why.contains("outage") && why.contains("exited with status 1"), "{why}");
        stage.write("calm", "");
        stage.until("it is not frozen any more", |stage| {
            stage.get("/v1/host")["frozen"].is_null().then_some(())
        });
    });
}

#[test]
fn an_event_added_to_a_calendar_freezes_and_so_does_a_calendar_that_cannot_be_read() {
    story("an_event_added_to_a_calendar_freezes_and_so_does_a_calendar_that_cannot_be_read", |stage| {
        stage.workers("shop", 8001..=8002);
        let calendar = |body: &str| {
            format!("BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\n{body}END:VCALENDAR\r\n")
        };
        let path = stage.write("releases.ics", &calendar(""));
        let freeze = format!(
            "[[freeze]]\nname = \"releases\"\ncalendar = \"{}\"\nzone = \"Europe/Berlin\"\n",
            path.display()
        );
        stage.policy("leashed = false", "", &(stage.group("shop", 0, "10ms") + &freeze));
        stage.start();
        stage
            .until("the file was read", |stage| stage.get("/v1/host")["frozen"].is_null().then_some(()));
        let today = jiff::Timestamp::now().strftime("%Y%m%dT000000Z");
        let event = format!(
            "BEGIN:VEVENT\r\nUID:1\r\nSUMMARY:Version 2\r\nDTSTART:{today}\r\nDURATION:P2D\r\nEND:VEVENT\r\n"
        );
        let run = aborted_by_freeze(stage, |stage| drop(stage.write("releases.ics", &calendar(&event))));
        assert!(run["why"]["message"].as_str().is_some_and(|why| why.contains("Version 2")), "{run:#}");

        stage.write("releases.ics", &calendar(""));
        stage.until("it is open again", |stage| stage.get("/v1/host")["frozen"].is_null().then_some(()));
        stage.write("releases.ics", "BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\n");
        let frozen = stage.until("half a file freezes", |stage| {
            let frozen = stage.get("/v1/host")["frozen"].clone();
            (!frozen.is_null()).then_some(frozen)
        });
        assert!(frozen["until"].is_null() && frozen["because"].is_string(), "{frozen:#}");
        let shown = stage.cli(&["calendar"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("just now nothing would run") && shown.contains("releases"), "{shown}");
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    });
}
