//! How slow a share of all answers was, over a window.
//!
//! Failed attempts count as slower than any limit. One that took so long that others could not even
//! begin stands for those as well, as slow as each of them would have been: or else a service that
//! stands still for a second would be one slow answer among hundreds, and look well.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::experiment::{Percentiles, Quantile};

/// The answers of a window.
#[derive(Debug)]
pub struct Window {
    expect: Percentiles,
    /// Oldest first: when each attempt began, and how long it took; `None` for one that failed.
    answers: VecDeque<(Instant, Option<Duration>)>,
    began: Option<Instant>,
}

impl Window {
    #[must_use]
    pub fn new(expect: Percentiles) -> Self {
        Self { expect, answers: VecDeque::new(), began: None }
    }

    /// Takes one attempt in, and judges the window that ends with its beginning. `None`: the window
    /// has not been seen whole yet, and what was seen of it is not bad enough to tell.
    pub fn add(
        &mut self,
        at: Instant,
        took: Duration,
        outcome: &Result<(), String>,
    ) -> Option<Result<(), String>> {
        let (error, pace) = (outcome.as_ref().err(), self.pace());
        let begun = *self.began.get_or_insert(at);
        self.answers.push_back((at, outcome.is_ok().then_some(took)));
        let held = took.as_nanos().saturating_sub(1) / pace.as_nanos().max(1);
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        // Those before would leave the window at once.
        let first = held.saturating_sub(self.expect.answers).saturating_add(1);
        for late in (first..=held).map(|late| pace * late) {
            let left = outcome.is_ok().then(|| took.saturating_sub(late));
            self.answers.push_back((at + late, left));
        }
        // By the beginnings, so that a regular pace has always the same number in the window.
        let end = self.answers.back().map_or(at, |(at, _)| *at);
        while self.answers.len() > self.most()
            || self.answers.front().is_some_and(|(at, _)| *at + self.expect.window <= end)
        {
            self.answers.pop_front();
        }
        let whole = end.duration_since(begun) + pace >= self.expect.window;
        let error = error.map(|error| format!("; the last one: {error}")).unwrap_or_default();
        self.judge(whole).map(|verdict| verdict.map_err(|wrong| format!("{wrong}{error}")))
    }

    fn judge(&self, whole: bool) -> Option<Result<(), String>> {
        let mut sorted: Vec<Option<Duration>> = self.answers.iter().map(|(_, took)| *took).collect();
        // Those that failed come last.
        sorted.sort_by_key(|took| took.unwrap_or(Duration::MAX));
        let failed = sorted.iter().filter(|took| took.is_none()).count();
        let over = units(self.expect.window);
        for (quantile, limit) in &self.expect.limits {
            let (seen, limit) = (sorted.len(), *limit);
            let said = |value: &str| {
                format!(
                    "{quantile} is {value}, not {}: {seen} answers in {over}, {failed} of them failed",
                    units(limit)
                )
            };
            if !whole {
                // Even if all that are still to come were in time.
                let missing = self.most().saturating_sub(seen);
                let place = quantile.place(seen + missing);
                let slow = place.checked_sub(missing).and_then(|place| sorted.get(place));
                if slow.is_some_and(|took| took.is_none_or(|took| took > limit)) {
                    return Some(Err(said("too slow already")));
                }
                continue;
            }
            if seen < self.least(*quantile) {
                let all = self.most();
                return Some(Err(format!(
                    "{quantile} cannot be told: {seen} answers in {over}, where {all} belong"
                )));
            }
            match sorted.get(quantile.place(seen)) {
                Some(Some(took)) if *took <= limit => {}
                Some(Some(took)) => return Some(Err(said(&units(*took)))),
                Some(None) | None => return Some(Err(said("a failure"))),
            }
        }
        whole.then_some(Ok(()))
    }

    /// Answers in a window at the probe's pace.
    fn most(&self) -> usize {
        usize::try_from(self.expect.answers).unwrap_or(usize::MAX).max(1)
    }

    /// Fewer answers than these do not speak for the whole window.
    ///
    /// A tenth may be missing, and of few one: to ask late costs no answer, but whoever stands still for
    /// longer than the pace skips some. Nor may it be less than nine tenths of what the quantile needs;
    /// of those it is only a stricter one.
    fn least(&self, quantile: Quantile) -> usize {
        let (all, needed) = (self.most(), usize::try_from(quantile.answers_needed()));
        let needed = needed.unwrap_or(usize::MAX);
        (all - (all / 10).max(1)).max(needed - needed / 10)
    }

    fn pace(&self) -> Duration {
        self.expect.window / self.expect.answers.max(1)
    }
}

