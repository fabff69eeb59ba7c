//! One exchange from request to last byte.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nebula_route::{Choice, Engine, EngineId, Outcome};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::context::Context;
use crate::endpoint::{Endpoint, Shape};
use crate::error::{Error, Retry};
use crate::net;
use crate::prompt::{self, Prompt, Reader, Wish};
use crate::record::Record;
use crate::reply::Sender;
use crate::tasks::off_thread;
use crate::upstream::Call;
use crate::usage::Strip;

mod relay;

use relay::relay;

/// Bodies from this size on are read on the pool: parsing and hashing would hold up every other request.
const LONG_BODY: usize = 256 * 1024;
/// Text that is tokenised at once where nobody has sent it before, in bytes: about half a millisecond. More goes to the
/// pool.
const NEW_TEXT: usize = 2 * 1024;
/// Replies up to this size that are no stream are held until they are whole, so that a broken one can be retried.
const WHOLE_REPLY: u64 = 1024 * 1024;

/// A client's request, as the gateway received it.
#[derive(Debug)]
pub struct Request {
    /// Where to send it.
    pub endpoint: Endpoint,
    /// The one engine that may have it, by name; none leaves the choice to the router.
    pub engine: Option<String>,
    /// The query behind the path, without `?`; may be empty.
    pub query: String,
    /// All headers of the client.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// An engine's reply whose first bytes are here and have not reached the client.
struct Answer {
    choice: Choice,
    status: StatusCode,
    headers: HeaderMap,
    first: Bytes,
    rest: Option<Incoming>,
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
    let debug = net::is_debug(&request.headers) && !context.config.fronts_routers;
    let (request, prompt) = read_prompt(context, request).await?;
    context.metrics.keyed(prompt.key.origin);
    record.prompt(&prompt, debug);
    let answer = context.cut.run_until_cancelled(first_answer(context, request, &prompt, record));
    let answer = answer.await.unwrap_or_else(|| Err(Error::cut()))?;
    let strip = prompt.strips_usage.then(Strip::new);
    relay(context, answer, strip, sender, record).await
}

/// The request and its prompt, whose key is as good as it gets.
pub(crate) async fn read_prompt(
    context: &Arc<Context>,
    mut request: Request,
) -> Result<(Request, Prompt), Error> {
    let body = std::mem::take(&mut request.body);
    let (request, mut prompt) = if body.len() >= LONG_BODY {
        read_off_thread(context, request, body).await?
    } else {
        let prompt = read(context, &request, body.clone(), NEW_TEXT)?;
        if prompt.cold { read_off_thread(context, request, body).await? } else { (request, prompt) }
    };
    if let Some(ask) = prompt.ask.take() {
        match context.remote.tokens(context, &ask).await {
            Ok(ids) => prompt.key.take(&ids, context.router.config()),
            Err(why) => prompt.key.why = Some(why),
        }
    }
    Ok((request, prompt))
}

async fn read_off_thread(
    context: &Arc<Context>,
    request: Request,
    body: Bytes,
) -> Result<(Request, Prompt), Error> {
    let context = Arc::clone(context);
    let read = move || read(&context, &request, body, usize::MAX).map(|prompt| (request, prompt));
    off_thread(read).await?
}

fn read(
    context: &Context,
    request: &Request,
    body: Bytes,
    new_bytes: usize,
) -> Result<Prompt, Error> {
    let aliases = context.aliases();
    let reader = Reader {
        config: &context.config,
        aliases: &aliases,
        router: &context.router,
        models: &context.models,
        new_bytes,
    };
    prompt::read(request.endpoint, &request.headers, body, &reader)
}

/// Tries engines, the cheapest first, until one answers or trying again would help nobody.
async fn first_answer(
    context: &Context,
    request: Request,
    prompt: &Prompt,
    record: &mut Record,
) -> Result<Answer, Error> {
    let deadline = Instant::now() + context.config.first_byte_timeout();
    let pinned = request.engine.clone();
    let wish = Wish { rank: wanted_rank(&request.headers)?, engine: pinned.as_deref() };
    let says_when_prefilled = prompt.streamed || !request.endpoint.shape.generates();
    let prefill_tokens_per_second =
        (!says_when_prefilled).then_some(context.config.prefill_tokens_per_second);
    let call = call(request, prompt, &context.config)?;
    let mut tried: Vec<EngineId> = Vec::new();
    let mut last = None;
    loop {
        let query = prompt.query(wish, &tried);
        let choice = match context.router.route(&query, context.clock.now()) {
            Ok(choice) => choice,
            // What the engines before said is closer to the truth than that there is none left.
            Err(none_left) => return last.unwrap_or_else(|| Err(none_left.into())),
        };
        let engine = Arc::clone(&choice.engine);
        let chain = prompt.chain_for(&engine);
        tried.push(engine.id());
        record.choice(&choice);
        let mut call = call.clone();
        if let Some(body) = prompt.body_with_ids.as_ref().filter(|_| takes_ids(&engine)) {
            call.body = body.clone();
        }
        let result = attempt(context, choice, call, deadline, prefill_tokens_per_second).await;
        context.note(&engine, outcome(result.as_ref()), result.as_ref().err());
        let again = match &result {
            Ok(answer) if is_overloaded(answer.status) => {
                // It took nothing on; its answer is kept only in case nobody else has a better one.
                answer.choice.guard.release();
                true
            }
            Ok(answer) => {
                if answer.status.is_success() {
                    context.router.keep(&answer.choice, chain, context.clock.now());
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

fn takes_ids(engine: &Engine) -> bool {
    engine.intake().is_some_and(|intake| intake.ids)
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
        let own = choice.prompt_tokens.saturating_sub(choice.overlap_tokens());
        let tokens = choice.terms.prefill_backlog + own as f32;
        tokio::time::sleep(Duration::from_secs_f32(tokens / tokens_per_s)).await;
        choice.guard.first_byte();
    }
    std::future::pending().await
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

fn call(request: Request, prompt: &Prompt, config: &Config) -> Result<Call, Error> {
    let mut headers = request.headers;
    let router_explains = config.fronts_routers && net::is_debug(&headers);
    net::to_engine(&mut headers, request.endpoint.shape == Shape::Form);
    if router_explains {
        headers.insert(net::DEBUG, HeaderValue::from_static("1"));
    }
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

pub(crate) fn wanted_rank(headers: &HeaderMap) -> Result<Option<u32>, Error> {
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
