//! Real time: one task drives the engine, and every reply watches its own progress.
//!
//! The engine sits behind one lock, held for a step at most. A reply's progress is a single cell that the driver
//! overwrites, not a queue: however slow a client reads, it costs no memory, and all the tokens that became ready since it
//! last looked are sent at once. Dropping a [`Ticket`] takes the request out of the engine there and then.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hash::HashedMap;
use crate::timing::{Nanos, nanos};
use crate::{Emission, Engine, Finish, Request, SeqId, SimConfig};

/// Tokens after which the driver lets the replies run, if the engine waits for nothing.
const BURST_TOKENS: usize = 1024;
/// Later than anybody waits: a year.
const FAR_SECONDS: f64 = 365.0 * 86_400.0;

/// An engine, and who waits for it.
#[derive(Debug)]
pub(crate) struct Driver {
    state: Mutex<State>,
    /// Wakes the driving task of an idle engine.
    submitted: Notify,
    /// Virtual seconds per real second; 0 waits for nothing.
    speed: f64,
    epoch: Instant,
}

#[derive(Debug)]
struct State {
    engine: Engine,
    replies: HashedMap<Arc<Mutex<Cell>>>,
    last_id: SeqId,
    /// Kept between steps to spare the allocation.
    emissions: Vec<Emission>,
}

/// How far one reply has come, and who waits for more.
#[derive(Debug, Default)]
struct Cell {
    progress: Progress,
    waker: Option<Waker>,
}

/// How far one reply has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Tokens so far.
    pub(crate) produced: u32,
    /// Prompt tokens that were found in the cache.
    pub(crate) cached: u32,
    /// True once the last token is there.
    pub(crate) finished: bool,
}

/// A request in the engine. Dropping it aborts the request.
#[derive(Debug)]
pub(crate) struct Ticket {
    driver: Arc<Driver>,
    id: SeqId,
    cell: Arc<Mutex<Cell>>,
}

// === impl Driver ===

impl Driver {
    pub(crate) fn new(config: &SimConfig) -> Driver {
        Driver {
            state: Mutex::new(State {
                engine: Engine::new(&config.engine),
                replies: HashedMap::default(),
                last_id: 0,
                emissions: Vec::new(),
            }),
            submitted: Notify::new(),
            speed: config.speed,
            epoch: Instant::now(),
        }
    }

    /// Puts a request into the engine.
    pub(crate) fn submit(
        self: &Arc<Self>,
        prompt: Vec<u32>,
        chain_seed: u64,
        max_tokens: u32,
        finish: Finish,
    ) -> Ticket {
        let cell = Arc::new(Mutex::new(Cell::default()));
        let mut state = self.state.lock();
        state.last_id += 1;
        let id = state.last_id;
        let now = self.now(&state.engine);
        state.engine.submit(Request { id, prompt, chain_seed, max_tokens, finish }, now);
        state.replies.insert(id, Arc::clone(&cell));
        if state.engine.ends().is_none() {
            self.submitted.notify_one();
        }
        Ticket { driver: Arc::clone(self), id, cell }
    }

    /// What `look` sees in the engine.
    pub(crate) fn with_engine<T>(&self, look: impl FnOnce(&mut Engine) -> T) -> T {
        look(&mut self.state.lock().engine)
    }

    /// Drives the engine until dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            match self.advance() {
                None => self.submitted.notified().await,
                Some(ends) => match self.real(ends) {
                    Some(at) if at > Instant::now() => tokio::time::sleep_until(at).await,
                    _ => tokio::task::yield_now().await,
                },
            }
        }
    }

    /// Ends the steps that are due, tells the replies, and gives the end of the step in flight.
    fn advance(&self) -> Option<Nanos> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut tokens = 0;
        loop {
            let due = match state.engine.ends() {
                Some(ends) if self.speed == 0.0 => ends,
                _ => self.now(&state.engine),
            };
            let ends = state.engine.step(due, &mut state.emissions);
            tokens += state.emissions.len();
            for emission in state.emissions.drain(..) {
                tell(&mut state.replies, &emission);
            }
            match ends {
                Some(ends)
                    if tokens < BURST_TOKENS
                        && (self.speed == 0.0 || ends <= self.now(&state.engine)) => {}
                ends => return ends,
            }
        }
    }

    fn now(&self, engine: &Engine) -> Nanos {
        if self.speed == 0.0 {
            return engine.now();
        }
        nanos(self.epoch.elapsed().as_secs_f64() * self.speed * 1e9)
    }

    /// When a virtual time comes; none if nothing is waited for.
    fn real(&self, at: Nanos) -> Option<Instant> {
        let seconds = (at as f64 / 1e9 / self.speed).min(FAR_SECONDS);
        (self.speed > 0.0).then(|| self.epoch + Duration::from_secs_f64(seconds))
    }
}

fn tell(replies: &mut HashedMap<Arc<Mutex<Cell>>>, emission: &Emission) {
    let Emission { id, produced, cached, finished } = *emission;
    let told = if finished { replies.remove(&id) } else { replies.get(&id).map(Arc::clone) };
    if let Some(cell) = told {
        let mut cell = cell.lock();
        cell.progress = Progress { produced, cached, finished };
        if let Some(waker) = cell.waker.take() {
            waker.wake();
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// The progress of the reply, once it has more than `seen` tokens.
    pub(crate) fn poll_beyond(&self, seen: u32, cx: &mut Context<'_>) -> Poll<Progress> {
        let mut cell = self.cell.lock();
        if cell.progress.produced > seen {
            return Poll::Ready(cell.progress);
        }
        match &mut cell.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The progress of the reply, once it has all its `tokens`.
    pub(crate) async fn finished(&self, tokens: u32) -> Progress {
        std::future::poll_fn(|cx| self.poll_beyond(tokens.saturating_sub(1), cx)).await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.cell.lock().progress.finished {
            return;
        }
        let mut state = self.driver.state.lock();
        if state.replies.remove(&self.id).is_some() {
            let now = self.driver.now(&state.engine);
            state.engine.abort(self.id, now);
        }
    }
}
