//! Runs against simulated engines, over real sockets.

use std::time::Duration;

use nebula_load::{Config, Endpoint, Error, Load, Pace, Report};
use nebula_sim::timing::Timing;
use nebula_sim::workload::{Message, Piece, Role, Session, Turn, Workload};
use nebula_sim::{Effect, EngineConfig, Fault, Server, SimConfig};
use serde_json::{Map, json};
use tokio::runtime::Runtime;

/// Longest that a run of this file may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine on a thread of its own.
struct Engine {
    runtime: Runtime,
    server: Server,
}

// === impl Engine ===

impl Engine {
    /// `step_us` microseconds per token of every reply.
    fn start(step_us: f64) -> Engine {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let engine = EngineConfig {
            block_size: 16,
            kv_blocks: 65_536,
            max_num_seqs: 256,
            max_num_batched_tokens: 8192,
            max_model_len: 32_768,
            timing: Timing {
                step_base_us: step_us,
                prefill_us_per_token: 0.0,
                prefill_ns_per_pair: 0.0,
                decode_us_per_seq: 0.0,
                decode_ns_per_resident_token: 0.0,
            },
        };
        let speed = if step_us > 0.0 { 1.0 } else { 0.0 };
        let config = SimConfig { speed, ..SimConfig::plain("127.0.0.1:0", "tiny", engine) };
        let server = runtime.block_on(Server::start(config)).expect("the engine starts");
        Engine { runtime, server }
    }

    fn url(&self) -> String {
        format!("http://{}", self.server.addr())
    }

    fn fault(&self, effect: Effect, count: Option<u32>) {
        self.server.set_fault(Some(Fault { effect, count }));
    }

    fn stop(self) {
        self.runtime.block_on(self.server.stop());
    }
}

fn config(url: &str) -> Config {
    Config {
        base_url: url.to_owned(),
        endpoint: Endpoint::Chat,
        path: "/v1/chat/completions".to_owned(),
        headers: Vec::new(),
        session_header: None,
        model: "tiny".to_owned(),
        body: Map::new(),
        stream: true,
        ignore_eos: true,
        checksum: true,
        pace: Pace::AtOnce,
        max_concurrency: None,
        timeout_ms: 20_000,
        connect_timeout_ms: 5_000,
        ready_timeout_ms: 0,
        warmups: 0,
        percentiles: vec![99.0],
        seed: 1,
    }
}

/// `sessions` conversations of `turns` turns, each of `prompt` words and a reply of `output` tokens.
fn workload(sessions: u64, turns: u64, prompt: u32, output: u32) -> Workload {
    let turn = |seed| Turn {
        messages: vec![Message::new(Role::User, Piece::Words { seed, tokens: prompt })],
        output_tokens: output,
        think: 0,
    };
    let session = |key| {
        let turns = (0..turns).map(|number| turn(key * 1_000 + number)).collect();
        Session { arrives: 0, key, turns }
    };
    let sessions = (0..sessions).map(session).collect();
    Workload { name: "test".to_owned(), sessions, notes: Vec::new() }
}

fn play(config: Config, workload: Workload) -> Report {
    let load = Load::start(config, workload).expect("it starts");
    load.wait(PATIENCE).expect("it ends in time").expect("a report")
}

#[test]
fn every_reply_is_checked_and_counted() {
    let engine = Engine::start(0.0);
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let path = match endpoint {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
        };
        let config = Config { endpoint, path: path.to_owned(), ..config(&engine.url()) };
        let report = play(config, workload(40, 1, 64, 10));
        assert_eq!((report.completed, report.failed, report.skipped), (40, 0, 0));
        assert_eq!((report.verified, report.output_tokens, report.chunks), (40, 400, 400));
        assert_eq!(report.with_usage, 40);
        assert!(report.prompt_tokens >= 40 * 64);
        let counts = ["ttft", "tpot", "e2el", "itl"].map(|name| report.metrics[name].count);
        assert_eq!(counts, [40, 40, 40, 40 * 9]);
        assert_eq!(report.itl.count.iter().sum::<u64>(), 40 * 9);
        assert_eq!(report.requests.ttft_us.iter().flatten().count(), 40);
    }
    engine.stop();
}

#[test]
fn a_whole_reply_has_an_end_and_no_first_token() {
    let engine = Engine::start(0.0);
    let config = Config { stream: false, checksum: false, ..config(&engine.url()) };
    let report = play(config, workload(20, 1, 64, 10));
    assert_eq!((report.completed, report.output_tokens), (20, 200));
    assert!(!report.metrics.contains_key("ttft"));
    assert_eq!(report.metrics["e2el"].count, 20);
    engine.stop();
}