fn units(span: Duration) -> String {
    let round = if span < Duration::from_secs(10) { 100_000 } else { 100_000_000 };
    let nanos = span.as_nanos() / round * round;
    format!("{:?}", Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Duration = Duration::from_millis(100);

    fn window(limits: &[(&str, u64)], answers: u32) -> Window {
        let limits = limits.iter().map(|(name, ms)| {
            (Quantile::from_name(name).expect("a quantile"), Duration::from_millis(*ms))
        });
        Window::new(Percentiles { limits: limits.collect(), window: PACE * answers, answers })
    }

    /// Attempts at their pace, each with its time in milliseconds; 0 fails. What was said of each.
    fn play(window: &mut Window, tooks: &[u64]) -> Vec<Option<Result<(), String>>> {
        let mut at = window.answers.back().map_or_else(Instant::now, |(at, _)| *at + PACE);
        let mut said = Vec::new();
        for took in tooks {
            let outcome = if *took == 0 { Err("refused".to_owned()) } else { Ok(()) };
            let took = Duration::from_millis(*took);
            said.push(window.add(at, took, &outcome));
            at += PACE * u32::try_from(took.as_millis().div_ceil(100).max(1)).expect("small");
        }
        said
    }

    #[test]
    fn nothing_is_said_before_the_window_was_seen_whole() {
        let mut window = window(&[("p50", 50)], 4);
        assert_eq!(play(&mut window, &[10; 3]), vec![None; 3]);
        assert_eq!(play(&mut window, &[10; 2]), vec![Some(Ok(())); 2]);
    }

    #[test]
    fn what_is_too_bad_to_mend_is_said_at_once() {
        let mut window = window(&[("p50", 50)], 4);
        let said = play(&mut window, &[0, 0, 0]);
        assert_eq!(said[..2], [None, None], "two of four may be slow");
        let error = said[2].clone().expect("said").expect_err("a miss");
        assert!(
            error.contains("p50 is too slow already") && error.contains("3 of them failed"),
            "{error}"
        );
        assert!(error.ends_with("the last one: refused"), "{error}");
    }

    #[test]
    fn the_measured_value_is_said_with_the_number_of_answers() {
        let mut window = window(&[("p50", 30), ("p75", 40)], 4);
        play(&mut window, &[10, 20, 30, 41]);
        let said = play(&mut window, &[45]).remove(0).expect("said").expect_err("a miss");
        assert_eq!(said, "p75 is 41ms, not 40ms: 4 answers in 400ms, 0 of them failed");
        assert_eq!(play(&mut window, &[10, 10, 10]).pop(), Some(Some(Ok(()))), "it leaves the window");
    }

    #[test]
    fn failures_are_slower_than_any_limit() {
        let mut window = window(&[("p75", 60_000)], 4);
        let said = play(&mut window, &[10, 10, 0, 0]).pop().flatten().expect("said");
        assert!(said.expect_err("a miss").starts_with("p75 is a failure, not 60s"));
        let said = play(&mut window, &[10, 10, 10]).pop();
        assert_eq!(said, Some(Some(Ok(()))), "one of four may fail");
    }

    #[test]
    fn an_answer_stands_for_those_that_it_held_up() {
        let mut window = window(&[("p90", 150)], 20);
        assert_eq!(play(&mut window, &[10; 20]).pop(), Some(Some(Ok(()))));
        // As seen by those who would have asked meanwhile: 500, 400, 300, 200 and 100 ms.
        let said = play(&mut window, &[500]).remove(0).expect("said").expect_err("a miss");
        assert!(said.starts_with("p90 is 300ms, not 150ms: 20 answers"), "{said}");
    }

    #[test]
    fn too_few_answers_are_no_good_news() {
        let mut window = window(&[("p90", 150)], 10);
        assert_eq!(play(&mut window, &[10; 10]).pop(), Some(Some(Ok(()))));
        // The agent itself stood still.
        let at = window.answers.back().expect("answers").0 + PACE * 8;
        let said = window.add(at, PACE / 10, &Ok(())).expect("said").expect_err("a miss");
        assert_eq!(said, "p90 cannot be told: 3 answers in 1s, where 10 belong");
    }

    #[test]
    fn a_few_answers_do_not_speak_for_a_long_window() {
        let mut window = window(&[("p50", 150)], 600);
        assert_eq!(play(&mut window, &[10; 600]).pop(), Some(Some(Ok(()))));
        // The agent itself stood still for most of the minute.
        let at = window.answers.back().expect("answers").0 + PACE * 590;
        let said = window.add(at, PACE / 10, &Ok(())).expect("said").expect_err("a miss");
        assert_eq!(said, "p50 cannot be told: 11 answers in 60s, where 600 belong");
    }

    #[test]
    fn a_tenth_of_the_answers_may_be_missing_and_of_few_one() {
        for (answers, most) in [(2, 0), (5, 1), (9, 1), (10, 1), (20, 2), (600, 60)] {
            for (gone, enough) in [(most, true), (most + 1, false)] {
                let mut window = window(&[("p50", 150)], answers);
                let all = usize::try_from(answers).expect("small");
                play(&mut window, &vec![10; all]);
                let at = window.answers.back().expect("answers").0 + PACE * (gone + 1);
                let said = window.add(at, PACE / 10, &Ok(())).expect("said");
                assert_eq!(said.is_ok(), enough, "{gone} of {answers}: {said:?}");
            }
        }
    }

    #[test]
    fn a_machine_that_asks_late_asks_often_enough() {
        let mut window = window(&[("p99", 150)], 100);
        let begun = Instant::now();
        let mut said = Vec::new();
        for tick in 0..300 {
            // Anywhere within its own span; of twenty, one comes so late that the next is skipped.
            let late = PACE * (tick * 37 % 100) / 101;
            if tick % 20 != 8 {
                said.extend(window.add(begun + PACE * tick + late, PACE / 10, &Ok(())));
            }
        }
        assert!(said.len() > 150 && said.iter().all(Result::is_ok), "{said:?}");
    }

    #[test]
    fn an_answer_that_took_longer_than_the_window_leaves_it_whole() {
        let mut window = window(&[("p50", 150)], 20);
        assert_eq!(play(&mut window, &[10; 20]).pop(), Some(Some(Ok(()))));
        let said = play(&mut window, &[60_000]).remove(0).expect("said").expect_err("a miss");
        assert!(said.starts_with("p50 is 1s, not 150ms: 20 answers"), "{said}");
        let said = play(&mut window, &[10; 8]).pop().flatten().expect("said").expect_err("a miss");
        assert!(said.starts_with("p50 is 200ms, not 150ms: 20 answers"), "{said}");
        assert_eq!(play(&mut window, &[10]).pop(), Some(Some(Ok(()))));
    }
}
