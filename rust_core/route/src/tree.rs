//! The index: which rank holds which blocks.
//!
//! A radix tree with compressed edges. A node is a run of blocks that was so far always followed as a whole, with the
//! ranks that hold it and how many of its leading blocks each one holds; what differs in the middle splits it. One tree
//! serves all models, whose chains differ from the first hash on.
//!
//! Two kinds of claim, kept apart per rank and node: *exact* ones follow the engine's events, *routed* ones are what
//! was sent to a rank and count until their time is up. A block is held while either stands. Only routed claims are
//! evicted, least recently used first; where the exact ones alone fill the bound, further events are refused and
//! counted. A rank may have a limit of routed blocks of its own.
//!
//! Below the GPU an engine may hold blocks in more *tiers*. Those claims are exact, and kept beside the others in the
//! same nodes: who asks only for what GPUs hold never sees them. A block that moves to another tier may be told by name
//! alone; what it holds is looked up where it comes from.
//!
//! ```text
//! node    an edge and its holders          find     chain -> ranks and blocks (reads)
//! lower   its holders below the GPU        overlap  the same in all tiers
//! arena   slots, pages, children           grow     along a chain; split; die
//! order   nodes by last use                note     routed claims: note, limit, expire, evict
//! limits  one rank's nodes by last use     apply    exact claims: stored, moved, removed, cleared
//! names   an engine's name -> its block
//! ```

mod apply;
mod arena;
mod audit;
mod find;
mod grow;
mod limits;
mod lower;
mod names;
mod node;
mod note;
mod order;
mod overlap;
mod shared;

use hashbrown::HashMap;
use std::hash::BuildHasherDefault;
use std::ops::AddAssign;

use self::arena::Arena;
pub use self::overlap::Overlap;
pub use self::shared::SharedTree;

use self::limits::Limits;
use self::names::{Folded, Names, Place, Pool};
use self::node::{Node, NodeId};
use self::order::Order;
use crate::event::Tier;
use crate::{Millis, RankId};

/// Which rank holds how many leading blocks of a chain.
///
/// No lock inside; [`SharedTree`] is for many threads.
#[derive(Debug)]
pub struct Tree {
    arena: Arena,
    order: Order,
    limits: Limits,
    /// What each rank calls the blocks it holds exactly, tier by tier.
    names: HashMap<Pool, Names, BuildHasherDefault<Folded>>,
    names_bytes: u64,
    /// The latest time that [`Tree::expire`] was told.
    now: Millis,
    max_bytes: u64,
    evicted: u64,
    orphans: u64,
    /// Empty between calls; kept for its memory.
    path: Vec<NodeId>,
    chain: Vec<u64>,
    places: Vec<Place>,
}

/// What became of one event, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Blocks that the rank was not known to hold exactly in this tier.
    pub stored: u64,
    /// Blocks that are not held any more in this tier; `Cleared` counts all tiers.
    pub removed: u64,
    /// Removals under names that are not known.
    pub unknown_removed: u64,
    /// Blocks whose parent is not known, or their own name where that is all that is told; they are never indexed.
    pub orphans: u64,
    /// Blocks that are not indexed because the exact claims alone fill the bound.
    pub refused: u64,
}

/// The size of a tree, and what it counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// (block, rank) pairs held in GPU memory. Routed ones whose time is up count until their memory returns.
    pub blocks: u64,
    /// (block, rank) pairs held below it; one that is held in two tiers counts twice.
    pub offloaded: u64,
    /// Nodes.
    pub nodes: u64,
    /// Bytes of memory, with the room that tables keep free.
    pub bytes: u64,
    /// (block, rank) pairs evicted to stay within the bound in bytes.
    pub evicted: u64,
    /// Blocks of events that could not be placed, as [`Applied::orphans`].
    pub orphans: u64,
}

impl AddAssign for Applied {
    fn add_assign(&mut self, other: Applied) {
        self.stored += other.stored;
        self.removed += other.removed;
        self.unknown_removed += other.unknown_removed;
        self.orphans += other.orphans;
        self.refused += other.refused;
    }
}

impl Tree {
    /// An empty tree that drops routed claims to stay within `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: u64) -> Tree {
        Tree {
            arena: Arena::new(),
            order: Order::new(),
            limits: Limits::default(),
            names: HashMap::default(),
            names_bytes: 0,
            now: 0,
            max_bytes,
            evicted: 0,
            orphans: 0,
            path: Vec::new(),
            chain: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Forgets all that `rank` holds in any tier, exact and routed.
    ///
    /// # Cost
    /// O(all nodes): for a rank that left or lost its cache, not for single blocks.
    pub fn remove_rank(&mut self, rank: RankId) {
        self.remove_ranks(&[rank]);
    }

    /// The same of several ranks, in one pass.
    ///
    /// # Cost
    /// O(all nodes), however many ranks: fleets change many at once.
    pub fn remove_ranks(&mut self, ranks: &[RankId]) {
        for RankId(rank) in ranks {
            for pool in Pool::all(*rank) {
                if let Some(names) = self.names.remove(&pool) {
                    self.names_bytes -= names.bytes();
                }
            }
            self.limits.clear(*rank);
        }
        let holds = |node: &Node, RankId(rank): &RankId| {
            node.holder(*rank).is_some() || node.lowers.of(*rank).span() > 0
        };
        for id in 0..self.arena.slots() {
            if self.arena.node(id).is_some_and(|node| ranks.iter().any(|rank| holds(node, rank))) {
                self.arena.edit(id, |node| {
                    node.holders.retain(|holder| !ranks.contains(&RankId(holder.rank)));
                    for RankId(rank) in ranks {
                        node.lowers.forget(*rank);
                    }
                });
                self.loosen(id);
            }
        }
    }

    /// Blocks that the rank holds exactly, in whatever tier.
    #[must_use]
    pub fn named(&self, rank: RankId) -> u64 {
        let of = |tier| self.names.get(&Pool { rank: rank.0, tier });
        Tier::ALL.into_iter().filter_map(of).map(|names| names.len() as u64).sum()
    }

    /// Size and counts.
    ///
    /// # Cost
    /// O(1).
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        TreeStats {
            blocks: self.arena.pairs(),
            offloaded: self.arena.lower_pairs(),
            nodes: self.arena.live() as u64,
            bytes: self.bytes(),
            evicted: self.evicted,
            orphans: self.orphans,
        }
    }

    fn bytes(&self) -> u64 {
        self.arena.bytes() + self.names_bytes + self.limits.bytes()
    }
}

#[cfg(test)]
mod tests;
