//! One exchange from request to last byte.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nebula_route::{Choice, Engine, EngineId, Outcome, Query, Router, Status};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::endpoint::{Endpoint, Shape};
use crate::error::{Error, Retry};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::net;
use crate::prompt::{self, Prompt};
use crate::record::Record;
use crate::reply::{Head, Sender};
use crate::tasks::{Clock, off_thread};
use crate::upstream::{Call, Upstream};

/// Bodies from this size on are read on the pool: parsing and hashing would hold up every other request.
const LONG_BODY: usize = 256 * 1024;
/// Replies up to this size that are no stream are held until they are whole, so that a broken one can be retried.
const WHOLE_REPLY: u64 = 1024 * 1024;

/// A client's request, as the gateway received it.
#[derive(Debug)]
pub struct Request {
    /// Where to send it.
    pub endpoint: Endpoint,
    /// The query behind the path, without `?`; may be empty.
    pub query: String,
    /// All headers of the client.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// What every exchange uses.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) router: Arc<Router>,
    pub(crate) upstream: Upstream,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    /// Cancelled when replies must end now because the gateway stops.
    pub(crate) cut: CancellationToken,
}

/// An engine's reply whose first bytes are here and have not reached the client.
struct Answer {
    choice: Choice,
    status: StatusCode,
    headers: HeaderMap,
    first: Bytes,
    rest: Option<Incoming>,
}

impl Context {
    /// Tells the engine's health how a request went, and the log if that takes the engine out.
    pub(crate) fn note(&self, engine: &Engine, outcome: Outcome, cause: Option<&Error>) {
        let before = engine.status();
        self.router.note(engine, outcome, self.clock.now());
        if before != Status::Down && engine.status() == Status::Down {
            let cause = cause.map_or_else(|| format!("{outcome:?}"), ToString::to_string);
            tracing::warn!(engine = engine.spec().name, cause, "engine is down");
        }
    }
}

/// Serves one request and tells `sender` all that comes of it.
pub(crate) async fn exchange(
    mut record: Record,
    request: Request,
    sender: Sender,
    _permit: OwnedSemaphorePermit,
) {
    let context = Arc::clone(record.context());
    let result = answer(&context, request, &sender, &mut record).await;
    record.finish(result.as_ref().err());
    sender.end(result);
}

async fn answer(
    context: &Arc<Context>,
    request: Request,
    sender: &Sender,
    record: &mut Record,
) -> Result<(), Error> {
    let debug = request.headers.get(net::DEBUG).is_some_and(|value| value == "1");
    let (request, prompt) = read_prompt(context, request).await?;
    record.prompt(&prompt);
    let answer = context.cut.run_until_cancelled(first_answer(context, request, &prompt, record));
    let answer = answer.await.unwrap_or_else(|| Err(Error::cut()))?;
    relay(context, answer, debug, sender, record).await
}

async fn read_prompt(
    context: &Arc<Context>,
    mut request: Request,
) -> Result<(Request, Prompt), Error> {
    let body = std::mem::take(&mut request.body);
    let long = body.len() >= LONG_BODY;
    let context = Arc::clone(context);
    let read = move || {
        let prompt = prompt::read(
            request.endpoint,
            &request.headers,
            body,
            &context.config,
            &context.router,
        )?;
        Ok((request, prompt))
    };
    if long { off_thread(read).await? } else { read() }
}

