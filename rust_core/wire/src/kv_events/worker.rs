//! The thread that owns every socket: it waits for all of them at once and gives each rank a turn.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use nebula_route::{Millis, RankId};
use parking_lot::Mutex;
use zmq::{PollItem, Socket};

use super::feed::{Feed, Turn};
use super::socket::{Contexts, Received};
use super::stats::RankEvents;
use super::{EventsConfig, Sink, Source, decode};
use crate::tasks::Clock;

/// What the thread and its owner share.
#[derive(Default)]
pub(super) struct Shared {
    /// The sources from now on; the latest word counts.
    pub(super) wanted: Mutex<Option<Vec<Source>>>,
    /// Ranks whose blocks the index has forgotten.
    pub(super) relearn: Mutex<BTreeSet<RankId>>,
    pub(super) stopping: AtomicBool,
    pub(super) stats: Mutex<BTreeMap<RankId, (RankEvents, Option<Instant>)>>,
    /// Messages of engines that dial in and that nobody follows.
    pub(super) strays: AtomicU64,
}

pub(super) struct Worker {
    config: EventsConfig,
    sink: Arc<dyn Sink>,
    shared: Arc<Shared>,
    /// Readable when there is a word in [`Shared`].
    wake: Socket,
    bound: Option<Socket>,
    /// Who is behind a topic of an engine that dials in: index within the engine and rank.
    topics: HashMap<String, Vec<(u32, RankId)>>,
    contexts: Contexts,
    feeds: BTreeMap<RankId, Feed>,
    clock: Clock,
}

/// What may have something.
#[derive(Clone, Copy)]
enum Part {
    Wake,
    Bound,
    Live(RankId),
    Monitor(RankId),
    Answer(RankId),
}

/// Longest wait for anything.
const WAIT_MS: Millis = 60_000;

// === impl Worker ===

impl Worker {
    pub(super) fn new(
        config: EventsConfig,
        sink: Arc<dyn Sink>,
        shared: Arc<Shared>,
        wake: Socket,
        bound: Option<Socket>,
    ) -> Worker {
        Worker {
            config,
            sink,
            shared,
            wake,
            bound,
            topics: HashMap::new(),
            contexts: Contexts::default(),
            feeds: BTreeMap::new(),
            clock: Clock::start(),
        }
    }

    /// Returns when the owner stops it.
    pub(super) fn run(mut self) {
        while !self.shared.stopping.load(Ordering::Acquire) {
            let wanted = self.shared.wanted.lock().take();
            if let Some(wanted) = wanted {
                self.follow(wanted);
            }
            let relearn = std::mem::take(&mut *self.shared.relearn.lock());
            let now = self.clock.now();
            for rank in relearn {
                self.with(rank, |feed| feed.sequence.relearn(now));
            }
            for feed in self.feeds.values_mut() {
                feed.tick(&self.config, now);
            }
            self.publish();
            let ready = match self.wait(now) {
                Ok(ready) => ready,
                Err(zmq::Error::EINTR) => continue,
                Err(cause) => {
                    tracing::error!(%cause, "KV events: the sockets cannot be waited for");
                    return;
                }
            };
            let now = self.clock.now();
            for part in ready {
                self.serve(part, now);
            }
        }
    }

    /// Follows these sources and no others; unchanged ones go on as they are.
    fn follow(&mut self, wanted: Vec<Source>) {
        let mut wanted: BTreeMap<RankId, Source> =
            wanted.into_iter().map(|source| (source.rank, source)).collect();
        let mut stats = self.shared.stats.lock();
        self.feeds.retain(|rank, feed| {
            let kept = wanted.get(rank) == Some(&feed.source);
            if !kept {
                stats.remove(rank);
                self.contexts.give_back(feed.context_at);
                if feed.sequence.last().is_some() {
                    self.sink.clear(*rank);
                }
            }
            kept
        });
        wanted.retain(|rank, _| !self.feeds.contains_key(rank));
        let now = self.clock.now();
        for (rank, source) in wanted {
            stats.insert(rank, (RankEvents::of(&source), None));
            let sink = Arc::clone(&self.sink);
            let feed = Feed::new(source, &self.config, sink, self.contexts.take(), now);
            self.feeds.insert(rank, feed);
        }
        drop(stats);
        self.listen();
    }

