//! The price of sending one request to one rank, in tokens of prefill work: what the rank must still compute before
//! this request's first token, plus what its decoding slows that down by, plus pressure when its KV cache is nearly
//! full. Every term is continuous: a small change of input is a small change of price.

use serde::Serialize;

use crate::{Config, Load};

/// The terms of a price; `total` is their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Terms {
    /// This request's tokens that the rank does not hold.
    pub uncached: f32,
    /// Tokens that the rank has booked and not computed.
    pub prefill_backlog: f32,
    /// What running requests slow the rank down by.
    pub decode: f32,
    /// What a nearly full KV cache costs: its evictions are later misses.
    pub pressure: f32,
    /// The sum.
    pub total: f32,
}

/// Prompt tokens that a rank is believed to hold, by where it holds them. Each token stands once, where it is nearest.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Cached {
    /// In the GPU's memory.
    pub gpu: u32,
    /// In the machine's memory, behind those.
    pub cpu: u32,
    /// In storage, behind those.
    pub storage: u32,
}

impl Terms {
    /// What the rank has on its hands without this request.
    #[must_use]
    pub fn load(&self) -> f32 {
        self.prefill_backlog + self.decode + self.pressure
    }
}

impl Cached {
    /// All of them.
    #[must_use]
    pub fn total(self) -> u32 {
        self.gpu.saturating_add(self.cpu).saturating_add(self.storage)
    }

    /// What they are worth in tokens that need not be computed: those of a slower tier must be loaded first, and a rank
    /// that does not deliver is believed by `credit`, 0 to 1.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of tokens; `as` saturates"
    )]
    pub fn worth(self, config: &Config, credit: f32) -> u32 {
        let tiers = self.gpu as f32
            + config.cpu_credit * self.cpu as f32
            + config.storage_credit * self.storage as f32;
        (credit * tiers).round() as u32
    }
}

/// The price of a request of `prompt_tokens`, of which `overlap_tokens` need not be computed.
///
/// At least one token is always computed: an engine never serves the last token of a prompt from its cache.
#[must_use]
pub fn price(config: &Config, load: &Load, prompt_tokens: u32, overlap_tokens: u32) -> Terms {
    let uncached =
        config.uncached_weight * prompt_tokens.saturating_sub(overlap_tokens).max(1) as f32;
    let prefill_backlog = load.prefill_tokens as f32;
    let decode = config.decode_request_tokens * load.running as f32
        + config.decode_resident_weight * load.resident_tokens as f32;
    let pressure = config.pressure_tokens * pressure(load.kv_usage, config.pressure_start);
    let total = uncached + prefill_backlog + decode + pressure;
    Terms { uncached, prefill_backlog, decode, pressure, total }
}

/// 0 up to `start`, 1 at a full cache, the square of the way between: gentle at first, firm at the end.
fn pressure(usage: f32, start: f32) -> f32 {
    let way = (usage - start) / (1.0 - start).max(f32::EPSILON);
    way.clamp(0.0, 1.0).powi(2)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "whole numbers of tokens are exact in f32")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::router::tests::config;

    fn load(prefill_tokens: u64, resident_tokens: u64, running: u32, kv_usage: f32) -> Load {
        Load { prefill_tokens, resident_tokens, running, kv_usage }
    }

    #[test]
    fn a_computed_token_counts_as_so_many_booked_ones() {
        let (config, idle) = (config("kv"), Load::default());
        let hit = price(&config, &idle, 1_000, 900);
        let busy = price(&config, &load(2_250, 0, 0, 0.0), 1_000, 900);
        assert_eq!(hit.total, 100.0 * config.uncached_weight);
        assert_eq!(busy.total, price(&config, &idle, 1_000, 0).total);
    }

    #[test]
    fn a_whole_hit_still_computes_a_token() {
        let config = config("kv");
        assert_eq!(price(&config, &Load::default(), 64, 64).uncached, config.uncached_weight);
    }

    #[test]
    fn pressure_starts_at_its_threshold_and_ends_at_its_full_price() {
        let config = config("kv");
        assert_eq!(price(&config, &load(0, 0, 0, config.pressure_start), 1, 0).pressure, 0.0);
        assert_eq!(price(&config, &load(0, 0, 0, 1.0), 1, 0).pressure, config.pressure_tokens);
    }

    proptest! {
        #[test]
        fn more_load_or_less_overlap_never_makes_it_cheaper(
            prompt in 1u32..100_000, overlap in 0u32..100_000, more in 0u32..1_000,
            prefill in 0u64..1_000_000, running in 0u32..512, usage in 0f32..1.0,
        ) {
            let config = config("kv");
            let at = load(prefill, u64::from(running) * 100, running, usage);
            let base = price(&config, &at, prompt, overlap);
            let less_overlap = price(&config, &at, prompt, overlap.saturating_sub(more));
            let busier = load(prefill + u64::from(more), at.resident_tokens, running + 1, (usage + 0.01).min(1.0));
            prop_assert!(less_overlap.total >= base.total);
            prop_assert!(price(&config, &busier, prompt, overlap).total >= base.total);
        }

        #[test]
        fn there_is_no_cliff(usage in 0f32..0.999, prefill in 0u64..1_000_000) {
            let config = config("kv");
            let here = price(&config, &load(prefill, 0, 0, usage), 1_000, 0).total;
            let there = price(&config, &load(prefill, 0, 0, usage + 0.001), 1_000, 0).total;
            prop_assert!((there - here).abs() <= 0.03 * config.pressure_tokens);
        }
    }
}
