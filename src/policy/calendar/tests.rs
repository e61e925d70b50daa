//! A year of schedules in a moment, both clock changes, and freezes of every kind.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp, ToSpan as _, civil::Weekday, tz::TimeZone};
use proptest::prelude::*;

use super::{
    agenda::{Due, Memory, Pause},
    freeze::{Event, Sight, Sights, Span, frozen, next_begin},
    slots::{next, own_seed, run_seed, slots},
    *,
};
use crate::{
    config::{Freeze, Policy, Rhythm, Schedule, When, Window},
    document,
    policy::time::{Moment, Now},
};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn policy(text: &str) -> Policy {
    document::policy(text, "vervet.toml")
        .unwrap_or_else(|errors| panic!("{}", errors.render(text, false)))
}

fn schedule(lines: &str) -> Schedule {
    let text = format!("[[schedule]]\nexperiment = \"x\"\n{lines}");
    policy(&text).schedules.remove(0)
}

const WORK: &str =
    "window = { days = \"Mon-Fri\", hours = \"09:00-15:00\", zone = \"America/New_York\" }";

fn mean(days: &str, least: &str) -> Schedule {
    schedule(&format!("mean_time_between = \"{days}\"\nmin_time_between = \"{least}\"\n{WORK}"))
}

fn cron(pattern: &str, zone: &str) -> Schedule {
    schedule(&format!("cron = \"{pattern}\"\nzone = \"{zone}\""))
}

fn year(schedule: &Schedule, seed: u64, year: i16) -> Vec<Timestamp> {
    let (from, until) = (format!("{year}-01-01T00:00Z"), format!("{}-01-01T00:00Z", year + 1));
    slots(schedule, seed, at(&from), at(&until), 1_000_000)
}

/// The number of each slot's day among the days with a window.
fn window_days(slots: &[Timestamp]) -> Vec<i64> {
    let zone = TimeZone::get("America/New_York").unwrap();
    let number = |slot: &Timestamp| {
        let day = slot.to_zoned(zone.clone()).date();
        let since = jiff::civil::date(2024, 1, 1).until(day).unwrap().get_days();
        i64::from(since / 7 * 5 + (since % 7).min(5))
    };
    slots.iter().map(number).collect()
}

#[test]
fn a_year_keeps_its_window_its_minimum_and_its_mean() {
    for (days, least, expected) in
        [("1d", "1d", 1.0), ("2d", "1d", 2.0), ("5d", "3d", 5.0), ("2.5d", "2d", 2.5)]
    {
        let schedule = mean(days, least);
        let least: i64 = least.trim_end_matches('d').parse().unwrap();
        let (mut gaps, mut hours) = (Vec::new(), [0_u32; 24]);
        for seed in 0..40 {
            let slots = year(&schedule, seed, 2026);
            for slot in &slots {
                let local = slot.to_zoned(TimeZone::get("America/New_York").unwrap());
                assert!((9..15).contains(&local.hour()), "{local}");
                assert!(!matches!(local.weekday(), Weekday::Saturday | Weekday::Sunday), "{local}");
                hours[usize::try_from(local.hour()).unwrap()] += 1;
            }
            let days = window_days(&slots);
            gaps.extend(days.windows(2).map(|pair| pair[1] - pair[0]));
        }
        assert!(gaps.iter().all(|gap| *gap >= least), "closer than {least} days");
        let count = gaps.len() as f64;
        let mean = gaps.iter().sum::<i64>() as f64 / count;
        let spread = gaps.iter().map(|gap| (*gap as f64 - mean).powi(2)).sum::<f64>() / count;
        // Four standard errors: one in 16,000 would fail by chance, and the seeds are fixed.
        let error = (4.0 * (spread / count).sqrt()).max(0.01);
        assert!((mean - expected).abs() <= error, "{mean} days, not {expected} ± {error}");
        // Evenly over the six hours of the window.
        let total = f64::from(hours.iter().sum::<u32>());
        for hour in &hours[9..15] {
            let share = f64::from(*hour) / total;
            assert!((share - 1.0 / 6.0).abs() < 4.0 * (0.14 / total).sqrt(), "{hours:?}");
        }
    }
}

