use std::sync::{Arc, LazyLock};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use super::kinds::{self, token};
use super::*;

/// One of each kind with room for all it meets, and one that forgets at once.
static KINDS: LazyLock<Vec<(&str, Tokenizer, Tokenizer)>> = LazyLock::new(|| {
    let both = |(name, inner): (_, tokenizers::Tokenizer)| {
        (name, Tokenizer::new(inner.clone(), 1 << 20).unwrap(), Tokenizer::new(inner, 400).unwrap())
    };
    kinds::all().into_iter().map(both).collect()
});

/// Special tokens, what looks like them, what stands beside them, and what normalizers change.
const FRAGMENTS: &[&str] = &[
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin|>",
    "<tool_call>",
    "<think>",
    "<s>",
    "</s>",
    "<mask>",
    "[CLS]",
    "[SEP]",
    "<unk>",
    "<|",
    "|>",
    "<|im_",
    "im_end|>",
    "<s",
    "s>",
    "[CLS",
    "<",
    "_",
    "\u{2581}",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\u{a0}",
    "\u{3000}",
    "\u{200b}",
    "user",
    "assistant",
    "system",
    "the",
    "The",
    "cat",
    "sat",
    "hello",
    "Hello",
    "HELLO",
    " world",
    "it's",
    "1234",
    "7",
    "e\u{301}",
    "\u{301}",
    "é",
    "É",
    "ﬁ",
    "Straße",
    "北京",
    "🦀",
    "\u{1f469}\u{200d}\u{1f4bb}",
    "\u{0}",
    "\u{7f}",
    "!",
    "...",
    "{\"a\": [1, 2]}",
    "éthe",
    "<|im_start|>usercat",
    "<w>",
    "a<w>",
    "<w>é",
    "fn main() {\n    ",
];

fn texts() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        8 => select(FRAGMENTS).prop_map(str::to_owned),
        1 => "\\PC{0,6}",
        1 => any::<char>().prop_map(String::from),
    ];
    vec(fragment, 0..24).prop_map(|fragments| fragments.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn segments_give_the_ids_of_the_whole_prompt(text in texts(), special in any::<bool>()) {
        for (name, wide, narrow) in KINDS.iter() {
            let whole = wide.encode_whole(&text, special).unwrap();
            for (tokenizer, pass) in [(wide, "new"), (wide, "known"), (narrow, "forgotten")] {
                let ids = tokenizer.encode(&text, special).unwrap();
                prop_assert_eq!(&ids, &whole, "{} {} {:?}", name, pass, text);
            }
        }
    }

    #[test]
    fn a_segment_that_is_known_from_elsewhere_has_the_same_ids(left in texts(), text in texts(), right in texts()) {
        for (name, tokenizer, _) in KINDS.iter() {
            for text in [&text, &format!("{left}{text}"), &format!("{text}{right}"), &format!("{left}{text}{right}")] {
                let (ids, whole) = (tokenizer.encode(text, true).unwrap(), tokenizer.encode_whole(text, true).unwrap());
                prop_assert_eq!(ids, whole, "{} {:?}", name, text);
            }
        }
    }
}

#[test]
fn every_kind_is_cut_into_segments() {
    for (name, tokenizer, narrow) in KINDS.iter() {
        assert!(tokenizer.segments_exact(), "{name}");
        let text = "the cat<s>hello<|im_start|>user[CLS]he";
        tokenizer.encode(text, false).unwrap();
        assert!(tokenizer.segment_stats().entries > 1, "{name}");
        narrow.encode(text, false).unwrap();
        assert!(narrow.segment_stats().bytes <= 400, "{name}");
    }
}

#[test]
fn the_next_turn_encodes_only_what_is_new() {
    let tokenizer = Tokenizer::new(kinds::chatml(), 1 << 20).unwrap();
    let mut prompt = String::new();
    for turn in 0..8 {
        let before = tokenizer.segment_stats();
        let turn = turn.to_string();
        prompt.extend([
            "<|im_start|>user\nWhat about ",
            &turn,
            "?<|im_end|>\n<|im_start|>assistant\n",
        ]);
        assert_eq!(
            tokenizer.encode(&prompt, true).unwrap(),
            tokenizer.encode_whole(&prompt, true).unwrap()
        );
        let after = tokenizer.segment_stats();
        // The question; at first also "\n" and "assistant\n"; later the answer of the turn before, which was open.
        assert!(after.misses - before.misses <= 3, "{turn}: {after:?}");
        prompt.extend(["It is ", &turn, ".<|im_end|>\n"]);
    }
}

#[test]
fn threads_share_what_they_learn() {
    let tokenizer = Arc::new(Tokenizer::new(kinds::chatml(), 4_096).unwrap());
    let prompts: Vec<String> =
        (0..64).map(|at| format!("<|im_start|>user\n{at} the cat<|im_end|>").repeat(4)).collect();
    let prompts = Arc::new(prompts);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (tokenizer, prompts) = (Arc::clone(&tokenizer), Arc::clone(&prompts));
            std::thread::spawn(move || {
                for prompt in prompts.iter() {
                    let ids = tokenizer.encode(prompt, true).unwrap();
                    assert_eq!(ids, tokenizer.encode_whole(prompt, true).unwrap());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let stats = tokenizer.segment_stats();
    assert!(stats.bytes <= 4_096 && stats.hits > 0, "{stats:?}");
}

#[test]
fn a_post_processor_that_is_no_frame_turns_segments_off() {
    let twice = json!({"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {}});
    let vocab = json!({"a": 0, "b": 1});
    let model = json!({"type": "BPE", "vocab": vocab, "merges": []});
    let inner = kinds::build(&[token("<s>", "")], &[json!(null), json!(null), twice, model]);
    let tokenizer = Tokenizer::new(inner, 1 << 20).unwrap();
    assert!(!tokenizer.segments_exact());
    assert!(tokenizer.whole_because().unwrap().contains("post-processor"));
    assert_eq!(tokenizer.encode("ab<s>", true).unwrap(), [0, 1, 2, 0, 1, 2]);
    assert_eq!(tokenizer.segment_stats(), SegmentStats::default());
}

#[test]
fn ids_that_are_random_are_refused() {
    let model = json!({"type": "BPE", "dropout": 0.1, "vocab": {"a": 0}, "merges": []});
    let inner = kinds::build(&[], &[json!(null), json!(null), json!(null), model]);
    assert!(matches!(Tokenizer::new(inner, 0), Err(TokenizeError::Random)));
}

#[test]
fn saved_truncation_and_padding_are_off() {
    let mut inner = kinds::chatml();
    let truncation = tokenizers::TruncationParams { max_length: 4, ..Default::default() };
    inner.with_truncation(Some(truncation)).unwrap();
    let padding = tokenizers::PaddingStrategy::Fixed(64);
    inner.with_padding(Some(tokenizers::PaddingParams { strategy: padding, ..Default::default() }));
    let tokenizer = Tokenizer::new(inner, 0).unwrap();
    let ids = tokenizer.encode_whole("the cat sat on the mat, again and again", true).unwrap();
    assert!(ids.len() > 4 && ids.len() < 64);
    assert_eq!(tokenizer.segment_stats(), SegmentStats::default());
}
