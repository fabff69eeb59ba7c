//! Prefill on one engine, decode on another.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::{Reply, captured, config, engine, get, open, post, send, skeleton, start, until};
use nebula_sim::config::{LoadFailure, Role, TransferConfig};
use nebula_sim::{Server, SimConfig};
use serde_json::{Value, json};
use tokio::net::TcpStream;

fn sharing(role: Role) -> SimConfig {
    SimConfig { kv_transfer: transfer(role), ..config() }
}

fn transfer(role: Role) -> TransferConfig {
    TransferConfig {
        role: Some(role),
        load_failure_policy: LoadFailure::Fail,
        lease_s: 30.0,
        us_per_token: 0.0,
    }
}

/// In real time, as fast as a test can bear.
fn paced(transfer: TransferConfig) -> SimConfig {
    SimConfig { speed: 1.0, engine: engine(32, 200.0), kv_transfer: transfer, ..config() }
}

fn golden() -> Value {
    serde_json::from_slice(&captured("pd.json")).expect("JSON")
}

fn prompt(tokens: u32) -> Vec<u32> {
    (7000..7000 + tokens).collect()
}

/// The first leg: the engine computes the prompt and keeps its blocks.
async fn prefill(addr: SocketAddr, prompt: &[u32]) -> Value {
    let ask = json!({"prompt": prompt, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true, "do_remote_prefill": false}});
    let reply = post(addr, "/v1/completions", &ask.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["kv_transfer_params"].clone()
}

/// The second leg.
async fn decode(addr: SocketAddr, prompt: &[u32], params: &Value, stream: bool) -> Reply {
    let ask =
        json!({"prompt": prompt, "max_tokens": 5, "stream": stream, "kv_transfer_params": params});
    post(addr, "/v1/completions", &ask.to_string()).await
}

async fn value(server: &Server, series: &str) -> f64 {
    let metrics = get(server.addr(), "/metrics").await;
    let line = metrics.text().lines().find(|line| line.starts_with(series)).expect(series);
    line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).expect("a number")
}