#[test]
fn the_same_seed_draws_the_same_and_another_one_does_not() {
    let schedule = mean("2d", "1d");
    assert_eq!(year(&schedule, 7, 2027), year(&schedule, 7, 2027));
    assert_ne!(year(&schedule, 7, 2027), year(&schedule, 8, 2027));
    assert_ne!(own_seed(1, "monkey"), own_seed(2, "monkey"));
    assert_ne!(own_seed(1, "monkey"), own_seed(1, "other"));
    let slot = at("2026-11-23T15:00Z");
    assert_eq!(run_seed(7, slot), run_seed(7, slot));
    assert_ne!(run_seed(7, slot), run_seed(7, slot + 1.minute()));
}

#[test]
fn looked_at_in_parts_it_is_the_same_as_in_one() {
    let schedule = mean("3d", "2d");
    let whole = year(&schedule, 3, 2026);
    let mut parts = Vec::new();
    let mut now = at("2026-01-01T00:00Z");
    while let Some(slot) = next(&schedule, 3, now).filter(|slot| *slot <= at("2027-01-01T00:00Z")) {
        parts.push(slot);
        now = slot;
    }
    assert_eq!(whole, parts);
}

fn local(slots: &[Timestamp], zone: &str) -> Vec<String> {
    let zone = TimeZone::get(zone).unwrap();
    slots.iter().map(|slot| slot.to_zoned(zone.clone()).strftime("%a %d %H:%M %z").to_string()).collect()
}

#[test]
fn a_pattern_goes_by_the_wall_clock_of_its_zone_over_both_changes() {
    // New York: forward on 8 March 2026, 02:00 to 03:00; back on 1 November 2026, 02:00 to 01:00.
    let ten = cron("0 10 * * *", "America/New_York");
    let spring = slots(&ten, 0, at("2026-03-07T00:00Z"), at("2026-03-10T00:00Z"), 10);
    assert_eq!(
        local(&spring, "America/New_York"),
        ["Sat 07 10:00 -0500", "Sun 08 10:00 -0400", "Mon 09 10:00 -0400"]
    );
    let autumn = slots(&ten, 0, at("2026-10-31T00:00Z"), at("2026-11-03T00:00Z"), 10);
    assert_eq!(
        local(&autumn, "America/New_York"),
        ["Sat 31 10:00 -0400", "Sun 01 10:00 -0500", "Mon 02 10:00 -0500"]
    );
    // A time that the clocks skip runs once, right after; one that they repeat runs once.
    let half_past_two = cron("30 2 * * *", "America/New_York");
    let spring = slots(&half_past_two, 0, at("2026-03-08T00:00Z"), at("2026-03-09T04:00Z"), 10);
    assert_eq!(local(&spring, "America/New_York"), ["Sun 08 03:00 -0400"]);
    let half_past_one = cron("30 1 * * *", "America/New_York");
    let autumn = slots(&half_past_one, 0, at("2026-11-01T00:00Z"), at("2026-11-02T05:00Z"), 10);
    assert_eq!(local(&autumn, "America/New_York"), ["Sun 01 01:30 -0400"]);
    // What runs every half hour runs every half hour, whatever the clocks show.
    let often = cron("*/30 * * * *", "America/New_York");
    for day in ["2026-03-08", "2026-11-01"] {
        let from = at(&format!("{day}T04:59Z"));
        let slots = slots(&often, 0, from, from + 6.hours(), 100);
        assert_eq!(slots.len(), 12, "{slots:?}");
        assert!(
            slots.windows(2).all(|pair| pair[1].duration_since(pair[0]).as_mins() == 30),
            "{slots:?}"
        );
    }
}

