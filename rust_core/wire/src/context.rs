//! What every exchange, and every task beside them, works with.

use std::collections::HashMap;
use std::sync::Arc;

use nebula_route::{Engine, Outcome, Router, Status};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::check::Checks;
use crate::config::Config;
use crate::conform::Conformance;
use crate::decisions::Decisions;
use crate::error::Error;
use crate::follow::Events;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::remote::Remote;
use crate::tasks::Clock;
use crate::upstream::Upstream;

/// Names that clients may use for a model, and what they stand for.
pub type Aliases = HashMap<String, String>;

/// What every exchange uses.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) router: Arc<Router>,
    pub(crate) upstream: Upstream,
    pub(crate) health: Health,
    pub(crate) models: Models,
    pub(crate) remote: Remote,
    pub(crate) events: Events,
    pub(crate) conformance: Conformance,
    pub(crate) checks: Checks,
    pub(crate) decisions: Decisions,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) aliases: RwLock<Arc<Aliases>>,
    /// Cancelled when replies must end now because the gateway stops.
    pub(crate) cut: CancellationToken,
}

impl Context {
    /// The names that clients may use for models, as they are now.
    pub(crate) fn aliases(&self) -> Arc<Aliases> {
        Arc::clone(&self.aliases.read())
    }

    /// Tells the engine's health how a request went, and the log if that takes the engine out.
    pub(crate) fn note(&self, engine: &Engine, outcome: Outcome, cause: Option<&Error>) {
        let before = engine.status();
        self.router.note(engine, outcome, self.clock.now());
        if before != Status::Down && engine.status() == Status::Down {
            let cause = cause.map_or_else(|| format!("{outcome:?}"), ToString::to_string);
            tracing::warn!(engine = engine.spec().name, cause, "engine is down");
        }
    }
}
