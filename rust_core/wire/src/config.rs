//! The settings of this room. Defaults live in the Python settings model alone: a missing or unknown field is refused.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

use crate::kv_events::EventsConfig;

/// How requests travel; field names are those of the settings reference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Config {
    /// Longest wait for a TCP (and TLS) connection to an engine.
    pub connect_timeout_ms: u64,
    /// Longest wait for the first byte of a reply; covers queueing and prefill in the engine.
    pub first_byte_timeout_ms: u64,
    /// Longest silence between two chunks of a reply.
    pub idle_timeout_ms: u64,
    /// How long an unused connection is kept. Below the engine's own limit (vLLM: 5 s), else requests meet closed sockets.
    pub pool_idle_ms: u64,
    /// Unused connections kept for each engine.
    pub pool_per_engine: usize,
    /// How many other engines are tried after a failure before the first byte.
    pub retries: u32,
    /// Tokens a second that a rank is taken to prefill, for replies that do not say when their prompt is done.
    pub prefill_tokens_per_second: f32,
    /// Time between two health probes of one engine.
    pub probe_interval_ms: u64,
    /// Longest wait for the answer to a probe.
    pub probe_timeout_ms: u64,
    /// Time between two readings of an engine's models and metrics.
    pub facts_interval_ms: u64,
    /// PEM file with the authorities that sign the engines' certificates; `null` takes the system's.
    pub ca_file: Option<String>,
    /// Requests in flight before new ones are refused with 429.
    pub max_inflight: u32,
    /// Whether the engines are routers: what they say of their choice is what the client is told.
    pub fronts_routers: bool,
    /// Whether a client's own `kv_transfer_params` reach the engine.
    pub trust_kv_transfer_params: bool,
    /// How prompts become tokens.
    pub tokens: TokensConfig,
    /// Whether engines are asked for the usage of streams whose clients did not ask.
    pub ask_usage: bool,
    /// How KV events are received; `null` where none are. To leave it out is a mistake, and not the same.
    #[serde(deserialize_with = "Option::deserialize")]
    pub events: Option<EventsConfig>,
    /// Decisions kept for people to look at.
    pub decisions_kept: usize,
    /// Whether each request leaves a log line.
    pub log_requests: bool,
    /// Whether that line holds hashes of the prompt, so that the log can be replayed.
    pub log_prompt_hashes: bool,
    /// Seed of the random choices; equal seeds make equal choices.
    pub seed: u64,
}

/// How prompts become the tokens that the engine sees.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensConfig {
    /// Folders with the files of models, by model name.
    pub model_assets: HashMap<String, String>,
    /// Whether the folder that an engine reports for its model is read, where there is none for it in `model_assets`.
    pub read_engine_root: bool,
    /// Bytes of tokens kept of the segments of prompts, for each model.
    pub segment_cache_bytes: usize,
    /// Bytes of tokens kept of what engines told.
    pub tokenize_cache_bytes: usize,
    /// Longest wait for an engine's `/tokenize`.
    pub tokenize_timeout_ms: u64,
    /// Whether the ids of a prompt go along, where the engine takes them.
    pub forward_tokens: bool,
}

impl Config {
    pub(crate) fn first_byte_timeout(&self) -> Duration {
        Duration::from_millis(self.first_byte_timeout_ms)
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    pub(crate) fn probe_timeout(&self) -> Duration {
        Duration::from_millis(self.probe_timeout_ms)
    }
}
