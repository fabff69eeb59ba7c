//! Probes and facts of every engine: one task each, started and stopped as the fleet changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use nebula_route::{Engine, EngineId, Facts, ModelFact, Probe, Status};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::conform::{Conformance, State};
use crate::context::Context;
use crate::error::{Error, Kind, Retry};
use crate::tasks::{Tasks, jittered};

mod scrape;

/// Probes in a row without an answer after which requests that wait for their first byte are tried elsewhere. Many: an
/// engine that is only busy, or that closed its port to finish what it has, would do their work twice.
const LOST_PROBES: u32 = 10;

/// The probing tasks of the engines, by engine.
#[derive(Default)]
pub(crate) struct Health {
    watched: Mutex<HashMap<EngineId, Watched>>,
}

struct Watched {
    engine: String,
    ranks: u32,
    tasks: [AbortHandle; 2],
    lost: watch::Receiver<bool>,
    examine: Arc<Notify>,
}

/// What one task knows between two probes.
struct Prober {
    context: Arc<Context>,
    engine: Arc<Engine>,
    lost: watch::Sender<bool>,
    missed: u32,
    facts_due: Instant,
    /// Tells the other task of the engine to look at its prompts and events.
    examine: Arc<Notify>,
    /// Whether it must, because this may be another process than before.
    is_new: bool,
}

impl Health {
    /// Starts a task for each new engine and stops those of removed ones.
    pub(crate) fn follow(context: &Arc<Context>, tasks: &Tasks) {
        let engines = context.router.engines();
        let mut watched = context.health.watched.lock();
        let ids: HashSet<EngineId> = engines.iter().map(|engine| engine.id()).collect();
        let kept = |id: EngineId| ids.contains(&id);
        context.events.retain(kept);
        context.conformance.retain(kept);
        context.checks.retain(kept);
        watched.retain(|id, watched| {
            let kept = kept(*id);
            if !kept {
                watched.tasks.iter().for_each(AbortHandle::abort);
                context.metrics.forget(&watched.engine, watched.ranks);
            }
            kept
        });
        for engine in engines.iter().cloned() {
            watched.entry(engine.id()).or_insert_with(|| {
                context.metrics.introduce(&engine);
                let (name, ranks) = (engine.spec().name.clone(), engine.spec().ranks);
                let (lost, receiver) = watch::channel(false);
                let examine = Arc::new(Notify::new());
                let examiner =
                    examined(Arc::clone(context), Arc::clone(&engine), Arc::clone(&examine));
                let prober = Prober {
                    context: Arc::clone(context),
                    engine,
                    lost,
                    missed: 0,
                    facts_due: Instant::now(),
                    examine: Arc::clone(&examine),
                    is_new: true,
                };
                let tasks = [tasks.spawn(prober.run()), tasks.spawn(examiner)];
                Watched { engine: name, ranks, tasks, lost: receiver, examine }
            });
        }
    }

    /// Has an engine's prompts and events looked at again.
    pub(crate) fn examine(&self, engine: EngineId) {
        if let Some(watched) = self.watched.lock().get(&engine) {
            watched.examine.notify_one();
        }
    }

    /// Returns when the engine is lost; until then, and for an engine nobody probes, it waits.
    ///
    /// A request that waits for its first byte listens to this: a hung engine then costs seconds, not the deadline.
    pub(crate) async fn lost(&self, engine: EngineId) {
        let lost = self.watched.lock().get(&engine).map(|watched| watched.lost.clone());
        let Some(mut lost) = lost else {
            return std::future::pending().await;
        };
        // From now on: a request that is sent to a lost engine all the same, as the last resort or a trial, gets its time.
        lost.mark_unchanged();
        loop {
            if lost.changed().await.is_err() {
                return std::future::pending().await;
            }
            if *lost.borrow_and_update() {
                return;
            }
        }
    }
}

/// Looks at an engine's events and prompts whenever it is told to. A task of its own: it waits for the engine longer than
/// a probe may.
async fn examined(context: Arc<Context>, engine: Arc<Engine>, due: Arc<Notify>) {
    loop {
        due.notified().await;
        context.events.find(&context, &engine).await;
        Conformance::run(&context, &engine).await;
    }
}

// === impl Prober ===

impl Prober {
    async fn run(mut self) {
        loop {
            let start = Instant::now();
            self.probe().await;
            let period = jittered(Duration::from_millis(self.context.config.probe_interval_ms));
            sleep(period.saturating_sub(start.elapsed())).await;
        }
    }

