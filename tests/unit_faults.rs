//! `pause` and `unit` on the simulated host: what is found, what stands against it, and what their
//! undos do when others were faster; and that an undo comes back from the journal as it went in.

mod journal_support;

use std::time::Duration;

use journal_support::{at, run, run_id};
use vervet::{
    experiment::{FaultSpec, Order, Pause, Pick, ProcessSelector, ProcessTarget, UnitAction, UnitFault},
    fault::{
        self, Context, Injection, KERNEL_LEASE, Lease, Prepared, Target, undo,
        undo::Restore,
        unit::{How, find},
    },
    host::{
        FaultId, Host, ProcessState, UnitCandidate, UnitVerb,
        sim::{SimHost, Spawn, Verb},
    },
    journal::{Intent, Journal, Ledger, recovery::recover},
};

const UNIT: &str = "shop@1.service";

fn host() -> SimHost {
    let host = SimHost::new(1);
    for at in 1..=2 {
        let like = Spawn {
            name: "shop".to_owned(),
            respawn: Some(Duration::from_millis(100)),
            ..Spawn::default()
        };
        host.add_unit(&format!("shop@{at}.service"), &like);
    }
    host
}

fn select(unit: &str) -> ProcessSelector {
    ProcessSelector { unit: Some(unit.to_owned()), ..ProcessSelector::default() }
}

fn target() -> ProcessTarget {
    ProcessTarget { select: select(UNIT), pick: Pick::All, order: Order::Oldest }
}

fn stop() -> FaultSpec {
    FaultSpec::Unit(UnitFault { target: target(), action: UnitAction::Stop })
}

fn units(host: &SimHost, how: How) -> Vec<UnitCandidate> {
    find(host, &[], &select(UNIT), how).unwrap()
}

fn prepare(host: &SimHost, spec: &FaultSpec, target: &Target, step: usize) -> Prepared {
    let context = Context {
        fault: FaultId::new(run_id(1), step),
        seed: 1,
        mark_mask: 0xff00_0000,
        exempt_ports: &[],
        open: &[],
        others: &[],
    };
    let before = host.snapshot();
    let prepared = fault::prepare(host, spec, target, &context).unwrap();
    assert_eq!(host.snapshot(), before, "preparing only reads");
    assert_eq!(prepared.lease, Lease::Warden);
    prepared
}

fn stopped(host: &SimHost) -> Prepared {
    let target = Target::Units { units: units(host, How::Job) };
    let prepared = prepare(host, &stop(), &target, 0);
    fault::inject(host, &prepared, KERNEL_LEASE).unwrap();
    prepared
}

fn revert(host: &SimHost, prepared: &Prepared) {
    let undo = [(prepared.fault.clone(), prepared.undo.clone())];
    for _ in 0..2 {
        assert_eq!(undo::revert(host, &undo, &[])[0].1, Ok(()));
    }
}

/// Three faults in force, their undos in a journal that is read anew by whoever comes next.
#[test]
fn what_the_journal_holds_open_continues_thaws_and_starts() {
    let host = host();
    let start = host.snapshot();
    let worker = host.spawn(&Spawn { name: "worker".to_owned(), ..Spawn::default() });
    let by_name = ProcessSelector { name: Some("worker".to_owned()), ..ProcessSelector::default() };
    let processes = host.find(&by_name, &[]).unwrap();
    let pause = FaultSpec::Pause(Pause { target: target() });
    let second = find(&host, &[], &select("shop@2.service"), How::Freezer).unwrap();
    let all = [
        prepare(&host, &pause, &Target::Processes { processes }, 0),
        prepare(&host, &pause, &Target::Units { units: second }, 1),
        prepare(&host, &stop(), &Target::Units { units: units(&host, How::Job) }, 2),
    ];
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.begin(&run(1, 3), &serde_json::Value::Null, None).unwrap();
    for (step, prepared) in all.iter().enumerate() {
        let intent = Intent {
            run: run_id(1),
            step: u32::try_from(step).unwrap(),
            prepared: prepared.clone(),
            charges: vec![],
            opened_at: at(0),
            deadline: Some(at(60)),
        };
        journal.commit(&intent).unwrap();
        fault::inject(&host, prepared, KERNEL_LEASE).unwrap();
    }
    let harmed = host.snapshot();
    assert_eq!((harmed.stopped.len(), harmed.frozen.len(), harmed.down.len()), (1, 1, 1));
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    let open = journal.open_intents().unwrap();
    assert!(open.unreadable.is_empty());
    let held: Vec<_> = open.intents.iter().map(|intent| intent.prepared.clone()).collect();
    assert_eq!(held, all);
    let recovered = recover(&journal, &host, at(1)).unwrap();
    assert_eq!((recovered.reverted.len(), recovered.stuck.len()), (3, 0));
    let what: Vec<_> = recovered.reverted.iter().map(|one| one.what.as_str()).collect();
    assert_eq!(what[1..], ["shop@2.service", UNIT]);
    assert_eq!(host.snapshot(), start);
    assert_eq!(host.state(worker), Ok(ProcessState::Running));
    assert_eq!(host.violations(), [""; 0]);
}

