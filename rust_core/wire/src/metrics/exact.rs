//! What is known of the engines' caches, and what it was worth: keys, predictions, events, shadows.

use std::sync::atomic::{AtomicU64, Ordering};

use nebula_route::Engine;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{OfRank, as_gauge};
use crate::context::Context;
use crate::kv_events::RankEvents;
use crate::prompt::Origin;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfSource {
    source: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfChoice {
    choice: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfReport {
    engine: String,
    state: String,
    source: String,
}

type RankGauge = Family<OfRank, Gauge<f64, AtomicU64>>;
type RankCount = Family<OfRank, Counter>;

/// These metrics.
#[derive(Default)]
pub(super) struct Exact {
    prompts: Family<OfSource, Counter>,
    shadow: Family<OfChoice, Counter>,
    shadow_gain: Gauge<f64, AtomicU64>,
    predictions: RankCount,
    right_predictions: RankCount,
    error_mean: RankGauge,
    error_std: RankGauge,
    credit: RankGauge,
    conformance: Family<OfReport, Gauge>,
    connected: RankGauge,
    lag: RankGauge,
    age: RankGauge,
    generation: RankGauge,
    blocks: RankGauge,
    batches: RankCount,
    gaps: RankCount,
    replays: RankCount,
    losses: RankCount,
    orphans: RankCount,
    decode_errors: RankCount,
    skipped: RankCount,
    strays: Counter,
    segment_bytes: Gauge,
    segment_hits: Counter,
    segment_misses: Counter,
    tokenize_bytes: Gauge,
}

impl Exact {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("prompts", "Prompts by where their tokens came from", self.prompts.clone());
        r.register(
            "shadow_decisions",
            "Decisions by whether the shadow policy would have chosen the same rank",
            self.shadow.clone(),
        );
        r.register(
            "shadow_gain_tokens",
            "Sum of what the shadow policy's choices seemed cheaper by, in tokens of prefill work",
            self.shadow_gain.clone(),
        );
        self.register_predictions(r);
        self.register_events(r);
        r.register("segment_bytes", "Memory of the cache of segments", self.segment_bytes.clone());
        r.register("segment_hits", "Segments whose tokens were known", self.segment_hits.clone());
        r.register(
            "segment_misses",
            "Segments that had to be tokenised",
            self.segment_misses.clone(),
        );
        r.register(
            "tokenize_cache_bytes",
            "Memory of the tokens that engines told",
            self.tokenize_bytes.clone(),
        );
    }

    fn register_predictions(&self, r: &mut Registry) {
        r.register(
            "predictions",
            "Replies whose cached tokens were held against the prediction",
            self.predictions.clone(),
        );
        r.register(
            "exact_predictions",
            "Those of them that were predicted to the token",
            self.right_predictions.clone(),
        );
        r.register(
            "prediction_error_tokens",
            "Mean of predicted minus reported cached tokens, the latest replies first",
            self.error_mean.clone(),
        );
        r.register(
            "prediction_error_spread_tokens",
            "Standard deviation of the same",
            self.error_std.clone(),
        );
        r.register(
            "prediction_credit_ratio",
            "Share of a predicted overlap that counts in the price",
            self.credit.clone(),
        );
        r.register(
            "conformance",
            "1 for what the engine's prompts were found to be, and where their tokens come from",
            self.conformance.clone(),
        );
    }

    fn register_events(&self, r: &mut Registry) {
        let gauges = [
            ("kv_events_connected", "1 while the rank's KV events come in", &self.connected),
            ("kv_events_lag_seconds", "Age of the last batch when it came", &self.lag),
            ("kv_events_age_seconds", "Time since a batch last came", &self.age),
            ("kv_events_generation", "Restarts of the engine seen in its events", &self.generation),
            ("kv_events_blocks", "Blocks of the rank that events name", &self.blocks),
        ];
        for (name, help, gauge) in gauges {
            r.register(name, help, gauge.clone());
        }
        let counts = [
            ("kv_events_batches", "Batches that were applied", &self.batches),
            ("kv_events_gaps", "Times that batches were missing", &self.gaps),
            ("kv_events_replays", "Replays that were asked for", &self.replays),
            ("kv_events_losses", "Times that missing batches did not come again", &self.losses),
            (
                "kv_events_orphans",
                "Blocks whose parent, or whose own name, was not known",
                &self.orphans,
            ),
            ("kv_events_decode_errors", "Batches and events not readable", &self.decode_errors),
            ("kv_events_skipped", "Events that mean nothing for the index", &self.skipped),
        ];
        for (name, help, count) in counts {
            r.register(name, help, count.clone());
        }
        r.register(
            "kv_events_strays",
            "Batches under topics that belong to no engine",
            self.strays.clone(),
        );
    }

    pub(super) fn keyed(&self, origin: Origin) {
        self.prompts.get_or_create(&OfSource { source: origin.as_str() }).inc();
    }

    pub(super) fn shadowed(&self, differs: bool, gain: f32) {
        let choice = if differs { "differs" } else { "same" };
        self.shadow.get_or_create(&OfChoice { choice }).inc();
        self.shadow_gain.inc_by(gain.into());
    }

    /// Reads everything that is kept elsewhere.
    pub(super) fn refresh(&self, context: &Context) {
        for gauges in [&self.error_mean, &self.error_std, &self.credit, &self.connected] {
            gauges.clear();
        }
        for gauges in [&self.lag, &self.age, &self.generation, &self.blocks] {
            gauges.clear();
        }
        self.conformance.clear();
        let stats = context.events.stats();
        for engine in context.router.engines() {
            self.engine(context, &engine);
        }
        for rank in &stats {
            self.rank(context, rank);
        }
        set(&self.strays, context.events.strays());
        let (bytes, hits, misses) = context.models.segments();
        self.segment_bytes.set(as_gauge(bytes));
        set(&self.segment_hits, hits);
        set(&self.segment_misses, misses);
        self.tokenize_bytes.set(as_gauge(context.remote.bytes()));
    }

    /// Drops every series of an engine that left the fleet.
    pub(super) fn forget(&self, engine: &str, ranks: u32) {
        for rank in 0..ranks {
            let labels = OfRank { engine: engine.to_owned(), rank };
            for counts in [&self.predictions, &self.right_predictions, &self.batches, &self.gaps] {
                counts.remove(&labels);
            }
            for counts in
                [&self.replays, &self.losses, &self.orphans, &self.decode_errors, &self.skipped]
            {
                counts.remove(&labels);
            }
        }
    }

    fn engine(&self, context: &Context, engine: &Engine) {
        let name = &engine.spec().name;
        for rank in 0..engine.spec().ranks {
            let Some(belief) = engine.belief(rank) else {
                continue;
            };
            let prediction = belief.prediction(context.clock.now());
            let labels = OfRank { engine: name.clone(), rank };
            set(&self.predictions.get_or_create(&labels), prediction.checked);
            set(&self.right_predictions.get_or_create(&labels), prediction.exact);
            self.error_mean.get_or_create(&labels).set(prediction.error_mean);
            self.error_std.get_or_create(&labels).set(prediction.error_std);
            self.credit.get_or_create(&labels).set(prediction.credit.into());
        }
        if let Some(report) = context.conformance.report(engine.id()) {
            let state = format!("{:?}", report.state).to_lowercase();
            let source = format!("{:?}", report.source).to_lowercase();
            let labels = OfReport { engine: name.clone(), state, source };
            self.conformance.get_or_create(&labels).set(1);
        }
    }

    fn rank(&self, context: &Context, stats: &RankEvents) {
        let labels = OfRank { engine: stats.engine.clone(), rank: stats.rank_index };
        let gauge = |family: &RankGauge, value: f64| {
            family.get_or_create(&labels).set(value);
        };
        gauge(&self.connected, f64::from(u8::from(stats.connected)));
        gauge(&self.lag, stats.lag_ms.unwrap_or(0) as f64 / 1e3);
        gauge(&self.age, stats.age_ms.unwrap_or(0) as f64 / 1e3);
        gauge(&self.generation, stats.order.generation as f64);
        gauge(&self.blocks, context.router.exact_blocks(stats.rank) as f64);
        let counts = [
            (&self.batches, stats.batches),
            (&self.gaps, stats.order.gaps),
            (&self.replays, stats.order.replays),
            (&self.losses, stats.order.losses),
            (&self.orphans, stats.applied.orphans),
            (&self.decode_errors, stats.decode_errors),
            (&self.skipped, stats.skipped),
        ];
        for (family, value) in counts {
            set(&family.get_or_create(&labels), value);
        }
    }
}

/// A count that is kept elsewhere.
fn set(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}
