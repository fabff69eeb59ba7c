//! Request body -> model, key, session, and the bytes to send on.
//!
//! The body is read once and never rebuilt: what must change (an alias, a stripped field) is cut out of the client's
//! own bytes, so that unknown fields, number formats and key order reach the engine as they were sent.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use nebula_route::{Chain, KeyKind, Router, Scope};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::Config;
use crate::endpoint::{Endpoint, Shape};
use crate::error::Error;
use crate::net;

mod form;
pub(crate) mod splice;
mod text;

use splice::Splice;

/// What routing needs to know of a request, and what the engine gets.
#[derive(Debug)]
pub struct Prompt {
    /// The model as the engines know it: aliases are resolved.
    pub model: String,
    /// The prompt's blocks.
    pub chain: Chain,
    /// The conversation, for session affinity.
    pub session: Option<String>,
    /// Whether the engine's first byte says that the prompt is done. Other replies come when all of it is.
    pub streamed: bool,
    /// The body to send.
    pub body: Bytes,
}

/// The fields that matter here; all others pass through unread.
///
/// Kept as raw JSON where the type is the engine's business: it, not the gateway, decides what it accepts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<Vec<text::Message<'a>>>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    system: Option<&'a RawValue>,
    #[serde(borrow)]
    instructions: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_salt: Option<&'a RawValue>,
    #[serde(borrow)]
    session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    kv_transfer_params: Option<&'a RawValue>,
    #[serde(borrow)]
    vllm_xargs: Option<&'a RawValue>,
}

/// vLLM puts these beside its own arguments, so they are a second way in for the field of the same name.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Xargs<'a> {
    #[serde(borrow)]
    kv_transfer_params: Option<&'a RawValue>,
}

/// Longest model name in bytes: it comes back in error messages and stands in log lines.
const LONGEST_MODEL: usize = 512;

/// What a prompt is made of, before it is cut into blocks.
enum Source {
    Text(Vec<u8>),
    Tokens(Vec<u32>),
    /// The first of several prompts, and the bytes of JSON that all of them take.
    Batch(Box<Source>, usize),
}

/// Reads a request for `endpoint`.
///
/// # Cost
/// O(bytes of the body): one pass over the JSON, one over the prompt.
///
/// # Errors
/// [`Kind::BadRequest`](crate::Kind::BadRequest) with the field and what would be right.
pub fn read(
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: Bytes,
    config: &Config,
    router: &Router,
) -> Result<Prompt, Error> {
    let mut prompt = match endpoint.shape {
        Shape::Form => form::read(headers, body, config, router)?,
        shape => read_json(shape, &body, config, router)?,
    };
    if let Some(session) = headers.get(net::SESSION_ID).and_then(|value| value.to_str().ok()) {
        prompt.session = Some(session.to_owned());
    }
    Ok(prompt)
}

fn read_json(
    shape: Shape,
    body: &Bytes,
    config: &Config,
    router: &Router,
) -> Result<Prompt, Error> {
    let json = as_json(body)?;
    let fields = parse(json)?;
    let named = fields.model.map(model_name).transpose()?.unwrap_or_default();
    let alias = config.model_aliases.get(named.as_ref());
    let model = match alias {
        Some(model) => Cow::Borrowed(model.as_str()),
        None if named.is_empty() => Cow::Owned(only_model(router)?),
        None => named,
    };

    let mut splice = Splice::new(json);
    if let (Some(raw), Some(model)) = (fields.model, alias) {
        splice.replace_value(raw.get(), serde_json::Value::from(model.as_str()).to_string());
    }
    if !config.trust_kv_transfer_params {
        let xargs =
            fields.vllm_xargs.and_then(|raw| serde_json::from_str::<Xargs<'_>>(raw.get()).ok());
        let inner = xargs.and_then(|xargs| xargs.kv_transfer_params);
        for raw in [fields.kv_transfer_params, inner].into_iter().flatten() {
            splice.remove_field(raw.get());
        }
    }
    let edited = splice.finish();

    let salt = fields.cache_salt.and_then(string);
    let session = fields.session_id.and_then(string).or_else(|| fields.user.and_then(string));
    let chain = match source(shape, &fields, json.len())? {
        Some(source) => chain(&source, &model, salt.as_deref(), router),
        None => Chain::empty(estimate_tokens(json.len(), router)),
    };
    Ok(Prompt {
        model: model.into_owned(),
        chain,
        session: session.map(Cow::into_owned),
        streamed: fields.stream.is_some_and(|raw| raw.get() == "true"),
        body: edited.map_or_else(|| body.clone(), Bytes::from),
    })
}

fn as_json(body: &[u8]) -> Result<&str, Error> {
    if body.is_empty() {
        return Err(Error::bad_request(None, "the request body is empty; a JSON object is needed"));
    }
    std::str::from_utf8(body).map_err(|cause| {
        let at = cause.valid_up_to();
        Error::bad_request(None, format!("the request body is not UTF-8: invalid byte at {at}"))
    })
}

fn parse(json: &str) -> Result<Fields<'_>, Error> {
    // Serde would take an array for the fields in order.
    if !json.trim_start().starts_with('{') {
        return Err(Error::bad_request(None, "the request body is not a JSON object"));
    }
    if let Ok(fields) = serde_json::from_str(json) {
        return Ok(fields);
    }
    // Only now, on the way to a refusal, is it worth to learn which field was wrong.
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let Err(cause) = serde_path_to_error::deserialize::<_, Fields<'_>>(&mut deserializer) else {
        // The object was fine, so what follows it is not.
        return Err(Error::bad_request(None, "there are characters after the JSON object"));
    };
    let path = cause.path().to_string();
    let inner = cause.into_inner();
    if inner.is_data() && inner.to_string().starts_with("duplicate field") {
        return Err(Error::bad_request(None, inner.to_string()));
    }
    if inner.is_data() {
        let message = format!("{path}: must be {}", expected(&inner));
        return Err(Error::bad_request(Some(path.into()), message));
    }
    Err(Error::bad_request(None, format!("the request body is not valid JSON: {inner}")))
}

