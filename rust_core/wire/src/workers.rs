//! Every engine with all that is known of it: state, load, predictions, events, prompts.

use std::sync::Arc;

use nebula_route::{Engine, KeySpec, Load, Prediction, Status};
use serde::{Serialize, Serializer};

use crate::conform::Report;
use crate::context::Context;
use crate::error::Error;
use crate::explain::as_json;
use crate::kv_events::RankEvents;

#[derive(Serialize)]
struct Workers {
    workers: Vec<Worker>,
}

#[derive(Serialize)]
struct Worker {
    name: String,
    url: String,
    status: Status,
    models: Vec<String>,
    version: Option<String>,
    block_size: Option<u32>,
    kv_blocks: Option<u64>,
    data_parallel_size: Option<u32>,
    key: Option<KeySpec>,
    ranks: Vec<Rank>,
    conformance: Conformance,
}

#[derive(Serialize)]
struct Rank {
    #[serde(rename = "rank")]
    index: u32,
    load: Load,
    prediction: Prediction,
    events: Option<Events>,
}

/// The report, or that there is none yet.
#[derive(Serialize)]
#[serde(untagged)]
enum Conformance {
    Known(#[serde(serialize_with = "inner")] Arc<Report>),
    Pending { state: &'static str },
}

#[derive(Serialize)]
struct Events {
    connected: bool,
    replaying: bool,
    generation: u64,
    last_seq: Option<u64>,
    lag_ms: Option<u64>,
    age_ms: Option<u64>,
    gaps: u64,
    replays: u64,
    losses: u64,
    duplicates: u64,
    orphans: u64,
    decode_errors: u64,
    skipped: u64,
    blocks: u64,
    block_size: Option<u32>,
    encoding: Option<String>,
}

fn inner<S: Serializer>(report: &Arc<Report>, serializer: S) -> Result<S::Ok, S::Error> {
    report.as_ref().serialize(serializer)
}

/// All of them as JSON.
///
/// # Errors
/// As [`as_json`].
pub(crate) fn workers(context: &Context) -> Result<String, Error> {
    let stats = context.events.stats();
    let engines = context.router.engines();
    let workers = engines.iter().map(|engine| Worker::of(context, engine, &stats)).collect();
    as_json(&Workers { workers })
}

// === impl Worker ===

impl Worker {
    fn of(context: &Context, engine: &Engine, stats: &[RankEvents]) -> Worker {
        let facts = engine.facts().unwrap_or_default();
        let now = context.clock.now();
        let rank = |(rank, load): (u32, Load)| Rank {
            index: rank,
            load,
            prediction: engine.belief(rank).map(|b| b.prediction(now)).unwrap_or_default(),
            events: stats
                .iter()
                .find(|stats| stats.rank == engine.rank(rank))
                .map(|stats| Events::of(context, stats)),
        };
        let report = context.conformance.report(engine.id());
        Worker {
            name: engine.spec().name.clone(),
            url: engine.spec().url.clone(),
            status: engine.status(),
            models: facts.models.iter().map(|model| model.id.clone()).collect(),
            version: facts.version.clone(),
            block_size: facts.block_size,
            kv_blocks: facts.kv_blocks,
            data_parallel_size: facts.data_parallel_size,
            key: engine.intake().map(|intake| intake.key),
            ranks: (0..).zip(engine.loads()).map(rank).collect(),
            conformance: report
                .map_or(Conformance::Pending { state: "pending" }, Conformance::Known),
        }
    }
}

// === impl Events ===

impl Events {
    fn of(context: &Context, stats: &RankEvents) -> Events {
        Events {
            connected: stats.connected,
            replaying: stats.replaying,
            generation: stats.order.generation,
            last_seq: stats.last_seq,
            lag_ms: stats.lag_ms,
            age_ms: stats.age_ms,
            gaps: stats.order.gaps,
            replays: stats.order.replays,
            losses: stats.order.losses,
            duplicates: stats.order.duplicates,
            orphans: stats.applied.orphans,
            decode_errors: stats.decode_errors,
            skipped: stats.skipped,
            blocks: context.router.exact_blocks(stats.rank),
            block_size: stats.block_size,
            encoding: stats.encoding.map(|encoding| format!("{encoding:?}").to_lowercase()),
        }
    }
}
