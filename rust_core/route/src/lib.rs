//! DECIDES which engine answers a request. No I/O, no clock, no async: time and settings are passed in, so every
//! decision can be tested, model-checked and simulated.
//!
//! ```text
//! block    a prompt as a chain of block hashes
//! tree     which rank holds which blocks
//! event    what engines say of their blocks
//! fleet    engines, ranks and models: one snapshot
//! health   whether an engine takes traffic
//! load     what is booked on each rank; the guard that returns it
//! cost     overlap and load -> price
//! pick     prices -> choice
//! policy   the named ways to choose
//! router   all of it, for one request
//! ```

pub mod block;
mod config;
pub mod cost;
mod error;
pub mod event;
mod fleet;
pub mod health;
pub mod load;
pub mod pick;
mod policy;
mod router;
mod sync;
pub mod tree;

pub use block::{Chain, KeyKind, Scope};
pub use config::Config;
pub use cost::Terms;
pub use error::Error;
pub use event::{Event, Tier};
pub use fleet::{Engine, EngineId, EngineSpec, EngineView, Facts, ModelFact};
pub use health::{Outcome, Probe, Status};
pub use load::{Guard, Ledger, Load};
pub use policy::{POLICIES, Policy};
pub use router::{Choice, Query, Router};
pub use sync::Swap;
pub use tree::{Overlap, SharedTree, Tree, TreeStats};

/// Milliseconds of a monotonic clock that the caller keeps.
pub type Millis = u64;

/// One data-parallel rank of one engine, in the index and in the ledger. Never used again for another rank.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RankId(pub u32);