/// What would have been right. The rest of the parser's message repeats what it found, which may be a prompt's text.
fn expected(cause: &serde_json::Error) -> String {
    let cause = cause.to_string();
    let expected =
        cause.rsplit_once(", expected ").map_or("of another type", |(_, expected)| expected);
    expected.replacen("a sequence", "a list", 1).replacen("struct Message", "an object", 1)
}

fn model_name(raw: &RawValue) -> Result<Cow<'_, str>, Error> {
    let wrong = |why: String| Error::bad_request(Some("model".into()), format!("model: {why}"));
    let name = string(raw).ok_or_else(|| wrong("must be a string".to_owned()))?;
    if name.len() > LONGEST_MODEL {
        return Err(wrong(format!("must not be longer than {LONGEST_MODEL} bytes")));
    }
    Ok(name)
}

/// The string that a raw value holds, if it is one.
fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(raw.get()).ok().map(Cow::Owned)
}

fn source(shape: Shape, fields: &Fields<'_>, capacity: usize) -> Result<Option<Source>, Error> {
    match shape {
        Shape::Chat | Shape::Messages => {
            let messages = fields.messages.as_ref().ok_or_else(|| missing("messages"))?;
            let mut key = text::KeyText::with_capacity(capacity);
            key.head(&[fields.tools, fields.system]);
            key.messages(messages);
            Ok(Some(Source::Text(key.finish())))
        }
        Shape::Completion => Ok(prompt_source(fields.prompt.ok_or_else(|| missing("prompt"))?)),
        Shape::Input | Shape::Responses => Ok(input_source(fields, capacity)),
        Shape::Plain | Shape::Form => Ok(None),
    }
}

fn missing(field: &'static str) -> Error {
    Error::bad_request(Some(field.into()), format!("{field}: this field is required"))
}

/// A prompt is text, token ids, or a list of either; a list of prompts is routed by its first.
fn prompt_source(raw: &RawValue) -> Option<Source> {
    if let Some(source) = single_source(raw) {
        return Some(source);
    }
    let prompts = serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok()?;
    let first = single_source(prompts.first()?)?;
    Some(if prompts.len() == 1 { first } else { Source::Batch(Box::new(first), raw.get().len()) })
}

fn single_source(raw: &RawValue) -> Option<Source> {
    match string(raw) {
        Some(text) => Some(Source::Text(text.into_owned().into_bytes())),
        None => serde_json::from_str(raw.get()).ok().map(Source::Tokens),
    }
}

fn input_source(fields: &Fields<'_>, capacity: usize) -> Option<Source> {
    if let Some(messages) = &fields.messages {
        let mut key = text::KeyText::with_capacity(capacity);
        key.messages(messages);
        return Some(Source::Text(key.finish()));
    }
    let input = fields.input?;
    if let Ok(items) = serde_json::from_str::<Vec<text::Message<'_>>>(input.get()) {
        let mut key = text::KeyText::with_capacity(capacity);
        key.head(&[fields.tools, fields.instructions]);
        key.messages(&items);
        return Some(Source::Text(key.finish()));
    }
    match prompt_source(input)? {
        Source::Text(text) => {
            let mut key = text::KeyText::with_capacity(capacity);
            key.head(&[fields.tools, fields.instructions]);
            key.text(&text);
            Some(Source::Text(key.finish()))
        }
        other => Some(other),
    }
}

fn chain(source: &Source, model: &str, cache_salt: Option<&str>, router: &Router) -> Chain {
    let config = router.config();
    match source {
        Source::Text(text) => {
            let block = config.text_block_bytes;
            let scope = Scope { model, cache_salt, block, kind: KeyKind::Text };
            Chain::from_text(&scope, text, config.bytes_per_token)
        }
        Source::Tokens(tokens) => {
            let block = config.token_block_tokens;
            let scope = Scope { model, cache_salt, block, kind: KeyKind::Tokens };
            Chain::from_tokens(&scope, tokens)
        }
        Source::Batch(first, bytes) => {
            let tokens = estimate_tokens(*bytes, router);
            chain(first, model, cache_salt, router).with_prompt_tokens(tokens)
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate of a positive length"
)]
fn estimate_tokens(bytes: usize, router: &Router) -> u32 {
    (bytes as f32 / router.config().bytes_per_token) as u32
}

/// A request without a model is meant for the only one there is, as engines see it.
fn only_model(router: &Router) -> Result<String, Error> {
    let mut models = router.models();
    if models.len() == 1 {
        return Ok(models.remove(0).id);
    }
    let known: Vec<String> = models.into_iter().map(|model| model.id).collect();
    let known = known.join(", ");
    Err(Error::bad_request(
        Some("model".into()),
        format!("model: this field is required; known models: {known}"),
    ))
}

#[cfg(test)]
mod tests;
