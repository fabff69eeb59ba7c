//! Chat and completions: from the body of a request to its reply.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tokio::time::Instant;

use super::app::{App, unix_seconds};
use super::body::{Body, Ending};
use super::driver::{Progress, Ticket};
use super::handoff::{self, Wanted};
use super::http::{EVENT_STREAM, json, status, with_body};
use super::openai::{self, Ask, Bounds};
use super::refusal::Refusal;
use super::shape::{Chunks, Face, Shape, Told};
use super::stream::{Mishap, Source, Stream};
use crate::fault::{Effect, Lie, Wish};
use crate::hash::block_hash;
use crate::{Request, SimConfig, Transfer};

const FAULT_HEADER: &str = "x-sim-fault";
const CHECKSUM_HEADER: &str = "x-sim-checksum";
const REQUEST_ID_HEADER: &str = "x-request-id";
/// The timer ticks every millisecond: the wait for the front end and the one for the end of a step are each about a tick
/// longer than asked.
const LATE: Duration = Duration::from_millis(2);
const LONGEST_FRONT_SECONDS: f64 = 86_400.0;

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    effect: Option<Effect>,
    lie: Option<Lie>,
}

/// The reply to a generation request.
///
/// # Cancel safety
/// Dropping the future, or the body that it gave, takes the request out of the engine.
pub(crate) async fn answer(
    app: &Arc<App>,
    face: Face,
    head: &Parts,
    body: &[u8],
) -> Result<Response<Body>, Refusal> {
    let trouble = Trouble::of(app, head)?;
    match trouble.effect {
        Some(Effect::Reset) => return Err(Refusal::Reset),
        Some(Effect::Hang) => return std::future::pending().await,
        Some(Effect::Status { status: code }) => return Err(Refusal::injected(status(code))),
        Some(Effect::Busy(busy)) => return Err(Refusal::Busy(busy)),
        _ => {}
    }
    let bounds = Bounds { served: &app.served, max_model_len: app.config.engine.max_model_len };
    let mut ask = openai::ask(face, body, bounds)?;
    pass_front(&app.config).await;
    let rank = app.rank(&head.headers)?;
    app.admit()?;
    let wanted = match &ask.kv_transfer_params {
        Some(params) if app.handoffs.on() => Wanted::of(params),
        _ => Wanted::Nothing,
    };
    note_salt(app, rank, &ask);
    let shape = shape(app, face, head, &ask, told(&wanted, trouble.lie));
    let request = Request {
        id: 0,
        prompt: std::mem::take(&mut ask.prompt),
        chain_seed: ask.chain_seed,
        max_tokens: ask.tokens,
        finish: ask.finish,
    };
    let started = Instant::now();
    let driver = &app.ranks[rank];
    if ask.stream {
        let source = match wanted {
            Wanted::Nothing => Source::Running(driver.submit(request, Transfer::None)),
            Wanted::Keep => Source::Running(driver.submit(request, driver.hold())),
            Wanted::Fetch(offer) => {
                Source::Fetching(Box::pin(handoff::fetch(Arc::clone(app), rank, request, offer)))
            }
        };
        let mut stream = Stream::new(source, Chunks::new(shape));
        trouble.befall(&mut stream);
        if head.headers.contains_key(CHECKSUM_HEADER) {
            stream.set_checksum();
        }
        return Ok(with_body(EVENT_STREAM, Body::Stream(Box::new(stream))));
    }
    let keeps = wanted == Wanted::Keep;
    let ticket = match wanted {
        Wanted::Nothing => driver.submit(request, Transfer::None),
        Wanted::Keep => driver.submit(request, driver.hold()),
        Wanted::Fetch(offer) => handoff::fetch(Arc::clone(app), rank, request, offer).await?,
    };
    let progress = ticket.finished(ask.tokens).await;
    if let Some(Effect::Slow { factor }) = trouble.effect {
        tokio::time::sleep_until(started + started.elapsed().mul_f64(factor)).await;
    }
    let offer = if keeps { offer(app, rank, &ticket, &shape, progress) } else { None };
    let whole = Bytes::from(shape.whole(progress, offer.as_deref()));
    Ok(match trouble.effect {
        Some(Effect::DieMidStream { .. }) => cut(&whole, Ending::DIES),
        Some(Effect::HangMidStream { .. }) => cut(&whole, Ending::Hangs),
        _ => json(whole),
    })
}

