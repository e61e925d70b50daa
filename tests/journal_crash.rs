//! The journal under SIGKILL, on a full disk and on one that went read-only.
//!
//! This binary plays the agent too, as an ignored test that it starts itself.

mod journal_support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use journal_support::{at, cap, delay, event, intent, run, run_id};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, raise},
};
use vervet::{
    experiment::GroupName,
    fault::{self, KERNEL_LEASE},
    halt,
    host::sim::SimHost,
    journal::{Intent, Journal, JournalError, Ledger, Outcome, recovery::recover},
    runner::History,
    view::{Cleanup, HaltView, RunState, RunView, Verdict},
};

/// The calls of a life with two faults, one of which is stuck for a while.
const STEPS: usize = 11;

fn intents(host: &SimHost) -> [Intent; 2] {
    let a = intent(host, run_id(1), 0, &delay(80), &[]).unwrap();
    let b = intent(host, run_id(1), 1, &cap(81), &[&a]).unwrap();
    [a, b]
}

fn finished() -> RunView {
    RunView { state: RunState::Finished, verdict: Some(Verdict::Passed), ..run(1, 2) }
}

fn step(journal: &Journal, at_step: usize) -> Result<(), JournalError> {
    let [a, b] = intents(&SimHost::new(1));
    let close = |intent: &Intent, outcome| journal.close(&[(intent.fault().clone(), outcome)], at(9));
    match at_step {
        0 => journal.begin(&run(1, 2), &serde_json::json!({ "title": "x" }), None),
        1 => journal.append_events(&[event(&run(1, 2), 1)]),
        2 => journal.commit(&a),
        3 => journal.mark_injected(a.fault()),
        4 => journal.append_events(&[event(&run(1, 2), 2)]),
        5 => journal.commit(&b),
        6 => close(&a, Outcome::Reverted),
        7 => close(&b, Outcome::Stuck { errors: vec!["no".to_owned()] }),
        8 => journal.probe_write(),
        9 => close(&b, Outcome::Reverted),
        10 => journal.save_run(&finished()),
        _ => unreachable!("there are {STEPS} steps"),
    }
}

/// What must be there after `done` steps, whatever came then.
fn verify(state: &Path, done: usize) {
    let journal = Journal::open(state).unwrap();
    let [a, b] = intents(&SimHost::new(1));
    let mut open = Vec::new();
    if (3..=6).contains(&done) {
        open.push(a);
    }
    if (6..=9).contains(&done) {
        open.push(b);
    }
    assert_eq!(journal.open_intents().unwrap().intents, open, "after {done} steps");
    let charged: Vec<u32> =
        journal.recent_charges(at(0)).unwrap().into_iter().map(|(_, count, _)| count).collect();
    let expected: &[u32] = match done {
        0..=2 => &[],
        3..=5 => &[1],
        _ => &[1, 2],
    };
    assert_eq!(charged, expected, "after {done} steps");
    let report = journal.reader().unwrap().report(run_id(1)).unwrap();
    assert_eq!(report.is_some(), done >= 1);
    let events = report.as_ref().map_or(0, |report| report.events.len());
    assert_eq!(events, usize::from(done >= 2) + usize::from(done >= 5), "after {done} steps");
    let view = report.map(|report| report.run);
    assert_eq!(view == Some(finished()), done == STEPS);
    assert_eq!(journal.unsettled().unwrap().len(), usize::from((1..STEPS).contains(&done)));
}

