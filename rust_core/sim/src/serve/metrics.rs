//! `/metrics`: vLLM's names, labels and help, in Prometheus' text format.

mod page;

use page::{OfRank, Page};

use super::app::App;
use super::handoff::Tally;
use crate::Engine;
use crate::stats::Stats;

/// The content type that goes with it.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=1.0.0; charset=utf-8";

/// What one rank knows of itself at one moment.
struct Snapshot {
    running: usize,
    waiting: usize,
    /// Requests whose KV is on its way from another engine, and those whose KV has come.
    fetching: (usize, usize),
    usage: f64,
    stats: Stats,
    handoffs: Tally,
}

/// Everything that the engine knows of itself.
pub(crate) fn render(app: &App) -> String {
    let tallies = app.handoffs.tallies();
    let ranks = app.ranks.iter().zip(tallies);
    let ranks = ranks.map(|(rank, tally)| rank.with_engine(|engine| Snapshot::of(engine, tally)));
    let mut page = Page::new(&app.served[0], ranks.collect());
    let shares = app.config.kv_transfer.role.is_some();
    page.process("process_start_time_seconds", *app.started.lock());
    queues(&mut page);
    cache(&mut page, shares);
    tokens(&mut page);
    ends(&mut page, app);
    sizes(&mut page);
    times(&mut page);
    if shares {
        transfers(&mut page);
    }
    cache_config(&mut page, app);
    page.into_text()
}

fn queues(page: &mut Page<'_>) {
    page.gauge("num_requests_running", "Number of requests in model execution batches.", |rank| {
        rank.running as f64
    });
    page.gauge("num_requests_waiting", "Number of requests waiting to be processed.", |rank| {
        rank.waiting as f64
    });
    page.gauges(
        "num_requests_waiting_by_reason",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = \
         deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals \
         vllm:num_requests_waiting.",
        "reason",
        |rank| {
            let deferred = rank.fetching.0 + rank.fetching.1;
            vec![("capacity", (rank.waiting - deferred) as f64), ("deferred", deferred as f64)]
        },
    );
    page.gauges(
        "engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 \
         means sleep level 1; discard_all = 1 means sleep level 2.",
        "sleep_state",
        |_| vec![("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)],
    );
}

fn cache(page: &mut Page<'_>, shares: bool) {
    page.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", |rank| {
        rank.usage
    });
    page.counter(
        "prefix_cache_queries",
        "Prefix cache queries, in terms of number of queried tokens.",
        |rank| rank.stats.cache_queries,
    );
    page.counter(
        "prefix_cache_hits",
        "Prefix cache hits, in terms of number of cached tokens.",
        |rank| rank.stats.cache_hits,
    );
    page.counter(
        "external_prefix_cache_queries",
        "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried \
         tokens.",
        |rank| if shares { rank.stats.external_queries } else { 0 },
    );
    page.counter(
        "external_prefix_cache_hits",
        "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached tokens.",
        |rank| rank.stats.external_hits,
    );
    page.counter("num_preemptions", "Cumulative number of preemption from the engine.", |rank| {
        rank.stats.preemptions
    });
}

fn tokens(page: &mut Page<'_>) {
    page.counter("prompt_tokens", "Number of prefill tokens processed.", |rank| {
        rank.stats.prompt_tokens
    });
    page.counters(
        "prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        "source",
        |Snapshot { stats, .. }| {
            let given = stats.prompt_tokens_cached + stats.prompt_tokens_external;
            vec![
                ("local_compute", stats.prompt_tokens.saturating_sub(given)),
                ("local_cache_hit", stats.prompt_tokens_cached),
                ("external_kv_transfer", stats.prompt_tokens_external),
            ]
        },
    );
    page.counter(
        "prompt_tokens_cached",
        "Number of cached prompt tokens (local + external).",
        |rank| rank.stats.prompt_tokens_cached + rank.stats.prompt_tokens_external,
    );
    page.counters(
        "prompt_tokens_cached_by_source",
        "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), \
         disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to \
         vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
        "source",
        |Snapshot { stats, .. }| {
            vec![
                ("device", stats.cache_hits),
                ("host", 0),
                ("p2p", stats.external_hits),
                ("disk", 0),
                ("external_unspecified", 0),
            ]
        },
    );
    page.counter("generation_tokens", "Number of generation tokens processed.", |rank| {
        rank.stats.generation_tokens
    });
}

fn ends(page: &mut Page<'_>, app: &App) {
    page.counters(
        "request_success",
        "Count of successfully processed requests.",
        "finished_reason",
        |Snapshot { stats, handoffs, .. }| {
            vec![
                ("stop", stats.stopped),
                ("length", stats.lengthy),
                ("abort", stats.aborted),
                ("error", handoffs.errors),
                ("repetition", 0),
            ]
        },
    );
    let [requests, tokens] = app.rejections();
    page.counters_of_all(
        "admission_rejections",
        "Number of admission attempts rejected by a queue limit, by reason.",
        "reason",
        &[("max_num_queued_reqs", requests), ("max_num_queued_tokens", tokens)],
    );
}

