//! What all requests came to.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use nebula_sim::timing::Nanos;

use crate::ask::Outcome;
use crate::chunk::Usage;
use crate::error::Error;
use crate::failure::{Failure, Kind};
use crate::reply::Answer;
use crate::report::{Metric, Requests, Shape};

/// Longest time that a histogram tells apart: a day, in microseconds.
const LONGEST_US: u64 = 24 * 3600 * 1_000_000;
/// A quantile is right to so many digits.
const DIGITS: u8 = 3;
const NANOS_PER_SECOND: Nanos = 1_000_000_000;

/// A request that has ended, and when it was meant to be sent.
pub(crate) struct Ended<'a> {
    pub(crate) session: u32,
    pub(crate) turn: u32,
    pub(crate) intended: Nanos,
    pub(crate) outcome: &'a Outcome,
}

/// Counts, histograms, and one line per good request.
pub(crate) struct Tally {
    pub(crate) requests: Requests,
    pub(crate) failures: BTreeMap<Kind, (u64, String)>,
    pub(crate) verified: u64,
    pub(crate) chunks: u64,
    /// Good requests whose reply told its usage, and its cached tokens.
    pub(crate) with_usage: u64,
    pub(crate) with_cached: u64,
    pub(crate) prompt_tokens: u64,
    /// Of those requests that told their cached tokens.
    pub(crate) prompt_tokens_with_cached: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    /// Events with a token that came in each second.
    seconds: Vec<u64>,
    times: Times,
}

/// One histogram per metric, in microseconds.
struct Times {
    ttft: Histogram<u64>,
    ttft_from_send: Histogram<u64>,
    tpot: Histogram<u64>,
    itl: Histogram<u64>,
    e2el: Histogram<u64>,
    e2el_from_send: Histogram<u64>,
    client_queue_time: Histogram<u64>,
    generator_lag: Histogram<u64>,
}

// === impl Tally ===

impl Tally {
    pub(crate) fn new() -> Result<Tally, Error> {
        Ok(Tally {
            requests: Requests::default(),
            failures: BTreeMap::new(),
            verified: 0,
            chunks: 0,
            with_usage: 0,
            with_cached: 0,
            prompt_tokens: 0,
            prompt_tokens_with_cached: 0,
            cached_tokens: 0,
            output_tokens: 0,
            seconds: Vec::new(),
            times: Times::new()?,
        })
    }

    /// Counts a request that ended well.
    pub(crate) fn good(&mut self, ended: &Ended<'_>, answer: &Answer) {
        let Outcome { sent, ended: end, .. } = *ended.outcome;
        let queued = micros(ended.intended, sent);
        let whole = micros(ended.intended, end);
        let first = answer.first.map(|first| micros(ended.intended, first));
        let tokens = answer.usage.map_or(answer.chunks, |usage| usage.completion_tokens);
        let tpot = time_per_token(answer, tokens);
        self.times.client_queue_time.saturating_record(queued);
        self.times.e2el.saturating_record(whole);
        self.times.e2el_from_send.saturating_record(micros(sent, end));
        if let (Some(first), Some(start)) = (first, answer.first) {
            self.times.ttft.saturating_record(first);
            self.times.ttft_from_send.saturating_record(micros(sent, start));
        }
        if let Some(tpot) = tpot {
            self.times.tpot.saturating_record(tpot);
        }
        answer.gaps.iter().for_each(|&gap| self.times.itl.saturating_record(gap.into()));
        self.count_seconds(answer);
        self.count_tokens(answer, tokens);
        let requests = &mut self.requests;
        requests.session.push(ended.session);
        requests.turn.push(ended.turn);
        requests.start_us.push(ended.intended / 1_000);
        requests.queued_us.push(queued);
        requests.ttft_us.push(first);
        requests.tpot_us.push(tpot);
        requests.e2el_us.push(whole);
        requests.prompt_tokens.push(answer.usage.map(|usage| usage.prompt_tokens));
        requests.cached_tokens.push(answer.usage.and_then(Usage::cached_tokens));
        requests.output_tokens.push(tokens);
    }

