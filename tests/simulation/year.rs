//! A year of schedules: the real engine, simulated time, and a life as hosts have it: freezes of every
//! kind, pauses, other people's runs, sleep, and agents that die and start again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp, ToSpan as _, civil::Weekday, tz::TimeZone};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;
use uuid::Uuid;
use vervet::{
    document::{self, Format},
    policy::{
        calendar::{Memory, Outcome, Pause, Sight, Slot, Span, freeze::Event as Busy, slots::slots},
        engine::{Effect, Engine, Event, HostFacts, Start},
        time::{Moment, Now},
    },
};

const POLICY: &str = r#"
[[schedule]]
name = "monkey"
experiment = "x"
mean_time_between = "3d"
min_time_between = "2d"
window = { days = "Mon-Fri", hours = "09:00-15:00", zone = "America/New_York" }

[[schedule]]
name = "daily"
experiment = "x"
cron = "30 2 * * *"
zone = "Europe/Berlin"

[[schedule]]
name = "often"
experiment = "x"
cron = "*/20 * * * *"
window = { days = "Tue,Thu", hours = "22:00-02:00", zone = "Australia/Sydney" }

[[freeze]]
name = "dates"
from = "2026-07-01T00:00"
until = "2026-07-15T00:00"
zone = "America/New_York"

[[freeze]]
name = "weekly"
days = "Wed"
hours = "10:00-12:00"
zone = "America/New_York"

[[freeze]]
name = "events"
calendar = "/x.ics"
zone = "UTC"

[[freeze]]
name = "condition"
unless = { tcp = "127.0.0.1:1" }
"#;

const EXPERIMENT: &str = "title = \"T\"\nhypothesis = \"H\"\n[[step]]\nname = \"s\"\nfault = \"kill\"\n\
                          target = { name = \"nobody\" }\n";

struct Year {
    engine: Engine,
    now: Now,
    rng: ChaCha12Rng,
    /// As the disk has it.
    memory: Memory,
    paused: BTreeMap<String, Timestamp>,
    events: Vec<Busy>,
    holds: bool,
    /// A run of somebody else that is active.
    person: Option<Uuid>,
    told: Vec<Slot>,
    launched: Vec<(String, Timestamp)>,
    /// Nobody was there from here to there.
    away: Vec<Span>,
}

impl Year {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let now = Now { mono: Moment(1_000_000_000_000), wall: begin };
        let events = (0..12)
            .map(|_| {
                let from = begin + SignedDuration::from_hours(rng.random_range(0..365 * 24));
                let until = from + SignedDuration::from_hours(rng.random_range(1..60));
                Busy { title: "event".to_owned(), span: Span { from, until } }
            })
            .collect();
        Self {
            engine: engine(Memory::default(), now.wall),
            now,
            rng,
            memory: Memory::default(),
            paused: BTreeMap::new(),
            events,
            holds: true,
            person: None,
            told: Vec::new(),
            launched: Vec::new(),
            away: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        for effect in self.engine.handle(event, self.now) {
            match effect {
                Effect::Launch { schedule, slot, .. } => {
                    self.check_launch(&schedule, slot);
                    self.launched.push((schedule.clone(), slot));
                    let result = Ok(Uuid::from_u128(self.launched.len() as u128));
                    self.tell(Event::Launched { schedule, slot, result });
                }
                Effect::Remember(memory) => self.memory = *memory,
                Effect::Slot(slot) => self.told.push(slot),
                // A freeze ends it, too, and not only the one who began it.
                Effect::Save(run) if run.finished_at.is_some() && self.person == Some(run.id) => {
                    self.person = None;
                }
                _ => {}
            }
        }
    }

