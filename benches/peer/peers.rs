//! The two indexes behind one face.

use std::sync::Arc;

use dynamo_kv_router::indexer::KvIndexerInterface as _;
use dynamo_kv_router::protocols::{
    BlockHashOptions, ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData,
    KvCacheStoreData, KvCacheStoredBlockData,
};
use dynamo_kv_router::{
    ConcurrentRadixTreeCompressed, KvRouterConfig, LocalBlockHash, RouterEvent, SyncIndexer as _,
    ThreadPoolIndexer, compute_block_hash_for_seq,
};
use futures_executor::block_on;
use nebula_route::block::local;
use nebula_route::{Chain, Event, KeyKind, RankId, Scope, SharedTree};

use crate::trace::{BLOCK_TOKENS, Change, Kind, tokens};

/// An index under test. What it takes is made before the clock starts.
pub trait Index: Send + Sync {
    const NAME: &'static str;
    type Event: Clone + Send + Sync;
    type Key: Send + Sync;

    fn new() -> Self;
    fn event(change: &Change) -> Self::Event;
    /// What the index looks a prompt up by.
    fn key(tokens: &[u32]) -> Self::Key;
    /// Takes a change, now or into a queue.
    fn apply(&self, event: Self::Event);
    /// Returns when every change that was taken is in the index.
    fn drain(&self);
    /// What the index does every five minutes.
    fn sweep(&self) {}
    /// How many blocks all ranks hold, together.
    fn find(&self, key: &Self::Key) -> u64;
}

/// Ours, as the router holds it.
pub struct Nebula(SharedTree);

/// The index that Dynamo's router uses by default, with its default number of threads.
pub struct Dynamo(Arc<ThreadPoolIndexer<ConcurrentRadixTreeCompressed>>);

const SCOPE: Scope =
    Scope { model: "m", cache_salt: None, block: BLOCK_TOKENS, kind: KeyKind::Tokens };

// === impl Nebula ===

impl Index for Nebula {
    const NAME: &'static str = "nebula";
    type Event = (RankId, Event);
    type Key = Chain;

    fn new() -> Nebula {
        Nebula(SharedTree::new(u64::MAX))
    }

    fn event(change: &Change) -> (RankId, Event) {
        let engine_hashes = change.names.clone();
        let event = match &change.kind {
            Kind::Stored { parent, contents } => Event::Stored {
                engine_hashes,
                parent: *parent,
                seed: SCOPE.seed(),
                locals: contents.iter().map(|content| local(&tokens(*content))).collect(),
            },
            Kind::Removed => Event::Removed { engine_hashes },
        };
        (RankId(change.rank), event)
    }

    fn key(tokens: &[u32]) -> Chain {
        Chain::from_tokens(&SCOPE, tokens)
    }

    fn apply(&self, (rank, event): (RankId, Event)) {
        self.0.apply(rank, &event);
    }

    fn drain(&self) {}

    fn find(&self, key: &Chain) -> u64 {
        let mut out = Vec::new();
        self.0.matches(key.hashes(), &mut out);
        out.iter().map(|(_, blocks)| u64::from(*blocks)).sum()
    }
}

// === impl Dynamo ===

impl Index for Dynamo {
    const NAME: &'static str = "dynamo";
    type Event = RouterEvent;
    type Key = Vec<LocalBlockHash>;

    fn new() -> Dynamo {
        let threads = KvRouterConfig::default().router_event_threads as usize;
        let pool =
            ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), threads, BLOCK_TOKENS);
        Dynamo(Arc::new(pool))
    }

    fn event(change: &Change) -> RouterEvent {
        let names = change.names.iter().map(|name| ExternalSequenceBlockHash(*name));
        let data = match &change.kind {
            Kind::Stored { parent, contents } => {
                let block = |(block_hash, content): (_, &u64)| {
                    let tokens_hash = Self::key(&tokens(*content))[0];
                    KvCacheStoredBlockData { block_hash, tokens_hash, mm_extra_info: None }
                };
                KvCacheEventData::Stored(KvCacheStoreData {
                    parent_hash: parent.map(ExternalSequenceBlockHash),
                    start_position: None,
                    blocks: names.zip(contents).map(block).collect(),
                })
            }
            Kind::Removed => {
                KvCacheEventData::Removed(KvCacheRemoveData { block_hashes: names.collect() })
            }
        };
        RouterEvent::new(change.rank.into(), KvCacheEvent { event_id: 0, data, dp_rank: 0 })
    }

    fn key(tokens: &[u32]) -> Vec<LocalBlockHash> {
        compute_block_hash_for_seq(tokens, BLOCK_TOKENS, BlockHashOptions::default())
    }

    fn apply(&self, event: RouterEvent) {
        self.0.enqueue_event(event).expect("the pool runs");
    }

    fn drain(&self) {
        block_on(self.0.flush_and_wait()).expect("the pool runs");
    }

    fn sweep(&self) {
        self.0.backend().run_cleanup_task();
    }

    fn find(&self, key: &Vec<LocalBlockHash>) -> u64 {
        let scores = self.0.backend().find_matches_impl(key, false).scores;
        scores.values().map(|blocks| u64::from(*blocks)).sum()
    }
}

impl Drop for Dynamo {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}
