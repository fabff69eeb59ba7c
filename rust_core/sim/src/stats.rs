//! What an engine counts. The names and bounds are those of vLLM's metrics.

use crate::scheduler::Plan;
use crate::sequence::{Finish, Sequence};
use crate::timing::Nanos;

const TTFT_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const GAP_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const TOKENS: &[f64] = &[
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1000.0,
    2000.0,
    5000.0,
    10000.0,
    20000.0,
    50000.0,
    100_000.0,
    200_000.0,
    500_000.0,
    1_000_000.0,
];

const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
const TRANSFER_S: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0];

/// Counts of observed values, by upper bound.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than `bounds`: the last counts what exceeds them all.
    counts: Box<[u64]>,
    sum: f64,
}

/// Everything counted since the engine started.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Tokens that requests asked the prefix cache for.
    pub cache_queries: u64,
    /// Tokens that it had.
    pub cache_hits: u64,
    /// Tokens that it did not have, and that another engine was asked for where there is one.
    pub external_queries: u64,
    /// Tokens that another engine had.
    pub external_hits: u64,
    /// Prompt tokens of requests that got their first token.
    pub prompt_tokens: u64,
    /// Of these, tokens that were found in the cache.
    pub prompt_tokens_cached: u64,
    /// Of these, tokens that came from another engine.
    pub prompt_tokens_external: u64,
    /// Tokens of replies.
    pub generation_tokens: u64,
    /// Times that a running request lost its KV.
    pub preemptions: u64,
    /// Tokens that it lost then.
    pub lost_tokens: u64,
    /// Of these, tokens that it found again in the cache.
    pub regained_tokens: u64,
    /// Requests that ended by themselves.
    pub stopped: u64,
    /// Requests that ended at their limit.
    pub lengthy: u64,
    /// Requests whose client left.
    pub aborted: u64,
    /// Requests whose blocks were kept for another engine that did not claim them in time.
    pub expired: u64,
    /// Tokens of a step.
    pub step_tokens: Histogram,
    /// Seconds from arrival to the first token.
    pub ttft: Histogram,
    /// Seconds between two tokens of a reply.
    pub token_gap: Histogram,
    /// Seconds from arrival to the last token.
    pub e2e: Histogram,
    /// Seconds in the queue.
    pub queue: Histogram,
    /// Seconds from the queue to the first token.
    pub prefill: Histogram,
    /// Seconds from the first to the last token.
    pub decode: Histogram,
    /// Seconds from the queue to the last token.
    pub inference: Histogram,
    /// Seconds per token of a reply, after the first.
    pub per_token: Histogram,
    /// Seconds that KV is on its way from another engine.
    pub transfer: Histogram,
    /// Tokens of a prompt.
    pub request_prompt: Histogram,
    /// Of these, tokens that were computed here.
    pub request_computed: Histogram,
    /// Tokens of a reply.
    pub request_generation: Histogram,
    /// Tokens of a reply at most.
    pub request_limit: Histogram,
    /// Choices of a reply.
    pub request_choices: Histogram,
    /// Times that a request lost its KV.
    pub request_preemptions: Histogram,
}

// === impl Histogram ===

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len() + 1].into(), sum: 0.0 }
    }

    fn observe(&mut self, value: f64) {
        self.counts[self.bounds.partition_point(|&bound| bound < value)] += 1;
        self.sum += value;
    }

    /// Each upper bound (the last is infinite) with the count of values up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.counts.iter().scan(0, |below, count| {
            *below += count;
            Some(*below)
        }))
    }

    /// Count of all values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of all values.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }
}

// === impl Stats ===

