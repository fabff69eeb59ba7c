//! The key of a prompt: one rolling hash per full block.
//!
//! `seed = xxh3(kind, block, model, salt)`, `local[i] = xxh3(bytes of block i)`, `chain[i] = xxh3(chain[i-1],
//! local[i])` with `chain[-1] = seed`; every integer is little endian. A chain hash therefore stands for the block *and
//! all before it*: equal hashes mean equal prefixes of the same model, salt and block size. `tests/test_block.py` holds
//! the same rule in Python; the two agree bit for bit.

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

/// What the blocks of a chain are cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// Token ids, four bytes each.
    Tokens,
    /// The prompt's text, where its tokens are not known.
    Text,
}

/// What must be equal before two prompts can share a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// The model's name, or the `LoRA` adapter's.
    pub model: &'a str,
    /// The client's `cache_salt`; `None` and the empty salt are the same.
    pub cache_salt: Option<&'a str>,
    /// Size of a block, in tokens or in bytes of text. A size of zero makes every chain empty.
    pub block: u32,
    /// What the blocks are cut from.
    pub kind: KeyKind,
}

/// A prompt as the tree sees it: its chain hashes, and how many tokens they stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    hashes: Vec<u64>,
    tokens_per_block: f32,
    prompt_tokens: u32,
    /// Whether these are the blocks that an engine makes of the prompt, all of them.
    exact: bool,
}

// === impl Scope ===

