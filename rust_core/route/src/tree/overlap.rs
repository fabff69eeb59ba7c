//! The read side where engines offload: one pass down a chain, through all tiers.

use smallvec::SmallVec;

use super::Tree;
use super::find::at_most;
use super::lower::Lower;
use super::node::{Holder, NONE, Node, common, mark};
use crate::RankId;

/// The leading blocks of a chain that a rank holds without a gap in any tier. Each counts once, for the best tier that
/// has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Blocks in GPU memory.
    pub gpu: u32,
    /// Blocks in the host's memory and not in the GPU's.
    pub cpu: u32,
    /// Blocks in storage alone.
    pub storage: u32,
}

/// The ranks that hold every block so far, in any tier.
struct Abreast {
    /// Sorted by rank; each with the blocks that its GPU does not hold.
    ranks: SmallVec<[Lower; 32]>,
    /// As [`Node::marks`].
    marks: u64,
}

// === impl Overlap ===

impl Overlap {
    /// Blocks in all tiers together.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.gpu + self.cpu + self.storage
    }

    /// So many blocks, with those that are not on the GPU.
    fn new(total: u32, lower: Lower) -> Overlap {
        let Lower { cpu, storage, .. } = lower;
        Overlap { gpu: total - cpu - storage, cpu, storage }
    }
}

// === impl Tree ===

impl Tree {
    /// Puts into `out` every rank that holds the first block of `chain` in any tier, once, with its overlap. In no
    /// particular order; what was in `out` before is gone.
    ///
    /// An engine that offloads reads a prompt so: from GPU memory as far as that goes, then the following blocks from
    /// the lower tiers.
    ///
    /// # Cost
    /// As [`Tree::matches`]; where anything is held below the GPUs, a walk over its holders as well. No allocation up
    /// to 32 ranks but `out`'s own.
    pub fn overlaps(&self, chain: &[u64], out: &mut Vec<(RankId, Overlap)>) {
        if self.arena.lower_pairs() == 0 {
            return self.matches_as(chain, out, |gpu| Overlap { gpu, ..Overlap::default() });
        }
        out.clear();
        let mut abreast = Abreast { ranks: SmallVec::new(), marks: 0 };
        let (mut fork, mut depth) = (NONE, 0);
        let mut rest = chain;
        while let Some(id) = rest.first().and_then(|first| self.arena.child(fork, *first)) {
            let node = &self.arena[id];
            let shared = common(&node.edge, rest);
            if depth == 0 {
                abreast = Abreast::at(node);
            }
            self.advance_all(node, shared, &mut abreast, out);
            if abreast.ranks.is_empty() {
                return;
            }
            depth = node.end();
            fork = node.fork;
            rest = &rest[shared..];
        }
        let all = abreast.ranks.iter();
        out.extend(all.map(|lower| (RankId(lower.rank), Overlap::new(depth, *lower))));
    }

    /// Keeps abreast who holds the whole node, some of it in this tier, some in that one.
    ///
    /// # Cost
    /// O(1) where everybody abreast holds it in GPU memory and nobody else does; else one walk over three sorted lists.
    fn advance_all(
        &self,
        node: &Node,
        shared: usize,
        abreast: &mut Abreast,
        out: &mut Vec<(RankId, Overlap)>,
    ) {
        let whole = shared == node.edge.len();
        if whole && abreast.marks == node.marks && self.now < node.whole_until {
            return;
        }
        let (mut holders, mut lowers) = (&node.holders[..], node.lowers.all());
        abreast.marks = 0;
        abreast.ranks.retain(|so_far| {
            let rank = so_far.rank;
            let holder = skip_to(&mut holders, rank, |holder: &Holder| holder.rank);
            let lower = skip_to(&mut lowers, rank, |lower: &Lower| lower.rank);
            // Each tier holds leading blocks, so what a better one has is the start of what a worse one has.
            let gpu = holder.map_or(0, |holder| at_most(holder.held(self.now), shared));
            let cpu = lower.map_or(0, |lower| at_most(lower.cpu, shared)).max(gpu);
            let all = lower.map_or(0, |lower| at_most(lower.storage, shared)).max(cpu);
            so_far.cpu += cpu - gpu;
            so_far.storage += all - cpu;
            if whole && all as usize == shared {
                abreast.marks = abreast.marks.wrapping_add(mark(rank));
                return true;
            }
            let blocks = node.start + all;
            if blocks > 0 {
                out.push((RankId(rank), Overlap::new(blocks, *so_far)));
            }
            false
        });
    }
}

// === impl Abreast ===

impl Abreast {
    /// Everybody who holds some of a first node.
    fn at(node: &Node) -> Abreast {
        let holders = node.holders.iter().map(|holder| holder.rank);
        let lowers = node.lowers.all().iter().map(|lower| lower.rank);
        let mut ranks: SmallVec<[Lower; 32]> =
            holders.chain(lowers).map(|rank| Lower { rank, ..Lower::default() }).collect();
        ranks.sort_unstable_by_key(|lower| lower.rank);
        ranks.dedup_by_key(|lower| lower.rank);
        let marks = ranks.iter().fold(0, |sum: u64, lower| sum.wrapping_add(mark(lower.rank)));
        Abreast { ranks, marks }
    }
}

/// The entry of a rank in a sorted list, which loses all before it.
fn skip_to<'a, T>(sorted: &mut &'a [T], rank: u32, of: impl Fn(&T) -> u32) -> Option<&'a T> {
    while let [first, others @ ..] = *sorted
        && of(first) < rank
    {
        *sorted = others;
    }
    sorted.first().filter(|first| of(first) == rank)
}

#[cfg(test)]
mod tests;
