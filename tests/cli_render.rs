//! Exit codes and rendering: the same views give the same lines, within the width, without colour.

use jiff::Timestamp;
use serde_json::json;
use vervet::{
    cli::{
        exit::Exit,
        live::{Scene, frame},
        render,
        status::{Glance, glance},
        ui::Style,
    },
    view::{Cleanup, FaultView, GroupView, HostView, PlanView, RunView, Verdict},
};

const NOW: &str = "2026-11-22T16:00:10Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn run() -> RunView {
    serde_json::from_value(json!({
        "id": "0192a1b2-c3d4-7000-8000-000000000001",
        "title": "Checkout survives the loss of one worker",
        "hypothesis": "Customers notice nothing",
        "state": "running", "verdict": null, "cleanup": "in_force", "aborted_by": null, "why": null,
        "seed": 7, "leashed": false, "caller": "socket:root",
        "created_at": "2026-11-22T16:00:00Z", "finished_at": null,
        "steps": [
            { "name": "lose a worker", "fault": "kill", "state": "done", "waiting_until": null,
              "targets": ["pid 12 checkout-1 (demo)"], "injected_at": "2026-11-22T16:00:01Z",
              "deadline": null, "undone_at": "2026-11-22T16:00:02Z",
              "effect": { "proven": true, "summary": "SIGKILL sent: 1 gone" }, "errors": [] },
            { "name": "the database answers slowly", "fault": "latency", "state": "in_force",
              "waiting_until": null, "targets": [], "injected_at": "2026-11-22T16:00:05Z",
              "deadline": "2026-11-22T16:01:05Z", "undone_at": null, "effect": null, "errors": [] },
            { "name": "a second worker", "fault": "kill", "state": "waiting",
              "waiting_until": "2026-11-22T16:00:22Z", "targets": [], "injected_at": null,
              "deadline": null, "undone_at": null, "effect": null, "errors": [] }
        ],
        "probes": [
            { "name": "checkout answers", "before": true, "attempts": 20, "misses": 1, "worst_row": 1,
              "tolerate": 2, "after": null, "last_miss": "http://127.0.0.1:8080/ answered 503, not 200" }
        ]
    }))
    .expect("a run")
}

fn groups() -> Vec<GroupView> {
    let budget =
        json!({ "at_once": 1, "every_ms": 30000, "left": 0, "room_at": "2026-11-22T16:00:22Z" });
    serde_json::from_value(json!([
        { "name": "checkout", "floor": 3, "expected": 4, "ready": 4, "total": 4, "taken_at": NOW,
          "fresh": true, "problem": null, "charged": 1, "effective": 3, "budget": budget,
          "blocked": null, "members": [] },
        { "name": "search", "floor": 50, "expected": 100, "ready": 98, "total": 100, "taken_at": NOW,
          "fresh": true, "problem": null, "charged": 0, "effective": 98, "budget": budget,
          "blocked": null, "members": [] },
        { "name": "payments", "floor": 1, "expected": 2, "ready": null, "total": null, "taken_at": null,
          "fresh": false, "problem": "http://127.0.0.1:9000/healthz did not answer within 500ms",
          "charged": 0, "effective": null, "budget": budget, "blocked": null, "members": [] }
    ]))
    .expect("groups")
}

fn widest(lines: &[String]) -> usize {
    lines.iter().map(|line| line.chars().count()).max().unwrap_or(0)
}

#[test]
fn the_exit_code_of_a_run_is_its_verdict_and_stuck_wins() {
    let cases = [
        (Some(Verdict::Passed), 0),
        (Some(Verdict::Failed), 1),
        (Some(Verdict::Refused), 3),
        (Some(Verdict::Aborted), 4),
        (Some(Verdict::Inconclusive), 5),
        (None, 5),
    ];
    for (verdict, code) in cases {
        let clean = RunView { verdict, cleanup: Cleanup::Clean, ..run() };
        assert_eq!(Exit::of_run(&clean).code(), code, "{verdict:?}");
        let stuck = RunView { verdict, cleanup: Cleanup::Stuck, ..run() };
        assert_eq!(Exit::of_run(&stuck).code(), 6, "{verdict:?}");
    }
    assert_eq!(Exit::Usage.code(), 2);
    assert_eq!(Exit::Unreachable.code(), 7);
}

