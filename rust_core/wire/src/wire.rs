//! The room's front door: starts the thread, takes requests, answers questions, stops.

use std::sync::Arc;
use std::time::Duration;

use nebula_route::{EngineSpec, Error as RouteError, Router};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::dispatch::{Context, Request, exchange};
use crate::error::Error;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::net;
use crate::record::Record;
use crate::reply::{self, Exchange};
use crate::tasks::{Clock, Tasks, jittered};
use crate::upstream::Upstream;

/// How often routes that outlived their time leave the index.
const EXPIRE: Duration = Duration::from_secs(1);

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
    pub fn start(config: Config, router: Arc<Router>) -> Result<Wire, Error> {
        let tasks = Tasks::start()?;
        let context = Arc::new(Context {
            upstream: Upstream::new(&config, tasks.executor())?,
            router,
            health: Health::default(),
            metrics: Metrics::new(),
            clock: Clock::start(),
            cut: CancellationToken::new(),
            config,
        });
        let inflight = Arc::new(Semaphore::new(context.config.max_inflight as usize));
        let wire = Wire { context, tasks, inflight };
        wire.tasks.spawn(expire(Arc::clone(&wire.context)));
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

    fn refusal(&self) -> Error {
        if self.inflight.is_closed() {
            return Error::stopping();
        }
        Error::saturated(self.context.config.max_inflight)
    }

    /// The fleet from now on. Engines that stay keep their state; those that go finish what they have.
    ///
    /// # Errors
    /// Two engines of one name, or a URL that is none.
    pub fn set_engines(&self, specs: Vec<EngineSpec>) -> Result<(), RouteError> {
        self.context.router.set_engines(specs)?;
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
        self.context.metrics.encode(&self.context.router, self.inflight())
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
        self.tasks.stop();
    }
}

async fn expire(context: Arc<Context>) {
    loop {
        tokio::time::sleep(jittered(EXPIRE)).await;
        context.router.expire(context.clock.now());
    }
}