impl Stats {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(max_model_len: u32) -> Stats {
        let tokens = &TOKENS[..TOKENS.partition_point(|&bound| bound <= f64::from(max_model_len))];
        Stats {
            cache_queries: 0,
            cache_hits: 0,
            external_queries: 0,
            external_hits: 0,
            prompt_tokens: 0,
            prompt_tokens_cached: 0,
            prompt_tokens_external: 0,
            generation_tokens: 0,
            preemptions: 0,
            lost_tokens: 0,
            regained_tokens: 0,
            stopped: 0,
            lengthy: 0,
            aborted: 0,
            expired: 0,
            step_tokens: Histogram::new(STEP_TOKENS),
            ttft: Histogram::new(TTFT_S),
            token_gap: Histogram::new(GAP_S),
            e2e: Histogram::new(REQUEST_S),
            queue: Histogram::new(REQUEST_S),
            prefill: Histogram::new(REQUEST_S),
            decode: Histogram::new(REQUEST_S),
            inference: Histogram::new(REQUEST_S),
            per_token: Histogram::new(GAP_S),
            transfer: Histogram::new(TRANSFER_S),
            request_prompt: Histogram::new(tokens),
            request_computed: Histogram::new(tokens),
            request_generation: Histogram::new(tokens),
            request_limit: Histogram::new(tokens),
            request_choices: Histogram::new(COUNTS),
            request_preemptions: Histogram::new(PREEMPTIONS),
        }
    }

    /// Notes what a plan did.
    pub(crate) fn plan(&mut self, plan: &Plan) {
        self.preemptions += u64::from(plan.preempted);
        self.cache_queries += plan.queried;
        self.cache_hits += plan.hit;
        self.external_queries += plan.queried - plan.hit;
        self.external_hits += plan.external;
        self.lost_tokens += plan.lost;
        self.regained_tokens += plan.regained;
        self.expired += u64::from(plan.expired);
        let tokens = plan.work.prefill_tokens + plan.work.decode_seqs;
        if tokens > 0 {
            self.step_tokens.observe(f64::from(tokens));
        }
    }

    /// Notes that `seq` got a token at `now`.
    pub(crate) fn token(&mut self, seq: &mut Sequence, now: Nanos) {
        self.generation_tokens += 1;
        if seq.produced() == 1 {
            self.prompt_tokens += u64::from(seq.prompt_len);
            self.prompt_tokens_cached += u64::from(seq.cached.unwrap_or(0));
            self.prompt_tokens_external += u64::from(seq.external);
            self.ttft.observe(seconds(seq.arrived, now));
            if seq.external > 0 {
                self.transfer.observe(seconds(0, seq.transfer_time));
            }
            seq.first_token = now;
        } else {
            self.token_gap.observe(seconds(seq.last_token, now));
        }
        seq.last_token = now;
    }

    /// Notes that `seq` has ended, by itself or because its client left.
    pub(crate) fn end(&mut self, seq: &Sequence, finish: Finish, now: Nanos) {
        match finish {
            Finish::Stop => self.stopped += 1,
            Finish::Length => self.lengthy += 1,
            Finish::Abort => {
                self.aborted += 1;
                return;
            }
        }
        self.e2e.observe(seconds(seq.arrived, now));
        self.queue.observe(seconds(seq.arrived, seq.started));
        self.prefill.observe(seconds(seq.started, seq.first_token));
        self.decode.observe(seconds(seq.first_token, now));
        self.inference.observe(seconds(seq.started, now));
        let gaps = f64::from(seq.produced().saturating_sub(1).max(1));
        self.per_token.observe(seconds(seq.first_token, now) / gaps);
        self.request_prompt.observe(f64::from(seq.prompt_len));
        let given = seq.cached.unwrap_or(0) + seq.external;
        self.request_computed.observe(f64::from(seq.prompt_len.saturating_sub(given)));
        self.request_generation.observe(f64::from(seq.produced()));
        self.request_limit.observe(f64::from(seq.max_tokens));
        self.request_choices.observe(1.0);
        self.request_preemptions.observe(f64::from(seq.preemptions));
    }
}

fn seconds(from: Nanos, to: Nanos) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}
