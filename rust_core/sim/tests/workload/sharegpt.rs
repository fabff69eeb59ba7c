//! Recorded chats.

use nebula_sim::token;
use nebula_sim::workload::{Pace, Role, Turn, Workload};
use serde_json::json;

use super::{prompts, refusal};

const PACE: Pace = Pace { rate_per_s: 2.0, think_s: 5.0, seed: 7 };

fn read(chats: &serde_json::Value) -> Workload {
    Workload::sharegpt(chats.to_string().as_bytes(), &PACE).unwrap()
}

fn said(turn: &Turn) -> Vec<(Role, String)> {
    let said = turn.messages.iter().map(|message| {
        let mut text = String::new();
        message.text(&mut text);
        (message.role, text)
    });
    said.collect()
}

#[test]
fn each_answered_question_is_a_turn() {
    let workload = read(&json!([
        {"id": "a", "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "Because of the rain."},
            {"from": "human", "value": " And now?"},
            {"from": "gpt", "value": ""},
            {"from": "human", "value": "Never answered"},
        ]},
        {"messages": [
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Hi"},
            {"role": "user", "content": "What time?"},
            {"role": "assistant", "content": null},
            {"role": "tool", "content": "noon"},
            {"role": "assistant", "content": "It is noon."},
        ]},
        {"conversations": [{"from": "gpt", "value": "Talks alone"}]},
        {"conversations": []},
    ]));
    assert_eq!(workload.requests(), 4);
    assert_eq!(workload.notes, ["2 chats without an answered question are left out"]);
    let [chat, tools] = &workload.sessions[..] else {
        panic!("{} sessions", workload.sessions.len())
    };
    let text = |role, text: &str| (role, text.to_owned());
    assert_eq!(
        said(&chat.turns[0]),
        [text(Role::System, "\nBe brief."), text(Role::User, "\nWhy?")]
    );
    assert_eq!(said(&chat.turns[1]), [text(Role::User, " And now?")]);
    let outputs: Vec<u32> = chat.turns.iter().map(|turn| turn.output_tokens).collect();
    let reply = "Because of the rain.";
    assert_eq!(outputs, [u32::try_from(token::count(reply)).unwrap(), 1]);
    assert_eq!(
        said(&tools.turns[0]),
        [
            text(Role::Assistant, "\nHello"),
            text(Role::User, "\nHi"),
            text(Role::User, "\nWhat time?")
        ]
    );
    assert_eq!(said(&tools.turns[1]), [text(Role::Tool, "\nnoon")]);
    assert_ne!(chat.key, tools.key);
}

#[test]
fn the_text_of_a_prompt_has_its_tokens() {
    let chats = json!([{"conversations": [
        {"from": "human", "value": "Größe\n\nxyz"},
        {"from": "human", "value": "abc"},
        {"from": "gpt", "value": "ok"},
    ]}]);
    let workload = read(&chats);
    let text: String =
        said(&workload.sessions[0].turns[0]).into_iter().map(|(_, text)| text).collect();
    let mut tokens = Vec::new();
    token::encode(&text, &mut tokens);
    assert_eq!(prompts(&workload.sessions[0])[0], tokens);
}

#[test]
fn one_chat_per_line_is_the_same_as_a_list() {
    let chat = |question: &str| json!({"conversations": [{"from": "user", "value": question}, {"from": "assistant", "value": "a b"}]});
    let lines = format!("{}\n\n{}\n", chat("one"), chat("two"));
    let workload = Workload::sharegpt(lines.as_bytes(), &PACE).unwrap();
    assert_eq!(workload, read(&json!([chat("one"), chat("two")])));
}

#[test]
fn the_pace_gives_the_times() {
    let chat = json!({"conversations": [
        {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
        {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"},
    ]});
    let chats = json!(vec![chat; 4000]);
    let workload = read(&chats);
    assert_eq!(workload, read(&chats));
    assert!(workload.sessions.is_sorted_by_key(|session| session.arrives));
    let seconds = workload.span() as f64 / 1e9;
    assert!((seconds - 2000.0).abs() < 100.0, "4000 chats, 2 a second, took {seconds} s");
    let think = |turn: usize| workload.sessions.iter().map(|it| it.turns[turn].think).sum::<u64>();
    assert_eq!(think(0), 0);
    let mean = think(1) as f64 / 4000.0 / 1e9;
    assert!((mean - 5.0).abs() < 0.25, "{mean}");
    let other = Pace { seed: 8, ..PACE };
    assert_ne!(workload, Workload::sharegpt(chats.to_string().as_bytes(), &other).unwrap());
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let cases = [
        (
            r#"[{"conversations":[]},{"conversations":[{"from":"alien","value":"x"}]}]"#,
            "[1].conversations[0].from: must be human, gpt, system, tool, user or assistant, is \"alien\"",
        ),
        (
            r#"[{"conversations":[{"from":"human","value":7}]}]"#,
            "[0].conversations[0].value: invalid type: integer `7`, expected a string at line 1 column ",
        ),
        (
            r#"[{"conversations":[{"from":"human","text":"x"}]}]"#,
            "[0].conversations[0]: missing field `value`",
        ),
        (r#"[{"dialog":[]}]"#, "[0]: missing field `conversations`"),
        ("[{", "the file is not valid JSON: EOF while parsing an object at line 1 column 2"),
        ("", "the file is not valid JSON: EOF"),
        ("[]", "no chat holds a question and a reply to it"),
        (
            "{\"conversations\":[]}\n{\"messages\":[{\"role\":5}]}",
            "line 2: messages[0].role: invalid type: integer `5`, expected a string",
        ),
    ];
    for (wrong, reason) in cases {
        let why = refusal(Workload::sharegpt(wrong.as_bytes(), &PACE));
        assert!(why.starts_with(reason), "{wrong}: {why}");
    }
    let refused = |pace| refusal(Workload::sharegpt(b"[]", &pace));
    assert_eq!(
        refused(Pace { rate_per_s: 0.0, ..PACE }),
        "rate_per_s: must be 0.000001 to 1000000000, is 0"
    );
    assert_eq!(refused(Pace { think_s: -1.0, ..PACE }), "think_s: must be 0 to 1000000, is -1");
}
