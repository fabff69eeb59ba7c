//! Engines, ranks and models: one snapshot, swapped in whole, so that a request sees one fleet from start to end.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::health::{Health, Standing};
use crate::sync::{AtomicU64, Ordering};
use crate::{Config, Error, Ledger, Load, Millis, Outcome, Probe, RankId, Status};

/// What the fleet's owner says of an engine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSpec {
    /// Unique in the fleet.
    pub name: String,
    /// `http://host:port`, with a path if it has one.
    pub url: String,
    /// Data-parallel ranks behind the URL, at least 1.
    pub ranks: u32,
}

/// What an engine says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Its models and adapters.
    pub models: Vec<ModelFact>,
    /// Tokens per KV block.
    pub block_size: Option<u32>,
    /// KV blocks of one rank.
    pub kv_blocks: Option<u64>,
    /// Its version.
    pub version: Option<String>,
}

/// One model of one engine.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFact {
    /// The name that requests use.
    pub id: String,
    /// The engine's own card, as JSON.
    pub raw: String,
}

/// Identifies an engine for as long as the router lives; never used again.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct EngineId(u32);

/// One engine and all that is known of it. Arc by every snapshot that it is part of.
#[derive(Debug)]
pub struct Engine {
    id: EngineId,
    spec: EngineSpec,
    first_rank: RankId,
    ledgers: Vec<Arc<Ledger>>,
    health: Mutex<Health>,
    /// The health's [`Standing`] for the request path, see [`encode`]; written under the lock of `health`.
    standing: AtomicU64,
    facts: Mutex<Option<Arc<Facts>>>,
}

/// An engine for people and scripts.
#[derive(Debug, Serialize)]
pub struct EngineView {
    name: String,
    url: String,
    status: Status,
    models: Vec<String>,
    ranks: Vec<Load>,
    block_size: Option<u32>,
    kv_blocks: Option<u64>,
    version: Option<String>,
}

/// All engines of one moment.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    engines: Vec<Arc<Engine>>,
    by_model: HashMap<String, Vec<Arc<Engine>>>,
    /// Engines that have not yet said which models they have.
    unlearned: Vec<Arc<Engine>>,
}

// === impl Engine ===

const READY: u64 = 0;
const UNKNOWN: u64 = 1;
const SILENT: u64 = 2;
const CLOSED: u64 = u64::MAX;

impl Engine {
    fn new(id: EngineId, first_rank: RankId, spec: EngineSpec) -> Engine {
        let ledgers = (0..spec.ranks).map(|_| Arc::new(Ledger::default())).collect();
        Engine {
            id,
            spec,
            first_rank,
            ledgers,
            health: Mutex::new(Health::new()),
            standing: AtomicU64::new(UNKNOWN),
            facts: Mutex::new(None),
        }
    }

    /// Its identity in this router.
    pub fn id(&self) -> EngineId {
        self.id
    }

    /// What the fleet's owner says of it.
    pub fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    /// Whether it takes traffic.
    pub fn status(&self) -> Status {
        self.health.lock().status()
    }

    /// What is booked on each of its ranks.
    pub fn loads(&self) -> Vec<Load> {
        self.ledgers.iter().map(|ledger| ledger.load()).collect()
    }

    /// What it said of itself, once it did.
    pub fn facts(&self) -> Option<Arc<Facts>> {
        self.facts.lock().clone()
    }

    /// All of it for people and scripts.
    pub fn view(&self) -> EngineView {
        let facts = self.facts();
        let facts = facts.as_deref();
        EngineView {
            name: self.spec.name.clone(),
            url: self.spec.url.clone(),
            status: self.status(),
            models: facts.map_or_else(Vec::new, |facts| {
                facts.models.iter().map(|model| model.id.clone()).collect()
            }),
            ranks: self.loads(),
            block_size: facts.and_then(|facts| facts.block_size),
            kv_blocks: facts.and_then(|facts| facts.kv_blocks),
            version: facts.and_then(|facts| facts.version.clone()),
        }
    }

    pub(crate) fn ranks(&self) -> impl Iterator<Item = RankId> {
        (self.first_rank.0..self.first_rank.0 + self.spec.ranks).map(RankId)
    }

    pub(crate) fn ledger(&self, rank_index: u32) -> &Arc<Ledger> {
        &self.ledgers[rank_index as usize]
    }

    pub(crate) fn rank(&self, rank_index: u32) -> RankId {
        RankId(self.first_rank.0 + rank_index)
    }

    pub(crate) fn set_kv_usage(&self, rank_index: u32, usage: f32) {
        if let Some(ledger) = self.ledgers.get(rank_index as usize) {
            ledger.set_kv_usage(usage);
        }
    }

    /// Without a lock: this runs for every candidate of every request.
    pub(crate) fn standing(&self, now: Millis) -> Standing {
        match self.standing.load(Ordering::Relaxed) {
            READY => Standing::Ready,
            UNKNOWN => Standing::Unknown,
            SILENT => Standing::Silent,
            trial_at if trial_at <= now => Standing::Trial,
            _ => Standing::Closed,
        }
    }