/// Tries engines, the cheapest first, until one answers or trying again would help nobody.
async fn first_answer(
    context: &Context,
    request: Request,
    prompt: &Prompt,
    record: &mut Record,
) -> Result<Answer, Error> {
    let deadline = Instant::now() + context.config.first_byte_timeout();
    let rank = wanted_rank(&request.headers)?;
    let says_when_prefilled = prompt.streamed || !request.endpoint.shape.generates();
    let prefill_tokens_per_second =
        (!says_when_prefilled).then_some(context.config.prefill_tokens_per_second);
    let call = call(request, prompt)?;
    let mut tried: Vec<EngineId> = Vec::new();
    let mut last = None;
    loop {
        let query = Query {
            model: &prompt.model,
            chain: &prompt.chain,
            session: prompt.session.as_deref(),
            rank,
            excluded: &tried,
        };
        let choice = match context.router.route(&query, context.clock.now()) {
            Ok(choice) => choice,
            // What the engines before said is closer to the truth than that there is none left.
            Err(none_left) => return last.unwrap_or_else(|| Err(none_left.into())),
        };
        tried.push(choice.engine.id());
        record.choice(&choice);
        let engine = Arc::clone(&choice.engine);
        let result =
            attempt(context, choice, call.clone(), deadline, prefill_tokens_per_second).await;
        context.note(&engine, outcome(result.as_ref()), result.as_ref().err());
        let again = match &result {
            Ok(answer) if is_overloaded(answer.status) => {
                // It took nothing on; its answer is kept only in case nobody else has a better one.
                answer.choice.guard.release();
                true
            }
            Ok(answer) => {
                if answer.status.is_success() {
                    context.router.keep(&answer.choice, &prompt.chain, context.clock.now());
                }
                false
            }
            Err(error) => error.retry != Retry::Never,
        };
        if !again || tried.len() > context.config.retries as usize {
            return result;
        }
        context.metrics.retried(&engine);
        last = Some(result);
    }
}

/// Asks one engine and waits for its first byte, or for the whole reply if that is no stream.
///
/// # Cancel safety
/// Dropping the future returns the load and closes the connection.
async fn attempt(
    context: &Context,
    choice: Choice,
    mut call: Call,
    deadline: Instant,
    prefill_tokens_per_second: Option<f32>,
) -> Result<Answer, Error> {
    let engine = Arc::clone(&choice.engine);
    let name = &engine.spec().name;
    if engine.spec().ranks > 1 {
        call.headers.insert(net::DATA_PARALLEL_RANK, HeaderValue::from(choice.rank_index));
    }
    let first_byte = async {
        let response = context.upstream.send(&engine, call).await?;
        let (head, mut body) = response.into_parts();
        if is_short(&head.headers) {
            let whole = body.collect().await.map_err(|cause| broken(name, &cause))?.to_bytes();
            return Ok((head, whole, None));
        }
        let first = next_chunk(&mut body).await.map_err(|cause| broken(name, &cause))?;
        Ok((head, first.unwrap_or_default(), Some(body)))
    };
    let (head, first, rest) = tokio::select! {
        biased;
        result = timeout_at(deadline, first_byte) => result.unwrap_or_else(|_| {
            Err(Error::timeout(name, "first byte", context.config.first_byte_timeout_ms))
        })?,
        () = context.health.lost(engine.id()) => {
            return Err(Error::broken(name, "it no longer answers health probes"));
        }
        never = prefilled(&choice, prefill_tokens_per_second) => match never {},
    };
    choice.guard.first_byte();
    Ok(Answer { choice, status: head.status, headers: head.headers, first, rest })
}

/// Returns the prefill part of the load when the engine must have done it, and never ends.
///
/// A reply that is not streamed says nothing before its last token. Booked until then, a finished prompt would keep
/// requests away from the engine that holds it.
async fn prefilled(choice: &Choice, tokens_per_s: Option<f32>) -> Infallible {
    if let Some(tokens_per_s) = tokens_per_s {
        let own = choice.prompt_tokens.saturating_sub(choice.overlap_tokens);
        let tokens = choice.terms.prefill_backlog + own as f32;
        tokio::time::sleep(Duration::from_secs_f32(tokens / tokens_per_s)).await;
        choice.guard.first_byte();
    }
    std::future::pending().await
}

/// Passes the reply on as it comes.
async fn relay(
    context: &Context,
    mut answer: Answer,
    debug: bool,
    sender: &Sender,
    record: &mut Record,
) -> Result<(), Error> {
    let events = net::is_event_stream(&answer.headers);
    record.first_byte(answer.status, &answer.first);
    let head = Head {
        status: answer.status.as_u16(),
        headers: client_headers(&mut answer, debug, record),
    };
    let mut whole_event = answer.first.ends_with(b"\n\n");
    sender.head(head, std::mem::take(&mut answer.first));
    let Some(mut rest) = answer.rest.take() else {
        return Ok(());
    };
    let engine = Arc::clone(&answer.choice.engine);
    let mut cut = pin!(context.cut.cancelled());
    let broke = loop {
        let chunk = tokio::select! {
            biased;
            () = &mut cut => break Error::cut(),
            chunk = timeout(context.config.idle_timeout(), next_chunk(&mut rest)) => chunk,
        };
        match chunk {
            Ok(Ok(Some(chunk))) => {
                record.chunk(&chunk);
                whole_event = chunk.ends_with(b"\n\n");
                sender.chunk(chunk).await;
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(cause)) => {
                let error = Error::died_mid_reply(&engine.spec().name, &cause.to_string());
                context.note(&engine, Outcome::DiedMidStream, Some(&error));
                break error;
            }
            Err(_) => {
                let limit_ms = context.config.idle_timeout_ms;
                let error = Error::timeout(&engine.spec().name, "further byte", limit_ms);
                context.note(&engine, Outcome::Timeout, Some(&error));
                break error;
            }
        }
    };
    if events {
        sender.chunk(broke.event(record.endpoint(), whole_event)).await;
        record.broke(&broke);
        return Ok(());
    }
    Err(broke)
}

