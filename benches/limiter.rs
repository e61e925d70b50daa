//! Decisions of the limiter and events of the engine per second, one thread, no I/O.
//!
//! `cargo bench --bench limiter`. The state is that of a busy host: eight groups of fifty instances, a full
//! budget's worth of removals in each window, three charges that readings cannot have seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use uuid::Uuid;
use vervet::{
    config::{ApiPolicy, GroupPolicy, NetworkPolicy, Policy, ReadySource, Removal},
    experiment::{GroupName, ProcessSelector},
    host::{Candidate, Headroom, Instance, Member, ProcessId, Stock},
    policy::{
        capacity::{Charge, Group, Reading},
        engine::{Engine, Event, HostFacts},
        limiter::{Decision, Knowledge, Proposal, Touch, WorstCase, decide, default_limits, self_test},
        time::{Moment, Now},
    },
};

const GROUPS: u32 = 8;
const INSTANCES: u32 = 50;
const START: Moment = Moment(1_000_000_000_000);

fn main() {
    let groups: BTreeMap<GroupName, Group> = (0..GROUPS).map(|at| (name(at), busy(group(at)))).collect();
    let limits = default_limits();
    let headroom =
        Headroom { memory: Some(Stock { free: 1 << 30, total: 2 << 30 }), ..Headroom::default() };
    let known =
        Knowledge { against_all: None, limits: &limits, groups: &groups, headroom: Ok(headroom) };
    for (what, hit, wanted) in [("admitted", 1, true), ("refused", 9, false)] {
        let proposal = proposal(hit);
        let admitted = decide(&known, &proposal, START) == Decision::Admit;
        assert_eq!(admitted, wanted, "{:?}", decide(&known, &proposal, START));
        rate(&format!("decisions, {what}"), || {
            black_box(decide(black_box(&known), black_box(&proposal), START));
        });
    }
    rate("self-tests of the limiter", || {
        self_test(black_box(&limits), &groups, START).expect("it refuses");
    });
    let mut engine = engine();
    let mut at = 0;
    rate("readings through the engine", || {
        at += 1;
        let now = now(at);
        let event =
            Event::Reading { group: name(at % GROUPS), result: Ok(reading(at % GROUPS, now.mono)) };
        black_box(engine.handle(event, now));
    });
    rate("ticks through the engine", || {
        at += 1;
        black_box(engine.handle(Event::Tick, now(at)));
    });
}

/// Runs `work` for a second, after a tenth of one to warm up.
fn rate(what: &str, mut work: impl FnMut()) {
    let mut run = |time: Duration| {
        let (began, mut count) = (Instant::now(), 0_u32);
        while began.elapsed() < time {
            for _ in 0..64 {
                work();
            }
            count += 64;
        }
        (count, began.elapsed())
    };
    run(Duration::from_millis(100));
    let (count, took) = run(Duration::from_secs(1));
    let each = took.as_secs_f64() / f64::from(count);
    println!("{what:<30} {:>12.0} a second   {:>9.3} µs each", 1.0 / each, each * 1e6);
}

fn name(at: u32) -> GroupName {
    GroupName(format!("group-{at}"))
}

fn id(group: u32, instance: u32) -> ProcessId {
    ProcessId { pid: 1000 + group * 1000 + instance, start: 7 }
}

fn group(at: u32) -> GroupPolicy {
    GroupPolicy {
        name: name(at),
        floor: 40,
        expected: Some(INSTANCES),
        members: ProcessSelector { name: Some("worker".to_owned()), ..ProcessSelector::default() },
        ready: ReadySource::Process,
        poll: Duration::from_millis(250),
        stale_after: Duration::from_secs(2),
        settle: Duration::from_secs(5),
        removal: Removal { at_once: 20, every: Duration::from_secs(30) },
        monkey: false,
        spare: Vec::new(),
    }
}

fn reading(group: u32, taken_at: Moment) -> Reading {
    let member = |instance| {
        let process = Candidate {
            id: id(group, instance),
            parent: 1,
            name: "worker".to_owned(),
            cmdline: format!("worker {instance}"),
            uid: 1000,
            cgroup: "/system.slice/worker.service".to_owned(),
            listens: Vec::new(),
            container: None,
            unit: None,
            kernel_thread: false,
        };
        Member { process, ready: true }
    };
    let members = Some((0..INSTANCES).map(member).collect());
    Reading { ready: INSTANCES, total: INSTANCES, taken_at, members }
}

/// With a history: ten removals in the window, three of them not in the reading yet.
fn busy(policy: GroupPolicy) -> Group {
    let number: u32 = policy.name.0.trim_start_matches("group-").parse().expect("a number");
    let mut group = Group::new(policy);
    for before in 0..10 {
        let at = START.minus(Duration::from_secs(20 - before));
        group.ledger.record(at, 1);
    }
    group.observe(Ok(reading(number, START)), START);
    for instance in 0..3 {
        group.charge(Charge {
            run: Uuid::nil(),
            step: 0,
            instances: BTreeMap::from([(id(number, instance), vec![id(number, instance)])]),
            anonymous: 0,
            made_at: START,
            in_force: true,
            lethal: true,
            going: BTreeSet::new(),
        });
    }
    group
}

fn proposal(hit: u32) -> Proposal {
    let touch = Touch {
        group: name(3),
        hit: (10..10 + hit).map(|instance| Instance::of(id(3, instance))).collect(),
        charged: true,
        extra: 0,
    };
    Proposal {
        run: Uuid::nil(),
        step: 0,
        declared: vec![name(2), name(3)],
        targets: hit,
        touches: vec![touch],
        verb: "killing",
        worst_case: WorstCase::default(),
    }
}

fn now(at: u32) -> Now {
    Now { mono: START.plus(Duration::from_millis(at.into())), wall: Timestamp::UNIX_EPOCH }
}

fn engine() -> Engine {
    let policy = Policy {
        leashed: false,
        state: PathBuf::new(),
        experiments: PathBuf::new(),
        api: ApiPolicy {
            socket: PathBuf::new(),
            listen: None,
            tls: None,
            tokens: Vec::new(),
            hosts: Vec::new(),
        },
        limits: default_limits(),
        network: NetworkPolicy { mark_mask: 0xff00_0000 },
        groups: (0..GROUPS).map(group).collect(),
        freezes: Vec::new(),
        schedules: Vec::new(),
    };
    let facts = HostFacts {
        name: "bench".to_owned(),
        kernel: String::new(),
        version: String::new(),
        started_at: Timestamp::UNIX_EPOCH,
        seed: 1,
        abilities: Vec::new(),
    };
    Engine::new(Arc::new(policy), facts, None)
}
