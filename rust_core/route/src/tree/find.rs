//! The read side: one pass down a chain.

use smallvec::SmallVec;

use super::Tree;
use super::node::{Holder, NONE, Node, common, mark};
use crate::RankId;

/// The ranks that hold every block so far.
struct Abreast {
    /// Sorted.
    ranks: SmallVec<[u32; 64]>,
    /// As [`Node::marks`].
    marks: u64,
}

impl Tree {
    /// Puts into `out` every rank that holds the first block of `chain`, once, with the number of leading blocks it
    /// holds without a gap. In no particular order; what was in `out` before is gone.
    ///
    /// # Cost
    /// O(nodes passed + their holders); O(log) in the blocks of an edge. No allocation up to 64 ranks but `out`'s own.
    pub fn matches(&self, chain: &[u64], out: &mut Vec<(RankId, u32)>) {
        self.matches_as(chain, out, |blocks| blocks);
    }

    /// As [`Tree::matches`], with another word for so many blocks.
    #[inline]
    pub(super) fn matches_as<T>(
        &self,
        chain: &[u64],
        out: &mut Vec<(RankId, T)>,
        word: impl Fn(u32) -> T,
    ) {
        out.clear();
        let mut abreast = Abreast { ranks: SmallVec::new(), marks: 0 };
        let (mut fork, mut depth) = (NONE, 0);
        let mut rest = chain;
        while let Some(id) = rest.first().and_then(|first| self.arena.child(fork, *first)) {
            let node = &self.arena[id];
            let shared = common(&node.edge, rest);
            if depth == 0 {
                abreast.ranks.extend(node.holders.iter().map(|holder| holder.rank));
                abreast.marks = node.marks;
            }
            self.advance(node, shared, &mut abreast, |rank, blocks| out.push((rank, word(blocks))));
            if abreast.ranks.is_empty() {
                return;
            }
            depth = node.end();
            fork = node.fork;
            rest = &rest[shared..];
        }
        out.extend(abreast.ranks.iter().map(|rank| (RankId(*rank), word(depth))));
    }

    /// Keeps abreast who holds the whole node, and tells who does not, with the blocks it holds.
    ///
    /// # Cost
    /// O(1) where everybody abreast holds it and nobody else does; else one walk over both sorted lists.
    fn advance(
        &self,
        node: &Node,
        shared: usize,
        abreast: &mut Abreast,
        mut left: impl FnMut(RankId, u32),
    ) {
        let whole = shared == node.edge.len();
        if whole && abreast.marks == node.marks && self.now < node.whole_until {
            return;
        }
        let holds_it = |holder: &Holder| whole && holder.held(self.now) as usize == shared;
        let mut holders = &node.holders[..];
        let mut going_on = 0;
        abreast.marks = 0;
        for at in 0..abreast.ranks.len() {
            let rank = abreast.ranks[at];
            while let [first, others @ ..] = holders
                && first.rank < rank
            {
                holders = others;
            }
            let holder = holders.first().filter(|holder| holder.rank == rank);
            if holder.is_some_and(holds_it) {
                abreast.ranks[going_on] = rank;
                abreast.marks = abreast.marks.wrapping_add(mark(rank));
                going_on += 1;
                continue;
            }
            let blocks =
                node.start + holder.map_or(0, |holder| at_most(holder.held(self.now), shared));
            if blocks > 0 {
                left(RankId(rank), blocks);
            }
        }
        abreast.ranks.truncate(going_on);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "not above `held`")]
pub(super) fn at_most(held: u32, shared: usize) -> u32 {
    (held as usize).min(shared) as u32
}