#[test]
fn a_conversation_carries_what_the_engine_said() {
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        for stream in [true, false] {
            let engine = Engine::start(0.0);
            let path = match endpoint {
                Endpoint::Chat => "/v1/chat/completions",
                Endpoint::Completions => "/v1/completions",
            };
            let config = Config {
                endpoint,
                path: path.to_owned(),
                stream,
                checksum: stream,
                pace: Pace::Users { users: 2 },
                ..config(&engine.url())
            };
            let report = play(config, workload(4, 3, 160, 160));
            assert_eq!((report.completed, report.failed), (12, 0));
            // A turn finds the prompt and the reply of the turn before it in the cache, but for their last block: that
            // is so only if the reply is sent back as it came.
            let turns = report.requests.turn.iter().zip(&report.requests.cached_tokens);
            for (&turn, &cached) in turns {
                let known = turn * 320;
                let cached = cached.unwrap();
                assert!(cached + 32 > known && cached <= known + 100, "turn {turn}: {cached}");
            }
            engine.stop();
        }
    }
}

#[test]
fn faults_are_told_by_kind() {
    let cases = [
        (Effect::Reset, "reset"),
        (Effect::Status { status: 503 }, "status_503"),
        (Effect::DieMidStream { after_chunks: 3 }, "cut"),
        (Effect::HangMidStream { after_chunks: 3 }, "timeout"),
    ];
    for (effect, kind) in cases {
        let engine = Engine::start(0.0);
        engine.fault(effect, Some(3));
        let config =
            Config { timeout_ms: 1_000, pace: Pace::Users { users: 1 }, ..config(&engine.url()) };
        let report = play(config, workload(10, 2, 32, 8));
        let told: Vec<_> =
            report.errors.iter().map(|(kind, it)| (kind.as_str(), it.count)).collect();
        assert_eq!(told, [(kind, 3)]);
        assert!(!report.errors[kind].example.is_empty());
        // The second turn of a failed first one is not asked.
        assert_eq!((report.completed, report.failed, report.skipped), (14, 3, 3));
        engine.stop();
    }
}

