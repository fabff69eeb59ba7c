//! What subscribers see of an engine's KV cache.

mod common;

use std::time::Duration;

use common::feed::{Batch, Socket, events, fill, source};
use common::{config, engine, get, post, start, until};
use nebula_sim::config::{Encoding, EventsConfig, Hashes};
use nebula_sim::{EngineConfig, Server, SimConfig};
use rmpv::Value;
use serde_json::json;

fn publishing(kv_events: EventsConfig) -> SimConfig {
    SimConfig { kv_events, ..config() }
}

/// Sequence numbers of what a socket gets, until it got `last`.
async fn seqs(socket: &Socket, last: u64) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.last() != Some(&last) {
        seqs.push(socket.batch().await.seq);
    }
    seqs
}

fn hashes(event: &Value) -> Vec<u64> {
    let hashes = event["block_hashes"].as_array().expect("a list");
    hashes.iter().map(|hash| hash.as_u64().expect("a number")).collect()
}

#[tokio::test]
async fn each_step_that_stores_is_one_batch() {
    let server = start(publishing(events())).await;
    let (addr, context) = (server.addr(), zmq::Context::new());
    let prompt: Vec<u32> = (0..201).collect();
    let ask = async |max_tokens: u32, salt: &str, prompt: &[u32]| {
        let body = json!({"prompt": prompt, "max_tokens": max_tokens, "cache_salt": salt, "return_token_ids": true});
        post(addr, "/v1/completions", &body.to_string()).await.json()
    };
    let first = ask(40, "", &prompt).await;
    // All of it is cached: nothing is told.
    ask(8, "", &prompt).await;
    ask(2, "s1", &prompt[..163]).await;
    assert_eq!(post(addr, "/reset_prefix_cache", "").await.text(), r#"{"success":true}"#);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(Socket::replay(&context, addr, 3).await, [], "a clear waits for the next step");
    ask(1, "", &prompt[..64]).await;

    let batches = Socket::replay(&context, addr, 0).await;
    assert_eq!(batches.iter().map(|batch| batch.seq).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(batches.iter().all(|batch| batch.topic == "kv" && batch.rank == 0 && batch.ts > 1e9));
    let stored = &batches[0].events[0];
    assert_eq!((hashes(stored).len(), stored["parent_block_hash"].clone()), (6, Value::Nil));
    let tokens: Vec<u64> = prompt[..192].iter().map(|&id| id.into()).collect();
    let told = |event: &Value| -> Vec<u64> {
        event["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    assert_eq!(told(stored), tokens);
    assert_eq!(stored["extra_keys"], Value::Array(vec![Value::Nil; 6]));
    assert_eq!((stored["block_size"].as_u64(), stored["medium"].as_str()), (Some(32), Some("GPU")));

    // The next block is filled by the reply, and follows the last one of the prompt.
    let filled = &batches[1].events[0];
    assert_eq!(filled["parent_block_hash"].as_u64(), hashes(stored).last().copied());
    let reply: Vec<u64> = first["choices"][0]["token_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap())
        .collect();
    assert_eq!(
        told(filled),
        [&tokens[..0], &(192..201).collect::<Vec<u64>>(), &reply[..23]].concat()
    );

    let salted = &batches[2].events[0];
    assert_eq!(salted["extra_keys"][0], Value::Array(vec!["s1".into()]));
    assert_eq!(salted["extra_keys"][1], Value::Nil);
    assert_ne!(hashes(salted)[0], hashes(stored)[0]);
    assert_eq!(batches[3].kinds(), ["AllBlocksCleared", "BlockStored"]);
    assert_eq!(hashes(&batches[3].events[1]), hashes(stored)[..2]);
    server.stop().await;
}

#[tokio::test]
async fn an_eviction_is_told_before_what_takes_its_place() {
    let engine = EngineConfig { kv_blocks: 1 + 128, ..engine(32, 1000.0) };
    let server = start(SimConfig { engine, ..publishing(events()) }).await;
    for name in 0..3 {
        fill(server.addr(), name, 50).await;
    }
    let batches = Socket::replay(&zmq::Context::new(), server.addr(), 0).await;
    let events: Vec<&Value> = batches.iter().flat_map(|batch| &batch.events).collect();
    let stored: Vec<u64> = events
        .iter()
        .filter(|event| event["type"] == "BlockStored".into())
        .flat_map(|event| hashes(event))
        .collect();
    let removed: Vec<u64> = events
        .iter()
        .filter(|event| event["type"] == "BlockRemoved".into())
        .flat_map(|event| hashes(event))
        .collect();
    // The oldest prompt loses its tail first.
    let lost: Vec<u64> = stored[..50].iter().rev().take(removed.len()).copied().collect();
    assert_eq!((removed.len(), stored.len()), (50 - 28, 150));
    assert_eq!(removed, lost);
    let mixed =
        batches.iter().find(|batch| batch.kinds().contains(&"BlockRemoved")).expect("an eviction");
    assert_eq!(mixed.kinds().last(), Some(&"BlockStored"));
    server.stop().await;
}

#[tokio::test]
async fn both_encodings_and_both_kinds_of_hashes() {
    let context = zmq::Context::new();
    let arrays = EventsConfig { encoding: Encoding::Array, ..events() };
    let bytes = EventsConfig { hashes: Hashes::Bytes, ..events() };
    let mut first = Vec::new();
    for kv_events in [events(), arrays, bytes] {
        let server = start(publishing(kv_events)).await;
        fill(server.addr(), 0, 2).await;
        first.push(Socket::replay(&context, server.addr(), 0).await[0].events[0].clone());
        server.stop().await;
    }
    let number = hashes(&first[0])[0];
    let array = first[1].as_array().expect("a list");
    assert_eq!(
        (array.len(), array[0].as_str(), array[1][0].as_u64()),
        (10, Some("BlockStored"), Some(number))
    );
    let digest = first[2]["block_hashes"][0].as_slice().expect("bytes");
    assert_eq!((digest.len(), &digest[24..]), (32, &number.to_be_bytes()[..]));
}

#[tokio::test]
async fn the_buffer_is_bounded_and_only_well_formed_requests_are_answered() {
    let server = start(publishing(EventsConfig { buffer_steps: 5, ..events() })).await;
    let (addr, context) = (server.addr(), zmq::Context::new());
    for name in 0..12 {
        fill(addr, name, 1).await;
    }
    let from = async |start| {
        let batches = Socket::replay(&context, addr, start).await;
        batches.iter().map(|batch| batch.seq).collect::<Vec<_>>()
    };
    assert_eq!(from(0).await, [7, 8, 9, 10, 11]);
    assert_eq!(from(10).await, [10, 11]);
    assert_eq!(from(u64::MAX).await, [0; 0]);

    let hasty = Socket::new(&context, zmq::DEALER);
    hasty.0.connect(&source(addr, 0, "replay_endpoint").await).expect("an address");
    hasty.0.send(&7_u64.to_be_bytes()[..], 0).expect("a request");
    assert!(hasty.recv_within(Duration::from_millis(300)).await.is_none());
    hasty.0.send_multipart([&b""[..], &11_u64.to_be_bytes()], 0).expect("a request");
    assert_eq!(Batch::of(hasty.recv().await[1..].to_vec()).seq, 11);
    server.stop().await;
}

#[tokio::test]
async fn subscribers_come_late_stall_and_die_and_the_others_miss_nothing() {
    // Batches of 19 kB, of which the buffers of a socket hold some hundreds of kilobytes or megabytes.
    let engine = EngineConfig { max_num_batched_tokens: 4096, ..engine(32, 1000.0) };
    let kv_events = EventsConfig { hwm: 100, ..events() };
    let server = start(SimConfig { engine, ..publishing(kv_events) }).await;
    let (addr, context) = (server.addr(), zmq::Context::new());
    let mut readers = Vec::new();
    for _ in 0..8 {
        readers.push(Socket::subscribe(&context, addr).await.0);
    }
    let (dying, _) = Socket::subscribe(&zmq::Context::new(), addr).await;
    let stalled = Socket::new(&context, zmq::SUB);
    stalled.0.set_rcvhwm(1).expect("an option");
    stalled.0.set_rcvbuf(4096).expect("an option");
    stalled.0.connect(&source(addr, 0, "endpoint").await).expect("an address");
    stalled.first(addr).await;
    drop(dying);

    let (late, newest) = Socket::subscribe(&context, addr).await;
    for reader in &readers {
        while reader.try_recv().is_some() {}
    }
    let rounds = 450;
    let mut watching = Vec::new();
    readers.push(late);
    for reader in readers {
        reader.0.set_rcvtimeo(10_000).expect("an option");
        watching.push(tokio::task::spawn_blocking(move || {
            let mut last = None;
            while last < Some(newest.seq + rounds) {
                let seq = Batch::of(reader.0.recv_multipart(0).expect("a batch")).seq;
                assert!(last.is_none_or(|last| seq == last + 1), "{seq} after {last:?}");
                last = Some(seq);
            }
        }));
    }
    for name in 0..u32::try_from(rounds).unwrap() + 20 {
        fill(addr, name, 120).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for reader in watching {
        reader.await.expect("a reader that missed nothing");
    }
    let mut kept = Vec::new();
    while let Some(frames) = stalled.recv_within(Duration::from_millis(200)).await {
        kept.push(Batch::of(frames).seq);
    }
    // What is beyond the high-water mark and the buffers of the system is lost to it.
    let wmem = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").expect("Linux");
    let buffered: usize = wmem.split_whitespace().last().expect("a bound").parse().expect("bytes");
    let most = 100 + buffered / 19_000 + 40;
    assert!(kept.len() <= most, "of 470 batches one that does not read gets {}", kept.len());
    assert!(kept.is_sorted());
    server.stop().await;
}

#[tokio::test]
async fn an_engine_connects_to_a_subscriber_that_is_bound_and_finds_it_again() {
    let context = zmq::Context::new();
    let bound = Socket::new(&context, zmq::SUB);
    bound.0.bind("tcp://127.0.0.1:*").expect("a port");
    let endpoint = bound.0.get_last_endpoint().expect("an option").expect("text");
    let kv_events = EventsConfig { endpoint: endpoint.clone(), replay_endpoint: None, ..events() };
    let server = start(publishing(kv_events)).await;
    assert_eq!(source(server.addr(), 0, "endpoint").await, endpoint);
    let before = bound.first(server.addr()).await;
    drop(bound);
    let again = Socket::new(&context, zmq::SUB);
    until(async || again.0.bind(&endpoint).is_ok()).await;
    assert!(again.first(server.addr()).await.seq > before.seq);
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_published_on_is_refused() {
    let taken = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let cases = [
        (format!("tcp://*:{port}"), 1),
        ("tcp://*".to_owned(), 1),
        ("http://*:1".to_owned(), 1),
        ("5557".to_owned(), 1),
        ("tcp://*:65535".to_owned(), 2),
        ("ipc:///tmp/nebula-events".to_owned(), 2),
    ];
    for (endpoint, data_parallel_size) in cases {
        let kv_events = EventsConfig { endpoint: endpoint.clone(), ..events() };
        let config = SimConfig { data_parallel_size, ..publishing(kv_events) };
        let error = Server::start(config).await.err().expect(&endpoint).to_string();
        assert!(error.starts_with("sim: cannot publish KV events on "), "{error}");
        assert!(error.len() > 40, "{error}");
    }
}

#[tokio::test]
async fn a_silent_engine_says_so() {
    let server = start(config()).await;
    let sources = get(server.addr(), "/kv_event_sources").await;
    assert_eq!(
        sources.text(),
        r#"{"0":{"enable_kv_cache_events":false,"publisher":"null","endpoint":"tcp://*:5557","replay_endpoint":null,"buffer_steps":10000,"hwm":100000,"max_queue_size":100000,"topic":""}}"#
    );
    server.stop().await;
}

#[tokio::test]
async fn events_are_dropped_doubled_and_put_out_of_order_and_replay_mends_it() {
    let server = start(publishing(events())).await;
    let (addr, context) = (server.addr(), zmq::Context::new());
    let (socket, newest) = Socket::subscribe(&context, addr).await;
    let base = newest.seq + 1;
    let mut sent = 0;
    let mut steps = async |fault: &str, steps: u64| {
        assert_eq!(post(addr, "/sim/fault", fault).await.status, 200, "{fault}");
        for _ in 0..steps {
            fill(addr, 100 + u32::try_from(sent).unwrap(), 1).await;
            sent += 1;
        }
        let seqs = seqs(&socket, base + sent - 1).await;
        seqs.iter().map(|seq| seq + steps - base - sent).collect::<Vec<_>>()
    };
    assert_eq!(steps(r#"{"kind":"drop_events","count":2}"#, 4).await, [2, 3]);
    assert_eq!(steps(r#"{"kind":"duplicate_events","count":1}"#, 3).await, [0, 0, 1, 2]);
    assert_eq!(steps(r#"{"kind":"reorder_events","count":1}"#, 3).await, [1, 0, 2]);
    assert_eq!(steps(r#"{"kind":"drop_events","share":0}"#, 3).await, [0, 1, 2]);
    assert_eq!(steps(r#"{"kind":"none"}"#, 2).await, [0, 1]);
    let some = {
        assert_eq!(
            post(addr, "/sim/fault", r#"{"kind":"drop_events","share":0.5}"#).await.status,
            200
        );
        for name in 0..200 {
            fill(addr, 1000 + name, 1).await;
        }
        assert_eq!(post(addr, "/sim/fault", r#"{"kind":"none"}"#).await.status, 200);
        fill(addr, 2000, 1).await;
        seqs(&socket, base + sent + 200).await.len()
    };
    assert!((60..140).contains(&some), "{some} of 200");

    let whole = Socket::replay(&context, addr, base).await;
    let whole: Vec<u64> = whole.iter().map(|batch| batch.seq).collect();
    assert_eq!(whole, (base..=base + sent + 200).collect::<Vec<_>>());
    server.stop().await;
}
