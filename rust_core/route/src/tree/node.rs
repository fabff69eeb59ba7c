//! A node: an edge of blocks, and who holds how much of it.

use smallvec::SmallVec;

use super::lower::{Lower, Lowers};
use super::names::Pool;
use crate::Millis;
use crate::event::Tier;

/// The slot of a node in the arena.
pub(super) type NodeId = u32;

/// No node, no fork.
pub(super) const NONE: u32 = u32::MAX;

/// What the allocator keeps beside each block of memory.
pub(super) const ALLOCATION: usize = 16;

/// What one rank holds of one edge in GPU memory: two claims, each over leading blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) rank: u32,
    /// Leading blocks that events named.
    pub(super) exact: u32,
    /// Leading blocks of routed prompts; they count while `until` is ahead.
    pub(super) routed: u32,
    pub(super) until: Millis,
}

/// A run of blocks that was, so far, always followed as a whole.
#[derive(Debug)]
pub(super) struct Node {
    /// Chain hashes; never empty in a live node.
    pub(super) edge: Vec<u64>,
    /// Sorted by rank; each holds at least one block, none more than the edge.
    pub(super) holders: SmallVec<[Holder; 1]>,
    /// The same below the GPU, apart: who looks for what GPUs hold does not come by.
    pub(super) lowers: Lowers,
    /// No routed claim here outlasts this.
    pub(super) until: Millis,
    /// Who holds it, as one number; the same set has the same number.
    pub(super) marks: u64,
    /// Every holder holds the whole edge before this time; 0 where one does not.
    pub(super) whole_until: Millis,
    /// Blocks before this edge.
    pub(super) start: u32,
    /// The fork this node hangs from.
    pub(super) parent: u32,
    /// The fork its children hang from. A split hands it to the tail, so no child needs a new parent.
    pub(super) fork: u32,
    /// The continuation that the latest split cut off. It leads from the node in which a block was stored to the one
    /// that has it now, so no engine's name needs a new place.
    pub(super) tail: NodeId,
    pub(super) children: u32,
    /// The next node in the same bucket; in a free slot, the next free one.
    pub(super) next: NodeId,
    /// Neighbours in the order of use, where a routed claim is held.
    pub(super) older: NodeId,
    pub(super) newer: NodeId,
}

/// How many leading blocks two chains share.
///
/// A chain hash stands for all blocks before it, so equal ends mean equal runs and a difference stays a difference.
///
/// # Cost
/// O(1) where the shorter chain is shared whole, else O(log blocks).
pub(super) fn common(edge: &[u64], chain: &[u64]) -> usize {
    let len = edge.len().min(chain.len());
    if len == 0 || edge[len - 1] == chain[len - 1] {
        return len;
    }
    let (mut shared, mut differs) = (0, len - 1);
    while shared < differs {
        let middle = usize::midpoint(shared, differs);
        if edge[middle] == chain[middle] {
            shared = middle + 1;
        } else {
            differs = middle;
        }
    }
    shared
}

/// A rank's share of [`Node::marks`]: the finaliser of `MurmurHash3`, so that sums of few ranks do not meet.
pub(super) fn mark(rank: u32) -> u64 {
    let mut mark = u64::from(rank) + 1;
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        mark = (mark ^ (mark >> 33)).wrapping_mul(factor);
    }
    mark ^ (mark >> 33)
}

// === impl Holder ===

impl Holder {
    /// Leading blocks held at `now`.
    pub(super) fn held(&self, now: Millis) -> u32 {
        self.exact.max(self.routed_at(now))
    }

    /// Leading blocks of routed prompts whose time is not up at `now`.
    pub(super) fn routed_at(&self, now: Millis) -> u32 {
        if self.until > now { self.routed } else { 0 }
    }

    /// Leading blocks that this entry claims, its time up or not.
    pub(super) fn span(&self) -> u32 {
        self.exact.max(self.routed)
    }

    /// Gives up every block from the `keep`th on.
    pub(super) fn cut(&mut self, keep: u32) {
        self.exact = self.exact.min(keep);
        self.routed = self.routed.min(keep);
    }

    /// What is left of the claims behind the `at`th block, for the tail of a split.
    fn behind(&self, at: u32) -> Option<Holder> {
        let exact = self.exact.saturating_sub(at);
        let routed = self.routed.saturating_sub(at);
        (exact.max(routed) > 0).then_some(Holder { exact, routed, ..*self })
    }
}

// === impl Node ===

impl Node {
    pub(super) fn new(edge: Vec<u64>, start: u32) -> Node {
        Node {
            edge,
            holders: SmallVec::new(),
            lowers: Lowers::default(),
            until: 0,
            marks: 0,
            whole_until: 0,
            start,
            parent: NONE,
            fork: NONE,
            tail: NONE,
            children: 0,
            next: NONE,
            older: NONE,
            newer: NONE,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a chain's length fits: it is cut from at most u32::MAX tokens"
    )]
    pub(super) fn len(&self) -> u32 {
        self.edge.len() as u32
    }