    /// Counts a request that did not end well; the first of each kind is kept as an example.
    pub(crate) fn bad(&mut self, failure: Failure) {
        self.failures.entry(failure.kind).or_insert_with(|| (0, failure.detail)).0 += 1;
    }

    /// Notes how late the generator itself was with a request.
    pub(crate) fn late(&mut self, lag: Nanos) {
        self.times.generator_lag.saturating_record(lag / 1_000);
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().map(|(count, _)| count).sum()
    }

    /// Most events with a token that came within one second.
    pub(crate) fn peak_chunks(&self) -> u64 {
        self.seconds.iter().copied().max().unwrap_or_default()
    }

    /// Every metric with the percentiles that are wanted.
    pub(crate) fn metrics(&self, percentiles: &[f64]) -> BTreeMap<&'static str, Metric> {
        let of = |times| Metric::of(times, percentiles);
        let named = self.times.named().map(|(name, times)| (name, of(times)));
        named.into_iter().filter(|(_, metric)| metric.count > 0).collect()
    }

    /// The gaps between tokens: too many to keep each.
    pub(crate) fn itl_shape(&self) -> Shape {
        Shape::of(&self.times.itl)
    }

    fn count_tokens(&mut self, answer: &Answer, tokens: u32) {
        self.chunks += u64::from(answer.chunks);
        self.verified += u64::from(answer.verified);
        self.output_tokens += u64::from(tokens);
        let Some(usage) = answer.usage else { return };
        self.with_usage += 1;
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        if let Some(cached) = usage.cached_tokens() {
            self.with_cached += 1;
            self.prompt_tokens_with_cached += u64::from(usage.prompt_tokens);
            self.cached_tokens += u64::from(cached);
        }
    }

    /// Adds the events of a stream to the seconds in which they came.
    fn count_seconds(&mut self, answer: &Answer) {
        let Some(mut now) = answer.first else { return };
        self.count_second(now);
        for &gap in &answer.gaps {
            now += Nanos::from(gap) * 1_000;
            self.count_second(now);
        }
    }

    fn count_second(&mut self, now: Nanos) {
        let second = usize::try_from(now / NANOS_PER_SECOND).unwrap_or(usize::MAX);
        if second >= self.seconds.len() {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += 1;
    }
}

// === impl Times ===

impl Times {
    fn new() -> Result<Times, Error> {
        let empty: Histogram<u64> = Histogram::new_with_bounds(1, LONGEST_US, DIGITS)?;
        Ok(Times {
            ttft: empty.clone(),
            ttft_from_send: empty.clone(),
            tpot: empty.clone(),
            itl: empty.clone(),
            e2el: empty.clone(),
            e2el_from_send: empty.clone(),
            client_queue_time: empty.clone(),
            generator_lag: empty,
        })
    }

    fn named(&self) -> [(&'static str, &Histogram<u64>); 8] {
        [
            ("ttft", &self.ttft),
            ("ttft_from_send", &self.ttft_from_send),
            ("tpot", &self.tpot),
            ("itl", &self.itl),
            ("e2el", &self.e2el),
            ("e2el_from_send", &self.e2el_from_send),
            ("client_queue_time", &self.client_queue_time),
            ("generator_lag", &self.generator_lag),
        ]
    }
}

/// Whole microseconds from one moment to a later one.
fn micros(from: Nanos, to: Nanos) -> u64 {
    to.saturating_sub(from) / 1_000
}

/// Microseconds per token behind the first, as `vllm bench serve` counts them.
fn time_per_token(answer: &Answer, tokens: u32) -> Option<u64> {
    let (first, last) = (answer.first?, answer.last?);
    let further = u64::from(tokens.checked_sub(1).filter(|&further| further > 0)?);
    Some(micros(first, last) / further)
}
