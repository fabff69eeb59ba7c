//! The paths that reach an engine: the one list, which the gateway registers and the metrics name.

/// Where a request's prompt stands, so that its key can be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// `messages` (and `tools`), as in chat completions.
    Chat,
    /// `messages`, `system` and `tools`, as in the Messages API.
    Messages,
    /// `input`: text or items, as in the Responses API.
    Responses,
    /// `prompt`: text, token ids, or a list of either.
    Completion,
    /// `input`: text, token ids, or a list of either.
    Input,
    /// JSON without a prompt that later requests could share.
    Plain,
    /// `multipart/form-data`; only its `model` field is read.
    Form,
}

impl Shape {
    /// Whether the engine goes on after the prompt: its reply then comes later than the end of the prefill.
    #[must_use]
    pub fn generates(self) -> bool {
        matches!(self, Shape::Chat | Shape::Messages | Shape::Responses | Shape::Completion)
    }
}

/// One path that is sent on to an engine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The path, equal at the gateway and at the engine.
    pub path: &'static str,
    /// Where the prompt stands.
    pub shape: Shape,
}

const fn at(path: &'static str, shape: Shape) -> Endpoint {
    Endpoint { path, shape }
}

/// Every endpoint, the busiest first: look-up is a scan.
pub const ENDPOINTS: [Endpoint; 16] = [
    at("/v1/chat/completions", Shape::Chat),
    at("/v1/completions", Shape::Completion),
    at("/v1/responses", Shape::Responses),
    at("/v1/messages", Shape::Messages),
    at("/v1/embeddings", Shape::Input),
    at("/tokenize", Shape::Plain),
    at("/detokenize", Shape::Plain),
    at("/v1/rerank", Shape::Plain),
    at("/rerank", Shape::Plain),
    at("/v2/rerank", Shape::Plain),
    at("/score", Shape::Plain),
    at("/v1/score", Shape::Plain),
    at("/pooling", Shape::Input),
    at("/classify", Shape::Input),
    at("/v1/messages/count_tokens", Shape::Plain),
    at("/v1/audio/transcriptions", Shape::Form),
];

impl Endpoint {
    /// The endpoint of a path, if it is one that reaches an engine.
    #[must_use]
    pub fn find(path: &str) -> Option<Endpoint> {
        ENDPOINTS.into_iter().find(|endpoint| endpoint.path == path)
    }
}
