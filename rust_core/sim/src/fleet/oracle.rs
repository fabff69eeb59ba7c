//! A greedy choice with perfect knowledge: the engine that would give this request its first token soonest, by the
//! engines' true queues, caches and times. What any rule could reach that looks at one request at a time.

use fastrand::Rng;
use nebula_route::pick;

use super::host::Host;
use super::rule::{Ask, Chosen, Rule};
use super::{FleetConfig, FleetError};
use crate::EngineConfig;
use crate::hash::{block_hash, chain_seed};
use crate::timing::{Nanos, Work};

/// The engines' own model of time.
pub(super) struct Oracle {
    engine: EngineConfig,
    rng: Rng,
}

// === impl Oracle ===

impl Oracle {
    pub(super) fn new(config: &FleetConfig) -> Oracle {
        Oracle { engine: config.engine.clone(), rng: Rng::with_seed(config.seed) }
    }

    /// Nanoseconds until a prompt of which `cached` tokens are there would have its first token.
    fn wait(&self, host: &Host, tokens: u32, cached: u32, now: Nanos) -> f64 {
        let scheduler = host.engine.scheduler();
        let mut work = scheduler.outstanding();
        work.prefill(tokens - cached, cached);
        let steps = work.prefill_tokens.div_ceil(self.engine.max_num_batched_tokens).max(1);
        let each = Work {
            decode_seqs: work.decode_seqs,
            resident_tokens: work.resident_tokens,
            ..Work::default()
        };
        let once = Work { decode_seqs: 0, resident_tokens: 0, ..work };
        let timing = &self.engine.timing;
        let base = timing.step(Work::default()) as f64;
        let in_flight = host.engine.ends().map_or(0, |ends| ends.saturating_sub(now)) as f64;
        in_flight + f64::from(steps) * timing.step(each) as f64 + timing.step(once) as f64 - base
    }
}

impl Rule for Oracle {
    fn choose(&mut self, ask: &Ask<'_>, hosts: &[Host], now: Nanos) -> Result<Chosen, FleetError> {
        let size = self.engine.block_size;
        let mut last = chain_seed("");
        let chain: Vec<u64> = ask
            .tokens
            .chunks_exact(size as usize)
            .map(|block| {
                last = block_hash(last, block);
                last
            })
            .collect();
        let tokens = u32::try_from(ask.tokens.len()).unwrap_or(u32::MAX);
        let hittable = &chain[..chain.len().min((tokens.saturating_sub(1) / size) as usize)];
        let cached = |host: &Host| {
            let hits = host.engine.scheduler().cache().find(hittable).count();
            u32::try_from(hits).unwrap_or(u32::MAX) * size
        };
        let overlaps: Vec<u32> = hosts.iter().map(cached).collect();
        let waits =
            hosts.iter().zip(&overlaps).map(|(host, cached)| self.wait(host, tokens, *cached, now));
        #[expect(clippy::cast_possible_truncation, reason = "microseconds are precise enough")]
        let waits: Vec<f32> = waits.map(|ns| (ns / 1e3) as f32).collect();
        let host = pick::lowest(waits, &mut self.rng).unwrap_or(0);
        Ok(Chosen { host, predicted: overlaps[host] })
    }
}
