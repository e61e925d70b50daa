//! The journal's file: what it promises to keep, and what it refuses to open.

mod journal_support;

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use jiff::SignedDuration;
use journal_support::{at, cap, delay, event, intent, run, run_id};
use vervet::{
    experiment::GroupName,
    host::sim::SimHost,
    journal::{Journal, JournalError, Ledger, Outcome},
    runner::{History, Idempotency},
    view::{Cleanup, RunState, RunView, Verdict},
};

fn state() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn finished(n: u64) -> RunView {
    RunView { state: RunState::Finished, verdict: Some(Verdict::Passed), ..run(n, 1) }
}

#[test]
fn intents_come_back_as_they_were_written() {
    let (state, host) = (state(), SimHost::new(1));
    let a = intent(&host, run_id(1), 0, &delay(80), &[]).unwrap();
    let b = intent(&host, run_id(1), 1, &cap(80), &[&a]).unwrap();
    let journal = Journal::open(state.path()).unwrap();
    journal.begin(&run(1, 2), &serde_json::json!({ "title": "x" }), None).unwrap();
    journal.commit(&a).unwrap();
    journal.commit(&b).unwrap();
    journal.mark_injected(a.fault()).unwrap();
    drop(journal);

    let journal = Journal::open(state.path()).unwrap();
    let open = journal.open_intents().unwrap();
    assert_eq!(open.intents, [a.clone(), b.clone()]);
    assert!(open.unreadable.is_empty());
    let charges = journal.recent_charges(at(1)).unwrap();
    assert_eq!(charges, [(GroupName::from("checkout"), 2, at(1))], "only those at or after `since`");

    let stuck = Outcome::Stuck { errors: vec!["no".to_owned()] };
    journal
        .close(&[(a.fault().clone(), stuck), (b.fault().clone(), Outcome::NeverInjected)], at(9))
        .unwrap();
    assert_eq!(
        journal.open_intents().unwrap().intents,
        std::slice::from_ref(&a),
        "what is stuck stays open"
    );
    assert_eq!(journal.recent_charges(at(0)).unwrap().len(), 1, "what never happened is not charged");
    journal.close(&[(a.fault().clone(), Outcome::Reverted)], at(10)).unwrap();
    assert!(journal.open_intents().unwrap().intents.is_empty());
    assert_eq!(journal.recent_charges(at(0)).unwrap().len(), 1, "what was undone stays charged");
}

#[test]
fn a_fault_is_opened_once() {
    let (state, host) = (state(), SimHost::new(1));
    let a = intent(&host, run_id(1), 0, &cap(80), &[]).unwrap();
    let journal = Journal::open(state.path()).unwrap();
    journal.commit(&a).unwrap();
    assert!(matches!(journal.commit(&a), Err(JournalError::Duplicate { .. })));
    journal.close(&[(a.fault().clone(), Outcome::Reverted)], at(1)).unwrap();
    journal.commit(&a).unwrap();
    assert_eq!(journal.open_intents().unwrap().intents.len(), 1);
}

#[test]
fn runs_and_events_are_listed_newest_first() {
    let state = state();
    let journal = Journal::open(state.path()).unwrap();
    let reader = journal.reader().unwrap();
    for n in 1..=5 {
        journal.begin(&run(n, 1), &serde_json::json!({ "n": n }), None).unwrap();
        journal.append_events(&[event(&run(n, 1), 1), event(&run(n, 1), 2)]).unwrap();
        if n != 3 {
            journal.save_run(&finished(n)).unwrap();
        }
    }
    let titles = |runs: Vec<RunView>| runs.into_iter().map(|run| run.title).collect::<Vec<_>>();
    assert_eq!(titles(reader.list(None, 3).unwrap()), ["run 5", "run 4", "run 2"]);
    assert_eq!(titles(reader.list(Some(run_id(4)), 9).unwrap()), ["run 2", "run 1"]);
    let report = reader.report(run_id(3)).unwrap().unwrap();
    assert_eq!(report.run, run(3, 1));
    assert_eq!(report.experiment, serde_json::json!({ "n": 3 }));
    assert_eq!(report.events, [event(&run(3, 1), 1), event(&run(3, 1), 2)]);
    assert!(reader.report(run_id(99)).unwrap().is_none());
}

