//! A chat request -> the text that the engine's tokenizer sees.
//!
//! An engine renders its model's Jinja template by `transformers`, after vLLM has brought the messages into shape. Both
//! steps are done here so that they give the same bytes, or an error: whoever gets one asks the engine.
//!
//! ```text
//! request      the JSON of a request -> what its prompt is made of
//! message      messages in the shape that vLLM hands to a template
//! tool         tools and calls of them in that shape
//! source       Jinja2's language in the words of the parser here
//! syntax       a parsed template as a tree
//! check        what a template must not do
//! scope        names that it must not get as arguments
//! format       whether it takes a message's content as text or as parts
//! environment  the names that it can use
//! filter       filters and tests that behave as in Jinja2
//! method       the methods of Python's text and dicts
//! json         the filter tojson
//! date         the function strftime_now
//! python       text as Python writes it
//! value        JSON as Python's objects
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::ZonedDateTime;
use minijinja::{Environment, Value, machinery};

mod check;
mod date;
mod environment;
mod filter;
mod format;
mod json;
mod message;
mod method;
mod python;
mod request;
mod scope;
mod source;
mod syntax;
mod tool;
mod value;

pub use request::ChatRequest;

use request::Ending;
use value::{Dict, List};

/// Special tokens by their name, such as `bos_token`: the template sees them as variables.
pub type SpecialTokens = BTreeMap<String, String>;

/// Where `strftime_now` reads the local time.
pub type Clock = Arc<dyn Fn() -> ZonedDateTime + Send + Sync>;

/// A model's chat template, compiled once for many requests.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, Value)>,
    format: ContentFormat,
    /// Names that it finds no argument for in one engine, and in the other does.
    hidden: Vec<String>,
    knows_developer: bool,
    names_content: bool,
}

/// What a template takes a message's content for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentFormat {
    /// Text.
    Text,
    /// A list of parts.
    Parts,
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The prompt. What stands for media in it is the template's own mark, or nothing.
    pub text: String,
    /// The length in bytes of the part that the engine has exactly so; all of it without media.
    pub exact_prefix: usize,
    /// The media in the order of the messages; none of them is before the exact part's end.
    pub media: Vec<MediaKey>,
}

/// What tells one medium from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MediaKey {
    /// The client's word for it.
    Uuid(String),
    /// The hash of its URL or data.
    Content(u128),
}

/// Why there is no prompt here. None of these is the client's to see: the engine has the last word.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template does something that is not known to be the same here.
    #[error("the chat template cannot be rendered here: {0}")]
    Syntax(String),
    /// The request is one that the engine refuses, or reads in a way that is not known here.
    #[error("this request's prompt is the engine's to make: {0}")]
    Request(String),
    /// The request brings its own template, which an engine only takes if it is told to.
    #[error("the request brings its own chat template")]
    OwnTemplate,
    /// The template refuses the conversation, or stumbles over it.
    #[error("the chat template gives no prompt for this conversation: {0}")]
    Refused(String),
}

/// Marks the end of the message that is to be continued, as `transformers` does.
const CONTINUE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// The template's name in the environment, which says that nothing is escaped.
const NAME: &str = "chat";

// === impl ContentFormat ===

impl ContentFormat {
    /// The name that vLLM's option `--chat-template-content-format` gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ContentFormat::Text => "string",
            ContentFormat::Parts => "openai",
        }
    }
}

// === impl ChatTemplate ===

impl ChatTemplate {
    /// The template that `source` is.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] where a part of it is not known to give the same text here.
    pub fn compile(
        source: &str,
        special_tokens: &SpecialTokens,
    ) -> Result<ChatTemplate, TemplateError> {
        ChatTemplate::with_clock(source, special_tokens, Arc::new(ZonedDateTime::now))
    }

    /// The same with another time for `strftime_now`.
    ///
    /// # Errors
    /// As [`ChatTemplate::compile`].
    pub fn with_clock(
        source: &str,
        special_tokens: &SpecialTokens,
        clock: Clock,
    ) -> Result<ChatTemplate, TemplateError> {
        let prepared = source::prepare(source)?;
        let syntax_error = |cause: minijinja::Error| TemplateError::Syntax(cause.to_string());
        let parsed =
            machinery::parse(&prepared, NAME, environment::syntax()).map_err(syntax_error)?;
        check::check(&parsed)?;
        let format = format::detect(&parsed);
        let hidden = scope::hidden(&parsed);
        let mut environment = environment::environment(clock);
        environment.add_template_owned(NAME, prepared.clone()).map_err(syntax_error)?;
        let tokens = special_tokens.iter();
        Ok(ChatTemplate {
            environment,
            special_tokens: tokens.map(|(name, text)| (name.clone(), text.into())).collect(),
            format,
            hidden,
            knows_developer: source.contains("\"developer\"") || source.contains("'developer'"),
            names_content: source.contains("content"),
        })
    }

    /// What the template takes a message's content for, as vLLM detects it.
    #[must_use]
    pub fn content_format(&self) -> ContentFormat {
        self.format
    }

