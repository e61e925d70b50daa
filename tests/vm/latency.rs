//! Added delay by netem on a kernel that has it, measured on real connections.
//!
//! Delays are longer than what the emulated processor adds by itself, and lower bounds are exact: no packet
//! can be earlier than its delay. What is not selected is compared with before.

use crate::{
    guest::Guest,
    measure::Times,
    prepared::Stage,
    state::State,
    story::story,
    workload::{experiment, web_group, web_unit},
};

const PORTS: [u16; 4] = [8001, 8002, 8003, 8004];
const DELAY_MS: f64 = 100.0;
/// What the processor may add to the median of a delayed round trip.
const SLACK_MS: f64 = 60.0;
const TRIPS: u32 = 15;

/// Whom a selector must slow down, and whom it must leave alone.
struct Case {
    traffic: String,
    slow: &'static [(&'static str, u16)],
    quick: &'static [(&'static str, u16)],
}

fn slowed_web(guest: &mut Guest) -> State {
    guest.web(&PORTS);
    guest.unleash(&web_group(4, 1, "1h"));
    guest.wait_ready("web", 4);
    guest.snapshot()
}

fn latency(traffic: &str, more: &str) -> String {
    let step = format!(
        "fault = \"latency\"\nengine = \"netem\"\ntraffic = {{ {traffic} }}\n{more}\nduration = \"5m\""
    );
    experiment(&["web"], &[&step])
}

fn play(guest: &mut Guest, before: &State, case: &Case) {
    let measured = |guest: &mut Guest, places: &[(&str, u16)]| -> Vec<Times> {
        places.iter().map(|(address, port)| guest.round_trips("", address, *port, TRIPS)).collect()
    };
    let (calm, idle) = (measured(guest, case.slow), measured(guest, case.quick));
    let run = guest.in_force(&latency(&case.traffic, "delay = \"100ms\""));
    let (slow, quick) = (measured(guest, case.slow), measured(guest, case.quick));
    let during = guest.snapshot();
    let view = guest.run_view(&run);
    assert_eq!(view["state"], "running", "{view:#}");
    only_clsact_is_new(before, &during);
    guest.abort(&run);
    let after = measured(guest, case.slow);
    let what = &case.traffic;
    for (at, place) in case.slow.iter().enumerate() {
        let (calm, slow, after) = (calm[at].median(), &slow[at], after[at].median());
        assert!(slow.least() >= DELAY_MS, "{what}: {place:?} was not slowed: {slow:?}");
        let added = slow.median() - calm;
        assert!(added < DELAY_MS + SLACK_MS, "{what}: {place:?} was slowed by {added} ms: {slow:?}");
        assert!(after < DELAY_MS / 2.0, "{what}: {place:?} is still slow: {after} ms, once {calm}");
    }
    for (at, place) in case.quick.iter().enumerate() {
        let (idle, quick) = (&idle[at], &quick[at]);
        assert!(
            quick.median() < idle.median() + DELAY_MS / 4.0 && quick.least() < DELAY_MS / 4.0,
            "{what}: {place:?} was slowed: {quick:?}, before {idle:?}"
        );
    }
    let view = guest.run_view(&run);
    assert_eq!(view["steps"][0]["effect"]["proven"], true, "{view:#}");
    guest.must_be_as(before);
}

/// No qdisc of before is gone or changed; new are `clsact`, and netem on vervet's own device.
fn only_clsact_is_new(before: &State, during: &State) {
    let (before, during) = (before.of("qdisc"), during.of("qdisc"));
    let gone: Vec<_> = before.iter().filter(|line| !during.contains(line)).collect();
    assert!(gone.is_empty(), "{gone:?} in {during:#?}");
    let new: Vec<_> = during.iter().filter(|line| !before.contains(line)).collect();
    let ours = |line: &&&&str| line.contains("qdisc clsact ffff:") || line.contains("qdisc netem");
    assert_eq!(new.iter().filter(ours).count(), 2, "{new:?}");
    assert_eq!(new.len(), 2, "{new:?}");
    assert!(new.iter().any(|line| line.contains("dev vv") && line.contains("delay 100ms")), "{new:?}");
}

#[test]
fn a_port_is_slow_over_both_families_and_its_neighbour_is_not() {
    story("a_port_is_slow_over_both_families_and_its_neighbour_is_not", Stage::Installed, |guest| {
        let before = slowed_web(guest);
        let case = Case {
            traffic: "listen = 8001".to_owned(),
            slow: &[("127.0.0.1", 8001), ("::1", 8001)],
            quick: &[("127.0.0.1", 8002), ("::1", 8002)],
        };
        play(guest, &before, &case);
    });
}

#[test]
fn a_destination_is_slow_and_its_neighbour_is_not() {
    story("a_destination_is_slow_and_its_neighbour_is_not", Stage::Installed, |guest| {
        let before = slowed_web(guest);
        let case = Case {
            traffic: "to = [\"127.9.0.0/16\", \"::1/128\"], port = 8001".to_owned(),
            slow: &[("127.9.0.1", 8001), ("::1", 8001)],
            quick: &[("127.8.0.1", 8001), ("127.9.0.1", 8002)],
        };
        play(guest, &before, &case);
    });
}

#[test]
fn a_service_is_slow_and_its_sister_is_not() {
    story("a_service_is_slow_and_its_sister_is_not", Stage::Installed, |guest| {
        let before = slowed_web(guest);
        let case = Case {
            traffic: format!("cgroup = \"/system.slice/system-web.slice/{}\"", web_unit(8003)),
            slow: &[("127.0.0.1", 8003), ("::1", 8003)],
            quick: &[("127.0.0.1", 8004), ("127.0.0.1", 8001)],
        };
        play(guest, &before, &case);
    });
}

#[test]
fn jitter_spreads_as_asked() {
    story("jitter_spreads_as_asked", Stage::Installed, |guest| {
        let before = slowed_web(guest);
        let floor = guest.round_trips("", "127.0.0.1", 8001, 50).between(0.05, 0.5).0;
        let shapes = [
            // From 20 to 140 ms, all as likely: the middle half spans 60 ms.
            ("jitter = \"60ms\"", (20.0, 75.0), 60.0),
            // Nine in ten within 1.64 deviations; the middle half spans 1.35 of them.
            ("jitter = \"30ms\"\ndistribution = \"normal\"", (0.0, 75.0), 40.5),
        ];
        for (jitter, (least, early), half) in shapes {
            let run = guest.in_force(&latency("listen = 8001", &format!("delay = \"80ms\"\n{jitter}")));
            let times = guest.round_trips("", "127.0.0.1", 8001, 150);
            guest.abort(&run);
            let (low, high) = times.between(0.25, 0.75);
            assert!(times.least() >= least, "{jitter}: {times:?}");
            assert!(times.between(0.1, 0.9).0 - floor < early, "{jitter}: {times:?}");
            let spread = high - low;
            assert!(
                (spread - half).abs() < half * 0.4,
                "{jitter}: the middle half spans {spread}: {times:?}"
            );
            let middle = times.median() - floor;
            assert!((80.0 - 12.0..80.0 + 40.0).contains(&middle), "{jitter}: {middle} in {times:?}");
        }
        guest.must_be_as(&before);
    });
}
