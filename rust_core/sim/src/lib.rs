//! A vLLM engine that computes nothing.
//!
//! The engine is a pure state machine in virtual time: [`engine::Engine`] owns a [`scheduler`] (continuous batching), a
//! [`cache`] (prefix cache in blocks) and a [`timing`] model. It reads no clock and does no I/O, so the same code answers
//! live HTTP traffic ([`serve`]) and an offline replay.

pub mod cache;
pub mod config;
pub mod engine;
pub mod error;
pub mod fault;
pub mod fleet;
pub mod hash;
pub mod reply;
pub mod scheduler;
pub mod sequence;
#[cfg(feature = "serve")]
pub mod serve;
pub mod stats;
pub mod timing;
pub mod token;
pub mod transfer;
pub mod workload;

pub use cache::CacheEvent;
pub use config::{EngineConfig, SimConfig};
pub use engine::{Emission, Engine};
pub use error::Error;
pub use fault::{Effect, Fault};
pub use sequence::{Finish, Request, SeqId};
#[cfg(feature = "serve")]
pub use serve::Server;
pub use transfer::Transfer;
