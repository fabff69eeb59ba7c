//! The prefix cache: KV blocks, who uses them, and which content they hold.
//!
//! The rules are those of vLLM's V1 block pool. Only full blocks can be found. A block in use is never evicted. A free block
//! keeps its content until it is allocated again; the free list is in order of eviction, and a request gives its blocks back
//! tail first, so the least recently used prompt loses its tail before its head. Blocks without content go to the front:
//! nothing is lost when they are taken.

use std::collections::hash_map::Entry;

use crate::hash::{BlockHash, HashedMap};

/// One block of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockId(u32);

/// Every block of the cache.
#[derive(Debug)]
pub struct KvCache {
    /// Slot 0 is the null block. It is never handed out, and heads the ring of free blocks.
    slots: Vec<Slot>,
    /// Content to the blocks that hold it: a request that computes a block which another one computed has its own.
    by_hash: HashedMap<Holders>,
    /// Blocks that hold content.
    cached: usize,
    /// Length of the free ring.
    free: u32,
    /// What happened since it was last taken, where somebody wants to know.
    events: Option<Vec<CacheEvent>>,
}

/// What happened to the blocks that can be found, as vLLM's KV events tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// A request filled consecutive blocks. Another one may have filled the same ones before.
    Stored {
        /// The block before the first one; none where it opens a prompt.
        parent: Option<BlockHash>,
        /// The new blocks, in order.
        hashes: Vec<BlockHash>,
        /// Their tokens.
        tokens: Vec<u32>,
    },
    /// A block was evicted. As in vLLM another block may still hold the same content.
    Removed {
        /// Its content.
        hash: BlockHash,
    },
    /// All blocks were forgotten.
    Cleared,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    content: Option<BlockHash>,
    /// Neighbours among the holders of that content; none is the null block.
    older: u32,
    younger: u32,
    users: u32,
    /// Neighbours in the free ring; meaningless while `users > 0`.
    prev: u32,
    next: u32,
}

/// The ends of the chain of blocks that hold the same content, in the order in which they were filled.
#[derive(Clone, Copy, Debug)]
struct Holders {
    oldest: u32,
    youngest: u32,
}

const NULL: u32 = 0;

// === impl BlockId ===

impl BlockId {
    /// Its number, from 1 on.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

// === impl KvCache ===

impl KvCache {
    /// An empty cache of `blocks` blocks, of which the first holds nothing.
    #[must_use]
    pub fn new(blocks: u32) -> KvCache {
        let mut cache = KvCache {
            slots: vec![Slot::default(); blocks.max(1) as usize],
            by_hash: HashedMap::default(),
            cached: 0,
            free: 0,
            events: None,
        };
        (1..blocks).for_each(|slot| cache.link_before(NULL, slot));
        cache
    }

    /// Blocks that can be handed out at most.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX) - 1
    }

    /// Blocks that nobody uses; some may still hold content.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Blocks whose content can be found.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// The share of blocks in use, 0 to 1.
    #[must_use]
    pub fn usage(&self) -> f64 {
        match self.capacity() {
            0 => 0.0,
            all => f64::from(all - self.free) / f64::from(all),
        }
    }

    /// The blocks that hold the longest cached prefix of `chain`; of several that hold the same, the oldest, as in vLLM.
    ///
    /// # Cost
    /// One look-up per block found.
    pub fn find<'a>(&'a self, chain: &'a [BlockHash]) -> impl Iterator<Item = BlockId> + 'a {
        chain.iter().map_while(|hash| self.by_hash.get(hash)).map(|holders| BlockId(holders.oldest))
    }

    /// True if `fresh` blocks can be allocated after `hits` are taken into use.
    #[must_use]
    pub fn fits(&self, hits: &[BlockId], fresh: u32) -> bool {
        let revived = hits.iter().filter(|hit| self.slots[hit.0 as usize].users == 0).count();
        u64::from(fresh) + revived as u64 <= u64::from(self.free)
    }

