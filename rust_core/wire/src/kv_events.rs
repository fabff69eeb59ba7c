//! What engines say of their KV caches, over ZMQ, in order and whole, for the index.
//!
//! One thread owns all sockets and touches no request: a flood of events costs its own core's time and no request's.
//! libzmq's queues, the batches that wait for some before them, and what one rank may hand in per turn all have bounds.
//!
//! ```text
//! source     where the events of an engine's ranks are
//! socket     subscriptions, replays, monitors
//! worker     the thread
//! feed       one rank that is followed
//! sequence   the order of its batches: gaps, replays, doubles, restarts
//! cache      a batch on its way into the index
//! decode     bytes -> events; msgpack underneath
//! layout     which events the index can use
//! extras     what goes into a block's hash beside its tokens
//! stats      all of it in figures
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use nebula_route::tree::Applied;
use nebula_route::{Event, RankId};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::error::Error;

mod cache;
mod decode;
mod extras;
mod feed;
mod layout;
mod msgpack;
mod sequence;
mod socket;
mod source;
mod stats;
mod worker;

pub use decode::{Encoding, Medium};
pub use sequence::Counts;
pub use source::{EventsSetting, RankSource, sources_of};
pub use stats::RankEvents;

use sequence::Limits;
use worker::{Shared, Worker};

/// Where the events go. Called from one thread.
pub trait Sink: Send + Sync + 'static {
    /// What a rank says of its blocks, in order. Blocks that move between media come as [`Event::Stored`] without
    /// hashes of their own: the name says which they are.
    fn apply(&self, rank: RankId, medium: Medium, events: &[Event]) -> Applied;
    /// Nothing is known of the rank's blocks any more, in any medium.
    fn clear(&self, rank: RankId);
}

/// How events are received; field names are those of the settings reference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsConfig {
    /// Address that engines may dial in to.
    pub bind: Option<String>,
    /// Longest silence within the answer to a replay.
    pub replay_timeout_ms: u64,
    /// Replays in a row that bring nothing before the rank is cleared and goes on without.
    pub replay_tries: u32,
    /// Wait after the first of those; it doubles with each.
    pub replay_backoff_ms: u64,
    /// Silence after which a replay tells a quiet engine from a lost connection.
    pub silence_ms: u64,
    /// Batches of one rank that wait for a replay; those beyond are replayed too.
    pub held_batches: usize,
    /// Bytes of those.
    pub held_bytes: usize,
    /// Batches of one engine that libzmq keeps for the thread; those beyond wait at the engine.
    pub receive_batches: u32,
    /// Wait before a lost connection is tried again.
    pub reconnect_ms: u32,
    /// Longest such wait; it doubles with each try.
    pub reconnect_max_ms: u32,
}

/// One rank to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The rank in the index.
    pub rank: RankId,
    /// The rank within its engine.
    pub rank_index: u32,
    /// The engine's name.
    pub engine: String,
    /// The publisher's address; `None` if the engine dials in.
    pub endpoint: Option<String>,
    /// The replay socket's address.
    pub replay: Option<String>,
    /// What topics begin with; of an engine that dials in, the whole topic.
    pub topic: String,
}

