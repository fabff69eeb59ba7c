//! `least_load` of SMG (Shepherd Model Gateway): the time to work off what an engine has, and a penalty for a full cache.
//!
//! Source: `policies/least_load.rs`: `(queued + in-flight tokens) / throughput + 0.15 * k / (1 - k)` seconds, with `k` the
//! KV usage that the engine reports. It sees the engines as they are at this moment, which flatters it.

use fastrand::Rng;
use nebula_route::pick;

use super::host::Host;
use super::rule::{Ask, Chosen, Rule};
use super::{FleetConfig, FleetError};
use crate::timing::Nanos;

const KV_WEIGHT: f64 = 0.15;
/// Keeps the penalty of a full cache finite.
const FULL: f64 = 0.999;

/// Tokens in flight.
pub(super) struct Queueing {
    /// Tokens that an engine works off in a second.
    throughput: f64,
    tokens: Vec<u64>,
    /// By request id: where it is, and its tokens.
    booked: Vec<(usize, u64)>,
    rng: Rng,
}

// === impl Queueing ===

impl Queueing {
    pub(super) fn new(config: &FleetConfig) -> Queueing {
        let us = config.engine.timing.prefill_us_per_token.max(1e-3);
        Queueing {
            throughput: 1e6 / us,
            tokens: vec![0; config.engines as usize],
            booked: Vec::new(),
            rng: Rng::with_seed(config.seed),
        }
    }
}

impl Rule for Queueing {
    fn choose(&mut self, ask: &Ask<'_>, hosts: &[Host], _now: Nanos) -> Result<Chosen, FleetError> {
        let price = |(tokens, host): (&u64, &Host)| {
            let usage = host.engine.scheduler().cache().usage().min(FULL);
            *tokens as f64 / self.throughput + KV_WEIGHT * usage / (1.0 - usage)
        };
        #[expect(clippy::cast_possible_truncation, reason = "a price needs no more precision")]
        let prices = self.tokens.iter().zip(hosts).map(|both| price(both) as f32);
        let host = pick::lowest(prices, &mut self.rng).unwrap_or(0);
        self.tokens[host] += ask.tokens.len() as u64;
        self.booked.push((host, ask.tokens.len() as u64));
        Ok(Chosen { host, predicted: 0 })
    }

    fn ended(&mut self, id: usize) {
        let (host, tokens) = self.booked[id];
        self.tokens[host] -= tokens;
    }
}

/// The shortest queue, ties broken at random.
pub(super) fn shortest(queues: &[u32], rng: &mut Rng) -> usize {
    pick::lowest(queues.iter().map(|queue| *queue as f32), rng).unwrap_or(0)
}
