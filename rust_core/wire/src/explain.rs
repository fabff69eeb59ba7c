//! A decision shown and not taken.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use nebula_route::Explanation;
use serde::Serialize;

use crate::context::Context;
use crate::dispatch::{Request, read_prompt, wanted_rank};
use crate::error::Error;
use crate::prompt::{Origin, Wish};
use crate::reply::{Head, Sender};

#[derive(Serialize)]
struct Explained {
    key: Key,
    text_chars: usize,
    #[serde(flatten)]
    decision: Explanation,
}

#[derive(Serialize)]
struct Key {
    kind: &'static str,
    source: Origin,
    why: Option<String>,
    exact: bool,
}

/// Tells `sender` what would be chosen for a request.
pub(crate) async fn explain(context: &Arc<Context>, request: Request, sender: Sender) {
    let result = explained(context, request).await.map(|json| {
        let json_type = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let headers = HeaderMap::from_iter([json_type]);
        sender.head(Head { status: 200, headers }, json.into());
    });
    sender.end(result);
}

async fn explained(context: &Arc<Context>, request: Request) -> Result<String, Error> {
    let text_chars = request.body.len();
    let rank = wanted_rank(&request.headers)?;
    let (_, prompt) = read_prompt(context, request).await?;
    let decision = context
        .router
        .explain(&prompt.query(Wish { rank, engine: None }, &[]), context.clock.now())?;
    let source = prompt.key.origin;
    let kind = source.kind();
    let exact = prompt.key.chain().is_exact();
    let key = Key { kind, source, why: prompt.key.why, exact };
    as_json(&Explained { key, text_chars, decision })
}

/// A document of ours as JSON.
///
/// # Errors
/// A map whose keys are no text; none of ours is.
pub(crate) fn as_json(document: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(document)
        .map_err(|cause| Error::internal(format!("cannot be written as JSON: {cause}")))
}
