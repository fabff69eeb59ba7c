//! One request's decision, and everything that changes what later decisions see.

use std::sync::Arc;

use fastrand::Rng;
use parking_lot::Mutex;

use crate::candidate::{Candidate, Candidates, candidates, none_can};
use crate::engine::Engine;
use crate::fleet::{Fleet, NextIds};
use crate::health::Standing;
use crate::sync::{AtomicU64, Ordering};
use crate::tree::{Applied, Overlap, SharedTree, TreeStats};
use crate::{
    Cached, Chain, Config, Error, Event, Guard, Millis, Policy, Query, RankId, Swap, Terms, Tier,
    cost,
};

mod learn;

/// The brain of a gateway: fleet, index, books, policy.
pub struct Router {
    config: Config,
    policy: Policy,
    /// Asked and not followed.
    pub(crate) shadow: Option<Policy>,
    fleet: Swap<Fleet>,
    /// Held while a new fleet is made, so that two changes do not lose each other.
    next_ids: Mutex<NextIds>,
    tree: SharedTree,
    turn: AtomicU64,
    pub(crate) rng: Mutex<Rng>,
}

/// The engine that gets the request, and why. The load is booked until the guard goes.
#[derive(Debug)]
pub struct Choice {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The rank in the index.
    pub rank: RankId,
    /// The rank within its engine.
    pub rank_index: u32,
    /// Prompt tokens that the rank is believed to hold.
    pub cached: Cached,
    /// The share of them that counted in the price.
    pub credit: f32,
    /// Prompt tokens in all; an estimate where the prompt is text.
    pub prompt_tokens: u32,
    /// Whether the prediction can be right to the block.
    pub exact: bool,
    /// Requests that were booked on the rank before this one.
    pub running_before: u32,
    /// The price.
    pub terms: Terms,
    /// Ranks that could have taken it.
    pub candidates: u32,
    /// The cheapest rank but the chosen one.
    pub runner_up: Option<Other>,
    /// What the shadow policy would have chosen, where there is one.
    pub shadow: Option<Other>,
    /// Returns the load when it is dropped.
    pub guard: Guard,
}

/// A rank that was not chosen, or only by the shadow policy.
#[derive(Clone, Debug)]
pub struct Other {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The rank within its engine.
    pub rank_index: u32,
    /// The price of the request there.
    pub cost: f32,
}

/// How long a route counts before the engine has answered: it draws requests of the same prefix together while the first
/// one is computed, and a request that the engine never took leaves no lasting claim.
const UNANSWERED_MS: Millis = 60_000;

impl Router {
    /// A router without engines. Equal seeds make equal random choices.
    ///
    /// # Errors
    /// [`Error::UnknownPolicy`].
    pub fn new(config: Config, seed: u64) -> Result<Router, Error> {
        Ok(Router {
            policy: config.policy.parse()?,
            shadow: config.shadow_policy.as_deref().map(str::parse).transpose()?,
            fleet: Swap::new(Fleet::default()),
            next_ids: Mutex::default(),
            tree: SharedTree::new(config.tree_max_bytes),
            turn: AtomicU64::new(1),
            rng: Mutex::new(Rng::with_seed(seed)),
            config,
        })
    }

    /// Chooses an engine, books the load, and notes the route in the index.
    ///
    /// # Cost
    /// O(blocks matched + candidate ranks); no allocation per rank.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], or [`Error::NoEngine`] if nobody can take it now.
    pub fn route(&self, query: &Query<'_>, now: Millis) -> Result<Choice, Error> {
        let fleet = self.fleet.load();
        let candidates = self.priced(&fleet, query, now)?;
        let mut rng = self.rng.lock();
        let chosen = self.policy.choose(&candidates, query.session, &mut rng);
        let chosen = chosen.ok_or_else(|| none_can(&fleet, query.model))?;
        let shadow = self.shadow.and_then(|shadow| {
            shadow.choose(&candidates, query.session, &mut rng).map(|at| &candidates[at])
        });
        drop(rng);
        let shadow = shadow.map(Other::of);
        Ok(Choice { shadow, ..self.book(&candidates, chosen, now) })
    }