    /// Blocks up to and with this edge.
    pub(super) fn end(&self) -> u32 {
        self.start + self.len()
    }

    pub(super) fn holder(&self, rank: u32) -> Option<&Holder> {
        let at = self.holders.binary_search_by_key(&rank, |holder| holder.rank).ok()?;
        self.holders.get(at)
    }

    /// The rank's entry, made where it is missing.
    pub(super) fn holder_mut(&mut self, rank: u32) -> &mut Holder {
        let at = match self.holders.binary_search_by_key(&rank, |holder| holder.rank) {
            Ok(at) => at,
            Err(at) => {
                self.holders.insert(at, Holder { rank, exact: 0, routed: 0, until: 0 });
                at
            }
        };
        &mut self.holders[at]
    }

    /// Leading blocks in a pool, by the engine's word.
    pub(super) fn exact(&self, pool: Pool) -> u32 {
        match pool.tier {
            Tier::Gpu => self.holder(pool.rank).map_or(0, |holder| holder.exact),
            Tier::Cpu => self.lowers.of(pool.rank).cpu,
            Tier::Storage => self.lowers.of(pool.rank).storage,
        }
    }

    pub(super) fn set_exact(&mut self, pool: Pool, exact: u32) {
        let lower = self.lowers.of(pool.rank);
        match pool.tier {
            Tier::Gpu => self.holder_mut(pool.rank).exact = exact,
            Tier::Cpu => self.lowers.set(Lower { cpu: exact, ..lower }),
            Tier::Storage => self.lowers.set(Lower { storage: exact, ..lower }),
        }
    }

    /// Drops the routed claims whose time is up; tells each rank that had one, and its blocks.
    pub(super) fn lapse(&mut self, now: Millis, mut lapsed: impl FnMut(u32, u32)) {
        self.holders.retain(|holder| {
            if holder.routed > 0 && holder.until <= now {
                lapsed(holder.rank, holder.routed);
                holder.routed = 0;
            }
            holder.span() > 0
        });
    }

    pub(super) fn has_routed(&self) -> bool {
        self.holders.iter().any(|holder| holder.routed > 0)
    }

    /// The most blocks that any rank claims, in whichever tier.
    pub(super) fn reach(&self) -> u32 {
        self.holders.iter().map(Holder::span).max().unwrap_or(0).max(self.lowers.reach())
    }

    /// (block, rank) pairs claimed in GPU memory.
    pub(super) fn pairs(&self) -> u64 {
        self.holders.iter().map(|holder| u64::from(holder.span())).sum()
    }

    /// Appends to the edge. Room grows by a quarter: an engine that decodes adds one block at a time.
    pub(super) fn extend(&mut self, blocks: &[u64]) {
        if self.edge.capacity() - self.edge.len() < blocks.len() {
            self.edge.reserve_exact(blocks.len().max(self.edge.len() / 4));
        }
        self.edge.extend_from_slice(blocks);
    }

    /// Keeps the first `at` blocks and gives the rest, with what is claimed of them, as a node that is not linked yet.
    pub(super) fn split_off(&mut self, at: u32) -> Node {
        let edge = self.edge.split_off(at as usize);
        let mut tail = Node::new(edge, self.start + at);
        tail.holders = self.holders.iter().filter_map(|holder| holder.behind(at)).collect();
        tail.lowers = self.lowers.split_off(at);
        tail.until = self.until;
        tail.take_stock();
        for holder in &mut self.holders {
            holder.cut(at);
        }
        tail
    }

    /// Finds out what a look-up wants to know of all holders at once.
    pub(super) fn take_stock(&mut self) {
        let len = self.len();
        let until = |holder: &Holder| match holder {
            _ if holder.exact == len => Millis::MAX,
            _ if holder.routed == len => holder.until,
            _ => 0,
        };
        self.whole_until = self.holders.iter().map(until).min().unwrap_or(0);
        self.marks = self.holders.iter().fold(0, |sum, holder| sum.wrapping_add(mark(holder.rank)));
    }

    /// Returns memory that fewer blocks or holders no longer need.
    pub(super) fn tidy(&mut self) {
        if self.edge.capacity() > 2 * self.edge.len() {
            self.edge.shrink_to_fit();
        }
        if self.holders.spilled() && self.holders.capacity() > 4 * self.holders.len() {
            self.holders.shrink_to_fit();
        }
    }

    /// Bytes allocated behind the node.
    pub(super) fn heap(&self) -> u64 {
        let mut bytes = self.edge.capacity() * size_of::<u64>() + ALLOCATION;
        if self.holders.spilled() {
            bytes += self.holders.capacity() * size_of::<Holder>() + ALLOCATION;
        }
        bytes as u64 + self.lowers.heap()
    }
}
