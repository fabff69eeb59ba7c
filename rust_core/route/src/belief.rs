//! What predictions about one rank were worth: each reply that tells its cached tokens is held against the overlap that
//! was predicted for it, and a rank that does not deliver is believed less.

use parking_lot::Mutex;
use serde::Serialize;

use crate::Millis;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Share of its weight that a check keeps with each one after it.
const KEPT: f64 = 1.0 - 1.0 / 32.0;
/// Tokens that are taken for delivered before the first check: a short prompt that missed says little.
const PRIOR_TOKENS: f64 = 1_000.0;
/// Time in which half of the distrust goes by itself: a rank that is not chosen is not checked either, and must come
/// back all the same.
const FORGIVEN_MS: f64 = 60_000.0;
/// Below this share delivered a rank is said to diverge, above the other one it is said to have recovered.
const DIVERGED: f64 = 0.8;
const RECOVERED: f64 = 0.95;

/// The record of one rank.
#[derive(Debug, Default)]
pub struct Belief {
    estimate: Mutex<Estimate>,
    /// Distrust and when it was found, for the request path: `f32` bits above, seconds below.
    distrust: AtomicU64,
    /// `f32` bits of how far its events are out of date: 0 is fresh.
    staleness: AtomicU32,
    /// 1 where its KV events come in.
    events: AtomicU32,
}

/// One reply held against its prediction, all in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// Cached tokens as predicted.
    pub predicted: u32,
    /// Cached tokens as the engine reported them.
    pub actual: u32,
}

/// What a check changed, for the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nothing worth a word.
    Same,
    /// The rank no longer delivers what is predicted.
    Diverged,
    /// It does again.
    Recovered,
}

/// A record for people and scripts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Prediction {
    /// Replies that were checked.
    pub checked: u64,
    /// Those of them whose prediction was exact.
    pub exact: u64,
    /// Mean of predicted minus actual cached tokens, the latest checks first.
    pub error_mean: f64,
    /// Standard deviation of the same.
    pub error_std: f64,
    /// Share of a predicted overlap that counts in the price, 0 to 1.
    pub credit: f32,
}

#[derive(Debug, Default)]
struct Estimate {
    checked: u64,
    exact: u64,
    mean: f64,
    variance: f64,
    predicted: f64,
    delivered: f64,
    diverged: bool,
}

// === impl Belief ===

impl Belief {
    /// Holds a reply against its prediction.
    pub fn check(&self, check: Check, now: Millis) -> Verdict {
        let mut estimate = self.estimate.lock();
        estimate.take(check);
        let delivered = (estimate.delivered + PRIOR_TOKENS) / (estimate.predicted + PRIOR_TOKENS);
        self.distrust.store(pack(1.0 - delivered, now), Ordering::Relaxed);
        let diverged = if estimate.diverged { delivered < RECOVERED } else { delivered < DIVERGED };
        match (std::mem::replace(&mut estimate.diverged, diverged), diverged) {
            (false, true) => Verdict::Diverged,
            (true, false) => Verdict::Recovered,
            _ => Verdict::Same,
        }
    }

    /// The share of a predicted overlap that counts, 0 to 1: what the rank delivered of it lately, less where its
    /// events are out of date.
    pub fn credit(&self, now: Millis) -> f32 {
        let packed = self.distrust.load(Ordering::Relaxed);
        let staleness = f32::from_bits(self.staleness.load(Ordering::Relaxed));
        (1.0 - unpack(packed, now)) * (1.0 - staleness)
    }

    /// Says how far the events are out of date: 0 is fresh, 1 is worth nothing. A value that is no number is not taken.
    pub fn set_staleness(&self, staleness: f32) {
        if staleness.is_finite() {
            self.staleness.store(staleness.clamp(0.0, 1.0).to_bits(), Ordering::Relaxed);
        }
    }

    /// Says whether the rank's KV events come in: a route then counts only until they do.
    pub fn set_events(&self, on: bool) {
        self.events.store(on.into(), Ordering::Relaxed);
    }

    /// Whether the rank's KV events come in.
    pub fn has_events(&self) -> bool {
        self.events.load(Ordering::Relaxed) == 1
    }

    /// The record so far. It begins anew when the engine's process does.
    pub fn prediction(&self, now: Millis) -> Prediction {
        let estimate = self.estimate.lock();
        Prediction {
            checked: estimate.checked,
            exact: estimate.exact,
            error_mean: estimate.mean,
            error_std: estimate.variance.max(0.0).sqrt(),
            credit: self.credit(now),
        }
    }