    /// Appends blocks that were found to `blocks`, for one more user.
    pub fn share(&mut self, hits: &[BlockId], blocks: &mut Vec<BlockId>) {
        for &BlockId(slot) in hits {
            if self.slots[slot as usize].users == 0 {
                self.unlink(slot);
            }
            self.slots[slot as usize].users += 1;
        }
        blocks.extend_from_slice(hits);
    }

    /// Appends `fresh` blocks to `blocks`, evicting what they held; false, and nothing done, if so many are not free.
    pub fn allocate(&mut self, fresh: u32, blocks: &mut Vec<BlockId>) -> bool {
        if fresh > self.free {
            return false;
        }
        for _ in 0..fresh {
            let slot = self.slots[NULL as usize].next;
            self.unlink(slot);
            self.forget(slot);
            self.slots[slot as usize].users = 1;
            blocks.push(BlockId(slot));
        }
        true
    }

    /// Makes a full block findable.
    pub fn store(&mut self, block: BlockId, hash: BlockHash) {
        let slot = &mut self.slots[block.0 as usize];
        debug_assert!(
            slot.users > 0 && slot.content.is_none(),
            "only a block in use is filled, and once"
        );
        slot.content = Some(hash);
        (slot.older, slot.younger) = (NULL, NULL);
        self.cached += 1;
        match self.by_hash.entry(hash) {
            Entry::Vacant(none) => {
                none.insert(Holders { oldest: block.0, youngest: block.0 });
            }
            Entry::Occupied(mut holders) => {
                let before = std::mem::replace(&mut holders.get_mut().youngest, block.0);
                slot.older = before;
                self.slots[before as usize].younger = block.0;
            }
        }
    }

    /// Keeps what happens from now on for [`KvCache::take_events`].
    pub fn record_events(&mut self) {
        self.events.get_or_insert_default();
    }

    /// What happened since the last call, in order; nothing unless it is recorded.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Tells that blocks were stored; `event` is made only if somebody wants to know.
    pub(crate) fn announce(&mut self, event: impl FnOnce() -> CacheEvent) {
        if let Some(events) = &mut self.events {
            events.push(event());
        }
    }

    /// Gives the blocks of one request back, in the order of its tokens.
    pub fn release(&mut self, blocks: &[BlockId]) {
        let mut front = NULL;
        for &BlockId(slot) in blocks.iter().rev() {
            let state = &mut self.slots[slot as usize];
            state.users -= 1;
            if state.users > 0 {
                continue;
            }
            if state.content.is_some() {
                self.link_before(NULL, slot);
            } else {
                let after_front = self.slots[front as usize].next;
                self.link_before(after_front, slot);
                front = slot;
            }
        }
    }

    /// Forgets all content; false, and nothing done, while a block is in use.
    pub fn reset(&mut self) -> bool {
        if self.free < self.capacity() {
            return false;
        }
        self.by_hash.clear();
        self.cached = 0;
        self.slots.iter_mut().for_each(|slot| slot.content = None);
        self.announce(|| CacheEvent::Cleared);
        true
    }

    fn forget(&mut self, slot: u32) {
        let Slot { content, older, younger, .. } = self.slots[slot as usize];
        let Some(hash) = content else { return };
        self.slots[slot as usize].content = None;
        self.cached -= 1;
        self.announce(|| CacheEvent::Removed { hash });
        if (older, younger) == (NULL, NULL) {
            self.by_hash.remove(&hash);
            return;
        }
        // The null block takes what no neighbour is there to take.
        self.slots[older as usize].younger = younger;
        self.slots[younger as usize].older = older;
        if let Some(holders) = self.by_hash.get_mut(&hash) {
            if older == NULL {
                holders.oldest = younger;
            }
            if younger == NULL {
                holders.youngest = older;
            }
        }
    }

    fn link_before(&mut self, next: u32, slot: u32) {
        let prev = self.slots[next as usize].prev;
        self.slots[slot as usize].prev = prev;
        self.slots[slot as usize].next = next;
        self.slots[prev as usize].next = slot;
        self.slots[next as usize].prev = slot;
        self.free += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { prev, next, .. } = self.slots[slot as usize];
        self.slots[prev as usize].next = next;
        self.slots[next as usize].prev = prev;
        self.free -= 1;
    }
}
