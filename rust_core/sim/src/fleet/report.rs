//! What a simulation found, in figures.

use serde::Serialize;

use super::host::Host;
use super::record::{Gaps, Record, millis};
use super::{FleetConfig, FleetError, Slo};
use crate::timing::Nanos;
use crate::workload::Workload;

/// Points of the series over time.
const POINTS: usize = 60;

/// All figures of one rule on one workload. Times are in the field's unit, from virtual time.
#[derive(Debug, Serialize)]
pub struct Report {
    policy: String,
    engines: usize,
    /// Conversations of the workload.
    sessions: usize,
    /// Requests that have ended.
    requests: usize,
    summary: Summary,
    per_engine: Vec<EngineShare>,
    per_request: Columns,
    series: Series,
}

#[derive(Debug, Serialize)]
struct Summary {
    ttft_ms: Spread,
    itl_ms: Spread,
    e2e_ms: Spread,
    hit_share: f64,
    goodput: Goodput,
    /// Time in steps of the busiest engine, as a multiple of the mean.
    imbalance: f64,
    preemptions: u64,
    /// From the first arrival to the last token.
    duration_s: f64,
    /// From the last arrival to the last token.
    drain_s: f64,
    /// Share of the time that the engines were in a step.
    busy_share: f64,
    requests_per_s: f64,
    output_tokens_per_s: f64,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
}

#[derive(Debug, Serialize)]
struct Spread {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// Requests that met the objective in time to first token and in mean time between tokens.
#[derive(Debug, Serialize)]
struct Goodput {
    share: f64,
    requests_per_s: f64,
}

#[derive(Debug, Serialize)]
struct EngineShare {
    requests: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    busy_s: f64,
    preemptions: u64,
}

/// One row per request, in the order of arrival.
#[derive(Debug, Default, Serialize)]
struct Columns {
    arrival_ms: Vec<f64>,
    engine: Vec<usize>,
    prompt: Vec<u32>,
    cached: Vec<u32>,
    predicted: Vec<u32>,
    output: Vec<u32>,
    ttft_ms: Vec<f64>,
    itl_ms: Vec<f64>,
    e2e_ms: Vec<f64>,
}

/// The hit share of the requests that arrived in each stretch of time, by its end.
#[derive(Debug, Serialize)]
struct Series {
    t_s: Vec<f64>,
    hit_share: Vec<f64>,
}

// === impl Report ===

impl Report {
    /// All figures as JSON.
    ///
    /// # Errors
    /// None that numbers and names could cause.
    pub fn to_json(&self) -> Result<Vec<u8>, FleetError> {
        Ok(serde_json::to_vec(self)?)
    }

