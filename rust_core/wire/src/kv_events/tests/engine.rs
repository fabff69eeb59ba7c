//! An engine's cache and what it publishes, and an index that follows it.

use std::collections::{BTreeSet, VecDeque};

use nebula_route::block::{Scope, link, local};
use nebula_route::tree::Applied;
use nebula_route::{Event, KeyKind, RankId, SharedTree};
use parking_lot::Mutex;
use rmp::encode::{
    write_array_len, write_f64, write_map_len, write_nil, write_str, write_u32, write_u64,
};

use super::super::sequence::Message;
use super::super::{Encoding, Medium, Sink};

/// Prompts that share their first blocks in pairs.
pub(in crate::kv_events) const PROMPTS: u32 = 6;
pub(in crate::kv_events) const DEPTH: usize = 5;
const SHARED: usize = 2;
const BLOCK: u32 = 2;

pub(in crate::kv_events) struct Engine {
    pub(in crate::kv_events) encoding: Encoding,
    pub(in crate::kv_events) rank: u32,
    /// Batches that it remembers.
    pub(in crate::kv_events) remembers: usize,
    process: u64,
    next: u64,
    ts: f64,
    blocks: BTreeSet<u64>,
    buffer: VecDeque<Message>,
}

/// A tree that hears of several ranks.
pub(in crate::kv_events) struct Index {
    pub(in crate::kv_events) tree: SharedTree,
    pub(in crate::kv_events) cleared: Mutex<Vec<RankId>>,
}

// === impl Engine ===

impl Engine {
    pub(in crate::kv_events) fn new(remembers: usize) -> Engine {
        Engine {
            encoding: Encoding::Map,
            rank: 0,
            remembers,
            process: 0,
            next: 0,
            ts: 1.0,
            blocks: BTreeSet::new(),
            buffer: VecDeque::new(),
        }
    }

    /// Another process: no cache, other names, numbers from 0.
    pub(in crate::kv_events) fn restart(&mut self) {
        self.process += 1;
        self.next = 0;
        self.blocks.clear();
        self.buffer.clear();
    }

    /// How many leading blocks of a prompt it holds.
    pub(in crate::kv_events) fn depth(&self, prompt: u32) -> usize {
        chain(prompt).iter().take_while(|block| self.blocks.contains(block)).count()
    }

    /// Holds a prompt's blocks up to `depth`; nothing is published where it does already.
    pub(in crate::kv_events) fn store(&mut self, prompt: u32, depth: usize) -> Option<Message> {
        let from = self.depth(prompt);
        let chain = chain(prompt);
        let new = chain.get(from..depth).filter(|new| !new.is_empty())?;
        let parent = from.checked_sub(1).map(|before| chain[before]);
        let event = self.stored(prompt, from, new, parent);
        self.blocks.extend(new);
        Some(self.publish(&[event]))
    }

    /// Drops the last block of a prompt that no other prompt goes on from.
    pub(in crate::kv_events) fn evict(&mut self, prompt: u32) -> Option<Message> {
        let depth = self.depth(prompt);
        let block = chain(prompt)[depth.checked_sub(1)?];
        let goes_on = |other| chain(other)[depth - 1] == block && self.depth(other) > depth;
        if (0..PROMPTS).any(goes_on) {
            return None;
        }
        self.blocks.remove(&block);
        let mut out = self.opened("BlockRemoved", 1);
        self.field("block_hashes", &mut out);
        write_array_len(&mut out, 1).unwrap();
        write_u64(&mut out, self.name(block)).unwrap();
        Some(self.publish(&[out]))
    }

    pub(in crate::kv_events) fn clear(&mut self) -> Message {
        self.blocks.clear();
        let out = self.opened("AllBlocksCleared", 0);
        self.publish(&[out])
    }

    pub(in crate::kv_events) fn replay(&self, from: u64) -> Vec<Message> {
        self.buffer.iter().filter(|message| message.seq >= from).cloned().collect()
    }

