//! Kills of a template unit's instances while systemd restarts them, with the floor watched from outside.

use crate::{
    guest::Guest,
    prepared::Stage,
    story::story,
    workload::{KILL_ONE, experiment, web_group, web_unit},
};

const PORTS: [u16; 4] = [8001, 8002, 8003, 8004];
const EVERY_S: f64 = 6.0;

/// What somebody saw who is not vervet.
#[derive(Debug)]
struct Seen {
    lowest: u32,
    looks: u32,
    /// Seconds between the two deaths that were closest to each other.
    closest: Option<f64>,
    deaths: u32,
}

impl Seen {
    fn read(said: &str) -> Self {
        let words: Vec<&str> = said.split_whitespace().collect();
        let number = |at: usize| words[at].parse().unwrap_or_else(|_| panic!("{said}"));
        Self { lowest: number(0), looks: number(2), closest: words[3].parse().ok(), deaths: number(4) }
    }
}

fn restarts(guest: &mut Guest) -> u32 {
    let units = PORTS.map(web_unit).join(" ");
    let said = guest.check(&format!("systemctl show -P NRestarts {units}"));
    said.lines().filter_map(|line| line.parse::<u32>().ok()).sum()
}

#[test]
fn three_deaths_one_at_a_time_and_never_below_the_floor() {
    story("three_deaths_one_at_a_time_and_never_below_the_floor", Stage::Installed, |guest| {
        guest.web(&PORTS);
        guest.unleash(&web_group(4, 3, "6s"));
        guest.wait_ready("web", 4);
        let before = guest.snapshot();
        let units = PORTS.map(web_unit).join(" ");
        guest.check("mkdir -p /run/test");
        let watch = guest.begin(&format!("/opt/test/watch.py {units} -- 60"));
        let quick = KILL_ONE.replace("5s", "100ms");
        let (code, run) = guest.play(&experiment(&["web"], &[&quick, &quick, &quick]));
        assert_eq!((code, &run["verdict"]), (0, &"passed".into()), "{run:#}");
        // Too many at once, whatever the budget says.
        let (code, run) = guest.play(&experiment(&["web"], &[&quick.replace("pick = 1", "pick = 2")]));
        assert_eq!((code, &run["why"]["reason"]), (3, &"below_floor".into()), "{run:#}");
        let output = guest.finish(watch, std::time::Duration::from_mins(5));
        let seen = Seen::read(&output.stdout);
        assert!(seen.looks > 300 && seen.deaths == 3, "{seen:?} {}", output.stderr);
        assert_eq!(seen.lowest, 3, "{seen:?}");
        assert!(seen.closest.is_some_and(|apart| apart >= EVERY_S - 0.1), "{seen:?}");
        assert_eq!(restarts(guest), 3);
        guest.must_be_as(&before);
    });
}

#[test]
fn a_death_of_others_doing_counts_too() {
    story("a_death_of_others_doing_counts_too", Stage::Installed, |guest| {
        guest.web(&PORTS);
        guest.unleash(&web_group(4, 3, "1h"));
        guest.wait_ready("web", 4);
        guest.check(&format!("systemctl kill -s KILL {}", web_unit(8002)));
        guest.wait_for("systemd starts it again", 60, "[ $(systemctl show -P NRestarts web@8002) = 1 ]");
        guest.wait_ready("web", 4);
        // The budget of this hour is spent, and the policy's patience is five minutes.
        let (code, run) = guest.play(&experiment(&["web"], &[KILL_ONE]));
        assert_eq!((code, &run["verdict"]), (3, &"refused".into()), "{run:#}");
        assert!(run["why"]["reason"].as_str().is_some_and(|why| why.contains("budget")), "{run:#}");
        assert_eq!(restarts(guest), 1);
    });
}
