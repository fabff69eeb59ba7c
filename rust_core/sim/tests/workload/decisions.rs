//! The gateway's own log.

use nebula_sim::workload::Workload;
use serde_json::{Value, json};

use super::{first_prompt, refusal};

const HASHES: [&str; 5] = [
    "00000000000000a1",
    "fffffffffffffff2",
    "00000000000000c3",
    "00000000000000d4",
    "00000000000000e5",
];

/// A line as the gateway writes it; `changes` replaces fields, and null takes them out.
fn line(changes: &Value) -> String {
    let mut entry = json!({
        "timestamp": "2026-03-01T10:00:01.500000Z", "level": "INFO", "message": "routing", "model": "tiny",
        "engine": "127.0.0.1:41", "rank": 0, "overlap": 0, "prompt": 1100, "cached": 0, "completion": 6, "cost": 1.5,
        "queue": 0, "candidates": 2, "attempts": 1, "status": 200, "ttft_ms": 3.1, "total_ms": 500.0,
        "path": "/v1/completions", "id": "x", "blocks": HASHES[..3].concat(), "block_tokens": 512.0,
        "target": "nebula.request",
    });
    let fields = entry.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
    entry.to_string()
}

fn read(lines: &[String]) -> Workload {
    Workload::decisions(lines.join("\n").as_bytes()).unwrap()
}

fn shared(workload: &Workload, a: usize, b: usize) -> usize {
    let (a, b) = (first_prompt(&workload.sessions[a]), first_prompt(&workload.sessions[b]));
    a.iter().zip(&b).take_while(|(a, b)| a == b).count()
}

#[test]
fn requests_come_when_they_came_and_share_what_they_shared() {
    let workload = read(&[
        line(&json!({})),
        r#"{"timestamp":"2026-03-01T10:00:01Z","level":"WARN","message":"engine is down","target":"nebula_wire"}"#.to_owned(),
        "3 log lines were left out: standard error is too slow".to_owned(),
        line(&json!({"timestamp": "2026-03-01T10:00:02Z", "total_ms": 1250.0, "completion": 9})),
        line(&json!({"timestamp": "2026-03-01T10:00:03Z", "prompt": 1600, "blocks": HASHES[..4].concat()})),
        line(&json!({"timestamp": "2026-03-01T10:00:04Z", "blocks": format!("{}{}", HASHES[0], HASHES[4]), "prompt": 700})),
    ]);
    let arrivals: Vec<u64> = workload.sessions.iter().map(|it| it.arrives / 1_000_000).collect();
    assert_eq!(arrivals, [0, 250, 1750, 2750], "the one that took longest came first");
    let outputs: Vec<u32> = workload.sessions.iter().map(|it| it.turns[0].output_tokens).collect();
    assert_eq!(outputs, [9, 6, 6, 6]);
    let lengths: Vec<usize> = workload.sessions.iter().map(|it| first_prompt(it).len()).collect();
    assert_eq!(lengths, [1100, 1100, 1600, 700]);
    assert_eq!(shared(&workload, 0, 1), 1100);
    assert_eq!(shared(&workload, 0, 2), 1100, "the shorter one begins the longer one");
    assert!((512..528).contains(&shared(&workload, 0, 3)));
    let keys: Vec<u64> = workload.sessions.iter().map(|it| it.key).collect();
    assert_eq!(keys, [0, 0, 0, 3]);
    assert_eq!(workload.notes, Vec::<String>::new());
}

#[test]
fn what_no_hash_stands_for_is_shared_with_nobody() {
    let tail = line(&json!({"blocks": HASHES[0], "prompt": 600}));
    let short = line(&json!({"blocks": "", "prompt": 20}));
    let workload = read(&[tail.clone(), tail, short.clone(), short]);
    assert!((512..528).contains(&shared(&workload, 0, 1)));
    assert!(shared(&workload, 2, 3) < 16);
    assert_eq!(first_prompt(&workload.sessions[2]).len(), 20);
}

