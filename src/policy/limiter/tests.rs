//! The promises of the limiter, as tables and properties.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::host::ProcessId;
use crate::{
    host::{Candidate, Member},
    policy::time::Moment,
};

const RUN: Uuid = Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);

fn at(ms: u64) -> Moment {
    Moment::default().plus(Duration::from_hours(1)).plus(Duration::from_millis(ms))
}

fn member(pid: u32, ready: bool) -> Member {
    let process = Candidate {
        id: ProcessId { pid, start: 7 },
        parent: 1,
        name: "worker".to_owned(),
        cmdline: "worker".to_owned(),
        uid: 0,
        cgroup: "/".to_owned(),
        listens: Vec::new(),
        container: None,
        unit: None,
        kernel_thread: false,
    };
    Member { process, ready }
}

fn reading(ready: u32, total: u32, taken_at: Moment) -> Reading {
    let members = (0..total).map(|n| member(100 + n, n < ready)).collect();
    Reading { ready, total, taken_at, members: Some(members) }
}

fn four_of_floor_three() -> Group {
    let mut group = Group::new(drill_policy());
    assert_eq!(group.observe(Ok(reading(4, 4, at(0))), at(0)), None);
    group
}

fn kill(pids: &[u32]) -> Proposal {
    let hit: Vec<_> = pids.iter().map(|pid| Instance::of(ProcessId { pid: *pid, start: 7 })).collect();
    Proposal {
        run: RUN,
        step: 0,
        declared: vec!["drill".into()],
        targets: u32::try_from(pids.len()).unwrap(),
        touches: vec![Touch { group: "drill".into(), hit, charged: true, extra: 0 }],
        verb: "killing",
        worst_case: WorstCase::default(),
    }
}

fn ask(group: &Group, proposal: &Proposal, now: Moment) -> Decision {
    ask_with(
        &Knowledge {
            against_all: None,
            limits: &default_limits(),
            groups: &BTreeMap::from([(group.policy.name.clone(), group.clone())]),
            headroom: Ok(Headroom::default()),
        },
        proposal,
        now,
    )
}

fn ask_with(known: &Knowledge<'_>, proposal: &Proposal, now: Moment) -> Decision {
    decide(known, proposal, now)
}

fn charge(group: &mut Group, proposal: &Proposal, now: Moment) {
    group.charge(Charge {
        run: proposal.run,
        step: proposal.step,
        instances: proposal.touches[0].hit.iter().map(|one| (one.id, one.processes.clone())).collect(),
        anonymous: proposal.touches[0].extra,
        made_at: now,
        in_force: true,
        lethal: true,
        going: [].into(),
    });
}

