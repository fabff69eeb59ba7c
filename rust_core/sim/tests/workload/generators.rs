//! Made-up workloads.

use std::collections::{BTreeMap, HashSet};

use nebula_sim::workload::{Generator, Message, Piece, Role, Session, Workload};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{prompts, refusal};

const SEED: u64 = 11;

fn documents() -> [Value; 5] {
    [
        json!({"kind": "multi_turn", "sessions": 300, "rate_per_s": 10.0, "min_turns": 2, "max_turns": 6,
               "system_tokens": 90, "user_tokens": 40, "output_tokens": 30, "think_s": 3.0, "spread": 0.5}),
        json!({"kind": "shared_prefix", "requests": 600, "rate_per_s": 10.0, "prefixes": 8, "zipf": 1.0,
               "prefix_tokens": 200, "suffix_tokens": 50, "output_tokens": 30, "spread": 0.5}),
        json!({"kind": "agents", "tasks": 200, "rate_per_s": 10.0, "min_steps": 1, "max_steps": 9, "tool_sets": 3,
               "system_tokens": 300, "task_tokens": 40, "tool_result_tokens": 100, "output_tokens": 20,
               "tool_s": 0.5, "spread": 0.5}),
        json!({"kind": "unique", "requests": 600, "rate_per_s": 10.0, "input_tokens": 100, "output_tokens": 30,
               "spread": 0.5}),
        json!({"kind": "prefix_repetition", "requests": 100, "rate_per_s": 10.0, "prefix_len": 64, "suffix_len": 32,
               "num_prefixes": 7, "output_len": 16}),
    ]
}

fn generator(document: &Value) -> Generator {
    serde_json::from_value(document.clone()).unwrap()
}

fn made(document: &Value) -> Workload {
    Workload::generate(&generator(document), SEED).unwrap()
}

/// The document with other values for some fields.
fn with(document: &Value, changes: &Value) -> Value {
    let mut document = document.clone();
    document.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    document
}

fn messages(workload: &Workload, role: Role) -> Vec<&Message> {
    let turns = workload.sessions.iter().flat_map(|session| &session.turns);
    turns.flat_map(|turn| &turn.messages).filter(|message| message.role == role).collect()
}

/// How often each first piece of messages of this role occurs, the most frequent first.
fn shares(workload: &Workload, role: Role) -> Vec<usize> {
    let mut shares: BTreeMap<u64, usize> = BTreeMap::new();
    for message in messages(workload, role) {
        let Piece::Words { seed, .. } = message.pieces[0] else { panic!("made-up text is words") };
        *shares.entry(seed).or_default() += 1;
    }
    let mut shares: Vec<usize> = shares.into_values().collect();
    shares.sort_unstable_by(|a, b| b.cmp(a));
    shares
}

fn mean(values: impl Iterator<Item = u64> + Clone) -> f64 {
    values.clone().sum::<u64>() as f64 / values.count() as f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn equal_seeds_make_equal_workloads_and_others_differ(kind in 0..5_usize, seed: u64, rate in 0.1..1000.0_f64) {
        let document = with(&documents()[kind], &json!({"rate_per_s": rate}));
        let make = |seed| Workload::generate(&generator(&document), seed).unwrap();
        let workload = make(seed);
        prop_assert_eq!(&workload, &make(seed));
        prop_assert_ne!(&workload, &make(seed ^ 1));
        prop_assert!(workload.sessions.is_sorted_by_key(|session| session.arrives));
        for session in &workload.sessions {
            prop_assert_eq!(session.turns[0].think, 0);
            prop_assert!(session.turns.iter().all(|turn| turn.output_tokens >= 1 && turn.token_count() >= 1));
            let prompts = prompts(session);
            prop_assert!(prompts.windows(2).all(|pair| pair[1].starts_with(&pair[0])));
        }
        let keys: HashSet<u64> = workload.sessions.iter().map(|session| session.key).collect();
        prop_assert_eq!(keys.len(), workload.sessions.len());
    }
}

