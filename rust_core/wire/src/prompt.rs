//! Request body -> model, key, session, and the bytes to send on.
//!
//! The body is read once and never rebuilt: what must change (an alias, a stripped field) is cut out of the client's
//! own bytes, so that unknown fields, number formats and key order reach the engine as they were sent.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use nebula_route::{Chain, Engine, EngineId, Query, Router, Served};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::config::Config;
use crate::context::Aliases;
use crate::endpoint::{Endpoint, Shape};
use crate::error::Error;
use crate::models::Models;
use crate::net;
use crate::usage::{Wishes, ask, present};

mod details;
mod form;
mod key;
mod keyed;
mod source;
pub(crate) mod splice;
mod text;

pub use details::{Ask, Details};
pub use key::{Key, Origin};

use details::Text;
use keyed::Keyed;
use splice::Splice;

/// What routing needs to know of a request, and what the engine gets.
#[derive(Debug)]
pub struct Prompt {
    /// The model as the engines know it: aliases are resolved.
    pub model: String,
    /// The prompt's blocks.
    pub key: Key,
    /// What must be asked of an engine before the key is as good as it can be.
    pub ask: Option<Ask>,
    /// The conversation, for session affinity.
    pub session: Option<String>,
    /// Whether the engine's first byte says that the prompt is done. Other replies come when all of it is.
    pub streamed: bool,
    /// The body to send.
    pub body: Bytes,
    /// The same with the prompt's ids, for engines that then need not tokenise it again.
    pub body_with_ids: Option<Bytes>,
    /// Whether the body asks for usage that the client did not ask for.
    pub strips_usage: bool,
    /// Whether too much of it is new to be tokenised where it was read.
    pub cold: bool,
}

/// What every request is read with.
pub(crate) struct Reader<'a> {
    pub(crate) config: &'a Config,
    /// Names that clients may use for a model, and what they stand for.
    pub(crate) aliases: &'a Aliases,
    pub(crate) router: &'a Router,
    pub(crate) models: &'a Models,
    /// Most bytes of text that may be tokenised on the spot.
    pub(crate) new_bytes: usize,
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
    #[serde(borrow, deserialize_with = "present")]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_embeds: Option<&'a RawValue>,
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

impl<'a> Fields<'a> {
    fn wishes(&self) -> Wishes<'a> {
        Wishes {
            stream: self.stream,
            stream_options: self.stream_options,
            n: self.n,
            prompt: self.prompt,
            prompt_embeds: self.prompt_embeds,
        }
    }
}

/// Where a request may go, by what came with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// The data-parallel rank.
    pub rank: Option<u32>,
    /// The one engine, by name.
    pub engine: Option<&'a str>,
}

impl Prompt {
    /// The blocks as an engine cuts them.
    #[must_use]
    pub fn chain_for(&self, engine: &Engine) -> &Chain {
        self.query(Wish::default(), &[]).chain_for(engine)
    }

    /// What the router is asked with.
    #[must_use]
    pub fn query<'a>(&'a self, wish: Wish<'a>, excluded: &'a [EngineId]) -> Query<'a> {
        Query {
            model: &self.model,
            chain: self.key.chain(),
            other_chains: self.key.other_chains(),
            session: self.session.as_deref(),
            rank: wish.rank,
            engine: wish.engine,
            excluded,
        }
    }
}

/// Longest model name in bytes: it comes back in error messages and stands in log lines.
const LONGEST_MODEL: usize = 512;

/// Reads a request for `endpoint`.
///
/// # Cost
/// O(bytes of the body): one pass over the JSON, one over the prompt.
///
/// # Errors
/// [`Kind::BadRequest`](crate::Kind::BadRequest) with the field and what would be right.
pub(crate) fn read(
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: Bytes,
    reader: &Reader<'_>,
) -> Result<Prompt, Error> {
    let mut prompt = match endpoint.shape {
        Shape::Form => form::read(headers, body, reader)?,
        shape => read_json(shape, &body, reader)?,
    };
    if let Some(session) = headers.get(net::SESSION_ID).and_then(|value| value.to_str().ok()) {
        prompt.session = Some(session.to_owned());
    }
    Ok(prompt)
}

