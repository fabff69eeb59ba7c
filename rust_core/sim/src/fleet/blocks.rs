//! Dynamo's KV router: a cost in blocks.
//!
//! Source: `lib/kv-router/src/scheduling/selector/default.rs` with the defaults of `scheduling/config.rs`:
//! `prefill blocks - overlap + potential decode blocks`, where the prefill blocks are those of this prompt and of all
//! prompts that wait for their first token, and the decode blocks are the distinct blocks of all active requests, this one
//! included. The index follows the engines' events alone. Equal costs: one at random.

use std::collections::HashMap;

use fastrand::Rng;
use nebula_route::event::Event;
use nebula_route::{RankId, Tree, pick};

use super::host::Host;
use super::production::rank;
use super::rule::{Ask, Chosen, Rule};
use super::{FleetConfig, FleetError};
use crate::timing::Nanos;

/// The index is bounded by what the engines hold.
const NO_BOUND: u64 = u64::MAX;

/// Active requests, and what the engines hold.
pub(super) struct Blocks {
    index: Tree,
    block_size: u32,
    active: Vec<Active>,
    /// By request id.
    booked: Vec<Booked>,
    held: Vec<(RankId, u32)>,
    rng: Rng,
}

/// What is active on one engine.
#[derive(Default)]
struct Active {
    /// Each block of an active request, and how many requests share it.
    blocks: HashMap<u64, u32>,
    /// Tokens of prompts that wait for their first token.
    prefill_tokens: u64,
}

struct Booked {
    host: usize,
    chain: Vec<u64>,
    prefill_tokens: u64,
}

// === impl Blocks ===

impl Blocks {
    pub(super) fn new(config: &FleetConfig) -> Blocks {
        Blocks {
            index: Tree::new(NO_BOUND),
            block_size: config.engine.block_size,
            active: (0..config.engines).map(|_| Active::default()).collect(),
            booked: Vec::new(),
            held: Vec::new(),
            rng: Rng::with_seed(config.seed),
        }
    }

    fn first_token(&mut self, id: usize) {
        let booked = &mut self.booked[id];
        let tokens = std::mem::take(&mut booked.prefill_tokens);
        self.active[booked.host].prefill_tokens -= tokens;
    }
}

impl Rule for Blocks {
    fn choose(&mut self, ask: &Ask<'_>, hosts: &[Host], _now: Nanos) -> Result<Chosen, FleetError> {
        let chain = ask.chain.hashes();
        self.index.matches(chain, &mut self.held);
        let mut overlaps = vec![0; hosts.len()];
        for (rank, blocks) in &self.held {
            overlaps[rank.0 as usize] = *blocks;
        }
        let size = f64::from(self.block_size);
        let price = |(active, overlap): (&Active, &u32)| {
            let prefill = (active.prefill_tokens as f64 + ask.tokens.len() as f64) / size;
            let decode = active.blocks.len() + chain.len() - active.shared(chain);
            (prefill - f64::from(*overlap)).max(0.0) + decode as f64
        };
        #[expect(clippy::cast_possible_truncation, reason = "a price needs no more precision")]
        let prices = self.active.iter().zip(&overlaps).map(|both| price(both) as f32);
        let host = pick::lowest(prices, &mut self.rng).unwrap_or(0);
        let predicted = ask.chain.tokens(overlaps[host]);
        let prefill_tokens = ask.tokens.len() as u64 - u64::from(predicted);
        self.active[host].prefill_tokens += prefill_tokens;
        self.active[host].book(chain);
        self.booked.push(Booked { host, chain: chain.to_vec(), prefill_tokens });
        Ok(Chosen { host, predicted })
    }

    fn wants_events(&self) -> bool {
        true
    }

    fn answered(&mut self, id: usize, _now: Nanos) {
        self.first_token(id);
    }

    fn ended(&mut self, id: usize) {
        self.first_token(id);
        let Booked { host, chain, .. } = &mut self.booked[id];
        self.active[*host].release(&std::mem::take(chain));
    }

    fn told(&mut self, host: usize, events: &[Event]) {
        for event in events {
            self.index.apply(rank(host), event);
        }
    }
}

// === impl Active ===

impl Active {
    /// Leading blocks of `chain` that an active request has. The active blocks are prefixes, so it can be halved.
    fn shared(&self, chain: &[u64]) -> usize {
        chain.partition_point(|block| self.blocks.contains_key(block))
    }

    fn book(&mut self, chain: &[u64]) {
        for block in chain {
            *self.blocks.entry(*block).or_default() += 1;
        }
    }

    fn release(&mut self, chain: &[u64]) {
        for block in chain {
            if let Some(users) = self.blocks.get_mut(block) {
                *users -= 1;
                if *users == 0 {
                    self.blocks.remove(block);
                }
            }
        }
    }
}
