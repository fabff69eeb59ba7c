//! Which path does what.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, SERVER};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::body::{Body, Died};
use super::driver::Driver;
use super::listen::Door;
use super::refusal::Refusal;
use super::shape::{Face, VERSION};
use super::{generate, metrics, openai};
use crate::fault::{Effect, Fault, Faults, Wish};
use crate::{Error, SimConfig, token};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const EVENT_STREAM: HeaderValue =
    HeaderValue::from_static("text/event-stream; charset=utf-8");
const NAME_HEADER: &str = "x-sim-engine";

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: SimConfig,
    /// The model as a JSON string.
    pub(crate) model_json: String,
    pub(crate) driver: Arc<Driver>,
    name: HeaderValue,
    models: Bytes,
    faults: Mutex<Faults>,
    ids: Mutex<fastrand::Rng>,
    door: watch::Sender<Door>,
}

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
    ResetCache,
    SetFault,
}

/// The reply to one request; an error ends the connection without one.
pub(crate) async fn answer(
    app: &Arc<App>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Died> {
    let (head, body) = request.into_parts();
    let mut response = match dispatch(app, &head, body).await {
        Ok(response) => response,
        Err(Refusal::Reset) => return Err(Died),
        Err(refusal) => refused(refusal),
    };
    response.headers_mut().insert(SERVER, HeaderValue::from_static("nebula-sim"));
    response.headers_mut().insert(NAME_HEADER, app.name.clone());
    Ok(response)
}

async fn dispatch(app: &Arc<App>, head: &Parts, body: Incoming) -> Result<Response<Body>, Refusal> {
    let (endpoint, allow) = find(head.uri.path()).ok_or(Refusal::NotFound)?;
    if !allow.split(", ").any(|method| head.method == method) {
        return Err(Refusal::MethodNotAllowed { allow });
    }
    let takes_json =
        head.method == Method::POST && !matches!(endpoint, Endpoint::Alive | Endpoint::ResetCache);
    if takes_json && endpoint != Endpoint::SetFault && !is_json(head) {
        return Err(Refusal::content_type());
    }
    let body = if takes_json {
        body.collect().await.map_err(|_| Refusal::Reset)?.to_bytes()
    } else {
        Bytes::new()
    };
    let driver = &app.driver;
    Ok(match endpoint {
        Endpoint::Generate(face) => return generate::answer(app, face, head, &body).await,
        Endpoint::Tokenize => json(app.tokenize(&body)?),
        Endpoint::Detokenize => {
            json(serde_json::json!({"prompt": openai::detokenize(&body)?}).to_string())
        }
        Endpoint::Models => json(app.models.clone()),
        Endpoint::Alive => Response::new(Body::Whole(Bytes::new())),
        Endpoint::Version => json(format!(r#"{{"version":"{VERSION}"}}"#)),
        Endpoint::Load => {
            let load = driver
                .with_engine(|engine| engine.scheduler().running() + engine.scheduler().waiting());
            json(format!(r#"{{"server_load":{load}}}"#))
        }
        Endpoint::Metrics => {
            let text = driver.with_engine(|engine| metrics::render(&app.config, engine));
            whole(HeaderValue::from_static(metrics::CONTENT_TYPE), text)
        }
        Endpoint::ResetCache => {
            let success = driver.with_engine(crate::Engine::reset_cache);
            json(format!(r#"{{"success":{success}}}"#))
        }
        Endpoint::SetFault => {
            let wish: Wish = openai::parse(&body)?;
            app.set_fault(wish.fault().map_err(|why| Refusal::bad_request(why, Some("kind")))?);
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

// === impl App ===

impl App {
    pub(crate) fn new(config: SimConfig, door: watch::Sender<Door>) -> Result<App, Error> {
        let name = HeaderValue::try_from(&config.name).map_err(|_| Error::Config {
            field: "name",
            reason: "must be printable ASCII".to_owned(),
        })?;
        let mut ids = fastrand::Rng::with_seed(config.seed);
        let model_json = serde_json::Value::from(config.model.as_str()).to_string();
        let models = models(&config, &model_json, ids.u64(..));
        Ok(App {
            driver: Arc::new(Driver::new(&config)),
            config,
            model_json,
            name,
            models: models.into(),
            faults: Mutex::default(),
            ids: Mutex::new(ids),
            door,
        })
    }

    /// Replaces the fault in force; none ends it.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        let slowdown = self.faults.lock().set(fault);
        self.driver.with_engine(|engine| engine.set_slowdown(slowdown));
        let wanted = match fault.map(|fault| fault.effect) {
            Some(Effect::Refuse { for_ms }) => Door::Shut { for_ms },
            _ => Door::Open,
        };
        self.door.send_if_modified(|door| {
            let changes = *door != Door::Closed && *door != wanted;
            if changes {
                *door = wanted;
            }
            changes
        });
    }

    /// What the next generation request meets.
    pub(crate) fn take_fault(&self) -> Option<Effect> {
        self.faults.lock().take()
    }

    /// Sixteen hex digits that no other request of this engine has.
    pub(crate) fn next_id(&self) -> String {
        format!("{:016x}", self.ids.lock().u64(..))
    }

    fn tokenize(&self, body: &[u8]) -> Result<String, Refusal> {
        let openai::Tokenized { tokens, want_texts } = openai::tokenize(body)?;
        let texts =
            want_texts.then(|| tokens.iter().map(|&id| token::decode(&[id])).collect::<Vec<_>>());
        let (count, max, tokens) =
            (tokens.len(), self.config.engine.max_model_len, serde_json::Value::from(tokens));
        let texts = serde_json::Value::from(texts);
        Ok(format!(
            r#"{{"count":{count},"max_model_len":{max},"tokens":{tokens},"token_strs":{texts}}}"#
        ))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn models(config: &SimConfig, model: &str, permission: u64) -> String {
    let (created, max) = (unix_seconds(), config.engine.max_model_len);
    format!(
        r#"{{"object":"list","data":[{{"id":{model},"object":"model","created":{created},"owned_by":"vllm","root":{model},"parent":null,"max_model_len":{max},"permission":[{{"id":"modelperm-{permission:016x}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}]}}"#
    )
}

/// The status of a fault, which its bounds make a valid one.
pub(crate) fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}