    async fn probe(&mut self) {
        let answer = self.get("/health").await;
        let probe = match &answer {
            Ok(_) => Probe::Healthy,
            Err(error) if error.retry == Retry::IfUnsent => Probe::Unreachable,
            Err(_) => Probe::Unhealthy,
        };
        let before = self.engine.status();
        self.context.router.probe(&self.engine, probe, self.context.clock.now());
        let after = self.engine.status();
        if before != after {
            self.facts_due = Instant::now();
            self.tell(after, answer.as_ref().err());
            if after == Status::Ready {
                self.is_new = true;
                self.context.events.relearn(&self.engine);
            }
        }
        // An engine that answers, whatever it answers, is not lost.
        let answered = answer
            .err()
            .is_none_or(|error| error.kind != Kind::Timeout && error.retry != Retry::IfUnsent);
        self.missed = if answered { 0 } else { self.missed + 1 };
        let now_lost = self.missed >= LOST_PROBES;
        self.lost.send_if_modified(|lost| std::mem::replace(lost, now_lost) != now_lost);
        if probe == Probe::Healthy && self.facts_due <= Instant::now() {
            self.learn().await;
        }
    }

    fn tell(&self, status: Status, cause: Option<&Error>) {
        let engine = self.engine.spec().name.as_str();
        match (status, cause) {
            (Status::Down, Some(cause)) => tracing::warn!(engine, %cause, "engine is down"),
            (Status::Ready, _) => tracing::info!(engine, "engine is ready"),
            _ => {}
        }
    }

    /// Reads what the engine says of itself; a fact that cannot be read keeps its last value.
    async fn learn(&mut self) {
        let period = Duration::from_millis(self.context.config.facts_interval_ms);
        self.facts_due = Instant::now() + jittered(period);
        let models = match self.get("/v1/models").await.and_then(|body| models(&body)) {
            Ok(models) => models,
            Err(error) => {
                // Without models it gets no traffic: the next probe asks again.
                self.facts_due = Instant::now();
                tracing::warn!(engine = self.engine.spec().name, cause = %error, "engine's models cannot be read");
                return;
            }
        };
        let known = self.engine.facts().as_deref().cloned().unwrap_or_default();
        let mut facts = Facts { models, ..known };
        self.context.router.learn(&self.engine, facts.clone());
        // Not every engine has these; routing does without.
        if let Ok(body) = self.get("/version").await {
            facts.version = version(&body).or(facts.version);
        }
        if let Ok(body) = self.get("/metrics").await {
            let report = scrape::read(&String::from_utf8_lossy(&body));
            for (rank, usage) in &report.kv_usage {
                self.context.router.set_kv_usage(&self.engine, *rank, *usage);
            }
            for (rank, counters) in &report.prefix {
                self.context.checks.counters(&self.context, &self.engine, *rank, *counters);
            }
            facts.data_parallel_size = report.ranks().or(facts.data_parallel_size);
            facts.block_size = report.block_size.or(facts.block_size);
            facts.kv_blocks = report.kv_blocks.or(facts.kv_blocks);
        }
        self.context.router.learn(&self.engine, facts);
        let report = self.context.conformance.report(self.engine.id());
        let unsettled = report.is_none_or(|report| report.state == State::Unavailable);
        if std::mem::take(&mut self.is_new) || unsettled {
            self.examine.notify_one();
        }
    }

    async fn get(&self, path: &'static str) -> Result<bytes::Bytes, Error> {
        let limit_ms = self.context.config.probe_timeout_ms;
        let answer = timeout(
            self.context.config.probe_timeout(),
            self.context.upstream.get(&self.engine, path),
        )
        .await;
        answer.unwrap_or_else(|_| Err(Error::timeout(&self.engine.spec().name, path, limit_ms)))
    }
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct ModelCard {
    id: String,
    root: Option<String>,
    parent: Option<String>,
    max_model_len: Option<u32>,
}

/// The models in an answer of `/v1/models`; each keeps its own JSON, which clients get as it is.
fn models(body: &[u8]) -> Result<Vec<ModelFact>, Error> {
    let wrong = |cause: serde_json::Error| Error::internal(format!("/v1/models: {cause}"));
    let list: ModelList = serde_json::from_slice(body).map_err(wrong)?;
    list.data
        .into_iter()
        .map(|raw| {
            let card: ModelCard = serde_json::from_str(raw.get()).map_err(wrong)?;
            Ok(ModelFact {
                id: card.id,
                raw: Box::<str>::from(raw).into_string(),
                root: card.root,
                parent: card.parent,
                max_model_len: card.max_model_len,
            })
        })
        .collect()
}

fn version(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(value.get("version")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_keep_their_own_json() {
        let body = br#"{"object":"list","data":[{"id":"tiny","root":"/m","parent":null,"max_model_len":4096,"x":1.0}]}"#;
        let models = models(body).unwrap();
        assert_eq!(models[0].id, "tiny");
        assert!(models[0].raw.ends_with(r#""x":1.0}"#));
        assert!(super::models(b"{}").is_err());
    }
}