/// Waits as long as an engine's front end needs for a request, less what a first token is late by here anyway.
async fn pass_front(config: &SimConfig) {
    if config.speed > 0.0 {
        let seconds = (config.request_us / 1e6 / config.speed).min(LONGEST_FRONT_SECONDS);
        let wait = Duration::from_secs_f64(seconds).saturating_sub(LATE);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

fn shape(app: &App, face: Face, head: &Parts, ask: &Ask, told: Told) -> Shape {
    let given = head.headers.get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    let suffix = given.map_or_else(|| app.next_id(), str::to_owned);
    let prompt_tokens = u32::try_from(ask.prompt.len()).unwrap_or(u32::MAX);
    Shape {
        face,
        id: serde_json::Value::from(format!("{}{suffix}", face.id_prefix())).to_string(),
        model: app.model_json.clone(),
        created: unix_seconds(),
        reply: ask.reply,
        prompt_tokens,
        prompt_block_tokens: prompt_tokens - prompt_tokens % app.config.engine.block_size,
        token_ids: ask.return_token_ids.then(|| ask.prompt.clone()),
        tokens: ask.tokens,
        finish: ask.finish,
        usage: ask.usage,
        told,
    }
}

/// A reply to a prompt that was computed elsewhere tells what was found in the cache there.
fn told(wanted: &Wanted, lie: Option<Lie>) -> Told {
    match wanted {
        Wanted::Fetch(offer) => Told { elsewhere: offer.cached, lie },
        Wanted::Nothing | Wanted::Keep => Told { elsewhere: None, lie },
    }
}

/// Lets the events of a salted prompt's first block tell the salt.
fn note_salt(app: &App, rank: usize, ask: &Ask) {
    let Some(salt) = &ask.salt else { return };
    let size = app.config.engine.block_size as usize;
    let reply = (0..ask.tokens).map(|index| ask.reply.token(index));
    let first: Vec<u32> = ask.prompt.iter().copied().chain(reply).take(size).collect();
    if first.len() == size {
        let hash = block_hash(ask.chain_seed, &first);
        app.ranks[rank].with_feed(|feed| feed.note_salt(hash, salt));
    }
}

/// What another engine is told of the blocks that are kept for it; none if their lease is over.
fn offer(
    app: &App,
    rank: usize,
    ticket: &Ticket,
    shape: &Shape,
    progress: Progress,
) -> Option<String> {
    let blocks = app.ranks[rank].with_engine(|engine| {
        let held = engine.held(ticket.id())?;
        Some(held.iter().map(|block| block.number()).collect::<Vec<_>>())
    })?;
    let id = shape.id.trim_matches('"');
    let id = match shape.face {
        Face::Chat => id.to_owned(),
        // A completion may hold several prompts, which are numbered.
        Face::Completion => format!("{id}-0"),
    };
    Some(handoff::offer_json(&handoff::Kept {
        engine_id: &app.handoffs.engine_id(rank),
        request_id: &handoff::request_name(&id, ticket.id()),
        host: &app.host,
        port: app.port,
        blocks: &blocks,
        tokens: shape.prompt_tokens + shape.tokens - 1,
        cached: (shape.tokens == 1).then_some(progress.cached),
    }))
}

/// The first half of a reply, under a head that announces all of it.
fn cut(whole: &Bytes, ending: Ending) -> Response<Body> {
    let mut response = json(Bytes::new());
    *response.body_mut() =
        Body::Cut { part: whole.slice(..whole.len() / 2), announced: whole.len() as u64, ending };
    response
}

// === impl Trouble ===

impl Trouble {
    /// What a request wishes for itself, or what is in force.
    fn of(app: &App, head: &Parts) -> Result<Trouble, Refusal> {
        let Some(wish) = head.headers.get(FAULT_HEADER) else {
            return Ok(Trouble { effect: app.take_fault(), lie: app.take_lie() });
        };
        let refuse =
            |why: &str| Refusal::bad_request(format!("{FAULT_HEADER}: {why}"), Some(FAULT_HEADER));
        let fault = Wish::parse(wish.to_str().unwrap_or_default())
            .and_then(|wish| wish.fault())
            .map_err(|why| refuse(&why))?;
        match fault {
            Some(fault) if !fault.effect.meets_requests() => {
                Err(refuse("it does not concern a request that is here"))
            }
            Some(fault) if fault.count.is_some() => Err(refuse("one request has no count")),
            Some(fault) => Ok(match fault.effect {
                Effect::LieCached(lie) => Trouble { effect: None, lie: Some(lie) },
                effect => Trouble { effect: Some(effect), lie: None },
            }),
            None => Ok(Trouble { effect: None, lie: None }),
        }
    }

    fn befall(self, stream: &mut Stream) {
        match self.effect {
            Some(Effect::DieMidStream { after_chunks }) => {
                stream.set_mishap(Mishap { after_chunks, ending: Ending::DIES });
            }
            Some(Effect::HangMidStream { after_chunks }) => {
                stream.set_mishap(Mishap { after_chunks, ending: Ending::Hangs });
            }
            Some(Effect::Slow { factor }) => stream.set_slow(factor),
            _ => {}
        }
    }
}
