//! What a request leaves behind: one log line and its metrics. Never a word of its prompt.

mod hashes;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use nebula_route::{Choice, Other, Outcome};

use crate::check::Predicted;
use crate::context::Context;
use crate::decisions::{Decision, Elsewhere};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::prompt::{Origin, Prompt};
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
    origin: Origin,
    /// Whether the client asked for the decision.
    debug: bool,
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

/// What was chosen, without the guard.
struct Routed {
    engine: Arc<nebula_route::Engine>,
    rank: u32,
    predicted: Predicted,
    cost: f32,
    queue: u32,
    candidates: u32,
    runner_up: Option<Other>,
    shadow: Option<Other>,
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
            origin: Origin::Text,
            debug: false,
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

    /// Whether the client asked for the decision in the reply's headers.
    pub(crate) fn is_debug(&self) -> bool {
        self.debug
    }

    /// Where the prompt's tokens came from.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn prompt(&mut self, prompt: &Prompt, debug: bool) {
        self.model.clone_from(&prompt.model);
        self.debug = debug;
        self.origin = prompt.key.origin;
        self.prompt_tokens = prompt.key.chain().prompt_tokens();
        let config = &self.context.config;
        if config.log_prompt_hashes && config.log_requests && self.endpoint.shape.generates() {
            self.hashes = Some(PromptHashes::of(prompt.key.chain()));
        }
    }

    pub(crate) fn choice(&mut self, choice: &Choice) {
        self.attempts += 1;
        self.context.metrics.routed(self.start.elapsed());
        if let Some((differs, gain)) = choice.shadow_gain() {
            self.context.metrics.shadowed(differs, gain);
        }
        self.prompt_tokens = choice.prompt_tokens;
        self.routed = Some(Routed {
            engine: Arc::clone(&choice.engine),
            rank: choice.rank_index,
            predicted: Predicted {
                prompt: choice.prompt_tokens,
                overlap: choice.overlap_tokens(),
                exact: choice.exact,
            },
            cost: choice.terms.total,
            queue: choice.running_before,
            candidates: choice.candidates,
            runner_up: choice.runner_up.clone(),
            shadow: choice.shadow.clone(),
        });
    }

    pub(crate) fn first_byte(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        self.ttft_ms = Some(self.elapsed_ms());
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

    /// Whether the stream's own end went by: a client that then leaves, before the connection's, has all of it.
    fn is_done(&self) -> bool {
        self.tail[1].ends_with(b"data: [DONE]\n\n")
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
            overlap = routed.map_or(0, |routed| routed.predicted.overlap),
            key = self.origin.as_str(),
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

impl Record {
    fn decision(&self, routed: &Routed, usage: Usage) -> Decision {
        let of = |other: &Other| Elsewhere {
            engine: other.engine.spec().name.clone(),
            rank: other.rank_index,
            cost: None,
            gain: None,
        };
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let at = since_1970.unwrap_or_default().saturating_sub(self.start.elapsed());
        Decision {
            at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            id: self.request_id.to_str().unwrap_or("?").to_owned(),
            model: self.model.clone(),
            path: self.endpoint.path,
            engine: routed.engine.spec().name.clone(),
            rank: routed.rank,
            policy: self.context.router.policy().name(),
            key: self.origin.kind(),
            source: self.origin,
            exact: routed.predicted.exact,
            prompt_tokens: self.prompt_tokens,
            overlap_tokens: routed.predicted.overlap,
            cached_tokens: usage.cached,
            cost: routed.cost,
            runner_up: routed
                .runner_up
                .as_ref()
                .map(|other| Elsewhere { cost: Some(other.cost), ..of(other) }),
            shadow: routed
                .shadow
                .as_ref()
                .map(|other| Elsewhere { gain: Some(routed.cost - other.cost), ..of(other) }),
            candidates: routed.candidates,
            attempts: self.attempts,
            ttft_ms: self.ttft_ms.map(round_ms),
            total_ms: round_ms(self.elapsed_ms()),
            status: self.status,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.finished && !self.is_done() {
            self.status = CLIENT_GONE;
            self.error = Some("the client left".to_owned());
            if let Some(routed) = &self.routed {
                self.context.note(&routed.engine, Outcome::ClientGone, None);
            }
        }
        let mut usage = self.usage();
        let metrics = &self.context.metrics;
        let engine = self.routed.as_ref().map_or("", |routed| routed.engine.spec().name.as_str());
        metrics.request(self.endpoint, engine, self.status, self.start.elapsed());
        if let (Some(ttft_ms), Some(routed)) = (self.ttft_ms, &self.routed)
            && self.status < 400
        {
            metrics.first_byte(engine, ttft_ms / 1e3);
            let (context, predicted) = (&self.context, routed.predicted);
            let checks = &context.checks;
            usage.cached = checks.reply(context, &routed.engine, routed.rank, predicted, usage);
            metrics.overlap(engine, self.prompt_tokens, predicted.overlap, usage);
        }
        if self.context.decisions.are_kept()
            && let Some(routed) = &self.routed
        {
            self.context.decisions.keep(self.decision(routed, usage));
        }
        if self.context.config.log_requests {
            self.log(usage);
        }
    }
}

fn round_ms(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}
