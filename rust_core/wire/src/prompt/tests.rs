use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::Kind;
use crate::config::TokensConfig;

mod exact;

fn router() -> Router {
    let config = serde_json::json!({
        "policy": "kv", "text_block_bytes": 64, "token_block_tokens": 16, "bytes_per_token": 4.0,
        "tree_max_bytes": 1 << 20, "route_ttl_ms": 1000, "event_route_ttl_ms": 5_000, "cpu_credit": 0.75, "storage_credit": 0.25, "uncached_weight": 1.0, "decode_request_tokens": 1.0,
        "decode_resident_weight": 0.0, "pressure_tokens": 0.0, "pressure_start": 0.9,
        "breaker_failures": 5, "breaker_open_ms": 1000,
    });
    Router::new(serde_json::from_value(config).unwrap(), 1).unwrap()
}

fn config(trust_kv_transfer_params: bool) -> Config {
    Config {
        connect_timeout_ms: 1,
        first_byte_timeout_ms: 1,
        idle_timeout_ms: 1,
        pool_idle_ms: 1,
        pool_per_engine: 1,
        retries: 0,
        prefill_tokens_per_second: 1.0,
        probe_interval_ms: 1,
        probe_timeout_ms: 1,
        facts_interval_ms: 1,
        ca_file: None,
        max_inflight: 1,
        fronts_routers: false,
        trust_kv_transfer_params,
        log_requests: false,
        log_prompt_hashes: false,
        tokens: TokensConfig {
            model_assets: HashMap::new(),
            read_engine_root: false,
            segment_cache_bytes: 0,
            tokenize_cache_bytes: 0,
            tokenize_timeout_ms: 1,
            forward_tokens: true,
        },
        ask_usage: true,
        events: None,
        decisions_kept: 0,
        seed: 0,
    }
}

fn aliases() -> Aliases {
    HashMap::from([("fast".to_owned(), "tiny".to_owned())])
}

fn at(path: &str) -> Endpoint {
    Endpoint::find(path).unwrap()
}

fn read_at(path: &str, body: &str) -> Result<Prompt, Error> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    read_with(&config(false), path, &HeaderMap::new(), body)
}

