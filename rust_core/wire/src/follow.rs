//! The engines' KV events on their way into the index: whom to follow, and how far their word can be trusted.

use std::collections::HashMap;
use std::sync::Arc;

use nebula_route::tree::Applied;
use nebula_route::{Engine, EngineId, Event, RankId, Router, Tier};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::conform;
use crate::context::Context;
use crate::error::Error;
use crate::kv_events::{
    EventsConfig, EventsSetting, KvEvents, Medium, RankEvents, RankSource, Sink, Source, sources_of,
};

/// Time after which events that do not come in any more are worth half as much.
const HALF_WORTH_MS: f32 = 30_000.0;

/// The subscriptions of all engines.
pub(crate) struct Events {
    kv: Option<KvEvents>,
    sources: Mutex<HashMap<EngineId, Vec<Source>>>,
    /// Since when a rank's events have not come in.
    lost_ms: Mutex<HashMap<RankId, u64>>,
}

/// Where events go.
struct Index(Arc<Router>);

// === impl Index ===

impl Sink for Index {
    fn apply(&self, rank: RankId, medium: Medium, events: &[Event]) -> Applied {
        let tier = match medium {
            Medium::Gpu => Tier::Gpu,
            Medium::Cpu => Tier::Cpu,
            Medium::Storage => Tier::Storage,
            Medium::Other => return Applied::default(),
        };
        self.0.apply(rank, tier, events)
    }

    fn clear(&self, rank: RankId) {
        self.0.clear(rank);
    }
}

// === impl Events ===

impl Events {
    /// Starts the thread that receives them; without a configuration, none come in.
    ///
    /// # Errors
    /// As [`KvEvents::start`].
    pub(crate) fn start(
        config: Option<&EventsConfig>,
        router: &Arc<Router>,
    ) -> Result<Events, Error> {
        let start = |config: &EventsConfig| {
            KvEvents::start(config.clone(), Arc::new(Index(Arc::clone(router))))
        };
        let (sources, lost_ms) = (Mutex::default(), Mutex::default());
        Ok(Events { kv: config.map(start).transpose()?, sources, lost_ms })
    }

    /// Finds an engine's events, and follows them from now on.
    pub(crate) async fn find(&self, context: &Context, engine: &Engine) {
        let spec = engine.spec();
        if self.kv.is_none() || spec.events == "off" {
            return;
        }
        let found = match sources(context, engine).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(engine = spec.name, cause = %error, "engine's KV events cannot be followed");
                return;
            }
        };
        let found = found.into_iter().filter_map(|source| {
            let rank = engine.ranks().nth(source.rank_index as usize)?;
            Some(Source {
                rank,
                rank_index: source.rank_index,
                engine: spec.name.clone(),
                endpoint: source.endpoint,
                replay: source.replay,
                topic: source.topic,
            })
        });
        self.sources.lock().insert(engine.id(), found.collect());
        self.follow();
    }

    /// Follows nobody but `kept` any more.
    pub(crate) fn retain(&self, kept: impl Fn(EngineId) -> bool) {
        self.sources.lock().retain(|id, _| kept(*id));
        self.follow();
    }

    /// Whether an engine tells of its blocks.
    pub(crate) fn follows(&self, engine: &Engine) -> bool {
        self.sources.lock().get(&engine.id()).is_some_and(|sources| !sources.is_empty())
    }

    /// The size of an engine's blocks, as its events have it.
    pub(crate) fn block_size(&self, engine: &Engine) -> Option<u32> {
        let stats = self.stats();
        stats
            .iter()
            .filter(|rank| rank.engine == engine.spec().name)
            .find_map(|rank| rank.block_size)
    }

    /// Asks for all that an engine still has: the index has forgotten its blocks.
    pub(crate) fn relearn(&self, engine: &Engine) {
        if let Some(kv) = &self.kv {
            engine.ranks().for_each(|rank| kv.relearn(rank));
        }
    }

    /// The figures of every rank that is followed.
    pub(crate) fn stats(&self) -> Vec<RankEvents> {
        self.kv.as_ref().map_or_else(Vec::new, KvEvents::stats)
    }

    /// Batches under topics that belong to no engine.
    pub(crate) fn strays(&self) -> u64 {
        self.kv.as_ref().map_or(0, KvEvents::strays)
    }

    /// Tells the router which ranks' events come in, and how long those of others have not.
    pub(crate) fn review(&self, context: &Context) {
        let now = context.clock.now();
        let stats = self.stats();
        let mut lost_ms = self.lost_ms.lock();
        lost_ms.retain(|rank, _| stats.binary_search_by_key(rank, |stats| stats.rank).is_ok());
        for engine in context.router.engines() {
            let mut block_size = None;
            for (rank_index, rank) in (0..).zip(engine.ranks()) {
                let Some(belief) = engine.belief(rank_index) else {
                    continue;
                };
                let at = stats.binary_search_by_key(&rank, |stats| stats.rank);
                let stats = at.ok().map(|at| &stats[at]);
                block_size = block_size.or(stats.and_then(|stats| stats.block_size));
                let connected = stats.is_some_and(|stats| stats.connected);
                if connected || stats.is_none() {
                    lost_ms.remove(&rank);
                    belief.set_staleness(0.0);
                    belief.set_events(connected);
                } else if belief.has_events() || lost_ms.contains_key(&rank) {
                    // What is routed meanwhile is all that is known of it.
                    belief.set_events(false);
                    let since = *lost_ms.entry(rank).or_insert(now);
                    let lost_for = now.saturating_sub(since) as f32;
                    belief.set_staleness(1.0 - (-lost_for / HALF_WORTH_MS).exp2());
                }
            }
            conform::settle(context, &engine, block_size);
        }
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        if let Some(kv) = &self.kv {
            kv.stop();
        }
    }

    fn follow(&self) {
        if let Some(kv) = &self.kv {
            kv.follow(self.sources.lock().values().flatten().cloned().collect());
        }
    }
}

/// Where an engine's events are: as the fleet's owner says, or as it says itself.
async fn sources(context: &Context, engine: &Engine) -> Result<Vec<RankSource>, Error> {
    let spec = engine.spec();
    let topic = Some(spec.events_topic.clone()).filter(|topic| !topic.is_empty());
    let mut setting = EventsSetting {
        replay_endpoint: spec.events_replay.clone(),
        topic,
        ..EventsSetting::default()
    };
    let mut told = None;
    match spec.events.as_str() {
        "auto" => {
            let answer = context.upstream.get(engine, "/kv_event_sources");
            match timeout(context.config.probe_timeout(), answer).await {
                Ok(Ok(body)) => told = Some(body),
                // An engine without this endpoint may still publish; its owner then says where.
                _ => return Ok(Vec::new()),
            }
        }
        "dial_in" => setting.dials_in = true,
        "guess" => {}
        endpoint => setting.endpoint = Some(endpoint.to_owned()),
    }
    sources_of(&spec.url, spec.ranks, &setting, told.as_deref())
}
