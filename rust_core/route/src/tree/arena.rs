//! Where the nodes live, and how a child is found.
//!
//! Slots in pages, so that growing never moves a node and never copies more than a page; free slots are used again.
//! Children are found through one hash table for the whole tree, chained through the nodes themselves: no memory per
//! parent, no tombstones, no pause for a rehash but when the table doubles.

use std::hash::{BuildHasher, RandomState};
use std::ops::Index;

use super::node::{NONE, Node, NodeId};

/// Nodes in a page.
const PAGE: usize = 128;

/// Buckets of a table that holds little.
const FEW_BUCKETS: usize = 64;

/// The nodes of a tree.
#[derive(Debug)]
pub(super) struct Arena {
    /// Each has room for `PAGE` nodes; all but the last are full.
    pages: Vec<Vec<Node>>,
    free: NodeId,
    live: usize,
    /// The node whose children hang from each fork; where a fork is free, the next free one.
    forks: Vec<NodeId>,
    free_fork: u32,
    /// First nodes of the bucket chains; a power of two of them.
    buckets: Vec<NodeId>,
    /// Odd, and secret: clients choose the prompts, so they must not be able to choose the buckets.
    factor: u64,
    /// Bytes allocated behind the live nodes.
    heap: u64,
    /// (block, rank) pairs claimed in the live nodes.
    pairs: u64,
    /// The same below the GPU.
    lower_pairs: u64,
}

impl Arena {
    pub(super) fn new() -> Arena {
        Arena {
            pages: Vec::new(),
            free: NONE,
            live: 0,
            forks: Vec::new(),
            free_fork: NONE,
            buckets: Vec::new(),
            factor: RandomState::new().hash_one(0) | 1,
            heap: 0,
            pairs: 0,
            lower_pairs: 0,
        }
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn pairs(&self) -> u64 {
        self.pairs
    }

    pub(super) fn lower_pairs(&self) -> u64 {
        self.lower_pairs
    }

    /// Bytes of everything here.
    ///
    /// # Cost
    /// O(1).
    pub(super) fn bytes(&self) -> u64 {
        let pages = self.pages.len() * (PAGE * size_of::<Node>())
            + self.pages.capacity() * size_of::<Vec<Node>>();
        let links = (self.forks.capacity() + self.buckets.capacity()) * size_of::<NodeId>();
        self.heap + (pages + links) as u64
    }

    /// Slots that were ever used; every live node is below.
    pub(super) fn slots(&self) -> NodeId {
        let last = self.pages.last().map_or(0, Vec::len);
        id(self.pages.len().saturating_sub(1) * PAGE + last)
    }

    /// The node in a slot, unless the slot is free.
    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        let node = self.pages.get(id as usize / PAGE)?.get(id as usize % PAGE)?;
        (!node.edge.is_empty()).then_some(node)
    }

    /// The node whose edge starts with `first`, among the children of `fork` (`NONE` is the root).
    ///
    /// # Cost
    /// O(1) expected.
    pub(super) fn child(&self, fork: u32, first: u64) -> Option<NodeId> {
        if self.live == 0 {
            return None;
        }
        let mut at = self.buckets[self.bucket(first)];
        while at != NONE {
            let node = &self[at];
            if node.parent == fork && node.edge[0] == first {
                return Some(at);
            }
            at = node.next;
        }
        None
    }

    /// The node above, `NONE` for the root.
    pub(super) fn above(&self, id: NodeId) -> NodeId {
        let fork = self[id].parent;
        if fork == NONE { NONE } else { self.forks[fork as usize] }
    }

    /// Changes what a node holds, and keeps the books. Links are not for `change` to touch.
    ///
    /// # Cost
    /// O(holders of the node).
    pub(super) fn edit<T>(&mut self, id: NodeId, change: impl FnOnce(&mut Node) -> T) -> T {
        let node = &mut self.pages[id as usize / PAGE][id as usize % PAGE];
        let (heap, pairs, lower_pairs) = (node.heap(), node.pairs(), node.lowers.pairs());
        let result = change(node);
        node.tidy();
        node.take_stock();
        self.heap = self.heap + node.heap() - heap;
        self.pairs = self.pairs + node.pairs() - pairs;
        self.lower_pairs = self.lower_pairs + node.lowers.pairs() - lower_pairs;
        result
    }

    /// A node's links, for those who keep lists through them.
    pub(super) fn links(&mut self, id: NodeId) -> &mut Node {
        &mut self.pages[id as usize / PAGE][id as usize % PAGE]
    }

