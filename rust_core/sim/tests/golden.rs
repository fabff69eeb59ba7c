//! Replies compared with what a real engine sent.

mod common;

use std::collections::BTreeSet;

use common::feed::events;
use common::{Reply, captured, config, get, post, send, skeleton, start};
use nebula_sim::SimConfig;
use nebula_sim::config::{Role, TransferConfig};

/// The engine of the simulator tells what it found in its cache; the captured one was not started to.
const DETAILS: &str =
    "prompt_tokens_details:{cached_tokens:_,created_cache_tokens:_,multimodal_tokens:_}";

const CHAT: &str =
    r#"{"model":"tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":6"#;

#[tokio::test]
async fn errors_are_equal_byte_for_byte() {
    let server = start(config()).await;
    let long = format!(r#"{{"model":"tiny","max_tokens":4,"prompt":"{}"}}"#, "word ".repeat(5000));
    let cases = [
        ("err_404.txt", "POST", "/nothing", CHAT),
        ("err_get_method.txt", "GET", "/v1/chat/completions", ""),
        (
            "err_bad_json.txt",
            "POST",
            "/v1/chat/completions",
            r#"{"model":"tiny","messages":[{"role":"user","content":"hi"}"#,
        ),
        ("err_missing_messages.txt", "POST", "/v1/chat/completions", r#"{"model":"tiny"}"#),
        ("err_unknown_model.txt", "POST", "/v1/completions", r#"{"model":"nope","prompt":"x"}"#),
        (
            "err_unknown_model_stream.txt",
            "POST",
            "/v1/completions",
            r#"{"model":"nope","prompt":"x","stream":true}"#,
        ),
        (
            "err_max_tokens_neg.txt",
            "POST",
            "/v1/completions",
            r#"{"model":"tiny","prompt":"x","max_tokens":-1}"#,
        ),
        (
            "err_max_tokens_too_big.txt",
            "POST",
            "/v1/completions",
            r#"{"model":"tiny","prompt":"x","max_tokens":5000}"#,
        ),
        ("err_too_long.txt", "POST", "/v1/completions", &long),
    ];
    for (file, method, path, body) in cases {
        let ours = send(server.addr(), method, path, &[], body).await.expect("a reply");
        let theirs = Reply::parse(&captured(file));
        assert_eq!(ours.text(), theirs.text(), "{file}");
        assert_eq!(ours.status, theirs.status, "{file}");
        for name in ["content-type", "allow", "content-length"] {
            assert_eq!(ours.header(name), theirs.header(name), "{file}: {name}");
        }
    }
    let ours =
        send(server.addr(), "POST", "/v1/completions", &[("content-type", "text/plain")], CHAT)
            .await;
    assert_eq!(
        ours.expect("a reply").text(),
        Reply::parse(&captured("err_content_type.txt")).text()
    );
    server.stop().await;
}

#[tokio::test]
async fn plain_endpoints_have_the_same_shape() {
    let server = start(config()).await;
    for (path, file) in [
        ("/health", "health.txt"),
        ("/ping", "ping.txt"),
        ("/version", "version.txt"),
        ("/load", "load.txt"),
        ("/v1/models", "v1_models.txt"),
    ] {
        let (ours, theirs) = (get(server.addr(), path).await, Reply::parse(&captured(file)));
        assert_eq!(ours.status, theirs.status, "{path}");
        assert_eq!(ours.header("content-type"), theirs.header("content-type"), "{path}");
        assert_eq!(skeleton(ours.text()), skeleton(theirs.text()), "{path}");
    }
    assert_eq!(post(server.addr(), "/ping", "").await.status, 200);
    assert_eq!(get(server.addr(), "/v1/embeddings").await.text(), r#"{"detail":"Not Found"}"#);
    server.stop().await;
}

#[tokio::test]
async fn whole_replies_have_the_same_keys_in_the_same_order() {
    let server = start(config()).await;
    let id = [("x-request-id", "my-req-1")];
    let chat = send(server.addr(), "POST", "/v1/chat/completions", &id, &format!("{CHAT}}}"))
        .await
        .expect("a reply");
    let theirs = Reply::parse(&captured("ok_chat_xreqid.txt"));
    assert_eq!(
        skeleton(chat.text()).replace(DETAILS, "prompt_tokens_details:_"),
        skeleton(theirs.text())
    );
    assert_eq!(chat.json()["id"], "chatcmpl-my-req-1");
    assert_eq!(chat.header("content-type"), Some("application/json"));

    let ours = post(
        server.addr(),
        "/v1/completions",
        r#"{"model":"tiny","prompt":[5,6,7],"max_tokens":2}"#,
    )
    .await;
    let theirs = Reply::parse(&captured("ok_completions_token_ids_prompt.txt"));
    assert_eq!(
        skeleton(ours.text()).replace(DETAILS, "prompt_tokens_details:_"),
        skeleton(theirs.text())
    );
    assert_eq!(ours.json()["usage"]["prompt_tokens"], 3);
    assert_eq!(ours.json()["choices"][0]["finish_reason"], "length");
    server.stop().await;
}

#[tokio::test]
async fn streams_have_the_same_events() {
    let server = start(config()).await;
    let usage = r#""stream_options":{"include_usage":true,"continuous_usage_stats":true}"#;
    let ours =
        post(server.addr(), "/v1/chat/completions", &format!(r#"{CHAT},"stream":true,{usage}}}"#))
            .await;
    let details = ",prompt_tokens_details:{cached_tokens:_,created_cache_tokens:_}";
    same_events(&ours, &Reply::parse(&captured("sse_chat_raw_chunked.bin")), details);

    let body = r#"{"model":"tiny","prompt":"P","max_tokens":6,"stream":true,"stream_options":{"include_usage":true}}"#;
    let ours = post(server.addr(), "/v1/completions", body).await;
    let details = ",prompt_tokens_details:{cached_tokens:_}";
    same_events(&ours, &Reply::parse(&captured("sse_completions_raw_chunked.bin")), details);
    server.stop().await;
}

fn same_events(ours: &Reply, theirs: &Reply, details: &str) {
    assert_eq!((ours.status, ours.complete), (theirs.status, true));
    assert_eq!(ours.header("content-type"), theirs.header("content-type"));
    let shapes = |reply: &Reply| {
        let events = reply.events();
        events.iter().map(|event| skeleton(event).replace(details, "")).collect::<Vec<_>>()
    };
    assert_eq!(shapes(ours), shapes(theirs));
}

#[tokio::test]
async fn token_ids_are_told_on_request() {
    let server = start(config()).await;
    let body = format!(r#"{CHAT},"stream":true,"return_token_ids":true}}"#);
    let ours = post(server.addr(), "/v1/chat/completions", &body).await;
    let theirs = captured("sse_chat_token_ids.txt");
    let theirs = String::from_utf8(theirs).expect("UTF-8");
    let theirs = theirs.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let ours_shape: Vec<_> = ours.events().iter().map(|event| skeleton(event)).collect();
    assert_eq!(ours_shape, theirs.map(skeleton).collect::<Vec<_>>());

    let first: serde_json::Value = serde_json::from_str(ours.events()[0]).expect("JSON");
    let prompt =
        post(server.addr(), "/tokenize", r#"{"messages":[{"role":"user","content":"hello"}]}"#)
            .await;
    assert_eq!(first["prompt_token_ids"], prompt.json()["tokens"]);
    server.stop().await;
}

#[tokio::test]
async fn tokenize_and_back() {
    let server = start(config()).await;
    let text = "def hello(self): pass\n\u{e9}t\u{e9} \u{1F980}";
    let ours = post(
        server.addr(),
        "/tokenize",
        &serde_json::json!({"model": "tiny", "prompt": text}).to_string(),
    )
    .await;
    assert_eq!(
        skeleton(ours.text()),
        skeleton(Reply::parse(&captured("tokenize_prompt.txt")).text())
    );
    let back = serde_json::json!({"tokens": ours.json()["tokens"]}).to_string();
    assert_eq!(post(server.addr(), "/detokenize", &back).await.json()["prompt"], text);

    let body = r#"{"messages":[{"role":"user","content":"def hello"}],"return_token_strs":true}"#;
    let ours = post(server.addr(), "/tokenize", body).await;
    assert_eq!(
        skeleton(ours.text()),
        skeleton(Reply::parse(&captured("tokenize_messages.txt")).text())
    );
    server.stop().await;
}

/// The lines of a metrics page without their values, but for those whose labels tell a configuration.
fn series(page: &str) -> BTreeSet<String> {
    let told = |line: &&str| !line.is_empty() && !line.starts_with("vllm:cache_config_info");
    page.lines()
        .filter(told)
        .map(|line| match line.rsplit_once(' ') {
            Some((series, _)) if !line.starts_with('#') => series.to_owned(),
            _ => line.to_owned(),
        })
        .collect()
}

#[tokio::test]
async fn metrics_have_the_names_help_types_and_labels_of_vllm() {
    let shares = TransferConfig { role: Some(Role::KvConsumer), ..config().kv_transfer };
    for (kv_transfer, file) in
        [(config().kv_transfer, "metrics.txt"), (shares, "metrics_pd_decode.txt")]
    {
        let server = start(SimConfig { kv_transfer, ..config() }).await;
        post(server.addr(), "/v1/chat/completions", &format!("{CHAT}}}")).await;
        let ours = get(server.addr(), "/metrics").await;
        let head = Reply::parse(&captured("metrics.headers"));
        assert_eq!(ours.header("content-type"), head.header("content-type"));
        let (ours, theirs) =
            (series(ours.text()), series(&String::from_utf8(captured(file)).unwrap()));
        // An engine that was captured may know fewer tokens, and so fewer bounds.
        let unknown: Vec<_> =
            ours.difference(&theirs).filter(|line| !line.contains("le=\"")).collect();
        assert!(unknown.is_empty(), "vLLM has no {unknown:?}");
        // What nobody who routes looks at: when a series began, and what the engine is made of.
        let passed_over = [
            "_created",
            "http_",
            "process_",
            "python_",
            "vllm:mm_cache",
            "vllm:estimated",
            "vllm:nixl_post",
            "vllm:nixl_bytes",
            "vllm:nixl_num_desc",
            "vllm:request_max_num",
            "le=\"",
        ];
        let missing: Vec<_> = theirs
            .difference(&ours)
            .filter(|line| !passed_over.iter().any(|part| line.contains(part)))
            .collect();
        assert!(missing.is_empty(), "the simulator lacks {missing:?}");
        server.stop().await;
    }
}

#[tokio::test]
async fn the_sources_of_events_have_the_shape_of_vllm() {
    let server = start(SimConfig { kv_events: events(), ..config() }).await;
    let ours = get(server.addr(), "/kv_event_sources").await;
    let theirs = Reply::parse(&captured("kv_event_sources.txt"));
    assert_eq!(skeleton(ours.text()), skeleton(theirs.text()));
    assert_eq!(ours.header("content-type"), theirs.header("content-type"));
    server.stop().await;
}
