//! The simulated host keeps the promises that the real one is held to.

mod journal_support;

use std::{collections::BTreeSet, time::Duration};

use journal_support::{cap, delay, intent, run_id};
use proptest::prelude::*;
use vervet::{
    experiment::{ProcessSelector, Signal},
    fault::{self, KERNEL_LEASE, undo},
    host::{
        Delivery, Host, ProcessState,
        sim::{Object, SimHost, Spawn, Trouble, Verb},
    },
    journal::Intent,
};

fn worker(name: &str) -> Spawn {
    Spawn { name: name.to_owned(), cmdline: format!("{name} --port 80"), ..Spawn::default() }
}

proptest! {
    /// Whatever was made of any number of faults, in whatever order they go: undone twice, the
    /// world is as it was.
    #[test]
    fn partial_installs_undone_twice_leave_the_world_as_it_was(
        seed in any::<u64>(),
        faults in prop::collection::vec((any::<bool>(), prop::option::of(0_usize..12)), 1..6),
        order in any::<prop::sample::Index>(),
        restore_failures in 0.0..0.6_f64,
        netem in any::<bool>(),
    ) {
        let host = SimHost::new(seed);
        host.set_netem(netem);
        let start = host.snapshot();
        let mut open: Vec<Intent> = Vec::new();
        for (step, (delays, trouble)) in faults.into_iter().enumerate() {
            let spec = if delays { delay(80) } else { cap(80) };
            let beside: Vec<&Intent> = open.iter().collect();
            let step = u32::try_from(step).unwrap();
            let before = host.snapshot();
            let one = intent(&host, run_id(1), step, &spec, &beside).unwrap();
            prop_assert_eq!(host.snapshot(), before, "planning only reads");
            if let Some(objects) = trouble {
                host.fail_nth(Verb::Install, 1, Trouble::After(objects));
            }
            let injected = fault::inject(&host, &one.prepared, KERNEL_LEASE);
            prop_assert_eq!(injected.is_err(), trouble.is_some());
            open.push(one);
        }
        let first = order.index(open.len());
        open.rotate_left(first);
        while let Some(one) = open.pop() {
            let kept: Vec<_> = open.iter().map(|other| other.undo().clone()).collect();
            let undo = [(one.fault().clone(), one.undo().clone())];
            host.fail_often(Verb::Restore, restore_failures);
            undo::revert(&host, &undo, &kept);
            host.heal();
            for _ in 0..2 {
                let results = undo::revert(&host, &undo, &kept);
                prop_assert_eq!(&results[0].1, &Ok(()));
            }
            prop_assert!(!host.in_force().contains(one.fault()));
        }
        prop_assert_eq!(host.snapshot(), start);
        prop_assert_eq!(host.violations(), Vec::<String>::new());
    }
}

#[test]
fn the_same_seed_fails_alike() {
    let play = |seed| {
        let host = SimHost::new(seed);
        let one = intent(&host, run_id(1), 0, &delay(80), &[]).unwrap();
        host.fail_often(Verb::Install, 0.5);
        host.fail_often(Verb::Restore, 0.5);
        let log: Vec<String> = (0..50)
            .map(|_| {
                let made = fault::inject(&host, &one.prepared, KERNEL_LEASE);
                format!("{made:?} {:?}", host.restore(&one.undo().restores))
            })
            .collect();
        (log, host.snapshot())
    };
    assert_eq!(play(7), play(7));
    assert_ne!(play(7), play(8));
}

#[test]
fn a_lease_ends_the_effect_but_not_the_objects() {
    let host = SimHost::new(1);
    let one = intent(&host, run_id(1), 0, &delay(80), &[]).unwrap();
    let plan = match &one.prepared.target {
        fault::Target::Traffic { plan } => plan.clone(),
        other => unreachable!("a delay is planned as traffic, not {other:?}"),
    };
    let start = host.snapshot();
    fault::inject(&host, &one.prepared, KERNEL_LEASE).unwrap();
    host.advance(host.now().plus(Duration::from_secs(1)));
    assert_eq!(host.renew(&[(&plan, KERNEL_LEASE)]), [Ok(())]);
    host.advance(host.now().plus(Duration::from_millis(1900)));
    let counters = host.counters(&plan).unwrap();
    assert!(counters.in_place && counters.matched == 290, "{counters:?}");
    host.advance(host.now().plus(Duration::from_millis(200)));
    assert!(host.in_force().is_empty());
    assert_ne!(host.snapshot(), start);
    let counters = host.counters(&plan).unwrap();
    assert!(!counters.in_place && counters.matched == 300, "{counters:?}");
    assert!(host.renew(&[(&plan, KERNEL_LEASE)])[0].is_err(), "a lapsed lease is not armed again");
}