    pub(super) fn of(
        config: &FleetConfig,
        workload: &Workload,
        hosts: &[Host],
        records: &[Record],
        gaps: &Gaps,
    ) -> Report {
        let done: Vec<&Record> = records.iter().filter(|record| record.finished).collect();
        Report {
            policy: config.policy.clone(),
            engines: hosts.len(),
            sessions: workload.sessions.len(),
            requests: done.len(),
            summary: Summary::of(config.slo, workload, hosts, &done, gaps),
            per_engine: hosts.iter().map(EngineShare::of).collect(),
            per_request: Columns::of(&done),
            series: Series::of(&done),
        }
    }
}

// === impl Summary ===

impl Summary {
    fn of(slo: Slo, workload: &Workload, hosts: &[Host], done: &[&Record], gaps: &Gaps) -> Summary {
        let first = done.first().map_or(0, |record| record.arrived);
        let end = done.iter().map(|record| record.last_token).max().unwrap_or(0);
        let last_arrival =
            done.iter().map(|record| record.arrived).max().unwrap_or(0).max(workload.span());
        let duration_s = seconds(end.saturating_sub(first));
        let good =
            |record: &&&Record| record.ttft_ms() <= slo.ttft_ms && record.itl_ms() <= slo.itl_ms;
        let good = done.iter().filter(good).count();
        let sum = |of: fn(&Record) -> u32| done.iter().map(|record| u64::from(of(record))).sum();
        let (prompt_tokens, cached_tokens, output_tokens): (u64, u64, u64) =
            (sum(|r| r.prompt), sum(|r| r.cached), sum(|r| r.output));
        let busy: Vec<f64> = hosts.iter().map(|host| seconds(host.busy)).collect();
        let mean_busy = mean(&busy);
        Summary {
            ttft_ms: Spread::of(done.iter().map(|record| record.ttft_ms())),
            itl_ms: Spread::of_gaps(gaps),
            e2e_ms: Spread::of(done.iter().map(|record| record.e2e_ms())),
            hit_share: share(cached_tokens as f64, prompt_tokens as f64),
            goodput: Goodput {
                share: share(good as f64, done.len() as f64),
                requests_per_s: share(good as f64, duration_s),
            },
            imbalance: share(busy.iter().copied().fold(0.0, f64::max), mean_busy),
            preemptions: hosts.iter().map(|host| host.engine.stats().preemptions).sum(),
            duration_s,
            drain_s: seconds(end.saturating_sub(last_arrival)),
            busy_share: share(mean_busy, duration_s),
            requests_per_s: share(done.len() as f64, duration_s),
            output_tokens_per_s: share(output_tokens as f64, duration_s),
            prompt_tokens,
            cached_tokens,
            output_tokens,
        }
    }
}

// === impl Spread ===

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
            values.get(rank).copied().unwrap_or(0.0)
        };
        Spread { mean: mean(&values), p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }

    fn of_gaps(gaps: &Gaps) -> Spread {
        let at = |percent| gaps.percentile_ms(percent);
        Spread {
            mean: gaps.mean_ms(),
            p50: at(50.0),
            p90: at(90.0),
            p99: at(99.0),
            max: gaps.max_ms(),
        }
    }
}

// === impl EngineShare ===

impl EngineShare {
    fn of(host: &Host) -> EngineShare {
        EngineShare {
            requests: host.requests,
            prompt_tokens: host.prompt_tokens,
            cached_tokens: host.cached_tokens,
            busy_s: seconds(host.busy),
            preemptions: host.engine.stats().preemptions,
        }
    }
}

// === impl Columns ===

impl Columns {
    fn of(done: &[&Record]) -> Columns {
        let mut columns = Columns::default();
        for record in done {
            columns.arrival_ms.push(millis(record.arrived));
            columns.engine.push(record.host);
            columns.prompt.push(record.prompt);
            columns.cached.push(record.cached);
            columns.predicted.push(record.predicted);
            columns.output.push(record.output);
            columns.ttft_ms.push(record.ttft_ms());
            columns.itl_ms.push(record.itl_ms());
            columns.e2e_ms.push(record.e2e_ms());
        }
        columns
    }
}

// === impl Series ===

impl Series {
    fn of(done: &[&Record]) -> Series {
        let span = done.iter().map(|record| record.arrived).max().unwrap_or(0).saturating_add(1);
        let mut sums = [(0_u64, 0_u64); POINTS];
        for record in done {
            let point = (u128::from(record.arrived) * POINTS as u128 / u128::from(span)) as usize;
            sums[point].0 += u64::from(record.cached);
            sums[point].1 += u64::from(record.prompt);
        }
        let end = |point: usize| seconds(span) * (point + 1) as f64 / POINTS as f64;
        Series {
            t_s: (0..POINTS).map(end).collect(),
            hit_share: sums.iter().map(|(hit, all)| share(*hit as f64, *all as f64)).collect(),
        }
    }
}

fn seconds(span: Nanos) -> f64 {
    span as f64 / 1e9
}

fn mean(values: &[f64]) -> f64 {
    share(values.iter().sum(), values.len() as f64)
}

/// 0 where there is nothing to share.
fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
