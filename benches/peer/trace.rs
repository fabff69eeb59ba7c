//! What ranks say of their caches, and what clients ask, while the trace is served.
//!
//! Each request goes to the rank that served the longest part of its prompt, or, one time in eight, to any: conversations
//! stay where their cache is, and popular prefixes spread. Each rank has the prefix cache of the simulated engine, so the
//! stream has stores of up to 512 blocks for prefill, one block at a time for decoding, and the evictions between them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

use fastrand::Rng;
use nebula_sim::cache::{BlockId, CacheEvent, KvCache};
use nebula_sim::hash::{block_hash, chain_seed};
use serde::{Deserialize, Serialize};

pub const RANKS: u32 = 64;
pub const BLOCK_TOKENS: u32 = 16;
/// Blocks of each rank's cache: 128 k tokens.
const CACHE_BLOCKS: u32 = 8_192;
/// Tokens that one id of the trace stands for, and blocks in them.
const ID_TOKENS: u32 = 512;
const ID_BLOCKS: u64 = 32;
/// Blocks that one step of an engine computes: a budget of 8,192 tokens.
const STEP_BLOCKS: usize = 512;
const FIRST_TOKEN_MS: u64 = 200;
const BLOCK_MS: u64 = 16 * 25;

/// One change of one rank's cache.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Change {
    pub rank: u32,
    /// The engine's names of the blocks.
    pub names: Vec<u64>,
    pub kind: Kind,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Kind {
    Stored { parent: Option<u64>, contents: Vec<u64> },
    Removed,
}

/// A prompt, and how many changes came before it was asked.
pub struct Prompt {
    pub contents: Vec<u64>,
    pub after: usize,
}

/// All changes in order, all prompts in order.
#[derive(Default)]
pub struct Trace {
    pub changes: Vec<Change>,
    pub prompts: Vec<Prompt>,
    /// (block, rank) pairs held at the end.
    pub held: usize,
}

#[derive(Deserialize)]
struct Request {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
}

/// A request that decodes.
struct Running {
    rank: u32,
    blocks: Vec<BlockId>,
    last: u64,
    left: u32,
    next_content: u64,
}

struct Fleet {
    caches: Vec<KvCache>,
    served: Vec<u64>,
    owners: HashMap<u64, u32>,
    running: HashMap<u64, Running>,
    steps: BinaryHeap<Reverse<(u64, u64)>>,
    rng: Rng,
    trace: Trace,
}

/// The tokens of a block.
pub fn tokens(content: u64) -> [u32; BLOCK_TOKENS as usize] {
    let mut rng = Rng::with_seed(content);
    std::array::from_fn(|_| rng.u32(..128_000))
}

// === impl Trace ===

impl Trace {
    /// The first `requests` of a file of lines `{"timestamp","input_length","output_length","hash_ids"}`.
    pub fn read(path: &Path, requests: usize) -> Trace {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
            panic!("{}: {error}; it is a trace as Mooncake publishes them", path.display())
        });
        let mut fleet = Fleet::new();
        for (at, line) in text.lines().take(requests).enumerate() {
            let request = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{} line {}: {error}", path.display(), at + 1));
            fleet.serve(at as u64, &request);
        }
        fleet.decode_until(u64::MAX);
        let Fleet { caches, mut trace, .. } = fleet;
        trace.held = caches.iter().map(KvCache::cached).sum();
        trace
    }

    /// How many prompts are the first half, and how many changes came before the second.
    pub fn half(&self) -> (usize, usize) {
        let prompts = self.prompts.len() / 2;
        (prompts, self.prompts.get(prompts).map_or(0, |prompt| prompt.after))
    }

    /// Blocks in all changes.
    pub fn blocks(&self) -> usize {
        self.changes.iter().map(|change| change.names.len()).sum()
    }
}

// === impl Fleet ===

impl Fleet {
    fn new() -> Fleet {
        let cache = |_| {
            let mut cache = KvCache::new(CACHE_BLOCKS);
            cache.record_events();
            cache
        };
        Fleet {
            caches: (0..RANKS).map(cache).collect(),
            served: vec![0; RANKS as usize],
            owners: HashMap::new(),
            running: HashMap::new(),
            steps: BinaryHeap::new(),
            rng: Rng::with_seed(1),
            trace: Trace::default(),
        }
    }

