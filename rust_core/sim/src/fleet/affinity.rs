//! `cache_aware` of vllm-router and of `SGLang`'s gateway, with the defaults of their command lines.
//!
//! Source: `policies/cache_aware.rs` of both. Loads too far apart: the shortest queue, whatever is cached. Else the engine
//! that the prompt's longest routed prefix went to, if that is a large enough part of the prompt. Else the shortest queue.
//! The index knows what was routed and never hears of evictions.

use fastrand::Rng;
use nebula_route::{RankId, Tree};

use super::host::Host;
use super::production::rank;
use super::queueing::shortest;
use super::rule::{Ask, Chosen, Rule};
use super::{FleetConfig, FleetError};
use crate::timing::Nanos;

/// `--cache-threshold`: least share of the prompt that is worth following.
const CACHE_THRESHOLD: f64 = 0.3;
/// `--balance-abs-threshold` and `--balance-rel-threshold`: both must be exceeded.
const BALANCE_ABS: u32 = 64;
const BALANCE_REL: f64 = 1.5;
/// `--max-tree-size` in characters per engine, four to a token, and the bytes that our index takes for a block.
const TREE_CHARS: u64 = 1 << 26;
const CHARS_PER_TOKEN: u64 = 4;
const BYTES_PER_BLOCK: u64 = 9;

/// Routed prefixes and requests in flight.
pub(super) struct Affinity {
    routed: Tree,
    in_flight: Vec<u32>,
    /// By request id.
    hosts: Vec<usize>,
    held: Vec<(RankId, u32)>,
    rng: Rng,
}

// === impl Affinity ===

impl Affinity {
    pub(super) fn new(config: &FleetConfig) -> Affinity {
        let blocks = TREE_CHARS / CHARS_PER_TOKEN / u64::from(config.engine.block_size);
        Affinity {
            routed: Tree::new(blocks.max(1) * BYTES_PER_BLOCK * u64::from(config.engines)),
            in_flight: vec![0; config.engines as usize],
            hosts: Vec::new(),
            held: Vec::new(),
            rng: Rng::with_seed(config.seed),
        }
    }

    fn imbalanced(&self) -> bool {
        let most = self.in_flight.iter().copied().max().unwrap_or(0);
        let least = self.in_flight.iter().copied().min().unwrap_or(0);
        most - least > BALANCE_ABS && f64::from(most) > BALANCE_REL * f64::from(least)
    }

    /// The engine with the longest routed prefix, and its tokens.
    fn best_match(&mut self, ask: &Ask<'_>) -> Option<(usize, u32)> {
        self.routed.matches(ask.chain.hashes(), &mut self.held);
        let (rank, blocks) =
            self.held.iter().copied().max_by_key(|(rank, blocks)| (*blocks, u32::MAX - rank.0))?;
        Some((rank.0 as usize, ask.chain.tokens(blocks)))
    }
}

impl Rule for Affinity {
    fn choose(
        &mut self,
        ask: &Ask<'_>,
        _hosts: &[Host],
        _now: Nanos,
    ) -> Result<Chosen, FleetError> {
        let matched = self.best_match(ask);
        let enough = |tokens: u32| f64::from(tokens) > CACHE_THRESHOLD * ask.tokens.len() as f64;
        let chosen = match matched {
            Some((host, predicted)) if enough(predicted) && !self.imbalanced() => {
                Chosen { host, predicted }
            }
            _ => Chosen { host: shortest(&self.in_flight, &mut self.rng), predicted: 0 },
        };
        self.routed.note_route(rank(chosen.host), ask.chain.hashes(), u64::MAX);
        self.in_flight[chosen.host] += 1;
        self.hosts.push(chosen.host);
        Ok(chosen)
    }

    fn ended(&mut self, id: usize) {
        self.in_flight[self.hosts[id]] -= 1;
    }
}