#[tokio::test]
async fn both_legs_answer_in_the_shape_of_vllm() {
    let (p, d) = (start(sharing(Role::KvProducer)).await, start(sharing(Role::KvConsumer)).await);
    let golden = golden();
    for (path, name, prompt) in [
        ("/v1/chat/completions", "chat", r#""messages":[{"role":"user","content":"hello"}]"#),
        ("/v1/completions", "completion", r#""prompt":"hello you""#),
    ] {
        let first = format!(
            r#"{{{prompt},"max_tokens":1,"kv_transfer_params":{{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}}}}"#
        );
        let prefilled = post(p.addr(), path, &first).await;
        let shape = skeleton(golden[format!("prefill_{name}")].as_str().unwrap());
        assert_eq!(skeleton(prefilled.text()), shape);
        let params = &prefilled.json()["kv_transfer_params"];
        let second = format!(r#"{{{prompt},"max_tokens":12,"kv_transfer_params":{params}}}"#);
        let decoded = post(d.addr(), path, &second).await;
        assert_eq!(
            skeleton(decoded.text()),
            skeleton(golden[format!("decode_{name}")].as_str().unwrap())
        );
        let whole = json!(decoded.json()["choices"][0]);
        let alone = format!(r#"{{{prompt},"max_tokens":12}}"#);
        let alone = post(p.addr(), path, &alone).await.json()["choices"][0].clone();
        assert_eq!(whole, alone, "two engines say what one says");
    }
    let three = json!({"prompt": prompt(64), "max_tokens": 3, "kv_transfer_params": {"do_remote_decode": true}});
    let three = post(p.addr(), "/v1/completions", &three.to_string()).await;
    assert_eq!(skeleton(three.text()), skeleton(golden["prefill_three_tokens"].as_str().unwrap()));
    assert_eq!(three.json()["kv_transfer_params"]["remote_num_tokens"], 66);

    let streamed = json!({"prompt": prompt(64), "max_tokens": 1, "stream": true, "kv_transfer_params": {"do_remote_decode": true}});
    let streamed = post(p.addr(), "/v1/completions", &streamed.to_string()).await;
    let theirs = golden["prefill_stream"].as_str().unwrap();
    assert_eq!(
        skeleton(streamed.events()[0]),
        skeleton(theirs.split("\n\n").next().unwrap().trim_start_matches("data: "))
    );
    p.stop().await;
    d.stop().await;
}

#[tokio::test]
async fn what_is_handed_off_is_not_computed_again_and_freed_at_its_origin() {
    let (p, d) = (start(sharing(Role::KvProducer)).await, start(sharing(Role::KvConsumer)).await);
    let prompt = prompt(449);
    prefill(p.addr(), &prompt[..64]).await;
    let params = prefill(p.addr(), &prompt).await;
    let blocks = params["remote_block_ids"][0].as_array().expect("a list");
    assert_eq!((blocks.len(), params["remote_num_tokens"].as_u64()), (15, Some(449)));
    assert_eq!(params["remote_port"], p.addr().port());
    assert_eq!(params["remote_prefill_cached_tokens"], 64);
    assert!(p.gauges().kv_usage > 0.0);

    let decoded = decode(d.addr(), &prompt, &params, false).await.json();
    let usage = &decoded["usage"]["prompt_tokens_details"];
    assert_eq!(usage["cached_tokens"], 64, "what the first engine had cached");
    for (series, wanted) in [
        ("vllm:external_prefix_cache_queries_total{", 449.0),
        ("vllm:external_prefix_cache_hits_total{", 449.0),
        ("vllm:prefix_cache_hits_total{", 0.0),
        ("vllm:prompt_tokens_cached_total{", 449.0),
        (
            r#"vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="external_kv_transfer""#,
            449.0,
        ),
        (
            r#"vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute""#,
            0.0,
        ),
        (
            r#"vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="tiny",source="p2p""#,
            449.0,
        ),
        ("vllm:nixl_xfer_time_seconds_count{", 1.0),
        ("vllm:nixl_num_failed_transfers_total{", 0.0),
        // One token of the prompt, and four of the reply.
        ("vllm:iteration_tokens_total_sum{", 5.0),
    ] {
        let ours = value(&d, series).await;
        assert!((ours - wanted).abs() < f64::EPSILON, "{series} is {ours}");
    }
    // The shorter prompt waits for its lease; the other one is gone.
    until(async || (p.gauges().kv_usage - 2.0 / 1023.0).abs() < 1e-9).await;
    let again = decode(d.addr(), &prompt, &params, false).await;
    assert_eq!(again.status, 500, "nothing is kept of it any more");
    p.stop().await;
    d.stop().await;
}

#[tokio::test]
async fn a_lease_runs_out_and_the_policy_says_what_follows() {
    let transfer_ = TransferConfig { lease_s: 0.5, ..transfer(Role::KvProducer) };
    let p = start(paced(transfer_)).await;
    let d = start(sharing(Role::KvConsumer)).await;
    let recompute = TransferConfig {
        load_failure_policy: LoadFailure::Recompute,
        ..transfer(Role::KvConsumer)
    };
    let lenient = start(SimConfig { kv_transfer: recompute, ..config() }).await;
    let prompt = prompt(200);
    let params = prefill(p.addr(), &prompt).await;
    assert!(p.gauges().kv_usage > 0.0);
    until(async || p.gauges().kv_usage == 0.0).await;
    assert!((value(&p, "vllm:nixl_num_kv_expired_reqs_total{").await - 1.0).abs() < f64::EPSILON);

    let golden = golden();
    let failed = decode(d.addr(), &prompt, &params, false).await;
    assert_eq!((failed.status, failed.text()), (500, golden["failed"].as_str().unwrap()));
    let failed = decode(d.addr(), &prompt, &params, true).await;
    assert_eq!(
        (failed.status, failed.text()),
        (200, golden["failed_stream_completion"].as_str().unwrap())
    );
    assert!(failed.complete);
    let chat = json!({"messages": [{"role": "user", "content": "hello"}], "stream": true, "kv_transfer_params": params});
    let failed = post(d.addr(), "/v1/chat/completions", &chat.to_string()).await;
    let theirs = golden["failed_stream_chat"].as_str().unwrap();
    let shapes = |text: &str| text.split("\n\n").skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(shapes(failed.text()), shapes(theirs));
    assert_eq!(
        skeleton(failed.events()[0]),
        skeleton(theirs.split("\n\n").next().unwrap().trim_start_matches("data: "))
    );
    assert!((value(&d, "vllm:nixl_num_failed_transfers_total{").await - 3.0).abs() < f64::EPSILON);
    let errors = r#"vllm:request_success_total{engine="0",finished_reason="error""#;
    assert!((value(&d, errors).await - 3.0).abs() < f64::EPSILON);

    let recomputed = decode(lenient.addr(), &prompt, &params, false).await;
    assert_eq!(recomputed.status, 200);
    assert!((value(&lenient, "vllm:external_prefix_cache_hits_total{").await).abs() < f64::EPSILON);
    assert_eq!(recomputed.json()["choices"][0]["text"].as_str().unwrap().len(), 20);
    for server in [p, d, lenient] {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_lease_is_one_of_real_time_where_nothing_is_waited_for() {
    let brief = TransferConfig { lease_s: 0.2, ..transfer(Role::KvProducer) };
    let p = start(SimConfig { kv_transfer: brief, ..config() }).await;
    let started = Instant::now();
    prefill(p.addr(), &prompt(100)).await;
    for name in 0..50 {
        let other = json!({"prompt": vec![name; 2000], "max_tokens": 500}).to_string();
        assert_eq!(post(p.addr(), "/v1/completions", &other).await.status, 200);
    }
    let kept = p.gauges().kv_usage > 0.0;
    assert!(kept || started.elapsed() > Duration::from_millis(200), "virtual minutes went by");
    until(async || p.gauges().kv_usage == 0.0).await;
    assert!(started.elapsed() > Duration::from_millis(200));
    assert!((value(&p, "vllm:nixl_num_kv_expired_reqs_total{").await - 1.0).abs() < f64::EPSILON);
    p.stop().await;
}

#[tokio::test]
async fn an_engine_that_is_gone_is_waited_for_once() {
    // Five times as fast: the five seconds of a first handshake take one.
    let quick = |role| SimConfig { speed: 5.0, ..paced(transfer(role)) };
    let p = start(quick(Role::KvProducer)).await;
    let d = start(quick(Role::KvConsumer)).await;
    let prompt = prompt(100);
    let params = prefill(p.addr(), &prompt).await;
    let mut nobody = params.clone();
    nobody["remote_port"] = 9.into();
    nobody["remote_engine_id"] = "00000000-dead-beef-0000-000000000000".into();
    let took = async |params: &Value| {
        let started = Instant::now();
        let reply = decode(d.addr(), &prompt, params, false).await;
        (reply.status, started.elapsed() > Duration::from_millis(900))
    };
    assert_eq!(took(&nobody).await, (500, true));
    assert_eq!(took(&params).await, (200, false));
    // A process that starts again has another name, and nothing of what was kept.
    let params = prefill(p.addr(), &prompt).await;
    assert_eq!(post(p.addr(), "/sim/restart", "{}").await.status, 200);
    until(async || TcpStream::connect(p.addr()).await.is_ok()).await;
    until(async || send(p.addr(), "GET", "/health", &[], "").await.is_some()).await;
    assert_eq!(took(&params).await, (500, false));
    let renamed = prefill(p.addr(), &prompt).await;
    assert_ne!(renamed["remote_engine_id"], params["remote_engine_id"]);
    assert_eq!(took(&renamed).await, (200, false));
    let params = prefill(p.addr(), &prompt).await;
    p.stop().await;
    assert_eq!(took(&params).await, (500, false));
    d.stop().await;
}

#[tokio::test]
async fn a_transfer_takes_its_time_and_is_renewed_meanwhile() {
    let short = |role| TransferConfig { lease_s: 0.5, us_per_token: 4_000.0, ..transfer(role) };
    let (p, d) =
        (start(paced(short(Role::KvProducer))).await, start(paced(short(Role::KvConsumer))).await);
    let prompt = prompt(300);
    let params = prefill(p.addr(), &prompt).await;
    let (stage, started) = ("vllm:num_requests_kv_fetch_by_stage", Instant::now());
    let on_its_way = format!("{stage}{{engine=\"0\",model_name=\"tiny\",stage=\"in_progress\"}}");
    let (reply, ()) = tokio::join!(decode(d.addr(), &prompt, &params, true), async {
        until(async || value(&d, &on_its_way).await > 0.0).await;
        assert_eq!((d.gauges().waiting, d.gauges().running), (1, 0));
        assert!(d.gauges().kv_usage > 0.0, "blocks are there before their content");
    });
    assert!(
        reply.complete && started.elapsed() > Duration::from_millis(1200),
        "300 tokens of 4 ms"
    );
    assert!((value(&p, "vllm:nixl_num_kv_expired_reqs_total{").await).abs() < f64::EPSILON);
    until(async || p.gauges().kv_usage == 0.0).await;

    // The engine that offers it dies on the way.
    let params = prefill(p.addr(), &prompt[1..]).await;
    let (reply, ()) = tokio::join!(decode(d.addr(), &prompt[1..], &params, true), async {
        until(async || d.gauges().waiting == 1).await;
        p.stop().await;
    });
    assert!(reply.text().contains("Internal server error"), "{}", reply.text());
    assert_eq!((d.gauges().waiting, d.gauges().kv_usage), (0, 0.0));
    d.stop().await;
}

#[tokio::test]
async fn who_leaves_on_the_way_frees_both_engines() {
    let slow = |role| TransferConfig { us_per_token: 50_000.0, ..transfer(role) };
    let (p, d) =
        (start(paced(slow(Role::KvProducer))).await, start(paced(slow(Role::KvConsumer))).await);
    let prompt = prompt(200);
    for stream in [true, false] {
        let params = prefill(p.addr(), &prompt).await;
        let ask = json!({"prompt": prompt, "max_tokens": 5, "stream": stream, "kv_transfer_params": params});
        let client = open(d.addr(), "POST", "/v1/completions", &[], &ask.to_string()).await;
        until(async || d.gauges().waiting == 1).await;
        assert!(p.gauges().kv_usage > 0.0);
        drop(client);
        until(async || d.gauges().waiting == 0 && d.gauges().kv_usage == 0.0).await;
        until(async || p.gauges().kv_usage == 0.0).await;
    }
    // A first leg whose client left keeps nothing.
    let ask = json!({"prompt": prompt, "max_tokens": 3000, "kv_transfer_params": {"do_remote_decode": true}});
    let client = open(p.addr(), "POST", "/v1/completions", &[], &ask.to_string()).await;
    until(async || p.gauges().running == 1).await;
    drop(client);
    until(async || p.gauges().kv_usage == 0.0).await;
    p.stop().await;
    d.stop().await;
}

#[tokio::test]
async fn parameters_that_say_too_little_are_passed_over() {
    let (p, d) = (start(sharing(Role::KvProducer)).await, start(sharing(Role::KvConsumer)).await);
    let alone = start(config()).await;
    let prompt = prompt(100);
    let params = prefill(p.addr(), &prompt).await;
    for missing in ["remote_engine_id", "remote_request_id", "remote_host", "remote_port"] {
        let mut less = params.clone();
        less.as_object_mut().unwrap().remove(missing);
        assert_eq!(decode(d.addr(), &prompt, &less, false).await.status, 200, "{missing}");
    }
    for params in [json!({"do_remote_prefill": true}), json!({}), Value::Null] {
        assert_eq!(decode(d.addr(), &prompt, &params, false).await.status, 200);
    }
    assert!(value(&d, "vllm:external_prefix_cache_hits_total{").await.abs() < f64::EPSILON);
    assert_eq!(decode(d.addr(), &prompt, &json!("x"), false).await.status, 400);
    // An engine that shares nothing knows none of it.
    assert_eq!(prefill(alone.addr(), &prompt).await, Value::Null);
    assert_eq!(decode(alone.addr(), &prompt, &params, false).await.status, 200);
    assert!(alone.gauges().kv_usage == 0.0);
    assert!(!get(alone.addr(), "/metrics").await.text().contains("nixl"));
    for server in [p, d, alone] {
        server.stop().await;
    }
}

#[tokio::test]
async fn ranks_offer_under_names_of_their_own() {
    let two = |role| SimConfig { data_parallel_size: 2, ..sharing(role) };
    let (p, d) = (start(two(Role::KvProducer)).await, start(two(Role::KvConsumer)).await);
    let ask = json!({"prompt": prompt(100), "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": true}});
    let mut names = Vec::new();
    for rank in ["0", "1"] {
        let headers = [("x-data-parallel-rank", rank)];
        let reply = send(p.addr(), "POST", "/v1/completions", &headers, &ask.to_string())
            .await
            .expect("a reply");
        let params = reply.json()["kv_transfer_params"].clone();
        names.push(params["remote_engine_id"].as_str().unwrap().to_owned());
        assert_eq!(decode(d.addr(), &prompt(100), &params, false).await.status, 200);
    }
    assert!(names[0].ends_with("_dp0") && names[1].ends_with("_dp1"), "{names:?}");
    assert_eq!(names[0].len(), 36 + 4);
    until(async || p.gauges().kv_usage == 0.0).await;
    p.stop().await;
    d.stop().await;
}
