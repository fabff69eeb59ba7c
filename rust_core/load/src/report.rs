//! All that was measured, as JSON.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use nebula_sim::workload::Workload;
use serde::Serialize;

use crate::failure::Kind;
use crate::player::Player;

/// Everything that was measured. Times are in microseconds where the name says so, else in milliseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// Requests of the workload.
    pub requested: usize,
    /// Requests whose reply was whole and right.
    pub completed: usize,
    /// Requests without one.
    pub failed: u64,
    /// Turns that were not asked because one before them failed.
    pub skipped: u64,
    /// From the start to the end of the last reply.
    pub duration_s: f64,
    /// Failures by kind.
    pub errors: BTreeMap<String, Faults>,
    /// Requests sent before anything counted that failed.
    pub failed_warmups: usize,
    /// Prompt tokens, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens of the replies, as the server counts them; where it does not, events with a token.
    pub output_tokens: u64,
    /// Completed requests whose reply had a usage.
    pub with_usage: u64,
    /// Completed requests whose usage told the cached tokens, their prompt tokens and the cached ones among them.
    pub with_cached: u64,
    /// See `with_cached`.
    pub prompt_tokens_with_cached: u64,
    /// See `with_cached`.
    pub cached_tokens: u64,
    /// Events that carried a token.
    pub chunks: u64,
    /// Streams whose checksum was there and right.
    pub verified: u64,
    /// Most requests that were in flight at once.
    pub peak_inflight: usize,
    /// Most events with a token within one second.
    pub peak_chunks_per_second: u64,
    /// Metrics of the completed requests by name.
    pub metrics: BTreeMap<&'static str, Metric>,
    /// Gaps between tokens.
    pub itl: Shape,
    /// The completed requests, one column per quantity, in the order in which they ended.
    pub requests: Requests,
    /// What must be known of the workload.
    pub notes: Vec<String>,
}

/// Failures of one kind.
#[derive(Debug, Serialize)]
pub struct Faults {
    /// How many.
    pub count: u64,
    /// What was said of the first.
    pub example: String,
}

/// A metric over all requests, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Metric {
    /// Values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
    /// Half of them are at most this.
    pub median: f64,
    /// All but one in a hundred are at most this.
    pub p99: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// Pairs of a percentile and its value.
    pub percentiles: Vec<(f64, f64)>,
}

/// A distribution: how many values there are of about each size.
#[derive(Debug, Serialize)]
pub struct Shape {
    /// Microseconds, ascending.
    pub us: Vec<u64>,
    /// Values of that size.
    pub count: Vec<u64>,
}

/// One entry per request in each column.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Requests {
    /// Number of the session within the workload, from 0.
    pub session: Vec<u32>,
    /// Number of the turn within its session, from 0.
    pub turn: Vec<u32>,
    /// When it was meant to be sent.
    pub start_us: Vec<u64>,
    /// How much later it was sent.
    pub queued_us: Vec<u64>,
    /// To the first token, from when it was meant to be sent.
    pub ttft_us: Vec<Option<u64>>,
    /// Per token behind the first.
    pub tpot_us: Vec<Option<u64>>,
    /// To the end of the reply, from when it was meant to be sent.
    pub e2el_us: Vec<u64>,
    /// As the server counts.
    pub prompt_tokens: Vec<Option<u32>>,
    /// As the server counts.
    pub cached_tokens: Vec<Option<u32>>,
    /// As the server counts, or events with a token.
    pub output_tokens: Vec<u32>,
}

/// How a run ended.
pub(crate) struct End {
    pub(crate) stopped: bool,
    pub(crate) seconds: f64,
    pub(crate) failed_warmups: usize,
}

// === impl Report ===

impl Report {
    pub(crate) fn new(
        player: &Player,
        workload: &Workload,
        end: &End,
        percentiles: &[f64],
    ) -> Report {
        let tally = &player.tally;
        let faults = |(kind, (count, example)): (&Kind, &(u64, String))| {
            (kind.to_string(), Faults { count: *count, example: example.clone() })
        };
        Report {
            stopped: end.stopped,
            requested: workload.requests(),
            completed: tally.requests.e2el_us.len(),
            failed: tally.failed(),
            skipped: player.skipped,
            duration_s: end.seconds,
            errors: tally.failures.iter().map(faults).collect(),
            failed_warmups: end.failed_warmups,
            prompt_tokens: tally.prompt_tokens,
            output_tokens: tally.output_tokens,
            with_usage: tally.with_usage,
            with_cached: tally.with_cached,
            prompt_tokens_with_cached: tally.prompt_tokens_with_cached,
            cached_tokens: tally.cached_tokens,
            chunks: tally.chunks,
            verified: tally.verified,
            peak_inflight: player.peak_inflight,
            peak_chunks_per_second: tally.peak_chunks(),
            metrics: tally.metrics(percentiles),
            itl: tally.itl_shape(),
            requests: tally.requests.clone(),
            notes: workload.notes.clone(),
        }
    }
}

// === impl Metric ===

impl Metric {
    pub(crate) fn of(times: &Histogram<u64>, percentiles: &[f64]) -> Metric {
        let at = |percentile| ms(times.value_at_percentile(percentile));
        Metric {
            count: times.len(),
            mean: times.mean() / 1e3,
            std: times.stdev() / 1e3,
            median: at(50.0),
            p99: at(99.0),
            min: ms(times.min()),
            max: ms(times.max()),
            percentiles: percentiles
                .iter()
                .map(|&percentile| (percentile, at(percentile)))
                .collect(),
        }
    }
}

// === impl Shape ===

impl Shape {
    pub(crate) fn of(times: &Histogram<u64>) -> Shape {
        let steps = times.iter_recorded();
        let (us, count) =
            steps.map(|step| (step.value_iterated_to(), step.count_since_last_iteration())).unzip();
        Shape { us, count }
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}