#[test]
fn the_calendar_of_a_schedule_with_a_zone_is_right_over_both_changes() {
    let text = format!(
        "[[schedule]]\nname = \"fixed\"\nexperiment = \"x\"\ncron = \"0 10 * * *\"\nzone = \"America/New_York\"\n\
         [[schedule]]\nname = \"drawn\"\nexperiment = \"x\"\nmean_time_between = \"1d\"\n{WORK}\n"
    );
    for (day, zone_before, zone_after) in
        [("2026-03-08", "-05:00", "-04:00"), ("2026-11-01", "-04:00", "-05:00")]
    {
        let change = at(&format!("{day}T12:00Z"));
        let now = Now { mono: Moment(0), wall: change - 60.hours() };
        let calendar = agenda(&text, now.wall).calendar(now.wall, change + 60.hours(), now);
        let of = |name: &str| -> Vec<_> {
            let slots = calendar.slots.iter().filter(|slot| slot.schedule == name);
            slots.map(|slot| (slot.at, slot.local.clone())).collect()
        };
        let fixed = of("fixed");
        assert_eq!(fixed.len(), 5, "{fixed:?}");
        for (at, local) in fixed {
            // The clocks have changed by ten o'clock of that Sunday.
            let offset = if at < change { zone_before } else { zone_after };
            assert!(local.ends_with(&format!("T10:00:00{offset}[America/New_York]")), "{local}");
        }
        let drawn = of("drawn");
        assert_eq!(drawn.len(), 3, "Friday, Monday and Tuesday: {drawn:?}");
        for (at, local) in drawn {
            let hour: u32 = local[11..13].parse().unwrap();
            assert!((9..15).contains(&hour), "{local}");
            assert!(local.contains(if at < change { zone_before } else { zone_after }), "{local}");
        }
    }
}

#[test]
fn the_calendar_holds_back_what_will_be_frozen_and_all_of_what_cannot_be_known() {
    let dates = "[[freeze]]\nname = \"dates\"\nfrom = \"2026-11-22T11:30\"\nuntil = \"2026-11-22T13:00\"\n\
                 zone = \"UTC\"\n[[freeze]]\nname = \"outage\"\nunless = { tcp = \"127.0.0.1:1\" }\n";
    let now = now("2026-11-22T10:30Z", 0);
    let held = |agenda: &Agenda| -> Vec<_> {
        let calendar = agenda.calendar(now.wall, at("2026-11-22T14:00Z"), now);
        calendar.slots.into_iter().map(|slot| slot.why).collect()
    };
    let dates = agenda(&format!("{HOURLY}{dates}"), now.wall);
    let frozen = |name: &str| Some(format!("frozen: {name}"));
    // The condition does not hold, or is not known to; by then it may. The end of the dates is exclusive.
    assert_eq!(held(&dates), [None, frozen("dates"), None, None]);
    let file = "[[freeze]]\nname = \"file\"\ncalendar = \"/x.ics\"\nzone = \"UTC\"\n";
    let file = agenda(&format!("{HOURLY}{file}"), now.wall);
    assert_eq!(held(&file), [frozen("file"), frozen("file"), frozen("file"), frozen("file")]);
}

#[test]
fn a_window_goes_by_the_wall_clock_over_both_changes() {
    let drawn = schedule(
        "mean_time_between = \"1d\"\n\
         window = { days = \"daily\", hours = \"01:00-04:00\", zone = \"Europe/Berlin\" }",
    );
    let Rhythm::Mean { window, .. } = &drawn.rhythm else { unreachable!() };
    let hours = |day: &str| {
        let span = window.on(day.parse().unwrap()).unwrap();
        span.until.duration_since(span.from).as_hours()
    };
    // Forward on 29 March 2026, back on 25 October 2026.
    assert_eq!([hours("2026-03-28"), hours("2026-03-29"), hours("2026-10-25")], [3, 2, 4]);
    for slot in year(&drawn, 5, 2026) {
        let local = slot.to_zoned(TimeZone::get("Europe/Berlin").unwrap());
        assert!((1..4).contains(&local.hour()), "{local}");
    }
    assert_eq!(year(&drawn, 5, 2026).len(), 365);
}

