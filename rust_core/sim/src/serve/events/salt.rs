//! The salts of prompts, for the events that tell them.

use std::collections::VecDeque;

use crate::hash::{BlockHash, HashedMap};

/// The salt that went into a prompt's first block, by that block's hash.
#[derive(Debug)]
pub(super) struct Salts {
    by_block: HashedMap<Box<str>>,
    /// In the order they were noted; the first is forgotten first.
    order: VecDeque<BlockHash>,
    most: usize,
}

// === impl Salts ===

impl Salts {
    /// Remembers at most `most` of them: there cannot be more first blocks than blocks.
    pub(super) fn new(most: usize) -> Salts {
        Salts { by_block: HashedMap::default(), order: VecDeque::new(), most: most.max(1) }
    }

    pub(super) fn note(&mut self, first_block: BlockHash, salt: &str) {
        if self.by_block.insert(first_block, salt.into()).is_some() {
            return;
        }
        self.order.push_back(first_block);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_block.remove(&oldest);
        }
    }

    pub(super) fn of(&self, first_block: BlockHash) -> Option<&str> {
        self.by_block.get(&first_block).map(AsRef::as_ref)
    }
}
