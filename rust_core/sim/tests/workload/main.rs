//! Workloads: what is asked is a pure function of the trace or of the seed, and its text and tokens agree.

#![expect(clippy::unwrap_used, reason = "what a test says itself is right")]

mod decisions;
mod generators;
mod mooncake;
mod sharegpt;

use std::collections::HashSet;

use nebula_sim::token;
use nebula_sim::workload::{Conversation, Message, Piece, Role, Session, Turn, Workload};
use proptest::prelude::*;

/// All prompts of a session, with replies that say the number of their turn.
fn prompts(session: &Session) -> Vec<Vec<u32>> {
    let mut said = Conversation::new();
    let turns = session.turns.iter().zip(0..).map(|(turn, number)| {
        let prompt = said.ask(turn).to_vec();
        said.answer(&vec![number; turn.output_tokens as usize]);
        prompt
    });
    turns.collect()
}

fn first_prompt(session: &Session) -> Vec<u32> {
    Conversation::new().ask(&session.turns[0]).to_vec()
}

fn refusal<T: std::fmt::Debug, E: std::fmt::Display>(result: Result<T, E>) -> String {
    result.unwrap_err().to_string()
}

fn words(seed: u64, tokens: u32) -> Piece {
    Piece::Words { seed, tokens }
}

fn tokens_of(piece: &Piece) -> Vec<u32> {
    let mut tokens = Vec::new();
    piece.tokens(&mut tokens);
    tokens
}

fn any_piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (any::<u64>(), 0..300_u32).prop_map(|(seed, tokens)| words(seed, tokens)),
        "[ \n]\\PC{0,40}".prop_map(|text| Piece::Text(text.into())),
    ]
}

proptest! {
    #[test]
    fn the_text_of_a_message_has_exactly_its_tokens(pieces in prop::collection::vec(any_piece(), 0..6)) {
        let message = Message { role: Role::User, pieces };
        let (mut text, mut tokens, mut encoded) = (String::new(), Vec::new(), Vec::new());
        message.text(&mut text);
        message.tokens(&mut tokens);
        token::encode(&text, &mut encoded);
        prop_assert_eq!(&encoded, &tokens);
        prop_assert_eq!(token::decode(&tokens), text);
        let turn = Turn { messages: vec![message], output_tokens: 1, think: 0 };
        prop_assert_eq!(turn.token_count(), tokens.len() as u64);
    }

    #[test]
    fn shorter_words_of_a_seed_begin_the_longer_ones(seed: u64, short in 0..200_u32, more in 0..200_u32) {
        let long = tokens_of(&words(seed, short + more));
        prop_assert_eq!(long.len(), (short + more) as usize);
        prop_assert_eq!(tokens_of(&words(seed, short)), &long[..short as usize]);
    }

    #[test]
    fn a_conversation_appends_what_is_asked_to_what_was_said(
        turns in prop::collection::vec((any_piece(), 1..50_u32), 1..6),
    ) {
        let turns = turns.into_iter().map(|(piece, output_tokens)| {
            Turn { messages: vec![Message::new(Role::User, piece)], output_tokens, think: 0 }
        });
        let session = Session { arrives: 0, key: 0, turns: turns.collect() };
        let prompts = prompts(&session);
        for (number, pair) in (0..).zip(prompts.windows(2)) {
            let turn = number as usize;
            let mut expected = pair[0].clone();
            expected.extend(vec![number; session.turns[turn].output_tokens as usize]);
            prop_assert!(pair[1].starts_with(&expected));
            expected.extend(tokens_of(&session.turns[turn + 1].messages[0].pieces[0]));
            prop_assert_eq!(&pair[1], &expected);
        }
        let total = prompts.iter().map(|prompt| prompt.len() as u64).sum::<u64>();
        let workload = Workload { sessions: vec![session], ..Workload::default() };
        prop_assert_eq!(workload.prompt_tokens(), total);
    }
}

#[test]
fn words_never_change() {
    let mut text = String::new();
    words(1, 10).text(&mut text);
    assert_eq!(text, " rye orb ink owl kit bee air gem fox ant");
}

#[test]
fn blocks_of_different_seeds_differ() {
    let mut seen = HashSet::new();
    let spread = (0..5_000_u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    for seed in (0..5_000).chain(spread.skip(1)) {
        for window in tokens_of(&words(seed, 40)).windows(16) {
            assert!(seen.insert(window.to_vec()), "seed {seed} repeats 16 tokens");
        }
    }
    let vocabulary: HashSet<u32> = seen.iter().flatten().copied().collect();
    assert_eq!(vocabulary.len(), 64);
}

#[test]
fn a_cleared_conversation_begins_anew() {
    let turn =
        Turn { messages: vec![Message::new(Role::User, words(3, 20))], output_tokens: 1, think: 0 };
    let mut said = Conversation::new();
    let first = said.ask(&turn).to_vec();
    said.answer(&[7, 8]);
    said.clear();
    assert_eq!(said.ask(&turn), first);
}

#[test]
fn a_faster_workload_asks_the_same_sooner() {
    let turn = |think| Turn { messages: Vec::new(), output_tokens: 5, think };
    let session = |arrives, turns| Session { arrives, key: 0, turns };
    let sessions = vec![session(10, vec![turn(0)]), session(3_000, vec![turn(0), turn(900)])];
    let mut workload = Workload { sessions, ..Workload::default() };
    assert_eq!((workload.requests(), workload.output_tokens(), workload.span()), (3, 15, 3_000));
    workload.speed_up(2.0).unwrap();
    assert_eq!((workload.sessions[0].arrives, workload.span()), (5, 1_500));
    assert_eq!(workload.sessions[1].turns[1].think, 450);
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let why = refusal(workload.speed_up(wrong));
        assert!(why.starts_with("speed: must be a number above 0, is "), "{why}");
    }
    assert_eq!(workload.span(), 1_500);
}