    /// Gives `true` if this is how the engine's process was found to be gone.
    pub(crate) fn note(&self, outcome: Outcome, config: &Config, now: Millis) -> bool {
        self.change(|health| health.note(outcome, config, now))
    }

    /// Gives `true` if this is how the engine's process was found to be gone.
    pub(crate) fn probe(&self, probe: Probe, config: &Config, now: Millis) -> bool {
        self.change(|health| health.probe(probe, config, now))
    }

    pub(crate) fn drain(&self, on: bool) {
        self.change(|health| health.drain(on));
    }

    pub(crate) fn trial(&self, config: &Config, now: Millis) {
        self.change(|health| health.trial(config, now));
    }

    fn change(&self, change: impl FnOnce(&mut Health)) -> bool {
        let mut health = self.health.lock();
        let had_process = health.has_process();
        change(&mut health);
        self.standing.store(encode(&health), Ordering::Relaxed);
        had_process && !health.has_process()
    }
}

/// A standing as one word: a code, closed for good, or the time from which a trial may be sent.
fn encode(health: &Health) -> u64 {
    match health.standing(0) {
        Standing::Ready => READY,
        Standing::Unknown => UNKNOWN,
        Standing::Silent => SILENT,
        Standing::Trial | Standing::Closed => {
            health.trial_at().map_or(CLOSED, |at| at.max(SILENT + 1))
        }
    }
}

// === impl Fleet ===

impl Fleet {
    /// The fleet of `specs`; engines whose spec is unchanged are taken over from `self` with their state.
    ///
    /// # Errors
    /// Two engines of one name, no rank, or a URL that is none.
    pub(crate) fn replaced(
        &self,
        specs: Vec<EngineSpec>,
        next: &mut NextIds,
    ) -> Result<Fleet, Error> {
        check(&specs)?;
        let engines = specs.into_iter().map(|spec| {
            let kept = self.engines.iter().find(|engine| engine.spec == spec);
            kept.cloned().unwrap_or_else(|| {
                let (id, first_rank) = next.take(spec.ranks);
                Arc::new(Engine::new(id, first_rank, spec))
            })
        });
        Ok(Fleet::of(engines.collect()))
    }

    /// The same engines after one of them said something new of itself.
    pub(crate) fn learned(&self, engine: &Engine, facts: Facts) -> Fleet {
        *engine.facts.lock() = Some(Arc::new(facts));
        Fleet::of(self.engines.clone())
    }

    pub(crate) fn engines(&self) -> &[Arc<Engine>] {
        &self.engines
    }

    /// The engines that have a model; those that have not said yet only if no engine is known to have it.
    pub(crate) fn serving(&self, model: &str) -> &[Arc<Engine>] {
        self.by_model.get(model).map_or(&self.unlearned, Vec::as_slice)
    }

    /// The union of all models by name; the first engine's card stands for all.
    pub(crate) fn models(&self) -> Vec<ModelFact> {
        let mut models: Vec<ModelFact> = Vec::new();
        for facts in self.engines.iter().filter_map(|engine| engine.facts()) {
            for model in &facts.models {
                if !models.iter().any(|known| known.id == model.id) {
                    models.push(model.clone());
                }
            }
        }
        models.sort_by(|a, b| a.id.cmp(&b.id));
        models
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Arc<Engine>, Error> {
        let known = || {
            self.engines
                .iter()
                .map(|engine| engine.spec.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        self.engines
            .iter()
            .find(|engine| engine.spec.name == name)
            .ok_or_else(|| Error::UnknownEngine { name: name.to_owned(), known: known() })
    }

    fn of(engines: Vec<Arc<Engine>>) -> Fleet {
        let mut fleet = Fleet { engines, ..Fleet::default() };
        for engine in &fleet.engines {
            let Some(facts) = engine.facts() else {
                fleet.unlearned.push(Arc::clone(engine));
                continue;
            };
            for model in &facts.models {
                let serving = fleet.by_model.entry(model.id.clone()).or_default();
                // An engine may list a name twice (an alias that is a LoRA's name too).
                if !serving.iter().any(|known| known.id == engine.id) {
                    serving.push(Arc::clone(engine));
                }
            }
        }
        fleet
    }
}

fn check(specs: &[EngineSpec]) -> Result<(), Error> {
    for (index, spec) in specs.iter().enumerate() {
        let bad =
            |why: &str| Err(Error::BadEngine { name: spec.name.clone(), why: why.to_owned() });
        if specs[..index].iter().any(|other| other.name == spec.name) {
            return bad("this name occurs twice; names must differ");
        }
        if spec.ranks == 0 {
            return bad("ranks is 0; an engine has at least one");
        }
        let host = spec.url.strip_prefix("http://").or_else(|| spec.url.strip_prefix("https://"));
        if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
            return bad(&format!("url `{}` must be like http://host:8000", spec.url));
        }
    }
    Ok(())
}

/// Where the next engine's numbers come from: none is ever given twice.
#[derive(Debug, Default)]
pub(crate) struct NextIds {
    engine: u32,
    rank: u32,
}

impl NextIds {
    fn take(&mut self, ranks: u32) -> (EngineId, RankId) {
        let ids = (EngineId(self.engine), RankId(self.rank));
        self.engine += 1;
        self.rank += ranks;
        ids
    }
}