    /// The ranks that can take a request, each with its price.
    pub(crate) fn priced<'f>(
        &self,
        fleet: &'f Fleet,
        query: &Query<'f>,
        now: Millis,
    ) -> Result<Candidates<'f>, Error> {
        let mut candidates = candidates(fleet, query, now)?;
        if self.reads_tree() {
            self.overlaps(query.chain, &mut candidates);
            for (_, chain) in query.other_chains {
                self.overlaps(chain, &mut candidates);
            }
        }
        for candidate in &mut candidates {
            let worth = candidate.cached.worth(&self.config, candidate.credit);
            let prompt_tokens = candidate.chain.prompt_tokens();
            candidate.terms = cost::price(&self.config, &candidate.load, prompt_tokens, worth);
        }
        Ok(candidates)
    }

    /// The engine has answered: what was booked as its route is now what it holds.
    pub fn keep(&self, choice: &Choice, chain: &Chain, now: Millis) {
        if self.reads_tree() {
            let until = now + self.route_ttl(&choice.engine, choice.rank_index, chain);
            self.tree.note_route(choice.rank, chain.hashes(), until);
        }
    }

    /// What an engine says of the blocks of one of its ranks.
    pub fn apply(&self, rank: RankId, tier: Tier, events: &[Event]) -> Applied {
        let mut applied = Applied::default();
        for event in events {
            applied += self.tree.apply_tier(rank, tier, event);
        }
        applied
    }

    /// Blocks of a rank that its events name, in whatever tier.
    pub fn exact_blocks(&self, rank: RankId) -> u64 {
        self.tree.named(rank)
    }

    /// Forgets all that a rank holds: what its events said is incomplete.
    pub fn clear(&self, rank: RankId) {
        self.tree.remove_rank(rank);
    }

    /// Drops routes whose time is over.
    pub fn expire(&self, now: Millis) {
        self.tree.expire(now);
    }

    /// The index in figures.
    pub fn tree_stats(&self) -> TreeStats {
        self.tree.stats()
    }

    /// The policy that chooses.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn reads_tree(&self) -> bool {
        self.policy.reads_tree() || self.shadow.is_some_and(Policy::reads_tree)
    }

    /// Fills in what the ranks that cut their prompts as `chain` hold of it.
    fn overlaps(&self, chain: &Chain, candidates: &mut Candidates<'_>) {
        let concerned = |candidate: &Candidate<'_>| std::ptr::eq(candidate.chain, chain);
        if chain.hashes().is_empty() || !candidates.iter().any(concerned) {
            return;
        }
        let mut held = Vec::new();
        self.tree.overlaps(chain.hashes(), &mut held);
        held.sort_unstable_by_key(|(rank, _)| *rank);
        for candidate in candidates.iter_mut().filter(|candidate| concerned(candidate)) {
            let rank = candidate.engine.rank(candidate.rank_index);
            if let Ok(at) = held.binary_search_by_key(&rank, |(rank, _)| *rank) {
                candidate.cached = cached(chain, held[at].1);
            }
        }
    }

    fn book(&self, candidates: &Candidates<'_>, chosen: usize, now: Millis) -> Choice {
        let runner_up = runner_up(candidates, chosen).map(|at| Other::of(&candidates[at]));
        let chosen = &candidates[chosen];
        let (engine, chain) = (chosen.engine, chosen.chain);
        let prompt_tokens = chain.prompt_tokens();
        // A policy that does not read the index books what it would without one: a shadow that does changes nothing.
        let read = self.policy.reads_tree();
        let worth = if read { chosen.cached.worth(&self.config, chosen.credit) } else { 0 };
        let prefill = u64::from(prompt_tokens.saturating_sub(worth));
        let ledger = engine.ledger(chosen.rank_index);
        ledger.take_turn(self.turn.fetch_add(1, Ordering::Relaxed));
        if engine.standing(now) == Standing::Trial {
            engine.trial(&self.config, now);
        }
        let guard = ledger.book(prefill, prompt_tokens.into());
        let rank = engine.rank(chosen.rank_index);
        if self.reads_tree() {
            let ttl = self.config.route_ttl_ms.min(UNANSWERED_MS);
            self.tree.note_route(rank, chain.hashes(), now + ttl);
        }
        Choice {
            engine: Arc::clone(engine),
            rank,
            rank_index: chosen.rank_index,
            cached: chosen.cached,
            credit: chosen.credit,
            prompt_tokens,
            exact: chain.is_exact(),
            running_before: chosen.load.running,
            terms: chosen.terms,
            candidates: u32::try_from(candidates.len()).unwrap_or(u32::MAX),
            runner_up,
            shadow: None,
            guard,
        }
    }

    /// How long a route counts once the engine has answered. Events soon tell more, if they tell of these blocks at all.
    fn route_ttl(&self, engine: &Engine, rank_index: u32, chain: &Chain) -> Millis {
        let told = engine.belief(rank_index).is_some_and(crate::Belief::has_events);
        if told && chain.is_exact() {
            self.config.event_route_ttl_ms
        } else {
            self.config.route_ttl_ms
        }
    }
}

/// Blocks by tier as tokens that need not be computed.
fn cached(chain: &Chain, blocks: Overlap) -> Cached {
    let near = chain.tokens(blocks.gpu);
    let middle = chain.tokens(blocks.gpu.saturating_add(blocks.cpu));
    let all = chain.tokens(blocks.total());
    Cached { gpu: near, cpu: middle - near, storage: all - middle }
}

/// The cheapest candidate but `chosen`.
pub(crate) fn runner_up(candidates: &Candidates<'_>, chosen: usize) -> Option<usize> {
    let others = (0..candidates.len()).filter(|at| *at != chosen);
    let price = |at: &usize| candidates[*at].terms.total;
    others.min_by(|a, b| price(a).total_cmp(&price(b)))
}

// === impl Choice ===

impl Choice {
    /// Prompt tokens that the rank is believed to hold, in whatever tier.
    #[must_use]
    pub fn overlap_tokens(&self) -> u32 {
        self.cached.total()
    }

    /// Whether the shadow policy would have chosen another rank, and how much cheaper that one seemed; `None` without a
    /// shadow policy.
    #[must_use]
    pub fn shadow_gain(&self) -> Option<(bool, f32)> {
        let shadow = self.shadow.as_ref()?;
        let differs =
            shadow.engine.id() != self.engine.id() || shadow.rank_index != self.rank_index;
        Some((differs, self.terms.total - shadow.cost))
    }
}

// === impl Other ===

impl Other {
    fn of(candidate: &Candidate<'_>) -> Other {
        Other {
            engine: Arc::clone(candidate.engine),
            rank_index: candidate.rank_index,
            cost: candidate.terms.total,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
