//! What an engine is told at start. Every default lives with the caller.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Everything a simulated engine needs to know; a missing or unknown field is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimConfig {
    /// Address to listen on; port 0 lets the system choose.
    pub listen: String,
    /// The one model that the engine serves.
    pub model: String,
    /// Name of the engine, sent as the reply header `x-sim-engine`.
    pub name: String,
    /// Tokens per KV-cache block.
    pub block_size: u32,
    /// Blocks of the KV cache. As in vLLM the first one is the null block and holds nothing.
    pub kv_blocks: u32,
    /// Requests that may run at once.
    pub max_num_seqs: u32,
    /// Tokens that one step may compute, over all requests.
    pub max_num_batched_tokens: u32,
    /// Tokens of prompt and reply together.
    pub max_model_len: u32,
    /// Microseconds that one prompt token adds to a step.
    pub prefill_us_per_token: f64,
    /// Microseconds that one decoding request adds to a step.
    pub decode_us_per_seq: f64,
    /// Microseconds of a step that are always spent.
    pub step_base_us: f64,
    /// Virtual seconds per real second; 0 waits for nothing.
    pub speed: f64,
    /// Seed of the request ids. Replies depend on the prompt alone.
    pub seed: u64,
}

// === impl SimConfig ===

impl SimConfig {
    /// The configuration itself, if an engine can run with it.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field that no engine could serve with.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |field, reason: &str| Err(Error::Config { field, reason: reason.to_owned() });
        if self.model.is_empty() {
            return refuse("model", "must not be empty");
        }
        if self.name.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
            return refuse("name", "must be printable ASCII: it travels in a header");
        }
        for (field, value) in [
            ("block_size", self.block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_model_len", self.max_model_len),
        ] {
            if value == 0 {
                return refuse(field, "must be at least 1");
            }
        }
        for (field, value) in [
            ("prefill_us_per_token", self.prefill_us_per_token),
            ("decode_us_per_seq", self.decode_us_per_seq),
            ("step_base_us", self.step_base_us),
            ("speed", self.speed),
        ] {
            if !value.is_finite() || value < 0.0 {
                return refuse(field, "must be a number of at least 0");
            }
        }
        // The null block holds nothing. A request that outgrows the whole cache would preempt itself for ever.
        let room = u64::from(self.kv_blocks.saturating_sub(1)) * u64::from(self.block_size);
        if room < u64::from(self.max_model_len) {
            return refuse(
                "kv_blocks",
                "one request of max_model_len tokens must fit into kv_blocks - 1 blocks",
            );
        }
        Ok(())
    }
}