#[test]
fn a_pid_that_comes_back_is_somebody_else() {
    let host = SimHost::new(1);
    let respawn = Some(Duration::from_secs(1));
    let old = host.spawn(&Spawn { respawn, ..worker("w") });
    assert_eq!(host.signal(old, Signal::KILL), Ok(Delivery::Sent { caught: false }));
    assert_eq!(host.state(old), Ok(ProcessState::Gone));
    host.advance(host.now().plus(Duration::from_secs(1)));
    let selector = ProcessSelector { name: Some("w".to_owned()), ..ProcessSelector::default() };
    let new = host.find(&selector, &[]).unwrap()[0].id;
    assert_eq!(new.pid, old.pid);
    assert_eq!(host.signal(old, Signal::KILL), Ok(Delivery::Gone));
    assert_eq!(host.state(new), Ok(ProcessState::Running));
    assert_eq!(host.strays(&BTreeSet::from([old])), []);
    assert_eq!(host.take_deaths().len(), 1);
}

#[test]
fn signals_do_what_signals_do() {
    let host = SimHost::new(1);
    let stubborn = host.spawn(&Spawn { ignores: vec![Signal::TERM], ..worker("a") });
    let handler = host.spawn(&Spawn { catches: vec![Signal::TERM], ..worker("b") });
    let plain = host.spawn(&worker("c"));
    assert_eq!(host.signal(stubborn, Signal::TERM), Ok(Delivery::Sent { caught: false }));
    assert_eq!(host.signal(handler, Signal::TERM), Ok(Delivery::Sent { caught: true }));
    assert_eq!(host.signal(plain, Signal::TERM), Ok(Delivery::Sent { caught: false }));
    let states = [stubborn, handler, plain].map(|id| host.state(id).unwrap());
    assert_eq!(states, [ProcessState::Running, ProcessState::Running, ProcessState::Gone]);
    host.signal(handler, Signal::from_name("STOP").unwrap()).unwrap();
    assert_eq!(host.state(handler), Ok(ProcessState::Stopped));
    host.restore(&[undo::Restore::Continue { process: handler }]);
    assert_eq!(host.state(handler), Ok(ProcessState::Running));
}

#[test]
fn the_old_value_of_a_shared_sysctl_is_the_one_before_all_faults() {
    let host = SimHost::new(1);
    let start = host.snapshot();
    let a = intent(&host, run_id(1), 0, &delay(80), &[]).unwrap();
    fault::inject(&host, &a.prepared, KERNEL_LEASE).unwrap();
    let b = intent(&host, run_id(1), 1, &delay(81), &[&a]).unwrap();
    fault::inject(&host, &b.prepared, KERNEL_LEASE).unwrap();
    undo::revert(&host, &[(a.fault().clone(), a.undo().clone())], &[b.undo().clone()]);
    assert!(!host.snapshot().sysctls.is_empty(), "the other fault still needs it");
    undo::revert(&host, &[(b.fault().clone(), b.undo().clone())], &[]);
    assert_eq!(host.snapshot(), start);
}

#[test]
fn what_is_not_vervets_stays() {
    let host = SimHost::new(1);
    let one = intent(&host, run_id(1), 0, &delay(80), &[]).unwrap();
    fault::inject(&host, &one.prepared, KERNEL_LEASE).unwrap();
    // Somebody else comes to use the clsact that vervet made, and sets the sysctl.
    let theirs =
        Object::Filter { netns: None, device: "eth0".to_owned(), priority: 1, to: "docker0".to_owned() };
    host.add_foreign(theirs.clone());
    host.set_sysctl(None, "net/ipv4/conf/lo/accept_local", "2");
    undo::revert(&host, &[(one.fault().clone(), one.undo().clone())], &[]);
    let end = host.snapshot();
    assert!(end.objects.contains_key(&theirs));
    assert!(end.objects.contains_key(&Object::Clsact { netns: None, device: "eth0".to_owned() }));
    assert_eq!(end.sysctls.len(), 1);
    assert_eq!(host.violations(), [""; 0]);
}