    /// Forgives everything: another process answers now.
    pub(crate) fn reset(&self) {
        *self.estimate.lock() = Estimate::default();
        self.distrust.store(0, Ordering::Relaxed);
    }
}

// === impl Estimate ===

impl Estimate {
    /// Exponentially weighted moments (West, 1979); the first checks weigh as in a plain mean.
    fn take(&mut self, check: Check) {
        let (predicted, actual) = (f64::from(check.predicted), f64::from(check.actual));
        self.checked += 1;
        self.exact += u64::from(check.predicted == check.actual);
        let weight = (1.0 - KEPT).max(1.0 / self.checked as f64);
        let away = predicted - actual - self.mean;
        self.mean += weight * away;
        self.variance = (1.0 - weight) * (self.variance + weight * away * away);
        self.predicted = KEPT * self.predicted + predicted;
        self.delivered = KEPT * self.delivered + predicted.min(actual);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a share needs no more precision; `as` saturates"
)]
fn pack(distrust: f64, now: Millis) -> u64 {
    let seconds = u32::try_from(now / 1_000).unwrap_or(u32::MAX);
    u64::from((distrust as f32).to_bits()) << 32 | u64::from(seconds)
}

/// The distrust that is left at `now`.
#[expect(clippy::cast_possible_truncation, reason = "the halves of one word")]
fn unpack(packed: u64, now: Millis) -> f32 {
    let distrust = f32::from_bits((packed >> 32) as u32);
    if distrust == 0.0 {
        return 0.0;
    }
    let age_ms = now.saturating_sub(u64::from(packed as u32) * 1_000);
    (distrust * (-(age_ms as f64) / FORGIVEN_MS).exp2() as f32).clamp(0.0, 1.0)
}

#[cfg(all(test, not(nebula_loom)))]
mod tests {
    use super::*;

    fn checked(belief: &Belief, predicted: u32, actual: u32, times: u32) -> Verdict {
        let one = |_| belief.check(Check { predicted, actual }, 0);
        (0..times)
            .map(one)
            .fold(Verdict::Same, |told, now| if now == Verdict::Same { told } else { now })
    }

    #[test]
    fn a_rank_that_delivers_is_believed_and_one_that_does_not_is_believed_for_what_it_delivers() {
        let belief = Belief::default();
        assert_eq!(checked(&belief, 1_000, 1_000, 50), Verdict::Same);
        assert!((belief.credit(0) - 1.0).abs() < 1e-6);
        assert_eq!(checked(&belief, 1_000, 250, 500), Verdict::Diverged);
        assert!((belief.credit(0) - 0.25).abs() < 0.05, "{}", belief.credit(0));
        assert!((belief.prediction(0).error_mean - 750.0).abs() < 1.0);
        assert_eq!(checked(&belief, 1_000, 1_000, 500), Verdict::Recovered);
        assert!(belief.credit(0) > 0.95);
    }

    #[test]
    fn more_than_predicted_is_an_error_but_no_reason_for_distrust() {
        let belief = Belief::default();
        checked(&belief, 100, 400, 10);
        assert!((belief.credit(0) - 1.0).abs() < 1e-6);
        assert!((belief.prediction(0).error_mean + 300.0).abs() < 1e-6);
        assert_eq!((belief.prediction(0).checked, belief.prediction(0).exact), (10, 0));
    }

    #[test]
    fn distrust_fades_without_checks_and_goes_with_the_process() {
        let belief = Belief::default();
        checked(&belief, 1_000, 0, 500);
        let (at_once, later, much_later) =
            (belief.credit(0), belief.credit(60_000), belief.credit(600_000));
        assert!(at_once < 0.05 && (0.45..0.55).contains(&later) && much_later > 0.99);
        belief.reset();
        assert!((belief.credit(0) - 1.0).abs() < 1e-6);
        assert_eq!(belief.prediction(0).checked, 0);
    }

    #[test]
    fn stale_events_weigh_less() {
        let belief = Belief::default();
        belief.set_staleness(0.25);
        belief.set_staleness(f32::NAN);
        assert!((belief.credit(0) - 0.75).abs() < 1e-6);
    }

    #[test]
    fn one_short_prompt_that_missed_says_little() {
        let belief = Belief::default();
        assert_eq!(checked(&belief, 64, 0, 1), Verdict::Same);
        assert!(belief.credit(0) > 0.9);
    }
}
