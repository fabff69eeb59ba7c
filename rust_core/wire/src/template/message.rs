//! Messages as vLLM's `parse_chat_messages` hands them to a template.

use minijinja::Value;
use xxhash_rust::xxh3::xxh3_128;

use super::request::{dict, list, text};
use super::value::{Dict, List};
use super::{ContentFormat, MediaKey, TemplateError, json, python, tool, unclear};

/// A conversation in the shape of the template's content format.
pub(super) struct Conversation {
    pub(super) messages: Vec<Dict>,
    /// The media in it, in order.
    pub(super) media: Vec<MediaKey>,
}

/// What a part of a message's content comes to.
enum Piece {
    Text(Value, Vec<(Value, Value)>),
    Reference(Value),
    Media(&'static str, MediaKey, Vec<(Value, Value)>),
}

/// Stands where the first medium is. Where a user writes it, the exact prefix ends there instead.
pub(super) const SENTINEL: &str = "\u{f8f0}nebula:medium\u{f8f1}";

const TEXTS: [(&str, &str); 5] = [
    ("text", "text"),
    ("input_text", "text"),
    ("output_text", "text"),
    ("thinking", "thinking"),
    ("refusal", "refusal"),
];
/// Types of parts, what templates call them, and the field that they come in; in vLLM's order of looking for fields.
const MEDIA: [(&str, &str, &str); 10] = [
    ("image_url", "image", "image_url"),
    ("input_image", "image", "image_url"),
    ("image_pil", "image", "image_pil"),
    ("image_embeds", "image", "image_embeds"),
    ("audio_embeds", "audio", "audio_embeds"),
    ("video_embeds", "video", "video_embeds"),
    ("prompt_embeds", "text", "data"),
    ("audio_url", "audio", "audio_url"),
    ("input_audio", "audio", "input_audio"),
    ("video_url", "video", "video_url"),
];
/// Fields of any part that vLLM knows; others go on to the template.
const KNOWN: [&str; 18] = [
    "audio_embeds",
    "audio_url",
    "closed",
    "data",
    "file",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "name",
    "prompt_cache_breakpoint",
    "refusal",
    "text",
    "thinking",
    "type",
    "uuid",
    "video_embeds",
    "video_url",
];
/// Its value changes with every request, so vLLM leaves the line out of system messages.
const BILLING: &str = "x-anthropic-billing-header";

/// The conversation that a template gets. `mark` puts [`SENTINEL`] before the first medium.
pub(super) fn conversation(
    messages: &List,
    format: ContentFormat,
    knows_developer: bool,
    mark: bool,
) -> Result<Conversation, TemplateError> {
    let mut media = Vec::new();
    let mut read = Vec::with_capacity(messages.0.len());
    for given in &messages.0 {
        read.push(message(dict(given, "messages")?, format, mark, &mut media)?);
    }
    let developed = read.iter().any(|message| role(message) == "developer");
    if developed && !knows_developer {
        for message in &mut read {
            if role(message) == "developer" {
                message.insert("role", "system".into());
                *message = without(message, "tools");
            }
        }
        read = consolidated(read);
    }
    Ok(Conversation { messages: read, media })
}

fn message(
    given: &Dict,
    format: ContentFormat,
    mark: bool,
    media: &mut Vec<MediaKey>,
) -> Result<Dict, TemplateError> {
    let role = text(given, "role", "messages")?;
    let name = role.as_str().unwrap_or_default();
    // Messages of other kinds have rules of their own.
    let others = ["author", "channel", "recipient", "audio", "function_call"];
    if others.iter().any(|field| given.get(field).is_some()) {
        return Err(unclear("messages"));
    }
    let pieces = pieces(given, name)?;
    let content = match format {
        ContentFormat::Text => joined(&pieces, mark && media.is_empty()),
        ContentFormat::Parts => listed(&pieces, mark && media.is_empty()),
    };
    media.extend(pieces.into_iter().filter_map(|piece| match piece {
        Piece::Media(_, key, _) => Some(key),
        _ => None,
    }));
    let mut message = Dict::from([("role", role.clone()), ("content", content)]);
    match name {
        "assistant" => add_assistant(&mut message, given)?,
        _ if given.some("tool_calls").is_some() => return Err(unclear("messages.tool_calls")),
        "tool" => add_tool(&mut message, given)?,
        _ => {}
    }
    for field in ["name", "task"] {
        if let Some(value) = given.some(field) {
            value.as_str().ok_or_else(|| unclear(format!("messages.{field}")))?;
            message.insert(field, value.clone());
        }
    }
    if name == "developer" {
        if given.some("tools").is_some() {
            return Err(unclear("messages.tools"));
        }
        message.insert("tools", Value::from(()));
    }
    Ok(message)
}

fn add_assistant(message: &mut Dict, given: &Dict) -> Result<(), TemplateError> {
    if let Some(calls) = given.some("tool_calls").map(tool::called).transpose()?.flatten() {
        message.insert("tool_calls", calls);
    }
    if let Some(reasoning) = given.some("reasoning").or_else(|| given.some("reasoning_content")) {
        reasoning.as_str().ok_or_else(|| unclear("messages.reasoning"))?;
        message.insert("reasoning", reasoning.clone());
        message.insert("reasoning_content", reasoning.clone());
    }
    Ok(())
}

fn add_tool(message: &mut Dict, given: &Dict) -> Result<(), TemplateError> {
    if let Some(id) = given.get("tool_call_id") {
        if !(id.is_none() || id.as_str().is_some()) {
            return Err(unclear("messages.tool_call_id"));
        }
        message.insert("tool_call_id", id.clone());
    }
    // Most templates take a tool's reply for text.
    let parts = message.get("content").and_then(List::of).map(|parts| texts(&parts.0));
    if let Some((texts, true)) = parts {
        message.insert("content", texts.join("\n").into());
    }
    Ok(())
}

// === parts ===

fn pieces(given: &Dict, role: &str) -> Result<Vec<Piece>, TemplateError> {
    let wrong = || unclear("messages.content");
    let parts = match given.get("content") {
        None => return Ok(Vec::new()),
        Some(content) if content.is_none() => {
            return if role == "assistant" { Ok(Vec::new()) } else { Err(wrong()) };
        }
        Some(content) if content.as_str().is_some() => std::slice::from_ref(content),
        Some(content) => list(content, "messages.content")?.0.as_slice(),
    };
    if given.get("content").is_some_and(|content| List::of(content).is_some())
        && !is_valid(given, role, parts)
    {
        return Err(wrong());
    }
    let mut pieces = Vec::with_capacity(parts.len());
    for part in parts {
        let mut piece = if part.as_str().is_some() {
            Piece::Text(part.clone(), Vec::new())
        } else {
            piece(dict(part, "messages.content")?)?
        };
        if let (Piece::Text(text, _), "system") = (&mut piece, role) {
            let plain = Dict::of(part)
                .is_none_or(|part| part.get("type").and_then(Value::as_str) == Some("text"));
            let billed = text.as_str().filter(|text| plain && text.starts_with(BILLING));
            if let Some(billed) = billed {
                match billed.split_once('\n') {
                    Some((_, rest)) if !rest.is_empty() => *text = rest.into(),
                    _ => continue,
                }
            }
        }
        pieces.push(piece);
    }
    Ok(pieces)
}

/// Whether the parts pass vLLM's validation, which takes a message for the kind of which it has the most fields.
///
/// That is vLLM's own kind, which takes any part, or OpenAI's kind for the role, which has none for bare strings and
/// the parts of the Responses API.
fn is_valid(given: &Dict, role: &str, parts: &[Value]) -> bool {
    let is_foreign = |part: &Value| match Dict::of(part) {
        Some(part) => {
            matches!(part.get("type").and_then(Value::as_str), Some("input_text" | "output_text"))
        }
        None => true,
    };
    if parts.is_empty() || !parts.iter().all(is_foreign) {
        return true;
    }
    let has = |field: &str| given.get(field).is_some();
    let reasons = has("reasoning") || given.some("reasoning_content").is_some();
    let more = has("task") || has("tools") || reasons;
    match role {
        "tool" => !has("tool_call_id") || has("name") || more,
        "function" => !has("name") || has("tool_call_id") || more,
        "assistant" => {
            let calls = given.get("tool_calls").and_then(List::of);
            let called = calls.is_some_and(|calls| !calls.0.is_empty());
            let more = u8::from(has("task")) + u8::from(has("tools")) + u8::from(reasons);
            called || more + u8::from(has("tool_call_id")) > u8::from(has("refusal"))
        }
        "developer" | "system" | "user" => has("tool_call_id") || more,
        _ => true,
    }
}

fn piece(part: &Dict) -> Result<Piece, TemplateError> {
    let wrong = || unclear("messages.content.type");
    let kind = match part.some("type") {
        Some(kind) => Some(kind.as_str().ok_or_else(wrong)?),
        None => None,
    };
    let uuid = part.some("uuid");
    let extras = || {
        let unknown =
            |(key, _): &&(Value, Value)| !key.as_str().is_some_and(|key| KNOWN.contains(&key));
        part.entries().iter().filter(unknown).cloned().collect()
    };
    if let (Some(kind), None) = (kind, uuid) {
        if let Some((_, field)) = TEXTS.iter().find(|(known, _)| *known == kind) {
            return Ok(Piece::Text(text(part, field, "messages.content")?.clone(), extras()));
        }
        if kind == "tool_reference" {
            return Ok(Piece::Reference(text(part, "name", "messages.content")?.clone()));
        }
    }
    // Without a type, or with an identity, a part is what its field says.
    let found = MEDIA.iter().find(|(known, _, field)| match (kind, uuid) {
        (Some(kind), None) => *known == kind,
        _ => *known != "prompt_embeds" && part.get(field).is_some(),
    });
    let (_, modality, field) = found.ok_or_else(wrong)?;
    let key = match uuid {
        Some(uuid) => MediaKey::Uuid(uuid.as_str().ok_or_else(wrong)?.to_owned()),
        None => content_key(part.some(field).ok_or_else(wrong)?)?,
    };
    Ok(Piece::Media(modality, key, extras()))
}

/// The hash of a medium's URL or data.
fn content_key(value: &Value) -> Result<MediaKey, TemplateError> {
    let url = Dict::of(value).and_then(|value| value.get("url")).unwrap_or(value);
    if let Some(url) = url.as_str() {
        return Ok(MediaKey::Content(xxh3_128(url.as_bytes())));
    }
    let whole = json::dumps(value).map_err(|_| unclear("messages.content"))?;
    Ok(MediaKey::Content(xxh3_128(whole.as_bytes())))
}

/// Text parts on lines of their own; the marks of media go before them, whatever their order.
fn joined(pieces: &[Piece], mark: bool) -> Value {
    let has_media = pieces.iter().any(|piece| matches!(piece, Piece::Media(..)));
    let mut lines = Vec::with_capacity(pieces.len() + 1);
    if has_media && mark {
        lines.push(SENTINEL.into());
    }
    lines.extend(pieces.iter().filter_map(|piece| match piece {
        Piece::Text(text, _) | Piece::Reference(text) if text.is_true() => Some(text.clone()),
        _ => None,
    }));
    match lines.as_slice() {
        [] => "".into(),
        [only] => only.clone(),
        lines => lines.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n").into(),
    }
}

fn listed(pieces: &[Piece], mut mark: bool) -> Value {
    let mut parts = Vec::with_capacity(pieces.len() + 1);
    for piece in pieces {
        let (mut part, extras) = match piece {
            Piece::Text(text, extras) => {
                (Dict::from([("type", "text".into()), ("text", text.clone())]), extras.as_slice())
            }
            Piece::Reference(name) => {
                let kind = ("type", "tool_reference".into());
                (Dict::from([kind, ("name", name.clone())]), &[][..])
            }
            Piece::Media(modality, _, extras) => {
                if std::mem::take(&mut mark) {
                    let text = ("text", SENTINEL.into());
                    parts.push(Dict::from([("type", "text".into()), text]).into());
                }
                (Dict::from([("type", (*modality).into())]), extras.as_slice())
            }
        };
        for (key, value) in extras {
            part.insert(key.as_str().unwrap_or_default(), value.clone());
        }
        parts.push(part.into());
    }
    List(parts).into()
}

// === system messages ===

fn role(message: &Dict) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

fn without(message: &Dict, field: &str) -> Dict {
    let mut rest = Dict::default();
    for (key, value) in message.entries() {
        match key.as_str() {
            Some(key) if key != field => rest.insert(key, value.clone()),
            _ => {}
        }
    }
    rest
}

/// All system messages as one at the start, where there is one elsewhere: some templates refuse any other place.
fn consolidated(messages: Vec<Dict>) -> Vec<Dict> {
    let is_system = |message: &&Dict| role(message) == "system";
    if !messages.iter().skip(1).any(|message| is_system(&message)) {
        return messages;
    }
    let contents = messages.iter().filter(is_system).map(|message| {
        let content = message.get("content").cloned().unwrap_or_default();
        List::of(&content)
            .map_or_else(|| python::string(&content), |parts| texts(&parts.0).0.join("\n"))
    });
    let content = contents.filter(|content| !content.is_empty()).collect::<Vec<_>>().join("\n\n");
    let merged = Dict::from([("role", "system".into()), ("content", content.into())]);
    let rest = messages.into_iter().filter(|message| role(message) != "system");
    std::iter::once(merged).chain(rest).collect()
}

/// The texts of parts, and whether there is nothing else.
fn texts(parts: &[Value]) -> (Vec<&str>, bool) {
    let mut texts = Vec::with_capacity(parts.len());
    let mut only_texts = true;
    for part in parts.iter().filter_map(Dict::of) {
        only_texts &= part.get("type").and_then(Value::as_str) == Some("text");
        texts.extend(part.get("text").and_then(Value::as_str));
    }
    (texts, only_texts)
}
