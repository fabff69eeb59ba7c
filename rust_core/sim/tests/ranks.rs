//! Data-parallel ranks behind one address, and an engine that restarts.

mod common;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::feed::{Batch, Socket, events, fill, source};
use common::{Reply, config, engine, get, open, post, send, start, until};
use nebula_sim::config::EventsConfig;
use nebula_sim::{EngineConfig, SimConfig};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const RANK: &str = "x-data-parallel-rank";

fn ranks(data_parallel_size: u32) -> SimConfig {
    SimConfig { data_parallel_size, kv_events: events(), ..config() }
}

/// Asks one rank; what it found cached.
async fn ask(addr: SocketAddr, rank: &str, prompt: &str) -> Reply {
    let body = json!({"prompt": prompt, "max_tokens": 2}).to_string();
    send(addr, "POST", "/v1/completions", &[(RANK, rank)], &body).await.expect("a reply")
}

fn cached(reply: &Reply) -> u64 {
    reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
}

/// The values of a series, one per rank.
async fn by_rank(addr: SocketAddr, name: &str, ranks: usize) -> Vec<f64> {
    let metrics = get(addr, "/metrics").await;
    (0..ranks)
        .map(|rank| {
            let series = format!("{name}{{engine=\"{rank}\"");
            let line = metrics.text().lines().find(|line| line.starts_with(&series));
            let value = line.and_then(|line| line.rsplit_once(' ')).expect("the series is there").1;
            value.parse().expect("a number")
        })
        .collect()
}

#[tokio::test]
async fn each_rank_has_its_own_cache_metrics_and_events() {
    let server = start(ranks(3)).await;
    let (addr, context) = (server.addr(), zmq::Context::new());
    let prompt = "many words that make some blocks ".repeat(20);
    for (rank, known) in [("1", false), ("1", true), ("2", false), ("0", false), ("1", true)] {
        let reply = ask(addr, rank, &prompt).await;
        assert_eq!(cached(&reply) > 0, known, "rank {rank}");
    }
    assert_eq!(by_rank(addr, "vllm:request_prompt_tokens_count", 3).await, [1.0, 3.0, 1.0]);
    assert_eq!(by_rank(addr, "vllm:num_requests_running", 3).await, [0.0; 3]);
    let hits = by_rank(addr, "vllm:prefix_cache_hits_total", 3).await;
    assert!(hits[0] == 0.0 && hits[1] > 0.0 && hits[2] == 0.0, "{hits:?}");

    let mut endpoints = Vec::new();
    for rank in 0..3 {
        endpoints.push(source(addr, rank, "endpoint").await);
        let dealer = Socket::new(&context, zmq::DEALER);
        dealer.0.connect(&source(addr, rank, "replay_endpoint").await).expect("an address");
        dealer.0.send_multipart([&b""[..], &[0; 8]], 0).expect("a request");
        let batch = Batch::of(dealer.recv().await[1..].to_vec());
        assert_eq!((batch.rank, batch.seq, batch.kinds()), (rank as u64, 0, vec!["BlockStored"]));
    }
    endpoints.dedup();
    assert_eq!(endpoints.len(), 3);

    assert_eq!(post(addr, "/reset_prefix_cache", "").await.text(), r#"{"success":true}"#);
    for rank in ["0", "1", "2"] {
        assert_eq!(cached(&ask(addr, rank, &prompt).await), 0);
    }
    server.stop().await;
}

#[tokio::test]
async fn ports_follow_each_other_from_the_one_that_is_given() {
    // Ports that are free a moment before; another process may take them, and then the next try finds others.
    for _ in 0..20 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let kv_events =
            EventsConfig { endpoint: format!("tcp://*:{port}"), replay_endpoint: None, ..events() };
        let config = SimConfig { kv_events, ..ranks(2) };
        let Ok(server) = nebula_sim::Server::start(config).await else { continue };
        for rank in 0..2 {
            let wanted = format!("tcp://127.0.0.1:{}", usize::from(port) + rank);
            assert_eq!(source(server.addr(), rank, "endpoint").await, wanted);
        }
        server.stop().await;
        return;
    }
    panic!("no two ports in a row are free");
}

