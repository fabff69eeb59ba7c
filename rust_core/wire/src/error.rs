//! Whose fault a failure is, whether another engine may be tried, and what the client is told.

use std::borrow::Cow;

use bytes::Bytes;
use nebula_route::Error as RouteError;
use serde_json::json;

use crate::endpoint::{Endpoint, Shape};

/// What went wrong, in the words of the HTTP statuses of the error table in ARCHITECTURE.md.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// 400: the request cannot be read or lacks something.
    BadRequest,
    /// 404: no engine has ever named this model.
    UnknownModel,
    /// 429: as many requests as allowed are in flight.
    Saturated,
    /// 502: the engine broke off or spoke no HTTP.
    BadGateway,
    /// 503: the model is known, but no engine can take the request now.
    NoEngine,
    /// 504: the engine did not answer in time.
    Timeout,
    /// 503: the gateway is stopping.
    Stopping,
    /// 500: a fault of this program.
    Internal,
}

impl Kind {
    /// Every kind, for contract tests over the binary.
    pub const ALL: [Kind; 8] = [
        Kind::BadRequest,
        Kind::UnknownModel,
        Kind::Saturated,
        Kind::BadGateway,
        Kind::NoEngine,
        Kind::Timeout,
        Kind::Stopping,
        Kind::Internal,
    ];
}

/// Who caused a failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The client sent something that cannot work.
    Client,
    /// The engine failed.
    Upstream,
    /// This program failed or refuses.
    Us,
}

/// Whether another engine may be tried; decided where the error is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// The next engine would say the same, or the client already has bytes.
    Never,
    /// The engine is known not to have taken the request.
    IfUnsent,
    /// Nothing reached the client; generating again does no harm.
    Always,
}

/// A failure on the way of one request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What went wrong.
    pub kind: Kind,
    /// Who caused it.
    pub side: Side,
    /// Whether another engine may be tried.
    pub retry: Retry,
    /// For the client: what was wrong, where, and what would be right.
    pub message: Cow<'static, str>,
    /// The field of the request that is wrong.
    pub param: Option<Cow<'static, str>>,
    /// Seconds after which a new try makes sense.
    pub retry_after_s: Option<u32>,
}

impl Error {
    fn new(kind: Kind, side: Side, retry: Retry, message: impl Into<Cow<'static, str>>) -> Error {
        Error { kind, side, retry, message: message.into(), param: None, retry_after_s: None }
    }