#[test]
fn a_stop_is_undone_once_and_not_against_others() {
    let host = host();
    let prepared = stopped(&host);
    revert(&host, &prepared);
    let jobs = || host.unit_jobs().into_iter().map(|(_, verb)| verb).collect::<Vec<_>>();
    assert_eq!(jobs(), [UnitVerb::Stop, UnitVerb::Start]);
    // It was started, and stopped by somebody who meant it: that start was another one.
    host.unit_job(UNIT, UnitVerb::Stop).unwrap();
    revert(&host, &prepared);
    assert_eq!(jobs().len(), 3, "{:?}", jobs());
    // After a boot it is the boot's affair.
    let host = self::host();
    let mut prepared = stopped(&host);
    for item in &mut prepared.undo.restores {
        let Restore::Start { boot, .. } = item else { panic!("{item:?}") };
        "another boot".clone_into(boot);
    }
    revert(&host, &prepared);
    assert_eq!(host.unit_jobs().len(), 1);
}

#[test]
fn what_has_changed_since_the_plan_is_not_touched() {
    let host = host();
    let by_job = Target::Units { units: units(&host, How::Job) };
    let by_freezer = Target::Units { units: units(&host, How::Freezer) };
    let stop = prepare(&host, &stop(), &by_job, 0);
    let pause = prepare(&host, &FaultSpec::Pause(Pause { target: target() }), &by_freezer, 1);
    host.unit_job(UNIT, UnitVerb::Restart).unwrap();
    for prepared in [&stop, &pause] {
        let error = fault::inject(&host, prepared, KERNEL_LEASE).unwrap_err();
        assert!(error.to_string().contains("has changed since the plan"), "{error}");
        revert(&host, prepared);
    }
    let verbs: Vec<_> = host.unit_jobs().into_iter().map(|(_, verb)| verb).collect();
    assert_eq!(verbs, [UnitVerb::Restart]);
    assert_eq!(host.freezes(), [""; 0]);
}

#[test]
fn effects_are_measured_and_not_assumed() {
    let host = host();
    let prepared = stopped(&host);
    let measure = |prepared: &Prepared| {
        let effect = fault::measure(&host, prepared, &Injection::default()).unwrap();
        (effect.proven, effect.summary)
    };
    assert_eq!(measure(&prepared), (true, "shop@1.service is inactive".to_owned()));
    // A socket, a timer or a person starts it again.
    host.unit_job(UNIT, UnitVerb::Start).unwrap();
    let again = "shop@1.service is active, started by others";
    assert_eq!(measure(&prepared), (false, again.to_owned()));
    let units = units(&host, How::Freezer);
    let pause = FaultSpec::Pause(Pause { target: target() });
    let prepared = prepare(&host, &pause, &Target::Units { units }, 1);
    assert_eq!(measure(&prepared), (false, "0 units frozen, 1 still going".to_owned()));
    fault::inject(&host, &prepared, KERNEL_LEASE).unwrap();
    assert_eq!(measure(&prepared), (true, "1 unit frozen".to_owned()));
}

#[test]
fn others_that_would_be_stopped_too_stand_against_it_however_far_away() {
    let host = host();
    for name in ["idle.service", "web.service"] {
        host.add_unit(name, &Spawn { name: "other".to_owned(), ..Spawn::default() });
    }
    host.unit_job("idle.service", UnitVerb::Stop).unwrap();
    host.bind_units(UNIT, "idle.service");
    assert_eq!(units(&host, How::Job)[0].against, None, "it stops nothing that runs");
    host.bind_units("idle.service", "web.service");
    let against = units(&host, How::Job)[0].against.clone().unwrap();
    assert!(against.starts_with("systemd would stop web.service with it"), "{against}");
    assert_eq!(units(&host, How::Freezer)[0].against, None, "a pause stops nobody else");
}

#[test]
fn a_failing_service_manager_leaves_an_undo_to_be_tried_again() {
    let host = host();
    let prepared = stopped(&host);
    host.fail_nth(Verb::Restore, 1, vervet::host::sim::Trouble::Refused);
    let undo = [(prepared.fault.clone(), prepared.undo.clone())];
    assert!(undo::revert(&host, &undo, &[])[0].1.is_err());
    revert(&host, &prepared);
    assert!(host.snapshot().down.is_empty());
}
