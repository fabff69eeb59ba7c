//! llm-d's precise prefix routing: a weighted sum of scores.
//!
//! Source: `deploy/config/epp-precise-prefix-cache-config.yaml` of llm-d's router: 2 x share of the prompt that is cached,
//! 1 x free share of the KV cache, 1 x queue length between the longest (0) and the shortest (1). The highest sum wins. A
//! route counts as cached for 2 s, until its events have come. It sees the engines as they are at this moment.

use fastrand::Rng;
use nebula_route::event::Event;
use nebula_route::{RankId, Tree, pick};

use super::host::Host;
use super::production::{millis, rank};
use super::rule::{Ask, Chosen, Rule};
use super::{FleetConfig, FleetError};
use crate::timing::Nanos;

const PREFIX: f64 = 2.0;
const USAGE: f64 = 1.0;
const QUEUE: f64 = 1.0;
/// How long a route counts as cached.
const SPECULATIVE_MS: u64 = 2_000;
/// The index is bounded by what the engines hold.
const NO_BOUND: u64 = u64::MAX;

/// What the engines hold.
pub(super) struct Scores {
    index: Tree,
    held: Vec<(RankId, u32)>,
    rng: Rng,
}

// === impl Scores ===

impl Scores {
    pub(super) fn new(config: &FleetConfig) -> Scores {
        Scores { index: Tree::new(NO_BOUND), held: Vec::new(), rng: Rng::with_seed(config.seed) }
    }
}

impl Rule for Scores {
    fn choose(&mut self, ask: &Ask<'_>, hosts: &[Host], now: Nanos) -> Result<Chosen, FleetError> {
        let chain = ask.chain.hashes();
        self.index.expire(millis(now));
        self.index.matches(chain, &mut self.held);
        let mut overlaps = vec![0; hosts.len()];
        for (rank, blocks) in &self.held {
            overlaps[rank.0 as usize] = *blocks;
        }
        let waiting = || hosts.iter().map(|host| host.engine.scheduler().waiting());
        let (least, most) = (waiting().min().unwrap_or(0), waiting().max().unwrap_or(0));
        let score = |(host, overlap): (&Host, &u32)| {
            let scheduler = host.engine.scheduler();
            let queue = match most - least {
                0 => 1.0,
                span => (most - scheduler.waiting()) as f64 / span as f64,
            };
            let prefix = f64::from(*overlap) / chain.len().max(1) as f64;
            PREFIX * prefix + USAGE * (1.0 - scheduler.cache().usage()) + QUEUE * queue
        };
        #[expect(clippy::cast_possible_truncation, reason = "a price needs no more precision")]
        let prices = hosts.iter().zip(&overlaps).map(|both| -score(both) as f32);
        let host = pick::lowest(prices, &mut self.rng).unwrap_or(0);
        self.index.note_route(rank(host), chain, millis(now) + SPECULATIVE_MS);
        Ok(Chosen { host, predicted: ask.chain.tokens(overlaps[host]) })
    }

    fn wants_events(&self) -> bool {
        true
    }

    fn told(&mut self, host: usize, events: &[Event]) {
        for event in events {
            self.index.apply(rank(host), event);
        }
    }
}