    pub(crate) fn bad_request(
        param: Option<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Error {
        Error { param, ..Error::new(Kind::BadRequest, Side::Client, Retry::Never, message) }
    }

    pub(crate) fn saturated(limit: u32) -> Error {
        let message =
            format!("{limit} requests are in flight, which is the limit; try again shortly");
        Error {
            retry_after_s: Some(1),
            ..Error::new(Kind::Saturated, Side::Us, Retry::Never, message)
        }
    }

    pub(crate) fn stopping() -> Error {
        Error {
            retry_after_s: Some(1),
            ..Error::new(Kind::Stopping, Side::Us, Retry::Never, "the gateway is stopping")
        }
    }

    pub(crate) fn cut() -> Error {
        Error {
            message: "the gateway stopped before the reply was complete".into(),
            ..Error::stopping()
        }
    }

    pub(crate) fn internal(message: impl Into<Cow<'static, str>>) -> Error {
        Error::new(Kind::Internal, Side::Us, Retry::Never, message)
    }

    pub(crate) fn connect(engine: &str, cause: &str) -> Error {
        let message = format!("engine {engine} cannot be reached: {cause}");
        Error::new(Kind::BadGateway, Side::Upstream, Retry::IfUnsent, message)
    }

    pub(crate) fn broken(engine: &str, cause: &str) -> Error {
        let message = format!("engine {engine} broke off before it answered: {cause}");
        Error::new(Kind::BadGateway, Side::Upstream, Retry::Always, message)
    }

    pub(crate) fn died_mid_reply(engine: &str, cause: &str) -> Error {
        let message = format!("engine {engine} broke off in the middle of its reply: {cause}");
        Error::new(Kind::BadGateway, Side::Upstream, Retry::Never, message)
    }

    pub(crate) fn timeout(engine: &str, what: &str, limit_ms: u64) -> Error {
        let message = format!("engine {engine} sent no {what} within {limit_ms} ms");
        Error::new(Kind::Timeout, Side::Upstream, Retry::Never, message)
    }

    /// OpenAI's error body, the shape that every client of the API parses.
    #[must_use]
    pub fn body(&self, status: u16) -> Vec<u8> {
        let error_type = match self.kind {
            Kind::BadRequest => "BadRequestError",
            Kind::UnknownModel => "NotFoundError",
            Kind::Saturated => "RateLimitError",
            Kind::NoEngine | Kind::Stopping => "ServiceUnavailableError",
            Kind::BadGateway => "BadGatewayError",
            Kind::Timeout => "GatewayTimeoutError",
            Kind::Internal => "InternalServerError",
        };
        let body = json!({"error": {
            "message": self.message, "type": error_type, "param": self.param, "code": status,
        }});
        body.to_string().into_bytes()
    }

    /// One server-sent event that carries this error, in the words of the endpoint's protocol; a torn event before it
    /// is ended first.
    pub(crate) fn event(&self, endpoint: Endpoint, after_whole_event: bool) -> Bytes {
        let separator = if after_whole_event { "" } else { "\n\n" };
        let (status, message) = (self.status(), &self.message);
        // Clients of the protocols with named events read those alone.
        let event = match endpoint.shape {
            Shape::Messages => {
                let error = json!({"type": "api_error", "message": message});
                format!("event: error\ndata: {}", json!({"type": "error", "error": error}))
            }
            Shape::Responses => {
                let error = json!({"type": "error", "code": status.to_string(), "message": message, "param": null});
                format!("event: error\ndata: {error}")
            }
            _ => format!("data: {}", String::from_utf8_lossy(&self.body(status))),
        };
        format!("{separator}{event}\n\n").into()
    }

    /// The HTTP status of this error: the one table, see ARCHITECTURE.md.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.kind {
            Kind::BadRequest => 400,
            Kind::UnknownModel => 404,
            Kind::Saturated => 429,
            Kind::Internal => 500,
            Kind::BadGateway => 502,
            Kind::NoEngine | Kind::Stopping => 503,
            Kind::Timeout => 504,
        }
    }
}

impl From<RouteError> for Error {
    fn from(cause: RouteError) -> Error {
        let message = cause.to_string();
        match cause {
            RouteError::UnknownModel { .. } => Error {
                param: Some("model".into()),
                ..Error::new(Kind::UnknownModel, Side::Client, Retry::Never, message)
            },
            RouteError::UnknownRank { .. } => {
                Error::bad_request(Some("X-data-parallel-rank".into()), message)
            }
            RouteError::NoEngine { .. } => Error {
                retry_after_s: Some(1),
                ..Error::new(Kind::NoEngine, Side::Us, Retry::Never, message)
            },
            _ => Error::internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_a_stream_speaks_the_protocol_of_its_endpoint() {
        let error = Error::died_mid_reply("e1", "reset");
        let event = |path: &str, whole: bool| {
            let endpoint = Endpoint::find(path).unwrap();
            String::from_utf8(error.event(endpoint, whole).to_vec()).unwrap()
        };
        assert!(event("/v1/chat/completions", true).starts_with("data: {\"error\":{"));
        assert!(event("/v1/chat/completions", false).starts_with("\n\ndata: "));
        assert!(event("/v1/messages", true).starts_with("event: error\ndata: {"));
        assert!(event("/v1/messages", true).contains("\"type\":\"error\""));
        assert!(event("/v1/responses", true).starts_with("event: error\ndata: {"));
        assert!(event("/v1/responses", true).ends_with("}\n\n"));
    }
}
