//! How long each packet waits: delay, jitter, correlation and distribution, with netem's semantics.
//!
//! tc-netem(8): the delay of a packet is `delay + jitter * x`, x uniform in -1..1 or drawn from a table of
//! 4096 quantiles scaled by 8192; correlation makes each random number resemble the one before it.
//! Pure but for its own seeded generator, so that the same seed gives the same delays.

use std::{f64::consts::PI, time::Duration};

use rand::Rng;
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};

use crate::experiment::{Distribution, Percent};

const TABLE: usize = 4096;
/// `NETEM_DIST_SCALE`
const SCALE: f64 = 8192.0;

/// The parameters of a delay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    pub delay: Duration,
    pub jitter: Duration,
    pub correlation: Percent,
    pub distribution: Distribution,
}

impl Shape {
    /// The correlation as netem takes it: a fraction of 2^32 - 1.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..=1 times u32::MAX")]
    pub fn rho(&self) -> u32 {
        (self.correlation.fraction() * f64::from(u32::MAX)).round() as u32
    }

    /// Quantiles of the distribution in 1/8192 of the jitter; `None` for the uniform one.
    #[must_use]
    pub fn table(&self) -> Option<Vec<i16>> {
        let quantile: fn(f64) -> f64 = match self.distribution {
            Distribution::Uniform => return None,
            Distribution::Normal => normal,
            Distribution::Pareto => pareto,
            Distribution::ParetoNormal => |p| 0.25 * normal(p) + 0.75 * pareto(p),
        };
        let entry = |at: usize| scaled(quantile((at as f64 + 0.5) / TABLE as f64));
        Some((0..TABLE).map(entry).collect())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "clamped to the range of i16")]
fn scaled(value: f64) -> i16 {
    (value * SCALE).round().clamp(f64::from(i16::MIN), f64::from(i16::MAX)) as i16
}

/// Pareto of shape 3 about its mean of 3/2, in the scale that `tc` ships its table in.
fn pareto(p: f64) -> f64 {
    ((1.0 - p).powf(-1.0 / 3.0) - 1.5) * (4.0 / 3.0)
}

/// Quantile of the standard normal distribution, by Newton's method on its distribution function.
fn normal(p: f64) -> f64 {
    let mut x = 0.0_f64;
    for _ in 0..60 {
        let density = (-x * x / 2.0).exp() / (2.0 * PI).sqrt();
        // Steps are bounded: far out the density is next to nothing.
        let step = ((cumulative(x) - p) / density).clamp(-1.0, 1.0);
        x -= step;
        if step.abs() < 1e-9 {
            break;
        }
    }
    x
}

/// Φ(x) by its series about zero, Φ(x) = 1/2 + φ(x)·Σ x^(2n+1)/(1·3·5…(2n+1)); exact enough within ±5.
fn cumulative(x: f64) -> f64 {
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-16 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * PI).sqrt()
}

/// Draws one delay after the other.
#[derive(Debug)]
pub struct Delays {
    shape: Shape,
    table: Option<Vec<i16>>,
    random: ChaCha12Rng,
    last: u32,
}

impl Delays {
    #[must_use]
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, table: shape.table(), random: ChaCha12Rng::seed_from_u64(seed), last: 0 }
    }

    /// The next packet's delay; never negative.
    pub fn draw(&mut self) -> Duration {
        let jitter = i64::try_from(self.shape.jitter.as_nanos()).unwrap_or(i64::MAX / (1 << 16));
        if jitter == 0 {
            return self.shape.delay;
        }
        let random = self.correlated();
        let offset = match &self.table {
            // The whole range of the random number is spread over -jitter..jitter.
            None => ((i128::from(random) * 2 * i128::from(jitter)) >> 32) - i128::from(jitter),
            Some(table) => i128::from(jitter) * i128::from(table[random as usize % table.len()]) / 8192,
        };
        let delay = i128::try_from(self.shape.delay.as_nanos()).unwrap_or_default() + offset;
        Duration::from_nanos(u64::try_from(delay.max(0)).unwrap_or_default())
    }

    /// netem's first-order recursion: a weighted mean of a fresh number and the last answer.
    fn correlated(&mut self) -> u32 {
        let fresh = self.random.next_u32();
        let rho = self.shape.rho();
        if rho == 0 {
            return fresh;
        }
        let rho = u64::from(rho) + 1;
        let sum = u128::from(fresh) * u128::from((1_u64 << 32) - rho)
            + u128::from(self.last) * u128::from(rho);
        self.last = u32::try_from(sum >> 32).unwrap_or(u32::MAX);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(distribution: Distribution, correlation: f64) -> Shape {
        Shape {
            delay: Duration::from_millis(100),
            jitter: Duration::from_millis(10),
            correlation: Percent::new(correlation).expect("a percentage"),
            distribution,
        }
    }

    fn sample(shape: Shape, seed: u64) -> Vec<f64> {
        let mut delays = Delays::new(shape, seed);
        (0..20_000).map(|_| delays.draw().as_secs_f64() * 1e3).collect()
    }

    fn moments(sample: &[f64]) -> (f64, f64) {
        let mean = sample.iter().sum::<f64>() / sample.len() as f64;
        let square = sample.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / sample.len() as f64;
        (mean, square.sqrt())
    }

    #[test]
    fn the_same_seed_repeats_and_another_does_not() {
        let normal = shape(Distribution::Normal, 25.0);
        assert_eq!(sample(normal, 7), sample(normal, 7));
        assert_ne!(sample(normal, 7), sample(normal, 8));
    }

    #[test]
    fn uniform_jitter_fills_its_range_and_stays_in_it() {
        let sample = sample(shape(Distribution::Uniform, 0.0), 1);
        let (low, high) = sample.iter().fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
        assert!((90.0..90.1).contains(&low) && (109.9..=110.0).contains(&high), "{low}..{high}");
    }

    #[test]
    fn normal_jitter_has_the_mean_and_deviation_asked_for() {
        let (mean, deviation) = moments(&sample(shape(Distribution::Normal, 0.0), 1));
        assert!((mean - 100.0).abs() < 0.3 && (deviation - 10.0).abs() < 0.3, "{mean} ± {deviation}");
    }

    #[test]
    fn pareto_jitter_has_a_long_tail_to_one_side() {
        let sample = sample(shape(Distribution::Pareto, 0.0), 1);
        let (mean, _) = moments(&sample);
        let most = sample.iter().copied().fold(f64::MIN, f64::max);
        let least = sample.iter().copied().fold(f64::MAX, f64::min);
        assert!(most - mean > 3.0 * (mean - least), "{least} {mean} {most}");
    }

    #[test]
    fn correlation_makes_neighbours_alike() {
        let distance = |correlation| {
            let sample = sample(shape(Distribution::Uniform, correlation), 3);
            sample.windows(2).map(|pair| (pair[1] - pair[0]).abs()).sum::<f64>()
        };
        assert!(distance(90.0) < distance(0.0) / 3.0);
    }

    #[test]
    fn quantiles_of_the_normal_distribution_are_the_known_ones() {
        for (p, x) in [(0.5, 0.0), (0.975, 1.959_964), (0.001, -3.090_232)] {
            assert!((normal(p) - x).abs() < 1e-5, "{p}: {}", normal(p));
        }
    }

    #[test]
    fn a_delay_is_never_negative() {
        let short = Shape { delay: Duration::from_millis(1), ..shape(Distribution::Normal, 0.0) };
        assert!(sample(short, 1).iter().all(|delay| *delay >= 0.0));
    }
}
