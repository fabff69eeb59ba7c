//! The routed claims: what was sent to a rank, until its time is up or the memory is needed.

use super::Tree;
use super::grow::{At, Run};
use super::node::{Holder, NodeId};
use crate::{Millis, RankId};

impl Tree {
    /// Notes that `rank` is about to hold all of `chain`, until `until`. What was noted before is refreshed, and
    /// becomes the last to be evicted. A time that is already up changes nothing.
    ///
    /// # Cost
    /// O(nodes passed + their holders + blocks that are new), and the evictions that make room.
    pub fn note_route(&mut self, rank: RankId, chain: &[u64], until: Millis) {
        if until <= self.now {
            return;
        }
        let mut path = std::mem::take(&mut self.path);
        let (mut at, mut rest) = (At::ROOT, chain);
        while !rest.is_empty() {
            let run = self.reach(at, rest);
            rest = &rest[run.len() as usize..];
            self.claim(run, rank.0, until);
            at = run.end();
            path.push(run.node);
        }
        for node in path.drain(..).rev() {
            self.order.touch(&mut self.arena, node);
        }
        self.path = path;
        self.evict();
    }

    /// Tells the time, and drops the routed claims whose time is up.
    ///
    /// They stop to count at once. Their memory returns at once too where a node has no later claim, else with the next
    /// route through it.
    ///
    /// # Cost
    /// O(nodes dropped + their holders).
    pub fn expire(&mut self, now: Millis) {
        self.expire_some(now, usize::MAX);
    }

    /// As [`Tree::expire`], for at most `nodes` of them; true if there are more.
    pub(super) fn expire_some(&mut self, now: Millis, nodes: usize) -> bool {
        self.now = self.now.max(now);
        for _ in 0..nodes {
            let oldest = self.order.oldest();
            let Some(id) = oldest.filter(|id| self.arena[*id].until <= self.now) else {
                return false;
            };
            self.unroute(id);
        }
        true
    }

    /// Drops routed claims, least recently used first, until the tree is within its bound or has no more of them.
    pub(super) fn evict(&mut self) {
        while self.bytes() > self.max_bytes
            && let Some(id) = self.order.oldest()
        {
            self.evicted += self.unroute(id);
        }
    }

    /// A claim to the blocks of an edge up to the end of `run`; the path to them is claimed already.
    fn claim(&mut self, run: Run, rank: u32, until: Millis) {
        let node = &self.arena[run.node];
        // Behind the end of a chain another note may reach further. It keeps its own time.
        let further = |held: &Holder| held.routed_at(self.now) > run.to && held.until != until;
        if run.to < node.len() && node.holder(rank).is_some_and(further) {
            self.split(run.node, run.to);
        }
        let now = self.now;
        self.arena.edit(run.node, |node| {
            node.lapse(now);
            node.until = node.until.max(until);
            let holder = node.holder_mut(rank);
            holder.routed = holder.routed.max(run.to);
            holder.until = until;
        });
        self.trim(run.node);
    }

    /// Drops all routed claims to a node; gives the (block, rank) pairs that nobody holds any more.
    fn unroute(&mut self, id: NodeId) -> u64 {
        let before = self.arena.pairs();
        self.arena.edit(id, |node| {
            node.lapse(Millis::MAX);
            node.until = 0;
        });
        let dropped = before - self.arena.pairs();
        self.loosen(id);
        dropped
    }
}
