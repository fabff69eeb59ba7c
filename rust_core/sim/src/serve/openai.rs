//! The bodies that clients send: what they ask for, in tokens.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::refusal::Refusal;
use super::shape::{Face, Usage};
use crate::reply::Reply;
use crate::{Finish, hash, token};

/// A generation request, understood and within bounds.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) prompt: Vec<u32>,
    pub(crate) chain_seed: u64,
    pub(crate) reply: Reply,
    /// Tokens of the reply.
    pub(crate) tokens: u32,
    pub(crate) finish: Finish,
    pub(crate) stream: bool,
    pub(crate) usage: Usage,
    pub(crate) return_token_ids: bool,
    /// What else the prompt's blocks are made of.
    pub(crate) salt: Option<Box<str>>,
    /// What it has to do with other engines.
    pub(crate) kv_transfer_params: Option<Map<String, Value>>,
}

/// What bounds a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds<'a> {
    /// Names of the model; at least one.
    pub(crate) served: &'a [String],
    pub(crate) max_model_len: u32,
}

/// A request to `/tokenize`: its tokens, and whether their texts are wanted.
#[derive(Debug)]
pub(crate) struct Tokenized {
    pub(crate) tokens: Vec<u32>,
    pub(crate) want_texts: bool,
}

/// The fields that both faces share; all others are ignored, as vLLM does.
#[derive(Deserialize)]
struct Common<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<i64>,
    #[serde(default)]
    max_completion_tokens: Option<i64>,
    #[serde(default)]
    n: Option<i64>,
    #[serde(default)]
    return_token_ids: Option<bool>,
    #[serde(borrow, default)]
    cache_salt: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    kv_transfer_params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
    #[serde(default)]
    continuous_usage_stats: Option<bool>,
}

#[derive(Deserialize)]
struct Conversation<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(default)]
    add_generation_prompt: Option<bool>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Completion<'a> {
    #[serde(borrow, default)]
    prompt: Option<Prompt<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Deserialize)]
struct TokenizeOptions {
    #[serde(default)]
    return_token_strs: Option<bool>,
}

#[derive(Deserialize)]
struct Detokenize {
    tokens: Vec<u32>,
}

/// What a completion generates when it does not say.
const COMPLETION_TOKENS: i64 = 16;

/// The request in `body`.
///
/// # Errors
/// Whatever vLLM refuses, in its words.
pub(crate) fn ask(face: Face, body: &[u8], bounds: Bounds<'_>) -> Result<Ask, Refusal> {
    let common: Common<'_> = parse(body)?;
    let prompt = match face {
        Face::Chat => conversation(body)?,
        Face::Completion => completion(body)?,
    };
    let known = |model: &str| bounds.served.iter().any(|name| name == model);
    if let Some(model) = common.model.as_deref().filter(|model| !known(model)) {
        return Err(Refusal::unknown_model(model, &bounds.served.join(", ")));
    }
    if common.n.is_some_and(|n| n != 1) {
        return Err(Refusal::bad_request(
            "The simulator answers with one choice: n must be 1.".to_owned(),
            Some("n"),
        ));
    }
    let stream = common.stream.unwrap_or(false);
    if common.stream_options.is_some() && !stream {
        let message = "Stream options can only be defined when `stream=True`.".to_owned();
        return Err(Refusal::validation(&message, Some("stream_options".to_owned())));
    }
    let reply = Reply::to(&prompt);
    let (tokens, finish) = limit(face, &common, &prompt, reply, bounds)?;
    let usage = common.stream_options.map_or(Usage::Never, |options| options.usage());
    let kv_transfer_params = match common.kv_transfer_params {
        Some(params) => parse(params.get().as_bytes())?,
        None => None,
    };
    let salt = common.cache_salt.as_deref().filter(|salt| !salt.is_empty());
    Ok(Ask {
        chain_seed: hash::chain_seed(salt.unwrap_or_default()),
        salt: salt.map(Box::from),
        kv_transfer_params,
        prompt,
        reply,
        tokens,
        finish,
        stream,
        usage,
        return_token_ids: common.return_token_ids.unwrap_or(false),
    })
}

/// The tokens of a `/tokenize` body: a prompt, or messages.
pub(crate) fn tokenize(body: &[u8]) -> Result<Tokenized, Refusal> {
    let options: TokenizeOptions = parse(body)?;
    let tokens = match parse::<Completion<'_>>(body) {
        Ok(Completion { prompt: Some(prompt) }) => prompt.into_tokens()?,
        _ => conversation(body)?,
    };
    Ok(Tokenized { tokens, want_texts: options.return_token_strs.unwrap_or(false) })
}

/// The text of a `/detokenize` body.
pub(crate) fn detokenize(body: &[u8]) -> Result<String, Refusal> {
    parse::<Detokenize>(body).map(|body| token::decode(&body.tokens))
}

/// `body` as JSON of a known shape.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::unparsed(body, &error))
}

