//! Who runs in the next step: continuous batching as vLLM's V1 scheduler does it.
//!
//! Requests that run come first, in order of arrival, each with the tokens it lacks (one when decoding, a chunk of the
//! prompt when prefilling). When blocks run out, the youngest running request is preempted: it loses its KV, goes to the
//! head of the queue and starts over. Then come requests whose KV has arrived from another engine, then waiting ones, while
//! tokens, places and blocks last; one is admitted only if its whole prompt fits.

use std::collections::VecDeque;

use crate::EngineConfig;
use crate::cache::{BlockId, KvCache};
use crate::sequence::{SeqId, Sequence};
use crate::timing::{Nanos, Work};
use crate::transfer::{Dock, Transfer};

/// The queues of an engine, and its blocks.
#[derive(Debug)]
pub struct Scheduler {
    cache: KvCache,
    block_size: u32,
    max_num_seqs: usize,
    max_num_batched_tokens: u32,
    /// In order of admission; the last one is preempted first.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    dock: Dock,
    /// Kept between steps to spare the allocation.
    hits: Vec<BlockId>,
}

/// What a plan did beside the work it chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) work: Work,
    pub(crate) preempted: u32,
    /// Tokens that new requests asked the cache for, and found.
    pub(crate) queried: u64,
    pub(crate) hit: u64,
    /// Tokens that set out to come from another engine.
    pub(crate) external: u64,
    /// Tokens whose KV preempted requests lost, and found again in the cache when they came back.
    pub(crate) lost: u64,
    pub(crate) regained: u64,
    /// Requests whose blocks were kept for another engine until the lease was over.
    pub(crate) expired: u32,
}

// === impl Scheduler ===

impl Scheduler {
    pub(crate) fn new(config: &EngineConfig) -> Scheduler {
        Scheduler {
            cache: KvCache::new(config.kv_blocks),
            block_size: config.block_size,
            max_num_seqs: config.max_num_seqs as usize,
            max_num_batched_tokens: config.max_num_batched_tokens,
            running: Vec::new(),
            waiting: VecDeque::new(),
            dock: Dock::default(),
            hits: Vec::new(),
        }
    }

