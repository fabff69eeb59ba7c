//! A reply on its way to the client.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use nebula_route::Outcome;
use tokio::time::timeout;

use super::{Answer, is_overloaded, next_chunk};
use crate::context::Context;
use crate::error::Error;
use crate::net;
use crate::record::Record;
use crate::reply::{Head, Sender};
use crate::usage::Strip;

/// Passes the reply on as it comes, without the usage that its client did not ask for.
pub(super) async fn relay(
    context: &Context,
    mut answer: Answer,
    strip: Option<Strip>,
    sender: &Sender,
    record: &mut Record,
) -> Result<(), Error> {
    let events = net::is_event_stream(&answer.headers);
    let mut strip = strip.filter(|_| events);
    record.first_byte(answer.status);
    let head =
        Head { status: answer.status.as_u16(), headers: client_headers(&mut answer, record) };
    let first = stripped(&mut strip, std::mem::take(&mut answer.first), record);
    let mut whole_event = first.is_empty() || first.ends_with(b"\n\n");
    sender.head(head, first);
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
                let chunk = stripped(&mut strip, chunk, record);
                if !chunk.is_empty() {
                    whole_event = chunk.ends_with(b"\n\n");
                    sender.chunk(chunk).await;
                }
            }
            Ok(Ok(None)) => {
                if let Some(held) = held(&mut strip) {
                    sender.chunk(held).await;
                }
                return Ok(());
            }
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
        if let Some(held) = held(&mut strip) {
            whole_event = held.ends_with(b"\n\n");
            sender.chunk(held).await;
        }
        sender.chunk(broke.event(record.endpoint(), whole_event)).await;
        record.broke(&broke);
        return Ok(());
    }
    Err(broke)
}

/// What of a chunk goes to the client.
fn stripped(strip: &mut Option<Strip>, chunk: Bytes, record: &mut Record) -> Bytes {
    record.chunk(&chunk);
    match strip {
        None => chunk,
        Some(strip) => strip.push(chunk),
    }
}

/// What is left to send when the engine sends no more.
fn held(strip: &mut Option<Strip>) -> Option<Bytes> {
    strip.as_mut().map(Strip::finish).filter(|held| !held.is_empty())
}

fn client_headers(answer: &mut Answer, record: &Record) -> HeaderMap {
    let mut headers = std::mem::take(&mut answer.headers);
    net::to_client(&mut headers);
    let router_named_it =
        record.context().config.fronts_routers && headers.contains_key(net::ENGINE);
    if !router_named_it {
        headers.insert(net::ENGINE, text_value(&answer.choice.engine.spec().name));
    }
    headers.insert(net::REQUEST_ID, record.request_id().clone());
    if is_overloaded(answer.status) && !headers.contains_key(RETRY_AFTER) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if record.is_debug() {
        let terms = &answer.choice.terms;
        let pairs = [
            ("x-nebula-overlap-tokens", answer.choice.overlap_tokens().to_string()),
            ("x-nebula-prompt-tokens", answer.choice.prompt_tokens.to_string()),
            ("x-nebula-key", record.origin().as_str().to_owned()),
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
