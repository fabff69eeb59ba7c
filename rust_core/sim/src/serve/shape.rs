//! The JSON of replies and of stream chunks, key for key as vLLM writes it.

use std::fmt::Write;

use bytes::BytesMut;

use super::driver::Progress;
use crate::Finish;
use crate::fault::Lie;
use crate::reply::Reply;

/// The version of vLLM whose face this is.
pub(crate) const VERSION: &str = "0.32.0";
const FINGERPRINT: &str = "vllm-0.32.0-00000000";

/// Which of the two `OpenAI` faces a reply wears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    Chat,
    Completion,
}

/// Which chunks of a stream tell the usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    Never,
    /// One of their own at the end.
    Last,
    /// That one, and each other one too.
    Every,
}

/// What a reply says beside its words.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) face: Face,
    /// The id and the model as JSON strings, quotes included.
    pub(crate) id: String,
    pub(crate) model: String,
    /// Unix seconds.
    pub(crate) created: u64,
    pub(crate) reply: Reply,
    pub(crate) prompt_tokens: u32,
    /// Prompt tokens in full blocks: what the cache can hold of it.
    pub(crate) prompt_block_tokens: u32,
    /// The prompt itself, if the client wants to see token ids.
    pub(crate) token_ids: Option<Vec<u32>>,
    pub(crate) tokens: u32,
    pub(crate) finish: Finish,
    pub(crate) usage: Usage,
    pub(crate) told: Told,
}

/// What is told of cached tokens, where that is not what was found in the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// Tokens that were found in the cache of the engine that computed the prompt.
    pub(crate) elsewhere: Option<u32>,
    pub(crate) lie: Option<Lie>,
}

/// Writes the events of one stream. Most chunks are three copies: opening, word, closing.
#[derive(Debug)]
pub(crate) struct Chunks {
    shape: Shape,
    /// `data: {"id":…,"choices":[`
    head: Vec<u8>,
    /// `head` and the choice up to its word.
    open: Vec<u8>,
    /// From the word to the end of a chunk that is not the last, if all such are equal.
    close: Option<Vec<u8>>,
}

// === impl Face ===

impl Face {
    pub(crate) fn id_prefix(self) -> &'static str {
        match self {
            Face::Chat => "chatcmpl-",
            Face::Completion => "cmpl-",
        }
    }
}

// === impl Shape ===

impl Shape {
    fn finish_reason(&self) -> &'static str {
        match self.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Abort => "abort",
        }
    }

    /// Prompt tokens that this request added to the cache.
    fn created_cache_tokens(&self, progress: Progress) -> u32 {
        self.prompt_block_tokens.saturating_sub(progress.cached + progress.external)
    }

    /// Prompt tokens that are said to have been cached.
    fn cached_tokens(&self, progress: Progress) -> u32 {
        let truth = self.told.elsewhere.unwrap_or(progress.cached + progress.external);
        self.told.lie.map_or(truth, |lie| lie.tell(truth))
    }

    /// The body of a reply that is not streamed; `offer` tells another engine of its blocks.
    pub(crate) fn whole(&self, progress: Progress, offer: Option<&str>) -> String {
        let offer = offer.unwrap_or("null");
        let Shape { id, model, created, prompt_tokens, tokens, .. } = self;
        let text = self.reply.text(*tokens);
        let finish = self.finish_reason();
        let total = prompt_tokens + tokens;
        let ids = self
            .token_ids
            .as_ref()
            .map(|_| (0..*tokens).map(|i| self.reply.token(i)).collect::<Vec<_>>());
        let (ids, prompt_ids) = (json(ids.as_ref()), json(self.token_ids.as_ref()));
        let cached = self.cached_tokens(progress);
        let usage = |created_cache: &str| {
            format!(
                r#"{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},"completion_tokens":{tokens},"prompt_tokens_details":{{"cached_tokens":{cached},"created_cache_tokens":{created_cache},"multimodal_tokens":null}},"completion_tokens_details":null}}"#
            )
        };
        match self.face {
            Face::Chat => {
                let usage = usage(&self.created_cache_tokens(progress).to_string());
                format!(
                    r#"{{"id":{id},"object":"chat.completion","created":{created},"model":{model},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":"{finish}","stop_reason":null,"token_ids":{ids},"routed_experts":null}}],"service_tier":null,"system_fingerprint":"{FINGERPRINT}","usage":{usage},"prompt_logprobs":null,"prompt_token_ids":{prompt_ids},"prompt_text":null,"kv_transfer_params":{offer},"ec_transfer_params":null,"metrics":null}}"#
                )
            }
            Face::Completion => {
                let usage = usage("null");
                format!(
                    r#"{{"id":{id},"object":"text_completion","created":{created},"model":{model},"choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":"{finish}","stop_reason":null,"token_ids":{ids},"prompt_logprobs":null,"prompt_token_ids":{prompt_ids},"routed_experts":null}}],"service_tier":null,"system_fingerprint":"{FINGERPRINT}","usage":{usage},"kv_transfer_params":{offer},"ec_transfer_params":null,"metrics":null}}"#
                )
            }
        }
    }
}

