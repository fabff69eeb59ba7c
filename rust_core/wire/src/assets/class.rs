//! Which of transformers' classes reads the tokenizer, and whether it takes `tokenizer.json` as it is written.
//!
//! Most classes of transformers 5 take from the file only vocabulary, merges, added tokens and post-processor; how text is
//! normalised and split they say in code of their own. A file that says the same gives the same ids, whichever of them the
//! engine uses; any other is refused. (`add_bos_token` and `add_eos_token` mean nothing beside a `tokenizer.json`: the
//! file's post-processor decides.)

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use super::special::Special;

/// How a class makes its tokenizer.
pub(super) enum Class {
    /// From the file alone.
    AsWritten,
    /// From its own code and the file's vocabulary.
    Rebuilt(Rebuilt),
}

pub(super) struct Rebuilt {
    name: &'static str,
    normalizer: Value,
    splitter: Value,
    unk_token: Option<String>,
    byte_fallback: bool,
    fuse_unk: bool,
    /// What its special tokens are where the configuration leaves them out.
    defaults: &'static [(&'static str, &'static str)],
    /// It adds its special tokens once more, without flags.
    plain_specials: bool,
}

/// Models for which transformers 5 or vLLM takes the file as it is written, whatever class their configuration names.
const AS_WRITTEN: [&str; 57] = [
    "arctic",
    "aria",
    "chameleon",
    "chatlm",
    "deepseek_ocr",
    "deepseek_ocr2",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "deepseek_vl_v2",
    "ernie4_5",
    "ernie4_5_moe",
    "flex_olmo",
    "fuyu",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v",
    "glm4v_moe",
    "gpt_bigcode",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "h2ovl_chat",
    "hyperclovax",
    "internlm2",
    "jamba",
    "janus",
    "llava",
    "llava_next",
    "mimo_v2_flash",
    "minicpm3",
    "minicpmv",
    "minicpmv4_6",
    "minimax_m2",
    "modernbert",
    "molmo",
    "molmo2",
    "nemotron",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "opencua",
    "paddleocr_vl",
    "persimmon",
    "phi3",
    "phi3_v",
    "phimoe",
    "smolvlm",
    "stablelm",
    "step3_vl",
    "step3p5",
];

/// Models whose class transformers 5 sets, whatever their configuration names.
const CORRECTED: [(&str, &str); 5] = [
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen3_5", "Qwen3_5Tokenizer"),
    ("qwen3_5_moe", "Qwen3_5Tokenizer"),
    ("qwen3_5_moe_text", "Qwen3_5Tokenizer"),
    ("qwen4_exp", "Qwen3_5Tokenizer"),
];

const GENERIC: [&str; 4] =
    ["PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer"];

pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN3_5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The class that the engine's transformers picks for a model's `tokenizer_config.json` and `config.json`.
pub(super) fn of(config: &Map<String, Value>, model: &Map<String, Value>) -> Result<Class, String> {
    refuse_settings(config)?;
    let text = |from: &Map<String, Value>, name: &str| {
        from.get(name).and_then(Value::as_str).map(str::to_owned)
    };
    let model_type = text(model, "model_type").unwrap_or_default();
    if AS_WRITTEN.contains(&model_type.as_str()) {
        return Ok(Class::AsWritten);
    }
    let corrected = CORRECTED.iter().find(|(kind, _)| *kind == model_type).map(|(_, name)| *name);
    let named = text(config, "tokenizer_class").or_else(|| text(model, "tokenizer_class"));
    let name = match (corrected, &named) {
        (Some(corrected), _) => corrected,
        (None, Some(named)) => named.strip_suffix("Fast").unwrap_or(named),
        // Without a class in the files, the model's type decides.
        (None, None) if model_type.starts_with("qwen3") || model_type.starts_with("qwen2_") => {
            "Qwen2Tokenizer"
        }
        (None, None) if model_type.starts_with("gemma") => "GemmaTokenizer",
        (None, None) if model_type == "gpt2" => "GPT2Tokenizer",
        (None, None) if model_type.is_empty() || model_type.starts_with("llama") => {
            return Ok(Class::AsWritten);
        }
        (None, None) => {
            return Err(format!(
                "neither file names a tokenizer_class for the model type {model_type}"
            ));
        }
    };
    if GENERIC.contains(&name) {
        return Ok(Class::AsWritten);
    }
    rebuilt(name, config).map(Class::Rebuilt).ok_or_else(|| {
        format!("its class {name} may build another tokenizer than tokenizer.json says")
    })
}

/// Settings that change ids and are not followed here.
fn refuse_settings(config: &Map<String, Value>) -> Result<(), String> {
    let on = |name: &str| config.get(name).is_some_and(|value| value == &Value::Bool(true));
    let remote = match config.get("auto_map") {
        Some(Value::Object(map)) => map.get("AutoTokenizer").is_some_and(|class| !class.is_null()),
        Some(Value::Array(_)) => true,
        _ => false,
    };
    let why = match () {
        () if remote => "its tokenizer is code of the model's own (auto_map)",
        () if on("split_special_tokens") => "it splits special tokens (split_special_tokens)",
        () if on("fix_mistral_regex") => {
            "its pattern is replaced when it is loaded (fix_mistral_regex)"
        }
        () if config.contains_key("fast_tokenizer_files") => {
            "its tokenizer.json depends on the version (fast_tokenizer_files)"
        }
        () => return Ok(()),
    };
    Err(why.to_owned())
}