fn read_with(
    config: &Config,
    path: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Prompt, Error> {
    let (router, models, aliases) = (router(), Models::new(0), aliases());
    let reader = Reader {
        config,
        aliases: &aliases,
        router: &router,
        models: &models,
        new_bytes: usize::MAX,
    };
    read(at(path), headers, body, &reader)
}

fn chat(messages: &serde_json::Value) -> Prompt {
    let body = serde_json::json!({"model": "tiny", "messages": messages}).to_string();
    read_at("/v1/chat/completions", &body).unwrap()
}

fn refused(path: &str, body: &str) -> Error {
    let error = read_at(path, body).unwrap_err();
    assert_eq!(error.kind, Kind::BadRequest, "{error}");
    error
}

#[test]
fn an_untouched_body_is_sent_as_it_came() {
    let body = r#"{ "model":"tiny", "messages":[], "n":1.50, "unknown":{"b":1,"a":1e3} }"#;
    assert_eq!(read_at("/v1/chat/completions", body).unwrap().body, body);
}

#[test]
fn an_alias_is_resolved_in_the_body_and_for_routing() {
    let prompt = read_at("/v1/completions", r#"{"model":"fast","prompt":"x"}"#).unwrap();
    assert_eq!(prompt.model, "tiny");
    assert_eq!(prompt.body, r#"{"model":"tiny","prompt":"x"}"#);
}

#[test]
fn kv_transfer_params_go_unless_they_are_trusted() {
    let body =
        r#"{"model":"fast","prompt":"x","kv_transfer_params":{"do_remote_prefill":true},"n":1}"#;
    assert_eq!(
        read_at("/v1/completions", body).unwrap().body,
        r#"{"model":"tiny","prompt":"x","n":1}"#
    );
    let hidden = r#"{"model":"tiny","prompt":"x","vllm_xargs":{"kv_transfer_params":"y","a":1}}"#;
    let sent = read_at("/v1/completions", hidden).unwrap().body;
    assert_eq!(sent, r#"{"model":"tiny","prompt":"x","vllm_xargs":{"a":1}}"#);
    let owned = Bytes::copy_from_slice(body.as_bytes());
    let trusted = read_with(&config(true), "/v1/completions", &HeaderMap::new(), owned).unwrap();
    assert_eq!(trusted.body, body.replace("fast", "tiny"));
}

#[test]
fn a_later_turn_continues_the_chain_of_the_one_before() {
    let system = serde_json::json!({"role": "system", "content": "s".repeat(200)});
    let user = serde_json::json!({"role": "user", "content": "u".repeat(300)});
    let reply = serde_json::json!({"role": "assistant", "content": "a".repeat(100)});
    let first = chat(&serde_json::json!([system, user]));
    let second = chat(&serde_json::json!([system, user, reply, user]));
    assert_eq!(first.key.chain().hashes().len(), 8);
    assert!(second.key.chain().hashes().starts_with(first.key.chain().hashes()));
    assert!(second.key.chain().hashes().len() > first.key.chain().hashes().len());
}

#[test]
fn text_is_the_same_as_one_part_and_however_it_is_escaped() {
    let text = "é\n\"quoted\" ".repeat(20);
    let plain = chat(&serde_json::json!([{"role": "user", "content": text}]));
    let parts =
        chat(&serde_json::json!([{"role": "user", "content": [{"type": "text", "text": text}]}]));
    let escaped = serde_json::to_string(&text).unwrap().replace('é', "\\u00e9");
    let body =
        format!(r#"{{"messages": [ {{"content": {escaped}, "role": "user"}} ], "model": "tiny"}}"#);
    let escaped = read_at("/v1/chat/completions", &body).unwrap();
    assert!(!plain.key.chain().hashes().is_empty());
    assert_eq!(plain.key.chain().hashes(), parts.key.chain().hashes());
    assert_eq!(plain.key.chain().hashes(), escaped.key.chain().hashes());
}

#[test]
fn salt_model_and_tools_are_part_of_the_key() {
    let body = |extra: &str| {
        format!(
            r#"{{"model":"tiny","messages":[{{"role":"user","content":"{}"}}]{extra}}}"#,
            "x".repeat(100)
        )
    };
    let key = |extra: &str| {
        read_at("/v1/chat/completions", &body(extra)).unwrap().key.chain().hashes()[0]
    };
    let plain = key("");
    assert_eq!(plain, key(r#","temperature":1"#));
    assert_ne!(plain, key(r#","cache_salt":"a""#));
    assert_ne!(plain, key(r#","tools":[{"type":"function"}]"#));
    let other_model = body("").replace("tiny", "large");
    assert_ne!(
        plain,
        read_at("/v1/chat/completions", &other_model).unwrap().key.chain().hashes()[0]
    );
}

#[test]
fn prompts_are_text_or_tokens_or_the_first_of_a_list() {
    let chain = |prompt: &str| {
        let body = format!(r#"{{"model":"tiny","prompt":{prompt}}}"#);
        read_at("/v1/completions", &body).unwrap().key.chain().clone()
    };
    let tokens = format!("{:?}", (0..64).collect::<Vec<u32>>());
    assert_eq!(chain(&tokens).hashes().len(), 4);
    assert_eq!(chain(&tokens).prompt_tokens(), 64);
    let batch = chain(&format!("[{tokens}, {tokens}, {tokens}]"));
    assert_eq!(batch.hashes(), chain(&tokens).hashes());
    assert!(batch.prompt_tokens() > 64, "a batch is as much work as all of its prompts");
    let text = format!("\"{}\"", "t".repeat(640));
    assert_eq!(chain(&text).hashes().len(), 10);
    assert_eq!(chain(&format!("[{text}, \"other\"]")).hashes(), chain(&text).hashes());
    assert!(chain("[]").hashes().is_empty());
}

#[test]
fn a_responses_input_is_keyed_like_the_conversation_that_it_is() {
    let text = "i".repeat(200);
    let items = format!(
        r#"{{"model":"tiny","input":[{{"role":"user","content":[{{"type":"input_text","text":"{text}"}}]}}]}}"#
    );
    assert!(read_at("/v1/responses", &items).unwrap().key.chain().hashes().len() >= 3);
    let plain = format!(r#"{{"model":"tiny","input":"{text}"}}"#);
    assert_eq!(read_at("/v1/responses", &plain).unwrap().key.chain().hashes().len(), 3);
}

#[test]
fn the_session_is_the_header_or_a_field() {
    let session = |body: &str| read_at("/v1/completions", body).unwrap().session;
    assert_eq!(session(r#"{"model":"tiny","prompt":"x","user":"u"}"#).as_deref(), Some("u"));
    assert_eq!(
        session(r#"{"model":"tiny","prompt":"x","user":"u","session_id":"s"}"#).as_deref(),
        Some("s")
    );
    let mut headers = HeaderMap::new();
    headers.insert(net::SESSION_ID, "h".parse().unwrap());
    let body = Bytes::from_static(br#"{"model":"tiny","prompt":"x","session_id":"s"}"#);
    let prompt = read_with(&config(false), "/v1/completions", &headers, body).unwrap();
    assert_eq!(prompt.session.as_deref(), Some("h"));
}

#[test]
fn a_refusal_names_the_field_and_what_would_be_right() {
    let chat = "/v1/chat/completions";
    assert!(refused(chat, "").message.contains("empty"));
    assert!(refused(chat, "{\"model\":").message.contains("not valid JSON"));
    assert!(refused(chat, "[1]").message.contains("not a JSON object"));
    assert!(
        refused(chat, r#"{"model":"tiny","messages":[]} x"#)
            .message
            .contains("after the JSON object")
    );
    assert_eq!(refused(chat, r#"{"model":5,"messages":[]}"#).param.as_deref(), Some("model"));
    assert_eq!(refused(chat, r#"{"model":"tiny"}"#).param.as_deref(), Some("messages"));
    assert_eq!(
        refused(chat, r#"{"model":"tiny","messages":"x"}"#).param.as_deref(),
        Some("messages")
    );
    assert_eq!(
        refused(chat, r#"{"model":"tiny","messages":[5]}"#).param.as_deref(),
        Some("messages[0]")
    );
    assert_eq!(refused("/v1/completions", r#"{"model":"tiny"}"#).param.as_deref(), Some("prompt"));
    assert_eq!(refused(chat, r#"{"messages":[]}"#).param.as_deref(), Some("model"));
    let secret = refused(chat, r#"{"model":"tiny","messages":"secret, expected nothing"}"#);
    assert!(
        !secret.message.contains("secret") && secret.message.contains("must be a list"),
        "{secret}"
    );
    let body = Bytes::from_static(b"{\"model\":\"\xff\"}");
    let error = read_with(&config(false), chat, &HeaderMap::new(), body).unwrap_err();
    assert!(error.message.contains("not UTF-8: invalid byte at 10"), "{error}");
}

proptest! {
    /// No body crashes the reader, and what it takes it sends on as valid JSON.
    #[test]
    fn any_body_is_read_or_refused(body in ".{0,200}", path in 0..crate::endpoint::ENDPOINTS.len()) {
        let path = crate::endpoint::ENDPOINTS[path].path;
        let _ = read_with(&config(false), path, &HeaderMap::new(), body.into_bytes().into());
    }

    #[test]
    fn what_remains_after_an_edit_is_the_same_document(extra in "[a-z\"\\\\{}:, ]{0,20}", first: bool, spaced: bool) {
        let text = serde_json::to_string(&extra).unwrap();
        let gap = if spaced { " \n" } else { "" };
        let params = format!(r#""kv_transfer_params"{gap}:{gap}{{"x":{text}}}"#);
        let rest = format!(r#""model"{gap}:"fast"{gap},"prompt":{text}"#);
        let body = if first { format!("{{{params}{gap},{gap}{rest}}}") } else { format!("{{{rest}{gap},{gap}{params}}}") };
        let sent = read_at("/v1/completions", &body).unwrap().body;
        let sent: serde_json::Value = serde_json::from_slice(&sent).unwrap();
        prop_assert_eq!(sent, serde_json::json!({"model": "tiny", "prompt": extra}));
    }
}

#[test]
fn media_are_part_of_the_key_and_not_of_the_length() {
    let image = |data: &str| {
        let url = format!("data:image/png;base64,{}", data.repeat(10_000));
        let text = serde_json::json!({"type": "text", "text": "t".repeat(100)});
        let image = serde_json::json!({"type": "image_url", "image_url": {"url": url}});
        chat(&serde_json::json!([{"role": "user", "content": [image, text]}]))
    };
    let (one, other) = (image("A"), image("B"));
    assert!(one.key.chain().prompt_tokens() < 100);
    assert_ne!(one.key.chain().hashes(), other.key.chain().hashes());
}

#[test]
fn a_model_name_is_bounded() {
    let body = format!(r#"{{"model":"{}","messages":[]}}"#, "m".repeat(10_000));
    let error = refused("/v1/chat/completions", &body);
    assert!(error.message.len() < 100, "{}", error.message.len());
}

#[test]
fn a_stream_asks_for_usage_that_its_client_does_not_get() {
    let prompt =
        read_at("/v1/completions", r#"{"model":"fast","prompt":"x","stream":true}"#).unwrap();
    assert!(prompt.strips_usage);
    assert_eq!(
        prompt.body,
        r#"{"model":"tiny","prompt":"x","stream":true,"stream_options":{"include_usage":true}}"#
    );
    let asked =
        r#"{"model":"tiny","prompt":"x","stream":true,"stream_options":{"include_usage":true}}"#;
    assert!(!read_at("/v1/completions", asked).unwrap().strips_usage);
    let whole = read_at("/v1/completions", r#"{"model":"tiny","prompt":"x"}"#).unwrap();
    assert!(!whole.strips_usage);
}
