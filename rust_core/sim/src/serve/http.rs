//! Which path does what.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, SERVER};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;

use super::app::App;
use super::body::{Body, Died};
use super::connection::Parting;
use super::handoff::{CLAIM_PATH, Notice, RELEASE_PATH};
use super::listen::Door;
use super::refusal::Refusal;
use super::shape::{Face, VERSION};
use super::{generate, metrics, openai};
use crate::fault::{Busy, Wish};
use crate::{Engine, token};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const EVENT_STREAM: HeaderValue =
    HeaderValue::from_static("text/event-stream; charset=utf-8");
const NAME_HEADER: &str = "x-sim-engine";

/// A path that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Generate(Face),
    Tokenize,
    Detokenize,
    Models,
    /// Answers with an empty body.
    Alive,
    Version,
    Load,
    Metrics,
    EventSources,
    Claim,
    Release,
    ResetCache,
    SetFault,
    Restart,
}

/// How long the engine is down.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restart {
    #[serde(default)]
    down_ms: u64,
}

/// The reply to one request; an error ends the connection without one.
pub(crate) async fn answer(
    app: &Arc<App>,
    request: Request<Incoming>,
    parting: &Parting,
) -> Result<Response<Body>, Died> {
    let (head, body) = request.into_parts();
    let mut response = match dispatch(app, &head, body, parting).await {
        Ok(response) => response,
        Err(Refusal::Reset) => return Err(Died),
        Err(refusal) => refused(refusal),
    };
    response.headers_mut().insert(SERVER, HeaderValue::from_static("nebula-sim"));
    response.headers_mut().insert(NAME_HEADER, app.name.clone());
    Ok(response)
}