    /// Held against the policy by other means than the engine's own.
    fn check_launch(&self, schedule: &str, slot: Timestamp) {
        let place = format!("{schedule} at {slot}, now {}", self.now.wall);
        let late = self.now.wall.duration_since(slot);
        assert!((0..=60).contains(&late.as_secs()), "{place}: not on time");
        assert!(!self.paused.contains_key(schedule), "{place}: it is paused");
        assert!(self.person.is_none(), "{place}: beside another run");
        assert!(self.holds, "{place}: the condition does not hold");
        let busy = self.events.iter().find(|event| event.span.contains(self.now.wall));
        assert_eq!(busy, None, "{place}: inside an event");
        let zoned = |zone: &str| self.now.wall.to_zoned(TimeZone::get(zone).unwrap());
        let york = zoned("America/New_York");
        let in_july = york.month() == 7 && york.day() < 15;
        assert!(!in_july, "{place}: inside the dates");
        let frozen_hours = york.weekday() == Weekday::Wednesday && (10..12).contains(&york.hour());
        assert!(!frozen_hours, "{place}: inside the weekly hours");
        match schedule {
            "monkey" => {
                assert!((9..15).contains(&york.hour()), "{place}: {york}");
                assert!(!matches!(york.weekday(), Weekday::Saturday | Weekday::Sunday), "{place}");
            }
            "daily" => {
                let berlin = slot.to_zoned(TimeZone::get("Europe/Berlin").unwrap());
                // On the day of the change there is no half past two.
                let forward =
                    (berlin.month(), berlin.day(), berlin.hour(), berlin.minute()) == (3, 29, 3, 0);
                assert!((berlin.hour(), berlin.minute()) == (2, 30) || forward, "{place}: {berlin}");
            }
            _ => {
                let sydney = zoned("Australia/Sydney");
                let evening = matches!(sydney.weekday(), Weekday::Tuesday | Weekday::Thursday)
                    && sydney.hour() >= 22;
                let night = matches!(sydney.weekday(), Weekday::Wednesday | Weekday::Friday)
                    && sydney.hour() < 2;
                assert!(evening || night, "{place}: {sydney}");
            }
        }
    }

    fn look(&mut self) {
        // What could change goes first: a slot may be due with whatever is told.
        let outcome = if self.holds { Ok(()) } else { Err("it fires".to_owned()) };
        let sight = Sight::Checked { outcome, at: self.now.mono };
        self.tell(Event::Seen { freeze: "condition".to_owned(), sight });
        let (from, until) = (self.now.wall, self.now.wall + SignedDuration::from_hours(24 * 30));
        let sight = Sight::Events { spans: Ok(self.events.clone()), from, until };
        self.tell(Event::Seen { freeze: "events".to_owned(), sight });
    }

    fn pass(&mut self, time: Duration) {
        self.now.mono = self.now.mono.plus(time);
        self.now.wall += time;
    }

    /// Something of what happens on a host.
    fn happen(&mut self) {
        match self.rng.random_range(0..400) {
            0 => self.holds = false,
            1..6 => self.holds = true,
            6 => {
                let name = ["monkey", "daily", "often"][self.rng.random_range(0..3)].to_owned();
                self.paused.insert(name.clone(), self.now.wall);
                let (reason, by) = ("so".to_owned(), "simulation".to_owned());
                let pause = Some(Pause { reason, by, since: self.now.wall });
                self.tell(Event::Pause { schedule: name, pause });
            }
            7..11 => {
                if let Some(schedule) = self.paused.keys().next().cloned() {
                    self.paused.remove(&schedule);
                    self.tell(Event::Pause { schedule, pause: None });
                }
            }
            11..14 if self.person.is_none() => {
                let experiment = document::experiment(EXPERIMENT, "x", Format::Toml).unwrap();
                let run = Uuid::from_u128(self.rng.random());
                let start = Start {
                    run,
                    experiment: Arc::new(experiment),
                    seed: 1,
                    plan: None,
                    caller: "person".to_owned(),
                    leashed: false,
                };
                self.tell(Event::Start(Box::new(start)));
                let runs = self.engine.run(run).is_some_and(vervet::policy::engine::run::Run::is_active);
                self.person = runs.then_some(run);
            }
            14 => {
                let from = self.now.wall;
                let crashed = self.rng.random_bool(0.5);
                let away = Duration::from_secs(self.rng.random_range(10..200_000));
                self.pass(away);
                self.away.push(Span { from, until: self.now.wall });
                if crashed {
                    self.engine = engine(self.memory.clone(), self.now.wall);
                    self.person = None;
                }
                // What it knew of freezes is old, or gone: it must look first.
                self.look();
            }
            _ => {}
        }
        if self.rng.random_bool(0.2)
            && let Some(run) = self.person.take()
        {
            self.tell(Event::Abort { run, caller: "person".to_owned() });
        }
    }

    fn live(&mut self) {
        let end =
            self.now.wall + 365.days().to_duration(jiff::SpanRelativeTo::days_are_24_hours()).unwrap();
        while self.now.wall < end {
            self.look();
            self.tell(Event::Tick);
            self.happen();
            let most = Duration::from_secs(self.rng.random_range(30..3_000));
            let next = self.engine.next_wake(self.now).map(|at| at.since(self.now.mono));
            self.pass(next.map_or(most, |next| next.min(most)).max(Duration::from_millis(1)));
            // A condition is asked every few seconds; here just before anything could go by it.
            self.look();
        }
    }
}

