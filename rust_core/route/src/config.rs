//! The settings of this room. Defaults live in the Python settings model alone: a missing or unknown field is refused.

use serde::Deserialize;

/// What decides; field names are those of the settings reference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The policy by name, one of [`POLICIES`](crate::POLICIES).
    pub policy: String,
    /// Bytes per block of the text kind of key.
    pub text_block_bytes: u32,
    /// Tokens per block of the token kind of key.
    pub token_block_tokens: u32,
    /// Bytes of text that make one token, for prompts that are not tokenised.
    pub bytes_per_token: f32,
    /// Bound of the index in bytes.
    pub tree_max_bytes: u64,
    /// How long a route is taken for cached without any event that says so.
    pub route_ttl_ms: u64,
    /// The same for a rank whose KV events come in: they tell soon, and say more.
    pub event_route_ttl_ms: u64,
    /// Tokens that the KV cache of one rank holds, where its engine does not say.
    pub rank_kv_tokens: Option<u64>,
    /// Worth of a cached token in the machine's memory, in cached tokens of the GPU.
    pub cpu_credit: f32,
    /// Worth of a cached token in storage, in cached tokens of the GPU.
    pub storage_credit: f32,
    /// A second policy by name, which is asked and not followed; `null` asks none.
    pub shadow_policy: Option<String>,
    /// Price of one token that this request would have to compute, in tokens of prefill work that is booked already.
    pub uncached_weight: f32,
    /// Price of one running request on a rank, in tokens of prefill work.
    pub decode_request_tokens: f32,
    /// Price of one resident token on a rank, in tokens of prefill work.
    pub decode_resident_weight: f32,
    /// Price of a full KV cache, in tokens of prefill work.
    pub pressure_tokens: f32,
    /// KV usage, 0 to 1, from which pressure is priced.
    pub pressure_start: f32,
    /// Failures in a row after which an engine is left alone.
    pub breaker_failures: u32,
    /// How long an engine is left alone before one request may try it again.
    pub breaker_open_ms: u64,
}
