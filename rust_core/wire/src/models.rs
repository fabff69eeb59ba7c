//! The models whose prompts become tokens in this process: by name, each with its tokenizer and chat templates.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::value::RawValue;

use crate::assets::Assets;
use crate::prompt::Details;
use crate::template::{ChatRequest, ChatTemplate, MediaKey, SpecialTokens};
use crate::tokenize::Tokenizer;

/// All that are loaded.
pub(crate) struct Models {
    cache_bytes: usize,
    by_name: RwLock<HashMap<String, Arc<Model>>>,
}

/// One model.
pub(crate) struct Model {
    /// Names the files that it was made of.
    pub(crate) fingerprint: u64,
    tokenizer: Tokenizer,
    default: Option<Template>,
    tool_use: Option<Template>,
}

/// A chat template, or why it cannot be rendered here.
type Template = Result<ChatTemplate, String>;

/// Why a prompt has no tokens here.
#[derive(Debug)]
pub(crate) enum Untold {
    /// More of it is new than may be tokenised on the spot.
    Cold,
    /// Only the engine can say.
    Never(String),
}

/// A prompt as the engine sees it.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// All of its ids, or those before its first medium.
    pub(crate) ids: Vec<u32>,
    /// What follows them where there are media: their keys and the text after them.
    pub(crate) rest: Option<Vec<u8>>,
}

// === impl Models ===

impl Models {
    /// No model yet; each one's segments get `cache_bytes`.
    pub(crate) fn new(cache_bytes: usize) -> Models {
        Models { cache_bytes, by_name: RwLock::default() }
    }

    /// A model by the name of its base.
    pub(crate) fn find(&self, base: &str) -> Option<Arc<Model>> {
        self.by_name.read().get(base).cloned()
    }

    /// Loads a model from its directory, for all of its names. What is loaded from the same files already is taken as it
    /// is, so that several engines and names share one cache of segments.
    ///
    /// # Cost
    /// Up to seconds: not for an I/O thread.
    ///
    /// # Errors
    /// Why the directory does not say what the engine makes of a prompt.
    pub(crate) fn load(&self, names: &[String], dir: &Path) -> Result<Arc<Model>, String> {
        let assets = Assets::load(dir).map_err(|cause| cause.to_string())?;
        let fingerprint = assets.fingerprint;
        let known = || self.by_name.read().values().find(|m| m.fingerprint == fingerprint).cloned();
        let model = match known() {
            Some(model) => model,
            None => Arc::new(Model::new(assets, self.cache_bytes)?),
        };
        let mut by_name = self.by_name.write();
        for name in names {
            by_name.insert(name.clone(), Arc::clone(&model));
        }
        Ok(model)
    }

    /// Bytes of the segments that are kept, and how many look-ups found theirs and how many did not.
    pub(crate) fn segments(&self) -> (u64, u64, u64) {
        let mut seen: Vec<u64> = Vec::new();
        let mut sums = (0, 0, 0);
        for model in self.by_name.read().values() {
            if !seen.contains(&model.fingerprint) {
                seen.push(model.fingerprint);
                let stats = model.tokenizer.segment_stats();
                sums = (sums.0 + stats.bytes as u64, sums.1 + stats.hits, sums.2 + stats.misses);
            }
        }
        sums
    }
}

// === impl Model ===

impl Model {
    fn new(assets: Assets, cache_bytes: usize) -> Result<Model, String> {
        let compiled = |source: Option<&String>| {
            let tokens: &SpecialTokens = &assets.special_tokens;
            source.map(|source| {
                ChatTemplate::compile(source, tokens).map_err(|cause| cause.to_string())
            })
        };
        let default = compiled(assets.templates.default.as_ref());
        let tool_use = compiled(assets.templates.tool_use.as_ref());
        let tokenizer =
            Tokenizer::new(assets.tokenizer, cache_bytes).map_err(|cause| cause.to_string())?;
        Ok(Model { fingerprint: assets.fingerprint, tokenizer, default, tool_use })
    }

    /// The tokens of a chat request, by its raw JSON, if no more than `new_bytes` of its text are new.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) fn chat(&self, json: &str, new_bytes: usize) -> Result<Tokens, Untold> {
        let never = |cause: &dyn std::fmt::Display| Untold::Never(cause.to_string());
        let request = ChatRequest::parse(json).map_err(|cause| never(&cause))?;
        let for_tools = self.tool_use.as_ref().filter(|_| request.has_tools());
        let template = for_tools.or(self.default.as_ref());
        let template = template.ok_or_else(|| never(&"the model has no chat template"))?;
        let template = template.as_ref().map_err(|cause| never(cause))?;
        let rendered = template.render(&request).map_err(|cause| never(&cause))?;
        let exact = &rendered.text[..rendered.exact_prefix];
        let mut ids = self.encode(exact, request.add_special_tokens, new_bytes)?;
        if rendered.media.is_empty() {
            return Ok(Tokens { ids, rest: None });
        }
        // The last token before the cut may be another one with what follows.
        ids.pop();
        let mut rest = Vec::new();
        for medium in &rendered.media {
            match medium {
                MediaKey::Uuid(uuid) => rest.extend_from_slice(uuid.as_bytes()),
                MediaKey::Content(hash) => rest.extend_from_slice(&hash.to_le_bytes()),
            }
            rest.push(0);
        }
        rest.extend_from_slice(&rendered.text.as_bytes()[rendered.exact_prefix..]);
        Ok(Tokens { ids, rest: Some(rest) })
    }

    /// The tokens of a completion's text, likewise.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) fn completion(
        &self,
        text: &str,
        details: &Details<'_>,
        new_bytes: usize,
    ) -> Result<Vec<u32>, Untold> {
        if details.is_cut() {
            return Err(Untold::Never("the engine cuts or replaces this prompt".to_owned()));
        }
        let special = match details.add_special_tokens.map(RawValue::get) {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) => {
                let why = "add_special_tokens is neither true nor false";
                return Err(Untold::Never(why.to_owned()));
            }
        };
        self.encode(text, special, new_bytes)
    }

    fn encode(&self, text: &str, special: bool, new_bytes: usize) -> Result<Vec<u32>, Untold> {
        match self.tokenizer.encode_within(text, special, new_bytes) {
            Ok(ids) => ids.ok_or(Untold::Cold),
            Err(cause) => Err(Untold::Never(cause.to_string())),
        }
    }
}