#[test]
fn nobody_there_is_told() {
    let engine = Engine::start(0.0);
    let url = engine.url();
    engine.stop();
    let report = play(config(&url), workload(5, 1, 8, 2));
    assert_eq!(report.errors["connect"].count, 5);
    assert!(report.metrics.keys().all(|&name| name == "generator_lag"));
    let waits = Config { ready_timeout_ms: 500, ..config(&url) };
    let load = Load::start(waits, workload(5, 1, 8, 2)).unwrap();
    let error = load.wait(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
    assert_eq!(load.progress().sent, 0);
}

#[test]
fn a_stall_is_charged_to_all_that_should_have_been_asked() {
    // Ten requests are due every 20 ms; one of them holds the only place for a second.
    let engine = Engine::start(0.0);
    engine.fault(Effect::Hang, Some(1));
    let config = Config {
        pace: Pace::Rate { per_second: 50.0, burstiness: None },
        max_concurrency: Some(1),
        timeout_ms: 1_000,
        ..config(&engine.url())
    };
    let report = play(config, workload(11, 1, 8, 2));
    assert_eq!((report.completed, report.failed), (10, 1));
    let (meant, sent) = (&report.metrics["ttft"], &report.metrics["ttft_from_send"]);
    // The last one should have been sent 200 ms after the first: it waited for at least 800 ms.
    assert!(meant.min > 700.0, "{meant:?}");
    assert!(sent.max < 300.0, "{sent:?}");
    assert!(report.metrics["client_queue_time"].min > 700.0);
    engine.stop();
}

#[test]
fn requests_are_sent_when_they_are_due() {
    let engine = Engine::start(0.0);
    let pace = Pace::Rate { per_second: 200.0, burstiness: None };
    let report = play(Config { pace, ..config(&engine.url()) }, workload(100, 1, 8, 2));
    let mut starts = report.requests.start_us.clone();
    starts.sort_unstable();
    assert_eq!(starts, (1..=100).map(|i| i * 5_000).collect::<Vec<_>>());
    assert!(report.duration_s >= 0.5);
    assert!(report.metrics["generator_lag"].median < 5.0);
    engine.stop();
}

#[test]
fn users_ask_one_after_another() {
    let engine = Engine::start(2_000.0);
    let pace = Pace::Users { users: 3 };
    let report = play(Config { pace, ..config(&engine.url()) }, workload(12, 1, 8, 5));
    assert_eq!((report.completed, report.peak_inflight), (12, 3));
    // Four rounds of five steps of 2 ms.
    assert!(report.duration_s >= 0.04, "{}", report.duration_s);
    let tpot = report.metrics["tpot"].median;
    assert!(tpot > 1.0, "{tpot}");
    engine.stop();
}

#[test]
fn it_stops_when_told_to_and_keeps_what_it_has() {
    let engine = Engine::start(0.0);
    let pace = Pace::Rate { per_second: 100.0, burstiness: Some(1.0) };
    let load =
        Load::start(Config { pace, ..config(&engine.url()) }, workload(100_000, 1, 8, 2)).unwrap();
    assert_eq!(load.progress().requests, 100_000);
    while load.progress().completed < 5 {
        assert!(load.wait(Duration::from_millis(10)).is_none());
    }
    load.stop();
    let report = load.wait(PATIENCE).unwrap().unwrap();
    assert!(report.stopped);
    assert!((5..100_000).contains(&report.completed));
    assert!(matches!(load.wait(PATIENCE), Some(Err(Error::Lost))), "a report is given once");
    engine.stop();
}

#[test]
fn warm_ups_come_first_and_do_not_count() {
    let engine = Engine::start(0.0);
    let config = Config { warmups: 7, ready_timeout_ms: 5_000, ..config(&engine.url()) };
    let report = play(config.clone(), workload(5, 1, 64, 2));
    assert_eq!((report.completed, report.cached_tokens, report.failed_warmups), (5, 0, 0));
    engine.fault(Effect::Status { status: 500 }, Some(2));
    let config = Config { ready_timeout_ms: 0, ..config };
    assert_eq!(play(config, workload(5, 1, 64, 2)).failed_warmups, 2);
    engine.stop();
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let refused = |change: fn(&mut Config)| {
        let mut config = config("http://127.0.0.1:1");
        change(&mut config);
        Load::start(config, workload(1, 1, 8, 2)).err().map(|error| error.to_string()).unwrap()
    };
    assert!(refused(|it| it.base_url = "127.0.0.1:80".to_owned()).starts_with("base_url"));
    let secret = refused(|it| it.base_url = "http://user:secret@host".to_owned());
    assert!(secret.starts_with("base_url") && !secret.contains("secret"));
    let secret = refused(|it| it.headers = vec![("x-key".to_owned(), "se\ncret".to_owned())]);
    assert!(secret.contains("x-key") && !secret.contains("cret"), "{secret}");
    assert!(refused(|it| drop(it.body.insert("stream".to_owned(), json!(1)))).contains("stream"));
    assert!(refused(|it| drop(it.body.insert("n".to_owned(), json!(2)))).contains("n must be 1"));
    assert!(refused(|it| it.stream = false).starts_with("checksum"));
    assert!(refused(|it| it.pace = Pace::Users { users: 0 }).starts_with("pace.users"));
    let empty = Load::start(config("http://127.0.0.1:1"), workload(0, 1, 8, 2)).err().unwrap();
    assert!(matches!(empty, Error::NoRequest));
}

#[test]
fn a_document_describes_a_run() {
    let engine = Engine::start(0.0);
    let document = |sessions: usize, extra: &str| {
        let source = json!({"workload": {"kind": "mooncake", "tokens_per_id": 512}, "seed": 0, "sessions": sessions,
            "output_tokens": 3, "speed": 2.0});
        let run = json!({"base_url": engine.url(), "endpoint": "completions", "path": "/v1/completions", "headers": [],
            "session_header": null, "model": "tiny", "body": {"temperature": 0}, "stream": true, "ignore_eos": true,
            "checksum": true, "pace": {"kind": "trace"}, "max_concurrency": null, "timeout_ms": 9000,
            "connect_timeout_ms": 1000, "ready_timeout_ms": 0, "warmups": 0, "percentiles": [50.0], "seed": 0});
        json!({"run": run, "source": source})
            .to_string()
            .replace("\"warmups\"", &format!("{extra}\"warmups\""))
    };
    let line = |ms: u32, ids: &str| {
        format!(
            "{{\"timestamp\":{ms},\"input_length\":600,\"output_length\":9,\"hash_ids\":{ids}}}\n"
        )
    };
    let trace = [line(0, "[1,2]"), line(100, "[1,3]"), line(200, "[4,5]")].concat();
    let load = Load::from_json(document(2, "").as_bytes(), Some(trace.as_bytes())).unwrap();
    let report = load.wait_json(PATIENCE).unwrap().expect("it ends in time");
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!((&report["completed"], &report["output_tokens"]), (&json!(2), &json!(6)));
    assert_eq!(report["requests"]["start_us"], json!([0, 50_000]));
    assert_eq!(report["requests"]["cached_tokens"], json!([0, 512]));
    assert_eq!(report["notes"], json!(["the first 2 of 3 sessions are played"]));
    let refused = |document: String, trace: Option<&[u8]>| {
        Load::from_json(document.as_bytes(), trace).err().map(|error| error.to_string()).unwrap()
    };
    let unknown = refused(document(2, "\"warm_ups\":1,"), Some(trace.as_bytes()));
    assert!(unknown.contains("unknown field `warm_ups`"), "{unknown}");
    assert!(refused(document(2, ""), Some(b"{}")).contains("timestamp"));
    assert!(refused(document(2, ""), None).contains("trace"));
    engine.stop();
}