#[test]
fn a_reader_in_the_middle_of_a_look_does_not_hold_up_a_commit() {
    let (state, host) = (state(), SimHost::new(1));
    let journal = Journal::open(state.path()).unwrap();
    journal.save_run(&finished(1)).unwrap();
    let other = rusqlite::Connection::open(journal.path()).unwrap();
    let looking = other.unchecked_transaction().unwrap();
    let runs: i64 = looking.query_row("SELECT count(*) FROM runs", [], |row| row.get(0)).unwrap();
    assert_eq!(runs, 1);
    for step in 0..600 {
        let one = intent(&host, run_id(1), step, &cap(80), &[]).unwrap();
        journal.commit(&one).unwrap();
        journal.close(&[(one.fault().clone(), Outcome::Reverted)], at(1)).unwrap();
    }
}

#[test]
fn an_idempotency_key_is_remembered_for_its_caller_and_its_time() {
    let state = state();
    let journal = Journal::open(state.path()).unwrap();
    let key = Idempotency { key: "k".to_owned(), body: [7; 32] };
    journal.begin(&run(1, 1), &serde_json::Value::Null, Some(&key)).unwrap();
    let created = run(1, 1).created_at;
    let ask = |caller: &str, since| journal.idempotency(caller, "k", since).unwrap();
    assert_eq!(ask("socket:root", created), Some(([7; 32], run_id(1))));
    assert_eq!(ask("token:ci", created), None);
    assert_eq!(ask("socket:root", created + SignedDuration::from_secs(1)), None);
}

#[test]
fn pruning_forgets_the_oldest_but_nothing_that_is_open() {
    let (state, host) = (state(), SimHost::new(1));
    let journal = Journal::open(state.path()).unwrap();
    for n in 1..=4 {
        journal.begin(&run(n, 1), &serde_json::Value::Null, None).unwrap();
        journal.append_events(&[event(&run(n, 1), 1)]).unwrap();
        journal.save_run(&finished(n)).unwrap();
    }
    journal.save_run(&RunView { cleanup: Cleanup::Stuck, ..finished(1) }).unwrap();
    journal.commit(&intent(&host, run_id(2), 0, &cap(80), &[]).unwrap()).unwrap();
    journal.begin(&run(5, 1), &serde_json::Value::Null, None).unwrap();
    let later = run(4, 1).created_at + SignedDuration::from_hours(90 * 24);
    let pruned = journal.prune(later).unwrap();
    assert_eq!((pruned.runs, pruned.more), (1, false), "run 3; 4 is 90 days old to the second");
    let reader = journal.reader().unwrap();
    assert!(reader.report(run_id(3)).unwrap().is_none());
    for kept in [1, 2, 4, 5] {
        assert!(reader.report(run_id(kept)).unwrap().is_some(), "run {kept}");
    }
}

#[test]
fn at_most_ten_thousand_runs_are_kept() {
    let state = state();
    let journal = Journal::open(state.path()).unwrap();
    for n in 1..=10_003 {
        journal.begin(&finished(n), &serde_json::Value::Null, None).unwrap();
    }
    assert_eq!(journal.prune(at(0)).unwrap().runs, 3);
    let reader = journal.reader().unwrap();
    assert_eq!(reader.list(None, 20_000).unwrap().len(), 10_000);
    assert!(reader.report(run_id(3)).unwrap().is_none() && reader.report(run_id(4)).unwrap().is_some());
}