fn play(part: &str, state: &Path, argument: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([part, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("VERVET_TEST_STATE", state)
        .env("VERVET_TEST_ARGUMENT", argument.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn told() -> Option<(std::path::PathBuf, usize)> {
    let state = std::env::var_os("VERVET_TEST_STATE")?;
    Some((state.into(), std::env::var("VERVET_TEST_ARGUMENT").ok()?.parse().ok()?))
}

/// Lives for so many steps, then dies without a word.
#[test]
#[ignore = "a part played for the other tests"]
fn short_lived_part() {
    let Some((state, steps)) = told() else { return };
    let journal = Journal::open(&state).unwrap();
    (0..steps).for_each(|at_step| step(&journal, at_step).unwrap());
    raise(Signal::SIGKILL).unwrap();
}

/// Commits for ever, saying the number of each commit that returned.
#[test]
#[ignore = "a part played for the other tests"]
fn busy_part() {
    let Some((state, from)) = told() else { return };
    let (journal, host) = (Journal::open(&state).unwrap(), SimHost::new(1));
    let mut out = std::io::stdout();
    for number in u32::try_from(from).unwrap().. {
        let one = intent(&host, run_id(1), number, &cap(80), &[]).unwrap();
        journal.commit(&one).unwrap();
        writeln!(out, "\ncommitted {number}").unwrap();
    }
}

/// Twenty commits, each marked as injected.
#[test]
#[ignore = "a part played for the other tests"]
fn measured_part() {
    let Some((state, _)) = told() else { return };
    let (journal, host) = (Journal::open(&state).unwrap(), SimHost::new(1));
    journal.probe_write().unwrap();
    for number in 0..20 {
        let one = intent(&host, run_id(1), number, &cap(80), &[]).unwrap();
        println!("\nbegin {number}");
        journal.begin(&run(u64::from(number), 1), &serde_json::Value::Null, None).unwrap();
        journal.commit(&one).unwrap();
        journal.mark_injected(one.fault()).unwrap();
        println!("\nend {number}");
    }
}

#[test]
fn a_run_is_on_the_disk_before_its_fault_at_the_price_of_one_sync() {
    let state = tempfile::tempdir().unwrap();
    let trace = state.path().join("trace");
    let traced = Command::new("strace")
        .args(["-f", "-e", "trace=fsync,fdatasync,write", "-o"])
        .args([trace.as_os_str(), std::env::current_exe().unwrap().as_os_str()])
        .args(["measured_part", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("VERVET_TEST_STATE", state.path().join("state"))
        .env("VERVET_TEST_ARGUMENT", "0")
        .output();
    let Ok(traced) = traced else {
        eprintln!("SKIPPED: a_run_is_on_the_disk: strace is not installed");
        return;
    };
    let trace = fs::read_to_string(&trace).unwrap_or_default();
    if !traced.status.success() || !trace.contains("begin 0") {
        eprintln!("SKIPPED: a_run_is_on_the_disk: strace may not trace here");
        return;
    }
    let (mut syncs, mut lives) = (0, 0);
    for call in trace.lines() {
        if call.contains("begin ") {
            syncs = 0;
        } else if call.contains("sync(") {
            syncs += 1;
        } else if call.contains("end ") && call.contains("write(1") {
            assert_eq!(syncs, 1, "{call}");
            lives += 1;
        }
    }
    assert_eq!(lives, 20);
}

#[test]
fn killed_after_any_call_it_has_all_that_was_promised() {
    for done in 0..=STEPS {
        let state = tempfile::tempdir().unwrap();
        let status = play("short_lived_part", state.path(), done).wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
        verify(state.path(), done);
    }
}

#[test]
fn killed_in_the_middle_of_anything_it_has_every_commit_that_returned() {
    let state = tempfile::tempdir().unwrap();
    let mut next = 0;
    for life in 1..=12 {
        let mut child = play("busy_part", state.path(), next);
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acked = None;
        // Each life is cut at another place: the reader lets it run ahead by the pipe's size.
        for _ in 0..life * 7 {
            if let Some(number) = said.next().unwrap().unwrap().strip_prefix("committed ") {
                acked = Some(number.parse::<usize>().unwrap());
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for text in said.map_while(Result::ok) {
            if let Some(number) = text.strip_prefix("committed ") {
                acked = number.parse().ok().or(acked);
            }
        }
        let open = Journal::open(state.path()).unwrap().open_intents().unwrap().intents;
        let numbers: Vec<usize> = open.iter().map(|intent| intent.step as usize).collect();
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "no gaps");
        let least = acked.map_or(next, |last| last + 1);
        // The one under way may have made it.
        assert!((least..=least + 1).contains(&numbers.len()), "{least} {}", numbers.len());
        next = numbers.len();
    }
    assert!(next > 50, "{next}");
}

/// A small file system in a mount namespace of this thread's own.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(test: &str, at: &'a Path, options: &str) -> Option<Self> {
        let none: Option<&str> = None;
        let made = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)));
        if let Err(error) = made {
            eprintln!("SKIPPED: {test}: no private mount namespace: {error}");
        }
        made.is_ok().then_some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    while file.write_all(&[1]).is_ok() {}
}

#[test]
fn a_full_disk_stops_injections_but_no_undo() {
    let state = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount("a_full_disk", state.path(), "size=1m,mode=700") else { return };
    let host = SimHost::new(1);
    let start = host.snapshot();
    let [a, b] = intents(&host);
    let journal = Journal::open(state.path()).unwrap();
    journal.begin(&run(1, 2), &serde_json::Value::Null, None).unwrap();
    journal.commit(&a).unwrap();
    fault::inject(&host, &a.prepared, KERNEL_LEASE).unwrap();

    fill(&state.path().join("filler"));
    let full = |result: Result<(), JournalError>| {
        let error = result.expect_err("the disk is full");
        assert!(matches!(error, JournalError::DiskFull { .. }), "{error}");
    };
    // The log may have a little room left in its last page.
    let refused = (0..20).find_map(|_| journal.probe_write().err()).expect("the disk is full");
    full(Err(refused));
    full(journal.commit(&b));
    assert_eq!(journal.open_intents().unwrap().intents, std::slice::from_ref(&a), "rolled back whole");
    assert!(halt::store(state.path(), &lever()).is_ok(), "an empty file is room enough");
    assert!(halt::load(state.path()).is_some());
    drop(journal);

    // The next start, the disk still full.
    let journal = Journal::open(state.path()).unwrap();
    let recovered = recover(&journal, &host, at(100)).unwrap();
    assert_eq!(recovered.reverted.len(), 1, "{recovered:?}");
    assert!(matches!(recovered.unrecorded, Some(JournalError::DiskFull { .. })), "{recovered:?}");
    assert_eq!(host.snapshot(), start);

    fs::remove_file(state.path().join("filler")).unwrap();
    journal.probe_write().unwrap();
    let recovered = recover(&journal, &host, at(101)).unwrap();
    assert!(recovered.unrecorded.is_none() && recovered.runs == [run_id(1)], "{recovered:?}");
    assert!(journal.open_intents().unwrap().intents.is_empty());
}

#[test]
fn a_disk_gone_read_only_stops_injections_but_no_undo() {
    let state = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount("a_disk_gone_read_only", state.path(), "size=4m,mode=700") else {
        return;
    };
    let host = SimHost::new(1);
    let start = host.snapshot();
    let [a, _] = intents(&host);
    {
        let journal = Journal::open(state.path()).unwrap();
        journal.begin(&run(1, 2), &serde_json::Value::Null, None).unwrap();
        journal.commit(&a).unwrap();
    }
    fault::inject(&host, &a.prepared, KERNEL_LEASE).unwrap();
    let none: Option<&str> = None;
    mount(none, state.path(), none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();

    let journal = Journal::open(state.path()).unwrap();
    let error = journal.probe_write().unwrap_err();
    assert!(matches!(error, JournalError::ReadOnly { .. }), "{error}");
    let recovered = recover(&journal, &host, at(100)).unwrap();
    assert_eq!(recovered.reverted.len(), 1, "{recovered:?}");
    assert!(matches!(recovered.unrecorded, Some(JournalError::ReadOnly { .. })), "{recovered:?}");
    assert_eq!(host.snapshot(), start);
    assert!(halt::store(state.path(), &lever()).is_err());
}

fn lever() -> HaltView {
    HaltView { reason: "a fire".to_owned(), by: "op".to_owned(), since: at(0), durable: false }
}

#[test]
fn a_halt_survives_until_it_is_released() {
    let state = tempfile::tempdir().unwrap();
    assert_eq!(halt::load(state.path()), None);
    halt::store(state.path(), &lever()).unwrap();
    halt::store(state.path(), &HaltView { reason: "another".to_owned(), ..lever() }).unwrap();
    let loaded = halt::load(state.path()).unwrap();
    assert_eq!(loaded, HaltView { reason: "another".to_owned(), durable: true, ..lever() });
    halt::clear(state.path()).unwrap();
    halt::clear(state.path()).unwrap();
    assert_eq!(halt::load(state.path()), None);
    assert!(halt::store(&state.path().join("missing"), &lever()).is_err());
}

#[test]
fn a_halt_that_cannot_be_read_is_a_halt() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("halt.json");
    for content in [&b""[..], b"{", b"null", b"\xff\xfe", b"{\"reason\":1}"] {
        fs::write(&path, content).unwrap();
        let halt = halt::load(state.path()).unwrap();
        assert!(halt.reason.starts_with("unreadable halt file"), "{halt:?}");
    }
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(halt::load(state.path()).is_some(), "and it does not wait for a pipe");
    halt::clear(state.path()).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(halt::load(state.path()).is_some());
    assert!(halt::clear(state.path()).is_err(), "still halted, so said");
}

#[test]
fn budgets_survive_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let status = play("short_lived_part", state.path(), 6).wait().unwrap();
    assert!(!status.success());
    let journal = Journal::open(state.path()).unwrap();
    recover(&journal, &SimHost::new(1), at(100)).unwrap();
    let charges = journal.recent_charges(at(0)).unwrap();
    let checkout = GroupName::from("checkout");
    assert_eq!(charges, [(checkout.clone(), 1, at(0)), (checkout, 2, at(1))]);
    assert_eq!(journal.reader().unwrap().list(None, 9).unwrap()[0].cleanup, Cleanup::Clean);
}
