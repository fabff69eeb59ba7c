use std::sync::atomic::{AtomicU32, Ordering};

use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::tokenize;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/chatml");

/// A model's directory that goes when the test ends.
struct Model(PathBuf);

#[derive(Deserialize)]
struct Case {
    text: String,
    add_special_tokens: bool,
    ids: Vec<u32>,
}

// === impl Model ===

impl Model {
    /// The directory of the committed tokenizer, without its configuration.
    fn new() -> Model {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "nebula-assets-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let model = Model(std::env::temp_dir().join(name));
        fs::create_dir_all(model.0.join("additional_chat_templates")).unwrap();
        model.with("tokenizer.json", &fs::read_to_string(format!("{DATA}/tokenizer.json")).unwrap())
    }

    fn with(self, name: &str, text: &str) -> Model {
        fs::write(self.0.join(name), text).unwrap();
        self
    }

    fn without(self, name: &str) -> Model {
        fs::remove_file(self.0.join(name)).unwrap();
        self
    }

    /// With parts of `tokenizer.json` replaced.
    fn changed(self, parts: &[(&str, Value)]) -> Model {
        let mut file: Value =
            serde_json::from_str(&fs::read_to_string(self.0.join("tokenizer.json")).unwrap())
                .unwrap();
        for (pointer, part) in parts {
            *file.pointer_mut(pointer).unwrap() = part.clone();
        }
        self.with("tokenizer.json", &file.to_string())
    }

    fn config(self, config: &Value) -> Model {
        self.with("tokenizer_config.json", &config.to_string())
    }

    fn kind(self, model_type: &str) -> Model {
        self.with("config.json", &json!({"model_type": model_type}).to_string())
    }

    fn load(&self) -> Result<Assets, AssetError> {
        Assets::load(&self.0)
    }

    fn refusal(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn qwen_parts(pattern: &str) -> [(&'static str, Value); 2] {
    let splitter = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
    ]});
    [("/normalizer", json!({"type": "NFC"})), ("/pre_tokenizer", splitter)]
}

#[test]
fn the_ids_are_those_of_transformers() {
    let assets = Assets::load(Path::new(DATA)).unwrap();
    let tokenizer = tokenize::Tokenizer::new(assets.tokenizer, 1 << 20).unwrap();
    assert!(tokenizer.segments_exact());
    let cases = fs::read_to_string(format!("{DATA}/ids.jsonl")).unwrap();
    for line in cases.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let ids = tokenizer.encode(&case.text, case.add_special_tokens).unwrap();
        assert_eq!(ids, case.ids, "{:?}", case.text);
    }
    let template = fs::read_to_string(format!("{DATA}/chat_template.jinja")).unwrap();
    assert_eq!(assets.templates, Templates { default: Some(template), tool_use: None });
    let names = [("eos_token", "<|im_end|>"), ("pad_token", "<|endoftext|>")];
    assert!(assets.special_tokens.iter().map(|(name, text)| (&**name, &**text)).eq(names));
}

#[test]
fn special_tokens_are_text_or_objects_and_models_have_names_of_their_own() {
    let config = json!({"bos_token": {"__type": "AddedToken", "content": "<|im_start|>"}, "unk_token": null,
        "eos_token": "<|im_end|>", "add_bos_token": true, "image_token": "<|endoftext|>",
        "extra_special_tokens": {"audio_token": "<tool_call>"}, "model_max_length": 7});
    let assets = Model::new().config(&config).load().unwrap();
    let expected = [
        ("audio_token", "<tool_call>"),
        ("bos_token", "<|im_start|>"),
        ("eos_token", "<|im_end|>"),
        ("image_token", "<|endoftext|>"),
    ];
    assert!(assets.special_tokens.iter().map(|(name, text)| (&**name, &**text)).eq(expected));
    let older = json!({"eos_token": {"content": "<|endoftext|>", "lstrip": false}});
    let model = Model::new().config(&config).with("special_tokens_map.json", &older.to_string());
    assert_eq!(model.load().unwrap().special_tokens["eos_token"], "<|endoftext|>");
}

#[test]
fn the_configuration_adds_tokens_and_changes_their_flags() {
    let listed = json!({
        "1": {"content": "<|im_start|>", "special": true, "normalized": false, "rstrip": true},
        "9": {"content": "<image>", "special": true, "normalized": false},
    });
    let config = json!({"added_tokens_decoder": listed, "eos_token": "<|im_end|>"});
    let Assets { tokenizer, .. } = Model::new().config(&config).load().unwrap();
    let known = tokenizer.get_added_tokens_decoder();
    let of = |text: &str| known[&tokenizer.token_to_id(text).unwrap()].clone();
    assert!(of("<|im_start|>").rstrip && of("<image>").special && !of("<|im_end|>").rstrip);
    let several = json!({"pad_token": "[PAD]", "cls_token": "[CLS]"});
    assert!(Model::new().config(&several).refusal().contains("not in its vocabulary"));
}

