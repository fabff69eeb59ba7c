//! The events of one rank in figures.

use nebula_route::RankId;
use nebula_route::tree::Applied;

use super::decode::Encoding;
use super::sequence::Counts;

/// What came from one rank, and what became of it. Counts are since the rank is followed.
#[derive(Clone, Debug, PartialEq)]
pub struct RankEvents {
    /// The rank in the index.
    pub rank: RankId,
    /// The rank within its engine.
    pub rank_index: u32,
    /// The engine's name.
    pub engine: String,
    /// The subscription is up; of an engine that dials in, whether it ever sent anything.
    pub connected: bool,
    /// A replay is being answered.
    pub replaying: bool,
    /// Number of the last batch that was applied.
    pub last_seq: Option<u64>,
    /// How old the last batch was when it came, by the clocks of engine and gateway.
    pub lag_ms: Option<u64>,
    /// Time since a batch last came.
    pub age_ms: Option<u64>,
    /// Batches that wait for some before them, and their bytes.
    pub held: (usize, usize),
    /// Restarts, gaps and what was done about them.
    pub order: Counts,
    /// Batches that were applied.
    pub batches: u64,
    /// Batches and events that cannot be read.
    pub decode_errors: u64,
    /// Events that mean nothing for the index: of other groups, kinds, media or block sizes, of adapters without a name,
    /// or with lengths that do not agree.
    pub skipped: u64,
    /// What the index did, in blocks.
    pub applied: Applied,
    /// Tokens in a block, as the rank publishes them.
    pub block_size: Option<u32>,
    /// How the rank writes its events.
    pub encoding: Option<Encoding>,
}

/// What one rank's batches came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) batches: u64,
    pub(super) decode_errors: u64,
    pub(super) skipped: u64,
    pub(super) applied: Applied,
    pub(super) encoding: Option<Encoding>,
}
