//! Each fault, seen from the client.

mod common;

use std::io::ErrorKind;

use common::{Reply, config, engine, get, open, post, send, start, until};
use nebula_sim::{Effect, Fault, Server, SimConfig};
use tokio::net::TcpStream;

const STREAM: &str = r#"{"model":"tiny","prompt":"x","max_tokens":6,"stream":true}"#;
const WHOLE: &str = r#"{"model":"tiny","prompt":"x","max_tokens":6}"#;

async fn with_fault(server: &Server, fault: &str, body: &str) -> Option<Reply> {
    send(server.addr(), "POST", "/v1/completions", &[("x-sim-fault", fault)], body).await
}

async fn set(server: &Server, fault: &str) -> Reply {
    post(server.addr(), "/sim/fault", fault).await
}

#[tokio::test]
async fn reset_ends_the_connection_without_a_head() {
    let server = start(config()).await;
    assert!(with_fault(&server, "reset", STREAM).await.is_none());
    assert!(with_fault(&server, "none", STREAM).await.expect("a reply").complete);
    server.stop().await;
}

#[tokio::test]
async fn death_in_the_middle_of_a_stream_leaves_whole_chunks_and_no_end() {
    let server = start(config()).await;
    for after in [1, 3] {
        let reply = with_fault(&server, &format!("die_mid_stream;after_chunks={after}"), STREAM)
            .await
            .expect("a head");
        assert_eq!((reply.status, reply.complete, reply.events().len()), (200, false, after));
        assert!(reply.text().ends_with("\n\n"));
    }
    let reply = with_fault(&server, "die_mid_stream", WHOLE).await.expect("a head");
    assert!(!reply.complete && !reply.body.is_empty());
    until(async || server.gauges().running == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_hanging_engine_answers_others_and_forgets_who_leaves() {
    let server = start(config()).await;
    let hung =
        open(server.addr(), "POST", "/v1/completions", &[("x-sim-fault", "hang")], STREAM).await;
    assert_eq!(post(server.addr(), "/v1/completions", WHOLE).await.status, 200);
    assert_eq!(
        hung.try_read(&mut [0; 1]).map_err(|error| error.kind()),
        Err(ErrorKind::WouldBlock)
    );
    drop(hung);

    // The fault's request stays in the engine until its client leaves, as with an engine that hangs.
    let slow = SimConfig { speed: 1.0, ..config() };
    let server = start(slow).await;
    let body = r#"{"model":"tiny","prompt":"x","max_tokens":4000,"stream":true}"#;
    let fault = [("x-sim-fault", "hang_mid_stream;after_chunks=2")];
    let hung = open(server.addr(), "POST", "/v1/completions", &fault, body).await;
    let mut seen = Vec::new();
    until(async || {
        let mut some = [0; 4096];
        let read = hung.try_read(&mut some).unwrap_or(0);
        seen.extend_from_slice(&some[..read]);
        String::from_utf8_lossy(&seen).matches("data: ").count() == 2
    })
    .await;
    assert_eq!(server.gauges().running, 1);
    drop(hung);
    until(async || server.gauges().running == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_status_has_the_body_of_the_engine() {
    let server = start(config()).await;
    let busy = with_fault(&server, "status", WHOLE).await.expect("a reply");
    assert_eq!(busy.status, 503);
    assert_eq!(
        busy.text(),
        r#"{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#
    );
    assert_eq!(
        with_fault(&server, "status;status=500", WHOLE).await.expect("a reply").json()["error"]["code"],
        500
    );
    server.stop().await;
}

#[tokio::test]
async fn a_fault_with_a_count_meets_so_many_requests() {
    let server = start(config()).await;
    assert_eq!(set(&server, r#"{"kind":"status","status":429,"count":2}"#).await.status, 200);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(post(server.addr(), "/v1/completions", WHOLE).await.status);
    }
    assert_eq!(statuses, [429, 429, 200]);
    assert_eq!(get(server.addr(), "/health").await.status, 200);

    set(&server, r#"{"kind":"status"}"#).await;
    assert_eq!(post(server.addr(), "/v1/completions", WHOLE).await.status, 503);
    set(&server, r#"{"kind":"none"}"#).await;
    assert_eq!(post(server.addr(), "/v1/completions", WHOLE).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_slow_reply_takes_its_factor() {
    let server = start(SimConfig { engine: engine(32, 5_000.0), speed: 1.0, ..config() }).await;
    for body in [STREAM, WHOLE] {
        let started = std::time::Instant::now();
        assert!(with_fault(&server, "slow;factor=4", body).await.expect("a reply").complete);
        // Six steps of 5 ms.
        assert!(started.elapsed().as_millis() >= 4 * 6 * 5, "{:?}", started.elapsed());
    }
    server.stop().await;
}

#[tokio::test]
async fn refused_connections_are_accepted_again() {
    let server = start(config()).await;
    let refused = async || matches!(TcpStream::connect(server.addr()).await, Err(e) if e.kind() == ErrorKind::ConnectionRefused);
    assert_eq!(set(&server, r#"{"kind":"refuse"}"#).await.status, 200);
    until(refused).await;
    server.set_fault(None);
    until(async || !refused().await).await;
    assert_eq!(post(server.addr(), "/v1/completions", WHOLE).await.status, 200);

    server.set_fault(Some(Fault { effect: Effect::Refuse { for_ms: Some(20) }, count: None }));
    until(refused).await;
    until(async || !refused().await).await;
    assert_eq!(post(server.addr(), "/v1/completions", WHOLE).await.status, 200);

    // A new wish replaces the one in force, and a server that refuses can be stopped.
    for for_ms in [None, Some(20)] {
        server.set_fault(Some(Fault { effect: Effect::Refuse { for_ms }, count: None }));
        until(refused).await;
    }
    until(async || !refused().await).await;
    server.set_fault(Some(Fault { effect: Effect::Refuse { for_ms: None }, count: None }));
    until(refused).await;
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_fault_is_refused() {
    let server = start(config()).await;
    for wish in [
        r#"{"kind":"explode"}"#,
        r#"{"kind":"slow","factor":0.5}"#,
        r#"{"kind":"status","status":200}"#,
        r#"{"kind":"drop_events","share":2}"#,
        r#"{"kind":"lie_cached","factor":-1}"#,
        r#"{"no":1}"#,
    ] {
        assert_eq!(set(&server, wish).await.status, 400, "{wish}");
    }
    for header in
        ["explode", "refuse", "drop_events", "slow;speed=2", "status;status=many", "reset;count=2"]
    {
        assert_eq!(
            with_fault(&server, header, WHOLE).await.expect("a reply").status,
            400,
            "{header}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_busy_engine_says_why() {
    let server = start(config()).await;
    let reason = async |fault: &str| {
        let reply = with_fault(&server, fault, WHOLE).await.expect("a reply");
        assert_eq!(reply.status, 503);
        reply.json()["error"].clone()
    };
    assert_eq!(reason("queue_full").await["type"], "Service Unavailable");
    assert!(reason("token_backlog").await["message"].as_str().unwrap().contains("backlog"));
    assert_eq!(reason("scaling").await, "The model is currently scaling. Please try again later.");

    set(&server, r#"{"kind":"scaling"}"#).await;
    assert_eq!(get(server.addr(), "/health").await.status, 503);
    set(&server, r#"{"kind":"none"}"#).await;
    assert_eq!(get(server.addr(), "/health").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn cached_tokens_can_be_a_lie() {
    let server = start(config()).await;
    let body = format!(r#"{{"prompt":"{}","max_tokens":1}}"#, "word ".repeat(100));
    let told = async |fault: &str| {
        let reply = with_fault(&server, fault, &body).await.expect("a reply").json();
        reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
    };
    told("none").await;
    let truth = told("none").await;
    assert!(truth > 64);
    assert_eq!(told("lie_cached").await, 0);
    assert_eq!(told("lie_cached;factor=0.5").await, truth / 2);
    assert_eq!(told("lie_cached;amount=100000").await, truth + 100_000);
    assert_eq!(told("lie_cached;amount=-100000").await, 0);

    // A lie stands beside another fault, and is told in a stream too.
    set(&server, r#"{"kind":"lie_cached","amount":7,"count":2}"#).await;
    set(&server, r#"{"kind":"slow","factor":1}"#).await;
    let streamed = body.replace(
        r#""max_tokens":1"#,
        r#""max_tokens":1,"stream":true,"stream_options":{"include_usage":true}"#,
    );
    for known in [truth + 7, truth + 7, truth] {
        let reply = post(server.addr(), "/v1/completions", &streamed).await;
        assert!(reply.text().contains(&format!("\"cached_tokens\":{known}}}")), "{}", reply.text());
    }
    server.stop().await;
}

#[tokio::test]
async fn faults_are_in_force_from_the_start() {
    let faults =
        vec!["die_mid_stream;after_chunks=3;count=1".to_owned(), "lie_cached;amount=5".to_owned()];
    let server = start(SimConfig { faults, ..config() }).await;
    assert!(!post(server.addr(), "/v1/completions", STREAM).await.complete);
    let whole = post(server.addr(), "/v1/completions", WHOLE).await;
    assert_eq!(whole.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 5);
    server.stop().await;
    for wrong in ["explode", "slow;factor=0", "reset;count"] {
        let config = SimConfig { faults: vec![wrong.to_owned()], ..config() };
        let error = Server::start(config).await.err().expect(wrong).to_string();
        assert!(error.starts_with(&format!("sim: faults hold `{wrong}`: ")), "{error}");
    }
}