/// The next chunk of data; `None` at the end. Trailers are skipped.
async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn broken(engine: &str, cause: &hyper::Error) -> Error {
    Error::broken(engine, &cause.to_string())
}

fn call(request: Request, prompt: &Prompt) -> Result<Call, Error> {
    let mut headers = request.headers;
    net::to_engine(&mut headers, request.endpoint.shape == Shape::Form);
    let path_and_query = if request.query.is_empty() {
        PathAndQuery::from_static(request.endpoint.path)
    } else {
        let text = format!("{}?{}", request.endpoint.path, request.query);
        PathAndQuery::try_from(text).map_err(|cause| {
            Error::bad_request(None, format!("the query string is not valid: {cause}"))
        })?
    };
    Ok(Call { method: Method::POST, path_and_query, headers, body: prompt.body.clone() })
}

fn wanted_rank(headers: &HeaderMap) -> Result<Option<u32>, Error> {
    let Some(value) = headers.get(net::DATA_PARALLEL_RANK) else {
        return Ok(None);
    };
    let rank = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    rank.map(Some).ok_or_else(|| {
        let message = "X-data-parallel-rank: must be a whole number from 0";
        Error::bad_request(Some("X-data-parallel-rank".into()), message)
    })
}

/// Whether a reply is held until it is whole. A stream of events never is.
fn is_short(headers: &HeaderMap) -> bool {
    if net::is_event_stream(headers) {
        return false;
    }
    let length =
        headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    length.is_some_and(|length| length <= WHOLE_REPLY)
}

/// The engine is healthy but takes nothing more now; another one may.
fn is_overloaded(status: StatusCode) -> bool {
    status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS
}

fn outcome(result: Result<&Answer, &Error>) -> Outcome {
    match result {
        Ok(answer) if is_overloaded(answer.status) => Outcome::Overloaded,
        Ok(answer) if answer.status.is_server_error() => Outcome::ServerError,
        Ok(_) => Outcome::Ok,
        Err(error) => match error.retry {
            Retry::IfUnsent => Outcome::ConnectFailed,
            Retry::Always => Outcome::Reset,
            Retry::Never => Outcome::Timeout,
        },
    }
}

fn client_headers(answer: &mut Answer, debug: bool, record: &Record) -> HeaderMap {
    let mut headers = std::mem::take(&mut answer.headers);
    net::to_client(&mut headers);
    let spec = answer.choice.engine.spec();
    headers.insert(net::ENGINE, text_value(&spec.name));
    headers.insert(net::REQUEST_ID, record.request_id().clone());
    if is_overloaded(answer.status) && !headers.contains_key(RETRY_AFTER) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if debug {
        let terms = &answer.choice.terms;
        let pairs = [
            ("x-nebula-overlap-tokens", answer.choice.overlap_tokens.to_string()),
            ("x-nebula-prompt-tokens", answer.choice.prompt_tokens.to_string()),
            ("x-nebula-rank", answer.choice.rank_index.to_string()),
            ("x-nebula-cost", format!("{:.1}", terms.total)),
            (
                "x-nebula-cost-terms",
                format!(
                    "uncached={:.1} prefill_backlog={:.1} decode={:.1} pressure={:.1}",
                    terms.uncached, terms.prefill_backlog, terms.decode, terms.pressure
                ),
            ),
        ];
        for (name, value) in pairs {
            headers.insert(HeaderName::from_static(name), text_value(&value));
        }
    }
    headers
}

fn text_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("?"))
}
