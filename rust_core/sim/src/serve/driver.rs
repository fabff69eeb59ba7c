//! Real time: one task drives the engine of a rank, and every reply watches its own progress.
//!
//! The engine sits behind one lock, held for a step at most; what the step did to the cache is published under it, so that
//! events leave in the order of the steps. A reply's progress is a single cell that the driver
//! overwrites, not a queue: however slow a client reads, it costs no memory, and all the tokens that became ready since it
//! last looked are sent at once. Dropping a [`Ticket`] takes the request out of the engine there and then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::events::{Feed, Replay, Source};
use crate::config::EventsConfig;
use crate::hash::HashedMap;
use crate::timing::{Nanos, nanos};
use crate::{Emission, Engine, EngineConfig, Error, Request, SeqId, SimConfig, Transfer};

/// Tokens after which the driver lets the replies run, if the engine waits for nothing.
const BURST_TOKENS: usize = 1024;
/// Later than anybody waits: a year.
const FAR_SECONDS: f64 = 365.0 * 86_400.0;
/// Time between two looks for who missed events.
const LOOK: Duration = Duration::from_millis(10);
/// Most of them that are answered at once.
const REPLAYS: usize = 16;
/// A lease that virtual time never ends.
const ENDLESS: Nanos = Nanos::MAX / 2;

/// The engine of one rank, and who waits for it.
pub(crate) struct Driver {
    state: Mutex<State>,
    /// Wakes the driving task of an idle engine.
    submitted: Notify,
    /// Virtual seconds per real second; 0 waits for nothing.
    speed: f64,
    epoch: Instant,
    config: EngineConfig,
    /// How long blocks are kept for another engine. Where nothing is waited for, virtual time says nothing about that
    /// engine, and the lease is one of real time.
    lease: Duration,
}

struct State {
    engine: Engine,
    /// What is told of its cache; none if nothing is.
    feed: Option<Feed>,
    replies: HashedMap<Arc<Mutex<Cell>>>,
    last_id: SeqId,
    /// The leases of real time, the first to end first.
    leases: VecDeque<(Instant, SeqId)>,
    /// Kept between steps to spare the allocation.
    emissions: Vec<Emission>,
}

/// What the driver does until it is woken.
enum Rest {
    /// A step is in flight.
    Step(Nanos),
    /// Nothing is, and nothing happens by itself.
    Idle,
    /// The same until a virtual time.
    Until(Nanos),
    /// The same until a real time.
    Lease(Instant),
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
    /// Prompt tokens that came from another engine.
    pub(crate) external: u32,
    /// True once the last token is there.
    pub(crate) finished: bool,
}

/// A request in the engine. Dropping it aborts the request.
pub(crate) struct Ticket {
    driver: Arc<Driver>,
    id: SeqId,
    cell: Arc<Mutex<Cell>>,
}

// === impl Driver ===

impl Driver {
    /// An engine that is not driven yet.
    ///
    /// # Errors
    /// [`Error::Events`] if there is no address for the events of this rank.
    pub(crate) fn new(config: &SimConfig, rank: u32) -> Result<Driver, Error> {
        let feed = config.kv_events.publishes().then(|| Feed::new(config, rank)).transpose()?;
        Ok(Driver {
            state: Mutex::new(State {
                engine: engine(&config.engine, feed.is_some()),
                feed,
                replies: HashedMap::default(),
                last_id: 0,
                leases: VecDeque::new(),
                emissions: Vec::new(),
            }),
            submitted: Notify::new(),
            speed: config.speed,
            epoch: Instant::now(),
            config: config.engine.clone(),
            lease: Duration::from_secs_f64(config.kv_transfer.lease_s.min(FAR_SECONDS)),
        })
    }

    /// Puts a request into the engine; its id is chosen here.
    pub(crate) fn submit(self: &Arc<Self>, request: Request, transfer: Transfer) -> Ticket {
        let cell = Arc::new(Mutex::new(Cell::default()));
        let mut state = self.state.lock();
        state.last_id += 1;
        let id = state.last_id;
        let now = self.now(&state.engine);
        state.engine.submit_transfer(Request { id, ..request }, transfer, now);
        state.replies.insert(id, Arc::clone(&cell));
        if state.engine.ends().is_none() {
            self.submitted.notify_one();
        }
        Ticket { driver: Arc::clone(self), id, cell }
    }

    /// Blocks that are kept for another engine.
    pub(crate) fn hold(&self) -> Transfer {
        Transfer::Hold { lease: self.virtual_lease() }
    }

    /// Keeps the blocks of a request that has ended for a lease from now on; false if they are gone.
    pub(crate) fn renew(&self, id: SeqId) -> bool {
        let mut state = self.state.lock();
        let now = self.now(&state.engine);
        if self.speed == 0.0 {
            state.leases.retain(|&(_, other)| other != id);
            state.leases.push_back((Instant::now() + self.lease, id));
        }
        state.engine.renew(id, self.virtual_lease(), now)
    }

    /// Gives the blocks of a request back that has ended; false if they are gone.
    pub(crate) fn release(&self, id: SeqId) -> bool {
        let released = self.state.lock().engine.release(id);
        // There may be room now for a request that waits.
        self.submitted.notify_one();
        released
    }

    fn virtual_lease(&self) -> Nanos {
        if self.speed == 0.0 { ENDLESS } else { nanos(self.lease.as_secs_f64() * 1e9) }
    }