#[tokio::test]
async fn a_rank_that_is_not_there_is_refused_as_vllm_does() {
    let server = start(ranks(2)).await;
    for rank in ["2", "-1"] {
        let refused = ask(server.addr(), rank, "x").await;
        assert_eq!(refused.status, 400);
        let error = &refused.json()["error"];
        assert_eq!(error["message"], format!("data_parallel_rank {rank} is out of range [0, 2)."));
        assert_eq!(error["type"], "BadRequestError");
    }
    assert_eq!(ask(server.addr(), "one", "x").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn the_least_loaded_rank_takes_who_names_none() {
    let paced = SimConfig { speed: 1.0, engine: engine(32, 20_000.0), ..ranks(3) };
    let server = start(paced).await;
    let body = r#"{"prompt":"x","max_tokens":3000,"stream":true}"#;
    let mut clients = Vec::new();
    for client in 1..=6 {
        clients.push(open(server.addr(), "POST", "/v1/completions", &[], body).await);
        until(async || server.gauges().running + server.gauges().waiting == client).await;
    }
    until(async || server.gauges().running == 6).await;
    assert_eq!(by_rank(server.addr(), "vllm:num_requests_running", 3).await, [2.0; 3]);
    assert_eq!(get(server.addr(), "/load").await.text(), r#"{"server_load":6}"#);
    server.stop().await;
}

#[tokio::test]
async fn a_restart_cuts_refuses_and_forgets_without_a_clear() {
    let paced = SimConfig { speed: 1.0, engine: engine(32, 2_000.0), ..ranks(2) };
    let server = start(paced).await;
    let (addr, context) = (server.addr(), zmq::Context::new());
    let prompt = "many words that make some blocks ".repeat(20);
    ask(addr, "0", &prompt).await;
    assert!(cached(&ask(addr, "0", &prompt).await) > 0);
    let (socket, before) = Socket::subscribe(&context, addr).await;
    let endpoints = (source(addr, 0, "endpoint").await, source(addr, 1, "endpoint").await);
    let born = |metrics: &Reply| {
        let line =
            metrics.text().lines().find(|line| line.starts_with("process_start_time_seconds "));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).expect("a time")
    };
    let birth = born(&get(addr, "/metrics").await);

    let body = r#"{"prompt":"x","max_tokens":3000,"stream":true}"#;
    let mut stream = open(addr, "POST", "/v1/completions", &[], body).await;
    let mut idle = TcpStream::connect(addr).await.expect("a connection");
    until(async || server.gauges().running == 1).await;
    let down = Instant::now();
    assert_eq!(
        post(addr, "/sim/restart", r#"{"down_ms":800}"#).await.text(),
        r#"{"success":true}"#
    );
    let mut cut = Vec::new();
    let _ = stream.read_to_end(&mut cut).await;
    assert!(!Reply::parse(&cut).complete);
    assert!(matches!(idle.read(&mut [0; 1]).await, Ok(0) | Err(_)), "an idle connection is cut");
    let refused = async || matches!(TcpStream::connect(addr).await, Err(e) if e.kind() == ErrorKind::ConnectionRefused);
    until(refused).await;
    assert!(down.elapsed() < Duration::from_millis(800), "it was up to be refused");
    until(async || !refused().await).await;
    assert!(down.elapsed() >= Duration::from_millis(800));

    assert!(born(&get(addr, "/metrics").await) > birth);
    assert_eq!(by_rank(addr, "vllm:prompt_tokens_total", 2).await, [0.0; 2]);
    assert_eq!((source(addr, 0, "endpoint").await, source(addr, 1, "endpoint").await), endpoints);
    assert!(Socket::replay(&context, addr, 0).await.is_empty(), "the buffer is empty");
    assert_eq!(cached(&ask(addr, "0", &prompt).await), 0);
    // The subscriber of before finds the engine again by itself, and sees the numbers go back.
    let after = socket.first(addr).await;
    assert!(after.seq < before.seq + 100 && Socket::replay(&context, addr, 0).await[0].seq == 0);
    let kinds = Socket::replay(&context, addr, 0).await;
    assert!(kinds.iter().all(|batch| batch.kinds() == ["BlockStored"]), "no clear is told");
    server.stop().await;
}

#[tokio::test]
async fn restarts_follow_each_other_and_keep_what_was_configured() {
    let faulty = SimConfig { faults: vec!["status;status=429;count=1".to_owned()], ..ranks(1) };
    let server = start(faulty).await;
    let addr = server.addr();
    for _ in 0..3 {
        assert_eq!(ask(addr, "0", "x").await.status, 429);
        assert_eq!(ask(addr, "0", "x").await.status, 200);
        fill(addr, 1, 1).await;
        assert_eq!(post(addr, "/sim/restart", "{}").await.status, 200);
        until(async || TcpStream::connect(addr).await.is_ok_and(|line| line.peer_addr().is_ok()))
            .await;
        until(async || send(addr, "GET", "/health", &[], "").await.is_some()).await;
    }
    // One that refuses connections listens again by itself.
    assert_eq!(post(addr, "/sim/fault", r#"{"kind":"refuse","for_ms":30}"#).await.status, 200);
    until(async || TcpStream::connect(addr).await.is_err()).await;
    until(async || TcpStream::connect(addr).await.is_ok()).await;
    // A server that is down can be stopped.
    assert_eq!(post(addr, "/sim/restart", r#"{"down_ms":100000}"#).await.status, 200);
    server.stop().await;
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_queue_has_bounds() {
    let bounded = SimConfig {
        speed: 1.0,
        engine: EngineConfig { max_num_seqs: 1, ..engine(32, 20_000.0) },
        max_num_queued_reqs: Some(3),
        max_num_queued_tokens: Some(200),
        ..config()
    };
    let server = start(bounded).await;
    let addr = server.addr();
    let stream = r#"{"prompt":"x","max_tokens":3000,"stream":true}"#;
    let mut clients = Vec::new();
    for client in 1..=3 {
        clients.push(open(addr, "POST", "/v1/completions", &[], stream).await);
        until(async || server.gauges().running + server.gauges().waiting == client).await;
    }
    let busy = post(addr, "/v1/completions", stream).await;
    assert_eq!(busy.status, 503);
    assert_eq!(
        busy.text(),
        r#"{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#
    );
    clients.pop();
    until(async || server.gauges().waiting == 1).await;
    drop(clients.pop());
    until(async || server.gauges().waiting == 0).await;
    let long = json!({"prompt": vec![7; 200], "max_tokens": 3000, "stream": true}).to_string();
    clients.push(open(addr, "POST", "/v1/completions", &[], &long).await);
    until(async || server.gauges().waiting == 1).await;
    let backlog = post(addr, "/v1/completions", stream).await;
    assert_eq!(
        backlog.text(),
        r#"{"error":{"message":"The engine has reached its prefill token backlog limit. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#
    );
    let metrics = get(addr, "/metrics").await;
    for reason in ["max_num_queued_reqs", "max_num_queued_tokens"] {
        let series = format!(
            "vllm:admission_rejections_total{{model_name=\"tiny\",reason=\"{reason}\"}} 1.0"
        );
        assert!(metrics.text().contains(&series), "{series}");
    }
    server.stop().await;
}
