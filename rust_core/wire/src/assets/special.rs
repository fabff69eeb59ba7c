//! The tokens that a tokenizer's configuration names, and those that it adds.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::class::Class;
use super::{AssetError, Folder};

/// What the configuration says of single tokens.
pub(super) struct Special {
    /// By attribute, in the order in which transformers adds them.
    named: Vec<(String, AddedToken)>,
    /// Those without a name.
    extra: Vec<AddedToken>,
    /// All added tokens that it lists, by id.
    pub(super) declared: BTreeMap<u32, AddedToken>,
}

/// The attributes that every tokenizer has.
const ATTRIBUTES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const EXTRA: &str = "extra_special_tokens";
/// Its name before the fifth version.
const ADDITIONAL: &str = "additional_special_tokens";

// === impl Special ===

impl Special {
    /// Reads the configuration; where that lists no added tokens, also the older files beside it.
    pub(super) fn read(
        folder: &mut Folder<'_>,
        config: &Map<String, Value>,
        class: &Class,
        tokenizer: &Tokenizer,
    ) -> Result<Special, AssetError> {
        let mut merged = config.clone();
        if is_empty(merged.get(EXTRA))
            && let Some(additional) = merged.remove(ADDITIONAL)
        {
            merged.insert(EXTRA.to_owned(), additional);
        }
        let mut declared = BTreeMap::new();
        if let Some(listed) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in listed {
                let read = id.parse().ok().zip(token_of(token));
                let (id, token) = read.ok_or_else(|| {
                    let why = format!("added_tokens_decoder: {id} is no token");
                    folder.malformed("tokenizer_config.json", why)
                })?;
                declared.insert(id, token);
            }
        } else {
            merge_older(&mut merged, folder.json("special_tokens_map.json")?.unwrap_or_default());
            // The tokenizer's own list comes last, so it wins.
            let legacy: BTreeMap<String, u32> =
                folder.json("added_tokens.json")?.unwrap_or_default();
            let special = named(&merged, class);
            let is_special = |text: &str| special.iter().any(|(_, token)| token.content == text);
            let older =
                |(text, id): (String, u32)| (id, AddedToken::from(&*text, is_special(&text)));
            declared.extend(legacy.into_iter().map(older));
            declared.extend(tokenizer.get_added_tokens_decoder());
        }
        let extra = match merged.get(EXTRA) {
            Some(Value::Array(list)) => list.iter().filter_map(token_of).collect(),
            _ => Vec::new(),
        };
        Ok(Special { named: named(&merged, class), extra, declared })
    }

    pub(super) fn by_name(&self) -> BTreeMap<String, String> {
        self.named.iter().map(|(name, token)| (name.clone(), token.content.clone())).collect()
    }

    /// Adds what transformers adds: listed tokens that the tokenizer has otherwise or not at all, then named and other
    /// special tokens that it lacks.
    pub(super) fn add_to(&self, tokenizer: &mut Tokenizer, class: &Class) -> Result<(), String> {
        let known = tokenizer.get_added_tokens_decoder();
        let changed =
            self.declared.values().filter(|token| !known.values().any(|own| own == *token));
        let mut added: Vec<AddedToken> = changed.cloned().collect();
        for token in self.all() {
            let same = |other: &AddedToken| other.content == token.content;
            if !known.values().any(same) && !added.iter().any(same) {
                added.push(AddedToken { special: true, ..token.clone() });
            }
        }
        let fresh = added.iter().filter(|token| tokenizer.token_to_id(&token.content).is_none());
        if fresh.count() > 1 {
            return Err(
                "several special tokens are not in its vocabulary: their ids depend on an order \
                        that is not written down"
                    .to_owned(),
            );
        }
        if class.plain_specials() {
            added.extend(self.all().map(|token| AddedToken::from(&*token.content, true)));
        }
        tokenizer
            .add_tokens(added)
            .map_err(|cause| format!("its tokens cannot be added: {cause}"))?;
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &AddedToken> {
        self.named.iter().map(|(_, token)| token).chain(&self.extra)
    }
}

/// Every attribute that is a token: the standard ones, what the class has for those that are left out, and the model's own.
fn named(config: &Map<String, Value>, class: &Class) -> Vec<(String, AddedToken)> {
    let standard = ATTRIBUTES.iter().filter_map(|&name| {
        let token = match config.get(name) {
            Some(value) => token_of(value),
            None => class.default_token(name).map(|text| AddedToken::from(text, true)),
        };
        Some((name.to_owned(), token?))
    });
    let own = config
        .iter()
        .filter(|(name, _)| name.ends_with("_token") && !ATTRIBUTES.contains(&name.as_str()));
    let extra = config.get(EXTRA).and_then(Value::as_object).into_iter().flatten();
    standard
        .chain(own.chain(extra).filter_map(|(name, value)| Some((name.clone(), token_of(value)?))))
        .collect()
}

/// `special_tokens_map.json` wins over the configuration; lists of tokens without names are joined.
fn merge_older(config: &mut Map<String, Value>, older: Map<String, Value>) {
    for (name, value) in older {
        match (config.get_mut(EXTRA), value) {
            (Some(Value::Array(list)), Value::Array(more)) if name == EXTRA => list.extend(more),
            (Some(_), _) if name == ADDITIONAL => {}
            (None, value) if name == ADDITIONAL => drop(config.insert(EXTRA.to_owned(), value)),
            (_, value) => drop(config.insert(name, value)),
        }
    }
}

/// A token as text, which stands for a plain special one, or as an object with flags.
fn token_of(value: &Value) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, true));
    }
    let fields = value.as_object()?;
    let flag = |name: &str, default| fields.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", false);
    Some(AddedToken {
        content: fields.get("content")?.as_str()?.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(_) => false,
    }
}
