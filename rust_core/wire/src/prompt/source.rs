//! What a prompt is made of, before it is cut into blocks.

use serde_json::value::RawValue;

use super::{Fields, string, text};
use crate::endpoint::Shape;
use crate::error::Error;

/// A prompt's content as the request gives it.
pub(super) enum Source {
    Text(Vec<u8>),
    Tokens(Vec<u32>),
    /// The first of several prompts, and the bytes of JSON that all of them take.
    Batch(Box<Source>, usize),
}

impl Source {
    /// Whether the client gave token ids.
    pub(super) fn is_tokens(&self) -> bool {
        match self {
            Source::Text(_) => false,
            Source::Tokens(_) => true,
            Source::Batch(first, _) => first.is_tokens(),
        }
    }

    /// The text, or that of the first of several prompts; empty where there is none.
    pub(super) fn text(&self) -> &[u8] {
        match self {
            Source::Text(text) => text,
            Source::Tokens(_) => &[],
            Source::Batch(first, _) => first.text(),
        }
    }
}

/// The content of a request; `None` where no later request could share it.
///
/// # Errors
/// The field that is missing.
pub(super) fn source(
    shape: Shape,
    fields: &Fields<'_>,
    capacity: usize,
) -> Result<Option<Source>, Error> {
    match shape {
        Shape::Chat | Shape::Messages => {
            let messages = fields.messages.as_ref().ok_or_else(|| missing("messages"))?;
            let mut key = text::KeyText::with_capacity(capacity);
            key.head(&[fields.tools, fields.system]);
            key.messages(messages);
            Ok(Some(Source::Text(key.finish())))
        }
        Shape::Completion => Ok(prompt_source(fields.prompt.ok_or_else(|| missing("prompt"))?)),
        Shape::Input | Shape::Responses => Ok(input_source(fields, capacity)),
        Shape::Plain | Shape::Form => Ok(None),
    }
}

fn missing(field: &'static str) -> Error {
    Error::bad_request(Some(field.into()), format!("{field}: this field is required"))
}

/// A prompt is text, token ids, or a list of either; a list of prompts is routed by its first.
fn prompt_source(raw: &RawValue) -> Option<Source> {
    if let Some(source) = single_source(raw) {
        return Some(source);
    }
    let prompts = serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok()?;
    let first = single_source(prompts.first()?)?;
    Some(if prompts.len() == 1 { first } else { Source::Batch(Box::new(first), raw.get().len()) })
}

fn single_source(raw: &RawValue) -> Option<Source> {
    match string(raw) {
        Some(text) => Some(Source::Text(text.into_owned().into_bytes())),
        None => serde_json::from_str(raw.get()).ok().map(Source::Tokens),
    }
}

fn input_source(fields: &Fields<'_>, capacity: usize) -> Option<Source> {
    if let Some(messages) = &fields.messages {
        let mut key = text::KeyText::with_capacity(capacity);
        key.messages(messages);
        return Some(Source::Text(key.finish()));
    }
    let input = fields.input?;
    if let Ok(items) = serde_json::from_str::<Vec<text::Message<'_>>>(input.get()) {
        let mut key = text::KeyText::with_capacity(capacity);
        key.head(&[fields.tools, fields.instructions]);
        key.messages(&items);
        return Some(Source::Text(key.finish()));
    }
    match prompt_source(input)? {
        Source::Text(text) => {
            let mut key = text::KeyText::with_capacity(capacity);
            key.head(&[fields.tools, fields.instructions]);
            key.text(&text);
            Some(Source::Text(key.finish()))
        }
        other => Some(other),
    }
}