#[test]
fn a_pattern_in_a_window_skips_the_nights_and_never_seeks_for_long() {
    let often = schedule(&format!("cron = \"*/10 * * * * *\"\n{WORK}"));
    // Friday 15:00 in New York, in winter.
    let after = at("2026-11-20T20:00Z");
    assert_eq!(next(&often, 0, after), Some(at("2026-11-23T14:00Z")));
    let day = slots(&often, 0, after, at("2026-11-24T00:00Z"), 100_000);
    assert_eq!(day.len(), 6 * 360);
}

#[test]
fn hours_over_midnight_belong_to_the_day_on_which_they_begin() {
    let night = schedule(
        "cron = \"0 * * * *\"\nwindow = { days = \"Fri\", hours = \"22:00-02:00\", zone = \"UTC\" }",
    );
    let slots = slots(&night, 0, at("2026-11-16T00:00Z"), at("2026-11-23T00:00Z"), 100);
    let expected =
        ["Fri 20 22:00 +0000", "Fri 20 23:00 +0000", "Sat 21 00:00 +0000", "Sat 21 01:00 +0000"];
    assert_eq!(local(&slots, "UTC"), expected);
}

fn agenda(text: &str, now: Timestamp) -> Agenda {
    Agenda::new(&policy(text), 1, Ok(Memory::default()), now)
}

const HOURLY: &str = "[[schedule]]\nexperiment = \"x\"\ncron = \"0 * * * *\"\nzone = \"UTC\"\n";

#[test]
fn each_slot_is_told_once_and_what_was_missed_is_never_made_up_for() {
    let start = at("2026-11-22T10:30Z");
    let mut agenda = agenda(HOURLY, start);
    assert_eq!(agenda.due(start), []);
    let now = at("2026-11-22T11:00:00.2Z");
    let on_time = Due { schedule: "x".to_owned(), missed: None, now: Some(at("2026-11-22T11:00Z")) };
    assert_eq!(agenda.due(now), [on_time]);
    assert_eq!(agenda.due(now), []);
    // The clock goes back a little: what has run does not run again.
    assert_eq!(agenda.due(at("2026-11-22T10:59:59Z")), []);
    assert_eq!(agenda.due(at("2026-11-22T11:00:01Z")), []);
    // The host sleeps until 15:20; and, in another agent, until just after 15:00.
    let mut other =
        Agenda::new(&policy(HOURLY), 1, Ok(agenda.memory().clone()), at("2026-11-22T15:00:30Z"));
    let missed = |slots, last| Some((slots, at(last)));
    let due = |missed, now| [Due { schedule: "x".to_owned(), missed, now }];
    assert_eq!(agenda.due(at("2026-11-22T15:20Z")), due(missed(4, "2026-11-22T15:00Z"), None));
    let now = Some(at("2026-11-22T15:00Z"));
    assert_eq!(other.due(at("2026-11-22T15:00:30Z")), due(missed(3, "2026-11-22T14:00Z"), now));
    assert_eq!(agenda.planned()[0].next, Some(at("2026-11-22T16:00Z")));
}

#[test]
fn a_clock_that_was_far_ahead_does_not_stop_a_schedule_for_good() {
    let mut agenda = agenda(HOURLY, at("2036-01-01T00:30Z"));
    assert_eq!(agenda.due(at("2026-11-22T10:30Z")), []);
    assert_eq!(agenda.due(at("2026-11-22T11:00Z"))[0].now, Some(at("2026-11-22T11:00Z")));
}

