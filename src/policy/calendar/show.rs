//! What the outside sees of the agenda: schedules, and the calendar of what will run and what will not.

use jiff::Timestamp;

use crate::{
    config::{Rhythm, When, Window},
    policy::time::Now,
    view::{CalendarView, ConditionView, FrozenTimeView, PauseView, ScheduleView, SlotState, SlotView},
};

use super::{
    agenda::{Agenda, Outcome, Planned, Slot},
    freeze,
    slots::slots,
};

/// Entries of one calendar, of each kind.
const MOST: usize = 1_000;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

impl Agenda {
    /// Every schedule as it stands. `leashed`: the host is.
    #[must_use]
    pub fn schedule_views(&self, leashed: bool) -> Vec<ScheduleView> {
        self.planned().iter().map(|one| self.schedule_view(one, leashed)).collect()
    }

    fn schedule_view(&self, planned: &Planned, leashed: bool) -> ScheduleView {
        let Planned { schedule, seed, next } = planned;
        let (rhythm, window) = match &schedule.rhythm {
            Rhythm::Cron { text, window, .. } => (format!("cron {text}"), window.as_ref()),
            Rhythm::Mean { days, least, window } => {
                let more = if *least > 1 {
                    format!(", never within {least} days")
                } else {
                    ", once a day at most".to_owned()
                };
                let plural = if (*days - 1.0).abs() < f64::EPSILON { "" } else { "s" };
                (format!("every {days} day{plural} in the mean{more}"), Some(window))
            }
        };
        let memory = self.memory();
        let last = memory.slots.iter().rev().find(|slot| slot.schedule == schedule.name);
        ScheduleView {
            name: schedule.name.clone(),
            experiment: schedule.experiment.clone(),
            rhythm,
            window: window.map(describe),
            enabled: schedule.enabled,
            leashed: leashed || schedule.leashed,
            seed: *seed,
            paused: memory.paused.get(&schedule.name).map(|pause| PauseView {
                reason: pause.reason.clone(),
                by: pause.by.clone(),
                since: pause.since,
            }),
            next: *next,
            last: last.map(|slot| self.past(slot)),
        }
    }

    fn past(&self, slot: &Slot) -> SlotView {
        let planned = self.schedule(&slot.schedule);
        let (state, run, why) = match &slot.outcome {
            Outcome::Started { run } => (SlotState::Started, Some(*run), None),
            Outcome::Skipped { why } => (SlotState::Skipped, None, Some(why.clone())),
            Outcome::Missed { slots } => {
                let others = slots.saturating_sub(1);
                let why = (others > 0).then(|| format!("and {others} before it"));
                (SlotState::Missed, None, why)
            }
        };
        SlotView {
            schedule: slot.schedule.clone(),
            experiment: planned.map(|one| one.schedule.experiment.clone()).unwrap_or_default(),
            at: slot.at,
            local: planned.map_or_else(|| slot.at.to_string(), |one| local(one, slot.at)),
            state,
            run,
            why,
        }
    }