// === impl Chunks ===

impl Chunks {
    pub(crate) fn new(shape: Shape) -> Chunks {
        let (object, choice) = match shape.face {
            Face::Chat => ("chat.completion.chunk", r#"{"index":0,"delta":{"content":""#),
            Face::Completion => ("text_completion", r#"{"index":0,"text":""#),
        };
        let Shape { id, model, created, .. } = &shape;
        let head = format!(
            r#"data: {{"id":{id},"object":"{object}","created":{created},"model":{model},"choices":["#
        );
        let open = [head.as_bytes(), choice.as_bytes()].concat();
        let mut chunks = Chunks { shape, head: head.into_bytes(), open, close: None };
        if chunks.shape.token_ids.is_none() && chunks.shape.usage != Usage::Every {
            let mut close = BytesMut::new();
            chunks.write_close(0, false, &mut close);
            chunks.close = Some(close.to_vec());
        }
        chunks
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of a chunk, about.
    pub(crate) fn len_hint(&self) -> usize {
        self.open.len() + self.close.as_ref().map_or(256, Vec::len) + 8
    }

    /// The chunk that opens a chat reply.
    pub(crate) fn role(&self, out: &mut BytesMut) {
        let choice = r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]"#;
        out.extend_from_slice(&self.head);
        out.extend_from_slice(choice.as_bytes());
        self.write_continuous_usage(0, out);
        let prompt_ids = json(self.shape.token_ids.as_ref());
        put(out, format_args!(",\"prompt_token_ids\":{prompt_ids},\"prompt_text\":null}}\n\n"));
    }

    /// The chunk of token number `index`.
    pub(crate) fn token(&self, index: u32, out: &mut BytesMut) {
        let last = index + 1 == self.shape.tokens;
        out.extend_from_slice(&self.open);
        out.extend_from_slice(self.shape.reply.word(index).as_bytes());
        match &self.close {
            Some(close) if !last => out.extend_from_slice(close),
            _ => self.write_close(index, last, out),
        }
    }

    /// The chunk that carries the usage.
    pub(crate) fn usage(&self, progress: Progress, out: &mut BytesMut) {
        let Shape { prompt_tokens, tokens, face, .. } = &self.shape;
        let (total, cached) = (prompt_tokens + tokens, self.shape.cached_tokens(progress));
        out.extend_from_slice(&self.head);
        put(
            out,
            format_args!(
                r#"],"usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},"completion_tokens":{tokens},"prompt_tokens_details":{{"cached_tokens":{cached}"#
            ),
        );
        if *face == Face::Chat {
            put(
                out,
                format_args!(
                    r#","created_cache_tokens":{}"#,
                    self.shape.created_cache_tokens(progress)
                ),
            );
        }
        put(out, format_args!("}}}},\"system_fingerprint\":\"{FINGERPRINT}\"}}\n\n"));
    }

    fn write_close(&self, index: u32, last: bool, out: &mut BytesMut) {
        let shape = &self.shape;
        let finish =
            if last { format!("\"{}\"", shape.finish_reason()) } else { "null".to_owned() };
        let ids = json(shape.token_ids.as_ref().map(|_| [shape.reply.token(index)]));
        match shape.face {
            Face::Chat => {
                let stop_reason = if last { r#","stop_reason":null"# } else { "" };
                put(
                    out,
                    format_args!(
                        r#""}},"logprobs":null,"finish_reason":{finish}{stop_reason},"token_ids":{ids}}}]"#
                    ),
                );
            }
            Face::Completion => {
                let prompt_ids = json(shape.token_ids.as_ref().filter(|_| index == 0));
                put(
                    out,
                    format_args!(
                        r#"","logprobs":null,"finish_reason":{finish},"stop_reason":null,"prompt_token_ids":{prompt_ids},"token_ids":{ids}}}]"#
                    ),
                );
            }
        }
        self.write_continuous_usage(index + 1, out);
        if last && shape.usage == Usage::Never {
            put(out, format_args!(r#","system_fingerprint":"{FINGERPRINT}""#));
        }
        out.extend_from_slice(b"}\n\n");
    }

    fn write_continuous_usage(&self, completion: u32, out: &mut BytesMut) {
        let Shape { prompt_tokens, usage, face, .. } = &self.shape;
        if *usage != Usage::Every {
            return;
        }
        let details = if *face == Face::Chat { r#","completion_tokens_details":null"# } else { "" };
        let total = prompt_tokens + completion;
        put(
            out,
            format_args!(
                r#","usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},"completion_tokens":{completion}{details}}}"#
            ),
        );
    }
}

fn put(out: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    // Writing into memory cannot fail.
    let _ = out.write_fmt(text);
}

/// Numbers cannot fail to be JSON.
fn json<T: serde::Serialize>(value: T) -> String {
    serde_json::to_string(&value).unwrap_or_default()
}