    fn serve(&mut self, number: u64, request: &Request) {
        self.decode_until(request.timestamp);
        let blocks = (request.input_length / BLOCK_TOKENS) as usize;
        let contents = request
            .hash_ids
            .iter()
            .flat_map(|id| (0..ID_BLOCKS).map(move |at| id * ID_BLOCKS + at));
        let contents: Vec<u64> = contents.take(blocks).collect();
        let names: Vec<u64> = contents
            .iter()
            .scan(chain_seed(""), |last, content| {
                *last = block_hash(*last, &tokens(*content));
                Some(*last)
            })
            .collect();
        let rank = self.place(request);
        self.trace
            .prompts
            .push(Prompt { contents: contents.clone(), after: self.trace.changes.len() });

        let cache = &mut self.caches[rank as usize];
        let findable = (request.input_length.saturating_sub(1) / BLOCK_TOKENS) as usize;
        let hits: Vec<BlockId> = cache.find(&names[..findable.min(names.len())]).collect();
        let fresh = request.input_length.div_ceil(BLOCK_TOKENS)
            - u32::try_from(hits.len()).expect("fewer than tokens");
        if !cache.fits(&hits, fresh) {
            return;
        }
        let mut held = Vec::new();
        cache.share(&hits, &mut held);
        cache.allocate(fresh, &mut held);
        for at in hits.len()..names.len() {
            cache.store(held[at], names[at]);
        }
        self.removed(rank);
        for from in (hits.len()..names.len()).step_by(STEP_BLOCKS) {
            let to = (from + STEP_BLOCKS).min(names.len());
            let parent = from.checked_sub(1).map(|before| names[before]);
            let kind = Kind::Stored { parent, contents: contents[from..to].to_vec() };
            self.trace.changes.push(Change { rank, names: names[from..to].to_vec(), kind });
        }
        let decoding = Running {
            rank,
            blocks: held,
            last: names.last().copied().unwrap_or(chain_seed("")),
            left: request.output_length / BLOCK_TOKENS,
            next_content: (number + 1) << 40,
        };
        self.running.insert(number, decoding);
        self.steps.push(Reverse((request.timestamp + FIRST_TOKEN_MS, number)));
    }

    fn place(&mut self, request: &Request) -> u32 {
        let known =
            request.hash_ids.iter().skip(1).rev().find_map(|id| self.owners.get(id).copied());
        let least = || (0..RANKS).min_by_key(|rank| self.served[*rank as usize]);
        let rank = match known {
            _ if self.rng.u32(..8) == 0 => self.rng.u32(..RANKS),
            Some(rank) => rank,
            None => least().expect("there are ranks"),
        };
        self.served[rank as usize] += u64::from(request.input_length / ID_TOKENS);
        self.owners.extend(request.hash_ids.iter().map(|id| (*id, rank)));
        rank
    }

    /// One block more for each request that decodes, each in its time.
    fn decode_until(&mut self, now: u64) {
        while let Some(Reverse((at, number))) =
            self.steps.peek().copied().filter(|step| step.0.0 <= now)
        {
            self.steps.pop();
            let Some(mut running) = self.running.remove(&number) else { continue };
            let rank = running.rank;
            let cache = &mut self.caches[rank as usize];
            if running.left == 0 || !cache.allocate(1, &mut running.blocks) {
                cache.release(&running.blocks);
                continue;
            }
            let name = block_hash(running.last, &tokens(running.next_content));
            // A block is filled while the next one is open already.
            cache.store(running.blocks[running.blocks.len() - 1], name);
            self.removed(rank);
            let kind =
                Kind::Stored { parent: Some(running.last), contents: vec![running.next_content] };
            self.trace.changes.push(Change { rank, names: vec![name], kind });
            running.last = name;
            running.left -= 1;
            running.next_content += 1;
            self.running.insert(number, running);
            self.steps.push(Reverse((at + BLOCK_MS, number)));
        }
    }

    /// What one allocation evicted, as one change.
    fn removed(&mut self, rank: u32) {
        let evicted = self.caches[rank as usize].take_events();
        let names: Vec<u64> = evicted
            .iter()
            .filter_map(
                |event| if let CacheEvent::Removed { hash } = event { Some(*hash) } else { None },
            )
            .collect();
        if !names.is_empty() {
            self.trace.changes.push(Change { rank, names, kind: Kind::Removed });
        }
    }
}
