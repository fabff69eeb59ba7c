//! Small tokenizers of every kind that models have, in the form of their files.

use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{ModelWrapper, Tokenizer};

const CORPUS: &[&str] = &[
    "user assistant system the cat sat on the mat, and the dog sat on the log.",
    "Hello world! It's what they'd have said: hello, hello, hello.\n\n  fn main() { println!(\"{}\", 1234567); }\n",
    "naïve café \u{65}\u{301}t\u{e9} Straße ﬁnance 北京大学 東京 🦀🦀 \u{1f469}\u{200d}\u{1f4bb} ßß ÀÉÎ",
    "tool_call <think> im_start im_end <|begin|> s> </s> [CLS] 2024-11-27 100,000.00",
];

const QWEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Name and tokenizer.
pub(super) fn all() -> Vec<(&'static str, Tokenizer)> {
    vec![
        ("chatml", chatml()),
        ("llama3", llama3()),
        ("gpt2", gpt2()),
        ("metaspace first", metaspace("first", &json!(null))),
        ("metaspace always", metaspace("always", &json!(null))),
        (
            "metaspace never",
            metaspace("never", &json!({"type": "Strip", "strip_left": true, "strip_right": true})),
        ),
        ("metaspace in a sequence", nested()),
        ("prepend and replace", prepend()),
        ("wordpiece", wordpiece()),
        ("unigram", unigram()),
        ("flags", flags()),
    ]
}

/// `ChatML` as Qwen has it: NFC, a regex, byte-level BPE, special and other added tokens.
pub(super) fn chatml() -> Tokenizer {
    let tokens = [
        token("<|endoftext|>", ""),
        token("<|im_start|>", ""),
        token("<|im_end|>", ""),
        token("<tool_call>", "normalized"),
        token("<think>", ""),
    ];
    let splitter = by_regex(QWEN);
    build(&tokens, &[json!({"type": "NFC"}), splitter, byte_level(false), byte_bpe()])
}

fn llama3() -> Tokenizer {
    let tokens = [token("<|begin|>", ""), token("<|im_start|>", ""), token("<|im_end|>", "")];
    let mut model = byte_bpe();
    model["ignore_merges"] = json!(true);
    let post = json!({"type": "Sequence", "processors": [
        byte_level(false),
        template(&["<|begin|>"], &[]),
    ]});
    build(&tokens, &[json!(null), by_regex(LLAMA3), post, model])
}

fn gpt2() -> Tokenizer {
    let post = json!({"type": "RobertaProcessing", "sep": ["</s>", 300], "cls": ["<s>", 301],
        "trim_offsets": true, "add_prefix_space": true});
    let tokens = [token("</s>", ""), token("<s>", ""), token("<mask>", "lstrip")];
    build(&tokens, &[json!(null), byte_level(true), post, byte_bpe()])
}

fn metaspace(scheme: &str, normalizer: &Value) -> Tokenizer {
    let splitter = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme,
        "split": scheme != "first"});
    let tokens = [token("<s>", ""), token("</s>", "normalized"), token("<|im_start|>", "")];
    build(&tokens, &[normalizer.clone(), splitter, template(&["<s>"], &["</s>"]), char_bpe()])
}

fn nested() -> Tokenizer {
    let splitter = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
        {"type": "Punctuation", "behavior": "Isolated"},
    ]});
    let tokens = [token("<s>", ""), token("<|im_end|>", "")];
    build(&tokens, &[json!({"type": "NFKC"}), splitter, json!(null), char_bpe()])
}

/// The form of the Llama 2 files: the normalizer marks the start of every piece, nothing splits.
fn prepend() -> Tokenizer {
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let tokens = [token("<unk>", ""), token("<s>", ""), token("</s>", "rstrip")];
    build(&tokens, &[normalizer, json!(null), template(&["<s>"], &[]), char_bpe()])
}

fn wordpiece() -> Tokenizer {
    let mut words: Vec<String> =
        ["[UNK]", "the", "cat", "hello", "user", "##s", "##llo", "he", "!"]
            .map(str::to_owned)
            .to_vec();
    words.extend(('a'..='z').chain('0'..='9').flat_map(|c| [c.to_string(), format!("##{c}")]));
    words.dedup();
    let vocab: Value =
        words.into_iter().zip((0..).map(Value::from)).collect::<serde_json::Map<_, _>>().into();
    let model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab});
    let normalizer = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true});
    let tokens = [token("[CLS]", ""), token("[SEP]", ""), token("hello", "normalized single_word")];
    let post = template(&["[CLS]"], &["[SEP]"]);
    build(&tokens, &[normalizer, json!({"type": "BertPreTokenizer"}), post, model])
}

