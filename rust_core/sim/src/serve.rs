//! The face of an engine: HTTP and ZMQ, in real time.
//!
//! `life` begins and ends what the process of an engine does. `listen` accepts connections, `http` finds what a path does,
//! `generate` turns a body (`openai`) into a request to the engine of one rank, which the one task of its `driver` runs, and
//! `stream` or `shape` writes what comes back. `events` tells what happens to the KV cache, `handoff` shares it with other
//! engines.

mod app;
mod body;
mod connection;
mod driver;
mod events;
mod generate;
mod handoff;
mod http;
mod life;
mod listen;
mod metrics;
mod openai;
mod peer;
mod refusal;
mod shape;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Error, Fault, SimConfig};
use app::App;
use listen::Door;

/// A running engine that speaks vLLM's HTTP. Dropping it ends its tasks soon, [`Server::stop`] waits for that.
pub struct Server {
    addr: SocketAddr,
    app: Arc<App>,
    /// The task that owns all others.
    living: JoinSet<()>,
}

/// What an engine is doing at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gauges {
    /// Requests in the batch.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// Share of KV blocks in use, 0 to 1.
    pub kv_usage: f64,
}

// === impl Server ===

impl Server {
    /// A server that accepts connections once this returns. Its tasks run on the runtime that calls.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Listen`] and [`Error::Events`].
    pub async fn start(config: SimConfig) -> Result<Server, Error> {
        config.check()?;
        let refuse = |cause| Error::Listen { listen: config.listen.clone(), cause };
        let listener = TcpListener::bind(&config.listen).await.map_err(refuse)?;
        let addr = listener.local_addr().map_err(refuse)?;
        let (door, opened) = watch::channel(Door::Open);
        let app = Arc::new(App::new(config, addr, door)?);
        let replays = app.open()?;
        let mut living = JoinSet::new();
        living.spawn(life::live(listener, replays, Arc::clone(&app), opened));
        Ok(Server { addr, app, living })
    }

    /// The address that it listens on, with the port that the system chose.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Replaces the fault in force, as `POST /sim/fault` does; none ends it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.app.set_fault(fault);
    }

    /// What the engine is doing now: sums over its ranks, and the mean use of their blocks.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let mut all = Gauges { running: 0, waiting: 0, kv_usage: 0.0 };
        for rank in &self.app.ranks {
            rank.with_engine(|engine| {
                let scheduler = engine.scheduler();
                all.running += scheduler.running();
                all.waiting += scheduler.waiting();
                all.kv_usage += scheduler.cache().usage() / self.app.ranks.len() as f64;
            });
        }
        all
    }

    /// Returns when every connection is closed and every task has ended. Replies in flight are cut.
    pub async fn stop(mut self) {
        self.app.turn(Door::Closed);
        while self.living.join_next().await.is_some() {}
    }
}
