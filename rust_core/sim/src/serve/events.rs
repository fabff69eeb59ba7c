//! What a rank publishes: the events of its KV cache, over ZMQ.
//!
//! The sockets are those of libzmq, as in vLLM: what a subscriber sees when it comes late, reads slowly or dies is what it
//! would see there. A PUB socket never waits, so a batch is sent where it arises.

mod encode;
mod endpoint;
mod replay;
mod salt;

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fastrand::Rng;
use serde::Serialize;

pub(crate) use self::replay::Replay;

use self::encode::Encoder;
use self::endpoint::Endpoint;
use self::salt::Salts;
use crate::config::{EventsConfig, Publisher};
use crate::fault::{self, Effect, Fault, Mishap};
use crate::hash::BlockHash;
use crate::{CacheEvent, Error, SimConfig};

/// Publishes the events of one rank, and keeps the latest batches for who asks again.
pub(crate) struct Feed {
    config: EventsConfig,
    endpoint: Endpoint,
    replay_endpoint: Option<Endpoint>,
    encoder: Encoder,
    salts: Salts,
    /// None while the rank is down.
    socket: Option<zmq::Socket>,
    next: u64,
    buffer: VecDeque<Batch>,
    fault: Option<Fault>,
    /// What goes out after the next batch.
    late: Option<Batch>,
    rng: Rng,
}

/// One message: what happened in one step.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    seq: u64,
    payload: Bytes,
}

/// Where the events of a rank are found, in the shape of vLLM's `GET /kv_event_sources`.
#[derive(Debug, Serialize)]
pub(crate) struct Source<'a> {
    enable_kv_cache_events: bool,
    publisher: Publisher,
    endpoint: String,
    replay_endpoint: Option<String>,
    buffer_steps: u32,
    hwm: u32,
    max_queue_size: u32,
    topic: &'a str,
}

// === impl Feed ===

impl Feed {
    /// A feed whose sockets are not open.
    ///
    /// # Errors
    /// [`Error::Events`] if an address has none for this rank.
    pub(crate) fn new(config: &SimConfig, rank: u32) -> Result<Feed, Error> {
        let events = &config.kv_events;
        let replay = events.replay_endpoint.as_deref();
        Ok(Feed {
            endpoint: Endpoint::of_rank(&events.endpoint, rank)?,
            replay_endpoint: replay.map(|at| Endpoint::of_rank(at, rank)).transpose()?,
            encoder: Encoder {
                encoding: events.encoding,
                hashes: events.hashes,
                block_size: config.engine.block_size,
                rank,
            },
            salts: Salts::new(config.engine.kv_blocks as usize),
            socket: None,
            next: 0,
            buffer: VecDeque::new(),
            fault: None,
            late: None,
            rng: Rng::with_seed(config.seed ^ u64::from(rank)),
            config: events.clone(),
        })
    }

    /// Opens the sockets, the first time and after [`Feed::close`]; gives the one for replay, if there is one.
    ///
    /// # Errors
    /// [`Error::Events`] if an address cannot be had.
    pub(crate) fn open(&mut self, context: &zmq::Context) -> Result<Option<Replay>, Error> {
        let hwm = i32::try_from(self.config.hwm).unwrap_or(i32::MAX);
        let (socket, endpoint) = self.endpoint.clone().open(context, zmq::PUB, hwm)?;
        self.endpoint = endpoint;
        self.socket = Some(socket);
        let Some(endpoint) = self.replay_endpoint.clone() else {
            return Ok(None);
        };
        // All of the buffer and its end may be on its way to one client.
        let hwm = i32::try_from(self.config.buffer_steps).unwrap_or(i32::MAX).saturating_add(1);
        let (socket, endpoint) = endpoint.open(context, zmq::ROUTER, hwm)?;
        self.replay_endpoint = Some(endpoint);
        Ok(Some(Replay::new(socket, self.config.topic.clone())))
    }

    /// Forgets everything, as a process does that ends: no clear is told, and sequence numbers start over.
    pub(crate) fn close(&mut self) {
        self.socket = None;
        self.next = 0;
        self.buffer.clear();
        self.late = None;
    }