impl Scope<'_> {
    /// The hash before the first block.
    #[must_use]
    pub fn seed(&self) -> u64 {
        let kind: u8 = match self.kind {
            KeyKind::Tokens => 0,
            KeyKind::Text => 1,
        };
        let mut bytes: SmallVec<[u8; 128]> = SmallVec::new();
        bytes.push(kind);
        bytes.extend_from_slice(&self.block.to_le_bytes());
        for text in [self.model, self.cache_salt.unwrap_or_default()] {
            bytes.extend_from_slice(&saturated(text.len()).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        xxh3_64(&bytes)
    }
}

// === impl Chain ===

impl Chain {
    /// The chain of a prompt whose token ids are known. A last block that is not full is dropped, as engines do.
    ///
    /// # Cost
    /// O(tokens); one allocation.
    #[must_use]
    pub fn from_tokens(scope: &Scope, tokens: &[u32]) -> Chain {
        let size = scope.block as usize;
        let mut hashes = Vec::with_capacity(full_blocks(tokens.len(), size));
        let mut last = scope.seed();
        if size > 0 {
            hashes.extend(tokens.chunks_exact(size).map(|block| {
                last = link(last, local(block));
                last
            }));
        }
        Chain {
            hashes,
            tokens_per_block: scope.block as f32,
            prompt_tokens: saturated(tokens.len()),
            exact: true,
        }
    }

    /// The chain of a prompt that is known as tokens up to its first medium and as text from there on. What follows is
    /// cut into blocks of as many bytes as a block of tokens is taken for: equal conversations meet in them, and no
    /// engine's event does.
    ///
    /// # Cost
    /// O(tokens + bytes).
    #[must_use]
    pub fn from_tokens_then_text(
        scope: &Scope,
        tokens: &[u32],
        text: &[u8],
        bytes_per_token: f32,
    ) -> Chain {
        let mut chain = Chain::from_tokens(scope, tokens);
        let block =
            Scope { block: rounded((scope.block as f32 * bytes_per_token).into()), ..*scope };
        // The tokens behind the last full block stand at the head of the rest, so that they count.
        let full = chain.hashes.len() * scope.block as usize;
        let rest: Vec<u8> = tokens[full.min(tokens.len())..]
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .chain(text.iter().copied())
            .collect();
        let mut last = chain.hashes.last().copied().unwrap_or_else(|| scope.seed());
        chain.hashes.extend(rest.chunks_exact(block.block.max(1) as usize).map(|bytes| {
            last = link(last, xxh3_64(bytes));
            last
        }));
        let more = rounded(text.len() as f64 / f64::from(bytes_per_token.max(f32::MIN_POSITIVE)));
        Chain { prompt_tokens: chain.prompt_tokens.saturating_add(more), exact: false, ..chain }
    }

    /// The chain of a prompt known as text only; its tokens are estimated at `bytes_per_token` (above zero).
    ///
    /// # Cost
    /// O(bytes); one allocation.
    #[must_use]
    pub fn from_text(scope: &Scope, text: &[u8], bytes_per_token: f32) -> Chain {
        let size = scope.block as usize;
        let bytes_per_token = bytes_per_token.max(f32::MIN_POSITIVE);
        let mut hashes = Vec::with_capacity(full_blocks(text.len(), size));
        let mut last = scope.seed();
        if size > 0 {
            hashes.extend(text.chunks_exact(size).map(|block| {
                last = link(last, xxh3_64(block));
                last
            }));
        }
        Chain {
            hashes,
            tokens_per_block: scope.block as f32 / bytes_per_token,
            prompt_tokens: rounded(text.len() as f64 / f64::from(bytes_per_token)),
            exact: false,
        }
    }

    /// A prompt of which only the length is known: it shares no block with any other.
    #[must_use]
    pub fn empty(prompt_tokens: u32) -> Chain {
        Chain { hashes: Vec::new(), tokens_per_block: 0.0, prompt_tokens, exact: false }
    }

    /// One hash per full block, each over the block and all before it.
    #[must_use]
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// The same blocks in front of a request of `prompt_tokens` in all: a batch is routed by its first prompt and is as
    /// much work as all of them.
    #[must_use]
    pub fn with_prompt_tokens(self, prompt_tokens: u32) -> Chain {
        Chain { prompt_tokens, exact: false, ..self }
    }

    /// Tokens in one block, a fraction where they are estimated; 0 where only the prompt's length is known.
    #[must_use]
    pub fn tokens_per_block(&self) -> f32 {
        self.tokens_per_block
    }

    /// Tokens of the whole prompt; an estimate where it was given as text.
    #[must_use]
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Whether these are the blocks that an engine makes of the prompt, all of them: what events tell is then the truth
    /// about it, and a prediction can be right to the block.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Tokens that the `blocks` leading blocks save, never above [`Chain::prompt_tokens`]. An engine computes the last
    /// token of a prompt in any case, and with it the whole block, so of an exact chain the block that holds it saves
    /// nothing.
    #[must_use]
    pub fn tokens(&self, blocks: u32) -> u32 {
        let blocks = if self.exact {
            let size = rounded(self.tokens_per_block.into()).max(1);
            blocks.min(self.prompt_tokens.saturating_sub(1) / size)
        } else {
            blocks
        };
        rounded(f64::from(blocks) * f64::from(self.tokens_per_block)).min(self.prompt_tokens)
    }
}

/// The hash of one block of token ids by itself, without what stands before it.
#[must_use]
pub fn local(tokens: &[u32]) -> u64 {
    if cfg!(target_endian = "little") {
        return xxh3_64(bytemuck::must_cast_slice(tokens));
    }
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    xxh3_64(&bytes)
}

/// The chain hash of a block whose own hash is `local`, after the chain hash `before` (a seed for the first block).
#[must_use]
pub fn link(before: u64, local: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&before.to_le_bytes());
    bytes[8..].copy_from_slice(&local.to_le_bytes());
    xxh3_64(&bytes)
}

fn full_blocks(len: usize, size: usize) -> usize {
    len.checked_div(size).unwrap_or(0)
}

fn saturated(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The nearest whole number of tokens, at most `u32::MAX`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, which is what is meant"
)]
fn rounded(tokens: f64) -> u32 {
    tokens.round() as u32
}

#[cfg(test)]
mod tests;
