//! The order of use of the nodes with routed claims: a list through the nodes themselves.
//!
//! A route refreshes its whole path, leaf first. So no node is older than one below it, and the oldest is always one
//! that no routed prompt continues: evicting from the old end goes leaf first by itself, with nothing to search or
//! compact.

use super::arena::Arena;
use super::node::{NONE, NodeId};

/// Both ends of the list.
#[derive(Debug)]
pub(super) struct Order {
    oldest: NodeId,
    newest: NodeId,
}

impl Order {
    pub(super) fn new() -> Order {
        Order { oldest: NONE, newest: NONE }
    }

    pub(super) fn oldest(&self) -> Option<NodeId> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    pub(super) fn lists(&self, arena: &Arena, id: NodeId) -> bool {
        self.oldest == id || arena[id].older != NONE
    }

    /// Makes a node the newest.
    pub(super) fn touch(&mut self, arena: &mut Arena, id: NodeId) {
        if self.newest == id {
            return;
        }
        self.unlist(arena, id);
        arena.links(id).older = self.newest;
        if self.newest == NONE {
            self.oldest = id;
        } else {
            arena.links(self.newest).newer = id;
        }
        self.newest = id;
    }

    /// Lists the tail of a split just before its head, which is listed.
    pub(super) fn insert_before(&mut self, arena: &mut Arena, id: NodeId, head: NodeId) {
        let older = arena[head].older;
        let links = arena.links(id);
        (links.older, links.newer) = (older, head);
        arena.links(head).older = id;
        if older == NONE {
            self.oldest = id;
        } else {
            arena.links(older).newer = id;
        }
    }

    /// Takes a node off the list, if it is on it.
    pub(super) fn unlist(&mut self, arena: &mut Arena, id: NodeId) {
        if !self.lists(arena, id) {
            return;
        }
        let (older, newer) = (arena[id].older, arena[id].newer);
        if older == NONE {
            self.oldest = newer;
        } else {
            arena.links(older).newer = newer;
        }
        if newer == NONE {
            self.newest = older;
        } else {
            arena.links(newer).older = older;
        }
        let links = arena.links(id);
        (links.older, links.newer) = (NONE, NONE);
    }
}
