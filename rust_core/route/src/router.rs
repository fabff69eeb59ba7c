//! One request's decision, and everything that changes what later decisions see.

use std::sync::Arc;

use fastrand::Rng;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::fleet::{Fleet, NextIds};
use crate::health::Standing;
use crate::policy::Candidate;
use crate::sync::{AtomicU64, Ordering};
use crate::tree::{SharedTree, TreeStats};
use crate::{
    Chain, Config, Engine, EngineId, EngineSpec, Error, Event, Facts, Guard, Millis, ModelFact,
    Outcome, Policy, Probe, RankId, Swap, Terms, cost,
};

/// The brain of a gateway: fleet, index, books, policy.
pub struct Router {
    config: Config,
    policy: Policy,
    fleet: Swap<Fleet>,
    /// Held while a new fleet is made, so that two changes do not lose each other.
    next_ids: Mutex<NextIds>,
    tree: SharedTree,
    turn: AtomicU64,
    rng: Mutex<Rng>,
}

/// What a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The prompt's blocks.
    pub chain: &'a Chain,
    /// The conversation, for session affinity.
    pub session: Option<&'a str>,
    /// The data-parallel rank that the client asks for.
    pub rank: Option<u32>,
    /// Engines that were tried already.
    pub excluded: &'a [EngineId],
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
    pub overlap_tokens: u32,
    /// Prompt tokens in all; an estimate where the prompt is text.
    pub prompt_tokens: u32,
    /// Requests that were booked on the rank before this one.
    pub running_before: u32,
    /// The price.
    pub terms: Terms,
    /// Ranks that could have taken it.
    pub candidates: u32,
    /// Returns the load when it is dropped.
    pub guard: Guard,
}

/// How long a route counts before the engine has answered: it draws requests of the same prefix together while the first
/// one is computed, and a request that the engine never took leaves no lasting claim.
const UNANSWERED_MS: Millis = 60_000;

/// Candidates and overlaps of one decision; on the stack for fleets up to this size, one allocation beyond.
type Candidates<'a> = SmallVec<[Candidate<'a>; 32]>;

