//! What became of each request.

use hdrhistogram::Histogram;

use super::rule::Chosen;
use crate::reply::Reply;
use crate::timing::Nanos;

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) session: usize,
    pub(super) turn: usize,
    pub(super) host: usize,
    pub(super) reply: Reply,
    /// Prompt tokens.
    pub(super) prompt: u32,
    /// Prompt tokens that the rule believed to be cached.
    pub(super) predicted: u32,
    /// Prompt tokens that were.
    pub(super) cached: u32,
    /// Tokens of the reply so far.
    pub(super) output: u32,
    pub(super) arrived: Nanos,
    pub(super) first_token: Nanos,
    pub(super) last_token: Nanos,
    pub(super) finished: bool,
}

/// Times between two tokens, over all requests, in microseconds.
#[derive(Debug)]
pub(super) struct Gaps {
    counts: Histogram<u64>,
}

// === impl Record ===

impl Record {
    pub(super) fn new(
        session: usize,
        turn: usize,
        chosen: Chosen,
        prompt: &[u32],
        now: Nanos,
    ) -> Record {
        Record {
            session,
            turn,
            host: chosen.host,
            reply: Reply::to(prompt),
            prompt: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            predicted: chosen.predicted,
            cached: 0,
            output: 0,
            arrived: now,
            first_token: now,
            last_token: now,
            finished: false,
        }
    }

    pub(super) fn first_token(&mut self, cached: u32, now: Nanos) {
        self.cached = cached;
        self.first_token = now;
    }

    pub(super) fn ttft_ms(&self) -> f64 {
        millis(self.first_token - self.arrived)
    }

    /// Mean time between two tokens; 0 for a reply of one.
    pub(super) fn itl_ms(&self) -> f64 {
        let gaps = self.output.saturating_sub(1).max(1);
        millis(self.last_token - self.first_token) / f64::from(gaps)
    }

    pub(super) fn e2e_ms(&self) -> f64 {
        millis(self.last_token - self.arrived)
    }
}

// === impl Gaps ===

/// Significant digits of a percentile.
const DIGITS: u8 = 3;
/// Longer gaps count as this: a day.
const LONGEST_US: u64 = 86_400_000_000;

impl Gaps {
    pub(super) fn new() -> Gaps {
        #[expect(clippy::expect_used, reason = "the bounds are constants that the histogram takes")]
        let counts =
            Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("bounds of a histogram");
        Gaps { counts }
    }

    pub(super) fn note(&mut self, gap: Nanos) {
        self.counts.saturating_record((gap / 1_000).max(1));
    }

    pub(super) fn mean_ms(&self) -> f64 {
        if self.counts.is_empty() { 0.0 } else { self.counts.mean() / 1e3 }
    }

    pub(super) fn percentile_ms(&self, percent: f64) -> f64 {
        self.counts.value_at_quantile(percent / 100.0) as f64 / 1e3
    }

    pub(super) fn max_ms(&self) -> f64 {
        self.counts.max() as f64 / 1e3
    }
}

/// Milliseconds of a span.
pub(super) fn millis(span: Nanos) -> f64 {
    span as f64 / 1e6
}