fn read_json(shape: Shape, body: &Bytes, reader: &Reader<'_>) -> Result<Prompt, Error> {
    let (config, router) = (reader.config, reader.router);
    let json = as_json(body)?;
    let fields = parse(json)?;
    let named = fields.model.map(model_name).transpose()?.unwrap_or_default();
    let alias = reader.aliases.get(named.as_ref());
    let model = match alias {
        Some(model) => Cow::Borrowed(model.as_str()),
        None if named.is_empty() => Cow::Owned(only_model(router)?),
        None => named,
    };

    let mut splice = Splice::new(json);
    if let (Some(raw), Some(model)) = (fields.model, alias) {
        splice.replace_value(raw.get(), serde_json::Value::from(model.as_str()).to_string());
    }
    let params = kept_transfer_params(&fields, config, &mut splice);
    let strips_usage = config.ask_usage
        && matches!(shape, Shape::Chat | Shape::Completion)
        && ask(&mut splice, &fields.wishes());

    let served = router.served(&model);
    let text = Text::new(json);
    let keyed = Keyed::of(shape, &fields, &text, &model, served.as_deref(), reader)?;
    let served = served.filter(|served| served.takes_ids && params.is_none());
    let forwarded = keyed.ids.filter(|ids| {
        let room = |served: &Served| text.details().goes_as_ids(ids.len(), served.max_model_len);
        served.is_some_and(|served| room(&served))
    });
    let body_with_ids = forwarded.and_then(|ids| {
        let mut splice = splice.clone();
        with_ids(shape, &fields, &ids, &mut splice)?;
        splice.finish().map(Bytes::from)
    });
    let session = fields.session_id.and_then(string).or_else(|| fields.user.and_then(string));
    Ok(Prompt {
        model: model.into_owned(),
        key: keyed.key,
        ask: keyed.ask,
        session: session.map(Cow::into_owned),
        streamed: fields.stream.is_some_and(|raw| raw.get() == "true"),
        body: splice.finish().map_or_else(|| body.clone(), Bytes::from),
        body_with_ids,
        strips_usage,
        cold: keyed.cold,
    })
}

/// The client's own `kv_transfer_params` where they are trusted; else they go.
fn kept_transfer_params<'a>(
    fields: &Fields<'a>,
    config: &Config,
    splice: &mut Splice<'a>,
) -> Option<&'a RawValue> {
    if config.trust_kv_transfer_params {
        return fields.kv_transfer_params.or(fields.vllm_xargs);
    }
    let xargs = fields.vllm_xargs.and_then(|raw| serde_json::from_str::<Xargs<'_>>(raw.get()).ok());
    let inner = xargs.and_then(|xargs| xargs.kv_transfer_params);
    for raw in [fields.kv_transfer_params, inner].into_iter().flatten() {
        splice.remove_field(raw.get());
    }
    None
}

/// Puts the prompt's ids where an engine takes them; `None` where it takes none.
fn with_ids<'a>(
    shape: Shape,
    fields: &Fields<'a>,
    ids: &[u32],
    splice: &mut Splice<'a>,
) -> Option<()> {
    let ids = serde_json::to_string(ids).ok()?;
    match shape {
        Shape::Completion => splice.replace_value(fields.prompt?.get(), ids),
        Shape::Chat => {
            let params = format!(r#","kv_transfer_params":{{"prompt_token_ids":{ids}}}"#);
            splice.insert_after(fields.model?.get(), params);
        }
        _ => return None,
    }
    Some(())
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

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate of a positive length"
)]
fn estimate_tokens(bytes: usize, config: &nebula_route::Config) -> u32 {
    (bytes as f32 / config.bytes_per_token) as u32
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
