//! What the router is told of its engines: by their owner, by themselves, and by how they answer.

use std::collections::HashSet;
use std::sync::Arc;

use super::Router;
use crate::engine::{Engine, EngineSpec, Facts, Intake, KeySource, KeySpec, ModelFact};
use crate::fleet::{Fleet, Served};
use crate::{Error, Millis, Outcome, Probe, RankId};

impl Router {
    /// The fleet of now.
    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        self.fleet.load()
    }

    /// The fleet from now on. Engines whose spec is unchanged keep their state, load and blocks.
    ///
    /// # Errors
    /// [`Error::BadEngine`]; the fleet then stays as it is.
    pub fn set_engines(&self, specs: Vec<EngineSpec>) -> Result<(), Error> {
        let mut next_ids = self.next_ids.lock();
        let before = self.fleet.load();
        let after = before.replaced(specs, &mut next_ids)?;
        let stay: HashSet<_> = after.engines().iter().map(|engine| engine.id()).collect();
        let gone: Vec<_> =
            before.engines().iter().filter(|engine| !stay.contains(&engine.id())).collect();
        self.fleet.store(after);
        let ranks: Vec<RankId> = gone.iter().flat_map(|engine| engine.ranks()).collect();
        if !ranks.is_empty() {
            self.tree.remove_ranks(&ranks);
            for rank in ranks {
                self.tree.limit(rank, None);
            }
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

    /// How a model is served; `None` while no engine is known to have it.
    pub fn served(&self, model: &str) -> Option<Arc<Served>> {
        self.fleet.load().served(model).cloned()
    }

    /// The engines that are known to have a model.
    pub fn engines_of(&self, model: &str) -> Vec<Arc<Engine>> {
        self.served(model).map_or_else(Vec::new, |served| served.engines.clone())
    }

    /// What an engine says of itself.
    pub fn learn(&self, engine: &Engine, facts: Facts) {
        let _one_change_at_a_time = self.next_ids.lock();
        if engine.facts().as_deref() != Some(&facts) {
            self.fleet.store(self.fleet.load().learned(engine, facts));
            self.bound(engine);
        }
    }

    /// How an engine takes prompts from now on.
    pub fn settle(&self, engine: &Engine, intake: Intake) {
        let _one_change_at_a_time = self.next_ids.lock();
        if engine.set_intake(intake) {
            self.fleet.store(self.fleet.load().again());
            self.bound(engine);
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

    /// An engine holds no more of what was routed to it than its KV cache has room for.
    fn bound(&self, engine: &Engine) {
        let facts = engine.facts().unwrap_or_default();
        let told = facts.kv_blocks.zip(facts.block_size).map(|(n, size)| n * u64::from(size));
        let tokens = told.or(self.config.rank_kv_tokens);
        let text = || self.config.text_block_bytes as f32 / self.config.bytes_per_token;
        let block_tokens = match engine.intake().map(|intake| intake.key) {
            Some(KeySpec { source: KeySource::Local | KeySource::Engine, block }) => block as f32,
            _ => text(),
        };
        let blocks = tokens.map(|tokens| blocks_of(tokens, block_tokens));
        engine.ranks().for_each(|rank| self.tree.limit(rank, blocks));
    }

    fn forget(&self, engine: &Engine) {
        for (rank_index, rank) in (0..).zip(engine.ranks()) {
            self.tree.remove_rank(rank);
            if let Some(belief) = engine.belief(rank_index) {
                belief.reset();
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and both are positive"
)]
fn blocks_of(tokens: u64, block_tokens: f32) -> u64 {
    (tokens as f32 / block_tokens.max(f32::MIN_POSITIVE)) as u64
}
