//! What is drawn at random: lengths, arrivals, pauses, shares. Equal seeds draw the same.

use std::f64::consts::TAU;

use fastrand::Rng;

use crate::timing::{Nanos, nanos};
use crate::workload::Piece;

/// Longest length in multiples of the mean: a lognormal has no end, an engine's context has.
const LONGEST: f64 = 10.0;

/// Draws everything but arrivals.
pub(super) struct Author {
    rng: Rng,
    /// Of the logarithm of a length.
    sigma: f64,
}

/// A Poisson process.
pub(super) struct Arrivals {
    rng: Rng,
    rate_per_s: f64,
    now_s: f64,
}

/// Ranks from 0, rank `k` as often as `1 / (k + 1)^exponent`.
pub(super) struct Zipf {
    cumulated: Vec<f64>,
}

/// Arrivals and author have separate sources: another rate asks the same things, only faster.
pub(super) fn sources(seed: u64, rate_per_s: f64, spread: f64) -> (Arrivals, Author) {
    let mut rng = Rng::with_seed(seed);
    let arrivals = Arrivals { rng: rng.fork(), rate_per_s, now_s: 0.0 };
    (arrivals, Author { rng, sigma: spread.mul_add(spread, 1.0).ln().sqrt() })
}

// === impl Author ===

impl Author {
    /// A length of the given mean: lognormal, with `spread` as the ratio of standard deviation to mean; at least 1 and at
    /// most ten times the mean.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, and the number lies between 1 and ten times a u32"
    )]
    pub(super) fn length(&mut self, mean: u32) -> u32 {
        let mean = f64::from(mean);
        let log = self.sigma.mul_add(self.normal(), -self.sigma * self.sigma / 2.0);
        (mean * log.exp()).round().clamp(1.0, mean * LONGEST) as u32
    }

    /// Text that occurs nowhere else, of exactly so many tokens.
    pub(super) fn words(&mut self, tokens: u32) -> Piece {
        Piece::Words { seed: self.rng.u64(..), tokens }
    }

    /// Text that occurs nowhere else, of about so many tokens.
    pub(super) fn about(&mut self, mean: u32) -> Piece {
        let tokens = self.length(mean);
        self.words(tokens)
    }

    /// An exponential pause.
    pub(super) fn pause(&mut self, mean_s: f64) -> Nanos {
        nanos(mean_s * exponential(&mut self.rng) * 1e9)
    }

    /// A number from `least` to `most`, each as often.
    pub(super) fn between(&mut self, least: u32, most: u32) -> u32 {
        self.rng.u32(least..=most)
    }

    pub(super) fn rank(&mut self, zipf: &Zipf) -> usize {
        let most = zipf.cumulated.last().copied().unwrap_or_default();
        let drawn = self.rng.f64() * most;
        zipf.cumulated.partition_point(|&below| below <= drawn).min(zipf.cumulated.len() - 1)
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        self.rng.shuffle(items);
    }

    /// Standard normal (Box and Muller, "A note on the generation of random normal deviates", 1958).
    fn normal(&mut self) -> f64 {
        let radius = (2.0 * exponential(&mut self.rng)).sqrt();
        radius * (TAU * self.rng.f64()).cos()
    }
}

/// Mean 1.
fn exponential(rng: &mut Rng) -> f64 {
    // `f64()` may be 0 and is never 1.
    -(1.0 - rng.f64()).ln()
}

// === impl Arrivals ===

impl Arrivals {
    /// When the next session comes.
    pub(super) fn next(&mut self) -> Nanos {
        self.now_s += exponential(&mut self.rng) / self.rate_per_s;
        nanos(self.now_s * 1e9)
    }
}

// === impl Zipf ===

impl Zipf {
    /// At least one rank.
    pub(super) fn new(ranks: u32, exponent: f64) -> Zipf {
        let mut sum = 0.0;
        let cumulated = (1..=ranks.max(1)).map(|k| {
            sum += f64::from(k).powf(-exponent);
            sum
        });
        Zipf { cumulated: cumulated.collect() }
    }
}
