use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

const CAPTURES: [(&[u8], &[u8], Usage); 2] = [
    (
        include_bytes!("../../../tests/data/usage/chat_asked.sse"),
        include_bytes!("../../../tests/data/usage/chat_plain.sse"),
        Usage { prompt: Some(125), cached: Some(96), completion: Some(4) },
    ),
    (
        include_bytes!("../../../tests/data/usage/completion_asked.sse"),
        include_bytes!("../../../tests/data/usage/completion_plain.sse"),
        Usage { prompt: Some(55), cached: Some(32), completion: Some(4) },
    ),
];

const USAGE_EVENT: &str = r#"data: {"id":"i","choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1},"system_fingerprint":"f"}"#;
const LAST_EVENT: &str = r#"data: {"id":"i","choices":[{"text":"a","finish_reason":"stop"}]}"#;

/// One event, and what it is to be taken for.
#[derive(Clone, Debug)]
struct Piece {
    text: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Usage,
    Last,
    Counted,
    Other,
}

/// The output of a stream that comes in these chunks, and what was taken out.
fn stripped<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Option<Usage>) {
    let mut strip = Strip::new();
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend(strip.push(Bytes::copy_from_slice(chunk)));
    }
    out.extend(strip.finish());
    (out, strip.usage())
}

fn whole(stream: &[u8]) -> Vec<u8> {
    stripped([stream]).0
}

fn cut<'a>(stream: &'a [u8], at: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = at.iter().map(|index| index.index(stream.len() + 1)).collect();
    places.sort_unstable();
    places.push(stream.len());
    let mut from = 0;
    let pieces = places.into_iter().map(|to| &stream[std::mem::replace(&mut from, to)..to]);
    pieces.collect()
}

#[test]
fn a_real_stream_is_as_it_would_have_been_wherever_it_is_cut() {
    for (asked, plain, usage) in CAPTURES {
        assert_ne!(asked, plain);
        for at in 0..=asked.len() {
            let (out, found) = stripped([&asked[..at], &asked[at..]]);
            assert_eq!((out.as_slice(), found), (plain, Some(usage)), "cut at {at}");
        }
        assert_eq!(stripped(asked.chunks(1)).0, plain);
        assert_eq!(stripped(asked.chunks(7)).0, plain);
        assert_eq!(stripped([plain]), (plain.to_vec(), None));
    }
}

#[test]
fn only_the_last_event_of_a_choice_waits_for_the_next() {
    let (asked, plain, _) = CAPTURES[0];
    let mut strip = Strip::new();
    let mut sizes = Vec::new();
    for event in asked.split_inclusive(|byte| *byte == b'\n').collect::<Vec<_>>().chunks(2) {
        sizes.push((event[0].len() + 1, strip.push(event.concat().into()).len()));
    }
    let [first, second, third, last, usage, end] = sizes[..] else { panic!("{sizes:?}") };
    assert!([first, second, third, end].iter().all(|(came, left)| came == left), "{sizes:?}");
    assert_eq!(last.1, 0);
    assert!(usage.1 > last.0, "{sizes:?}");
    assert!(strip.finish().is_empty());
    assert_eq!(sizes.iter().map(|(_, left)| left).sum::<usize>(), plain.len());
}

#[test]
fn a_chunk_that_ends_with_its_event_is_not_copied() {
    let chunk = Bytes::from_static(b"data: {\"choices\":[{\"finish_reason\":null}]}\n\n");
    assert_eq!(Strip::new().push(chunk.clone()).as_ptr(), chunk.as_ptr());
}

#[test]
fn a_stream_that_breaks_off_gives_what_is_held() {
    for broken in [
        format!("{LAST_EVENT}\n\n"),
        format!("{LAST_EVENT}\n\n{USAGE_EVENT}\n"),
        USAGE_EVENT.to_owned(),
    ] {
        assert_eq!(whole(broken.as_bytes()), broken.as_bytes());
    }
}

#[test]
fn an_error_after_the_last_event_passes() {
    let stream = format!("{LAST_EVENT}\n\ndata: {{\"error\":{{}}}}\n\ndata: [DONE]\n\n");
    assert_eq!(stripped([stream.as_bytes()]), (stream.clone().into_bytes(), None));
}

#[test]
fn an_engine_that_counts_in_every_event_is_left_alone() {
    let counted =
        r#"data: {"choices":[{"text":"a","finish_reason":null}],"usage":{"prompt_tokens":2}}"#;
    let stream = format!("{counted}\n\n{LAST_EVENT}\n\n{USAGE_EVENT}\n\ndata: [DONE]\n\n");
    assert_eq!(whole(stream.as_bytes()), stream.as_bytes());
}