    /// Hangs a new node with this edge behind `above` (`NONE` for the root).
    pub(super) fn insert(&mut self, above: NodeId, edge: Vec<u64>) -> NodeId {
        let mut node = Node::new(edge, 0);
        node.fork = self.new_fork();
        if above != NONE {
            let above = self.links(above);
            above.children += 1;
            (node.parent, node.start) = (above.fork, above.end());
        }
        let fork = node.fork;
        let id = self.settle(node);
        self.forks[fork as usize] = id;
        id
    }

    /// Cuts a node in two; the new one is the tail.
    ///
    /// # Cost
    /// O(blocks behind the cut + holders), however many children or names there are.
    pub(super) fn split(&mut self, head: NodeId, at: u32) -> NodeId {
        let fork = self.new_fork();
        let mut tail = self.edit(head, |node| node.split_off(at));
        let head_links = self.links(head);
        (tail.parent, tail.fork) = (fork, head_links.fork);
        (tail.children, tail.tail) = (head_links.children, head_links.tail);
        (head_links.fork, head_links.children) = (fork, 1);
        let children_of = tail.fork;
        // What the tail took along was subtracted by `edit`; `settle` adds it again.
        let id = self.settle(tail);
        self.links(head).tail = id;
        self.forks[fork as usize] = head;
        self.forks[children_of as usize] = id;
        id
    }

    /// Takes a node without children away; gives the one above, `NONE` for the root.
    pub(super) fn remove(&mut self, id: NodeId) -> NodeId {
        let above = self.above(id);
        if above != NONE {
            let links = self.links(above);
            links.children -= 1;
            if links.tail == id {
                links.tail = NONE;
            }
        }
        self.unchain(id);
        let free = self.free;
        let node = std::mem::replace(self.links(id), Node::new(Vec::new(), 0));
        self.links(id).next = free;
        self.free = id;
        self.heap -= node.heap();
        self.pairs -= node.pairs();
        self.lower_pairs -= node.lowers.pairs();
        self.forks[node.fork as usize] = self.free_fork;
        self.free_fork = node.fork;
        self.live -= 1;
        if self.live == 0 {
            self.reset();
        }
        above
    }

    /// Puts a node into a slot and into its bucket.
    fn settle(&mut self, mut node: Node) -> NodeId {
        self.live += 1;
        self.heap += node.heap();
        self.pairs += node.pairs();
        self.lower_pairs += node.lowers.pairs();
        if self.live > self.buckets.len() {
            self.more_buckets();
        }
        let bucket = self.bucket(node.edge[0]);
        node.next = self.buckets[bucket];
        let id = if self.free == NONE {
            if self.pages.last().is_none_or(|page| page.len() == PAGE) {
                self.pages.push(Vec::with_capacity(PAGE));
            }
            let slot = self.slots();
            if let Some(page) = self.pages.last_mut() {
                page.push(node);
            }
            slot
        } else {
            let slot = self.free;
            self.free = self[slot].next;
            *self.links(slot) = node;
            slot
        };
        self.buckets[bucket] = id;
        id
    }

    fn new_fork(&mut self) -> u32 {
        if self.free_fork == NONE {
            self.forks.push(NONE);
            return id(self.forks.len() - 1);
        }
        let fork = self.free_fork;
        self.free_fork = self.forks[fork as usize];
        fork
    }

    /// Multiply-shift: the top bits of a product with a random odd factor.
    fn bucket(&self, first: u64) -> usize {
        let bits = self.buckets.len().trailing_zeros();
        (first.wrapping_mul(self.factor) >> (63 - bits) >> 1) as usize
    }

    fn more_buckets(&mut self) {
        self.buckets = vec![NONE; (2 * self.buckets.len()).max(FEW_BUCKETS)];
        for id in 0..self.slots() {
            let Some(node) = self.node(id) else { continue };
            let bucket = self.bucket(node.edge[0]);
            self.links(id).next = self.buckets[bucket];
            self.buckets[bucket] = id;
        }
    }

    fn unchain(&mut self, id: NodeId) {
        let bucket = self.bucket(self[id].edge[0]);
        let next = self[id].next;
        let mut at = self.buckets[bucket];
        if at == id {
            self.buckets[bucket] = next;
            return;
        }
        while at != NONE {
            if self[at].next == id {
                self.links(at).next = next;
                return;
            }
            at = self[at].next;
        }
    }

    /// An empty tree needs no memory.
    fn reset(&mut self) {
        self.pages = Vec::new();
        self.forks = Vec::new();
        self.buckets = Vec::new();
        (self.free, self.free_fork) = (NONE, NONE);
    }
}

impl Index<NodeId> for Arena {
    type Output = Node;

    fn index(&self, id: NodeId) -> &Node {
        &self.pages[id as usize / PAGE][id as usize % PAGE]
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "4 billion nodes are above any bound in bytes that a machine has"
)]
fn id(slot: usize) -> NodeId {
    slot as NodeId
}