#[test]
fn fractions_of_tokens_add_up_at_the_same_places() {
    let blocks: Vec<String> = (1..=200).map(|n| format!("{n:016x}")).collect();
    let long =
        line(&json!({"blocks": blocks.concat(), "block_tokens": 518.918, "prompt": 103_784}));
    let short =
        line(&json!({"blocks": blocks[..150].concat(), "block_tokens": 518.918, "prompt": 77_838}));
    let workload = read(&[long, short]);
    assert_eq!(shared(&workload, 0, 1), 77_838);
    assert_eq!(first_prompt(&workload.sessions[0]).len(), 103_784);
    let estimated = line(&json!({"prompt": 513}));
    assert_eq!(first_prompt(&read(&[estimated]).sessions[0]).len(), 513, "hashes may be too many");
}

#[test]
fn an_unknown_length_is_taken_as_the_usual_one() {
    let completions = [json!(4), json!(null), json!(400), json!(7)];
    let lines = completions.map(|completion| line(&json!({"completion": completion})));
    let workload = read(&lines);
    let outputs: Vec<u32> = workload.sessions.iter().map(|it| it.turns[0].output_tokens).collect();
    assert_eq!(outputs, [4, 7, 400, 7]);
    let note = "1 of 4 replies are of unknown length: taken as 7 tokens, the median of the others";
    assert_eq!(workload.notes, [note]);
    let why = refusal(Workload::decisions(lines[1].as_bytes()));
    assert!(why.starts_with("no request of the log has a `completion`"), "{why}");
}

#[test]
fn failures_and_lines_without_hashes_are_left_out_and_counted() {
    let workload = read(&[
        line(&json!({"status": 503})),
        line(&json!({"status": 499, "completion": null})),
        line(&json!({"blocks": null, "block_tokens": null})),
        line(&json!({})),
    ]);
    assert_eq!(workload.requests(), 1);
    assert_eq!(workload.notes.len(), 2);
    assert!(workload.notes[0].starts_with("2 requests did not end well"), "{:?}", workload.notes);
    assert!(workload.notes[1].starts_with("1 requests without hashes"), "{:?}", workload.notes);
}

#[test]
fn a_log_without_what_is_needed_says_what_to_set() {
    let cases = [
        (line(&json!({"blocks": null})), "set gateway.log_prompt_hashes = true"),
        (line(&json!({"status": 404})), "none of the 1 requests in the log ended well"),
        (
            "2026-03-01T10:00:01Z  INFO nebula.request: routing status=200".to_owned(),
            "set gateway.log_format = \"json\" and gateway.log_prompt_hashes = true",
        ),
        (r#"{"target":"nebula_wire"}"#.to_owned(), "set gateway.log_requests = true"),
    ];
    for (text, hint) in cases {
        let why = refusal(Workload::decisions(text.as_bytes()));
        assert!(why.contains(hint), "{why}");
    }
}

#[test]
fn what_is_wrong_is_named_with_line_and_field() {
    let cases = [
        (
            json!({"timestamp": "yesterday"}),
            "timestamp: must be a time such as 2026-01-31T12:00:00Z: ",
        ),
        (json!({"total_ms": -4.0}), "total_ms: must be at least 0, is -4"),
        (json!({"blocks": "abc"}), "blocks: must be hashes of 16 hexadecimal digits each"),
        (
            json!({"blocks": "+00000000000000a"}),
            "blocks: must be hashes of 16 hexadecimal digits each",
        ),
        (json!({"blocks": "é".repeat(8)}), "blocks: must be hashes of 16 hexadecimal digits each"),
        (
            json!({"block_tokens": null}),
            "block_tokens: must be at least 1 where there are blocks, is 0",
        ),
        (json!({"prompt": null}), "missing field `prompt`"),
        (json!({"prompt": "x"}), "prompt: invalid type: string \"x\", expected u32"),
    ];
    for (changes, reason) in cases {
        let text = format!("{}\n{}", line(&json!({})), line(&changes));
        let why = refusal(Workload::decisions(text.as_bytes()));
        assert!(why.starts_with(&format!("line 2: {reason}")), "{why}");
    }
}