async fn dispatch(
    app: &Arc<App>,
    head: &Parts,
    body: Incoming,
    parting: &Parting,
) -> Result<Response<Body>, Refusal> {
    let found = find(head.uri.path());
    if app.scales() && !matches!(found, Some((Endpoint::SetFault | Endpoint::Restart, _))) {
        return Err(Refusal::Busy(Busy::Scaling));
    }
    let (endpoint, allow) = found.ok_or(Refusal::NotFound)?;
    if !allow.split(", ").any(|method| head.method == method) {
        return Err(Refusal::MethodNotAllowed { allow });
    }
    let takes_json =
        head.method == Method::POST && !matches!(endpoint, Endpoint::Alive | Endpoint::ResetCache);
    let lenient = matches!(endpoint, Endpoint::SetFault | Endpoint::Restart);
    if takes_json && !lenient && !is_json(head) {
        return Err(Refusal::content_type());
    }
    let body = if takes_json {
        body.collect().await.map_err(|_| Refusal::Reset)?.to_bytes()
    } else {
        Bytes::new()
    };
    Ok(match endpoint {
        Endpoint::Generate(face) => return generate::answer(app, face, head, &body).await,
        Endpoint::Tokenize => json(tokenize(app, &body)?),
        Endpoint::Detokenize => {
            json(serde_json::json!({"prompt": openai::detokenize(&body)?}).to_string())
        }
        Endpoint::Models => json(app.models.clone()),
        Endpoint::Alive => Response::new(Body::Whole(Bytes::new())),
        Endpoint::Version => json(format!(r#"{{"version":"{VERSION}"}}"#)),
        Endpoint::Load => {
            let load =
                |engine: &mut Engine| engine.scheduler().running() + engine.scheduler().waiting();
            let load: usize = app.ranks.iter().map(|rank| rank.with_engine(load)).sum();
            json(format!(r#"{{"server_load":{load}}}"#))
        }
        Endpoint::Metrics => {
            whole(HeaderValue::from_static(metrics::CONTENT_TYPE), metrics::render(app))
        }
        Endpoint::EventSources => json(sources(app)),
        Endpoint::ResetCache => {
            let reset: Vec<bool> =
                app.ranks.iter().map(|rank| rank.with_engine(Engine::reset_cache)).collect();
            json(format!(r#"{{"success":{}}}"#, reset.iter().all(|&done| done)))
        }
        Endpoint::SetFault => {
            let wish: Wish = openai::parse(&body)?;
            app.set_fault(wish.fault().map_err(|why| Refusal::bad_request(why, Some("kind")))?);
            json(r#"{"success":true}"#)
        }
        Endpoint::Claim | Endpoint::Release => {
            let notice: Notice = openai::parse(&body)?;
            let release = endpoint == Endpoint::Release;
            if !app.handoffs.serve(&app.ranks, &notice, release) && !release {
                let message = format!("No blocks are kept for {}.", notice.request_id);
                return Err(Refusal::not_found(message, "request_id"));
            }
            json(r#"{"success":true}"#)
        }
        Endpoint::Restart => {
            let Restart { down_ms } = openai::parse(&body)?;
            parting.answered.store(true, Ordering::Relaxed);
            app.turn(Door::Down { for_ms: down_ms });
            json(r#"{"success":true}"#)
        }
    })
}

/// The endpoint of a path, and its methods.
fn find(path: &str) -> Option<(Endpoint, &'static str)> {
    Some(match path {
        "/v1/chat/completions" => (Endpoint::Generate(Face::Chat), "POST"),
        "/v1/completions" => (Endpoint::Generate(Face::Completion), "POST"),
        "/tokenize" => (Endpoint::Tokenize, "POST"),
        "/detokenize" => (Endpoint::Detokenize, "POST"),
        "/reset_prefix_cache" => (Endpoint::ResetCache, "POST"),
        "/sim/fault" => (Endpoint::SetFault, "POST"),
        "/sim/restart" => (Endpoint::Restart, "POST"),
        CLAIM_PATH => (Endpoint::Claim, "POST"),
        RELEASE_PATH => (Endpoint::Release, "POST"),
        "/kv_event_sources" => (Endpoint::EventSources, "GET"),
        "/v1/models" => (Endpoint::Models, "GET"),
        "/health" => (Endpoint::Alive, "GET"),
        "/ping" => (Endpoint::Alive, "GET, POST"),
        "/version" => (Endpoint::Version, "GET"),
        "/load" => (Endpoint::Load, "GET"),
        "/metrics" => (Endpoint::Metrics, "GET"),
        _ => return None,
    })
}

fn is_json(head: &Parts) -> bool {
    let kind =
        head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';')
        .next()
        .is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

fn refused(refusal: Refusal) -> Response<Body> {
    let (status, allow, body) = refusal.into_parts();
    let mut response = json(body);
    *response.status_mut() = status;
    if let Some(allow) = allow {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    }
    response
}

/// A reply of JSON.
pub(crate) fn json(body: impl Into<Bytes>) -> Response<Body> {
    whole(JSON, body)
}

fn whole(content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    with_body(content_type, Body::Whole(body.into()))
}

/// A reply of status 200.
pub(crate) fn with_body(content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn tokenize(app: &App, body: &[u8]) -> Result<String, Refusal> {
    let openai::Tokenized { tokens, want_texts } = openai::tokenize(body)?;
    let texts =
        want_texts.then(|| tokens.iter().map(|&id| token::decode(&[id])).collect::<Vec<_>>());
    let (count, max, tokens) =
        (tokens.len(), app.config.engine.max_model_len, serde_json::Value::from(tokens));
    let texts = serde_json::Value::from(texts);
    Ok(format!(
        r#"{{"count":{count},"max_model_len":{max},"tokens":{tokens},"token_strs":{texts}}}"#
    ))
}

/// Where the events of each rank are found.
fn sources(app: &App) -> String {
    let of = |rank: usize| app.ranks[rank].source(&app.config.kv_events, &app.host);
    let sources: Vec<_> =
        (0..app.ranks.len()).map(|rank| format!("\"{rank}\":{}", of(rank))).collect();
    format!("{{{}}}", sources.join(","))
}

/// The status of a fault, which its bounds make a valid one.
pub(crate) fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}