    fn publish(&mut self, events: &[Vec<u8>]) -> Message {
        let mut payload = Vec::new();
        self.ts += 1.0;
        write_array_len(&mut payload, 3).unwrap();
        write_f64(&mut payload, self.ts).unwrap();
        write_array_len(&mut payload, u32::try_from(events.len()).unwrap()).unwrap();
        payload.extend(events.concat());
        write_u32(&mut payload, self.rank).unwrap();
        let message = Message { seq: self.next, ts: Some(self.ts), payload };
        self.next += 1;
        self.buffer.push_back(message.clone());
        if self.buffer.len() > self.remembers {
            self.buffer.pop_front();
        }
        message
    }

    fn stored(&self, prompt: u32, from: usize, new: &[u64], parent: Option<u64>) -> Vec<u8> {
        let mut out = self.opened("BlockStored", 4);
        self.field("block_hashes", &mut out);
        write_array_len(&mut out, u32::try_from(new.len()).unwrap()).unwrap();
        for block in new {
            write_u64(&mut out, self.name(*block)).unwrap();
        }
        self.field("parent_block_hash", &mut out);
        match parent {
            Some(parent) => write_u64(&mut out, self.name(parent)).unwrap(),
            None => write_nil(&mut out).unwrap(),
        }
        self.field("token_ids", &mut out);
        write_array_len(&mut out, u32::try_from(new.len()).unwrap() * BLOCK).unwrap();
        for depth in from..from + new.len() {
            for id in tokens(prompt, depth) {
                write_u32(&mut out, id).unwrap();
            }
        }
        self.field("block_size", &mut out);
        write_u32(&mut out, BLOCK).unwrap();
        out
    }

    fn opened(&self, tag: &str, fields: u32) -> Vec<u8> {
        let mut out = Vec::new();
        if self.encoding == Encoding::Map {
            write_map_len(&mut out, fields + 1).unwrap();
            write_str(&mut out, "type").unwrap();
        } else {
            write_array_len(&mut out, fields + 1).unwrap();
        }
        write_str(&mut out, tag).unwrap();
        out
    }

    fn field(&self, name: &str, out: &mut Vec<u8>) {
        if self.encoding == Encoding::Map {
            write_str(out, name).unwrap();
        }
    }

    fn name(&self, block: u64) -> u64 {
        link(block, self.process)
    }
}

// === impl Index ===

impl Index {
    pub(in crate::kv_events) fn new() -> Index {
        Index { tree: SharedTree::new(64 << 20), cleared: Mutex::default() }
    }

    /// How many leading blocks of a prompt a rank is believed to hold.
    pub(in crate::kv_events) fn depth(&self, rank: RankId, prompt: u32) -> usize {
        let mut held = Vec::new();
        self.tree.matches(&chain(prompt), &mut held);
        held.iter().find(|(at, _)| *at == rank).map_or(0, |(_, blocks)| *blocks as usize)
    }

    /// True if it believes of a rank what is so.
    pub(in crate::kv_events) fn agrees(&self, rank: RankId, engine: &Engine) -> bool {
        (0..PROMPTS).all(|prompt| self.depth(rank, prompt) == engine.depth(prompt))
    }
}

impl Sink for Index {
    fn apply(&self, rank: RankId, medium: Medium, events: &[Event]) -> Applied {
        assert_eq!(medium, Medium::Gpu);
        let mut applied = Applied::default();
        for event in events {
            applied += self.tree.apply(rank, event);
        }
        applied
    }

    fn clear(&self, rank: RankId) {
        self.cleared.lock().push(rank);
        self.tree.remove_rank(rank);
    }
}

fn tokens(prompt: u32, depth: usize) -> [u32; BLOCK as usize] {
    let family = if depth < SHARED { prompt / 2 } else { 100 + prompt };
    [family, u32::try_from(depth).unwrap()]
}

fn chain(prompt: u32) -> Vec<u64> {
    let scope = Scope { model: "", cache_salt: None, block: BLOCK, kind: KeyKind::Tokens };
    let next = |last: &mut u64, depth| {
        *last = link(*last, local(&tokens(prompt, depth)));
        Some(*last)
    };
    (0..DEPTH).scan(scope.seed(), next).collect()
}
