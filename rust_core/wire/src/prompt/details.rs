//! The fields of a chat or completion that matter where its tokens do, read only then.

use std::cell::OnceCell;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_128;

use crate::endpoint::Shape;

/// Each as it stands in the body.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Details<'a> {
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_choice: Option<&'a RawValue>,
    #[serde(borrow)]
    documents: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_effort: Option<&'a RawValue>,
    #[serde(borrow)]
    add_generation_prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    continue_final_message: Option<&'a RawValue>,
    #[serde(borrow)]
    chat_template: Option<&'a RawValue>,
    #[serde(borrow)]
    chat_template_kwargs: Option<&'a RawValue>,
    /// Whether the tokenizer puts its own tokens around the prompt.
    #[serde(borrow)]
    pub add_special_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    truncate_prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_embeds: Option<&'a RawValue>,
    #[serde(borrow)]
    echo: Option<&'a RawValue>,
    #[serde(borrow)]
    suffix: Option<&'a RawValue>,
    #[serde(borrow)]
    return_prompt_text: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
}

/// A body as text, and its details once they are asked for: most requests are sent on without.
pub(crate) struct Text<'a> {
    pub(crate) json: &'a str,
    details: OnceCell<Details<'a>>,
}

/// A request for `/tokenize`.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The model to ask for; the engines that have it agree on the tokens.
    pub model: String,
    /// What is asked.
    pub body: Bytes,
    /// Stands for all of it.
    pub hash: u128,
}

// === impl Text ===

impl<'a> Text<'a> {
    pub(crate) fn new(json: &'a str) -> Text<'a> {
        Text { json, details: OnceCell::new() }
    }

    /// The details of a body that is valid JSON; of any other, none.
    pub(crate) fn details(&self) -> &Details<'a> {
        self.details.get_or_init(|| serde_json::from_str(self.json).unwrap_or_default())
    }
}

// === impl Details ===

impl Details<'_> {
    /// Whether the engine does something to the prompt's tokens that is not known here.
    pub(crate) fn is_cut(&self) -> bool {
        !is_plain(self.truncate_prompt_tokens) || !is_plain(self.prompt_embeds)
    }

    /// Whether the reply is the same for the prompt's `ids` as for its text. Where prompt and reply exceed `most` tokens it
    /// is not: the engine refuses both, in other words.
    pub(super) fn goes_as_ids(&self, ids: usize, most: u32) -> bool {
        let texts = [self.echo, self.suffix, self.return_prompt_text];
        let asked = [self.max_tokens, self.max_completion_tokens].into_iter().flatten();
        let reply = asked.filter_map(|raw| raw.get().parse::<u64>().ok()).max().unwrap_or(1);
        let fits = (ids as u64).saturating_add(reply) <= most.into();
        fits && !self.is_cut() && texts.into_iter().all(is_plain)
    }

    /// What to ask an engine for the request's tokens; `None` where `/tokenize` does not see the request as its own path
    /// does.
    pub(super) fn ask(&self, shape: Shape, model: &str) -> Option<Ask> {
        if self.is_cut() {
            return None;
        }
        let fields = match shape {
            Shape::Chat => {
                let no_tools = self.tool_choice.is_some_and(|raw| raw.get() == "\"none\"");
                if no_tools || !is_plain(self.reasoning_effort) || !is_plain(self.documents) {
                    return None;
                }
                vec![
                    ("messages", self.messages),
                    ("tools", self.tools),
                    ("add_generation_prompt", self.add_generation_prompt),
                    ("continue_final_message", self.continue_final_message),
                    ("add_special_tokens", self.add_special_tokens),
                    ("chat_template", self.chat_template),
                    ("chat_template_kwargs", self.chat_template_kwargs),
                ]
            }
            Shape::Completion => {
                vec![("prompt", self.prompt), ("add_special_tokens", self.add_special_tokens)]
            }
            _ => return None,
        };
        let mut body = format!("{{\"model\":{}", serde_json::Value::from(model));
        for (name, value) in fields {
            if let Some(value) = value {
                body.extend([",\"", name, "\":", value.get()]);
            }
        }
        body.push('}');
        Some(Ask { model: model.to_owned(), hash: xxh3_128(body.as_bytes()), body: body.into() })
    }
}

/// Whether a field is absent, or says nothing.
fn is_plain(field: Option<&RawValue>) -> bool {
    field.is_none_or(|raw| matches!(raw.get(), "null" | "false" | "\"\""))
}
