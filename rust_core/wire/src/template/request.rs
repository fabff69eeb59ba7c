//! A chat request as the engine reads it, as far as it matters to the prompt.
//!
//! What the engine would refuse, and what it would read in a way that is not known here, is an error: the engine has
//! the last word on it.

use minijinja::Value;
use serde::Deserialize;

use super::tool;
use super::value::{Dict, Json, List};
use super::{TemplateError, unclear};

/// What a prompt is made of.
#[derive(Debug)]
pub struct ChatRequest {
    /// Whether the tokenizer adds its own special tokens to the text.
    pub add_special_tokens: bool,
    pub(super) messages: List,
    pub(super) tools: Option<List>,
    pub(super) documents: Value,
    /// What goes to the template by name, as the engine passes it on.
    pub(super) arguments: Vec<(Value, Value)>,
    pub(super) ending: Ending,
    tool_choice_is_none: bool,
}

/// What the prompt ends with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ending {
    /// The last message.
    Closed,
    /// The start of the assistant's next message.
    Prompted,
    /// The last message, without its end.
    Continued,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    messages: Option<Json>,
    tools: Option<Json>,
    tool_choice: Option<Json>,
    documents: Option<Json>,
    chat_template: Option<Json>,
    chat_template_kwargs: Option<Json>,
    reasoning_effort: Option<String>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    add_special_tokens: Option<bool>,
}

/// Arguments of `apply_chat_template` and of its callers, which never reach the template as they are.
const TAKEN: [&str; 15] = [
    "conversation",
    "conversations",
    "max_length",
    "messages",
    "model_config",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "self",
    "tokenize",
    "tokenizer",
    "tokenizer_kwargs",
    "tools",
    "truncation",
];
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

// === impl ChatRequest ===

impl ChatRequest {
    /// The request that the raw JSON `body` makes.
    ///
    /// # Cost
    /// One pass over the body; each string is copied once.
    ///
    /// # Errors
    /// [`TemplateError::OwnTemplate`] where it brings a template, else [`TemplateError::Request`].
    pub fn parse(body: &str) -> Result<ChatRequest, TemplateError> {
        let fields: Fields = serde_json::from_str(body).map_err(|cause| {
            // The parser's message may repeat a part of the prompt.
            unclear(format!("the body at line {} column {}", cause.line(), cause.column()))
        })?;
        let given = fields.chat_template_kwargs.map(|Json(given)| given);
        let given = given.as_ref().map(|given| dict(given, "chat_template_kwargs")).transpose()?;
        let own = given.is_some_and(|given| given.some("chat_template").is_some());
        if own || fields.chat_template.is_some() {
            return Err(TemplateError::OwnTemplate);
        }
        let effort = fields.reasoning_effort.as_deref();
        let add_generation_prompt = fields.add_generation_prompt.unwrap_or(true);
        let continue_final_message = fields.continue_final_message.unwrap_or(false);
        let ending = match (add_generation_prompt, continue_final_message) {
            (false, false) => Ending::Closed,
            (true, false) => Ending::Prompted,
            (false, true) => Ending::Continued,
            (true, true) => {
                return Err(unclear("continue_final_message beside add_generation_prompt"));
            }
        };
        let documents = match &fields.documents {
            Some(Json(documents)) => read_documents(documents, true)?,
            None => match given.and_then(|given| given.some("documents")) {
                Some(documents) => read_documents(documents, false)?,
                None => Value::from(()),
            },
        };
        let Some(Json(messages)) = &fields.messages else { return Err(unclear("messages")) };
        let choice = fields.tool_choice.as_ref().and_then(|Json(choice)| choice.as_str());
        Ok(ChatRequest {
            add_special_tokens: fields.add_special_tokens.unwrap_or(false),
            messages: List(list(messages, "messages")?.0.clone()),
            tools: fields.tools.as_ref().map(|Json(tools)| tool::offered(tools)).transpose()?,
            documents,
            arguments: arguments(given, effort)?,
            ending,
            tool_choice_is_none: choice == Some("none"),
        })
    }

    /// Whether it offers tools: a model may have a template of its own for that.
    #[must_use]
    pub fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// The same as an engine with `--exclude-tools-when-tool-choice-none` reads it. Others keep the tools.
    #[must_use]
    pub fn without_unchosen_tools(mut self) -> ChatRequest {
        if self.tool_choice_is_none {
            self.tools = None;
        }
        self
    }
}

/// What the template gets by name: the client's own arguments, and what the engine derives from the effort.
fn arguments(
    given: Option<&Dict>,
    effort: Option<&str>,
) -> Result<Vec<(Value, Value)>, TemplateError> {
    let mut arguments = Dict::default();
    for (name, value) in given.map_or(&[][..], Dict::entries) {
        let name = name.as_str().unwrap_or_default();
        if TAKEN.contains(&name) {
            return Err(unclear(format!("chat_template_kwargs.{name}")));
        }
        // An engine takes these two for "not set", and sets the three by the request itself.
        let unset = value.is_none() || value.as_str() == Some("auto");
        let set = matches!(name, "add_generation_prompt" | "continue_final_message" | "documents");
        if !unset && !set && name != "chat_template" {
            arguments.insert(name, value.clone());
        }
    }
    if let Some(effort) = effort {
        if !EFFORTS.contains(&effort) {
            return Err(unclear("reasoning_effort"));
        }
        arguments.insert("reasoning_effort", effort.into());
        if given.is_none_or(|given| given.get("enable_thinking").is_none()) {
            arguments.insert("enable_thinking", (effort != "none").into());
        }
    }
    Ok(arguments.entries().to_vec())
}

fn read_documents(value: &Value, only_text: bool) -> Result<Value, TemplateError> {
    for document in &list(value, "documents")?.0 {
        let document = dict(document, "documents")?;
        if only_text && document.entries().iter().any(|(_, value)| value.as_str().is_none()) {
            return Err(unclear("documents"));
        }
    }
    Ok(value.clone())
}

pub(super) fn dict<'v>(value: &'v Value, name: &str) -> Result<&'v Dict, TemplateError> {
    Dict::of(value).ok_or_else(|| unclear(name))
}

pub(super) fn list<'v>(value: &'v Value, name: &str) -> Result<&'v List, TemplateError> {
    List::of(value).ok_or_else(|| unclear(name))
}

/// The text that `dict` must have under `key`.
pub(super) fn text<'v>(dict: &'v Dict, key: &str, name: &str) -> Result<&'v Value, TemplateError> {
    dict.get(key)
        .filter(|value| value.as_str().is_some())
        .ok_or_else(|| unclear(format!("{name}.{key}")))
}
