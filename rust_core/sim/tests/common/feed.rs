//! Subscribers and askers, on libzmq's own sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nebula_sim::config::{EventsConfig, Publisher};
use rmpv::Value;
use tokio::time::{sleep, timeout};

use super::{Reply, get, post};

/// Of prompts that no test chose.
static NAMES: AtomicU32 = AtomicU32::new(100_000);

/// One batch as a subscriber got it.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub topic: String,
    pub seq: u64,
    pub ts: f64,
    pub events: Vec<Value>,
    pub rank: u64,
}

/// A socket that is asked now and then, so that the runtime of the test goes on meanwhile.
pub struct Socket(pub zmq::Socket);

/// An engine that publishes on ports that the system chooses.
pub fn events() -> EventsConfig {
    EventsConfig {
        enable_kv_cache_events: true,
        publisher: Publisher::Zmq,
        endpoint: "tcp://*:0".to_owned(),
        replay_endpoint: Some("tcp://*:0".to_owned()),
        topic: "kv".to_owned(),
        ..EventsConfig::off()
    }
}

/// Where the events of a rank are, as the engine says.
pub async fn source(addr: SocketAddr, rank: usize, what: &str) -> String {
    let sources = get(addr, "/kv_event_sources").await.json();
    sources[rank.to_string()][what].as_str().expect("an address").to_owned()
}

/// A request with a prompt of its own, which fills `blocks` blocks of 32 tokens.
pub async fn fill(addr: SocketAddr, name: u32, blocks: u32) -> Reply {
    let prompt: Vec<u32> = (0..32 * blocks).map(|at| 10_000 * name + at).collect();
    let body = serde_json::json!({"prompt": prompt, "max_tokens": 1}).to_string();
    let reply = post(addr, "/v1/completions", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

// === impl Socket ===

impl Socket {
    pub fn new(context: &zmq::Context, kind: zmq::SocketType) -> Socket {
        let socket = context.socket(kind).expect("a socket");
        socket.set_linger(0).expect("an option");
        if kind == zmq::SUB {
            socket.set_subscribe(b"").expect("an option");
        }
        Socket(socket)
    }

    /// A subscriber of a rank's events, and the first batch that it got. It asks the engine for work until it gets one.
    pub async fn subscribe(context: &zmq::Context, addr: SocketAddr) -> (Socket, Batch) {
        let socket = Socket::new(context, zmq::SUB);
        socket.0.connect(&source(addr, 0, "endpoint").await).expect("an address");
        let first = socket.first(addr).await;
        (socket, first)
    }

    /// The latest batch once one came, for which the engine is given work until it does.
    pub async fn first(&self, addr: SocketAddr) -> Batch {
        for _ in 0..500 {
            fill(addr, NAMES.fetch_add(1, Ordering::Relaxed), 1).await;
            sleep(Duration::from_millis(10)).await;
            if let Some(frames) = self.try_recv() {
                return self.newest(Batch::of(frames));
            }
        }
        panic!("no batch came");
    }

    /// The last one of those that are here; `batch` if there is none.
    fn newest(&self, batch: Batch) -> Batch {
        std::iter::from_fn(|| self.try_recv()).last().map_or(batch, Batch::of)
    }

    pub fn try_recv(&self) -> Option<Vec<Vec<u8>>> {
        self.0.recv_multipart(zmq::DONTWAIT).ok()
    }

    pub async fn recv(&self) -> Vec<Vec<u8>> {
        self.recv_within(Duration::from_secs(10)).await.expect("a message within ten seconds")
    }

    pub async fn recv_within(&self, patience: Duration) -> Option<Vec<Vec<u8>>> {
        let received = async {
            loop {
                match self.try_recv() {
                    Some(frames) => return frames,
                    None => sleep(Duration::from_millis(1)).await,
                }
            }
        };
        timeout(patience, received).await.ok()
    }

    pub async fn batch(&self) -> Batch {
        Batch::of(self.recv().await)
    }

    /// The batches that a rank still has, from `start` on.
    pub async fn replay(context: &zmq::Context, addr: SocketAddr, start: u64) -> Vec<Batch> {
        let socket = Socket::new(context, zmq::DEALER);
        socket.0.connect(&source(addr, 0, "replay_endpoint").await).expect("an address");
        socket.0.send_multipart([&b""[..], &start.to_be_bytes()], 0).expect("a request");
        let mut batches = Vec::new();
        loop {
            let mut frames = socket.recv().await;
            assert_eq!(frames.remove(0), b"", "the delimiter comes back");
            if frames[1] == [0xFF; 8] {
                assert_eq!((&frames[0][..], &frames[2][..]), (&b""[..], &b""[..]));
                return batches;
            }
            batches.push(Batch::of(frames));
        }
    }
}

// === impl Batch ===

impl Batch {
    pub fn of(frames: Vec<Vec<u8>>) -> Batch {
        let [topic, seq, payload] = <[Vec<u8>; 3]>::try_from(frames).expect("three frames");
        let mut rest = &payload[..];
        let batch = rmpv::decode::read_value(&mut rest).expect("msgpack");
        assert!(rest.is_empty());
        let batch = batch.as_array().expect("a list");
        Batch {
            topic: String::from_utf8(topic).expect("text"),
            seq: u64::from_be_bytes(seq.try_into().expect("eight bytes")),
            ts: batch[0].as_f64().expect("a time"),
            events: batch[1].as_array().expect("a list").clone(),
            rank: batch[2].as_u64().expect("a rank"),
        }
    }

    /// The names of its events.
    pub fn kinds(&self) -> Vec<&str> {
        self.events.iter().map(|event| event["type"].as_str().expect("a name")).collect()
    }
}