#[test]
fn two_cannot_have_it_at_once() {
    let state = state();
    let first = Journal::open(state.path()).unwrap();
    let error = Journal::open(state.path()).unwrap_err();
    assert!(matches!(error, JournalError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    Journal::open(state.path()).unwrap();
}

#[test]
fn nobody_else_can_read_or_replace_it() {
    let state = state();
    let inner = state.path().join("a/b");
    let journal = Journal::open(&inner).unwrap();
    journal.probe_write().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&inner), 0o700);
    for file in fs::read_dir(&inner).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    drop(journal);
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o770)).unwrap();
    assert!(matches!(Journal::open(&inner), Err(JournalError::Exposed { .. })));
}

/// Opens a state directory whose file was tampered with; the file must stay as it is.
fn refuse(tamper: impl FnOnce(&Path)) -> JournalError {
    let state = state();
    let path = state.path().join("vervet.db");
    {
        let journal = Journal::open(state.path()).unwrap();
        journal.save_run(&finished(1)).unwrap();
    }
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    tamper(&path);
    let before = fs::read(&path).ok();
    let error = Journal::open(state.path()).unwrap_err();
    assert_eq!(fs::read(&path).ok(), before, "the file was changed");
    assert!(error.to_string().contains("vervet.db"), "{error}");
    error
}

#[test]
fn what_is_not_a_sound_journal_is_refused_and_kept() {
    let garbage = refuse(|path| {
        fs::write(path, b"not a database at all, but long enough to be one".repeat(90)).unwrap();
    });
    assert!(matches!(garbage, JournalError::Corrupt { .. }), "{garbage}");
    let empty = refuse(|path| fs::write(path, b"").unwrap());
    assert!(matches!(empty, JournalError::Corrupt { .. }), "{empty}");
    let foreign = refuse(|path| {
        fs::remove_file(path).unwrap();
        rusqlite::Connection::open(path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    });
    assert!(matches!(foreign, JournalError::Foreign { .. }), "{foreign}");
    let newer = refuse(|path| {
        rusqlite::Connection::open(path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    });
    assert!(matches!(newer, JournalError::Newer { found: 99, .. }), "{newer}");
    let short = refuse(|path| {
        let length = fs::metadata(path).unwrap().len();
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length / 2).unwrap();
    });
    assert!(matches!(short, JournalError::Corrupt { .. }), "{short}");
    let directory = refuse(|path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    });
    assert!(matches!(directory, JournalError::Foreign { .. }), "{directory}");
}

#[test]
fn a_log_without_its_file_is_not_a_beginning() {
    let (state, host) = (state(), SimHost::new(1));
    let journal = Journal::open(state.path()).unwrap();
    journal.commit(&intent(&host, run_id(1), 0, &cap(80), &[]).unwrap()).unwrap();
    drop(journal);
    fs::remove_file(state.path().join("vervet.db")).unwrap();
    assert!(matches!(Journal::open(state.path()), Err(JournalError::Corrupt { .. })));
}

#[test]
fn an_intent_that_makes_no_sense_hides_no_other() {
    let (state, host) = (state(), SimHost::new(1));
    let journal = Journal::open(state.path()).unwrap();
    let a = intent(&host, run_id(1), 0, &cap(80), &[]).unwrap();
    let b = intent(&host, run_id(1), 1, &cap(81), &[]).unwrap();
    journal.commit(&a).unwrap();
    journal.commit(&b).unwrap();
    drop(journal);
    rusqlite::Connection::open(state.path().join("vervet.db"))
        .unwrap()
        .execute("UPDATE intents SET intent = '{}' WHERE fault = ?1", [&a.fault().0])
        .unwrap();
    let open = Journal::open(state.path()).unwrap().open_intents().unwrap();
    assert_eq!(open.intents, [b]);
    assert_eq!(open.unreadable[0].fault, *a.fault());
}

#[test]
fn it_can_be_given_to_a_thread_of_its_own() {
    fn goes<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    goes::<Journal>();
    is_shared::<vervet::journal::Reader>();
}