    /// Subscribes to the topics of the engines that dial in.
    fn listen(&mut self) {
        let before = std::mem::take(&mut self.topics);
        for (rank, feed) in self.feeds.iter().filter(|(_, feed)| feed.source.endpoint.is_none()) {
            let ranks = self.topics.entry(feed.source.topic.clone()).or_default();
            ranks.push((feed.source.rank_index, *rank));
        }
        let Some(bound) = &self.bound else {
            if !self.topics.is_empty() {
                tracing::warn!(
                    "KV events: engines are to dial in, but there is no address to bind"
                );
            }
            return;
        };
        let new = self.topics.keys().filter(|topic| !before.contains_key(*topic));
        let old = before.keys().filter(|topic| !self.topics.contains_key(*topic));
        let changed = new
            .map(|topic| bound.set_subscribe(topic.as_bytes()))
            .chain(old.map(|topic| bound.set_unsubscribe(topic.as_bytes())));
        for cause in changed.filter_map(Result::err) {
            tracing::warn!(%cause, "KV events: a topic cannot be subscribed to");
        }
    }

    fn publish(&mut self) {
        let mut stats = self.shared.stats.lock();
        for (rank, feed) in self.feeds.iter_mut().filter(|(_, feed)| feed.touched) {
            feed.touched = false;
            if let Some((stats, last_came)) = stats.get_mut(rank) {
                feed.write(stats);
                *last_came = feed.last_came();
            }
        }
    }

    /// What has something; waits until anything has, or time is up for anything.
    fn wait(&self, now: Millis) -> zmq::Result<Vec<Part>> {
        let due = self.feeds.values().filter_map(Feed::due).min();
        let wait = due.map_or(WAIT_MS, |due| due.saturating_sub(now)).min(WAIT_MS);
        let mut parts = vec![Part::Wake];
        let mut items = vec![self.wake.as_poll_item(zmq::POLLIN)];
        let mut add = |part: Part, socket| {
            parts.push(part);
            items.push(poll_item(socket));
        };
        if let Some(bound) = &self.bound {
            add(Part::Bound, bound);
        }
        for (rank, feed) in &self.feeds {
            if let Some(subscriber) = &feed.subscriber {
                // What came on the old connection goes before the news of a new one.
                add(Part::Live(*rank), &subscriber.socket);
                add(Part::Monitor(*rank), &subscriber.monitor);
            }
            if let Some(asked) = &feed.asked {
                add(Part::Answer(*rank), asked);
            }
        }
        zmq::poll(&mut items, i64::try_from(wait).unwrap_or(i64::MAX))?;
        let ready = parts.into_iter().zip(&items).filter(|(_, item)| item.is_readable());
        Ok(ready.map(|(part, _)| part).collect())
    }

    fn serve(&mut self, part: Part, now: Millis) {
        match part {
            Part::Wake => while self.wake.recv_bytes(zmq::DONTWAIT).is_ok() {},
            Part::Bound => self.receive_bound(now),
            Part::Live(rank) => self.with(rank, |feed| feed.receive(now)),
            Part::Monitor(rank) => self.with(rank, |feed| feed.watch(now)),
            Part::Answer(rank) => self.with(rank, |feed| feed.receive_answer(now)),
        }
    }

    fn with(&mut self, rank: RankId, serve: impl FnOnce(&mut Feed)) {
        if let Some(feed) = self.feeds.get_mut(&rank) {
            serve(feed);
        }
    }

    /// Takes what engines that dialled in sent; libzmq gives each connection its turn.
    fn receive_bound(&mut self, now: Millis) {
        let mut turn = Turn::default();
        while let Some(mut frames) = self.bound.as_ref().and_then(|bound| turn.next(bound)) {
            let rank = self.sender(&frames);
            // The topic is not needed any more, and of two frames it would not be one.
            frames.drain(..frames.len().saturating_sub(2));
            match rank.and_then(|rank| self.feeds.get_mut(&rank)) {
                Some(feed) => feed.live(Received::of(frames), now),
                None => {
                    self.shared.strays.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whose message it is: by its topic, and among the ranks of one engine by the rank that it names.
    fn sender(&self, frames: &[Vec<u8>]) -> Option<RankId> {
        let [topic, _, payload] = frames else { return None };
        let ranks = self.topics.get(std::str::from_utf8(topic).ok()?)?;
        if let [(_, rank)] = ranks[..] {
            return Some(rank);
        }
        let index = decode::rank(payload).unwrap_or(0);
        ranks.iter().find(|(at, _)| *at == index).map(|(_, rank)| *rank)
    }
}

fn poll_item(socket: &Socket) -> PollItem<'_> {
    socket.as_poll_item(zmq::POLLIN)
}
