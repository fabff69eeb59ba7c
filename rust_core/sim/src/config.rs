//! What an engine is told at start. Every default lives with the caller; a missing or unknown field is refused.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::timing::Timing;

/// An engine and its face.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimConfig {
    /// Address to listen on; port 0 lets the system choose.
    pub listen: String,
    /// The one model that the engine serves.
    pub model: String,
    /// Name of the engine, sent as the reply header `x-sim-engine`.
    pub name: String,
    /// What it computes with.
    pub engine: EngineConfig,
    /// Virtual seconds per real second; 0 waits for nothing.
    pub speed: f64,
    /// Seed of the request ids. Replies depend on the prompt alone.
    pub seed: u64,
}

/// What the engine itself needs to know. The names are those of vLLM's options where it has the same thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
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
    /// How long its steps take.
    pub timing: Timing,
}

// === impl SimConfig ===

impl SimConfig {
    /// Refuses what no engine could serve with.
    ///
    /// # Errors
    /// [`Error::Config`] names the first such field.
    pub fn check(&self) -> Result<(), Error> {
        if self.model.is_empty() {
            return refuse("model", "must not be empty");
        }
        if self.name.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
            return refuse("name", "must be printable ASCII: it travels in a header");
        }
        at_least_zero(&[("speed", self.speed)])?;
        self.engine.check()
    }
}

// === impl EngineConfig ===

impl EngineConfig {
    /// Refuses what no engine could compute with.
    ///
    /// # Errors
    /// [`Error::Config`] names the first such field.
    pub fn check(&self) -> Result<(), Error> {
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
        at_least_zero(&self.timing.fields())?;
        // The null block holds nothing. A request that outgrows the whole cache would preempt itself for ever.
        if self.kv_tokens() < u64::from(self.max_model_len) {
            return refuse(
                "kv_blocks",
                "one request of max_model_len tokens must fit into kv_blocks - 1 blocks",
            );
        }
        Ok(())
    }

    /// Tokens that the KV cache holds.
    #[must_use]
    pub fn kv_tokens(&self) -> u64 {
        u64::from(self.kv_blocks.saturating_sub(1)) * u64::from(self.block_size)
    }
}

fn at_least_zero(fields: &[(&'static str, f64)]) -> Result<(), Error> {
    match fields.iter().find(|(_, value)| !value.is_finite() || *value < 0.0) {
        Some((field, _)) => refuse(field, "must be a number of at least 0"),
        None => Ok(()),
    }
}

fn refuse(field: &'static str, reason: &str) -> Result<(), Error> {
    Err(Error::Config { field, reason: reason.to_owned() })
}
