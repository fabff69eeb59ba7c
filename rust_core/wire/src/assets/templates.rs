//! Which chat template applies.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{AssetError, Folder};

/// The sources of a model's chat templates, in Jinja.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Templates {
    /// For a request without tools.
    pub default: Option<String>,
    /// For a request with tools, where that is another one.
    pub tool_use: Option<String>,
}

/// One of several templates in `tokenizer_config.json`.
#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
const FOLDER: &str = "additional_chat_templates";

// === impl Templates ===

impl Templates {
    /// The template that vLLM renders.
    #[must_use]
    pub fn source(&self, tools: bool) -> Option<&str> {
        let for_tools = self.tool_use.as_deref().filter(|_| tools);
        for_tools.or(self.default.as_deref())
    }

    /// Files of their own win over the tokenizer's configuration. Where a model has a processor, vLLM asks the tokenizer
    /// for requests with tools alone.
    pub(super) fn read(
        folder: &mut Folder<'_>,
        config: &Map<String, Value>,
    ) -> Result<Templates, AssetError> {
        let mut files = BTreeMap::new();
        if let Some(source) = folder.text("chat_template.jinja")? {
            files.insert(DEFAULT.to_owned(), source);
        }
        for name in folder.names(FOLDER, ".jinja")? {
            if let Some(source) = folder.text(&format!("{FOLDER}/{name}.jinja"))? {
                files.insert(name, source);
            }
        }
        let processor = processor(folder, config, &files)?;
        let mut own = if files.is_empty() { configured(folder, config)? } else { files };
        let (default, tool_use) = (own.remove(DEFAULT), own.remove(TOOL_USE));
        Ok(match processor {
            Some(processor) => {
                Templates { tool_use: tool_use.or(default), default: Some(processor) }
            }
            None => Templates { default, tool_use },
        })
    }
}

fn configured(
    folder: &Folder<'_>,
    config: &Map<String, Value>,
) -> Result<BTreeMap<String, String>, AssetError> {
    let wrong =
        |cause: &str| folder.malformed("tokenizer_config.json", format!("chat_template: {cause}"));
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::String(source)) => Ok([(DEFAULT.to_owned(), source.clone())].into()),
        Some(list @ Value::Array(_)) => {
            let named =
                Vec::<Named>::deserialize(list).map_err(|cause| wrong(&cause.to_string()))?;
            Ok(named.into_iter().map(|one| (one.name, one.template)).collect())
        }
        Some(_) => Err(wrong("must be a string, or a list of {name, template}")),
    }
}

/// The template of the model's processor, which models that take images or sound have.
fn processor(
    folder: &mut Folder<'_>,
    config: &Map<String, Value>,
    files: &BTreeMap<String, String>,
) -> Result<Option<String>, AssetError> {
    let own: Map<String, Value> = folder.json("processor_config.json")?.unwrap_or_default();
    let exists = !own.is_empty()
        || folder.has("preprocessor_config.json")
        || config.contains_key("processor_class");
    if !exists {
        return Ok(None);
    }
    let source = |from: &Map<String, Value>| Some(from.get("chat_template")?.as_str()?.to_owned());
    if let Some(own) = source(&own) {
        return Ok(Some(own));
    }
    match folder.json::<Map<String, Value>>("chat_template.json")? {
        // With templates in files of their own beside it, the processor does not load.
        Some(legacy) => Ok(source(&legacy).filter(|_| files.keys().all(|name| name == DEFAULT))),
        None => Ok(files.get(DEFAULT).cloned()),
    }
}