impl Router {
    /// A router without engines. Equal seeds make equal random choices.
    ///
    /// # Errors
    /// [`Error::UnknownPolicy`].
    pub fn new(config: Config, seed: u64) -> Result<Router, Error> {
        Ok(Router {
            policy: config.policy.parse()?,
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
        let mut candidates = candidates(&fleet, query, now)?;
        if self.policy.reads_tree() {
            self.overlaps(query.chain, &mut candidates);
        }
        for candidate in &mut candidates {
            let prompt_tokens = query.chain.prompt_tokens();
            candidate.terms =
                cost::price(&self.config, &candidate.load, prompt_tokens, candidate.overlap_tokens);
        }
        let chosen = self.policy.choose(&candidates, query.session, &mut self.rng.lock());
        let chosen = chosen.ok_or_else(|| none_can(&fleet, query.model))?;
        Ok(self.book(&candidates[chosen], query.chain, candidates.len(), now))
    }

    /// The fleet from now on. Engines whose spec is unchanged keep their state, load and blocks.
    ///
    /// # Errors
    /// [`Error::BadEngine`]; the fleet then stays as it is.
    pub fn set_engines(&self, specs: Vec<EngineSpec>) -> Result<(), Error> {
        let mut next_ids = self.next_ids.lock();
        let before = self.fleet.load();
        let after = before.replaced(specs, &mut next_ids)?;
        let stays = |engine: &Engine| after.engines().iter().any(|other| other.id() == engine.id());
        let gone: Vec<_> =
            before.engines().iter().filter(|engine| !stays(engine)).cloned().collect();
        self.fleet.store(after);
        for engine in &gone {
            self.forget(engine);
        }
        Ok(())
    }

    /// Takes an engine out of the choice, or puts it back; what it has goes on.
    ///
    /// # Errors
    /// [`Error::UnknownEngine`].
    pub fn drain(&self, name: &str, on: bool) -> Result<(), Error> {
        self.fleet.load().find(name)?.drain(on);
        Ok(())
    }

    /// All engines of now.
    pub fn engines(&self) -> Vec<Arc<Engine>> {
        self.fleet.load().engines().to_vec()
    }

    /// The union of the engines' models, by name. Engines that are down count: what they have is known.
    pub fn models(&self) -> Vec<ModelFact> {
        self.fleet.load().models()
    }

    /// What an engine says of itself.
    pub fn learn(&self, engine: &Engine, facts: Facts) {
        let _one_change_at_a_time = self.next_ids.lock();
        if engine.facts().as_deref() != Some(&facts) {
            self.fleet.store(self.fleet.load().learned(engine, facts));
        }
    }

    /// The KV usage that an engine reports for one of its ranks.
    pub fn set_kv_usage(&self, engine: &Engine, rank_index: u32, usage: f32) {
        engine.set_kv_usage(rank_index, usage);
    }

    /// How a request went. An engine whose process is gone has lost its cache too.
    pub fn note(&self, engine: &Engine, outcome: Outcome, now: Millis) {
        if engine.note(outcome, &self.config, now) {
            self.forget(engine);
        }
    }

    /// What a health probe found. An engine whose process is gone has lost its cache too.
    pub fn probe(&self, engine: &Engine, probe: Probe, now: Millis) {
        if engine.probe(probe, &self.config, now) {
            self.forget(engine);
        }
    }

    /// The engine has answered: what was booked as its route is now what it holds.
    pub fn keep(&self, choice: &Choice, chain: &Chain, now: Millis) {
        if self.policy.reads_tree() {
            let until = now + self.config.route_ttl_ms;
            self.tree.note_route(choice.rank, chain.hashes(), until);
        }
    }

    /// What an engine says of the blocks of one of its ranks.
    pub fn apply(&self, rank: RankId, events: &[Event]) {
        for event in events {
            self.tree.apply(rank, event);
        }
    }

    /// Drops routes whose time is over.
    pub fn expire(&self, now: Millis) {
        self.tree.expire(now);
    }

    /// The index in figures.
    pub fn tree_stats(&self) -> TreeStats {
        self.tree.stats()
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn overlaps(&self, chain: &Chain, candidates: &mut Candidates<'_>) {
        if chain.hashes().is_empty() {
            return;
        }
        let mut held = Vec::new();
        self.tree.matches(chain.hashes(), &mut held);
        held.sort_unstable();
        for candidate in candidates {
            let rank = candidate.engine.rank(candidate.rank_index);
            if let Ok(at) = held.binary_search_by_key(&rank, |(rank, _)| *rank) {
                candidate.overlap_tokens = chain.tokens(held[at].1);
            }
        }
    }

    fn book(
        &self,
        chosen: &Candidate<'_>,
        chain: &Chain,
        candidates: usize,
        now: Millis,
    ) -> Choice {
        let prompt_tokens = chain.prompt_tokens();
        let prefill = u64::from(prompt_tokens.saturating_sub(chosen.overlap_tokens));
        let ledger = chosen.engine.ledger(chosen.rank_index);
        ledger.take_turn(self.turn.fetch_add(1, Ordering::Relaxed));
        if chosen.engine.standing(now) == Standing::Trial {
            chosen.engine.trial(&self.config, now);
        }
        let guard = ledger.book(prefill, prompt_tokens.into());
        let rank = chosen.engine.rank(chosen.rank_index);
        if self.policy.reads_tree() {
            let until = now + self.config.route_ttl_ms.min(UNANSWERED_MS);
            self.tree.note_route(rank, chain.hashes(), until);
        }
        Choice {
            engine: Arc::clone(chosen.engine),
            rank,
            rank_index: chosen.rank_index,
            overlap_tokens: chosen.overlap_tokens,
            prompt_tokens,
            running_before: chosen.load.running,
            terms: chosen.terms,
            candidates: u32::try_from(candidates).unwrap_or(u32::MAX),
            guard,
        }
    }

    fn forget(&self, engine: &Engine) {
        for rank in engine.ranks() {
            self.tree.remove_rank(rank);
        }
    }
}

/// The ranks of the best standing that any engine of the model has.
fn candidates<'f>(
    fleet: &'f Fleet,
    query: &Query<'_>,
    now: Millis,
) -> Result<Candidates<'f>, Error> {
    let engines = fleet.serving(query.model);
    if engines.is_empty() {
        return Err(unknown(fleet, query.model));
    }
    // Behind a single rank may stand ranks that the fleet's owner did not tell of: the engine knows its own.
    let wanted = |ranks: u32, index: u32| ranks == 1 || query.rank.is_none_or(|rank| rank == index);
    let has_rank = |engine: &Arc<Engine>| {
        let ranks = engine.spec().ranks;
        (0..ranks).any(|index| wanted(ranks, index))
    };
    if let Some(rank) = query.rank.filter(|_| !engines.iter().any(has_rank)) {
        return Err(Error::UnknownRank { model: query.model.to_owned(), rank });
    }
    let open = |engine: &&Arc<Engine>| !query.excluded.contains(&engine.id()) && has_rank(engine);
    let best = engines.iter().filter(open).map(|engine| engine.standing(now)).min();
    let best = best.filter(|best| *best != Standing::Closed);
    let best = best.ok_or_else(|| none_can(fleet, query.model))?;
    let mut candidates = Candidates::new();
    for engine in engines.iter().filter(open).filter(|engine| engine.standing(now) == best) {
        let ranks = engine.spec().ranks;
        candidates.extend((0..ranks).filter(|index| wanted(ranks, *index)).map(|rank_index| {
            let ledger = engine.ledger(rank_index);
            let (load, turn) = (ledger.load(), ledger.turn());
            Candidate { engine, rank_index, load, turn, overlap_tokens: 0, terms: Terms::default() }
        }));
    }
    Ok(candidates)
}

fn unknown(fleet: &Fleet, model: &str) -> Error {
    if fleet.engines().is_empty() {
        return Error::NoEngine { model: model.to_owned(), why: "there are no engines".to_owned() };
    }
    let known: Vec<String> = fleet.models().into_iter().map(|model| model.id).collect();
    Error::UnknownModel { model: model.to_owned(), known: known.join(", ") }
}

fn none_can(fleet: &Fleet, model: &str) -> Error {
    let of = |engine: &Arc<Engine>| {
        format!("{} is {}", engine.spec().name, format!("{:?}", engine.status()).to_lowercase())
    };
    let why: Vec<String> = fleet.serving(model).iter().map(of).collect();
    Error::NoEngine { model: model.to_owned(), why: why.join(", ") }
}

#[cfg(test)]
pub(crate) mod tests;
