//! The best key that a request's prompt can have: its tokens from the client, from here, from an engine, or its text.

use std::borrow::Cow;

use nebula_route::{KeySource, KeySpec, Served};

use super::details::{Ask, Text};
use super::key::{Cutter, Key, Origin, Own};
use super::source::{Source, source};
use super::{Fields, Reader, estimate_tokens, string};
use crate::endpoint::Shape;
use crate::error::Error;
use crate::models::{Tokens, Untold};

/// A key on its way: with the ids that made it, and what is still to be asked.
pub(super) struct Keyed {
    pub(super) key: Key,
    pub(super) ids: Option<Vec<u32>>,
    pub(super) ask: Option<Ask>,
    /// Whether too much of it is new to be tokenised here and now.
    pub(super) cold: bool,
}

impl Keyed {
    /// The key of a request for `model`.
    ///
    /// # Errors
    /// The field of the prompt that is missing.
    pub(super) fn of(
        shape: Shape,
        fields: &Fields<'_>,
        text: &Text<'_>,
        model: &str,
        served: Option<&Served>,
        reader: &Reader<'_>,
    ) -> Result<Keyed, Error> {
        let config = reader.router.config();
        let unlearned = [KeySpec { source: KeySource::Text, block: config.token_block_tokens }];
        let keys = served.map(|served| served.keys.as_slice()).filter(|keys| !keys.is_empty());
        let keys = keys.unwrap_or(&unlearned);
        let base = served.and_then(|served| served.base.as_deref());
        let own = Own {
            model: model.to_owned(),
            is_adapter: base.is_some(),
            salt: fields.cache_salt.and_then(string).map(Cow::into_owned),
        };
        let Some(given) = source(shape, fields, text.json.len())? else {
            return Ok(Keyed::alone(Key::empty(estimate_tokens(text.json.len(), config))));
        };
        let cutter = Cutter { config, own: &own };
        if given.is_tokens() {
            let cut = |key: &KeySpec| cutter.given(key.block, &given);
            return Ok(Keyed::alone(Key::of(keys, Origin::Client, own.clone(), cut)));
        }
        let has = |source| keys.iter().any(|key| key.source == source);
        let local = has(KeySource::Local)
            .then(|| local_tokens(shape, &given, text, base.unwrap_or(model), reader));
        let tokens = local.as_ref().and_then(|local| local.as_ref().ok());
        let mut key = Key::of(keys, Origin::Text, own.clone(), |key| match tokens {
            Some(tokens) if key.source == KeySource::Local => {
                cutter.local(key.block, tokens, &given)
            }
            _ => cutter.given(key.block, &given),
        });
        let single = !matches!(given, Source::Batch(..));
        let asks = single && (has(KeySource::Engine) || local.as_ref().is_some_and(Result::is_err));
        let ask = if asks { text.details().ask(shape, model) } else { None };
        if tokens.is_some() {
            key.origin = Origin::Local;
        }
        let (ids, why) = match local {
            Some(Ok(Tokens { ids, rest: None })) => (Some(ids).filter(|_| single), None),
            Some(Ok(_)) => (None, Some("there are media in it".to_owned())),
            Some(Err(Untold::Never(why))) => (None, Some(why)),
            Some(Err(Untold::Cold)) => return Ok(Keyed { cold: true, ..Keyed::alone(key) }),
            None => (None, None),
        };
        key.why = why;
        Ok(Keyed { key, ids, ask, cold: false })
    }

    fn alone(key: Key) -> Keyed {
        Keyed { key, ids: None, ask: None, cold: false }
    }
}

/// The tokens of a prompt that is text, or of the first of several, by the model's own tokenizer.
fn local_tokens(
    shape: Shape,
    given: &Source,
    body: &Text<'_>,
    base: &str,
    reader: &Reader<'_>,
) -> Result<Tokens, Untold> {
    let never = |why: &str| Untold::Never(why.to_owned());
    let model =
        reader.models.find(base).ok_or_else(|| never("the model's files are not loaded"))?;
    match shape {
        Shape::Chat => model.chat(body.json, reader.new_bytes),
        Shape::Completion => {
            let text = std::str::from_utf8(given.text()).map_err(|_| never("it is not UTF-8"))?;
            let ids = model.completion(text, body.details(), reader.new_bytes)?;
            Ok(Tokens { ids, rest: None })
        }
        _ => Err(never("only chats and completions are tokenised")),
    }
}
