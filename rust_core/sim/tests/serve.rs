//! The server as a whole: replies, streams, clients that leave, and its end.

mod common;

use std::time::{Duration, Instant};

use common::{Reply, config, engine, get, open, post, send, start, until};
use nebula_sim::{EngineConfig, Error, Server, SimConfig};
use serde_json::json;
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_64;

fn chat(messages: &serde_json::Value, tokens: u32) -> String {
    json!({"model": "tiny", "messages": messages, "max_tokens": tokens}).to_string()
}

fn value(metrics: &Reply, series: &str) -> f64 {
    let line =
        metrics.text().lines().find(|line| line.starts_with(series)).expect("the series is there");
    line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).expect("a value")
}

#[tokio::test]
async fn a_reply_depends_on_its_prompt_alone() {
    let one = start(config()).await;
    let other = start(SimConfig { seed: 99, engine: engine(16, 1000.0), ..config() }).await;
    let text = |reply: Reply| reply.json()["choices"][0]["message"]["content"].clone();
    let ask = chat(&json!([{"role": "user", "content": "tell me"}]), 12);
    let first = text(post(one.addr(), "/v1/chat/completions", &ask).await);
    assert_eq!(first.as_str().expect("a text").len(), 48);
    assert_eq!(text(post(other.addr(), "/v1/chat/completions", &ask).await), first);
    let another = chat(&json!([{"role": "user", "content": "tell me more"}]), 12);
    assert_ne!(text(post(one.addr(), "/v1/chat/completions", &another).await), first);

    // A stream has the same words; without a limit the reply ends by itself.
    let streamed = ask.replace("\"max_tokens\":12", "\"max_tokens\":12,\"stream\":true");
    let events = post(one.addr(), "/v1/chat/completions", &streamed).await;
    let words: String = events
        .events()
        .iter()
        .filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok())
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(words, first);
    let open_end = json!({"messages": [{"role": "user", "content": "tell me"}]}).to_string();
    let reply = post(one.addr(), "/v1/chat/completions", &open_end).await.json();
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_conversation_reports_its_cached_tokens() {
    let server = start(SimConfig { engine: engine(16, 1000.0), ..config() }).await;
    let mut messages = vec![json!({"role": "system", "content": "Be brief. ".repeat(20)})];
    let mut known = 0;
    for turn in 0..6 {
        messages.push(json!({"role": "user", "content": format!("question {turn}, with some words of its own")}));
        let reply =
            post(server.addr(), "/v1/chat/completions", &chat(&json!(messages), 20)).await.json();
        let usage = &reply["usage"];
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], known, "turn {turn}");
        let prompt = usage["prompt_tokens"].as_u64().expect("a number");
        assert_eq!(
            usage["prompt_tokens_details"]["created_cache_tokens"],
            prompt / 16 * 16 - known
        );
        messages.push(
            json!({"role": "assistant", "content": reply["choices"][0]["message"]["content"]}),
        );
        // All but the last token of the reply has KV.
        known = (prompt + 20 - 1) / 16 * 16;
    }
    let metrics = get(server.addr(), "/metrics").await;
    assert!(value(&metrics, "vllm:prefix_cache_hits_total") > 0.0);
    assert!((value(&metrics, "vllm:generation_tokens_total") - 120.0).abs() < f64::EPSILON);
    assert_eq!(post(server.addr(), "/reset_prefix_cache", "").await.text(), r#"{"success":true}"#);
    let again =
        post(server.addr(), "/v1/chat/completions", &chat(&json!(messages), 1)).await.json();
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    server.stop().await;
}