/// The events of all engines that are followed.
pub struct KvEvents {
    shared: Arc<Shared>,
    wake: Mutex<zmq::Socket>,
    bound: Option<String>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

// === impl EventsConfig ===

impl EventsConfig {
    fn limits(&self) -> Limits {
        Limits {
            held_batches: self.held_batches,
            held_bytes: self.held_bytes,
            replay_timeout_ms: self.replay_timeout_ms,
            replay_tries: self.replay_tries,
            replay_backoff_ms: self.replay_backoff_ms,
            silence_ms: self.silence_ms,
        }
    }
}

// === impl RankEvents ===

impl RankEvents {
    fn of(source: &Source) -> RankEvents {
        RankEvents {
            rank: source.rank,
            rank_index: source.rank_index,
            engine: source.engine.clone(),
            connected: false,
            replaying: false,
            last_seq: None,
            lag_ms: None,
            age_ms: None,
            held: (0, 0),
            order: Counts::default(),
            batches: 0,
            decode_errors: 0,
            skipped: 0,
            applied: Applied::default(),
            block_size: None,
            encoding: None,
        }
    }
}

// === impl KvEvents ===

impl KvEvents {
    /// Starts the thread, which follows nobody yet.
    ///
    /// # Errors
    /// The address to dial in to is taken or none, or the system refuses a socket or a thread.
    pub fn start(config: EventsConfig, sink: Arc<dyn Sink>) -> Result<KvEvents, Error> {
        let refused = |cause: &dyn std::fmt::Display| {
            Error::internal(format!("cannot receive KV events: {cause}"))
        };
        let context = zmq::Context::new();
        let pair = || -> zmq::Result<(zmq::Socket, zmq::Socket)> {
            let (ours, theirs) = (context.socket(zmq::PAIR)?, context.socket(zmq::PAIR)?);
            // One word is enough: what it says is shared.
            ours.set_sndhwm(1)?;
            ours.bind("inproc://wake")?;
            theirs.connect("inproc://wake")?;
            Ok((ours, theirs))
        };
        let (wake, woken) = pair().map_err(|cause| refused(&cause))?;
        let bind = |at: &String| -> Result<(zmq::Socket, String), Error> {
            let socket = socket::bound(&context, &config, at)
                .map_err(|cause| refused(&format!("{at}: {cause}")))?;
            let at = socket.get_last_endpoint().ok().and_then(Result::ok).unwrap_or_default();
            Ok((socket, at))
        };
        let (socket, bound) = config.bind.as_ref().map(bind).transpose()?.unzip();
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(config, sink, Arc::clone(&shared), woken, socket);
        let thread = std::thread::Builder::new()
            .name("nebula-events".to_owned())
            .spawn(move || worker.run())
            .map_err(|cause| refused(&cause))?;
        Ok(KvEvents { shared, wake: Mutex::new(wake), bound, thread: Mutex::new(Some(thread)) })
    }

    /// Follows these ranks from now on and no others; those that are unchanged go on as they are. A rank that is not
    /// followed any more, or is elsewhere now, is cleared.
    pub fn follow(&self, sources: Vec<Source>) {
        *self.shared.wanted.lock() = Some(sources);
        self.wake();
    }

    /// Replays all that the engine still has of a rank, because the index has forgotten its blocks.
    pub fn relearn(&self, rank: RankId) {
        self.shared.relearn.lock().insert(rank);
        self.wake();
    }

    /// The figures of every rank that is followed, by rank.
    #[must_use]
    pub fn stats(&self) -> Vec<RankEvents> {
        let stats = self.shared.stats.lock();
        let with_age = |(stats, last_came): &(RankEvents, Option<std::time::Instant>)| {
            let age = last_came.map(|last| u64::try_from(last.elapsed().as_millis()));
            RankEvents { age_ms: age.and_then(Result::ok), ..stats.clone() }
        };
        stats.values().map(with_age).collect()
    }

    /// Messages of engines that dialled in and are not followed.
    #[must_use]
    pub fn strays(&self) -> u64 {
        self.shared.strays.load(Ordering::Relaxed)
    }

    /// The address to dial in to, with the port that the system chose if it did.
    #[must_use]
    pub fn bound(&self) -> Option<&str> {
        self.bound.as_deref()
    }

    /// Ends the thread and closes every socket. What was applied stays in the index.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.lock().take() {
            // A thread that panicked has nothing left to stop.
            let _ = thread.join();
        }
    }

    fn wake(&self) {
        // A word that waits already is as good.
        let _ = self.wake.lock().send("", zmq::DONTWAIT);
    }
}

impl Drop for KvEvents {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
