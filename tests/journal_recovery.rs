//! Recovery over the real journal and the simulated host: whatever was left is gone, and said.

mod journal_support;

use journal_support::{at, cap, delay, intent, run, run_id};
use vervet::{
    fault::{self, KERNEL_LEASE, undo},
    host::sim::{SimHost, Trouble, Verb},
    journal::{Journal, Ledger, Outcome, recovery::recover},
    runner::History,
    view::{AbortedBy, Cleanup, RunState, StepState, Verdict},
};

/// Where the agent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Death {
    AfterBegin,
    AfterFirstIntent,
    InTheMiddleOfInjection(usize),
    AfterFirstInjection,
    AfterSecondIntent,
    AfterSecondInjection,
    AfterFirstRevert,
    AfterFirstClose,
    AfterSecondRevert,
}

fn live_until(death: Death, journal: &Journal, host: &SimHost) {
    journal.begin(&run(1, 3), &serde_json::Value::Null, None).unwrap();
    if death == Death::AfterBegin {
        return;
    }
    let first = intent(host, run_id(1), 0, &delay(80), &[]).unwrap();
    journal.commit(&first).unwrap();
    if death == Death::AfterFirstIntent {
        return;
    }
    if let Death::InTheMiddleOfInjection(objects) = death {
        host.fail_nth(Verb::Install, 1, Trouble::After(objects));
        fault::inject(host, &first.prepared, KERNEL_LEASE).unwrap_err();
        return;
    }
    fault::inject(host, &first.prepared, KERNEL_LEASE).unwrap();
    journal.mark_injected(first.fault()).unwrap();
    if death == Death::AfterFirstInjection {
        return;
    }
    let second = intent(host, run_id(1), 1, &delay(81), &[&first]).unwrap();
    journal.commit(&second).unwrap();
    if death == Death::AfterSecondIntent {
        return;
    }
    fault::inject(host, &second.prepared, KERNEL_LEASE).unwrap();
    if death == Death::AfterSecondInjection {
        return;
    }
    let undone =
        undo::revert(host, &[(first.fault().clone(), first.undo().clone())], &[second.undo().clone()]);
    assert_eq!(undone[0].1, Ok(()));
    if death == Death::AfterFirstRevert {
        return;
    }
    journal.close(&[(first.fault().clone(), Outcome::Reverted)], at(5)).unwrap();
    if death == Death::AfterFirstClose {
        return;
    }
    undo::revert(host, &[(second.fault().clone(), second.undo().clone())], &[]);
}

#[test]
fn wherever_the_agent_dies_nothing_is_left() {
    let deaths = [
        Death::AfterBegin,
        Death::AfterFirstIntent,
        Death::AfterFirstInjection,
        Death::AfterSecondIntent,
        Death::AfterSecondInjection,
        Death::AfterFirstRevert,
        Death::AfterFirstClose,
        Death::AfterSecondRevert,
    ];
    let deaths = deaths.into_iter().chain((0..12).map(Death::InTheMiddleOfInjection));
    for death in deaths {
        let state = tempfile::tempdir().unwrap();
        let host = SimHost::new(1);
        let start = host.snapshot();
        live_until(death, &Journal::open(state.path()).unwrap(), &host);

        let journal = Journal::open(state.path()).unwrap();
        let recovered = recover(&journal, &host, at(100)).unwrap();
        assert_eq!(host.snapshot(), start, "{death:?}");
        assert_eq!(host.violations(), [""; 0], "{death:?}");
        assert!(
            recovered.stuck.is_empty() && recovered.unrecorded.is_none(),
            "{death:?}: {recovered:?}"
        );
        assert_eq!(recovered.runs, [run_id(1)], "{death:?}");
        assert!(journal.open_intents().unwrap().intents.is_empty(), "{death:?}");
        let report = journal.reader().unwrap().report(run_id(1)).unwrap().unwrap();
        assert_eq!(report.run.state, RunState::Finished);
        assert_eq!(report.run.verdict, Some(Verdict::Aborted));
        assert_eq!(report.run.aborted_by, Some(AbortedBy::Crash));
        assert_eq!(report.run.cleanup, Cleanup::Clean);
        assert_eq!(report.events.last().unwrap().kind, "recovered");

        let again = recover(&journal, &host, at(101)).unwrap();
        assert!(again.reverted.is_empty() && again.runs.is_empty(), "{death:?}: {again:?}");
    }
}

#[test]
fn what_cannot_be_undone_is_said_and_tried_again_at_the_next_start() {
    let state = tempfile::tempdir().unwrap();
    let host = SimHost::new(1);
    let start = host.snapshot();
    live_until(Death::AfterSecondInjection, &Journal::open(state.path()).unwrap(), &host);
    let journal = Journal::open(state.path()).unwrap();

    host.fail_nth(Verb::Restore, 1, Trouble::Refused);
    let recovered = recover(&journal, &host, at(100)).unwrap();
    assert_eq!((recovered.stuck.len(), recovered.reverted.len()), (1, 1), "{recovered:?}");
    let view = journal.reader().unwrap().report(run_id(1)).unwrap().unwrap().run;
    assert_eq!((view.state, view.cleanup), (RunState::Finished, Cleanup::Stuck));
    assert!(view.steps.iter().any(|step| step.state == StepState::Stuck && !step.errors.is_empty()));

    let recovered = recover(&journal, &host, at(200)).unwrap();
    assert_eq!((recovered.stuck.len(), recovered.reverted.len()), (0, 1), "{recovered:?}");
    assert_eq!(host.snapshot(), start);
    let view = journal.reader().unwrap().report(run_id(1)).unwrap().unwrap().run;
    assert_eq!((view.cleanup, view.finished_at), (Cleanup::Clean, Some(at(100))));
}

#[test]
fn a_thousand_open_intents_are_undone_within_a_second() {
    let state = tempfile::tempdir().unwrap();
    let host = SimHost::new(1);
    let start = host.snapshot();
    let journal = Journal::open(state.path()).unwrap();
    journal.begin(&run(1, 1000), &serde_json::Value::Null, None).unwrap();
    for step in 0..1000 {
        let one = intent(&host, run_id(1), step, &cap(80), &[]).unwrap();
        journal.commit(&one).unwrap();
        fault::inject(&host, &one.prepared, KERNEL_LEASE).unwrap();
    }
    drop(journal);
    let began = std::time::Instant::now();
    let journal = Journal::open(state.path()).unwrap();
    let recovered = recover(&journal, &host, at(100)).unwrap();
    let took = began.elapsed();
    assert_eq!(recovered.reverted.len(), 1000);
    assert_eq!(host.snapshot(), start);
    assert!(took.as_millis() < 1000, "{took:?}");
}
