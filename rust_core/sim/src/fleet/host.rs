//! An engine of the fleet and what it did.

use nebula_route::block;
use nebula_route::event::Event;

use super::FleetConfig;
use super::record::Record;
use crate::timing::Nanos;
use crate::{CacheEvent, Emission, Engine, EngineConfig};

/// An engine, and its share of the work.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) engine: Engine,
    pub(super) requests: u64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    /// Time in steps.
    pub(super) busy: Nanos,
}

// === impl Host ===

impl Host {
    pub(super) fn new(config: &EngineConfig) -> Host {
        let engine = Engine::new(config);
        Host { engine, requests: 0, prompt_tokens: 0, cached_tokens: 0, busy: 0 }
    }

    /// Ends the step that is due and starts the next; gives its end.
    pub(super) fn step(&mut self, now: Nanos, out: &mut Vec<Emission>) -> Option<Nanos> {
        let ends = self.engine.step(now, out);
        self.busy += ends.map_or(0, |ends| ends - now);
        ends
    }

    /// Counts a request that has ended.
    pub(super) fn note(&mut self, record: &Record) {
        self.requests += 1;
        self.prompt_tokens += u64::from(record.prompt);
        self.cached_tokens += u64::from(record.cached);
    }

    /// What happened to the cache since the last call, in the router's words.
    pub(super) fn take_events(&mut self, config: &FleetConfig) -> Vec<Event> {
        let size = config.engine.block_size as usize;
        let events = self.engine.take_events().into_iter();
        events
            .map(|event| match event {
                CacheEvent::Stored { parent, hashes, tokens } => Event::Stored {
                    engine_hashes: hashes,
                    parent,
                    seed: config.scope().seed(),
                    locals: tokens.chunks_exact(size).map(block::local).collect(),
                },
                CacheEvent::Removed { hash } => Event::Removed { engine_hashes: vec![hash] },
                CacheEvent::Cleared => Event::Cleared,
            })
            .collect()
    }
}
