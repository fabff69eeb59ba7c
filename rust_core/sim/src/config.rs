//! What an engine is told at start. Every default lives with the caller; a missing or unknown field is refused.

use serde::{Deserialize, Deserializer, Serialize};

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
    /// The names that it serves it by, the first of them what replies call it; none for the model's own.
    pub served_model_names: Vec<String>,
    /// Name of the engine, sent as the reply header `x-sim-engine`.
    pub name: String,
    /// What it computes with.
    pub engine: EngineConfig,
    /// Virtual microseconds that a request takes before it is queued: HTTP, and what the front end does with it.
    pub request_us: f64,
    /// Virtual seconds per real second; 0 waits for nothing.
    pub speed: f64,
    /// Seed of the request ids. Replies depend on the prompt alone.
    pub seed: u64,
    /// Data-parallel ranks behind the address, each an engine of its own.
    pub data_parallel_size: u32,
    /// How it tells what happens to its KV cache.
    pub kv_events: EventsConfig,
    /// How it shares KV with other engines.
    pub kv_transfer: TransferConfig,
    /// Requests that a rank takes before it answers 503; none for any number.
    #[serde(deserialize_with = "required")]
    pub max_num_queued_reqs: Option<u32>,
    /// Prompt tokens in the queue of a rank at which it answers 503; none for any number.
    #[serde(deserialize_with = "required")]
    pub max_num_queued_tokens: Option<u64>,
    /// Faults in force from the start, as the header `x-sim-fault` writes them.
    pub faults: Vec<String>,
}

/// What vLLM's `--kv-events-config` says, and how the events are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsConfig {
    /// Whether anything is published.
    pub enable_kv_cache_events: bool,
    /// By what.
    pub publisher: Publisher,
    /// Address of the first rank's PUB socket. It is bound if it holds `*` or `::`, or is ipc or inproc; else connected to.
    pub endpoint: String,
    /// Address of the first rank's ROUTER socket, which is always bound.
    #[serde(deserialize_with = "required")]
    pub replay_endpoint: Option<String>,
    /// Batches that can be asked for again.
    pub buffer_steps: u32,
    /// Batches that wait for one subscriber; further ones are lost to it.
    pub hwm: u32,
    /// Told to who asks. An engine that computes nothing has no queue before its socket.
    pub max_queue_size: u32,
    /// First frame of every message.
    pub topic: String,
    /// How an event is written.
    pub encoding: Encoding,
    /// How a block's hash is written.
    pub hashes: Hashes,
}

/// How events are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publisher {
    /// Not at all.
    Null,
    /// By a ZMQ socket.
    Zmq,
}

/// How an event is written in msgpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// A map that leaves out fields of default value: vLLM from 0.24 on.
    Map,
    /// An array that opens with the event's name: vLLM up to 0.23.
    Array,
}

/// How a block's hash is written in msgpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hashes {
    /// The low 64 bits as an unsigned number.
    Int,
    /// All 32 bytes.
    Bytes,
}

/// How an engine shares KV with others: what vLLM's `--kv-transfer-config` says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferConfig {
    /// Which part it takes; none if it shares nothing.
    #[serde(deserialize_with = "required")]
    pub role: Option<Role>,
    /// What becomes of a request whose KV does not come.
    pub load_failure_policy: LoadFailure,
    /// Virtual seconds that blocks are kept for who has not claimed them.
    pub lease_s: f64,
    /// Virtual microseconds that one token's KV is on its way.
    pub us_per_token: f64,
}

/// The part of an engine that shares KV. It is a name: as with vLLM's NIXL connector each does what a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It computes prompts for others.
    KvProducer,
    /// It answers prompts that others computed.
    KvConsumer,
    /// Both.
    KvBoth,
}

/// What becomes of a request whose KV does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadFailure {
    /// It ends with an error.
    Fail,
    /// Its prompt is computed here.
    Recompute,
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
    /// One rank in real time that publishes nothing, shares nothing, refuses nothing and has no fault.
    #[must_use]
    pub fn plain(listen: &str, model: &str, engine: EngineConfig) -> SimConfig {
        SimConfig {
            served_model_names: Vec::new(),
            listen: listen.to_owned(),
            model: model.to_owned(),
            name: "sim".to_owned(),
            engine,
            request_us: 0.0,
            speed: 1.0,
            seed: 0,
            data_parallel_size: 1,
            kv_events: EventsConfig::off(),
            kv_transfer: TransferConfig {
                role: None,
                load_failure_policy: LoadFailure::Fail,
                lease_s: 30.0,
                us_per_token: 0.0,
            },
            max_num_queued_reqs: None,
            max_num_queued_tokens: None,
            faults: Vec::new(),
        }
    }

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
        if self.data_parallel_size == 0 {
            return refuse("data_parallel_size", "must be at least 1");
        }
        at_least_zero(&[
            ("request_us", self.request_us),
            ("speed", self.speed),
            ("kv_transfer.lease_s", self.kv_transfer.lease_s),
            ("kv_transfer.us_per_token", self.kv_transfer.us_per_token),
        ])?;
        self.engine.check()
    }
}

// === impl EventsConfig ===

impl EventsConfig {
    /// Nothing is published; the rest is what vLLM says then.
    #[must_use]
    pub fn off() -> EventsConfig {
        EventsConfig {
            enable_kv_cache_events: false,
            publisher: Publisher::Null,
            endpoint: "tcp://*:5557".to_owned(),
            replay_endpoint: None,
            buffer_steps: 10_000,
            hwm: 100_000,
            max_queue_size: 100_000,
            topic: String::new(),
            encoding: Encoding::Map,
            hashes: Hashes::Int,
        }
    }

    /// True if a socket is opened.
    #[must_use]
    pub fn publishes(&self) -> bool {
        self.enable_kv_cache_events && self.publisher == Publisher::Zmq
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

/// An optional value whose field is there: `null` says that there is none.
fn required<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer)
}

fn refuse(field: &'static str, reason: &str) -> Result<(), Error> {
    Err(Error::Config { field, reason: reason.to_owned() })
}