    /// Opens the sockets for its events; gives the one for [`Driver::run`] to answer.
    ///
    /// # Errors
    /// [`Error::Events`] if an address cannot be had.
    pub(crate) fn open(&self, context: &zmq::Context) -> Result<Option<Replay>, Error> {
        self.state.lock().feed.as_mut().map_or(Ok(None), |feed| feed.open(context))
    }

    /// Loses everything, as a process does that ends.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        state.engine = engine(&self.config, state.feed.is_some());
        state.replies.clear();
        state.leases.clear();
        state.feed.iter_mut().for_each(Feed::close);
    }

    /// What `look` sees of its events, if it publishes any.
    pub(crate) fn with_feed<T>(&self, look: impl FnOnce(&mut Feed) -> T) -> Option<T> {
        self.state.lock().feed.as_mut().map(look)
    }

    /// What `look` sees in the engine.
    pub(crate) fn with_engine<T>(&self, look: impl FnOnce(&mut Engine) -> T) -> T {
        look(&mut self.state.lock().engine)
    }

    /// Where its events are found, in JSON.
    pub(crate) fn source(&self, config: &EventsConfig, host: &str) -> String {
        let told = self.with_feed(|feed| feed.source(host).json());
        told.unwrap_or_else(|| Source::of(config).json())
    }

    /// Drives the engine until dropped, and answers who missed events.
    pub(crate) async fn run(self: Arc<Self>, replay: Option<Replay>) {
        loop {
            let rest = self.advance();
            let Some(replay) = &replay else {
                self.rest(rest).await;
                continue;
            };
            for request in std::iter::from_fn(|| replay.request()).take(REPLAYS) {
                let batches = self.with_feed(|feed| feed.since(request.start)).unwrap_or_default();
                replay.answer(&request, &batches);
            }
            // Whether it rested enough or only looks for requests, the next round finds out.
            let _ = tokio::time::timeout(LOOK, self.rest(rest)).await;
        }
    }

    async fn rest(&self, rest: Rest) {
        let until = match rest {
            Rest::Idle => return self.submitted.notified().await,
            Rest::Step(ends) => match self.real(ends) {
                Some(at) if at > Instant::now() => return tokio::time::sleep_until(at).await,
                _ => return tokio::task::yield_now().await,
            },
            Rest::Until(at) => self.real(at).unwrap_or_else(Instant::now),
            Rest::Lease(until) => until,
        };
        tokio::select! {
            () = self.submitted.notified() => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }

    /// Ends the steps that are due and tells the replies.
    fn advance(&self) -> Rest {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut tokens = 0;
        loop {
            let due = match state.engine.ends().or_else(|| state.engine.wakes()) {
                Some(at) if self.speed == 0.0 && at < ENDLESS => at,
                _ => self.now(&state.engine),
            };
            let ended = state.engine.ends();
            let ends = state.engine.step(due, &mut state.emissions);
            if let Some(feed) = &mut state.feed
                && (ended.is_some() || ends.is_some())
            {
                // As in vLLM, what happens between two steps is told with the next one.
                let events = state.engine.take_events();
                if !events.is_empty() {
                    feed.publish(&events);
                }
            }
            tokens += state.emissions.len();
            self.tell(state);
            let next = ends.or_else(|| state.engine.wakes()).filter(|&at| at < ENDLESS);
            match next {
                Some(at)
                    if tokens < BURST_TOKENS
                        && (self.speed == 0.0 || at <= self.now(&state.engine)) => {}
                Some(at) if ends.is_some() => return Rest::Step(at),
                Some(at) => return Rest::Until(at),
                None => return state.next_lease(),
            }
        }
    }

    /// Tells the replies what came, and ends leases of real time.
    fn tell(&self, state: &mut State) {
        let now = (self.speed == 0.0).then(Instant::now);
        for emission in state.emissions.drain(..) {
            tell(&mut state.replies, &emission);
            if let Some(now) = now
                && emission.finished
                && state.engine.held(emission.id).is_some()
            {
                state.leases.push_back((now + self.lease, emission.id));
            }
        }
        while let (Some(now), Some(&(ends, id))) = (now, state.leases.front())
            && ends <= now
        {
            state.leases.pop_front();
            state.engine.expire(id);
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

fn engine(config: &EngineConfig, tells: bool) -> Engine {
    let mut engine = Engine::new(config);
    if tells {
        engine.record_events();
    }
    engine
}

fn tell(replies: &mut HashedMap<Arc<Mutex<Cell>>>, emission: &Emission) {
    let Emission { id, produced, cached, external, finished } = *emission;
    let told = if finished { replies.remove(&id) } else { replies.get(&id).map(Arc::clone) };
    if let Some(cell) = told {
        let mut cell = cell.lock();
        cell.progress = Progress { produced, cached, external, finished };
        if let Some(waker) = cell.waker.take() {
            waker.wake();
        }
    }
}

// === impl State ===

impl State {
    fn next_lease(&self) -> Rest {
        self.leases.front().map_or(Rest::Idle, |&(ends, _)| Rest::Lease(ends))
    }
}

// === impl Ticket ===

impl Ticket {
    /// What the engine calls it.
    pub(crate) fn id(&self) -> SeqId {
        self.id
    }

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
            if state.engine.ends().is_none() {
                // There may be room now for a request that waits.
                self.driver.submitted.notify_one();
            }
        }
    }
}
