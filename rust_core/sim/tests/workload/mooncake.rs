//! Mooncake's traces.

use nebula_sim::workload::{TOKENS_PER_ID, Workload};
use serde_json::{Value, json};

use super::{first_prompt, prompts, refusal};

const HEAD: &[u8] = include_bytes!("../data/conversation_head.jsonl");

fn read(text: &str) -> Workload {
    Workload::mooncake(text.as_bytes(), TOKENS_PER_ID).unwrap()
}

fn line(timestamp: u64, hash_ids: &[u64]) -> String {
    let input_length = hash_ids.len() * 512 - 5;
    json!({"timestamp": timestamp, "input_length": input_length, "output_length": 9, "hash_ids": hash_ids}).to_string()
}

fn keys(chains: &[&[u64]]) -> Vec<u64> {
    let lines: Vec<String> = chains.iter().zip(0..).map(|(ids, at)| line(at, ids)).collect();
    read(&lines.join("\n")).sessions.iter().map(|session| session.key).collect()
}

#[test]
fn prompts_share_exactly_what_their_ids_share() {
    let rows: Vec<Value> = HEAD
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let workload = Workload::mooncake(HEAD, TOKENS_PER_ID).unwrap();
    assert_eq!((workload.requests(), workload.sessions.len(), rows.len()), (50, 50, 50));
    assert_eq!(workload.notes, Vec::<String>::new());
    let total = |field| rows.iter().map(|row: &Value| row[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(workload.prompt_tokens(), total("input_length"));
    assert_eq!(workload.output_tokens(), total("output_length"));

    let ids = |row: &Value| row["hash_ids"].as_array().unwrap().clone();
    let prompts: Vec<Vec<u32>> = workload.sessions.iter().map(first_prompt).collect();
    let both = |a: usize, b: usize| {
        let shared = ids(&rows[a]).iter().zip(&ids(&rows[b])).take_while(|(a, b)| a == b).count();
        let equal = prompts[a].iter().zip(&prompts[b]).take_while(|(a, b)| a == b).count();
        let most = (shared * 512).min(prompts[a].len()).min(prompts[b].len());
        // The first words behind may be equal by chance.
        assert!(
            (most..most + 16).contains(&equal),
            "{a} and {b} share {shared} ids and {equal} tokens"
        );
    };
    (0..50).for_each(|a| (0..a).for_each(|b| both(a, b)));
    for (row, session) in rows.iter().zip(&workload.sessions) {
        assert_eq!(session.arrives, row["timestamp"].as_u64().unwrap() * 1_000_000);
    }
}

#[test]
fn another_size_of_blocks_and_fractions_of_a_millisecond() {
    let text = br#"{"timestamp":1.25,"input_length":33,"output_length":1,"hash_ids":[5,6,7],"type":"text"}"#;
    let workload = Workload::mooncake(text, 16).unwrap();
    let lengths: Vec<u64> = workload.sessions[0].turns[0].messages[0]
        .pieces
        .iter()
        .map(nebula_sim::workload::Piece::token_count)
        .collect();
    assert_eq!(lengths, [16, 16, 1]);
    assert_eq!(refusal(Workload::mooncake(text, 0)), "tokens_per_id: must be at least 1");
}

#[test]
fn lines_are_sorted_and_time_counts_from_the_first() {
    let lines = [line(70, &[1]), String::new(), line(50, &[2]), line(70, &[3]), line(60, &[4])];
    let workload = read(&lines.join("\r\n"));
    let arrivals: Vec<u64> = workload.sessions.iter().map(|session| session.arrives).collect();
    assert_eq!(arrivals, [0, 10_000_000, 20_000_000, 20_000_000]);
    let prompt = |ids: &[u64]| first_prompt(&read(&line(0, ids)).sessions[0]);
    let order: Vec<Vec<u32>> = workload.sessions.iter().map(first_prompt).collect();
    assert_eq!(order, [prompt(&[2]), prompt(&[4]), prompt(&[1]), prompt(&[3])]);
}

#[test]
fn a_request_that_extends_another_belongs_to_its_conversation() {
    let keys =
        keys(&[&[0, 1, 2], &[0, 3], &[0, 1, 4, 5], &[0, 1, 4, 6], &[0], &[0, 3, 7], &[0, 8]]);
    assert_eq!(keys, [0, 1, 0, 0, 4, 1, 6]);
}

#[test]
fn a_prompt_that_many_share_makes_no_conversation() {
    let chains: Vec<Vec<u64>> = (0..30).map(|n| vec![0, 1, 2, 100 + n, 200 + n]).collect();
    let mut chains: Vec<&[u64]> = chains.iter().map(Vec::as_slice).collect();
    let next = [0, 1, 2, 107, 300, 301];
    chains.push(&next);
    let keys = keys(&chains);
    assert_eq!(keys[..30], (0..30).collect::<Vec<u64>>());
    assert_eq!(keys[30], 7);
}

#[test]
fn a_reply_of_no_length_gets_a_token_and_a_note() {
    let text = r#"{"timestamp":0,"input_length":3,"output_length":0,"hash_ids":[5]}"#;
    let workload = read(text);
    assert_eq!(workload.sessions[0].turns[0].output_tokens, 1);
    assert_eq!(workload.notes, ["1 requests have output_length 0: their replies get one token"]);
    assert_eq!(prompts(&workload.sessions[0])[0].len(), 3);
}

#[test]
fn what_is_wrong_is_named_with_line_and_field() {
    let right = line(0, &[1]);
    let cases = [
        (
            r#"{"timestamp":0,"input_length":512,"output_length":1,"hash_ids":[1,2]}"#,
            "input_length: must be 513 to 1024 for 2 hash_ids of 512 tokens, is 512",
        ),
        (
            r#"{"timestamp":0,"input_length":1025,"output_length":1,"hash_ids":[1,2]}"#,
            "input_length: must be 513 to 1024 for 2 hash_ids of 512 tokens, is 1025",
        ),
        (
            r#"{"timestamp":0,"input_length":0,"output_length":1,"hash_ids":[]}"#,
            "hash_ids: must hold at least one id",
        ),
        (
            r#"{"timestamp":-1,"input_length":1,"output_length":1,"hash_ids":[1]}"#,
            "timestamp: must be 0 to 10000000000000 ms, is -1",
        ),
        (
            r#"{"timestamp":0,"input_length":"many","output_length":1,"hash_ids":[1]}"#,
            "input_length: invalid type: string \"many\", expected u32",
        ),
        (
            r#"{"timestamp":0,"input_length":1,"output_length":-3,"hash_ids":[1]}"#,
            "output_length: invalid value: integer `-3`, expected u32",
        ),
        (
            r#"{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[1,null]}"#,
            "hash_ids[1]: invalid type: null, expected u64",
        ),
        (r#"{"timestamp":0,"input_length":1,"output_length":1}"#, "missing field `hash_ids`"),
        (
            r#"{"timestamp":0,"input_length":1,"#,
            "is not valid JSON: EOF while parsing a value at column 32",
        ),
        ("[0,1,1,[1]]", "is no JSON object"),
    ];
    for (wrong, reason) in cases {
        let text = format!("{right}\n\n{wrong}\n{right}");
        let why = refusal(Workload::mooncake(text.as_bytes(), TOKENS_PER_ID));
        assert_eq!(why, format!("line 3: {reason}"));
    }
    assert_eq!(refusal(Workload::mooncake(b" \n", TOKENS_PER_ID)), "the trace holds no request");
}
