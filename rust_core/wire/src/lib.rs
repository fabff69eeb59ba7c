//! MOVES requests and replies between the gateway and the engines; decides nothing.
//!
//! ```text
//! dispatch   one exchange from request to last byte, readable top to bottom
//! endpoint   the paths that reach an engine
//! prompt     request body -> model, key, session, and the bytes to send on
//! models     the models whose prompts become tokens here
//! assets     a model's directory: tokenizer, chat templates, special tokens
//! template   a chat request -> the text that the engine's tokenizer sees
//! tokenize   text -> the ids that the engine sees
//! remote     tokens that engines tell
//! upstream   pooled connections to the engines
//! reply      what is ready, handed over one wake-up at a time
//! usage      the tokens that an engine reports: asked for, taken out of the reply again, read
//! health     probes and facts of every engine
//! conform    whether an engine makes of a prompt what is made of it here
//! kv_events  what engines say of their KV caches: order, gaps, restarts
//! follow     whose events are followed, and how far their word is trusted
//! check      what was predicted against what was reported
//! record     what a request leaves behind: one log line, metrics, the engine's health
//! decisions  the latest decisions and what became of them
//! explain    a decision shown and not taken
//! workers    every engine with all that is known of it
//! log        lines on their way to standard error
//! metrics    the Prometheus registry
//! context    what every exchange works with
//! tasks      the runtime thread and the owner of every spawned task
//! ```

pub mod assets;
mod check;
pub mod config;
mod conform;
mod context;
mod decisions;
pub mod dispatch;
pub mod endpoint;
pub mod error;
mod explain;
mod follow;
mod health;
pub mod kv_events;
pub mod log;
mod metrics;
mod models;
mod net;
pub mod prompt;
mod record;
mod remote;
pub mod reply;
mod tasks;
pub mod template;
pub mod tokenize;
mod upstream;
pub mod usage;
mod wire;
mod workers;

pub use config::Config;
pub use context::Aliases;
pub use dispatch::Request;
pub use error::{Error, Kind, Retry, Side};
pub use reply::{Exchange, Head, Part};
pub use wire::{FleetSpec, Wire};
