//! The Prometheus registry. Every series of an engine exists from the moment the engine is known.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nebula_route::{Engine, Status};
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::context::Context;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::prompt::Origin;
use crate::usage::Usage;

mod exact;

use exact::Exact;

/// Seconds; from a cached prompt on a fast engine to a long queue.
const TTFT_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Seconds; the router's own work is microseconds.
const ROUTE_BUCKETS: [f64; 9] = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2];
/// Seconds; a whole reply.
const TOTAL_BUCKETS: [f64; 12] =
    [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfEngine {
    engine: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfRank {
    engine: String,
    rank: u32,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OfRequest {
    path: &'static str,
    engine: String,
    status: u16,
}

type SecondsFamily = Family<OfEngine, Histogram, fn() -> Histogram>;

/// All metrics of this process.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<OfRequest, Counter>,
    /// The paths and statuses that `requests` has series of: the family itself cannot be walked through.
    answered: Mutex<BTreeSet<(&'static str, u16)>>,
    ttft: SecondsFamily,
    duration: SecondsFamily,
    routing: Histogram,
    retries: Family<OfEngine, Counter>,
    prompt_tokens: Family<OfEngine, Counter>,
    overlap_tokens: Family<OfEngine, Counter>,
    cached_tokens: Family<OfEngine, Counter>,
    up: Family<OfEngine, Gauge>,
    running: Family<OfRank, Gauge>,
    prefill_tokens: Family<OfRank, Gauge>,
    resident_tokens: Family<OfRank, Gauge>,
    kv_usage: Family<OfRank, Gauge<f64, AtomicU64>>,
    inflight: Gauge,
    tree_blocks: Gauge,
    tree_bytes: Gauge,
    tree_nodes: Gauge,
    tree_evicted: Gauge,
    exact: Exact,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let metrics = Metrics {
            registry: Registry::with_prefix("nebula"),
            requests: Family::default(),
            answered: Mutex::default(),
            ttft: Family::new_with_constructor(|| Histogram::new(TTFT_BUCKETS)),
            duration: Family::new_with_constructor(|| Histogram::new(TOTAL_BUCKETS)),
            routing: Histogram::new(ROUTE_BUCKETS),
            retries: Family::default(),
            prompt_tokens: Family::default(),
            overlap_tokens: Family::default(),
            cached_tokens: Family::default(),
            up: Family::default(),
            running: Family::default(),
            prefill_tokens: Family::default(),
            resident_tokens: Family::default(),
            kv_usage: Family::default(),
            inflight: Gauge::default(),
            tree_blocks: Gauge::default(),
            tree_bytes: Gauge::default(),
            tree_nodes: Gauge::default(),
            tree_evicted: Gauge::default(),
            exact: Exact::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Metrics {
        let r = &mut self.registry;
        r.register(
            "requests",
            "Requests by path, engine and status; 499: the client left",
            self.requests.clone(),
        );
        r.register_with_unit(
            "ttft",
            "Time to the first byte of the reply",
            Unit::Seconds,
            self.ttft.clone(),
        );
        r.register_with_unit(
            "request_duration",
            "Time to the last byte of the reply",
            Unit::Seconds,
            self.duration.clone(),
        );
        r.register_with_unit(
            "routing",
            "The router's own work before a request is sent",
            Unit::Seconds,
            self.routing.clone(),
        );
        r.register(
            "retries",
            "Requests tried again elsewhere after this engine failed",
            self.retries.clone(),
        );
        r.register(
            "prompt_tokens",
            "Prompt tokens sent to the engine (engine's count, else estimate)",
            self.prompt_tokens.clone(),
        );
        r.register(
            "overlap_tokens",
            "Prompt tokens that the router believed cached",
            self.overlap_tokens.clone(),
        );
        r.register(
            "cached_tokens",
            "Prompt tokens that the engine reported cached",
            self.cached_tokens.clone(),
        );
        self.with_gauges()
    }

    /// What is read from the router whenever the registry is written.
    fn with_gauges(mut self) -> Metrics {
        let r = &mut self.registry;
        r.register("engine_up", "1 if the engine takes traffic", self.up.clone());
        r.register("running_requests", "Requests booked on the rank", self.running.clone());
        r.register(
            "prefill_tokens",
            "Booked prompt tokens that are not computed yet",
            self.prefill_tokens.clone(),
        );
        r.register(
            "resident_tokens",
            "Prompt tokens of the requests booked on the rank",
            self.resident_tokens.clone(),
        );
        r.register(
            "kv_usage_ratio",
            "KV cache usage as the engine last reported it",
            self.kv_usage.clone(),
        );
        r.register("inflight_requests", "Requests that the gateway holds", self.inflight.clone());
        r.register(
            "tree_blocks",
            "Blocks in the index, counted once per rank",
            self.tree_blocks.clone(),
        );
        r.register("tree_bytes", "Memory of the index", self.tree_bytes.clone());
        r.register("tree_nodes", "Nodes of the index", self.tree_nodes.clone());
        r.register(
            "tree_evicted_blocks",
            "Blocks evicted so far to keep the index within its bound",
            self.tree_evicted.clone(),
        );
        self.exact.register(r);
        self
    }

    pub(crate) fn keyed(&self, origin: Origin) {
        self.exact.keyed(origin);
    }

    pub(crate) fn shadowed(&self, differs: bool, gain: f32) {
        self.exact.shadowed(differs, gain);
    }

    pub(crate) fn routed(&self, took: Duration) {
        self.routing.observe(took.as_secs_f64());
    }

    pub(crate) fn retried(&self, engine: &Engine) {
        self.retries.get_or_create(&of_engine(&engine.spec().name)).inc();
    }

    pub(crate) fn first_byte(&self, engine: &str, seconds: f64) {
        self.ttft.get_or_create(&of_engine(engine)).observe(seconds);
    }

    pub(crate) fn request(&self, endpoint: Endpoint, engine: &str, status: u16, took: Duration) {
        let labels = OfRequest { path: endpoint.path, engine: engine.to_owned(), status };
        if let Some(requests) = self.requests.get(&labels) {
            requests.inc();
        } else {
            self.answered.lock().insert((endpoint.path, status));
            self.requests.get_or_create(&labels).inc();
        }
        self.duration.get_or_create(&of_engine(engine)).observe(took.as_secs_f64());
    }

    pub(crate) fn overlap(&self, engine: &str, prompt: u32, overlap: u32, usage: Usage) {
        let labels = of_engine(engine);
        let prompt = usage.prompt.unwrap_or_else(|| prompt.into());
        self.prompt_tokens.get_or_create(&labels).inc_by(prompt);
        self.overlap_tokens.get_or_create(&labels).inc_by(overlap.into());
        if let Some(cached) = usage.cached {
            self.cached_tokens.get_or_create(&labels).inc_by(cached);
        }
    }

    /// Makes every series of an engine exist, so that a first failure is a step from 0 and not a birth.
    pub(crate) fn introduce(&self, engine: &Engine) {
        let labels = of_engine(&engine.spec().name);
        for counters in
            [&self.retries, &self.prompt_tokens, &self.overlap_tokens, &self.cached_tokens]
        {
            drop(counters.get_or_create(&labels));
        }
        drop(self.ttft.get_or_create(&labels));
        drop(self.duration.get_or_create(&labels));
    }

    /// Drops every series of an engine that left the fleet: where addresses change, they would pile up.
    pub(crate) fn forget(&self, engine: &str, ranks: u32) {
        self.exact.forget(engine, ranks);
        let labels = of_engine(engine);
        for counters in
            [&self.retries, &self.prompt_tokens, &self.overlap_tokens, &self.cached_tokens]
        {
            counters.remove(&labels);
        }
        self.ttft.remove(&labels);
        self.duration.remove(&labels);
        for (path, status) in self.answered.lock().iter() {
            self.requests.remove(&OfRequest { path, engine: engine.to_owned(), status: *status });
        }
    }

    /// The registry in Prometheus' text format; gauges are read from the router now.
    ///
    /// # Errors
    /// A label that cannot be written; none of ours is.
    pub(crate) fn encode(&self, context: &Context, inflight: usize) -> Result<String, Error> {
        let router = &context.router;
        self.up.clear();
        self.running.clear();
        self.prefill_tokens.clear();
        self.resident_tokens.clear();
        self.kv_usage.clear();
        for engine in router.engines() {
            self.gauges(&engine);
        }
        self.exact.refresh(context);
        let stats = router.tree_stats();
        self.inflight.set(as_gauge(inflight));
        self.tree_blocks.set(as_gauge(stats.blocks));
        self.tree_bytes.set(as_gauge(stats.bytes));
        self.tree_nodes.set(as_gauge(stats.nodes));
        self.tree_evicted.set(as_gauge(stats.evicted));
        let mut out = String::new();
        text::encode(&mut out, &self.registry)
            .map_err(|cause| Error::internal(format!("metrics cannot be written: {cause}")))?;
        Ok(out)
    }

    fn gauges(&self, engine: &Engine) {
        let name = &engine.spec().name;
        let up = engine.status() == Status::Ready;
        self.up.get_or_create(&of_engine(name)).set(up.into());
        for (rank, load) in (0u32..).zip(engine.loads()) {
            let labels = OfRank { engine: name.clone(), rank };
            self.running.get_or_create(&labels).set(load.running.into());
            self.prefill_tokens.get_or_create(&labels).set(as_gauge(load.prefill_tokens));
            self.resident_tokens.get_or_create(&labels).set(as_gauge(load.resident_tokens));
            self.kv_usage.get_or_create(&labels).set(load.kv_usage.into());
        }
    }
}

fn of_engine(engine: &str) -> OfEngine {
    OfEngine { engine: engine.to_owned() }
}

fn as_gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
