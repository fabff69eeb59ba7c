//! `/metrics`: vLLM's names and labels, in Prometheus' text format.

use std::fmt::Write;

use crate::stats::{Histogram, Stats};
use crate::{Engine, EngineConfig, SimConfig};

/// The content type that goes with it.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=1.0.0; charset=utf-8";

/// Writes families one after the other.
struct Page<'a> {
    text: String,
    model: &'a str,
}

/// Everything that the engine knows of itself.
pub(crate) fn render(config: &SimConfig, engine: &Engine) -> String {
    let model = config.model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut page = Page { text: String::with_capacity(16 << 10), model: &model };
    gauges(&mut page, engine);
    counters(&mut page, engine.stats());
    histograms(&mut page, engine.stats());
    page.head("cache_config_info", "gauge", "Information of the LLMEngine CacheConfig");
    let EngineConfig { block_size, kv_blocks, .. } = &config.engine;
    let tokens = u64::from(*block_size) * u64::from(*kv_blocks);
    let _ = writeln!(
        page.text,
        "vllm:cache_config_info{{block_size=\"{block_size}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",engine=\"0\",\
         kv_cache_size_tokens=\"{tokens}\",num_gpu_blocks=\"{kv_blocks}\",prefix_caching_hash_algo=\"sha256\"}} 1.0"
    );
    page.text
}

fn gauges(page: &mut Page<'_>, engine: &Engine) {
    let scheduler = engine.scheduler();
    let (running, waiting) = (scheduler.running() as f64, scheduler.waiting() as f64);
    page.gauge("num_requests_running", "Number of requests in model execution batches.", running);
    page.gauge("num_requests_waiting", "Number of requests waiting to be processed.", waiting);
    page.head("num_requests_waiting_by_reason", "gauge", "Number of waiting requests by reason.");
    page.sample("num_requests_waiting_by_reason", Some(("reason", "capacity")), waiting);
    page.sample("num_requests_waiting_by_reason", Some(("reason", "deferred")), 0.0);
    page.gauge(
        "kv_cache_usage_perc",
        "KV-cache usage. 1 means 100 percent usage.",
        scheduler.cache().usage(),
    );
}

fn counters(page: &mut Page<'_>, stats: &Stats) {
    let computed = stats.prompt_tokens.saturating_sub(stats.prompt_tokens_cached);
    page.counter(
        "prefix_cache_queries",
        "Prefix cache queries, in terms of number of queried tokens.",
        stats.cache_queries,
    );
    page.counter(
        "prefix_cache_hits",
        "Prefix cache hits, in terms of number of cached tokens.",
        stats.cache_hits,
    );
    page.counter(
        "num_preemptions",
        "Cumulative number of preemption from the engine.",
        stats.preemptions,
    );
    page.counter("prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens);
    let by_source = [
        ("local_compute", computed),
        ("local_cache_hit", stats.prompt_tokens_cached),
        ("external_kv_transfer", 0),
    ];
    page.counters(
        "prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        "source",
        &by_source,
    );
    let help = "Number of cached prompt tokens (local + external).";
    page.counter("prompt_tokens_cached", help, stats.prompt_tokens_cached);
    page.counter(
        "generation_tokens",
        "Number of generation tokens processed.",
        stats.generation_tokens,
    );
    let by_reason = [
        ("stop", stats.stopped),
        ("length", stats.lengthy),
        ("abort", stats.aborted),
        ("error", 0),
        ("repetition", 0),
    ];
    page.counters(
        "request_success",
        "Count of successfully processed requests.",
        "finished_reason",
        &by_reason,
    );
}

fn histograms(page: &mut Page<'_>, stats: &Stats) {
    page.histogram(
        "request_prompt_tokens",
        "Number of prefill tokens processed.",
        &stats.request_prompt,
    );
    page.histogram(
        "request_generation_tokens",
        "Number of generation tokens processed.",
        &stats.request_generation,
    );
    page.histogram(
        "time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        &stats.ttft,
    );
    page.histogram(
        "inter_token_latency_seconds",
        "Histogram of inter-token latency in seconds.",
        &stats.token_gap,
    );
    page.histogram(
        "e2e_request_latency_seconds",
        "Histogram of e2e request latency in seconds.",
        &stats.e2e,
    );
    page.histogram(
        "request_queue_time_seconds",
        "Histogram of time spent in WAITING phase for request.",
        &stats.queue,
    );
    page.histogram(
        "request_prefill_time_seconds",
        "Histogram of time spent in PREFILL phase for request.",
        &stats.prefill,
    );
    page.histogram(
        "request_decode_time_seconds",
        "Histogram of time spent in DECODE phase for request.",
        &stats.decode,
    );
}

// === impl Page ===

impl Page<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n");
    }

    /// One value. Labels stand in alphabetical order, as the Python client writes them.
    fn sample(&mut self, name: &str, label: Option<(&str, &str)>, value: f64) {
        let model = self.model;
        let _ = match label {
            None => write!(self.text, "vllm:{name}{{engine=\"0\",model_name=\"{model}\"}} "),
            Some((key, label)) if key < "model_name" => {
                write!(
                    self.text,
                    "vllm:{name}{{engine=\"0\",{key}=\"{label}\",model_name=\"{model}\"}} "
                )
            }
            Some((key, label)) => {
                write!(
                    self.text,
                    "vllm:{name}{{engine=\"0\",model_name=\"{model}\",{key}=\"{label}\"}} "
                )
            }
        };
        // Debug keeps the `.0` of whole numbers, as Python does.
        let _ = writeln!(self.text, "{value:?}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, "gauge", help);
        self.sample(name, None, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let name = format!("{name}_total");
        self.head(&name, "counter", help);
        self.sample(&name, None, value as f64);
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) {
        let name = format!("{name}_total");
        self.head(&name, "counter", help);
        for &(key, value) in values {
            self.sample(&name, Some((label, key)), value as f64);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound, count) in histogram.cumulative() {
            let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
            self.sample(&bucket, Some(("le", &bound)), count as f64);
        }
        self.sample(&format!("{name}_count"), None, histogram.count() as f64);
        self.sample(&format!("{name}_sum"), None, histogram.sum());
    }
}