    /// The calendar from `from` to `until`: what became of slots before `now`, and what will of those
    /// after it, as far as can be known.
    #[must_use]
    pub fn calendar(&self, from: Timestamp, until: Timestamp, now: Now) -> CalendarView {
        let mut all: Vec<SlotView> = self
            .memory()
            .slots
            .iter()
            .filter(|slot| from <= slot.at && slot.at <= until)
            .map(|slot| self.past(slot))
            .collect();
        let mut whole_until = until;
        for one in self.planned().iter().filter(|one| one.schedule.enabled) {
            // What is due at this moment has not begun yet.
            let next =
                one.next.and_then(|next| next.checked_sub(jiff::SignedDuration::from_nanos(1)).ok());
            let after = next.map_or(now.wall, |next| next.max(from));
            let coming = slots(&one.schedule, one.seed, after, until, MOST);
            if let (Some(last), true) = (coming.last(), coming.len() == MOST) {
                whole_until = whole_until.min(*last);
            }
            all.extend(coming.into_iter().map(|at| self.coming(one, at, now)));
        }
        all.sort_by(|a, b| (a.at, &a.schedule).cmp(&(b.at, &b.schedule)));
        let mut freezes = Vec::new();
        let mut conditions = Vec::new();
        for (freeze, sight) in self.freezes() {
            let spans = freeze::spans(freeze, sight, from, until, MOST);
            if spans.len() >= MOST {
                whole_until = spans.last().map_or(whole_until, |(span, _)| whole_until.min(span.from));
            }
            freezes.extend(spans.into_iter().map(|(span, title)| FrozenTimeView {
                freeze: freeze.name.clone(),
                from: span.from,
                until: span.until,
                title,
            }));
            let frozen = self.frozen_by(&freeze.name, now).filter(|frozen| frozen.until.is_none());
            if matches!(freeze.when, When::Unless { .. }) || frozen.is_some() {
                conditions.push(ConditionView {
                    freeze: freeze.name.clone(),
                    frozen: frozen.is_some(),
                    because: frozen.and_then(|frozen| frozen.because),
                });
            }
        }
        freezes.sort_by(|a, b| (a.from, a.until, &a.freeze).cmp(&(b.from, b.until, &b.freeze)));
        // Whole up to one moment, rather than with holes.
        if all.len() > MOST {
            whole_until = whole_until.min(all[MOST].at);
        }
        if freezes.len() > MOST {
            whole_until = whole_until.min(freezes[MOST].from);
        }
        if whole_until < until {
            all.retain(|slot| slot.at <= whole_until);
            freezes.retain(|freeze| freeze.from <= whole_until);
        }
        let truncated_at = (whole_until < until).then_some(whole_until);
        CalendarView { from, until, slots: all, freezes, conditions, truncated_at, problems: Vec::new() }
    }

    fn coming(&self, planned: &Planned, at: Timestamp, now: Now) -> SlotView {
        let name = &planned.schedule.name;
        let why = self.held_back(name).or_else(|| self.frozen_at(at, now));
        SlotView {
            schedule: name.clone(),
            experiment: planned.schedule.experiment.clone(),
            at,
            local: local(planned, at),
            state: if why.is_some() { SlotState::Held } else { SlotState::Expected },
            run: None,
            why,
        }
    }

    /// The freeze that will be in force at a time to come. Conditions are taken to hold by then, unless
    /// it is known otherwise: nobody can see them in advance.
    fn frozen_at(&self, at: Timestamp, now: Now) -> Option<String> {
        let then = Now { wall: at, ..now };
        let mut foreseen =
            self.freezes().filter(|(freeze, _)| !matches!(freeze.when, When::Unless { .. }));
        let frozen = foreseen.find_map(|(freeze, _)| self.frozen_by(&freeze.name, then));
        frozen.map(|frozen| format!("frozen: {}", frozen.name))
    }
}

fn local(planned: &Planned, at: Timestamp) -> String {
    let zone = match &planned.schedule.rhythm {
        Rhythm::Cron { zone, .. } => zone,
        Rhythm::Mean { window, .. } => &window.zone,
    };
    at.to_zoned(zone.clone()).to_string()
}

/// A window as people write it.
#[must_use]
pub fn describe(window: &Window) -> String {
    let mut runs: Vec<String> = Vec::new();
    let mut at = 0;
    while at < 7 {
        let first = at;
        while at < 7 && window.days[at] {
            at += 1;
        }
        match at - first {
            0 => at += 1,
            1 => runs.push(DAYS[first].to_owned()),
            _ => runs.push(format!("{}-{}", DAYS[first], DAYS[at - 1])),
        }
    }
    let days = if window.days == [true; 7] { "daily".to_owned() } else { runs.join(",") };
    let clock = |minutes: u16| format!("{:02}:{:02}", minutes / 60, minutes % 60);
    let zone = window.zone.iana_name().unwrap_or("UTC");
    format!("{days} {}-{} {zone}", clock(window.from), clock(window.until))
}