/// How many tokens the reply has, and how it ends.
fn limit(
    face: Face,
    common: &Common<'_>,
    prompt: &[u32],
    reply: Reply,
    bounds: Bounds<'_>,
) -> Result<(u32, Finish), Refusal> {
    let (name, asked) = match (face, common.max_completion_tokens) {
        (Face::Chat, Some(tokens)) => ("max_completion_tokens", Some(tokens)),
        (Face::Chat, None) => ("max_tokens", common.max_tokens),
        (Face::Completion, _) => {
            ("max_tokens", Some(common.max_tokens.unwrap_or(COMPLETION_TOKENS)))
        }
    };
    let len = i64::from(bounds.max_model_len);
    if let Some(tokens) = asked.filter(|&tokens| tokens > len) {
        let message = format!(
            "{name}={tokens} cannot be greater than max_model_len={len}. Please request fewer output tokens."
        );
        return Err(Refusal::value(&message, name, tokens));
    }
    // A tokenizer that stops at the limit knows no more than that the prompt exceeds it.
    if prompt.len() > bounds.max_model_len as usize {
        let least = len + 1;
        let message = format!(
            "This model's maximum context length is {len} tokens. However, your prompt contains at least {least} input \
             tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
        );
        return Err(Refusal::value(&message, "input_tokens", least));
    }
    let room = bounds.max_model_len - u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    let (tokens, finish) = match asked {
        Some(tokens) => (tokens.min(i64::from(room)), Finish::Length),
        None if room < reply.natural_len() => (i64::from(room), Finish::Length),
        None => (i64::from(reply.natural_len()), Finish::Stop),
    };
    match u32::try_from(tokens) {
        Ok(tokens) if tokens > 0 => Ok((tokens, finish)),
        _ => Err(Refusal::value(
            &format!("max_tokens must be at least 1, got {tokens}."),
            "max_tokens",
            tokens,
        )),
    }
}

/// Messages in the form of `ChatML`, up to the opening of the reply.
fn conversation(body: &[u8]) -> Result<Vec<u32>, Refusal> {
    let conversation: Conversation<'_> = parse(body)?;
    let mut tokens = Vec::with_capacity(body.len() / 3);
    if let Some(tools) = conversation.tools.filter(|tools| tools.get() != "null") {
        token::open_turn("tools", &mut tokens);
        token::encode(tools.get(), &mut tokens);
        token::close_turn(&mut tokens);
    }
    for message in &conversation.messages {
        token::open_turn(&message.role, &mut tokens);
        message.content.map_or(Ok(()), |content| encode_content(content, &mut tokens))?;
        if let Some(calls) = message.tool_calls.filter(|calls| calls.get() != "null") {
            token::encode(calls.get(), &mut tokens);
        }
        token::close_turn(&mut tokens);
    }
    if conversation.add_generation_prompt.unwrap_or(true) {
        token::open_turn("assistant", &mut tokens);
    }
    Ok(tokens)
}

/// A text, or parts of which those without text (images) count as their JSON.
fn encode_content(content: &RawValue, tokens: &mut Vec<u32>) -> Result<(), Refusal> {
    let raw = content.get();
    match raw.as_bytes()[0] {
        b'n' => {}
        b'[' => {
            for raw in parse::<Vec<&RawValue>>(raw.as_bytes())? {
                match parse::<Part<'_>>(raw.get().as_bytes())?.text {
                    Some(text) => token::encode(&text, tokens),
                    None => token::encode(raw.get(), tokens),
                }
            }
        }
        _ => token::encode(&parse::<Cow<'_, str>>(raw.as_bytes())?, tokens),
    }
    Ok(())
}

fn completion(body: &[u8]) -> Result<Vec<u32>, Refusal> {
    let tokens =
        parse::<Completion<'_>>(body)?.prompt.map_or(Ok(Vec::new()), Prompt::into_tokens)?;
    if tokens.is_empty() {
        let message = "Either prompt or prompt_embeds must be provided and non-empty.";
        return Err(Refusal::validation(message, Some("prompt".to_owned())));
    }
    Ok(tokens)
}

// === impl StreamOptions ===

impl StreamOptions {
    fn usage(&self) -> Usage {
        match (self.include_usage, self.continuous_usage_stats) {
            (Some(true), Some(true)) => Usage::Every,
            (Some(true), _) => Usage::Last,
            _ => Usage::Never,
        }
    }
}

// === impl Prompt ===

impl Prompt<'_> {
    fn into_tokens(self) -> Result<Vec<u32>, Refusal> {
        let encoded = |text: &str| {
            let mut tokens = Vec::new();
            token::encode(text, &mut tokens);
            tokens
        };
        let mut prompts = match self {
            Prompt::Text(text) => return Ok(encoded(&text)),
            Prompt::Tokens(tokens) => return Ok(tokens),
            Prompt::Texts(texts) => texts.iter().map(|text| encoded(text)).collect(),
            Prompt::TokenLists(lists) => lists,
        };
        match (prompts.pop(), prompts.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(Refusal::bad_request(
                "The simulator takes one prompt per request.".to_owned(),
                Some("prompt"),
            )),
        }
    }
}
