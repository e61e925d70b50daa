//! Whole lives of an agent on a simulated host, by seed: see `world`.
//!
//! `VERVET_SEED=n` lives that one life and prints what happened; `VERVET_LIVES=n` sets how many
//! lives each part lives.

mod ledger;
mod world;
mod year;

use world::{Tally, World};

/// Lives of each of the four parts, which run side by side.
const LIVES: u64 = 2_500;

fn live(part: u64) {
    if let Ok(seed) = std::env::var("VERVET_SEED") {
        let seed = seed.parse().expect("VERVET_SEED is a number");
        let mut world = World::new(seed);
        world.live();
        for line in &world.trace {
            println!("{line}");
        }
        println!("{:#?}", world.tally);
        return;
    }
    let lives = std::env::var("VERVET_LIVES").ok().and_then(|n| n.parse().ok()).unwrap_or(LIVES);
    let mut sum = Tally::default();
    for life in 0..lives {
        let mut world = World::new(part * 1_000_000 + life);
        world.live();
        add(&mut sum, &world.tally);
    }
    println!("{sum:#?}");
    // A simulation in which nothing happens proves nothing.
    assert!(sum.runs >= lives, "{sum:?}");
    if lives >= 500 {
        for (what, count) in [("signals", sum.signals), ("crashes", sum.crashes), ("deaths", sum.deaths)]
        {
            assert!(count > lives / 10, "few {what}: {sum:?}");
        }
        for (what, count) in
            [("units stopped", sum.jobs), ("units frozen", sum.freezes), ("drains", sum.drains)]
        {
            assert!(count > lives / 50, "few {what}: {sum:?}");
        }
        for verdict in ["Passed", "Failed", "Refused", "Aborted", "Inconclusive"] {
            let count = sum.verdicts.get(&format!("Some({verdict})")).copied().unwrap_or_default();
            assert!(count > lives / 100, "few {verdict}: {sum:?}");
        }
    }
}

fn add(sum: &mut Tally, one: &Tally) {
    sum.runs += one.runs;
    sum.signals += one.signals;
    sum.jobs += one.jobs;
    sum.freezes += one.freezes;
    sum.drains += one.drains;
    sum.crashes += one.crashes;
    sum.deaths += one.deaths;
    for (into, from) in [(&mut sum.verdicts, &one.verdicts), (&mut sum.reasons, &one.reasons)] {
        for (key, count) in from {
            *into.entry(key.clone()).or_default() += count;
        }
    }
}

#[test]
fn lives_part_1() {
    live(1);
}

#[test]
fn lives_part_2() {
    live(2);
}

#[test]
fn lives_part_3() {
    live(3);
}

#[test]
fn lives_part_4() {
    live(4);
}

/// An hour of a monkey that drains and kills one of four: the floor of three holds at each instant.
fn an_hour(lag: Option<std::time::Duration>) {
    for seed in 0..1 {
        let mut world = World::monkey(seed, lag);
        world.live_an_hour();
        let tally = &world.tally;
        let verdict = |name: &str| tally.verdicts.get(&format!("Some({name})")).copied().unwrap_or(0);
        println!("{} kills, verdicts {:?}, reasons {:?}", tally.signals, tally.verdicts, tally.reasons);
        assert!(tally.signals > 60 && tally.signals == tally.drains, "{tally:#?}");
        assert!(verdict("Passed") > 60 && verdict("Failed") == 0, "{tally:#?}");
    }
}

#[test]
fn an_hour_of_a_monkey_keeps_the_floor() {
    an_hour(None);
}

#[test]
fn an_hour_of_a_monkey_keeps_the_floor_where_counts_lag() {
    an_hour(Some(std::time::Duration::from_millis(1_500)));
}
