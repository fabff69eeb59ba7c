//! The self-check: what was predicted of a request's cached tokens against what its engine reports, in the reply or,
//! where replies do not tell, in its counters.

use std::collections::HashMap;

use nebula_route::{Check, Engine, EngineId, Verdict};
use parking_lot::Mutex;

use crate::context::Context;
use crate::usage::Usage;

/// Counters are compared if so much of the engine's traffic is known here, and not much more: another gateway's requests
/// would count too.
const KNOWN: std::ops::RangeInclusive<f64> = 0.9..=1.1;

/// What replies did not tell, by rank.
#[derive(Default)]
pub(crate) struct Checks {
    silent: Mutex<HashMap<(EngineId, u32), Silent>>,
}

/// The replies of one rank that did not tell their cached tokens, since its counters were read.
#[derive(Clone, Copy, Debug, Default)]
struct Silent {
    prompt: u64,
    predicted: u64,
    /// Some reply of this rank did tell: one that does not then means none.
    tells: bool,
    counters: Option<Counters>,
}

/// An engine's prefix-cache counters of one rank, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counters {
    pub(crate) queries: u64,
    pub(crate) hits: u64,
}

/// A prediction, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Predicted {
    pub(crate) prompt: u32,
    pub(crate) overlap: u32,
    /// Whether it can be right to the block.
    pub(crate) exact: bool,
}

impl Checks {
    /// Holds a finished request against its prediction; gives the cached tokens that the engine is known to have found.
    pub(crate) fn reply(
        &self,
        context: &Context,
        engine: &Engine,
        rank: u32,
        predicted: Predicted,
        usage: Usage,
    ) -> Option<u64> {
        let prompt = usage.prompt?;
        let mut silent = self.silent.lock();
        let known = silent.entry((engine.id(), rank)).or_default();
        known.tells |= usage.cached.is_some();
        // vLLM leaves the field out where nothing was cached.
        let cached = usage.cached.or(known.tells.then_some(0));
        let overlap = predicted.in_tokens_of(prompt);
        let Some(cached) = cached else {
            known.prompt += prompt;
            known.predicted += overlap;
            return None;
        };
        drop(silent);
        judge(context, engine, rank, overlap, cached);
        Some(cached)
    }

    /// Holds what replies did not tell against an engine's counters.
    pub(crate) fn counters(&self, context: &Context, engine: &Engine, rank: u32, now: Counters) {
        let mut silent = self.silent.lock();
        let known = silent.entry((engine.id(), rank)).or_default();
        let since = std::mem::take(known);
        *known = Silent { tells: since.tells, counters: Some(now), ..Silent::default() };
        drop(silent);
        let Some(before) = since.counters.filter(|before| before.queries <= now.queries) else {
            return;
        };
        let asked = now.queries - before.queries;
        if asked > 0 && KNOWN.contains(&(since.prompt as f64 / asked as f64)) {
            judge(context, engine, rank, since.predicted, now.hits.saturating_sub(before.hits));
        }
    }

    /// Forgets engines that left.
    pub(crate) fn retain(&self, kept: impl Fn(EngineId) -> bool) {
        self.silent.lock().retain(|(id, _), _| kept(*id));
    }
}

// === impl Predicted ===

impl Predicted {
    /// The overlap in the engine's own tokens: that of a text is an estimate, its share of the prompt is not.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a number of tokens"
    )]
    fn in_tokens_of(self, prompt: u64) -> u64 {
        if self.exact || self.prompt == 0 {
            return self.overlap.into();
        }
        (f64::from(self.overlap) / f64::from(self.prompt) * prompt as f64).round() as u64
    }
}

fn judge(context: &Context, engine: &Engine, rank: u32, predicted: u64, actual: u64) {
    let Some(belief) = engine.belief(rank) else {
        return;
    };
    let tokens = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
    let check = Check { predicted: tokens(predicted), actual: tokens(actual) };
    let now = context.clock.now();
    let name = &engine.spec().name;
    match belief.check(check, now) {
        Verdict::Same => {}
        Verdict::Diverged => {
            let credit = belief.credit(now);
            tracing::warn!(
                engine = name,
                rank,
                credit,
                "engine holds less of its prompts than predicted; its overlap counts for what it delivers"
            );
            // Perhaps its prompts became others.
            context.health.examine(engine.id());
        }
        Verdict::Recovered => {
            tracing::info!(engine = name, rank, "engine delivers what is predicted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_of_text_is_a_share_and_one_of_tokens_is_not() {
        let text = Predicted { prompt: 100, overlap: 50, exact: false };
        assert_eq!(text.in_tokens_of(80), 40);
        assert_eq!(Predicted { exact: true, ..text }.in_tokens_of(80), 50);
        assert_eq!(Predicted { prompt: 0, ..text }.in_tokens_of(80), 50);
    }
}