#[test]
fn another_rate_asks_the_same_at_other_times() {
    let asked = |workload: Workload| {
        workload.sessions.into_iter().map(|it| (it.key, it.turns)).collect::<Vec<_>>()
    };
    for document in documents() {
        let (slow, fast) = (made(&document), made(&with(&document, &json!({"rate_per_s": 40.0}))));
        let ratio = slow.span() as f64 / fast.span() as f64;
        assert!((ratio - 4.0).abs() < 1e-6, "{ratio}");
        assert_eq!(asked(slow), asked(fast));
    }
}

#[test]
fn arrivals_are_a_poisson_process() {
    let workload = made(&with(&documents()[3], &json!({"requests": 20_000})));
    let arrivals: Vec<f64> = workload.sessions.iter().map(|it| it.arrives as f64 / 1e9).collect();
    let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    assert!((mean - 0.1).abs() < 0.003, "{mean}");
    assert!((variance.sqrt() / mean - 1.0).abs() < 0.04, "an exponential deviates by its mean");
}

#[test]
fn lengths_have_the_mean_and_the_spread_that_are_asked_for() {
    for spread in [0.0, 0.3, 1.0] {
        let document = with(&documents()[3], &json!({"requests": 20_000, "spread": spread}));
        let workload = made(&document);
        let lengths =
            messages(&workload, Role::User).into_iter().map(|it| it.pieces[0].token_count());
        let lengths: Vec<u64> = lengths.collect();
        let mean = mean(lengths.iter().copied());
        let variance = lengths.iter().map(|&it| (it as f64 - mean).powi(2)).sum::<f64>()
            / lengths.len() as f64;
        assert!((mean - 100.0).abs() < 3.0, "spread {spread}: {mean}");
        assert!((variance.sqrt() / 100.0 - spread).abs() < 0.08, "{spread}: {variance}");
        assert!(lengths.iter().all(|it| (1..=1000).contains(it)));
    }
}

#[test]
fn chats_share_one_system_prompt_and_take_turns() {
    let workload = made(&documents()[0]);
    assert_eq!(shares(&workload, Role::System), [300]);
    assert_eq!(messages(&workload, Role::System)[0].pieces[0].token_count(), 90);
    let turns: HashSet<usize> = workload.sessions.iter().map(|it| it.turns.len()).collect();
    assert_eq!(turns, HashSet::from([2, 3, 4, 5, 6]));
    assert_eq!(
        shares(&workload, Role::User).len(),
        workload.requests(),
        "no message is asked twice"
    );
    let later = workload.sessions.iter().flat_map(|it| &it.turns[1..]).map(|turn| turn.think);
    let pause = mean(later) / 1e9;
    assert!((pause - 3.0).abs() < 0.4, "{pause}");
    let without = made(&with(&documents()[0], &json!({"system_tokens": 0})));
    assert_eq!(messages(&without, Role::System).len(), 0);
}

#[test]
fn few_prefixes_are_used_much() {
    let document = with(&documents()[1], &json!({"requests": 8_000}));
    let shares = shares(&made(&document), Role::System);
    assert_eq!(shares.len(), 8);
    let harmonic: f64 = (1..=8).map(|k| 1.0 / f64::from(k)).sum();
    for (share, k) in shares.iter().zip(1..) {
        let expected = 8_000.0 / harmonic / f64::from(k);
        assert!((*share as f64 - expected).abs() < 0.15 * expected, "{k}: {share} for {expected}");
    }
    let flat = self::shares(&made(&with(&document, &json!({"zipf": 0.0}))), Role::System);
    assert!(flat[0] < 1_200 && flat[7] > 800, "{flat:?}");
}

