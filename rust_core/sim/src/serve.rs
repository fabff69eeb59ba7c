//! The HTTP face of an engine, in real time.
//!
//! `listen` accepts connections, `http` finds what a path does, `generate` turns a body (`openai`) into a request to the
//! engine that the one task of `driver` runs, and `stream` or `shape` writes what comes back.

mod body;
mod driver;
mod generate;
mod http;
mod listen;
mod metrics;
mod openai;
mod refusal;
mod shape;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Error, Fault, SimConfig};
use http::App;
use listen::Door;

/// A running engine that speaks vLLM's HTTP. Dropping it ends its tasks soon, [`Server::stop`] waits for that.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    app: Arc<App>,
    door: watch::Sender<Door>,
    /// The one that accepts, which owns the connections, and the one that drives the engine.
    accepting: JoinSet<()>,
    driving: JoinSet<()>,
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
    /// [`Error::Config`] and [`Error::Listen`].
    pub async fn start(config: SimConfig) -> Result<Server, Error> {
        config.check()?;
        let refuse = |cause| Error::Listen { listen: config.listen.clone(), cause };
        let listener = TcpListener::bind(&config.listen).await.map_err(refuse)?;
        let addr = listener.local_addr().map_err(refuse)?;
        let (door, opened) = watch::channel(Door::Open);
        let app = Arc::new(App::new(config, door.clone())?);
        let (mut accepting, mut driving) = (JoinSet::new(), JoinSet::new());
        accepting.spawn(listen::accept(listener, Arc::clone(&app), opened));
        driving.spawn(Arc::clone(&app.driver).run());
        Ok(Server { addr, app, door, accepting, driving })
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

    /// What the engine is doing now.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        self.app.driver.with_engine(|engine| {
            let scheduler = engine.scheduler();
            Gauges {
                running: scheduler.running(),
                waiting: scheduler.waiting(),
                kv_usage: scheduler.cache().usage(),
            }
        })
    }

    /// Returns when every connection is closed and every task has ended. Replies in flight are cut.
    pub async fn stop(mut self) {
        self.door.send_replace(Door::Closed);
        while self.accepting.join_next().await.is_some() {}
        self.driving.shutdown().await;
    }
}
