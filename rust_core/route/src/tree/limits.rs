//! How many blocks routed claims may give a rank, and which of them it used least recently.
//!
//! Only for ranks with a limit: per rank a list like [`super::order`], through a table instead of the nodes, so that
//! others pay nothing for it. A route refreshes its whole path, leaf first, so no node is older than one below it.

use std::hash::BuildHasherDefault;

use hashbrown::HashMap;

use super::names::Folded;
use super::node::{Holder, NONE, NodeId};

/// The ranks that have a limit.
#[derive(Debug, Default)]
pub(super) struct Limits {
    ranks: HashMap<u32, Claims, BuildHasherDefault<Folded>>,
    /// Bytes of all their lists.
    lists: u64,
}

/// One rank's routed claims.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) limit: u64,
    /// Blocks claimed, their time up or not.
    pub(super) blocks: u64,
    /// The nodes where some are claimed.
    links: HashMap<NodeId, Link, BuildHasherDefault<Folded>>,
    oldest: NodeId,
    newest: NodeId,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    older: NodeId,
    newer: NodeId,
}

// === impl Limits ===

impl Limits {
    pub(super) fn of(&self, rank: u32) -> Option<u64> {
        self.ranks.get(&rank).map(|claims| claims.limit)
    }

    /// Gives a rank a limit; true if it had none, and its claims are not listed.
    pub(super) fn set(&mut self, rank: u32, limit: u64) -> bool {
        let before = self.ranks.len();
        self.ranks.entry(rank).or_default().limit = limit;
        self.ranks.len() > before
    }

    pub(super) fn lift(&mut self, rank: u32) {
        self.clear(rank);
        self.ranks.remove(&rank);
        if self.ranks.is_empty() {
            self.ranks = HashMap::default();
        }
    }

    /// A rank's claim to a node went from so many blocks to so many.
    pub(super) fn change(&mut self, rank: u32, id: NodeId, before: u32, after: u32) {
        self.edit(rank, |claims| {
            claims.blocks = claims.blocks + u64::from(after) - u64::from(before);
            if after == 0 {
                claims.unlist(id);
                claims.tidy();
            }
        });
    }

    /// Makes a node the one that its rank used last.
    ///
    /// # Cost
    /// O(1) expected.
    pub(super) fn touch(&mut self, rank: u32, id: NodeId) {
        self.edit(rank, |claims| claims.touch(id));
    }

    /// Lists the tail of a split just before its head, for each rank that claims some of it.
    pub(super) fn split(&mut self, head: NodeId, tail: NodeId, holders: &[Holder]) {
        if self.ranks.is_empty() {
            return;
        }
        for holder in holders.iter().filter(|holder| holder.routed > 0) {
            self.edit(holder.rank, |claims| claims.insert_before(tail, head));
        }
    }

    /// The node that a rank used least recently and the blocks that it claims above its limit, if any.
    pub(super) fn excess(&self, rank: u32) -> Option<(NodeId, u64)> {
        let claims = self.ranks.get(&rank)?;
        let excess = claims.blocks.saturating_sub(claims.limit);
        (excess > 0).then_some((claims.oldest, excess))
    }

    /// Forgets the claims of a rank, but not its limit.
    pub(super) fn clear(&mut self, rank: u32) {
        self.edit(rank, |claims| *claims = Claims { limit: claims.limit, ..Claims::default() });
    }

    pub(super) fn bytes(&self) -> u64 {
        self.ranks.allocation_size() as u64 + self.lists
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Claims)> {
        self.ranks.iter().map(|(rank, claims)| (*rank, claims))
    }

    fn edit(&mut self, rank: u32, change: impl FnOnce(&mut Claims)) {
        let Some(claims) = self.ranks.get_mut(&rank) else { return };
        let before = claims.bytes();
        change(claims);
        self.lists = self.lists + claims.bytes() - before;
    }
}

// === impl Claims ===

impl Default for Claims {
    fn default() -> Claims {
        Claims { limit: 0, blocks: 0, links: HashMap::default(), oldest: NONE, newest: NONE }
    }
}

impl Claims {
    /// The nodes, least recently used first.
    pub(super) fn iter(&self) -> impl Iterator<Item = NodeId> {
        let newer = |id: &NodeId| self.links.get(id).map(|link| link.newer);
        std::iter::successors(Some(self.oldest), newer).filter(|id| *id != NONE)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.links.allocation_size() as u64
    }

    fn touch(&mut self, id: NodeId) {
        if self.newest == id {
            return;
        }
        self.unlist(id);
        self.links.insert(id, Link { older: self.newest, newer: NONE });
        self.join(self.newest, id);
        self.newest = id;
    }

    fn insert_before(&mut self, id: NodeId, head: NodeId) {
        let Some(older) = self.links.get(&head).map(|link| link.older) else { return };
        self.links.insert(id, Link { older, newer: head });
        self.join(older, id);
        self.join(id, head);
    }

    fn unlist(&mut self, id: NodeId) {
        let Some(Link { older, newer }) = self.links.remove(&id) else { return };
        self.join(older, newer);
    }

    /// Makes two nodes neighbours; `NONE` is beyond either end.
    fn join(&mut self, older: NodeId, newer: NodeId) {
        match self.links.get_mut(&older) {
            Some(link) => link.newer = newer,
            None => self.oldest = newer,
        }
        match self.links.get_mut(&newer) {
            Some(link) => link.older = older,
            None => self.newest = older,
        }
    }

    /// Returns memory once most claims are gone.
    fn tidy(&mut self) {
        let used = self.links.len() * size_of::<(NodeId, Link)>();
        if self.links.allocation_size() > 8 * used {
            self.links.shrink_to(2 * self.links.len());
        }
    }
}

#[cfg(test)]
mod tests;
