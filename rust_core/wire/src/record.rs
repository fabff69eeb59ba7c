//! What a request leaves behind: one log line and its metrics. Never a word of its prompt.

mod hashes;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use nebula_route::{Choice, Outcome};

use crate::dispatch::Context;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::prompt::Prompt;
use crate::usage::Usage;
use hashes::PromptHashes;

/// The status of a request whose client left before there was one (nginx's 499).
const CLIENT_GONE: u16 = 499;

/// Facts of one request as they become known; written when it is dropped, on whatever path.
pub(crate) struct Record {
    context: Arc<Context>,
    endpoint: Endpoint,
    request_id: HeaderValue,
    start: Instant,
    model: String,
    prompt_tokens: u32,
    /// Only where they are logged.
    hashes: Option<PromptHashes>,
    routed: Option<Routed>,
    attempts: u32,
    status: u16,
    error: Option<String>,
    ttft_ms: Option<f64>,
    /// The last chunks: usage stands in one of them.
    tail: [Bytes; 2],
    finished: bool,
}

struct Routed {
    engine: Arc<nebula_route::Engine>,
    rank: u32,
    overlap_tokens: u32,
    cost: f32,
    queue: u32,
    candidates: u32,
}

impl Record {
    /// Begins the record.
    pub(crate) fn new(
        context: Arc<Context>,
        request_id: HeaderValue,
        endpoint: Endpoint,
    ) -> Record {
        Record {
            context,
            endpoint,
            request_id,
            start: Instant::now(),
            model: String::new(),
            prompt_tokens: 0,
            hashes: None,
            routed: None,
            attempts: 0,
            status: CLIENT_GONE,
            error: None,
            ttft_ms: None,
            tail: [Bytes::new(), Bytes::new()],
            finished: false,
        }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    pub(crate) fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }

    pub(crate) fn prompt(&mut self, prompt: &Prompt) {
        self.model.clone_from(&prompt.model);
        self.prompt_tokens = prompt.chain.prompt_tokens();
        let config = &self.context.config;
        if config.log_prompt_hashes && config.log_requests && self.endpoint.shape.generates() {
            self.hashes = Some(PromptHashes::of(&prompt.chain));
        }
    }

    pub(crate) fn choice(&mut self, choice: &Choice) {
        self.attempts += 1;
        self.context.metrics.routed(self.start.elapsed());
        self.routed = Some(Routed {
            engine: Arc::clone(&choice.engine),
            rank: choice.rank_index,
            overlap_tokens: choice.overlap_tokens,
            cost: choice.terms.total,
            queue: choice.running_before,
            candidates: choice.candidates,
        });
    }

    pub(crate) fn first_byte(&mut self, status: StatusCode, chunk: &Bytes) {
        self.status = status.as_u16();
        self.ttft_ms = Some(self.elapsed_ms());
        self.chunk(chunk);
    }

    pub(crate) fn chunk(&mut self, chunk: &Bytes) {
        self.tail.swap(0, 1);
        self.tail[1] = chunk.clone();
    }

    /// The reply ended early after its first byte.
    pub(crate) fn broke(&mut self, error: &Error) {
        self.error = Some(error.to_string());
    }

    /// The request ran to its end, good or bad; a record dropped without this is of a client that left.
    pub(crate) fn finish(mut self, error: Option<&Error>) {
        self.finished = true;
        if let Some(error) = error {
            self.status = error.status();
            self.error = Some(error.to_string());
        }
    }

    fn elapsed_ms(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * 1e3
    }

    fn usage(&self) -> Usage {
        let [before, last] = &self.tail;
        Usage::read(last).or(Usage::read(before))
    }

    fn log(&self, usage: Usage) {
        let routed = self.routed.as_ref();
        let cost = routed.map_or(0.0, |routed| f64::from(routed.cost));
        let hashes = self.hashes.as_ref();
        tracing::info!(
            target: "nebula.request",
            model = self.model,
            engine = routed.map_or("-", |routed| routed.engine.spec().name.as_str()),
            rank = routed.map(|routed| routed.rank),
            overlap = routed.map_or(0, |routed| routed.overlap_tokens),
            prompt = self.prompt_tokens,
            cached = usage.cached,
            completion = usage.completion,
            cost = (cost * 10.0).round() / 10.0,
            queue = routed.map_or(0, |routed| routed.queue),
            candidates = routed.map_or(0, |routed| routed.candidates),
            attempts = self.attempts,
            status = self.status,
            ttft_ms = self.ttft_ms.map(round_ms),
            total_ms = round_ms(self.elapsed_ms()),
            path = self.endpoint.path,
            id = self.request_id.to_str().unwrap_or("?"),
            error = self.error,
            blocks = hashes.map(tracing::field::display),
            block_tokens = hashes.map(PromptHashes::tokens_each),
            "routing"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.finished {
            self.status = CLIENT_GONE;
            self.error = Some("the client left".to_owned());
            if let Some(routed) = &self.routed {
                self.context.note(&routed.engine, Outcome::ClientGone, None);
            }
        }
        let usage = self.usage();
        let metrics = &self.context.metrics;
        let engine = self.routed.as_ref().map_or("", |routed| routed.engine.spec().name.as_str());
        metrics.request(self.endpoint, engine, self.status, self.start.elapsed());
        if let (Some(ttft_ms), Some(routed)) = (self.ttft_ms, &self.routed)
            && self.status < 400
        {
            metrics.first_byte(engine, ttft_ms / 1e3);
            metrics.overlap(engine, self.prompt_tokens, routed.overlap_tokens, usage);
        }
        if self.context.config.log_requests {
            self.log(usage);
        }
    }
}

fn round_ms(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}