    /// Replaces the fault that batches meet.
    pub(crate) fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault.filter(|fault| fault.count != Some(0));
    }

    /// Notes the salt that went into a prompt's first block.
    pub(crate) fn note_salt(&mut self, first_block: BlockHash, salt: &str) {
        self.salts.note(first_block, salt);
    }

    /// Sends what happened in one step.
    pub(crate) fn publish(&mut self, events: &[CacheEvent]) {
        let ts = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let payload = self.encoder.batch(ts, events, &self.salts);
        let batch = Batch { seq: self.next, payload };
        self.next += 1;
        if self.buffer.len() >= self.config.buffer_steps as usize {
            self.buffer.pop_front();
        }
        self.buffer.push_back(batch.clone());
        match self.mishap() {
            Some(Mishap::Drop) => {}
            Some(Mishap::Reorder) if self.late.is_none() => {
                self.late = Some(batch);
                return;
            }
            Some(Mishap::Duplicate) => {
                self.send(&batch);
                self.send(&batch);
            }
            Some(Mishap::Reorder) | None => self.send(&batch),
        }
        if let Some(late) = self.late.take() {
            self.send(&late);
        }
    }

    /// The batches of the buffer from a sequence number on.
    pub(crate) fn since(&self, start: u64) -> Vec<Batch> {
        let from = self.buffer.partition_point(|batch| batch.seq < start);
        self.buffer.range(from..).cloned().collect()
    }

    /// Where others find this rank's events; `host` is how they reach this machine.
    pub(crate) fn source(&self, host: &str) -> Source<'_> {
        Source {
            endpoint: self.endpoint.reachable(host),
            replay_endpoint: self.replay_endpoint.as_ref().map(|at| at.reachable(host)),
            ..Source::of(&self.config)
        }
    }

    fn send(&self, batch: &Batch) {
        if let Some(socket) = &self.socket {
            let topic = self.config.topic.as_bytes();
            // A PUB socket drops what a subscriber has no room for; nothing else goes wrong while it is open.
            let _ = socket
                .send_multipart([topic, &batch.seq.to_be_bytes(), &batch.payload], zmq::DONTWAIT);
        }
    }

    /// What happens to this batch.
    fn mishap(&mut self) -> Option<Mishap> {
        let Effect::Events { mishap, share } = self.fault?.effect else {
            return None;
        };
        if self.rng.f64() >= share {
            return None;
        }
        fault::take(&mut self.fault).map(|_| mishap)
    }
}

// === impl Source ===

impl Source<'_> {
    /// As it is configured; nothing may be there.
    pub(crate) fn of(config: &EventsConfig) -> Source<'_> {
        Source {
            enable_kv_cache_events: config.enable_kv_cache_events,
            publisher: config.publisher,
            endpoint: config.endpoint.clone(),
            replay_endpoint: config.replay_endpoint.clone(),
            buffer_steps: config.buffer_steps,
            hwm: config.hwm,
            max_queue_size: config.max_queue_size,
            topic: &config.topic,
        }
    }

    pub(crate) fn json(&self) -> String {
        // Text, numbers and switches cannot fail to be JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// A socket at this address, which then names the port that the system chose. A PUB socket may be the side that
    /// connects.
    fn open(
        self,
        context: &zmq::Context,
        kind: zmq::SocketType,
        hwm: i32,
    ) -> Result<(zmq::Socket, Endpoint), Error> {
        let opened = || -> zmq::Result<(zmq::Socket, String)> {
            let socket = context.socket(kind)?;
            socket.set_linger(0)?;
            socket.set_sndhwm(hwm)?;
            socket.set_ipv6(self.needs_ipv6())?;
            if kind == zmq::PUB && !self.binds() {
                socket.connect(self.as_str())?;
            } else {
                socket.bind(self.as_str())?;
            }
            let bound = socket.get_last_endpoint()?.unwrap_or_default();
            Ok((socket, bound))
        };
        match opened() {
            Ok((socket, bound)) => Ok((socket, self.with_port_of(&bound))),
            Err(cause) => {
                let endpoint = self.as_str().to_owned();
                Err(Error::Events { endpoint, cause: cause.to_string() })
            }
        }
    }
}
