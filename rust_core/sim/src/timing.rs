//! How long a step takes.

use crate::SimConfig;

/// Virtual nanoseconds since the engine started.
pub type Nanos = u64;

/// What one step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Prompt tokens, over all requests.
    pub prefill_tokens: u32,
    /// Requests that get one more token.
    pub decode_seqs: u32,
}

/// A linear model: `base + prefill_tokens * p + decode_seqs * d`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    base_us: f64,
    prefill_us_per_token: f64,
    decode_us_per_seq: f64,
}

// === impl Timing ===

impl Timing {
    /// The model that the configuration describes.
    #[must_use]
    pub fn new(config: &SimConfig) -> Timing {
        Timing {
            base_us: config.step_base_us,
            prefill_us_per_token: config.prefill_us_per_token,
            decode_us_per_seq: config.decode_us_per_seq,
        }
    }

    /// The time of one step.
    #[must_use]
    pub fn step(&self, work: Work) -> Nanos {
        let us = self.base_us
            + self.prefill_us_per_token * f64::from(work.prefill_tokens)
            + self.decode_us_per_seq * f64::from(work.decode_seqs);
        nanos(us * 1e3)
    }
}

/// Nanoseconds from a finite number that is not negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and no step is negative"
)]
pub(crate) fn nanos(ns: f64) -> Nanos {
    ns.round() as Nanos
}
