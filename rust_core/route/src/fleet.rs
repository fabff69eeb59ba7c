//! Engines, ranks and models: one snapshot, swapped in whole, so that a request sees one fleet from start to end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::engine::{Engine, EngineId, EngineSpec, Facts, KeySpec, ModelFact};
use crate::{Error, RankId};

/// All engines of one moment.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    engines: Vec<Arc<Engine>>,
    by_model: HashMap<String, Arc<Served>>,
    /// Engines that have not yet said which models they have.
    unlearned: Vec<Arc<Engine>>,
}

/// One model as the fleet serves it.
#[derive(Debug, Default)]
pub struct Served {
    pub(crate) engines: Vec<Arc<Engine>>,
    /// The ways in which its engines cut prompts into blocks; each once, no order.
    pub keys: SmallVec<[KeySpec; 2]>,
    /// The base model where the name is an adapter's.
    pub base: Option<String>,
    /// Whether one of its engines takes the ids of a prompt in the place of its text.
    pub takes_ids: bool,
    /// Most tokens of a prompt and its reply that every one of its engines takes; 0 where one does not say.
    pub max_model_len: u32,
}

// === impl Fleet ===

impl Fleet {
    /// The fleet of `specs`; engines whose spec is unchanged are taken over from `self` with their state.
    ///
    /// # Cost
    /// O(engines): a large fleet changes many times a second.
    ///
    /// # Errors
    /// Two engines of one name, no rank, or a URL that is none.
    pub(crate) fn replaced(
        &self,
        specs: Vec<EngineSpec>,
        next: &mut NextIds,
    ) -> Result<Fleet, Error> {
        check(&specs)?;
        let before: HashMap<&str, &Arc<Engine>> =
            self.engines.iter().map(|engine| (engine.spec().name.as_str(), engine)).collect();
        let engines = specs.into_iter().map(|spec| {
            let kept = before.get(spec.name.as_str()).filter(|engine| *engine.spec() == spec);
            if let Some(engine) = kept {
                return Arc::clone(engine);
            }
            let (id, first_rank) = next.take(spec.ranks);
            Arc::new(Engine::new(id, first_rank, spec))
        });
        Ok(Fleet::of(engines.collect()))
    }

    /// The same engines after one of them said something new of itself.
    pub(crate) fn learned(&self, engine: &Engine, facts: Facts) -> Fleet {
        engine.set_facts(facts);
        self.again()
    }

    /// The same engines after something else about one of them changed.
    pub(crate) fn again(&self) -> Fleet {
        Fleet::of(self.engines.clone())
    }

    pub(crate) fn engines(&self) -> &[Arc<Engine>] {
        &self.engines
    }

    /// The engines that have a model; those that have not said yet only if no engine is known to have it.
    pub(crate) fn serving(&self, model: &str) -> &[Arc<Engine>] {
        self.by_model.get(model).map_or(&self.unlearned, |served| &served.engines)
    }

    /// How a model is served; `None` while no engine is known to have it.
    pub(crate) fn served(&self, model: &str) -> Option<&Arc<Served>> {
        self.by_model.get(model)
    }

    /// The union of all models by name; the first engine's card stands for all.
    pub(crate) fn models(&self) -> Vec<ModelFact> {
        let mut models: BTreeMap<String, ModelFact> = BTreeMap::new();
        for facts in self.engines.iter().filter_map(|engine| engine.facts()) {
            for model in &facts.models {
                models.entry(model.id.clone()).or_insert_with(|| model.clone());
            }
        }
        models.into_values().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Arc<Engine>, Error> {
        let known = || {
            self.engines
                .iter()
                .map(|engine| engine.spec().name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        self.engines
            .iter()
            .find(|engine| engine.spec().name == name)
            .ok_or_else(|| Error::UnknownEngine { name: name.to_owned(), known: known() })
    }

    fn of(engines: Vec<Arc<Engine>>) -> Fleet {
        let mut by_model: HashMap<String, Served> = HashMap::new();
        let mut unlearned = Vec::new();
        for engine in &engines {
            let Some(facts) = engine.facts() else {
                unlearned.push(Arc::clone(engine));
                continue;
            };
            for model in &facts.models {
                by_model.entry(model.id.clone()).or_default().add(engine, model);
            }
        }
        let by_model = by_model.into_iter().map(|(id, served)| (id, Arc::new(served))).collect();
        Fleet { engines, by_model, unlearned }
    }
}

// === impl Served ===

impl Served {
    fn add(&mut self, engine: &Arc<Engine>, model: &ModelFact) {
        let len = model.max_model_len.unwrap_or(0);
        self.max_model_len =
            if self.engines.is_empty() { len } else { self.max_model_len.min(len) };
        // An engine may list a name twice (an alias that is a LoRA's name too); engines come one after the other.
        if self.engines.last().is_none_or(|last| last.id() != engine.id()) {
            self.engines.push(Arc::clone(engine));
        }
        if let Some(intake) = engine.intake() {
            self.takes_ids |= intake.ids;
            if !self.keys.contains(&intake.key) {
                self.keys.push(intake.key);
            }
        }
        if self.base.is_none() {
            self.base.clone_from(&model.parent);
        }
    }
}

fn check(specs: &[EngineSpec]) -> Result<(), Error> {
    let mut names = HashSet::with_capacity(specs.len());
    for spec in specs {
        let bad =
            |why: &str| Err(Error::BadEngine { name: spec.name.clone(), why: why.to_owned() });
        if !names.insert(spec.name.as_str()) {
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