fn refusal(decision: Decision) -> String {
    match decision {
        Decision::Refuse(reason) => reason.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn one_of_four_is_admitted_and_the_next_is_refused_with_the_numbers() {
    let mut group = four_of_floor_three();
    assert_eq!(ask(&group, &kill(&[100]), at(10)), Decision::Admit);
    charge(&mut group, &kill(&[100]), at(10));
    assert_eq!(
        refusal(ask(&group, &kill(&[101]), at(20))),
        "group drill has 4 ready, floor 3, and 1 already removed by run 01920000…; killing 1 more would leave 2"
    );
    // The death shows: nobody counts it twice, and the floor still stands in the way.
    assert_eq!(group.lost(ProcessId { pid: 100, start: 7 }, at(30)), None);
    assert_eq!(
        refusal(ask(&group, &kill(&[101]), at(40))),
        "group drill has 3 ready, floor 3; killing 1 more would leave 2"
    );
}

#[test]
fn with_one_to_spare_the_second_waits_for_the_budget() {
    let mut group = Group::new(drill_policy());
    group.observe(Ok(reading(5, 5, at(0))), at(0));
    charge(&mut group, &kill(&[100]), at(0));
    let Decision::Wait { until, why } = ask(&group, &kill(&[101]), at(1000)) else { panic!("no wait") };
    assert_eq!(until, at(30_000));
    assert_eq!(why.code(), "budget_used");
}

#[test]
fn two_at_once_are_refused_at_once() {
    let mut group = Group::new(drill_policy());
    group.observe(Ok(reading(9, 9, at(0))), at(0));
    let said = refusal(ask(&group, &kill(&[100, 101]), at(10)));
    assert_eq!(said, "it would remove 2 of group drill at once, and its budget is 1 in 30s; take fewer");
    assert!(refusal(ask(&four_of_floor_three(), &kill(&[100, 101]), at(10))).contains("would leave 2"));
}

#[test]
fn what_is_not_declared_not_seen_or_not_sure_is_refused() {
    let group = four_of_floor_three();
    let undeclared = Proposal { declared: Vec::new(), ..kill(&[100]) };
    assert!(refusal(ask(&group, &undeclared, at(10))).contains("does not declare"));
    assert!(refusal(ask(&group, &kill(&[100]), at(2_001))).contains("stale"));
    assert_eq!(ask(&group, &kill(&[100]), at(2_000)), Decision::Admit);
    assert!(refusal(ask(&Group::new(drill_policy()), &kill(&[100]), at(10))).contains("no reading"));
    let mut failed = four_of_floor_three();
    assert!(failed.observe(Err("hung".to_owned()), at(5)).is_some());
    assert!(refusal(ask(&failed, &kill(&[100]), at(10))).contains("hung"));
    let many = Proposal { targets: 11, ..kill(&[100]) };
    assert!(refusal(ask(&group, &many, at(10))).contains("targets_per_step"));
}

#[test]
fn deaths_of_others_doing_draw_on_the_budget() {
    let mut group = Group::new(drill_policy());
    group.observe(Ok(reading(6, 6, at(0))), at(0));
    assert_eq!(group.lost(ProcessId { pid: 105, start: 7 }, at(100)), None);
    let Decision::Wait { until, .. } = ask(&group, &kill(&[100]), at(200)) else { panic!("no wait") };
    assert_eq!(until, at(30_100));
    // A look that began before the death still lists the dead; it is not resurrected.
    group.observe(Ok(reading(6, 6, at(50))), at(150));
    assert_eq!(group.effective(), Some((5, 0)));
}

#[test]
fn an_unready_member_is_a_loss_and_is_counted_once() {
    let mut group = Group::new(drill_policy());
    group.observe(Ok(reading(6, 6, at(0))), at(0));
    group.observe(Ok(reading(5, 6, at(250))), at(250));
    group.observe(Ok(reading(5, 6, at(500))), at(500));
    assert_eq!(group.ledger.used(drill_policy().removal, at(600)), 1);
    group.lost(ProcessId { pid: 105, start: 7 }, at(700));
    assert_eq!(group.ledger.used(drill_policy().removal, at(800)), 1);
}

#[test]
fn a_counting_source_is_charged_until_it_has_settled() {
    let count = |ready, at| Ok(Reading { ready, total: ready, taken_at: at, members: None });
    let mut group = Group::new(drill_policy());
    group.observe(count(5, at(0)), at(0));
    charge(&mut group, &kill(&[100]), at(0));
    group.settle_charge(RUN, 0, &[].into());
    group.observe(count(5, at(250)), at(250));
    assert_eq!(group.effective(), Some((4, 1)), "not seen yet");
    group.observe(count(4, at(500)), at(500));
    assert_eq!(group.effective(), Some((3, 1)), "perhaps not seen yet");
    assert_eq!(group.ledger.used(drill_policy().removal, at(600)), 1, "its own removal, once");
    group.observe(count(4, at(5_000)), at(5_000));
    assert_eq!(group.effective(), Some((4, 0)), "seen by now");
}

#[test]
fn a_charged_step_is_asked_about_once_more_before_its_injection() {
    let ask_again = |group: &Group, proposal: &Proposal, now| {
        let groups = BTreeMap::from([(group.policy.name.clone(), group.clone())]);
        still_holds(&groups, &proposal.touches, now).map_err(|reason| reason.code())
    };
    let count = |ready, at| Ok(Reading { ready, total: ready, taken_at: at, members: None });
    for instances_are_known in [true, false] {
        let mut group = four_of_floor_three();
        if !instances_are_known {
            group.observe(count(4, at(0)), at(0));
        }
        charge(&mut group, &kill(&[100]), at(10));
        assert_eq!(ask_again(&group, &kill(&[100]), at(20)), Ok(()));
        // Somebody else dies while the undo is on its way to the disk.
        group.lost(ProcessId { pid: 101, start: 7 }, at(25));
        let said = ask_again(&group, &kill(&[100]), at(30));
        assert_eq!(said, Err("below_floor".to_owned()), "instances known: {instances_are_known}");
    }
}

#[test]
fn a_reading_too_bad_to_be_true_is_distrusted() {
    let mut group = four_of_floor_three();
    let trouble = group.observe(Ok(reading(0, 4, at(250))), at(250)).unwrap();
    assert_eq!(trouble.code(), "all_unready");
    let mut group = Group::new(GroupPolicy { floor: 1, ..drill_policy() });
    group.observe(Ok(reading(8, 8, at(0))), at(0));
    assert_eq!(group.observe(Ok(reading(4, 4, at(250))), at(250)).unwrap().code(), "inventory_shrank");
}

#[test]
fn a_blocked_group_opens_when_it_has_been_well_for_its_settle_time() {
    let mut group = four_of_floor_three();
    group.block("a worker died".to_owned());
    assert!(refusal(ask(&group, &kill(&[100]), at(10))).contains("recovering (a worker died)"));
    for ms in [250, 1_000, 2_000, 3_000] {
        group.observe(Ok(reading(4, 4, at(ms))), at(ms));
    }
    // One bad look starts the time again.
    group.observe(Ok(reading(3, 4, at(4_000))), at(4_000));
    group.observe(Ok(reading(4, 4, at(5_000))), at(5_000));
    group.observe(Ok(reading(4, 4, at(9_999))), at(9_999));
    assert!(group.blocked().is_some());
    group.observe(Ok(reading(4, 4, at(10_000))), at(10_000));
    assert_eq!(group.blocked(), None);
}

#[test]
fn headroom_counts_what_the_step_may_use_up_and_fails_closed() {
    let limits = default_limits();
    let groups = BTreeMap::new();
    let nothing = Proposal { declared: Vec::new(), touches: Vec::new(), ..kill(&[]) };
    let stock = |free| Headroom { memory: Some(Stock { free, total: 1000 }), ..Headroom::default() };
    let ask = |headroom, memory| {
        let known = Knowledge { against_all: None, limits: &limits, groups: &groups, headroom };
        let worst_case = WorstCase { memory, ..WorstCase::default() };
        ask_with(&known, &Proposal { worst_case, ..nothing.clone() }, at(0))
    };
    assert_eq!(ask(Ok(stock(50)), 0), Decision::Admit);
    assert!(refusal(ask(Ok(stock(50)), 1)).contains("49 of 1000 bytes of memory"));
    assert!(refusal(ask(Err("gone".to_owned()), 0)).contains("gone"));
}

#[test]
fn the_self_test_finds_a_limiter_with_any_one_check_taken_out() {
    let limits = default_limits();
    let groups = BTreeMap::from([("drill".into(), four_of_floor_three())]);
    assert_eq!(self_test(&limits, &groups, at(0)), Ok(()));
    let blind_to = |code: &'static str| {
        move |known: &Knowledge<'_>, proposal: &Proposal, now: Moment| match decide(known, proposal, now)
        {
            Decision::Refuse(reason) if reason.code() == code => Decision::Admit,
            decision => decision,
        }
    };
    for code in ["floor", "stale_reading", "no_reading", "undeclared_group"] {
        assert!(self_test_with(blind_to(code), &limits, &groups, at(0)).is_err(), "blind to {code}");
    }
}

proptest! {
    /// Whatever is charged, lost and read in whatever order, an admitted step never leaves fewer
    /// than the floor: counted here by brute force over the instances themselves.
    #[test]
    fn no_admitted_kill_leaves_fewer_than_the_floor(
        total in 1_u32..10,
        floor in 0_u32..6,
        steps in prop::collection::vec((0_u8..4, 0_u32..10, 1_u64..9_000), 1..60),
    ) {
        let policy = GroupPolicy {
            floor,
            removal: Removal { at_once: 3, every: Duration::from_secs(2) },
            ..drill_policy()
        };
        let mut group = Group::new(policy);
        let mut alive: Vec<u32> = (100..100 + total).collect();
        let mut now = at(0);
        let look = |group: &mut Group, alive: &[u32], now| {
            let members: Vec<_> = alive.iter().map(|pid| member(*pid, true)).collect();
            let ready = u32::try_from(members.len()).unwrap();
            group.observe(Ok(Reading { ready, total: ready, taken_at: now, members: Some(members) }), now);
        };
        look(&mut group, &alive, now);
        let mut doomed: Vec<u32> = Vec::new();
        for (index, (what, which, pause)) in steps.into_iter().enumerate() {
            now = now.plus(Duration::from_millis(pause));
            match what {
                0 => look(&mut group, &alive, now),
                1 if !alive.is_empty() => {
                    // Dies by itself, or of what was done to it; noticed at once.
                    let pid = alive.remove(which as usize % alive.len());
                    doomed.retain(|other| *other != pid);
                    group.lost(ProcessId { pid, start: 7 }, now);
                }
                2 => {
                    // What was signalled dies only now.
                    for pid in doomed.drain(..) {
                        alive.retain(|other| *other != pid);
                        group.lost(ProcessId { pid, start: 7 }, now);
                    }
                }
                _ if !alive.is_empty() => {
                    let pid = alive[which as usize % alive.len()];
                    let proposal = Proposal { step: index, ..kill(&[pid]) };
                    if ask(&group, &proposal, now) == Decision::Admit {
                        charge(&mut group, &proposal, now);
                        if !doomed.contains(&pid) {
                            doomed.push(pid);
                        }
                        let left = alive.len() - doomed.len();
                        prop_assert!(left >= floor as usize, "{left} left of a floor of {floor}");
                    }
                }
                _ => {}
            }
        }
    }
}

/// A group of units as its reading has it: main processes only.
fn unit_touch(main: u32, hit: &[u32]) -> Touch {
    let id = |pid| ProcessId { pid, start: 7 };
    let hit = vec![Instance { id: id(main), processes: hit.iter().map(|pid| id(*pid)).collect() }];
    Touch { group: "drill".into(), hit, charged: true, extra: 0 }
}

fn unit_charge(touch: &Touch, made_at: Moment) -> Charge {
    Charge {
        run: Uuid::nil(),
        step: 0,
        instances: touch.hit.iter().map(|one| (one.id, one.processes.clone())).collect(),
        anonymous: 0,
        made_at,
        in_force: true,
        lethal: true,
        going: [].into(),
    }
}

#[test]
fn processes_of_one_unit_are_one_instance() {
    assert_eq!(unit_touch(100, &[100, 200, 201]).charge(), 1);
    let charge = unit_charge(&unit_touch(100, &[200, 201]), at(1));
    assert_eq!(charge.count(), 1);
}

#[test]
fn a_unit_is_charged_while_any_process_that_was_told_to_end_has_not() {
    let mut group = four_of_floor_three();
    group.charge(unit_charge(&unit_touch(100, &[200]), at(20)));
    let worker = ProcessId { pid: 200, start: 7 };
    group.settle_charge(Uuid::nil(), 0, &[worker].into());
    let later = at(60_000);
    group.observe(Ok(reading(4, 4, later)), later);
    assert_eq!(group.effective(), Some((3, 1)));
    group.ended(worker);
    assert_eq!(group.effective(), Some((4, 0)));
}

#[test]
fn a_main_process_that_follows_its_killed_worker_is_a_loss_of_its_own() {
    let mut group = four_of_floor_three();
    group.charge(unit_charge(&unit_touch(100, &[200]), at(20)));
    group.lost(ProcessId { pid: 100, start: 7 }, at(21));
    assert_eq!(group.ledger.used(group.policy.removal, at(21)), 2);
    let mut group = four_of_floor_three();
    group.charge(unit_charge(&unit_touch(100, &[100, 200]), at(20)));
    group.lost(ProcessId { pid: 100, start: 7 }, at(21));
    assert_eq!(group.ledger.used(group.policy.removal, at(21)), 1);
}
