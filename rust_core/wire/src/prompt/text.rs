//! The text kind of key: a conversation as one run of bytes in which a later turn only appends.

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use super::string;

/// One message, or one item of a Responses input: what takes part in the key.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    role: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_call_id: Option<&'a RawValue>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
}

/// The text of one content part; other kinds of part enter as they are.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TextPart<'a> {
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

/// Separates fields and messages; cannot occur in JSON text unescaped, so two prompts never meet by accident.
const FIELD: u8 = 0x1f;
const MESSAGE: u8 = 0x1e;

/// A key's bytes under construction. Text is decoded, so that escapes and content parts make no difference.
pub(super) struct KeyText {
    bytes: Vec<u8>,
}

impl KeyText {
    pub(super) fn with_capacity(capacity: usize) -> KeyText {
        KeyText { bytes: Vec::with_capacity(capacity) }
    }

    /// What chat templates render before the first message: tools and the system text.
    pub(super) fn head(&mut self, parts: &[Option<&RawValue>]) {
        for part in parts.iter().flatten() {
            self.content(part);
            self.bytes.push(FIELD);
        }
    }

    pub(super) fn messages(&mut self, messages: &[Message<'_>]) {
        for message in messages {
            self.message(message);
        }
    }

    pub(super) fn text(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn message(&mut self, message: &Message<'_>) {
        if let Some(role) = message.role {
            self.text(role.get().as_bytes());
        }
        self.bytes.push(FIELD);
        if let Some(content) = message.content {
            self.content(content);
        }
        let extras = [
            message.name,
            message.tool_calls,
            message.tool_call_id,
            message.arguments,
            message.output,
        ];
        for extra in extras.into_iter().flatten() {
            self.bytes.push(FIELD);
            self.text(extra.get().as_bytes());
        }
        self.bytes.push(MESSAGE);
    }

    fn content(&mut self, raw: &RawValue) {
        if let Some(text) = string(raw) {
            return self.text(text.as_bytes());
        }
        match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
            Ok(parts) => parts.into_iter().for_each(|part| self.part(part)),
            Err(_) => self.text(raw.get().as_bytes()),
        }
    }

    fn part(&mut self, raw: &RawValue) {
        let part = serde_json::from_str::<TextPart<'_>>(raw.get()).unwrap_or_default();
        match part.text.and_then(string).or_else(|| string(raw)) {
            Some(text) => self.text(text.as_bytes()),
            // Media stand for what they are, not for the length of their encoding.
            None => self.text(&xxh3_64(raw.get().as_bytes()).to_le_bytes()),
        }
    }
}