    /// Requests in the batch.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests that wait for a place in it, those among them that wait for KV from another engine.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let (incoming, landed) = self.dock.stages();
        self.waiting.len() + incoming + landed
    }

    /// Of these, those whose KV is on its way from another engine, and those whose KV has come.
    #[must_use]
    pub fn fetching(&self) -> (usize, usize) {
        self.dock.stages()
    }

    /// Prompt tokens of waiting requests that nothing is computed of yet.
    #[must_use]
    pub fn queued_tokens(&self) -> u64 {
        self.waiting.iter().map(|seq| u64::from(seq.prompt_len)).sum()
    }

    /// The blocks.
    #[must_use]
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The work that all requests still need before their first token, by the cache of this moment, and the requests
    /// that decode beside it.
    pub(crate) fn outstanding(&self) -> Work {
        let mut work = Work::default();
        for seq in &self.running {
            if seq.computed >= seq.prompt_len {
                work.decode(seq.computed);
            } else {
                work.prefill(seq.pending(), seq.computed);
            }
        }
        for seq in &self.waiting {
            let hits = self.cache.find(seq.hittable(self.block_size)).count();
            let cached = u32::try_from(hits).unwrap_or(u32::MAX) * self.block_size;
            work.prefill(seq.len() - cached, cached);
        }
        self.dock.waiting().for_each(|seq| work.prefill(1, seq.len() - 1));
        work
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(crate) fn cache_mut(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    pub(crate) fn dock(&self) -> &Dock {
        &self.dock
    }

    pub(crate) fn dock_mut(&mut self) -> (&mut Dock, &mut KvCache) {
        (&mut self.dock, &mut self.cache)
    }

    pub(crate) fn push(&mut self, seq: Sequence) {
        self.waiting.push_back(seq);
    }

    /// Takes a request out, with its blocks given back.
    pub(crate) fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        let found = match self.running.iter().position(|seq| seq.id == id) {
            Some(at) => Some(self.running.remove(at)),
            None => match self.waiting.iter().position(|seq| seq.id == id) {
                Some(at) => self.waiting.remove(at),
                None => self.dock.remove(id),
            },
        };
        found.inspect(|seq| self.cache.release(&seq.blocks))
    }

    /// Chooses the work of the next step and gives it its blocks.
    pub(crate) fn plan(&mut self, now: Nanos) -> Plan {
        let mut plan = Plan { expired: self.dock.expire(&mut self.cache, now), ..Plan::default() };
        self.dock.land(&mut self.cache, self.block_size, now);
        let mut budget = self.max_num_batched_tokens;
        self.plan_running(&mut plan, &mut budget);
        if plan.preempted == 0 {
            self.plan_landed(&mut plan, &mut budget, now);
            self.plan_waiting(&mut plan, &mut budget, now);
        }
        plan
    }

    /// Ends the step: calls `token` for each request that got its next token, and drops those that it says are done.
    pub(crate) fn complete(&mut self, now: Nanos, mut token: impl FnMut(&mut Sequence) -> bool) {
        let (cache, dock) = (&mut self.cache, &mut self.dock);
        self.running.retain_mut(|seq| {
            seq.computed += std::mem::take(&mut seq.scheduled);
            let done = seq.pending() == 0 && token(seq);
            if done {
                match seq.transfer {
                    Transfer::Hold { lease } => {
                        let blocks = std::mem::take(&mut seq.blocks);
                        dock.hold(seq.id, blocks, now.saturating_add(lease));
                    }
                    _ => cache.release(&seq.blocks),
                }
            }
            !done
        });
    }

    fn plan_running(&mut self, plan: &mut Plan, budget: &mut u32) {
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            let seq = &mut self.running[at];
            let tokens = seq.pending().min(*budget);
            let target = seq.computed + tokens;
            let missing = blocks_missing(seq.blocks.len(), target, self.block_size);
            if self.cache.allocate(missing, &mut seq.blocks) {
                seq.store(&mut self.cache, target, self.block_size);
                schedule(seq, tokens, plan, budget);
                at += 1;
            } else if let Some(mut youngest) = self.running.pop() {
                plan.lost += u64::from(youngest.computed);
                youngest.preempt(&mut self.cache);
                plan.preempted += 1;
                self.waiting.push_front(youngest);
            }
        }
    }

    /// Their prompts have blocks, so that they need none.
    fn plan_landed(&mut self, plan: &mut Plan, budget: &mut u32, now: Nanos) {
        while *budget > 0 && self.running.len() < self.max_num_seqs {
            let Some(mut seq) = self.dock.landed().pop_front() else {
                return;
            };
            seq.started = now;
            let tokens = seq.pending().min(*budget);
            seq.store(&mut self.cache, seq.computed + tokens, self.block_size);
            schedule(&mut seq, tokens, plan, budget);
            self.running.push(seq);
        }
    }

    fn plan_waiting(&mut self, plan: &mut Plan, budget: &mut u32, now: Nanos) {
        while *budget > 0 && self.running.len() < self.max_num_seqs {
            let Some(seq) = self.waiting.front() else {
                return;
            };
            self.hits.clear();
            self.hits.extend(self.cache.find(seq.hittable(self.block_size)));
            let missing = blocks_missing(self.hits.len(), seq.len(), self.block_size);
            // The whole prompt must fit, though only a chunk of it is placed now.
            let Some(mut seq) = self.admit(missing) else {
                return;
            };
            if seq.preemptions == 0 {
                plan.queried += u64::from(seq.len());
                plan.hit += u64::from(seq.computed);
            } else {
                plan.regained += u64::from(seq.computed);
            }
            if seq.cached.is_none() {
                seq.cached = Some(seq.computed);
                seq.started = now;
            }
            if let Transfer::Receive { us_per_token } = seq.transfer {
                seq.external = seq.prompt_len - seq.computed;
                plan.external += u64::from(seq.external);
                let placed = self.cache.allocate(missing, &mut seq.blocks);
                debug_assert!(placed, "what fits, fits");
                self.dock.set_out(seq, us_per_token, now);
                continue;
            }
            let tokens = seq.pending().min(*budget);
            let target = seq.computed + tokens;
            let missing = blocks_missing(seq.blocks.len(), target, self.block_size);
            let placed = self.cache.allocate(missing, &mut seq.blocks);
            debug_assert!(placed, "a part of what fits, fits");
            seq.store(&mut self.cache, target, self.block_size);
            schedule(&mut seq, tokens, plan, budget);
            self.running.push(seq);
        }
    }

    /// Takes the head of the queue with its hits in use, if `missing` more blocks would fit beside them.
    fn admit(&mut self, missing: u32) -> Option<Sequence> {
        if !self.cache.fits(&self.hits, missing) {
            return None;
        }
        let mut seq = self.waiting.pop_front()?;
        self.cache.share(&self.hits, &mut seq.blocks);
        seq.adopt(self.hits.len(), self.block_size);
        Some(seq)
    }
}

fn schedule(seq: &mut Sequence, tokens: u32, plan: &mut Plan, budget: &mut u32) {
    if seq.computed >= seq.prompt_len && seq.pending() == 1 {
        plan.work.decode(seq.computed);
    } else {
        plan.work.prefill(tokens, seq.computed);
    }
    seq.scheduled = tokens;
    *budget -= tokens;
}

/// Blocks to add to `have` so that `tokens` have a place.
fn blocks_missing(have: usize, tokens: u32, block_size: u32) -> u32 {
    tokens.div_ceil(block_size).saturating_sub(u32::try_from(have).unwrap_or(u32::MAX))
}
