//! What an engine says about its KV cache, in the words of the tree.

use serde::{Deserialize, Serialize};

/// Where an engine holds a block. The nearer to the GPU, the sooner it is of use; ordered so, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The KV cache itself.
    Gpu,
    /// The host's memory.
    Cpu,
    /// Whatever is behind that: a disk, a store on the network.
    Storage,
}

/// One change of one tier of one rank's KV cache.
///
/// The engine's own hashes are opaque: they only name blocks, in removals and as parents. What a block holds is told by
/// `seed` and `locals`, hashed as [`crate::block`] hashes a prompt, so the engine's hash algorithm never matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Consecutive blocks of one chain are in the cache from now on. Or, where `locals` is empty, blocks that moved and
    /// are told by name alone: those that the rank calls so in its other tiers are in this one too.
    Stored {
        /// The engine's names of the blocks, in order; of blocks that moved, in any order.
        engine_hashes: Vec<u64>,
        /// The engine's name of the block before the first one; `None` where the first one opens a prompt. Not read
        /// where blocks moved.
        parent: Option<u64>,
        /// [`crate::block::Scope::seed`] of the chain; read only where `parent` is `None`.
        seed: u64,
        /// [`crate::block::local`] of each block, in order; empty where blocks moved. Else, where the two lists differ
        /// in length, the shorter one counts.
        locals: Vec<u64>,
    },
    /// Blocks left the cache.
    Removed {
        /// The engine's names of the blocks, in any order; unknown ones are counted and passed over.
        engine_hashes: Vec<u64>,
    },
    /// The rank holds nothing any more, in no tier.
    Cleared,
}

impl Tier {
    /// Every tier, the best first.
    pub const ALL: [Tier; 3] = [Tier::Gpu, Tier::Cpu, Tier::Storage];
}

impl Event {
    /// How many blocks it names.
    #[must_use]
    pub fn blocks(&self) -> usize {
        match self {
            Event::Stored { engine_hashes, locals, .. } if !locals.is_empty() => {
                engine_hashes.len().min(locals.len())
            }
            Event::Stored { engine_hashes, .. } | Event::Removed { engine_hashes } => {
                engine_hashes.len()
            }
            Event::Cleared => 0,
        }
    }
}
