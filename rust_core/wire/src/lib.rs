//! MOVES requests and replies between the gateway and the engines; decides nothing.
//!
//! ```text
//! dispatch   one exchange from request to last byte, readable top to bottom
//! endpoint   the paths that reach an engine
//! prompt     request body -> model, key, session, and the bytes to send on
//! template   a chat request -> the text that the engine's tokenizer sees
//! upstream   pooled connections to the engines
//! reply      what is ready, handed over one wake-up at a time
//! health     probes and facts of every engine
//! record     what a request leaves behind: one log line, metrics, the engine's health
//! log        lines on their way to standard error
//! metrics    the Prometheus registry
//! tasks      the runtime thread and the owner of every spawned task
//! ```

pub mod config;
pub mod dispatch;
pub mod endpoint;
pub mod error;
mod health;
pub mod log;
mod metrics;
mod net;
pub mod prompt;
mod record;
pub mod reply;
mod tasks;
pub mod template;
mod upstream;
mod wire;

pub use config::Config;
pub use dispatch::Request;
pub use error::{Error, Kind, Retry, Side};
pub use reply::{Exchange, Head, Part};
pub use wire::Wire;