#[test]
fn pauses_survive_in_the_memory_and_an_unreadable_one_pauses_all() {
    let now = at("2026-11-22T10:30Z");
    let mut agenda = agenda(HOURLY, now);
    let pause = |reason: &str| Pause { reason: reason.to_owned(), by: "uid 0".to_owned(), since: now };
    assert!(!agenda.pause("y", Some(pause("no"))));
    assert!(agenda.pause("x", Some(pause("release day"))));
    assert!(agenda.pause("x", Some(pause("another reason"))));
    let after = Agenda::new(&policy(HOURLY), 1, Ok(agenda.memory().clone()), now);
    assert!(after.held_back("x").unwrap().contains("release day"));
    assert!(agenda.pause("x", None));
    assert_eq!(agenda.held_back("x"), None);
    let broken = Agenda::new(&policy(HOURLY), 1, Err("it is torn".to_owned()), now);
    assert!(broken.held_back("x").unwrap().contains("it is torn"));
}

fn now(wall: &str, mono_s: u64) -> Now {
    Now { mono: Moment(mono_s * 1_000_000_000), wall: at(wall) }
}

fn name_of(freezes: &[Freeze], sights: &Sights, now: Now) -> Option<String> {
    frozen(freezes, sights, now).map(|frozen| frozen.name)
}

#[test]
fn the_end_is_exclusive_and_the_longest_wins() {
    let freeze = |name: &str, from: &str, until: &str| Freeze {
        name: name.to_owned(),
        when: When::Dates { from: at(from), until: at(until), zone: "UTC".to_owned() },
    };
    let freezes = [
        freeze("short", "2026-11-20T00:00Z", "2026-11-21T00:00Z"),
        freeze("long", "2026-11-20T12:00Z", "2026-11-25T00:00Z"),
    ];
    let name = |at: &str| name_of(&freezes, &Sights::new(), now(at, 0));
    assert_eq!(name("2026-11-19T23:59:59Z"), None);
    assert_eq!(name("2026-11-20T00:00Z").as_deref(), Some("short"));
    assert_eq!(name("2026-11-20T13:00Z").as_deref(), Some("long"));
    assert_eq!(name("2026-11-24T23:59:59Z").as_deref(), Some("long"));
    assert_eq!(name("2026-11-25T00:00Z"), None);
}

#[test]
fn weekly_hours_freeze_up_to_their_end_over_days_that_touch() {
    let text = "[[freeze]]\nname = \"weekend\"\ndays = \"Sat-Sun\"\nzone = \"UTC\"\n";
    let freezes = policy(text).freezes;
    let frozen = |wall: &str| frozen(&freezes, &Sights::new(), now(wall, 0)).map(|frozen| frozen.until);
    assert_eq!(frozen("2026-11-20T23:59:59Z"), None);
    assert_eq!(frozen("2026-11-21T00:00Z"), Some(Some(at("2026-11-23T00:00Z"))));
    assert_eq!(frozen("2026-11-22T23:00Z"), Some(Some(at("2026-11-23T00:00Z"))));
    assert_eq!(frozen("2026-11-23T00:00Z"), None);
    let (from, until) = (at("2026-11-22T12:00Z"), at("2026-12-05T12:00Z"));
    let shown = freeze::spans(&freezes[0], None, from, until, 10);
    let begins: Vec<_> = shown.iter().map(|(span, _)| span.from.to_string()).collect();
    // The one that lasts at the beginning of what is asked for is told from there.
    assert_eq!(begins, ["2026-11-22T00:00:00Z", "2026-11-28T00:00:00Z", "2026-12-05T00:00:00Z"]);
    let begin = next_begin(&freezes, &Sights::new(), at("2026-11-23T00:00Z"));
    assert_eq!(begin, Some(at("2026-11-28T00:00Z")));
}

