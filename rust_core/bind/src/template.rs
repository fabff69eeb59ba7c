//! Chat templates, for the tests that hold them against `transformers`.

use nebula_wire::template::{ChatRequest, ChatTemplate, SpecialTokens};
use pyo3::prelude::*;

use crate::error::invalid;

/// The prompt that `request`, the JSON of a chat request, makes by `template`; special tokens are JSON by their names.
#[pyfunction]
pub(crate) fn render_chat(
    template: &str,
    special_tokens: &[u8],
    request: &[u8],
) -> PyResult<String> {
    let tokens = serde_json::from_slice(special_tokens).map_err(invalid)?;
    let template = ChatTemplate::compile(template, &tokens).map_err(invalid)?;
    let request = std::str::from_utf8(request).map_err(invalid)?;
    let request = ChatRequest::parse(request).map_err(invalid)?;
    template.render(&request).map(|rendered| rendered.text).map_err(invalid)
}

/// What `template` takes a message's content for, in vLLM's words.
#[pyfunction]
pub(crate) fn content_format(template: &str) -> PyResult<&'static str> {
    let template = ChatTemplate::compile(template, &SpecialTokens::new()).map_err(invalid)?;
    Ok(template.content_format().name())
}
