//! One request inside the engine: its tokens, its blocks and how far it has come.

use crate::cache::{BlockId, CacheEvent, KvCache};
use crate::hash::{BlockHash, block_hash};
use crate::reply::Reply;
use crate::timing::Nanos;
use crate::transfer::Transfer;

/// Names a request within one engine.
pub type SeqId = u64;

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its reply.
    Stop,
    /// The limit of tokens was reached.
    Length,
    /// The client left.
    Abort,
}

/// A request as it is handed in.
#[derive(Clone, Debug)]
pub struct Request {
    /// Unique among the requests that the engine holds.
    pub id: SeqId,
    /// The prompt's tokens; at least one.
    pub prompt: Vec<u32>,
    /// Seed of the block chain (`hash::chain_seed`): requests with different ones share no block.
    pub chain_seed: BlockHash,
    /// Tokens of the reply; at least one.
    pub max_tokens: u32,
    /// What the last of these tokens means.
    pub finish: Finish,
}

/// A request that waits or runs.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    /// The prompt and the reply so far.
    tokens: Vec<u32>,
    pub(crate) prompt_len: u32,
    pub(crate) max_tokens: u32,
    pub(crate) finish: Finish,
    reply: Reply,
    /// One hash per full block of `tokens`.
    chain: Vec<BlockHash>,
    chain_seed: BlockHash,
    pub(crate) blocks: Vec<BlockId>,
    /// Leading blocks that are findable in the cache.
    stored: usize,
    /// Leading tokens whose KV exists.
    pub(crate) computed: u32,
    /// Tokens that the step in flight computes.
    pub(crate) scheduled: u32,
    /// Prompt tokens found in the cache when the request first ran.
    pub(crate) cached: Option<u32>,
    /// Prompt tokens that came, or come, from another engine.
    pub(crate) external: u32,
    pub(crate) transfer: Transfer,
    pub(crate) transfer_time: Nanos,
    /// Times that it lost its KV.
    pub(crate) preemptions: u32,
    pub(crate) arrived: Nanos,
    pub(crate) started: Nanos,
    pub(crate) first_token: Nanos,
    pub(crate) last_token: Nanos,
}

// === impl Sequence ===

impl Sequence {
    pub(crate) fn new(
        request: Request,
        transfer: Transfer,
        block_size: u32,
        now: Nanos,
    ) -> Sequence {
        let mut seq = Sequence {
            id: request.id,
            reply: Reply::to(&request.prompt),
            prompt_len: len(&request.prompt),
            tokens: request.prompt,
            max_tokens: request.max_tokens.max(1),
            finish: request.finish,
            chain: Vec::new(),
            chain_seed: request.chain_seed,
            blocks: Vec::new(),
            stored: 0,
            computed: 0,
            scheduled: 0,
            cached: None,
            external: 0,
            transfer,
            transfer_time: 0,
            preemptions: 0,
            arrived: now,
            started: now,
            first_token: now,
            last_token: now,
        };
        seq.extend_chain(block_size);
        seq
    }

    /// Prompt and reply so far.
    pub(crate) fn len(&self) -> u32 {
        len(&self.tokens)
    }

    /// Tokens of the reply so far.
    pub(crate) fn produced(&self) -> u32 {
        self.len() - self.prompt_len
    }

    /// Tokens without KV.
    pub(crate) fn pending(&self) -> u32 {
        self.len() - self.computed
    }

    /// The blocks that a look-up may hit: the last token is always computed, for its logits.
    pub(crate) fn hittable(&self, block_size: u32) -> &[BlockHash] {
        let most = (self.len().saturating_sub(1) / block_size) as usize;
        &self.chain[..most.min(self.chain.len())]
    }

    /// Makes the blocks findable that `tokens` leading tokens fill.
    pub(crate) fn store(&mut self, cache: &mut KvCache, tokens: u32, block_size: u32) {
        let full = (tokens / block_size) as usize;
        if full <= self.stored {
            return;
        }
        for at in self.stored..full {
            cache.store(self.blocks[at], self.chain[at]);
        }
        let (new, size) = (self.stored..full, block_size as usize);
        cache.announce(|| CacheEvent::Stored {
            parent: new.start.checked_sub(1).map(|before| self.chain[before]),
            hashes: self.chain[new.clone()].to_vec(),
            tokens: self.tokens[new.start * size..new.end * size].to_vec(),
        });
        self.stored = full;
    }

    /// Takes over blocks that were found in the cache.
    pub(crate) fn adopt(&mut self, hits: usize, block_size: u32) {
        self.stored = hits;
        self.computed = u32::try_from(hits).unwrap_or(u32::MAX) * block_size;
    }

    /// Loses its KV; what it has said stays said.
    pub(crate) fn preempt(&mut self, cache: &mut KvCache) {
        cache.release(&self.blocks);
        self.blocks.clear();
        self.stored = 0;
        self.computed = 0;
        self.scheduled = 0;
        self.preemptions += 1;
    }

    /// Appends the next token of the reply; true if it is the last one.
    pub(crate) fn append(&mut self, block_size: u32) -> bool {
        self.tokens.push(self.reply.token(self.produced()));
        self.extend_chain(block_size);
        self.produced() >= self.max_tokens
    }

    fn extend_chain(&mut self, block_size: u32) {
        let size = block_size as usize;
        for block in self.tokens.chunks_exact(size).skip(self.chain.len()) {
            let parent = self.chain.last().copied().unwrap_or(self.chain_seed);
            self.chain.push(block_hash(parent, block));
        }
    }
}

fn len(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}