fn unigram() -> Tokenizer {
    let pieces =
        [("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("▁he", -3.5), ("llo", -4.0), ("user", -4.0)];
    let letters = ('a'..='z').chain('0'..='9').map(|c| json!([c.to_string(), -6.0]));
    let vocab: Vec<Value> = pieces.iter().map(|piece| json!(piece)).chain(letters).collect();
    let model = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": vocab});
    let splitter =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Nmt"}, {"type": "NFKC"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]});
    let tokens = [token("<s>", ""), token("</s>", ""), token("<|im_start|>", "lstrip rstrip")];
    build(&tokens, &[normalizer, splitter, template(&[], &["</s>"]), model])
}

/// Every flag there is, tokens that contain others, and tokens that look like spaces or words.
fn flags() -> Tokenizer {
    let tokens = [
        token("<|im_start|>", ""),
        token("<|im_start|>user", ""),
        token("<|", ""),
        token("  ", ""),
        token(" <s>", ""),
        token("<s>", "lstrip"),
        token("</s>", "rstrip"),
        token("<mask>", "lstrip rstrip"),
        token("<w>", "single_word"),
        token("the", "single_word"),
        token("cat", "single_word lstrip"),
        token("é", ""),
        token("sat", "normalized"),
        token("[CLS]", ""),
    ];
    build(&tokens, &[json!({"type": "Lowercase"}), byte_level(false), json!(null), byte_bpe()])
}

// === parts ===

/// `[normalizer, pre-tokenizer, post-processor, model]`; the ids of a post-processor's tokens are looked up.
pub(super) fn build(tokens: &[Value], parts: &[Value; 4]) -> Tokenizer {
    let [normalizer, splitter, post, model] = parts;
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens,
        "normalizer": normalizer, "pre_tokenizer": splitter, "post_processor": post, "decoder": null,
        "model": model});
    file.to_string().parse().unwrap()
}

/// An added token with the flags that are named.
pub(super) fn token(content: &str, flags: &str) -> Value {
    let has = |flag: &str| flags.split(' ').any(|word| word == flag);
    json!({"id": 0, "content": content, "single_word": has("single_word"), "lstrip": has("lstrip"),
        "rstrip": has("rstrip"), "normalized": has("normalized"), "special": !has("normalized")})
}

fn template(before: &[&str], after: &[&str]) -> Value {
    let special = |text: &&str| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = before
        .iter()
        .map(special)
        .chain([sequence.clone()])
        .chain(after.iter().map(special))
        .collect();
    let known = before.iter().chain(after).zip(300_u32..);
    let known: serde_json::Map<String, Value> = known
        .map(|(text, id)| ((*text).to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": [sequence], "special_tokens": known})
}

fn byte_level(plain: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": plain, "trim_offsets": true, "use_regex": plain})
}

fn by_regex(pattern: &str) -> Value {
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        byte_level(false),
    ]})
}

fn byte_bpe() -> Value {
    trained(Some(ByteLevel::new(false, false, true)), false)
}

/// Over characters, with a mark for spaces and one token per byte for what it has not seen.
fn char_bpe() -> Value {
    trained(None, true)
}

fn trained(splitter: Option<ByteLevel>, byte_fallback: bool) -> Value {
    let mut trainer =
        BpeTrainerBuilder::new().show_progress(false).vocab_size(600).min_frequency(1);
    if splitter.is_some() {
        trainer = trainer.initial_alphabet(ByteLevel::alphabet().into_iter().collect());
    }
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    tokenizer.with_pre_tokenizer(splitter);
    let corpus = CORPUS
        .iter()
        .map(|text| if byte_fallback { text.replace(' ', "▁") } else { (*text).to_owned() });
    tokenizer.train(&mut TrainerWrapper::from(trainer.build()), corpus).unwrap();
    let mut model = serde_json::to_value(tokenizer.get_model()).unwrap();
    if byte_fallback {
        let vocab = model["vocab"].as_object_mut().unwrap();
        let next = vocab.len();
        vocab.insert("<unk>".to_owned(), json!(next));
        for byte in 0..=255 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(next + 1 + byte));
        }
        model["byte_fallback"] = json!(true);
        model["fuse_unk"] = json!(true);
        model["unk_token"] = json!("<unk>");
    }
    model
}
