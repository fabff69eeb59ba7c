//! Over libzmq's own sockets: engines that publish, replay, go and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nebula_route::RankId;

use super::sequence::Message;
use super::*;
use engine::{DEPTH, Engine, Index, PROMPTS};

pub(super) mod engine;

/// An engine with its sockets.
struct Publisher {
    engine: Engine,
    topic: &'static str,
    batches: zmq::Socket,
    replay: zmq::Socket,
}

/// Long enough for any machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> EventsConfig {
    EventsConfig {
        bind: None,
        replay_timeout_ms: 2_000,
        replay_tries: 3,
        replay_backoff_ms: 20,
        silence_ms: 200,
        held_batches: 64,
        held_bytes: 1 << 20,
        receive_batches: 1_000,
        reconnect_ms: 10,
        reconnect_max_ms: 100,
    }
}

fn start(config: EventsConfig) -> (KvEvents, Arc<Index>) {
    let index = Arc::new(Index::new());
    let events = KvEvents::start(config, Arc::clone(&index) as Arc<dyn Sink>).unwrap();
    (events, index)
}

/// Lets the engines answer until `done`.
fn wait(publishers: &[&Publisher], done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "it never came to it");
        for publisher in publishers {
            publisher.answer();
        }
        std::thread::yield_now();
    }
}

fn at(socket: &zmq::Socket) -> String {
    socket.get_last_endpoint().unwrap().unwrap()
}

// === impl Publisher ===

impl Publisher {
    /// On ports that the system chooses.
    fn new(context: &zmq::Context, remembers: usize) -> Publisher {
        let somewhere = |kind| open(context, kind, "tcp://127.0.0.1:*").unwrap();
        let (batches, replay) = (somewhere(zmq::PUB), somewhere(zmq::ROUTER));
        Publisher { engine: Engine::new(remembers), topic: "kv", batches, replay }
    }

    fn source(&self, rank: u32) -> Source {
        Source {
            rank: RankId(rank),
            rank_index: 0,
            engine: format!("engine-{rank}"),
            endpoint: Some(at(&self.batches)),
            replay: Some(at(&self.replay)),
            topic: String::new(),
        }
    }

    fn send(&self, message: Option<Message>) {
        if let Some(message) = message {
            let frames = [self.topic.as_bytes(), &message.seq.to_be_bytes(), &message.payload];
            self.batches.send_multipart(frames, zmq::DONTWAIT).unwrap();
        }
    }

    fn fill(&mut self) {
        for prompt in 0..PROMPTS {
            let message = self.engine.store(prompt, DEPTH);
            self.send(message);
        }
    }

    fn answer(&self) {
        while let Ok(frames) = self.replay.recv_multipart(zmq::DONTWAIT) {
            let [client, delimiter, from] = &frames[..] else { panic!("three frames") };
            assert!(delimiter.is_empty());
            let from = u64::from_be_bytes(from.as_slice().try_into().unwrap());
            for message in self.engine.replay(from) {
                let seq = message.seq.to_be_bytes();
                let frames = [&client[..], b"", self.topic.as_bytes(), &seq, &message.payload];
                self.replay.send_multipart(frames, 0).unwrap();
            }
            let end = [&client[..], b"", b"", &[0xFF; 8], b""];
            self.replay.send_multipart(end, 0).unwrap();
        }
    }

    /// The sockets go; what `meanwhile` does nobody hears; the sockets come back where they were.
    fn come_back(
        mut self,
        context: &zmq::Context,
        meanwhile: impl FnOnce(&mut Engine),
    ) -> Publisher {
        let (batches, replay) = (at(&self.batches), at(&self.replay));
        drop((self.batches, self.replay));
        meanwhile(&mut self.engine);
        let reopen = |kind, at: &str| {
            let start = Instant::now();
            loop {
                match open(context, kind, at) {
                    Ok(socket) => return socket,
                    // libzmq closes sockets behind the caller's back.
                    Err(_) => assert!(start.elapsed() < PATIENCE, "the port stays taken"),
                }
                std::thread::yield_now();
            }
        };
        Publisher {
            batches: reopen(zmq::PUB, &batches),
            replay: reopen(zmq::ROUTER, &replay),
            ..self
        }
    }
}

fn open(context: &zmq::Context, kind: zmq::SocketType, at: &str) -> zmq::Result<zmq::Socket> {
    let socket = context.socket(kind)?;
    socket.set_linger(0)?;
    socket.set_sndhwm(100_000)?;
    socket.bind(at)?;
    Ok(socket)
}

