//! The ranks that can take a request, with all that a choice among them depends on.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::engine::{Engine, EngineId};
use crate::fleet::Fleet;
use crate::health::Standing;
use crate::{Cached, Chain, Error, KeySpec, Load, Millis, Terms};

/// What a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The prompt's blocks.
    pub chain: &'a Chain,
    /// The same prompt for engines that cut it differently; they are few, and mostly none.
    pub other_chains: &'a [(KeySpec, Chain)],
    /// The conversation, for session affinity.
    pub session: Option<&'a str>,
    /// The data-parallel rank that the client asks for.
    pub rank: Option<u32>,
    /// The one engine that may be chosen, by name.
    pub engine: Option<&'a str>,
    /// Engines that were tried already.
    pub excluded: &'a [EngineId],
}

/// One rank that can take the request.
pub(crate) struct Candidate<'a> {
    pub(crate) engine: &'a Arc<Engine>,
    pub(crate) rank_index: u32,
    pub(crate) load: Load,
    /// The turn in which it was last chosen.
    pub(crate) turn: u64,
    /// The prompt as this engine cuts it.
    pub(crate) chain: &'a Chain,
    pub(crate) cached: Cached,
    /// The share of `cached` that is believed.
    pub(crate) credit: f32,
    pub(crate) terms: Terms,
}

/// Those of one decision; on the stack for fleets up to this size, one allocation beyond.
pub(crate) type Candidates<'a> = SmallVec<[Candidate<'a>; 32]>;

impl<'a> Query<'a> {
    /// The prompt as an engine cuts it.
    #[must_use]
    pub fn chain_for(&self, engine: &Engine) -> &'a Chain {
        if self.other_chains.is_empty() {
            return self.chain;
        }
        let key = engine.intake().map(|intake| intake.key);
        let other = self.other_chains.iter().find(|(other, _)| key == Some(*other));
        other.map_or(self.chain, |(_, chain)| chain)
    }
}

/// The ranks of the best standing that any engine of the model has.
pub(crate) fn candidates<'f>(
    fleet: &'f Fleet,
    query: &Query<'f>,
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
    let meant = |engine: &Engine| query.engine.is_none_or(|name| engine.spec().name == name);
    let open = |engine: &&Arc<Engine>| {
        !query.excluded.contains(&engine.id()) && meant(engine) && has_rank(engine)
    };
    let best = engines.iter().filter(open).map(|engine| engine.standing(now)).min();
    let best = best.filter(|best| *best != Standing::Closed);
    let best = best.ok_or_else(|| none_can(fleet, query.model))?;
    let mut candidates = Candidates::new();
    for engine in engines.iter().filter(open).filter(|engine| engine.standing(now) == best) {
        let ranks = engine.spec().ranks;
        let chain = query.chain_for(engine);
        candidates.extend((0..ranks).filter(|index| wanted(ranks, *index)).map(|rank_index| {
            let ledger = engine.ledger(rank_index);
            let (load, turn) = (ledger.load(), ledger.turn());
            let credit = engine.belief(rank_index).map_or(1.0, |belief| belief.credit(now));
            Candidate {
                engine,
                rank_index,
                load,
                turn,
                chain,
                cached: Cached::default(),
                credit,
                terms: Terms::default(),
            }
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

pub(crate) fn none_can(fleet: &Fleet, model: &str) -> Error {
    let of = |engine: &Arc<Engine>| {
        format!("{} is {}", engine.spec().name, format!("{:?}", engine.status()).to_lowercase())
    };
    let why: Vec<String> = fleet.serving(model).iter().map(of).collect();
    Error::NoEngine { model: model.to_owned(), why: why.join(", ") }
}