#[test]
fn an_engine_without_a_fingerprint_has_none_to_move() {
    let usage = USAGE_EVENT.replace(r#","system_fingerprint":"f""#, "");
    assert_eq!(
        whole(format!("{LAST_EVENT}\n\n{usage}\n\n").as_bytes()),
        format!("{LAST_EVENT}\n\n").as_bytes()
    );
    let signed = LAST_EVENT.replace("]}", r#"],"system_fingerprint":"f"}"#);
    let stream = format!("{signed}\n\n{USAGE_EVENT}\n\n");
    assert_eq!(whole(stream.as_bytes()), format!("{signed}\n\n").as_bytes());
}

#[test]
fn an_event_that_is_too_long_is_neither_held_nor_looked_at() {
    let text = "x".repeat(LONGEST_EVENT);
    let long = USAGE_EVENT.replace("\"i\"", &format!("\"{text}\""));
    let stream = format!("{LAST_EVENT}\n\n{long}\n\n{LAST_EVENT}\n\n{USAGE_EVENT}\n\n");
    let plain = format!(
        "{LAST_EVENT}\n\n{long}\n\n{}\n\n",
        LAST_EVENT.replace("]}", r#"],"system_fingerprint":"f"}"#)
    );
    assert!(whole(stream.as_bytes()) == plain.as_bytes());
    assert!(stripped(stream.as_bytes().chunks(300_000)).0 == plain.as_bytes());
    let mut strip = Strip::new();
    let passed: usize = stream.as_bytes()[..LONGEST_EVENT + 200]
        .chunks(64)
        .map(|chunk| strip.push(chunk.to_vec().into()).len())
        .sum();
    assert!(passed > LONGEST_EVENT);
}

/// Text as it stands inside a JSON string, quotes and all.
fn text() -> impl Strategy<Value = String> {
    let part = select(vec![
        "a",
        " ",
        "é",
        "\"usage\":{",
        "\"choices\":[],",
        "\n\n",
        "\"finish_reason\":\"stop\"",
        "usage",
        "data: [DONE]",
        "\\",
    ]);
    vec(part, 0..4).prop_map(|parts| serde_json::to_string(&parts.concat()).expect("text is JSON"))
}

fn event() -> impl Strategy<Value = (String, Kind)> {
    prop_oneof![
        4 => text().prop_map(|text| {
            (format!(r#"data: {{"choices":[{{"text":{text},"finish_reason":null}}]}}"#), Kind::Other)
        }),
        2 => text().prop_map(|text| {
            let event = format!(r#"data: {{"m":{text},"choices":[{{"text":{text},"finish_reason":"stop"}}]}}"#);
            (event, Kind::Last)
        }),
        2 => Just((USAGE_EVENT.to_owned(), Kind::Usage)),
        1 => Just((r#"data:{"usage" : { "prompt_tokens": 2 }, "choices": [ ], "system_fingerprint":"f" }"#.to_owned(), Kind::Usage)),
        1 => Just((r#"data: {"choices":[{"text":"a"}],"usage":{"prompt_tokens":2}}"#.to_owned(), Kind::Counted)),
        1 => select(vec![
            "",
            ": keep-alive",
            "data: [DONE]",
            "event: x\ndata: {\"choices\":[],\"usage\":{}}",
            "data: {\"choices\":[],\"usage\":{}}\ndata: x",
            "data: {\"choices\":[],\"usage\":null}",
            "data: {\"choices\":[],\"x\":{\"usage\":{}}}",
            "data: {\"usage\":{}}",
            "data: {\"choices\":null,\"usage\":{}}",
            "data: {\"error\":{\"message\":\"m\"}}",
            "data: {\"choices\":[],\"usage\":{}",
            "{\"choices\":[],\"usage\":{}}",
        ])
        .prop_map(|text| (text.to_owned(), Kind::Other)),
    ]
}

fn piece() -> impl Strategy<Value = Piece> {
    (event(), any::<bool>()).prop_map(|((text, kind), carriage)| {
        let end = if carriage { "\r\n" } else { "\n" };
        let text =
            if text.is_empty() { end.to_owned() } else { text.replace('\n', end) + end + end };
        Piece { text, kind }
    })
}

/// The same, told by what each event was made as.
fn expected(pieces: &[Piece]) -> String {
    let mut out = String::new();
    let mut done = false;
    for (number, Piece { text, kind }) in pieces.iter().enumerate() {
        let before = number.checked_sub(1).map_or(Kind::Other, |before| pieces[before].kind);
        if !done && *kind == Kind::Usage {
            if before == Kind::Last {
                let place = out.rfind('}').expect("the event is an object");
                out.insert_str(place, r#","system_fingerprint":"f""#);
            }
        } else {
            out.push_str(text);
        }
        done |= matches!(kind, Kind::Usage | Kind::Counted);
    }
    out
}

proptest! {
    #[test]
    fn the_right_event_goes_and_nothing_else(pieces in vec(piece(), 0..8), at in vec(any::<Index>(), 0..12)) {
        let stream: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        let (out, _) = stripped(cut(stream.as_bytes(), &at));
        prop_assert_eq!(String::from_utf8_lossy(&out), expected(&pieces));
    }

    #[test]
    fn any_bytes_give_the_same_however_they_are_cut(
        parts in vec(select(vec!["data:", "data: ", "\n", "\n\n", "\r", "\r\n\r\n", ": c", "x", &USAGE_EVENT[6..], &LAST_EVENT[6..]]), 0..16),
        at in vec(any::<Index>(), 0..12),
    ) {
        let stream = parts.concat();
        let (out, _) = stripped(cut(stream.as_bytes(), &at));
        let whole = whole(stream.as_bytes());
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&whole));
    }

    #[test]
    fn bytes_that_are_no_events_pass(bytes in vec(any::<u8>(), 0..200), at in vec(any::<Index>(), 0..6)) {
        prop_assert_eq!(stripped(cut(&bytes, &at)), (bytes, None));
    }
}