    /// The prompt that `request` makes.
    ///
    /// # Cost
    /// What the template does; the messages' text is copied once, into the result. With media, twice.
    ///
    /// # Errors
    /// [`TemplateError::Request`] and [`TemplateError::Refused`].
    pub fn render(&self, request: &ChatRequest) -> Result<Rendered, TemplateError> {
        let marked = self.conversation(request, true)?;
        let has_media = !marked.media.is_empty();
        let text = self.render_messages(request, marked.messages)?;
        if !has_media {
            return Ok(Rendered { exact_prefix: text.len(), text, media: Vec::new() });
        }
        let Some(mark) = text.find(message::SENTINEL) else {
            return Err(TemplateError::Refused("it leaves out a medium".to_owned()));
        };
        let plain = self.conversation(request, false)?;
        let media = plain.media;
        let plain = self.render_messages(request, plain.messages)?;
        // The mark itself may change what is before it, such as a count of parts.
        let same = text.bytes().zip(plain.bytes()).take(mark).take_while(|(a, b)| a == b).count();
        let exact_prefix = (0..=same).rfind(|at| plain.is_char_boundary(*at)).unwrap_or(0);
        Ok(Rendered { text: plain, exact_prefix, media })
    }

    fn conversation(
        &self,
        request: &ChatRequest,
        mark: bool,
    ) -> Result<message::Conversation, TemplateError> {
        message::conversation(&request.messages, self.format, self.knows_developer, mark)
    }

    fn render_messages(
        &self,
        request: &ChatRequest,
        mut messages: Vec<Dict>,
    ) -> Result<String, TemplateError> {
        let continued = request.ending == Ending::Continued;
        let continued = continued.then(|| self.mark_final_message(&mut messages)).transpose()?;
        let mut context = Dict::default();
        for (name, text) in &self.special_tokens {
            context.insert(name, text.clone());
        }
        for (name, value) in &request.arguments {
            context.insert(name.as_str().unwrap_or_default(), value.clone());
        }
        let tools = request.tools.as_ref();
        let tools = tools.map_or_else(|| ().into(), |tools| List(tools.0.clone()).into());
        context.insert("messages", List(messages.into_iter().map(Value::from).collect()).into());
        context.insert("tools", tools);
        context.insert("documents", request.documents.clone());
        context.insert("add_generation_prompt", (request.ending == Ending::Prompted).into());
        if self.hidden.iter().any(|name| context.get(name).is_some()) {
            return Err(TemplateError::Refused("it sets an argument after it reads it".to_owned()));
        }
        python::forget_inexact();
        let template = self.environment.get_template(NAME).map_err(|cause| refused(&cause))?;
        let text = template.render(Value::from(context)).map_err(|cause| refused(&cause))?;
        if !python::is_exact() {
            return Err(TemplateError::Refused("it shows rare letters as Python does".to_owned()));
        }
        match continued {
            Some(end) => cut_at_mark(text, &end),
            None => Ok(text),
        }
    }

    /// Puts [`CONTINUE`] at the end of the last message and gives back what stood there.
    fn mark_final_message(&self, messages: &mut [Dict]) -> Result<String, TemplateError> {
        let nothing = || TemplateError::Refused("there is no message to continue".to_owned());
        let last = messages.last_mut().filter(|_| self.names_content).ok_or_else(nothing)?;
        let content = last.get("content").cloned().unwrap_or_default();
        if let Some(text) = content.as_str() {
            last.insert("content", [text, CONTINUE].concat().into());
            return Ok(text.to_owned());
        }
        let mut parts = List::of(&content).ok_or_else(nothing)?.0.clone();
        let texts = parts.iter_mut().rev();
        let found = texts.filter_map(|part| {
            let text = Dict::of(part)?.get("text")?.as_str()?.to_owned();
            Some((part, text))
        });
        let (part, text) = found.into_iter().next().ok_or_else(nothing)?;
        let mut marked = Dict::default();
        for (key, value) in Dict::of(part).map_or(&[][..], Dict::entries) {
            marked.insert(key.as_str().unwrap_or_default(), value.clone());
        }
        marked.insert("text", [&text, CONTINUE].concat().into());
        *part = marked.into();
        last.insert("content", List(parts).into());
        Ok(text)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("format", &self.format).finish_non_exhaustive()
    }
}

/// The text up to the mark; without its last spaces where the template took the mark's own.
fn cut_at_mark(mut text: String, end: &str) -> Result<String, TemplateError> {
    let mark = text.rfind(CONTINUE.trim_end()).filter(|_| text.contains(python::strip(end)));
    let Some(mark) = mark else {
        return Err(TemplateError::Refused("it leaves out the message to continue".to_owned()));
    };
    let whole = text[mark..].starts_with(CONTINUE);
    text.truncate(mark);
    if !whole {
        text.truncate(text.trim_end_matches(python::is_space).len());
    }
    Ok(text)
}

/// The place and kind of an error: its text may repeat a part of the prompt.
fn refused(cause: &minijinja::Error) -> TemplateError {
    let line = cause.line().unwrap_or_default();
    TemplateError::Refused(format!("{} at line {line}", cause.kind()))
}

fn unclear(what: impl Into<String>) -> TemplateError {
    TemplateError::Request(what.into())
}

#[cfg(test)]
mod tests;
