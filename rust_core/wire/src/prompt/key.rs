//! A prompt's chains: one for each way in which the model's engines cut prompts into blocks.

use nebula_route::{Chain, Config, KeyKind, KeySource, KeySpec, Scope};
use serde::Serialize;
use smallvec::SmallVec;

use super::source::Source;
use crate::models::Tokens;

/// Where the tokens of a prompt came from, the best first.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The client sent them.
    Client,
    /// The model's own tokenizer, in this process.
    Local,
    /// The engine's `/tokenize`.
    Engine,
    /// There are none: the blocks are cut from the text.
    Text,
}

/// A prompt as the router looks it up.
#[derive(Debug)]
pub struct Key {
    /// Where its tokens came from.
    pub origin: Origin,
    /// Why they did not come from a better place; `None` where there was none to want.
    pub why: Option<String>,
    scope: Own,
    /// One chain per key of the model's engines; never empty.
    chains: SmallVec<[(KeySpec, Chain); 1]>,
}

/// What a prompt shares its blocks with others for.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// The model's name: text is cut for whatever stands behind it.
    pub(super) model: String,
    /// Whether that is an adapter's. Tokens of a base model need no name: an engine has one base, whatever it is called,
    /// and its events name none.
    pub(super) is_adapter: bool,
    pub(super) salt: Option<String>,
}

/// What all keys are made with.
pub(super) struct Cutter<'a> {
    pub(super) config: &'a Config,
    pub(super) own: &'a Own,
}

// === impl Origin ===

impl Origin {
    /// Its name in logs, metrics and headers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Client => "client",
            Origin::Local => "local",
            Origin::Engine => "engine",
            Origin::Text => "text",
        }
    }

    /// What the blocks are cut from.
    #[must_use]
    pub fn kind(self) -> &'static str {
        if self == Origin::Text { "text" } else { "tokens" }
    }
}

// === impl Key ===

impl Key {
    /// The key of a prompt that shares nothing.
    #[must_use]
    pub fn empty(prompt_tokens: u32) -> Key {
        let spec = KeySpec { source: KeySource::Text, block: 0 };
        Key {
            origin: Origin::Text,
            why: None,
            scope: Own::default(),
            chains: SmallVec::from_iter([(spec, Chain::empty(prompt_tokens))]),
        }
    }

    /// The key where every engine gets the chain that `cut` makes for it.
    pub(super) fn of(
        keys: &[KeySpec],
        origin: Origin,
        own: Own,
        cut: impl Fn(&KeySpec) -> Chain,
    ) -> Key {
        let chains = keys.iter().map(|key| (*key, cut(key))).collect();
        Key { origin, why: None, scope: own, chains }
    }

    /// The chain of the first key.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chains[0].1
    }

    /// The chains of the other keys.
    #[must_use]
    pub fn other_chains(&self) -> &[(KeySpec, Chain)] {
        &self.chains[1..]
    }

    /// Tokens that an engine told, for those whose keys want tokens and have none.
    pub(crate) fn take(&mut self, ids: &[u32], config: &Config) {
        let cutter = Cutter { config, own: &self.scope };
        for (key, chain) in &mut self.chains {
            if key.source != KeySource::Text && !chain.is_exact() {
                *chain = cutter.tokens(key.block, ids);
            }
        }
        self.origin = Origin::Engine;
    }
}

// === impl Cutter ===

impl Cutter<'_> {
    pub(super) fn tokens(&self, block: u32, ids: &[u32]) -> Chain {
        Chain::from_tokens(&self.scope(block, KeyKind::Tokens), ids)
    }

    /// The chain of tokens that were made of `source`.
    pub(super) fn local(&self, block: u32, tokens: &Tokens, source: &Source) -> Chain {
        match &tokens.rest {
            None => self.counted(self.tokens(block, &tokens.ids), source),
            Some(rest) => Chain::from_tokens_then_text(
                &self.scope(block, KeyKind::Tokens),
                &tokens.ids,
                rest,
                self.config.bytes_per_token,
            ),
        }
    }

    /// The chain of what the request itself gives; `block` counts where that is tokens.
    pub(super) fn given(&self, block: u32, source: &Source) -> Chain {
        match source {
            Source::Text(text) => {
                let scope = self.scope(self.config.text_block_bytes, KeyKind::Text);
                Chain::from_text(&scope, text, self.config.bytes_per_token)
            }
            Source::Tokens(ids) => self.tokens(block, ids),
            Source::Batch(first, _) => self.counted(self.given(block, first), source),
        }
    }

    /// A batch is routed by its first prompt and is as much work as all of them.
    fn counted(&self, first: Chain, source: &Source) -> Chain {
        match source {
            Source::Batch(_, bytes) => {
                first.with_prompt_tokens(super::estimate_tokens(*bytes, self.config))
            }
            _ => first,
        }
    }

    fn scope(&self, block: u32, kind: KeyKind) -> Scope<'_> {
        let named = kind == KeyKind::Text || self.own.is_adapter;
        let model = if named { self.own.model.as_str() } else { "" };
        Scope { model, cache_salt: self.own.salt.as_deref(), block, kind }
    }
}