#[test]
fn files_of_templates_win_over_the_configuration() {
    let several = json!({"chat_template": [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "T"},
        {"name": "rag", "template": "R"},
    ]});
    let both = |model: &Model| {
        let templates = model.load().unwrap().templates;
        (templates.source(false).map(str::to_owned), templates.source(true).map(str::to_owned))
    };
    let is = |plain: &str, tools: &str| (Some(plain.to_owned()), Some(tools.to_owned()));
    assert_eq!(both(&Model::new()), (None, None));
    assert_eq!(both(&Model::new().config(&json!({"chat_template": "C"}))), is("C", "C"));
    let model = Model::new().config(&several);
    assert_eq!(both(&model), is("D", "T"));
    let model = model.with("chat_template.jinja", "J");
    assert_eq!(both(&model), is("J", "J"), "the configuration's tool_use goes with its default");
    let model = model.with("additional_chat_templates/tool_use.jinja", "A");
    assert_eq!(both(&model), is("J", "A"));
    let legacy = json!({"chat_template": "L"}).to_string();
    let model =
        Model::new().config(&json!({"chat_template": "C"})).with("chat_template.json", &legacy);
    assert_eq!(both(&model), is("C", "C"), "chat_template.json is the processor's");
    let model = model.with("preprocessor_config.json", "{}");
    assert_eq!(both(&model), is("L", "C"), "and with tools the tokenizer is asked");
    let wrong = Model::new().config(&json!({"chat_template": 3})).refusal();
    assert!(wrong.contains("chat_template: must be"), "{wrong}");
}

#[test]
fn a_class_that_says_what_the_file_says_is_taken() {
    let pattern = class::QWEN2;
    let config = json!({"tokenizer_class": "Qwen2Tokenizer", "bos_token": null});
    let model = Model::new().changed(&qwen_parts(pattern)).config(&config).kind("qwen3");
    assert_eq!(
        model.load().unwrap().special_tokens["pad_token"],
        "<|endoftext|>",
        "the class's own"
    );
    let refused = Model::new().config(&config).kind("qwen3").refusal();
    assert!(refused.contains("class Qwen2Tokenizer has another normalizer"), "{refused}");
    let refused = Model::new().changed(&qwen_parts(r"\p{L}+|.")).config(&config).refusal();
    assert!(refused.contains("another pre-tokenizer"), "{refused}");
    let generic = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    assert!(Model::new().config(&generic).kind("qwen3").load().is_ok());
    let refused = Model::new().config(&generic).kind("qwen2").refusal();
    assert!(refused.contains("class Qwen2Tokenizer"), "this type's class is fixed: {refused}");
}

#[test]
fn the_models_type_can_say_that_the_file_counts() {
    let config = json!({"tokenizer_class": "LlamaTokenizerFast"});
    assert!(Model::new().config(&config).kind("deepseek_v3").load().is_ok());
    let refused = Model::new().config(&config).kind("llama").refusal();
    assert!(refused.contains("class LlamaTokenizer has another pre-tokenizer"), "{refused}");
    let refused = Model::new().config(&json!({"tokenizer_class": "BertTokenizer"})).refusal();
    assert!(refused.contains("BertTokenizer may build another"), "{refused}");
}

#[test]
fn settings_that_change_ids_are_refused() {
    for config in [
        json!({"auto_map": {"AutoTokenizer": ["mine.Tokenizer", null]}}),
        json!({"split_special_tokens": true}),
        json!({"fix_mistral_regex": true}),
        json!({"fast_tokenizer_files": ["tokenizer.4.0.json"]}),
    ] {
        assert!(
            matches!(Model::new().config(&config).load(), Err(AssetError::Unsupported { .. })),
            "{config}"
        );
    }
    assert!(
        Model::new().config(&json!({"auto_map": {"AutoConfig": "mine.Config"}})).load().is_ok()
    );
    let refused = Model::new().with("tekken.json", "{}").refusal();
    assert!(refused.contains("tekken.json lies beside"), "{refused}");
}

#[test]
fn another_form_of_tokenizer_is_named() {
    for (name, word) in [
        ("tekken.json", "Mistral"),
        ("tokenizer.model", "sentencepiece"),
        ("tiktoken.model", "tiktoken"),
        ("merges.txt", "no tokenizer in another form"),
    ] {
        let refused = Model::new().without("tokenizer.json").with(name, "").refusal();
        assert!(refused.contains("no tokenizer.json") && refused.contains(word), "{refused}");
    }
    let broken = Model::new().with("tokenizer.json", "{\"version\": \"1.0\"}").refusal();
    assert!(broken.contains("tokenizer.json: "), "{broken}");
}

#[test]
fn the_fingerprint_is_of_all_that_was_read() {
    let plain = Model::new().load().unwrap().fingerprint;
    assert_eq!(plain, Model::new().load().unwrap().fingerprint);
    assert_ne!(plain, Model::new().with("chat_template.jinja", "J").load().unwrap().fingerprint);
    assert_ne!(plain, Model::new().kind("llama").load().unwrap().fingerprint);
}