#[test]
fn the_live_picture_at_80_columns() {
    let (run, groups) = (run(), groups());
    let scene = Scene { run: &run, groups: &groups, latest: Some("injected"), notice: None, now: now() };
    let lines = frame(scene, Style::PLAIN);
    let wanted = "\
Checkout survives the loss of one worker                            running 0:10
  checkout  ███|▒              4 ready, floor 3, 3 effective (1 charged); budge…
  search    ████████|███████░  98 ready, floor 50; budget 0 of 1, room in 12s
  payments  ░|░                ? ready, floor 1, not fresh; budget 0 of 1, room…
    no reading: http://127.0.0.1:9000/healthz did not answer within 500ms
  1 lose a worker                done       kill         SIGKILL sent: 1 gone
  2 the database answers slowly  in force   latency      0:55 left
  3 a second worker              waiting    kill         budget: 12s more
    probe checkout answers: 20 tries, 1 missed, 1 in a row of 2 forgiven (last:…
  injected";
    assert_eq!(lines.join("\n"), wanted);
}

#[test]
fn no_picture_is_wider_than_its_terminal() {
    let (run, groups) = (run(), groups());
    for width in 30..140 {
        let style = Style { width, ..Style::PLAIN };
        let notice =
            Some("aborting: waits until everything is undone (again: waits no longer than 3 s)");
        let scene = Scene { run: &run, groups: &groups, latest: Some("x"), notice, now: now() };
        assert!(widest(&frame(scene, style)) <= width, "{width}: {:#?}", frame(scene, style));
        assert!(widest(&render::verdict(&run, style)) <= width);
    }
}

#[test]
fn without_unicode_the_bar_is_ascii_and_colour_only_adds() {
    let groups = groups();
    let plain = Style { unicode: false, ..Style::PLAIN };
    assert_eq!(render::bar(&groups[0], plain), "###|+");
    let colored = Style { color: true, ..Style::PLAIN };
    let strip = |line: &String| {
        let mut text = line.clone();
        for code in ["\u{1b}[32m", "\u{1b}[33m", "\u{1b}[31;1m", "\u{1b}[2m", "\u{1b}[1m", "\u{1b}[0m"] {
            text = text.replace(code, "");
        }
        text
    };
    let (with, without) =
        (render::groups(&groups, now(), colored), render::groups(&groups, now(), Style::PLAIN));
    assert_ne!(with, without);
    assert_eq!(with.iter().map(strip).collect::<Vec<_>>(), without);
}

#[test]
fn the_verdict_keeps_effect_hypothesis_and_host_apart() {
    let mut run = run();
    run.verdict = Some(Verdict::Aborted);
    run.state = vervet::view::RunState::Finished;
    run.aborted_by = Some(vervet::view::AbortedBy::Limiter);
    run.cleanup = Cleanup::Clean;
    run.why = serde_json::from_value(json!({
        "reason": "below_floor", "numbers": {},
        "message": "group checkout has 2 ready, which is below its floor of 3"
    }))
    .expect("a reason");
    let wanted = "\
verdict     aborted (by the limiter)
why         group checkout has 2 ready, which is below its floor of 3
effect      proven: lose a worker: SIGKILL sent: 1 gone
            not measured: the database answers slowly: the step ended before it
            could be
hypothesis  not judged: checkout answers: 1 of 20 missed, 1 in a row (2
            forgiven)
host        clean: nothing of this run is left on it
repeat      seed 7, run 0192a1b2-c3d4-7000-8000-000000000001";
    assert_eq!(render::verdict(&run, Style::PLAIN).join("\n"), wanted);
}

#[test]
fn the_first_line_of_the_status_answers_the_question() {
    let mut host: HostView = serde_json::from_value(json!({
        "name": "web1", "version": "0.1.0", "kernel": "6.1.0", "started_at": "2026-11-22T15:00:00Z",
        "leashed": true, "halted": null, "frozen": null, "problems": [], "faults": []
    }))
    .expect("a host");
    let (runs, groups) = (vec![run()], groups());
    let fault: FaultView = serde_json::from_value(json!({
        "id": "0000000001", "run": runs[0].id, "step": "the database answers slowly", "fault": "latency",
        "state": "in_force", "targets": ["tcp dport 5432"], "lease": "kernel",
        "since": "2026-11-22T16:00:05Z", "deadline": "2026-11-22T16:01:05Z"
    }))
    .expect("a fault");
    let at = |faults: &[FaultView], runs: &[RunView], host: &HostView| {
        let all = Glance { host, groups: &groups, faults, runs };
        let lines = glance(all, now(), Style::PLAIN);
        assert!(widest(&lines) <= 80, "{lines:#?}");
        lines
    };
    let answer = |lines: Vec<String>| {
        lines.into_iter().take_while(|line| !line.starts_with("leashed:")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        answer(at(&[], &[], &host)),
        "No: vervet changes nothing on web1 now (no fault in the latest runs)"
    );
    let mut over = runs.clone();
    over[0].finished_at = Some(now());
    for step in &mut over[0].steps {
        step.injected_at = Some("2026-11-22T15:40:00Z".parse().expect("a time"));
        step.undone_at = Some("2026-11-22T15:48:30Z".parse().expect("a time"));
    }
    let said = answer(at(&[], &over, &host));
    assert!(said.starts_with("No: vervet changes nothing on web1 now (last fault ended "), "{said}");
    let said = answer(at(std::slice::from_ref(&fault), &runs, &host));
    let wanted = format!(
        "Yes: 1 fault of vervet is active on web1: latency \"the database answers slowly\" of {:?}, ends in ",
        runs[0].title
    );
    assert!(said.starts_with(&wanted), "{said}");
    let stuck = FaultView { state: vervet::view::StepState::Stuck, ..fault };
    let said = answer(at(&[stuck], &runs, &host));
    assert!(said.starts_with("Yes, and it is STUCK on web1"), "{said}");
    // A former agent's fault that nobody could undo is nobody's run any more, and still there.
    host.problems = serde_json::from_value(json!([{
        "reason": "cleanup_stuck", "message": "1 fault(s) could not be reverted yet", "numbers": {}
    }]))
    .expect("a problem");
    let said = answer(at(&[], &[], &host));
    assert!(said.starts_with("Yes, perhaps, and it is STUCK on web1"), "{said}");
    host.problems.clear();
    host.halted = serde_json::from_value(json!({
        "reason": "outage", "by": "socket:root", "since": NOW, "durable": true
    }))
    .expect("a halt");
    let lines = at(&[], &[], &host);
    assert!(lines.iter().any(|line| line.starts_with("halted since") && line.contains("outage")));
    assert!(lines.iter().any(|line| line.starts_with("leashed:")));
}

#[test]
fn a_plan_shows_exact_targets_charges_and_the_limiters_words() {
    let plan: PlanView = serde_json::from_value(json!({
        "title": "Two at once", "digest": "ab".repeat(32), "seed": 7,
        "decision": { "verdict": "refuse", "why": { "reason": "floor", "numbers": {},
            "message": "group checkout has 4 ready, floor 3; killing 2 would leave 2" } },
        "steps": [{ "name": "lose two", "fault": "kill",
            "targets": ["pid 11 checkout-1 (x)", "pid 12 checkout-2 (x)"],
            "charges": [{ "group": "checkout", "instances": 2 }],
            "decision": { "verdict": "refuse", "why": { "reason": "floor", "numbers": {},
                "message": "group checkout has 4 ready, floor 3; killing 2 would leave 2" } } }]
    }))
    .expect("a plan");
    assert_eq!(Exit::of_decision(&plan.decision), Exit::Refused);
    let wanted = "\
Two at once

1. lose two (kill)
   hits     pid 11 checkout-1 (x)
            pid 12 checkout-2 (x)
   charges  2 of checkout
   limiter  refused: group checkout has 4 ready, floor 3; killing 2 would leave
            2

refused: group checkout has 4 ready, floor 3; killing 2 would leave 2
seed 7, digest";
    let text = render::plan(&plan, now(), Style::PLAIN).join("\n");
    assert!(text.starts_with(wanted), "{text}");
}