fn engine(memory: Memory, now: Timestamp) -> Engine {
    let policy = document::policy(POLICY, "vervet.toml").unwrap();
    let facts = HostFacts {
        name: "sim".to_owned(),
        kernel: "sim".to_owned(),
        version: "0".to_owned(),
        started_at: now,
        seed: 5,
        abilities: Vec::new(),
    };
    let mut engine = Engine::new(Arc::new(policy), facts, None);
    engine.inherit_schedules(Ok(memory), now);
    engine
}

#[test]
fn a_year_of_schedules() {
    let (mut started, mut skipped, mut missed) = (0, 0, 0);
    for seed in 0..6 {
        let mut year = Year::new(seed);
        let begin = year.now.wall;
        year.live();
        // Every slot is told once, and none that there is not.
        let mut told: BTreeMap<String, u32> = BTreeMap::new();
        for Slot { schedule, at, outcome } in &year.told {
            *told.entry(schedule.clone()).or_default() += match outcome {
                Outcome::Missed { slots } => {
                    missed += slots;
                    let gone = |span: &Span| span.from <= *at && *at <= span.until;
                    assert!(year.away.iter().any(gone), "{schedule} at {at}: somebody was there");
                    *slots
                }
                Outcome::Started { .. } => {
                    started += 1;
                    1
                }
                Outcome::Skipped { .. } => {
                    skipped += 1;
                    1
                }
            };
        }
        for one in year.engine.agenda().planned() {
            let all = slots(&one.schedule, one.seed, begin, year.now.wall, 100_000);
            let told = told.get(&one.schedule.name).copied().unwrap_or_default();
            let due = u32::try_from(all.len()).unwrap();
            // One may be due at this very moment.
            assert!(
                told == due || told + 1 == due,
                "seed {seed}: {}: {told} of {due}",
                one.schedule.name
            );
        }
        let monkeys = year.launched.iter().filter(|(schedule, _)| schedule == "monkey");
        let days: Vec<_> = monkeys
            .map(|(_, at)| at.to_zoned(TimeZone::get("America/New_York").unwrap()).date())
            .collect();
        for pair in days.windows(2) {
            let gap = pair[0].until(pair[1]).unwrap().get_days();
            let weekend = pair[0].weekday() == Weekday::Friday;
            assert!(gap >= if weekend { 4 } else { 2 }, "seed {seed}: {pair:?} are too close");
        }
    }
    println!("{started} started, {skipped} skipped, {missed} missed");
    assert!(started > 1_000 && skipped > 100 && missed > 100, "{started} {skipped} {missed}");
}

/// An engine whose world is all right, and a clock.
fn calm(seed: u64) -> Year {
    let mut year = Year::new(seed);
    (year.events, year.holds) = (Vec::new(), true);
    year.look();
    year
}

/// The launches of the days that follow, with nothing else happening.
fn days(year: &mut Year, days: u32) -> usize {
    let before = year.launched.len();
    for _ in 0..days * 24 * 12 {
        year.pass(Duration::from_mins(5));
        year.look();
        year.tell(Event::Tick);
    }
    year.launched.len() - before
}

#[test]
fn a_clock_that_was_a_year_ahead_runs_nothing_twice_and_stops_nothing_for_good() {
    let mut year = calm(1);
    year.pass(Duration::from_hours(1));
    let right = year.now.wall;
    year.now.wall += SignedDuration::from_hours(24 * 365);
    year.look();
    year.tell(Event::Tick);
    assert_eq!(year.launched, [], "what the leap passed over was missed");
    year.now.wall = right;
    let told = year.told.len();
    days(&mut year, 7);
    let daily = year.told[told..].iter().filter(|slot| slot.schedule == "daily").count();
    assert_eq!(daily, 7, "{:?}", &year.told[told..]);
}

#[test]
fn what_comes_between_a_slot_and_its_run_keeps_it_from_running() {
    let mut year = calm(2);
    // Half past two in Berlin.
    year.pass(Duration::from_mins(90));
    year.look();
    let slot = year.now.wall;
    assert!(year.engine.may_begin("daily", slot, year.now).is_ok());
    let (reason, by) = ("so".to_owned(), "somebody".to_owned());
    let pause = Some(Pause { reason, by, since: slot });
    year.tell(Event::Pause { schedule: "daily".to_owned(), pause });
    let held = year.engine.may_begin("daily", slot, year.now).map(|_| ());
    assert!(held.is_err_and(|why| why.contains("paused")));
    year.tell(Event::Pause { schedule: "daily".to_owned(), pause: None });
    assert!(year.engine.may_begin("daily", slot, year.now).is_ok());
    year.pass(Duration::from_secs(61));
    let late = year.engine.may_begin("daily", slot, year.now).map(|_| ());
    assert!(late.is_err_and(|why| why.contains("its time was over")));
}