#[tokio::test]
async fn the_checksum_covers_all_that_comes_before_it() {
    let server = start(config()).await;
    let body =
        r#"{"prompt":"x","max_tokens":700,"stream":true,"stream_options":{"include_usage":true}}"#;
    let reply = send(server.addr(), "POST", "/v1/completions", &[("x-sim-checksum", "1")], body)
        .await
        .expect("a reply");
    let (before, after) = reply.text().split_once(": xxh3=").expect("the line");
    let (sum, end) = after.split_once(" bytes=").expect("both values");
    assert_eq!(sum, format!("{:016x}", xxh3_64(before.as_bytes())));
    assert_eq!(end, format!("{}\n\ndata: [DONE]\n\n", before.len()));
    assert_eq!(reply.events().len(), 700 + 1 + 1);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_forgotten() {
    let server = start(SimConfig { speed: 1.0, engine: engine(32, 20_000.0), ..config() }).await;
    for stream in [true, false] {
        let body =
            json!({"prompt": "x ".repeat(64), "max_tokens": 3000, "stream": stream}).to_string();
        let client = open(server.addr(), "POST", "/v1/completions", &[], &body).await;
        until(async || server.gauges().running == 1).await;
        assert!(server.gauges().kv_usage > 0.0);
        assert_eq!(get(server.addr(), "/load").await.text(), r#"{"server_load":1}"#);
        drop(client);
        until(async || server.gauges().running == 0).await;
    }
    let metrics = get(server.addr(), "/metrics").await;
    for (series, wanted) in [
        ("vllm:num_requests_running{", 0.0),
        ("vllm:num_requests_waiting{", 0.0),
        ("vllm:kv_cache_usage_perc{", 0.0),
        (r#"vllm:request_success_total{engine="0",finished_reason="abort""#, 2.0),
    ] {
        assert!((value(&metrics, series) - wanted).abs() < f64::EPSILON, "{series}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_request_passes_the_front_end_first() {
    let server = start(SimConfig { speed: 1.0, request_us: 200_000.0, ..config() }).await;
    let asked = Instant::now();
    let reply = post(server.addr(), "/v1/completions", r#"{"prompt":"x","max_tokens":1}"#).await;
    assert_eq!(reply.status, 200);
    assert!(asked.elapsed() > Duration::from_millis(190));
    server.stop().await;
}

#[tokio::test]
async fn many_streams_at_once_are_whole() {
    let server = start(SimConfig {
        engine: EngineConfig { max_num_seqs: 16, kv_blocks: 140, ..engine(32, 1000.0) },
        ..config()
    })
    .await;
    let mut streams = tokio::task::JoinSet::new();
    for user in 0..64 {
        let body = json!({"prompt": format!("user {user} says ").repeat(20), "max_tokens": 100, "stream": true}).to_string();
        let addr = server.addr();
        streams.spawn(async move { post(addr, "/v1/completions", &body).await });
    }
    let mut whole = 0;
    while let Some(reply) = streams.join_next().await {
        let reply = reply.expect("no panic");
        assert!(reply.complete && reply.events().len() == 101);
        whole += 1;
    }
    assert_eq!(whole, 64);
    assert_eq!((server.gauges().running, server.gauges().waiting), (0, 0));
    server.stop().await;
}

#[tokio::test]
async fn stopping_leaves_no_task() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let server = start(SimConfig { speed: 1.0, ..config() }).await;
    let addr = server.addr();
    let _stream = open(
        addr,
        "POST",
        "/v1/completions",
        &[],
        r#"{"prompt":"x","max_tokens":3000,"stream":true}"#,
    )
    .await;
    until(async || server.gauges().running == 1).await;
    assert!(tasks() > before);
    server.stop().await;
    assert_eq!(tasks(), before);
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn what_no_engine_could_serve_with_is_refused() {
    let refused = [
        SimConfig { engine: engine(0, 1000.0), ..config() },
        SimConfig { engine: EngineConfig { kv_blocks: 128, ..engine(32, 1000.0) }, ..config() },
        SimConfig { speed: -1.0, ..config() },
        SimConfig { request_us: f64::NAN, ..config() },
        SimConfig { model: String::new(), ..config() },
        SimConfig { name: "zwei\nZeilen".to_owned(), ..config() },
    ];
    for config in refused {
        assert!(matches!(Server::start(config).await, Err(Error::Config { .. })));
    }
    let nowhere = SimConfig { listen: "not an address".to_owned(), ..config() };
    assert!(matches!(Server::start(nowhere).await, Err(Error::Listen { .. })));
}

#[test]
fn the_configuration_has_no_defaults_and_no_unknown_fields() {
    let whole = serde_json::to_value(config()).expect("JSON");
    let fields = whole.as_object().expect("an object");
    for field in fields.keys() {
        let mut less = fields.clone();
        less.remove(field);
        assert!(serde_json::from_value::<SimConfig>(less.into()).is_err(), "{field} has a default");
    }
    let mut more = fields.clone();
    more.insert("sped".to_owned(), 1.into());
    assert!(serde_json::from_value::<SimConfig>(more.into()).is_err());
}
