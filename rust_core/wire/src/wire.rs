//! The room's front door: starts the thread, takes requests, answers questions, stops.

use std::sync::Arc;
use std::time::Duration;

use nebula_route::{EngineSpec, Error as RouteError, Router};
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::check::Checks;
use crate::config::Config;
use crate::conform::Conformance;
use crate::context::{Aliases, Context};
use crate::decisions::Decisions;
use crate::dispatch::{Request, exchange};
use crate::error::Error;
use crate::explain::{as_json, explain};
use crate::follow::Events;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::net;
use crate::record::Record;
use crate::remote::Remote;
use crate::reply::{self, Exchange};
use crate::tasks::{Clock, Tasks, jittered};
use crate::upstream::Upstream;
use crate::workers::workers;

/// How often routes that outlived their time leave the index, and events are reviewed.
const KEEP_HOUSE: Duration = Duration::from_secs(1);

/// Who there is, and by which names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetSpec {
    /// All engines.
    pub engines: Vec<EngineSpec>,
    /// Names that clients may use for a model, and what they stand for.
    pub aliases: Aliases,
}

/// Requests to engines and back, on a thread of its own.
pub struct Wire {
    context: Arc<Context>,
    tasks: Tasks,
    inflight: Arc<Semaphore>,
}

impl Wire {
    /// Starts the thread, the health probes and the index's housekeeping.
    ///
    /// # Errors
    /// The thread or the TLS settings cannot be made; the message names the setting.
    pub fn start(config: Config, router: Arc<Router>, aliases: Aliases) -> Result<Wire, Error> {
        let tasks = Tasks::start()?;
        let context = Arc::new(Context {
            upstream: Upstream::new(&config, tasks.executor())?,
            events: Events::start(config.events.as_ref(), &router)?,
            router,
            health: Health::default(),
            models: Models::new(config.tokens.segment_cache_bytes),
            remote: Remote::new(config.tokens.tokenize_cache_bytes),
            conformance: Conformance::default(),
            checks: Checks::default(),
            decisions: Decisions::new(config.decisions_kept),
            metrics: Metrics::new(),
            clock: Clock::start(),
            aliases: RwLock::new(Arc::new(aliases)),
            cut: CancellationToken::new(),
            config,
        });
        let inflight = Arc::new(Semaphore::new(context.config.max_inflight as usize));
        let wire = Wire { context, tasks, inflight };
        wire.tasks.spawn(keep_house(Arc::clone(&wire.context)));
        Health::follow(&wire.context, &wire.tasks);
        Ok(wire)
    }

    /// Takes a request. Returns at once; all that comes of it comes through the [`Exchange`].
    ///
    /// The request's identity is settled here: the client's own, or a new one that the engine gets too.
    #[must_use]
    pub fn dispatch(&self, mut request: Request) -> Exchange {
        let id = request.headers.get(net::REQUEST_ID).cloned().unwrap_or_else(net::new_request_id);
        // Inserted, not kept: of several only the one that is echoed goes on.
        request.headers.insert(net::REQUEST_ID, id.clone());
        let record = Record::new(Arc::clone(&self.context), id.clone(), request.endpoint);
        let (sender, exchange_for) = reply::channel(id);
        let task = if let Ok(permit) = Arc::clone(&self.inflight).try_acquire_owned() {
            self.tasks.spawn(exchange(record, request, sender, permit))
        } else {
            let refusal = self.refusal();
            record.finish(Some(&refusal));
            self.tasks.spawn(async move { sender.end(Err(refusal)) })
        };
        exchange_for(task)
    }

    /// What would be chosen for a request, as JSON with every term. Nothing is sent or booked, but for the engine that is
    /// asked for tokens where nobody else knows them.
    #[must_use]
    pub fn explain(&self, request: Request) -> Exchange {
        let id = net::new_request_id();
        let (sender, exchange_for) = reply::channel(id);
        let context = Arc::clone(&self.context);
        let task = self.tasks.spawn(async move { explain(&context, request, sender).await });
        exchange_for(task)
    }

    /// Every engine with all that is known of it, as JSON.
    ///
    /// # Errors
    /// A name that cannot be written; none of ours is.
    pub fn workers(&self) -> Result<String, Error> {
        workers(&self.context)
    }

    /// The latest decisions with their outcomes, the newest first, as JSON.
    ///
    /// # Errors
    /// As [`Wire::workers`].
    pub fn decisions(&self, limit: usize) -> Result<String, Error> {
        as_json(&self.context.decisions.latest(limit))
    }

    /// The engines with their state, load and facts, as JSON.
    ///
    /// # Errors
    /// As [`Wire::workers`].
    pub fn engines(&self) -> Result<String, Error> {
        let now = self.context.clock.now();
        let engines = self.context.router.engines();
        as_json(&engines.iter().map(|engine| engine.view(now)).collect::<Vec<_>>())
    }

    fn refusal(&self) -> Error {
        if self.inflight.is_closed() {
            return Error::stopping();
        }
        Error::saturated(self.context.config.max_inflight)
    }

    /// The fleet from now on. Engines that stay keep their state; those that go finish what they have.
    ///
    /// # Errors
    /// Two engines of one name, or a URL that is none. Then all stays as it is.
    pub fn set_fleet(&self, fleet: FleetSpec) -> Result<(), RouteError> {
        self.context.router.set_engines(fleet.engines)?;
        *self.context.aliases.write() = Arc::new(fleet.aliases);
        Health::follow(&self.context, &self.tasks);
        Ok(())
    }

    /// The router that decides.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.context.router
    }

    /// Requests that have not ended.
    #[must_use]
    pub fn inflight(&self) -> usize {
        (self.context.config.max_inflight as usize)
            .saturating_sub(self.inflight.available_permits())
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// A label that cannot be written.
    pub fn metrics(&self) -> Result<String, Error> {
        self.context.metrics.encode(&self.context, self.inflight())
    }

    /// Refuses new requests with 503 from now on; those in flight go on.
    pub fn close(&self) {
        self.inflight.close();
    }

    /// Ends every reply in flight with an error, each in the words of its endpoint; their engines stop too.
    pub fn cut(&self) {
        self.context.cut.cancel();
    }

    /// Stops every task and waits for the thread. Requests in flight are dropped: their engines stop too.
    pub fn stop(&self) {
        self.close();
        self.context.events.stop();
        self.tasks.stop();
    }
}

async fn keep_house(context: Arc<Context>) {
    loop {
        tokio::time::sleep(jittered(KEEP_HOUSE)).await;
        context.router.expire(context.clock.now());
        context.events.review(&context);
    }
}
