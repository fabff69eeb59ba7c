//! How long a step takes.

use serde::{Deserialize, Serialize};

/// Virtual nanoseconds since the engine started.
pub type Nanos = u64;

/// What one step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Prompt tokens, over all requests.
    pub prefill_tokens: u32,
    /// Pairs of a prompt token and a token before it: what the attention of a prefill grows with.
    pub prefill_pairs: u64,
    /// Requests that get one more token.
    pub decode_seqs: u32,
    /// Tokens whose KV these requests read.
    pub resident_tokens: u64,
}

/// `base + prefill tokens * p + prefill pairs * c + decoding requests * d + resident tokens * r`.
///
/// A forward pass reads all weights once (`base`), computes each token (`p`, `d`), and its attention reads the KV of all
/// tokens before (`c`, `r`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// Microseconds of a step that are always spent.
    pub step_base_us: f64,
    /// Microseconds that one prompt token adds to a step.
    pub prefill_us_per_token: f64,
    /// Nanoseconds that one pair of a prompt token and a token before it adds to a step.
    pub prefill_ns_per_pair: f64,
    /// Microseconds that one decoding request adds to a step.
    pub decode_us_per_seq: f64,
    /// Nanoseconds that one token of a decoding request's context adds to a step.
    pub decode_ns_per_resident_token: f64,
}

// === impl Work ===

impl Work {
    /// Adds `tokens` of a prompt of which `before` are computed.
    pub(crate) fn prefill(&mut self, tokens: u32, before: u32) {
        let (new, before) = (u64::from(tokens), u64::from(before));
        self.prefill_tokens += tokens;
        self.prefill_pairs += new * before + new * new / 2;
    }

    /// Adds a request of `resident` tokens that gets one more.
    pub(crate) fn decode(&mut self, resident: u32) {
        self.decode_seqs += 1;
        self.resident_tokens += u64::from(resident);
    }
}

// === impl Timing ===

impl Timing {
    /// The coefficients by name.
    #[must_use]
    pub fn fields(&self) -> [(&'static str, f64); 5] {
        [
            ("step_base_us", self.step_base_us),
            ("prefill_us_per_token", self.prefill_us_per_token),
            ("prefill_ns_per_pair", self.prefill_ns_per_pair),
            ("decode_us_per_seq", self.decode_us_per_seq),
            ("decode_ns_per_resident_token", self.decode_ns_per_resident_token),
        ]
    }

    /// The time of one step.
    #[must_use]
    pub fn step(&self, work: Work) -> Nanos {
        nanos(
            1e3 * (self.step_base_us
                + self.prefill_us_per_token * f64::from(work.prefill_tokens)
                + self.decode_us_per_seq * f64::from(work.decode_seqs))
                + self.prefill_ns_per_pair * work.prefill_pairs as f64
                + self.decode_ns_per_resident_token * work.resident_tokens as f64,
        )
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
