//! The routed claims: what was sent to a rank, until its time is up or the memory is needed.

use super::Tree;
use super::grow::{At, Run};
use super::node::{Holder, NONE, NodeId};
use crate::{Millis, RankId};

impl Tree {
    /// Notes that `rank` is about to hold all of `chain`, until `until`. What was noted before is refreshed, and
    /// becomes the last to be evicted. A time that is already up changes nothing.
    ///
    /// Where the rank has a limit, its routed claims stay within it: of a longer chain the leading blocks count, and
    /// what the rank used least recently makes room.
    ///
    /// # Cost
    /// O(nodes passed + their holders + blocks that are new), and the evictions that make room.
    pub fn note_route(&mut self, rank: RankId, chain: &[u64], until: Millis) {
        if until <= self.now {
            return;
        }
        let chain = match self.limits.of(rank.0).map(usize::try_from) {
            Some(Ok(limit)) => &chain[..chain.len().min(limit)],
            _ => chain,
        };
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
            self.limits.touch(rank.0, node);
        }
        self.path = path;
        self.recede(rank.0);
        self.evict();
    }

    /// Lets routed claims give `rank` at most so many blocks from now on, as many as its KV cache has; `None` lifts the
    /// limit. What it used least recently goes first, from the end, as an engine evicts; exact claims neither count nor
    /// go. A routed claim whose time is up counts until its memory returns.
    ///
    /// The limit outlasts what the rank holds: [`Tree::remove_rank`] and `Cleared` leave it. What was routed before the
    /// first limit goes in the order in which any rank used it.
    ///
    /// # Cost
    /// O(nodes with routed claims) for a rank without a limit so far, else O(nodes that the rank gives up + their
    /// holders).
    pub fn limit(&mut self, rank: RankId, blocks: Option<u64>) {
        let Some(blocks) = blocks else {
            return self.limits.lift(rank.0);
        };
        if self.limits.set(rank.0, blocks) {
            let mut at = self.order.oldest();
            while let Some(id) = at {
                let node = &self.arena[id];
                let routed = node.holder(rank.0).map_or(0, |holder| holder.routed);
                if routed > 0 {
                    self.limits.change(rank.0, id, 0, routed);
                    self.limits.touch(rank.0, id);
                }
                at = Some(node.newer).filter(|newer| *newer != NONE);
            }
        }
        self.recede(rank.0);
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

    /// Drops routed claims of one rank, least recently used first, until they are within its limit, if it has one.
    ///
    /// # Cost
    /// O(nodes given up + their holders).
    fn recede(&mut self, rank: u32) {
        while let Some((id, excess)) = self.limits.excess(rank) {
            let routed = self.arena[id].holder(rank).map_or(0, |holder| holder.routed);
            let keep = u32::try_from(excess).map_or(0, |excess| routed.saturating_sub(excess));
            self.arena.edit(id, |node| {
                node.holder_mut(rank).routed = keep;
                node.holders.retain(|holder| holder.span() > 0);
            });
            self.limits.change(rank, id, routed, keep);
            self.loosen(id);
        }
    }

    /// A claim to the blocks of an edge up to the end of `run`; the path to them is claimed already.
    fn claim(&mut self, run: Run, rank: u32, until: Millis) {
        let node = &self.arena[run.node];
        // Behind the end of a chain another note may reach further. It keeps its own time, and its turn to go.
        let further = |held: &Holder| {
            let apart = held.until != until || self.limits.of(rank).is_some();
            held.routed_at(self.now) > run.to && apart
        };
        if run.to < node.len() && node.holder(rank).is_some_and(further) {
            self.split(run.node, run.to);
        }
        let (now, limits) = (self.now, &mut self.limits);
        self.arena.edit(run.node, |node| {
            node.lapse(now, |rank, routed| limits.change(rank, run.node, routed, 0));
            node.until = node.until.max(until);
            let holder = node.holder_mut(rank);
            let routed = holder.routed.max(run.to);
            limits.change(rank, run.node, holder.routed, routed);
            (holder.routed, holder.until) = (routed, until);
        });
        self.trim(run.node);
    }

    /// Drops all routed claims to a node; gives the (block, rank) pairs that nobody holds any more.
    fn unroute(&mut self, id: NodeId) -> u64 {
        let (before, limits) = (self.arena.pairs(), &mut self.limits);
        self.arena.edit(id, |node| {
            node.lapse(Millis::MAX, |rank, routed| limits.change(rank, id, routed, 0));
            node.until = 0;
        });
        let dropped = before - self.arena.pairs();
        self.loosen(id);
        dropped
    }
}