/// The figures of the one rank that is followed, as soon as the thread has heard of it.
fn only(events: &KvEvents) -> RankEvents {
    let start = Instant::now();
    loop {
        if let [stats] = &events.stats()[..] {
            return stats.clone();
        }
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

#[test]
fn a_late_joiner_has_all_that_the_engine_remembers() {
    let context = zmq::Context::new();
    let mut publisher = Publisher::new(&context, 1_000);
    publisher.fill();
    let (events, index) = start(config());
    events.follow(vec![publisher.source(7)]);
    let rank = RankId(7);
    wait(&[&publisher], || index.agrees(rank, &publisher.engine) && only(&events).connected);
    for prompt in [5, 3] {
        let message = publisher.engine.evict(prompt);
        publisher.send(message);
    }
    wait(&[&publisher], || index.agrees(rank, &publisher.engine));
    wait(&[&publisher], || only(&events).last_seq == Some(7));
    let stats = only(&events);
    assert_eq!((stats.block_size, stats.encoding), (Some(2), Some(Encoding::Map)));
    assert_eq!((stats.order.losses, stats.decode_errors, stats.skipped), (0, 0, 0));
    assert_eq!(stats.applied.removed, 2);
    assert!(stats.age_ms.is_some() && stats.lag_ms.is_some());
}

#[test]
fn batches_that_were_lost_come_by_replay_even_if_nothing_follows_them() {
    let context = zmq::Context::new();
    let mut publisher = Publisher::new(&context, 1_000);
    let (events, index) = start(config());
    events.follow(vec![publisher.source(0)]);
    wait(&[&publisher], || only(&events).connected && only(&events).order.replays > 0);
    publisher.fill();
    publisher.engine.evict(2).unwrap();
    publisher.engine.store(2, DEPTH).unwrap();
    publisher.engine.evict(4).unwrap();
    wait(&[&publisher], || index.agrees(RankId(0), &publisher.engine));
    wait(&[&publisher], || only(&events).last_seq == Some(8));
    assert!(index.cleared.lock().is_empty());
    assert_eq!(only(&events).order.generation, 0);
}

#[test]
fn a_connection_that_comes_back_to_the_same_process_loses_nothing() {
    let context = zmq::Context::new();
    let mut publisher = Publisher::new(&context, 1_000);
    let (events, index) = start(EventsConfig { silence_ms: 600_000, ..config() });
    events.follow(vec![publisher.source(0)]);
    publisher.fill();
    wait(&[&publisher], || index.agrees(RankId(0), &publisher.engine));
    let publisher = publisher.come_back(&context, |engine| {
        engine.evict(1).unwrap();
        engine.evict(0).unwrap();
    });
    wait(&[&publisher], || index.agrees(RankId(0), &publisher.engine));
    assert!(index.cleared.lock().is_empty());
    assert_eq!(only(&events).order.generation, 0);
}

#[test]
fn a_restart_clears_the_rank_and_begins_a_generation() {
    let context = zmq::Context::new();
    let mut publisher = Publisher::new(&context, 1_000);
    let (events, index) = start(EventsConfig { silence_ms: 600_000, ..config() });
    events.follow(vec![publisher.source(0)]);
    publisher.fill();
    wait(&[&publisher], || index.agrees(RankId(0), &publisher.engine));
    // It has nothing to say yet: that alone tells that it is another.
    let mut publisher = publisher.come_back(&context, Engine::restart);
    wait(&[&publisher], || index.agrees(RankId(0), &publisher.engine));
    publisher.fill();
    wait(&[&publisher], || index.agrees(RankId(0), &publisher.engine));
    wait(&[&publisher], || only(&events).order.generation == 1);
    assert_eq!(*index.cleared.lock(), [RankId(0)]);
}

#[test]
fn engines_that_dial_in_are_told_apart_by_topic_and_rank() {
    let context = zmq::Context::new();
    let bind = Some("tcp://127.0.0.1:*".to_owned());
    let (events, index) = start(EventsConfig { bind, ..config() });
    let dial = |topic, rank| {
        let socket = context.socket(zmq::PUB).unwrap();
        socket.set_linger(0).unwrap();
        socket.connect(events.bound().unwrap()).unwrap();
        let mut publisher = Publisher::new(&context, 1_000);
        publisher.engine.rank = rank;
        Publisher { topic, batches: socket, ..publisher }
    };
    let mut publishers = [dial("kv@a", 0), dial("kv@ab", 0), dial("kv@ab", 1), dial("kv@abc", 0)];
    let source = |rank: u32, rank_index, publisher: &Publisher| Source {
        rank_index,
        endpoint: None,
        replay: Some(at(&publisher.replay)),
        topic: publisher.topic.to_owned(),
        ..publisher.source(rank)
    };
    let [a, b0, b1, _] = &publishers;
    events.follow(vec![source(0, 0, a), source(1, 0, b0), source(2, 1, b1)]);
    for (prompt, publisher) in [0, 2, 4, 5].into_iter().zip(&mut publishers) {
        let message = publisher.engine.store(prompt, 3);
        publisher.send(message);
    }
    let [a, b0, b1, _] = &publishers;
    let followed = [a, b0, b1];
    wait(&followed, || {
        (0..3).zip(followed).all(|(rank, one)| index.agrees(RankId(rank), &one.engine))
    });
    // The longer topic begins like one that is followed, and is none all the same.
    let stranger = &mut publishers[3];
    let start = Instant::now();
    while events.strays() == 0 {
        assert!(start.elapsed() < PATIENCE);
        let message = stranger.engine.clear();
        stranger.send(Some(message));
        std::thread::yield_now();
    }
    assert!(index.cleared.lock().is_empty());
}

#[test]
fn who_is_not_followed_any_more_is_cleared_and_the_others_go_on() {
    let context = zmq::Context::new();
    let mut publishers = [0, 1].map(|_| Publisher::new(&context, 1_000));
    publishers.iter_mut().for_each(Publisher::fill);
    let [a, b] = &publishers;
    let (events, index) = start(config());
    events.follow(vec![a.source(0), b.source(1)]);
    let known =
        |index: &Index| index.agrees(RankId(0), &a.engine) && index.agrees(RankId(1), &b.engine);
    wait(&[a, b], || known(&index));
    events.follow(vec![b.source(1)]);
    wait(&[a, b], || index.depth(RankId(0), 0) == 0 && events.stats().len() == 1);
    assert!(index.agrees(RankId(1), &b.engine));
    index.tree.remove_rank(RankId(1));
    events.relearn(RankId(1));
    wait(&[a, b], || index.agrees(RankId(1), &b.engine));
    assert_eq!(*index.cleared.lock(), [RankId(0)]);
    events.stop();
    events.stop();
}

#[test]
fn an_address_that_cannot_be_had_is_an_error_or_told_of() {
    let bind = Some("tcp://127.0.0.1".to_owned());
    let index = Arc::new(Index::new());
    let error = KvEvents::start(EventsConfig { bind, ..config() }, index).err().unwrap();
    assert!(error.message.starts_with("cannot receive KV events: tcp://127.0.0.1: "));
    let context = zmq::Context::new();
    let mut publisher = Publisher::new(&context, 1_000);
    publisher.fill();
    let (events, index) = start(config());
    let nowhere = Source { endpoint: Some("nowhere".to_owned()), ..publisher.source(1) };
    events.follow(vec![nowhere, publisher.source(0)]);
    wait(&[&publisher], || index.agrees(RankId(0), &publisher.engine));
    assert!(!events.stats()[1].connected);
}

/// Bytes that this process holds in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    4_096 * pages.unwrap_or(0)
}

#[test]
fn a_flood_of_a_hundred_engines_arrives_whole_in_bounded_memory() {
    let context = zmq::Context::new();
    let mut publishers: Vec<Publisher> =
        (0..100).map(|_| Publisher::new(&context, 1_000)).collect();
    let (events, index) = start(EventsConfig { silence_ms: 1_000, ..config() });
    let sources = (0..).zip(&publishers).map(|(rank, publisher)| publisher.source(rank));
    events.follow(sources.collect());
    let before = resident();
    for round in 0..100 {
        for publisher in &mut publishers {
            let message = match round % 3 {
                2 => publisher.engine.evict(round % PROMPTS),
                _ => publisher.engine.store(round % PROMPTS, DEPTH),
            };
            let message = message.unwrap_or_else(|| publisher.engine.clear());
            publisher.send(Some(message));
            publisher.answer();
        }
        for stats in events.stats() {
            assert!(stats.held.0 <= 64 && stats.held.1 <= 1 << 20);
        }
    }
    let all: Vec<&Publisher> = publishers.iter().collect();
    wait(&all, || events.stats().iter().all(|stats| stats.last_seq == Some(99)));
    for (rank, publisher) in (0..).zip(&publishers) {
        assert!(index.agrees(RankId(rank), &publisher.engine), "rank {rank}");
    }
    let stats = events.stats();
    assert!(stats.iter().all(|stats| stats.batches == 100 && stats.order.losses == 0));
    assert!(resident().saturating_sub(before) < 256 << 20, "it grew too much");
}
