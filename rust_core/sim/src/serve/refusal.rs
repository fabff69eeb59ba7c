//! The errors of vLLM's HTTP face, shape for shape.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::fault::Busy;

/// A refused request.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// What the `OpenAI` face says: `{"error":{"message","type","param","code"}}`.
    Api { status: StatusCode, kind: &'static str, message: String, param: Option<String> },
    /// What the web framework below it says: `{"detail":"Not Found"}`.
    NotFound,
    /// The same for a known path, with the methods that it has.
    MethodNotAllowed { allow: &'static str },
    /// The engine takes no more work.
    Busy(Busy),
    /// No reply at all: the connection is reset.
    Reset,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: ErrorInfo<'a>,
}

#[derive(Serialize)]
struct ErrorInfo<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: u16,
}

/// The fields of a body, for the message that counts them.
type Fields<'a> = std::collections::HashMap<&'a str, &'a RawValue>;

// === impl Refusal ===

impl Refusal {
    /// The head and the body of the reply.
    pub(crate) fn into_parts(self) -> (StatusCode, Option<&'static str>, Bytes) {
        match self {
            Refusal::Api { status, kind, message, param } => {
                let error = ErrorInfo {
                    message: &message,
                    r#type: kind,
                    param: param.as_deref(),
                    code: status.as_u16(),
                };
                (status, None, serde_json::to_vec(&Envelope { error }).unwrap_or_default().into())
            }
            Refusal::Busy(Busy::Requests) => Refusal::unavailable(
                "The engine is currently busy and cannot accept new requests. Please try again later or on a different \
                 instance.",
            )
            .into_parts(),
            Refusal::Busy(Busy::Tokens) => Refusal::unavailable(
                "The engine has reached its prefill token backlog limit. Please try again later or on a different \
                 instance.",
            )
            .into_parts(),
            Refusal::Busy(Busy::Scaling) => {
                let body = br#"{"error":"The model is currently scaling. Please try again later."}"#;
                (StatusCode::SERVICE_UNAVAILABLE, None, Bytes::from_static(body))
            }
            Refusal::NotFound => {
                (StatusCode::NOT_FOUND, None, Bytes::from_static(br#"{"detail":"Not Found"}"#))
            }
            Refusal::MethodNotAllowed { allow } => {
                let body = Bytes::from_static(br#"{"detail":"Method Not Allowed"}"#);
                (StatusCode::METHOD_NOT_ALLOWED, Some(allow), body)
            }
            Refusal::Reset => (StatusCode::SERVICE_UNAVAILABLE, None, Bytes::new()),
        }
    }

    /// A value that the engine cannot serve: `parameter` is named in the message, as vLLM does.
    pub(crate) fn value(message: &str, parameter: &str, value: impl std::fmt::Display) -> Refusal {
        Refusal::bad_request(
            format!("{message} (parameter={parameter}, value={value})"),
            Some(parameter),
        )
    }

    pub(crate) fn bad_request(message: String, param: Option<&str>) -> Refusal {
        Refusal::Api {
            status: StatusCode::BAD_REQUEST,
            kind: "BadRequestError",
            message,
            param: param.map(str::to_owned),
        }
    }

    /// A body that the framework's validation refuses; `error` is its rendering of the first error.
    pub(crate) fn validation(error: &str, param: Option<String>) -> Refusal {
        Refusal::Api {
            status: StatusCode::BAD_REQUEST,
            kind: "Bad Request",
            message: format!("1 validation error:\n  {error}"),
            param,
        }
    }

    pub(crate) fn content_type() -> Refusal {
        Refusal::validation("Unsupported Media Type: Only 'application/json' is allowed", None)
    }

    pub(crate) fn unknown_model(model: &str, known: &str) -> Refusal {
        let message = format!("The model `{model}` does not exist. Valid aliases: {known}.");
        Refusal::not_found(message, "model")
    }

    pub(crate) fn not_found(message: String, param: &str) -> Refusal {
        Refusal::Api {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message,
            param: Some(param.to_owned()),
        }
    }

    fn unavailable(message: &str) -> Refusal {
        Refusal::Api {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "Service Unavailable",
            message: message.to_owned(),
            param: None,
        }
    }

    /// What the engine answers when something in it failed.
    pub(crate) fn internal() -> Refusal {
        Refusal::injected(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What a fault of kind `status` answers. A 503 is vLLM's answer when its queue is full.
    pub(crate) fn injected(status: StatusCode) -> Refusal {
        let (kind, message) = match status {
            StatusCode::SERVICE_UNAVAILABLE => return Refusal::Busy(Busy::Requests),
            status if status.is_server_error() => ("InternalServerError", "Internal server error"),
            _ => ("BadRequestError", "Bad request"),
        };
        Refusal::Api { status, kind, message: message.to_owned(), param: None }
    }

    /// The refusal within a stream: an event of JSON with the spaces that Python puts there.
    pub(crate) fn into_event(self) -> String {
        let (kind, message, code) = match self {
            Refusal::Api { status, kind, message, .. } => (kind, message, status.as_u16()),
            _ => ("InternalServerError", "Internal server error".to_owned(), 500),
        };
        let message = serde_json::Value::from(message);
        format!(
            "data: {{\"error\": {{\"message\": {message}, \"type\": \"{kind}\", \"param\": null, \"code\": {code}}}}}\n\n"
        )
    }

    /// Why `body` is no request.
    pub(crate) fn unparsed(body: &[u8], error: &serde_json::Error) -> Refusal {
        if body.is_empty() {
            let error =
                "{'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': None}";
            return Refusal::validation(error, Some("body".to_owned()));
        }
        if error.classify() != Category::Data {
            return invalid_json(body, error);
        }
        let said = error.to_string();
        let fields = serde_json::from_slice::<Fields<'_>>(body).map_or(0, |fields| fields.len());
        let (kind, loc, msg) = match said
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next())
        {
            Some(field) => ("missing", format!("body.{field}"), "Field required"),
            None => {
                ("value_error", "body".to_owned(), said.split(" at line ").next().unwrap_or(&said))
            }
        };
        let rendered = format!(
            "{{'type': '{kind}', 'loc': '{loc}', 'msg': '{msg}', 'input': '<dict of {fields} items>'}}"
        );
        Refusal::validation(&rendered, Some(loc))
    }
}

/// What Python's decoder says about the same text.
fn invalid_json(body: &[u8], error: &serde_json::Error) -> Refusal {
    let said = error.to_string();
    let reason = match said.as_str() {
        s if s.starts_with("EOF while parsing a list")
            || s.starts_with("EOF while parsing an object") =>
        {
            "Expecting ',' delimiter"
        }
        s if s.starts_with("expected `,`") => "Expecting ',' delimiter",
        s if s.starts_with("expected `:`") => "Expecting ':' delimiter",
        s if s.starts_with("key must be a string") => {
            "Expecting property name enclosed in double quotes"
        }
        s if s.starts_with("trailing characters") => "Extra data",
        _ => "Expecting value",
    };
    let lines_before = body.split_inclusive(|&b| b == b'\n').take(error.line().saturating_sub(1));
    let line_start: usize = lines_before.map(<[u8]>::len).sum();
    let at_end = usize::from(error.classify() != Category::Eof);
    let at = (line_start + error.column()).saturating_sub(at_end);
    let rendered = format!(
        "{{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', \
         'ctx': {{'error': \"{reason}\"}}}}"
    );
    Refusal::validation(&rendered, Some(format!("body.{at}")))
}