fn rebuilt(name: &str, config: &Map<String, Value>) -> Option<Rebuilt> {
    let flag = |name: &str| config.get(name).and_then(Value::as_bool);
    let text = |name: &str, default: &str| {
        let token = config.get(name);
        let content =
            token.and_then(|token| token.get("content")).or(token).and_then(Value::as_str);
        content.unwrap_or(default).to_owned()
    };
    let bytes = |use_regex: bool| {
        let prefix = flag("add_prefix_space").unwrap_or(false);
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex})
    };
    let qwen = |name: &'static str, pattern: &str| Rebuilt {
        name,
        normalizer: json!({"type": "NFC"}),
        splitter: json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            bytes(false),
        ]}),
        unk_token: None,
        byte_fallback: false,
        fuse_unk: false,
        defaults: &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
        plain_specials: name == "Qwen2Tokenizer",
    };
    match name {
        "Qwen2Tokenizer" => Some(qwen("Qwen2Tokenizer", QWEN2)),
        "Qwen3_5Tokenizer" => Some(qwen("Qwen3_5Tokenizer", QWEN3_5)),
        "GPT2Tokenizer" => Some(Rebuilt {
            name: "GPT2Tokenizer",
            normalizer: Value::Null,
            splitter: bytes(true),
            defaults: &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
            ..qwen("GPT2Tokenizer", "")
        }),
        "LlamaTokenizer" => Some(Rebuilt {
            name: "LlamaTokenizer",
            normalizer: Value::Null,
            splitter: json!({"type": "Metaspace", "replacement": "▁", "split": false, "prepend_scheme":
            match (flag("add_prefix_space"), flag("legacy")) {
                (Some(false), _) => "never",
                (_, Some(true)) => "always",
                _ => "first",
            }}),
            byte_fallback: true,
            fuse_unk: true,
            defaults: &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            ..qwen("LlamaTokenizer", "")
        }),
        "GemmaTokenizer" => Some(Rebuilt {
            name: "GemmaTokenizer",
            normalizer: json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
            splitter: json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                "invert": false}),
            unk_token: Some(text("unk_token", "<unk>")),
            byte_fallback: true,
            fuse_unk: true,
            defaults: &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            ..qwen("GemmaTokenizer", "")
        }),
        _ => None,
    }
}

const END: &str = "<|endoftext|>";

// === impl Class ===

impl Class {
    /// Refuses a tokenizer that this class would build otherwise.
    pub(super) fn check(&self, tokenizer: &Tokenizer, special: &Special) -> Result<(), String> {
        let Class::Rebuilt(class) = self else { return Ok(()) };
        match class.difference(tokenizer, special) {
            Some(part) => {
                Err(format!("its class {} has another {part} than tokenizer.json says", class.name))
            }
            None => Ok(()),
        }
    }

    pub(super) fn default_token(&self, name: &str) -> Option<&'static str> {
        let Class::Rebuilt(class) = self else { return None };
        class.defaults.iter().find(|(attribute, _)| *attribute == name).map(|(_, text)| *text)
    }

    pub(super) fn plain_specials(&self) -> bool {
        matches!(self, Class::Rebuilt(class) if class.plain_specials)
    }
}

// === impl Rebuilt ===

impl Rebuilt {
    fn difference(&self, tokenizer: &Tokenizer, special: &Special) -> Option<&'static str> {
        let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return Some("model") };
        let normalizer =
            serde_json::from_value::<Option<NormalizerWrapper>>(self.normalizer.clone()).ok();
        let splitter =
            serde_json::from_value::<Option<PreTokenizerWrapper>>(self.splitter.clone()).ok();
        if canonical(&normalizer.flatten()) != canonical(&tokenizer.get_normalizer()) {
            return Some("normalizer");
        }
        if canonical(&splitter.flatten()) != canonical(&tokenizer.get_pre_tokenizer()) {
            return Some("pre-tokenizer");
        }
        if !self.same_model(bpe, tokenizer) {
            return Some("set of options for the model");
        }
        let own = tokenizer.get_added_tokens_decoder();
        let same = own.len() == special.declared.len()
            && own.iter().all(|(id, token)| special.declared.get(id) == Some(token));
        (!same).then_some("list of added tokens")
    }

    fn same_model(&self, bpe: &BPE, tokenizer: &Tokenizer) -> bool {
        let affix = |text: &Option<String>| text.as_deref().unwrap_or("").is_empty();
        let unk =
            bpe.unk_token == self.unk_token || knows_every_byte(tokenizer, self.byte_fallback);
        unk && affix(&bpe.continuing_subword_prefix)
            && affix(&bpe.end_of_word_suffix)
            && bpe.fuse_unk == self.fuse_unk
            && bpe.byte_fallback == self.byte_fallback
            && !bpe.ignore_merges
            && bpe.dropout.is_none_or(|share| share == 0.0)
    }
}

/// Whether nothing is ever unknown to the vocabulary.
fn knows_every_byte(tokenizer: &Tokenizer, fallback: bool) -> bool {
    if fallback {
        return (0..=255).all(|byte| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).is_some());
    }
    ByteLevel::alphabet().iter().all(|letter| tokenizer.token_to_id(&letter.to_string()).is_some())
}

/// A part as it is saved, without what changes no ids.
fn canonical(part: &impl serde::Serialize) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("trim_offsets");
                fields.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(part).unwrap_or_default();
    strip(&mut value);
    value
}
