//! A game: one experiment after the other, drawn by a seed, the agent killed in the middle of it, and the
//! floor watched all the time by someone who is not vervet.
//!
//! `VERVET_SEED=n` plays another game; a failure says which one it was.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;

use crate::{
    guest::Guest,
    prepared::Stage,
    story::story,
    workload::{experiment, unit_group, web_unit},
};

const PORTS: [u16; 4] = [8001, 8002, 8003, 8004];
const FLOOR: u32 = 3;
/// How long the game is watched, in the guest's seconds.
const WATCHED_S: u32 = 75;
const ROUNDS: u32 = 12;

#[test]
fn whatever_is_drawn_the_floor_holds() {
    story("whatever_is_drawn_the_floor_holds", Stage::Installed, |guest| {
        let seed = std::env::var("VERVET_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        guest.web(&PORTS);
        guest.unleash(&unit_group("web", "4s"));
        guest.wait_ready("web", 4);
        guest.check("mkdir -p /run/test");
        let before = guest.snapshot();
        let units = PORTS.map(web_unit).join(" ");
        let watch = guest.begin(&format!("/opt/test/watch.py {units} -- {WATCHED_S}"));
        let mut acted = 0;
        for round in 0..ROUNDS {
            if round == ROUNDS / 2 {
                guest.in_force(&experiment(&["web"], &[LATENCY]));
                guest.check("systemctl kill -s KILL --kill-whom=main vervet");
                guest.wait_for("the agent is back", 60, "vervet status --json");
                continue;
            }
            let step = drawn(&mut rng);
            let (code, run) = guest.play(&experiment(&["web"], &[&step]));
            println!(
                "seed {seed}, round {round}: {} ({code}): {}",
                step.replace('\n', "; "),
                run["verdict"]
            );
            // Refused, aborted and without effect are answers; a failure or something stuck is none.
            assert!([0, 3, 4, 5].contains(&code), "seed {seed}: {run:#}");
            assert_eq!(run["cleanup"], "clean", "seed {seed}: {run:#}");
            acted += u32::from(code == 0);
        }
        let output = guest.finish(watch, Duration::from_mins(6));
        println!("lowest, highest, looks, closest deaths, deaths: {}", output.stdout.trim());
        let lowest = output.stdout.split_whitespace().next().and_then(|word| word.parse::<u32>().ok());
        assert!(lowest.is_some_and(|lowest| lowest >= FLOOR), "seed {seed}: {output:?}");
        assert!(acted >= ROUNDS / 3, "seed {seed}: only {acted} of {ROUNDS} did anything");
        guest.wait_ready("web", 4);
        as_before(guest, &before);
    });
}

const LATENCY: &str =
    "fault = \"latency\"\ntraffic = { listen = 8001 }\ndelay = \"50ms\"\nduration = \"30s\"";

fn drawn(rng: &mut ChaCha12Rng) -> String {
    let port = PORTS[rng.random_range(0..PORTS.len())];
    match rng.random_range(0..7_u32) {
        0 => "fault = \"kill\"\ntarget = { group = \"web\", pick = 1 }\nduration = \"2s\"".to_owned(),
        1 => "fault = \"kill\"\ntarget = { group = \"web\", pick = 2 }\nduration = \"2s\"".to_owned(),
        2 => {
            format!("fault = \"pause\"\ntarget = {{ unit = \"web@{port}.service\" }}\nduration = \"3s\"")
        }
        3 => format!(
            "fault = \"unit\"\naction = \"stop\"\ntarget = {{ unit = \"web@{port}.service\" }}\nduration = \"3s\""
        ),
        4 => format!(
            "fault = \"latency\"\ntraffic = {{ listen = {port} }}\ndelay = \"{}ms\"\nduration = \"2s\"",
            rng.random_range(10..100_u32)
        ),
        5 => format!(
            "fault = \"connections\"\ntraffic = {{ listen = {port} }}\nmax = 5\nduration = \"2s\""
        ),
        _ => format!(
            "fault = \"pause\"\ntarget = {{ group = \"web\", pick = {} }}\nduration = \"2s\"",
            1 + port % 2
        ),
    }
}

fn as_before(guest: &mut Guest, before: &crate::state::State) {
    guest.must_be_as_but_for(before, &["/run/"]);
}
