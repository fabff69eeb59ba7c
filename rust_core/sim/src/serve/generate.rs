//! Chat and completions: from the body of a request to its reply.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tokio::time::Instant;

use super::body::{Body, Ending};
use super::http::{App, EVENT_STREAM, json, status, unix_seconds, with_body};
use super::openai::{self, Ask, Bounds};
use super::refusal::Refusal;
use super::shape::{Chunks, Face, Shape};
use super::stream::{Mishap, Stream};
use crate::fault::{Effect, Wish};

const FAULT_HEADER: &str = "x-sim-fault";
const CHECKSUM_HEADER: &str = "x-sim-checksum";
const REQUEST_ID_HEADER: &str = "x-request-id";

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
    let effect = match head.headers.get(FAULT_HEADER) {
        Some(wish) => wished(wish.to_str().unwrap_or_default())?,
        None => app.take_fault(),
    };
    match effect {
        Some(Effect::Reset) => return Err(Refusal::Reset),
        Some(Effect::Hang) => return std::future::pending().await,
        Some(Effect::Status { status: code }) => return Err(Refusal::injected(status(code))),
        _ => {}
    }
    let bounds =
        Bounds { model: &app.config.model, max_model_len: app.config.engine.max_model_len };
    let mut ask = openai::ask(face, body, bounds)?;
    let shape = shape(app, face, head, &ask);
    let prompt = std::mem::take(&mut ask.prompt);
    let started = Instant::now();
    let ticket = app.driver.submit(prompt, ask.chain_seed, ask.tokens, ask.finish);
    if ask.stream {
        let mut stream = Stream::new(ticket, Chunks::new(shape));
        match effect {
            Some(Effect::DieMidStream { after_chunks }) => {
                stream.set_mishap(Mishap { after_chunks, ending: Ending::DIES });
            }
            Some(Effect::HangMidStream { after_chunks }) => {
                stream.set_mishap(Mishap { after_chunks, ending: Ending::Hangs });
            }
            Some(Effect::Slow { factor }) => stream.set_slow(factor),
            _ => {}
        }
        if head.headers.contains_key(CHECKSUM_HEADER) {
            stream.set_checksum();
        }
        return Ok(with_body(EVENT_STREAM, Body::Stream(Box::new(stream))));
    }
    let progress = ticket.finished(ask.tokens).await;
    if let Some(Effect::Slow { factor }) = effect {
        tokio::time::sleep_until(started + started.elapsed().mul_f64(factor)).await;
    }
    let whole = Bytes::from(shape.whole(progress));
    Ok(match effect {
        Some(Effect::DieMidStream { .. }) => cut(&whole, Ending::DIES),
        Some(Effect::HangMidStream { .. }) => cut(&whole, Ending::Hangs),
        _ => json(whole),
    })
}

/// The effect that a request wishes for itself.
fn wished(header: &str) -> Result<Option<Effect>, Refusal> {
    let refuse =
        |why: String| Refusal::bad_request(format!("{FAULT_HEADER}: {why}"), Some(FAULT_HEADER));
    match Wish::parse(header)
        .and_then(|wish| wish.fault())
        .map_err(refuse)?
        .map(|fault| fault.effect)
    {
        Some(Effect::Refuse { .. }) => {
            Err(refuse("a request that is here cannot be refused a connection".to_owned()))
        }
        effect => Ok(effect),
    }
}

fn shape(app: &App, face: Face, head: &Parts, ask: &Ask) -> Shape {
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
    }
}

/// The first half of a reply, under a head that announces all of it.
fn cut(whole: &Bytes, ending: Ending) -> Response<Body> {
    let mut response = json(Bytes::new());
    *response.body_mut() =
        Body::Cut { part: whole.slice(..whole.len() / 2), announced: whole.len() as u64, ending };
    response
}
