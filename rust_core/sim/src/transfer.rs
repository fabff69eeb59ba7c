//! KV that engines share: prompts that were computed elsewhere, and blocks that are kept for another engine.
//!
//! The rules are those of vLLM's scheduler with a pulling connector. A request whose prompt was computed elsewhere gets
//! blocks for all of it first, then waits while they are filled, in nobody's way; its last token is computed again, for the
//! logits. A request that computes for another keeps its blocks after its end until they are claimed or the lease is over.

use std::collections::VecDeque;

use crate::cache::{BlockId, KvCache};
use crate::sequence::{SeqId, Sequence};
use crate::timing::{Nanos, nanos};

/// What a request has to do with the KV of another engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Transfer {
    /// Nothing.
    #[default]
    None,
    /// Another engine computed the prompt. What the cache here lacks of it comes from there.
    Receive {
        /// Microseconds that one token is on its way.
        us_per_token: f64,
    },
    /// Its blocks are kept after its end, for another engine.
    Hold {
        /// How long, unless they are released before.
        lease: Nanos,
    },
}

/// Requests that wait for their KV, and blocks that wait for another engine.
#[derive(Debug, Default)]
pub(crate) struct Dock {
    /// On their way, in the order in which they set out.
    incoming: Vec<Incoming>,
    /// All here; they run as soon as there is a place.
    landed: VecDeque<Sequence>,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Incoming {
    lands: Nanos,
    seq: Sequence,
}

#[derive(Debug)]
struct Held {
    id: SeqId,
    blocks: Vec<BlockId>,
    expires: Nanos,
}

// === impl Dock ===

impl Dock {
    /// Requests whose KV is on its way, and those whose KV is here.
    pub(crate) fn stages(&self) -> (usize, usize) {
        (self.incoming.len(), self.landed.len())
    }

    /// Requests that are not done.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Sequence> {
        self.incoming.iter().map(|incoming| &incoming.seq).chain(&self.landed)
    }

    /// When something happens by itself: KV lands, or a lease is over.
    pub(crate) fn wakes(&self) -> Option<Nanos> {
        let lands = self.incoming.iter().map(|incoming| incoming.lands);
        lands.chain(self.held.iter().map(|held| held.expires)).min()
    }

    /// Sends a request's KV on its way: its blocks are there to be filled, `seq.computed` tokens are.
    pub(crate) fn set_out(&mut self, mut seq: Sequence, us_per_token: f64, now: Nanos) {
        seq.transfer_time = nanos(f64::from(seq.external) * us_per_token * 1e3);
        self.incoming.push(Incoming { lands: now.saturating_add(seq.transfer_time), seq });
    }

    /// Lands what has arrived by `now`.
    pub(crate) fn land(&mut self, cache: &mut KvCache, block_size: u32, now: Nanos) {
        let arrived = self.incoming.extract_if(.., |incoming| incoming.lands <= now);
        for Incoming { mut seq, .. } in arrived {
            seq.transfer = Transfer::None;
            seq.computed = seq.prompt_len - 1;
            seq.store(cache, seq.computed, block_size);
            self.landed.push_back(seq);
        }
    }

    /// The requests whose KV is here.
    pub(crate) fn landed(&mut self) -> &mut VecDeque<Sequence> {
        &mut self.landed
    }

    /// Takes a request out.
    pub(crate) fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        if let Some(at) = self.incoming.iter().position(|incoming| incoming.seq.id == id) {
            return Some(self.incoming.remove(at).seq);
        }
        let at = self.landed.iter().position(|seq| seq.id == id)?;
        self.landed.remove(at)
    }

    /// Keeps the blocks of a request that has ended.
    pub(crate) fn hold(&mut self, id: SeqId, blocks: Vec<BlockId>, expires: Nanos) {
        self.held.push(Held { id, blocks, expires });
    }

    /// The blocks that are kept of a request.
    pub(crate) fn held(&self, id: SeqId) -> Option<&[BlockId]> {
        self.held.iter().find(|held| held.id == id).map(|held| &held.blocks[..])
    }

    /// Lets a lease end at another time; false if it is over.
    pub(crate) fn renew(&mut self, id: SeqId, expires: Nanos) -> bool {
        let held = self.held.iter_mut().find(|held| held.id == id);
        held.map(|held| held.expires = expires).is_some()
    }

    /// Gives the blocks back that are kept of a request; false if none are.
    pub(crate) fn release(&mut self, id: SeqId, cache: &mut KvCache) -> bool {
        let Some(at) = self.held.iter().position(|held| held.id == id) else {
            return false;
        };
        cache.release(&self.held.remove(at).blocks);
        true
    }

    /// Gives the blocks back whose lease is over by `now`; how many requests these are.
    pub(crate) fn expire(&mut self, cache: &mut KvCache, now: Nanos) -> u32 {
        let before = self.held.len();
        for held in self.held.extract_if(.., |held| held.expires <= now) {
            cache.release(&held.blocks);
        }
        u32::try_from(before - self.held.len()).unwrap_or(u32::MAX)
    }
}