#[test]
fn what_is_not_known_is_frozen() {
    let text = "[[freeze]]\nname = \"holidays\"\ncalendar = \"/x.ics\"\nzone = \"UTC\"\n\
                [[freeze]]\nname = \"outage\"\nunless = { tcp = \"127.0.0.1:1\" }\nevery = \"10s\"\n";
    let freezes = policy(text).freezes;
    let [holidays, outage] = [&freezes[..1], &freezes[1..]];
    let mut sights = Sights::new();
    let start = now("2026-11-22T00:00Z", 1_000);
    assert_eq!(name_of(holidays, &sights, start).as_deref(), Some("holidays"));
    assert_eq!(name_of(outage, &sights, start).as_deref(), Some("outage"));

    let (from, until) = (at("2026-11-21T23:00Z"), at("2026-12-22T00:00Z"));
    let span = Span { from: at("2026-11-26T00:00Z"), until: at("2026-11-27T00:00Z") };
    let event = Event { title: "Thanksgiving".to_owned(), span };
    sights.insert("holidays".to_owned(), Sight::Events { spans: Ok(vec![event]), from, until });
    let checked = |outcome, at| Sight::Checked { outcome, at };
    sights.insert("outage".to_owned(), checked(Ok(()), start.mono));
    assert_eq!(name_of(&freezes, &sights, start), None);
    let there = frozen(holidays, &sights, now("2026-11-26T12:00Z", 0)).unwrap();
    assert_eq!((there.until, there.because.as_deref()), (Some(span.until), Some("Thanksgiving")));
    // What was read reaches only so far, and an answer holds only so long.
    assert_eq!(name_of(holidays, &sights, now("2026-11-21T23:00Z", 0)), None);
    assert_eq!(name_of(holidays, &sights, now("2026-11-21T22:59Z", 0)).as_deref(), Some("holidays"));
    assert_eq!(name_of(holidays, &sights, now("2026-12-22T00:00Z", 0)).as_deref(), Some("holidays"));
    assert_eq!(name_of(outage, &sights, now("2026-11-22T00:00Z", 1_089)), None);
    assert_eq!(name_of(outage, &sights, now("2026-11-22T00:00Z", 1_091)).as_deref(), Some("outage"));

    sights.insert("outage".to_owned(), checked(Err("it fires".to_owned()), start.mono));
    let unreadable = Sight::Events { spans: Err("cut off".to_owned()), from, until };
    sights.insert("holidays".to_owned(), unreadable);
    for (freezes, why) in [(outage, "it fires"), (holidays, "cut off")] {
        assert_eq!(frozen(freezes, &sights, start).unwrap().because.as_deref(), Some(why));
    }
}

proptest! {
    /// Whatever the schedule, the zone and the moment: slots lie in the window, come in order, one
    /// after the other, and asking for the next one is asking for all of them.
    #[test]
    fn slots_lie_in_their_windows(
        seed in 0..1_000_u64,
        days in prop::collection::vec(any::<bool>(), 7),
        from in 0..1_440_u16,
        length in 1..1_440_u16,
        mean in 1.0..9.0_f64,
        zone in prop::sample::select(vec!["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe",
            "Africa/Casablanca", "Pacific/Apia"]),
        start in 1_735_689_600..1_830_000_000_i64,
    ) {
        let mut days: [bool; 7] = days.try_into().unwrap();
        days[2] = true;
        let until = (from + length) % 1_440;
        prop_assume!(until != from);
        let until = if until == 0 { 1_440 } else { until };
        let window = Window { days, from, until, zone: TimeZone::get(zone).unwrap() };
        let schedule = Schedule {
            name: "x".to_owned(),
            experiment: "x".to_owned(),
            enabled: true,
            leashed: false,
            seed: None,
            rhythm: Rhythm::Mean { days: mean, least: 1, window: window.clone() },
        };
        let start = Timestamp::from_second(start).unwrap();
        let end = start + SignedDuration::from_hours(24 * 40);
        let all = slots(&schedule, seed, start, end, 1_000);
        prop_assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        let local_days: BTreeSet<_> = all
            .iter()
            .map(|slot| (*slot - Duration::from_secs(u64::from(from) * 60)).to_zoned(window.zone.clone()).date())
            .collect();
        prop_assert!(all.len() - local_days.len() <= 1, "more than one a day: {all:?}");
        for slot in &all {
            prop_assert!(*slot > start && *slot <= end);
            prop_assert!(window.is_open(*slot), "{slot} is outside");
        }
        prop_assert_eq!(next(&schedule, seed, start).filter(|slot| *slot <= end), all.first().copied());
    }
}
