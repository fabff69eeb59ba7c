//! One engine: what its owner and it itself say of it, and what is known of its ranks.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::belief::{Belief, Prediction};
use crate::health::{Health, Standing};
use crate::sync::{AtomicU64, Ordering};
use crate::{Config, Ledger, Load, Millis, Outcome, Probe, RankId, Status};

/// What the fleet's owner says of an engine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSpec {
    /// Unique in the fleet.
    pub name: String,
    /// `http://host:port`, with a path if it has one.
    pub url: String,
    /// Data-parallel ranks behind the URL, at least 1.
    pub ranks: u32,
    /// Where its KV events are: `auto`, `guess`, `off`, or an address.
    pub events: String,
    /// Where they can be asked for again; `null` where nowhere, or where the engine tells.
    pub events_replay: Option<String>,
    /// The topic that its events have; empty takes them all.
    pub events_topic: String,
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
    /// Data-parallel ranks that it reports on.
    pub data_parallel_size: Option<u32>,
}

/// One model of one engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFact {
    /// The name that requests use.
    pub id: String,
    /// The engine's own card, as JSON.
    pub raw: String,
    /// Where the engine has it from: a folder, or a name.
    pub root: Option<String>,
    /// The base model, if this is an adapter.
    pub parent: Option<String>,
    /// Most tokens of a prompt and its reply together.
    pub max_model_len: Option<u32>,
}

/// How the prompts of one engine become blocks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
pub struct KeySpec {
    /// Where their tokens come from.
    pub source: KeySource,
    /// Tokens per block of the engine.
    pub block: u32,
}

/// How an engine takes prompts, once that is settled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Intake {
    /// How they become blocks.
    pub key: KeySpec,
    /// Whether it takes the ids of a prompt in the place of its text.
    pub ids: bool,
}

/// Where a prompt's tokens come from, the best first.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeySource {
    /// The model's own tokenizer and chat template, in this process.
    Local,
    /// The engine's `/tokenize`.
    Engine,
    /// Nowhere: blocks are cut from the text.
    Text,
}

/// Identifies an engine for as long as the router lives; never used again.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct EngineId(pub(crate) u32);

/// One engine and all that is known of it. Arc by every snapshot that it is part of.
#[derive(Debug)]
pub struct Engine {
    id: EngineId,
    spec: EngineSpec,
    first_rank: RankId,
    ledgers: Vec<Arc<Ledger>>,
    beliefs: Vec<Belief>,
    health: Mutex<Health>,
    /// The health's [`Standing`] for the request path, see [`encode`]; written under the lock of `health`.
    standing: AtomicU64,
    facts: Mutex<Option<Arc<Facts>>>,
    intake: Mutex<Option<Intake>>,
}

/// An engine for people and scripts.
#[derive(Debug, Serialize)]
pub struct EngineView {
    name: String,
    url: String,
    events: String,
    events_replay: Option<String>,
    events_topic: String,
    status: Status,
    models: Vec<String>,
    ranks: Vec<RankView>,
    block_size: Option<u32>,
    kv_blocks: Option<u64>,
    version: Option<String>,
    key: Option<KeySpec>,
}

#[derive(Debug, Serialize)]
struct RankView {
    #[serde(flatten)]
    load: Load,
    prediction: Prediction,
}

// === impl Engine ===

const READY: u64 = 0;
const UNKNOWN: u64 = 1;
const SILENT: u64 = 2;
const CLOSED: u64 = u64::MAX;

impl Engine {
    pub(crate) fn new(id: EngineId, first_rank: RankId, spec: EngineSpec) -> Engine {
        let ledgers = (0..spec.ranks).map(|_| Arc::new(Ledger::default())).collect();
        let beliefs = (0..spec.ranks).map(|_| Belief::default()).collect();
        Engine {
            id,
            spec,
            first_rank,
            ledgers,
            beliefs,
            health: Mutex::new(Health::new()),
            standing: AtomicU64::new(UNKNOWN),
            facts: Mutex::new(None),
            intake: Mutex::new(None),
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

    /// How it takes prompts, once that is settled.
    pub fn intake(&self) -> Option<Intake> {
        *self.intake.lock()
    }

    /// All of it for people and scripts.
    pub fn view(&self, now: Millis) -> EngineView {
        let facts = self.facts();
        let facts = facts.as_deref();
        let ranks = self.ledgers.iter().zip(&self.beliefs).map(|(ledger, belief)| RankView {
            load: ledger.load(),
            prediction: belief.prediction(now),
        });
        EngineView {
            name: self.spec.name.clone(),
            url: self.spec.url.clone(),
            events: self.spec.events.clone(),
            events_replay: self.spec.events_replay.clone(),
            events_topic: self.spec.events_topic.clone(),
            status: self.status(),
            models: facts.map_or_else(Vec::new, |facts| {
                facts.models.iter().map(|model| model.id.clone()).collect()
            }),
            ranks: ranks.collect(),
            block_size: facts.and_then(|facts| facts.block_size),
            kv_blocks: facts.and_then(|facts| facts.kv_blocks),
            version: facts.and_then(|facts| facts.version.clone()),
            key: self.intake().map(|intake| intake.key),
        }
    }

    /// What predictions about one of its ranks were worth; `None` for a rank that it does not have.
    pub fn belief(&self, rank_index: u32) -> Option<&Belief> {
        self.beliefs.get(rank_index as usize)
    }

    /// A rank's place in the index.
    pub fn rank(&self, rank_index: u32) -> RankId {
        RankId(self.first_rank.0 + rank_index)
    }

    /// The places of all its ranks in the index, in order.
    pub fn ranks(&self) -> impl Iterator<Item = RankId> + use<> {
        (self.first_rank.0..self.first_rank.0 + self.spec.ranks).map(RankId)
    }

    /// Gives `true` if that is new.
    pub(crate) fn set_intake(&self, intake: Intake) -> bool {
        self.intake.lock().replace(intake) != Some(intake)
    }

    pub(crate) fn set_facts(&self, facts: Facts) {
        *self.facts.lock() = Some(Arc::new(facts));
    }

    pub(crate) fn ledger(&self, rank_index: u32) -> &Arc<Ledger> {
        &self.ledgers[rank_index as usize]
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