fn sizes(page: &mut Page<'_>) {
    let histograms: [(&str, &str, OfRank); 7] = [
        ("request_prompt_tokens", "Number of prefill tokens processed.", |stats| {
            &stats.request_prompt
        }),
        ("request_generation_tokens", "Number of generation tokens processed.", |stats| {
            &stats.request_generation
        }),
        ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", |stats| {
            &stats.step_tokens
        }),
        ("request_params_n", "Histogram of the n request parameter.", |stats| {
            &stats.request_choices
        }),
        ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", |stats| {
            &stats.request_limit
        }),
        (
            "request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            |stats| &stats.request_preemptions,
        ),
        (
            "request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            |stats| &stats.request_computed,
        ),
    ];
    for (name, help, histogram) in histograms {
        page.histogram(name, help, histogram);
    }
}

fn times(page: &mut Page<'_>) {
    let histograms: [(&str, &str, OfRank); 8] = [
        ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", |stats| {
            &stats.ttft
        }),
        ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", |stats| {
            &stats.token_gap
        }),
        (
            "request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            |stats| &stats.per_token,
        ),
        ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", |stats| {
            &stats.e2e
        }),
        (
            "request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            |stats| &stats.queue,
        ),
        (
            "request_inference_time_seconds",
            "Histogram of time spent in RUNNING phase for request.",
            |stats| &stats.inference,
        ),
        (
            "request_prefill_time_seconds",
            "Histogram of time spent in PREFILL phase for request.",
            |stats| &stats.prefill,
        ),
        (
            "request_decode_time_seconds",
            "Histogram of time spent in DECODE phase for request.",
            |stats| &stats.decode,
        ),
    ];
    for (name, help, histogram) in histograms {
        page.histogram(name, help, histogram);
    }
}

fn transfers(page: &mut Page<'_>) {
    page.gauges(
        "num_requests_kv_fetch_by_stage",
        "Number of waiting requests by async KV load stage. Stage labels: 'waiting_to_start' = needs an async KV load that \
         has not started; 'in_progress' = load started and not yet reported finished; 'completed_waiting' = load finished, \
         request not running yet.",
        "stage",
        |rank| {
            let (on_its_way, here) = rank.fetching;
            vec![
                ("waiting_to_start", 0.0),
                ("in_progress", on_its_way as f64),
                ("completed_waiting", here as f64),
            ]
        },
    );
    page.histogram(
        "nixl_xfer_time_seconds",
        "Histogram of transfer duration for NIXL KV Cache transfers.",
        |stats| &stats.transfer,
    );
    page.counter(
        "nixl_num_kv_expired_reqs",
        "Number of requests that had their KV expire. NOTE: This metric is tracked on the P instance.",
        |rank| rank.stats.expired,
    );
    page.counter(
        "nixl_num_failed_transfers",
        "Number of failed NIXL KV Cache transfers, including handshake and notification failures. NOTE: KV expiry is \
         tracked separately in vllm:nixl_num_kv_expired_reqs.",
        |rank| rank.handoffs.failed + rank.handoffs.unheard,
    );
    page.counter(
        "nixl_num_failed_notifications",
        "Number of failed NIXL KV Cache notifications. Retained for compatibility; these failures are also included in \
         vllm:nixl_num_failed_transfers.",
        |rank| rank.handoffs.unheard,
    );
    page.counter(
        "nixl_num_notifications_after_expiry",
        "Number of completion notifications for requests that were no longer tracked, usually because their KV lease \
         expired. The KV blocks may have been reused before the transfer finished. Counted per notification (one per \
         remote rank), not per request.",
        |rank| rank.handoffs.late,
    );
}

fn cache_config(page: &mut Page<'_>, app: &App) {
    let engine = &app.config.engine;
    let tokens = u64::from(engine.block_size) * u64::from(engine.kv_blocks);
    let concurrency = tokens as f64 / f64::from(engine.max_model_len);
    let labels = |rank: usize| {
        format!(
            "block_size=\"{}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",engine=\"{rank}\",hash_block_size=\"None\",\
             kv_cache_max_concurrency=\"{concurrency:?}\",kv_cache_size_tokens=\"{tokens}\",num_gpu_blocks=\"{}\",\
             prefix_caching_hash_algo=\"sha256\"",
            engine.block_size, engine.kv_blocks
        )
    };
    page.info("cache_config_info", "Information of the LLMEngine CacheConfig", labels);
}

// === impl Snapshot ===

impl Snapshot {
    fn of(engine: &Engine, handoffs: Tally) -> Snapshot {
        let scheduler = engine.scheduler();
        Snapshot {
            running: scheduler.running(),
            waiting: scheduler.waiting(),
            fetching: scheduler.fetching(),
            usage: scheduler.cache().usage(),
            stats: engine.stats().clone(),
            handoffs,
        }
    }
}