#[test]
fn agents_call_tools_until_they_are_done() {
    let workload = made(&documents()[2]);
    assert_eq!(shares(&workload, Role::System).len(), 3);
    let roles = |session: &Session| -> Vec<Vec<Role>> {
        let turns = session.turns.iter();
        turns.map(|turn| turn.messages.iter().map(|message| message.role).collect()).collect()
    };
    for session in &workload.sessions {
        let roles = roles(session);
        assert_eq!(roles[0], [Role::System, Role::User]);
        assert!(roles[1..].iter().all(|roles| *roles == [Role::Tool]));
        assert!((1..=9).contains(&roles.len()));
    }
    let calls = workload.requests() - workload.sessions.len();
    assert_eq!(shares(&workload, Role::Tool).len(), calls, "no tool says the same twice");
}

#[test]
fn requests_can_share_nothing() {
    let workload = made(&documents()[3]);
    assert_eq!(shares(&workload, Role::User), vec![1; 600]);
}

#[test]
fn prefixes_are_repeated_equally_often_in_random_order() {
    let workload = made(&documents()[4]);
    assert_eq!(shares(&workload, Role::User), [15, 15, 14, 14, 14, 14, 14]);
    assert_eq!(
        (workload.requests(), workload.prompt_tokens(), workload.output_tokens()),
        (100, 9_600, 1_600)
    );
    let order: Vec<&Piece> =
        messages(&workload, Role::User).iter().map(|it| &it.pieces[0]).collect();
    assert!(order[7..].iter().zip(&order).any(|(later, first)| later != first), "not in turn");
    let last: HashSet<&Piece> =
        messages(&workload, Role::User).iter().map(|it| &it.pieces[1]).collect();
    assert_eq!(last.len(), 100);
}

#[test]
fn a_parameter_that_cannot_be_is_named() {
    let [chats, prefixes, agents, unique, repetition] = documents();
    let cases = [
        (&chats, json!({"sessions": 0}), "sessions: must be 1 to 10000000, is 0"),
        (&chats, json!({"min_turns": 7}), "min_turns: must be at most 6, is 7"),
        (
            &chats,
            json!({"system_tokens": 10_000_001}),
            "system_tokens: must be at most 10000000, is 10000001",
        ),
        (&chats, json!({"think_s": -0.5}), "think_s: must be 0 to 1000000, is -0.5"),
        (&prefixes, json!({"zipf": 11.0}), "zipf: must be 0 to 10, is 11"),
        (&prefixes, json!({"spread": 2.5}), "spread: must be 0 to 2, is 2.5"),
        (&agents, json!({"min_steps": 10}), "min_steps: must be at most 9, is 10"),
        (&agents, json!({"tool_sets": 0}), "tool_sets: must be 1 to 10000000, is 0"),
        (&unique, json!({"rate_per_s": 0.0}), "rate_per_s: must be 0.000001 to 1000000000, is 0"),
        (&repetition, json!({"num_prefixes": 101}), "num_prefixes: must be at most 100, is 101"),
    ];
    for (document, change, reason) in cases {
        let generator = generator(&with(document, &change));
        assert_eq!(refusal(Workload::generate(&generator, SEED)), reason);
    }
}

#[test]
fn a_document_is_read_as_it_is_written_and_nothing_is_guessed() {
    for document in documents() {
        let generator = generator(&document);
        assert_eq!(serde_json::to_value(&generator).unwrap(), document);
        assert_eq!(document["kind"], generator.kind());
        for name in document.as_object().unwrap().keys().filter(|name| *name != "kind") {
            let mut without = document.clone();
            without.as_object_mut().unwrap().remove(name);
            let why = refusal(serde_json::from_value::<Generator>(without));
            assert_eq!(why, format!("missing field `{name}`"));
        }
        let why =
            refusal(serde_json::from_value::<Generator>(with(&document, &json!({"sped": 1}))));
        assert!(why.starts_with("unknown field `sped`"), "{why}");
    }
    assert!(
        refusal(serde_json::from_value::<Generator>(json!({"kind": "chat"})))
            .contains("unknown variant `chat`")
    );
}
