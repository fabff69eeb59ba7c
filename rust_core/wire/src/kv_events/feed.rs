//! One rank that is followed: its sockets, its order, its cache.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nebula_route::Millis;
use zmq::{Context, Socket};

use super::cache::Cache;
use super::sequence::{Message, Sequence};
use super::socket::{self, Received, Subscriber};
use super::stats::RankEvents;
use super::{EventsConfig, Sink, Source};

pub(super) struct Feed {
    pub(super) source: Source,
    pub(super) sequence: Sequence,
    pub(super) cache: Cache,
    context: Context,
    /// Which of [`super::socket::Contexts`] it is.
    pub(super) context_at: usize,
    /// None where the engine dials in, and where the socket cannot be had.
    pub(super) subscriber: Option<Subscriber>,
    /// The request for a replay that is not answered whole.
    pub(super) asked: Option<Socket>,
    /// When a socket that could not be had is tried again.
    reopen_at: Millis,
    connected: bool,
    lag_ms: Option<u64>,
    last_came: Option<Instant>,
    /// Its figures have changed.
    pub(super) touched: bool,
}

/// Messages that one rank may hand in before the next has its turn, and their bytes.
const TURN_MESSAGES: usize = 64;
const TURN_BYTES: usize = 1 << 20;

/// Wait before a socket that the system refused is tried again.
const REOPEN_MS: Millis = 5_000;

// === impl Feed ===

impl Feed {
    pub(super) fn new(
        source: Source,
        config: &EventsConfig,
        sink: Arc<dyn Sink>,
        (context, context_at): (Context, usize),
        now: Millis,
    ) -> Feed {
        let limits = config.limits();
        // The first request waits for the subscription, so that nothing falls between the two; but not for ever.
        let wait = if source.endpoint.is_some() { limits.replay_timeout_ms } else { 0 };
        Feed {
            sequence: Sequence::new(limits, source.replay.is_some(), now + wait),
            cache: Cache::new(source.rank, sink),
            context,
            context_at,
            subscriber: None,
            asked: None,
            reopen_at: now,
            connected: false,
            lag_ms: None,
            last_came: None,
            touched: true,
            source,
        }
    }

    /// Takes what the subscription has, up to a turn's worth.
    pub(super) fn receive(&mut self, now: Millis) {
        let mut turn = Turn::default();
        while let Some(frames) = self.subscriber.as_ref().and_then(|sub| turn.next(&sub.socket)) {
            self.live(Received::of(frames), now);
        }
    }

    /// Takes one message of the subscription.
    pub(super) fn live(&mut self, received: Received, now: Millis) {
        self.touched = true;
        let Received::Batch(message) = received else {
            self.cache.tally.decode_errors += 1;
            return;
        };
        self.last_came = Some(Instant::now());
        self.lag_ms = message.ts.and_then(lag_ms).or(self.lag_ms);
        self.connected = true;
        self.sequence.live(message, now, &mut self.cache);
    }

    /// Takes what has come of the answer to a replay, up to a turn's worth.
    pub(super) fn receive_answer(&mut self, now: Millis) {
        self.touched = true;
        let mut turn = Turn::default();
        // A sequence that has what it needs, or begins anew, waits for nothing more.
        while self.sequence.asked()
            && let Some(frames) = self.asked.as_ref().and_then(|asked| turn.next(asked))
        {
            match Received::of(frames) {
                Received::Batch(message) => self.replayed(&message, now),
                Received::End => self.sequence.replay_ended(now, &mut self.cache),
                Received::Broken => self.cache.tally.decode_errors += 1,
            }
        }
    }

    /// Follows what the connection does.
    pub(super) fn watch(&mut self, now: Millis) {
        if let Some(connected) = self.subscriber.as_ref().and_then(Subscriber::came_about) {
            self.touched = true;
            self.connected = connected;
            if connected {
                self.sequence.connected(now, &mut self.cache);
            }
        }
    }

    /// Opens the sockets that are missing, and asks for a replay if one is due.
    pub(super) fn tick(&mut self, config: &EventsConfig, now: Millis) {
        if self.subscriber.is_none() && now >= self.reopen_at {
            self.subscribe(config, now);
        }
        let from = self.sequence.tick(now, &mut self.cache);
        if !self.sequence.asked() {
            self.asked = None;
        }
        if let (Some(from), Some(replay)) = (from, &self.source.replay) {
            self.touched = true;
            // The old one first: the two would take the room of one more rank.
            self.asked = None;
            self.asked = match socket::ask(&self.context, config, replay, from) {
                Ok(socket) => Some(socket),
                Err(cause) => {
                    self.tell("cannot ask for a replay", cause);
                    None
                }
            };
        }
    }

    /// When [`Feed::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Millis> {
        let reopen = self.source.endpoint.as_ref().filter(|_| self.subscriber.is_none());
        let reopen = reopen.map(|_| self.reopen_at);
        [self.sequence.due(), reopen].into_iter().flatten().min()
    }

    pub(super) fn write(&self, stats: &mut RankEvents) {
        let tally = self.cache.tally;
        stats.connected = self.connected;
        stats.replaying = self.asked.is_some();
        stats.last_seq = self.sequence.last();
        stats.lag_ms = self.lag_ms;
        stats.held = self.sequence.held();
        stats.order = self.sequence.counts();
        stats.batches = tally.batches;
        stats.decode_errors = tally.decode_errors;
        stats.skipped = tally.skipped;
        stats.applied = tally.applied;
        stats.block_size = self.cache.layout.block_size();
        stats.encoding = tally.encoding;
    }

    pub(super) fn last_came(&self) -> Option<Instant> {
        self.last_came
    }

    fn replayed(&mut self, message: &Message, now: Millis) {
        self.sequence.replayed(message, now, &mut self.cache);
    }

    fn subscribe(&mut self, config: &EventsConfig, now: Millis) {
        let Some(endpoint) = &self.source.endpoint else { return };
        match Subscriber::connect(&self.context, config, endpoint, &self.source.topic) {
            Ok(subscriber) => self.subscriber = Some(subscriber),
            Err(cause) => {
                self.reopen_at = now + REOPEN_MS;
                self.tell("cannot subscribe", cause);
            }
        }
    }

    fn tell(&self, what: &str, cause: zmq::Error) {
        let (engine, rank) = (&self.source.engine, self.source.rank_index);
        tracing::warn!(engine, rank, %cause, "KV events: {what}");
    }
}

/// What one rank has handed in.
#[derive(Default)]
pub(super) struct Turn {
    messages: usize,
    bytes: usize,
}

// === impl Turn ===

impl Turn {
    /// The next message that is there, while the turn lasts.
    pub(super) fn next(&mut self, socket: &Socket) -> Option<Vec<Vec<u8>>> {
        if self.messages >= TURN_MESSAGES || self.bytes >= TURN_BYTES {
            return None;
        }
        let frames = socket.recv_multipart(zmq::DONTWAIT).ok()?;
        self.messages += 1;
        self.bytes += frames.iter().map(Vec::len).sum::<usize>();
        Some(frames)
    }
}

/// Time since `ts`, in seconds of the engine's clock; 0 where that is ahead.
fn lag_ms(ts: f64) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    let lag = std::time::Duration::try_from_secs_f64((now - ts).max(0.0)).ok()?;
    u64::try_from(lag.as_millis()).ok()
}
