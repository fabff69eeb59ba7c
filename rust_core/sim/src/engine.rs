//! The engine: a pure state machine in virtual time.
//!
//! The caller owns the clock. [`Engine::step`] is told the time, ends the step that is due, starts the next one and says when
//! that one ends. Steps follow each other without a gap however late the caller is, so a coarse timer costs no accuracy.

use crate::EngineConfig;
use crate::cache::{BlockId, CacheEvent};
use crate::scheduler::Scheduler;
use crate::sequence::{Finish, Request, SeqId, Sequence};
use crate::stats::Stats;
use crate::timing::{Nanos, Timing, Work, nanos};
use crate::transfer::Transfer;

/// One more token of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emission {
    /// Whose reply it is.
    pub id: SeqId,
    /// Tokens of the reply so far, this one included.
    pub produced: u32,
    /// Prompt tokens that were found in the cache.
    pub cached: u32,
    /// Prompt tokens that came from another engine.
    pub external: u32,
    /// True for the last token.
    pub finished: bool,
}

/// A simulated engine.
#[derive(Debug)]
pub struct Engine {
    scheduler: Scheduler,
    timing: Timing,
    /// Factor on the time of every step.
    slowdown: f64,
    now: Nanos,
    /// End of the step in flight.
    ends: Option<Nanos>,
    stats: Stats,
}

// === impl Engine ===

impl Engine {
    /// An idle engine with an empty cache, at time 0.
    #[must_use]
    pub fn new(config: &EngineConfig) -> Engine {
        Engine {
            scheduler: Scheduler::new(config),
            timing: config.timing,
            slowdown: 1.0,
            now: 0,
            ends: None,
            stats: Stats::new(config.max_model_len),
        }
    }

    /// Puts a request into the queue. It runs from the next step that [`Engine::step`] starts.
    pub fn submit(&mut self, request: Request, now: Nanos) {
        self.submit_transfer(request, Transfer::None, now);
    }

    /// The same for a request that has to do with the KV of another engine.
    pub fn submit_transfer(&mut self, request: Request, transfer: Transfer, now: Nanos) {
        debug_assert!(!request.prompt.is_empty(), "a prompt has a token");
        let seq = Sequence::new(request, transfer, self.scheduler.block_size(), now);
        self.scheduler.push(seq);
    }

    /// The blocks that are kept for another engine, in the order of the prompt; none if there are none (any more).
    #[must_use]
    pub fn held(&self, id: SeqId) -> Option<&[BlockId]> {
        self.scheduler.dock().held(id)
    }

    /// Gives the blocks back that are kept for another engine, which has them now; false if there are none (any more).
    pub fn release(&mut self, id: SeqId) -> bool {
        let (dock, cache) = self.scheduler.dock_mut();
        dock.release(id, cache)
    }

    /// The same because nobody claimed them.
    pub fn expire(&mut self, id: SeqId) -> bool {
        let expired = self.release(id);
        self.stats.expired += u64::from(expired);
        expired
    }

    /// Keeps the blocks for another engine for `lease` from now; false if there are none (any more).
    pub fn renew(&mut self, id: SeqId, lease: Nanos, now: Nanos) -> bool {
        self.scheduler.dock_mut().0.renew(id, now.saturating_add(lease))
    }

    /// When an engine without a step in flight is to be stepped again though nobody asks it for anything: KV lands, or a
    /// lease is over.
    #[must_use]
    pub fn wakes(&self) -> Option<Nanos> {
        self.scheduler.dock().wakes()
    }

    /// Takes a request out of the engine and gives its blocks back; false if it is not there (any more).
    pub fn abort(&mut self, id: SeqId, now: Nanos) -> bool {
        let removed = self.scheduler.remove(id);
        if let Some(seq) = &removed {
            self.stats.end(seq, Finish::Abort, now);
        }
        removed.is_some()
    }

    /// Appends the tokens of the step that has ended by `now` to `out`, at most one step, and starts the next one. Gives
    /// the time when the step in flight ends (it may have passed: call again), or none when there is nothing to do.
    ///
    /// # Cost
    /// O(running requests + tokens that start in this step).
    pub fn step(&mut self, now: Nanos, out: &mut Vec<Emission>) -> Option<Nanos> {
        match self.ends {
            Some(ends) if ends > now => return self.ends,
            Some(ends) => {
                self.now = ends;
                self.finish_step(out);
            }
            None => self.now = self.now.max(now),
        }
        self.ends = self.start_step();
        self.ends
    }

    /// When the step in flight ends.
    #[must_use]
    pub fn ends(&self) -> Option<Nanos> {
        self.ends
    }

    /// The end of the latest step, or when an idle engine was last asked.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Makes every later step take `factor` times as long.
    pub fn set_slowdown(&mut self, factor: f64) {
        self.slowdown = factor;
    }

    /// Empties the prefix cache; false, and nothing done, while a request holds blocks.
    pub fn reset_cache(&mut self) -> bool {
        self.scheduler.cache_mut().reset()
    }

    /// Keeps what happens to the cache from now on for [`Engine::take_events`].
    pub fn record_events(&mut self) {
        self.scheduler.cache_mut().record_events();
    }

    /// What happened to the cache since the last call, in order; nothing unless it is recorded.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        self.scheduler.cache_mut().take_events()
    }

    /// The queues and the blocks.
    #[must_use]
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    fn start_step(&mut self) -> Option<Nanos> {
        if self.scheduler.running() + self.scheduler.waiting() == 0 && self.wakes().is_none() {
            return None;
        }
        loop {
            let plan = self.scheduler.plan(self.now);
            self.stats.plan(&plan);
            if plan.work != Work::default() {
                let time = nanos(self.timing.step(plan.work) as f64 * self.slowdown);
                return Some(self.now.saturating_add(time));
            }
            // Blocks that are kept or filled for others may leave no room, even for the only one that runs.
            if plan.preempted == 0 {
                return None;
            }
        }
    }

    fn finish_step(&mut self, out: &mut Vec<Emission>) {
        let (stats, now, block_size) = (&mut self.stats, self.now, self.scheduler.block_size());
        self.scheduler.complete(now, |seq| {
            let finished = seq.append(block_size);
            stats.token(seq, now);
            if finished {
                stats.end(seq, seq.finish, now);
            }
            let (cached, external) = (seq.cached.unwrap_or(0), seq.external);
            out.push(Emission { id: seq.id, produced: seq.produced(), cached, external, finished });
            finished
        });
    }
}
