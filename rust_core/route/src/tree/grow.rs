//! How the tree changes shape: growing along a chain, splitting, dying.

use super::Tree;
use super::node::{NONE, NodeId, common};

/// A place between two blocks: behind the first `offset` blocks of a node's edge, at least one.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) node: NodeId,
    pub(super) offset: u32,
}

/// A run of consecutive blocks in one edge.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) node: NodeId,
    pub(super) from: u32,
    pub(super) to: u32,
}

impl At {
    /// Before the first block of every chain.
    pub(super) const ROOT: At = At { node: NONE, offset: 0 };
}

impl Run {
    pub(super) fn len(self) -> u32 {
        self.to - self.from
    }

    /// Both runs as one, where one follows the other.
    pub(super) fn joined(self, other: Run) -> Option<Run> {
        let follows = self.to == other.from || other.to == self.from;
        let (from, to) = (self.from.min(other.from), self.to.max(other.to));
        (self.node == other.node && follows).then_some(Run { from, to, ..self })
    }

    pub(super) fn end(self) -> At {
        At { node: self.node, offset: self.to }
    }
}

impl Tree {
    /// The first blocks of `rest` (at least one) behind `at`, put there where they are missing.
    ///
    /// Whoever calls claims the run, or takes it back with [`Tree::trim`]: unclaimed ends of leaves do not stay.
    ///
    /// # Cost
    /// O(1) nodes; O(blocks) where they are new.
    pub(super) fn reach(&mut self, at: At, rest: &[u64]) -> Run {
        let mut fork = NONE;
        if at.node != NONE {
            let node = &self.arena[at.node];
            let shared = common(&node.edge[at.offset as usize..], rest);
            if shared > 0 {
                return run(at.node, at.offset, shared);
            }
            if at.offset < node.len() {
                self.split(at.node, at.offset);
            }
            fork = self.arena[at.node].fork;
        }
        if let Some(child) = self.arena.child(fork, rest[0]) {
            return run(child, 0, common(&self.arena[child].edge, rest));
        }
        if at.node != NONE && self.arena[at.node].children == 0 {
            self.arena.edit(at.node, |leaf| leaf.extend(rest));
            return run(at.node, at.offset, rest.len());
        }
        let child = self.arena.insert(at.node, rest.to_vec());
        run(child, 0, rest.len())
    }

    /// Cuts a node in two behind its first `at` blocks; gives the tail.
    pub(super) fn split(&mut self, head: NodeId, at: u32) -> NodeId {
        let tail = self.arena.split(head, at);
        if self.arena[tail].has_routed() {
            self.order.insert_before(&mut self.arena, tail, head);
            self.limits.split(head, tail, &self.arena[tail].holders);
        }
        tail
    }

    /// Cuts off the end of a leaf that nobody claims, and what above it was only there to carry it.
    ///
    /// # Cost
    /// O(nodes that die + their holders).
    pub(super) fn trim(&mut self, leaf: NodeId) {
        let mut id = leaf;
        while id != NONE && self.arena[id].children == 0 {
            let node = &self.arena[id];
            let reach = node.reach();
            if reach > 0 {
                if reach < node.len() {
                    self.arena.edit(id, |node| node.edge.truncate(reach as usize));
                }
                return;
            }
            self.order.unlist(&mut self.arena, id);
            id = self.arena.remove(id);
        }
    }

    /// After claims were given up: a node without routed ones has no place in the order, one without any may die.
    pub(super) fn loosen(&mut self, id: NodeId) {
        if !self.arena[id].has_routed() {
            self.order.unlist(&mut self.arena, id);
        }
        self.trim(id);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "not above the length of an edge")]
fn run(node: NodeId, from: u32, blocks: usize) -> Run {
    Run { node, from, to: from + blocks as u32 }
}
