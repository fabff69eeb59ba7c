//! What the log keeps of a prompt, so that its traffic can be replayed: who shared how much with whom, and no word.

use std::fmt::{Display, Formatter, Result};

use nebula_route::Chain;

/// About so many tokens lie between two hashes that are kept: all of them would make lines of kilobytes.
const TOKENS: f32 = 512.0;

/// Every so-and-so-many-th hash of a prompt's chain, and its last one. Shown as 16 hexadecimal digits each.
pub(super) struct PromptHashes {
    hashes: Vec<u64>,
    tokens_each: f64,
}

// === impl PromptHashes ===

impl PromptHashes {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, and a block has no fewer than 0 tokens"
    )]
    pub(super) fn of(chain: &Chain) -> PromptHashes {
        let tokens_per_block = chain.tokens_per_block();
        let stride = if tokens_per_block > 0.0 { (TOKENS / tokens_per_block).round() } else { 1.0 };
        let stride = (stride as u32).max(1);
        let parts = chain.hashes().chunks(stride as usize);
        PromptHashes {
            hashes: parts.filter_map(|part| part.last().copied()).collect(),
            tokens_each: f64::from(stride) * f64::from(tokens_per_block),
        }
    }

    /// Tokens between two hashes; a fraction where they are estimated. The last hash may stand for fewer.
    pub(super) fn tokens_each(&self) -> f64 {
        self.tokens_each
    }
}

impl Display for PromptHashes {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        self.hashes.iter().try_for_each(|hash| write!(out, "{hash:016x}"))
    }
}

#[cfg(test)]
mod tests {
    use nebula_route::{KeyKind, Scope};

    use super::*;

    fn scope(kind: KeyKind, block: u32) -> Scope<'static> {
        Scope { model: "m", cache_salt: None, block, kind }
    }

    #[test]
    fn every_512_tokens_and_the_end_have_a_hash() {
        let tokens: Vec<u32> = (0..1300).collect();
        let chain = Chain::from_tokens(&scope(KeyKind::Tokens, 16), &tokens);
        let hashes = PromptHashes::of(&chain);
        let all = chain.hashes();
        assert_eq!(hashes.hashes, [all[31], all[63], all[80]]);
        assert!((hashes.tokens_each() - 512.0).abs() < f64::EPSILON);
        assert_eq!(hashes.to_string(), format!("{:016x}{:016x}{:016x}", all[31], all[63], all[80]));

        let whole =
            PromptHashes::of(&Chain::from_tokens(&scope(KeyKind::Tokens, 16), &tokens[..1024]));
        assert_eq!(whole.hashes, [all[31], all[63]], "the end is not told twice");
    }

    #[test]
    fn blocks_of_text_keep_the_fraction_of_their_tokens() {
        let chain = Chain::from_text(&scope(KeyKind::Text, 128), &[b'x'; 128 * 40], 3.0);
        let hashes = PromptHashes::of(&chain);
        assert_eq!(
            hashes.hashes,
            [chain.hashes()[11], chain.hashes()[23], chain.hashes()[35], chain.hashes()[39]]
        );
        assert!((hashes.tokens_each() - 512.0).abs() < 1e-3, "{}", hashes.tokens_each());
    }

    #[test]
    fn a_prompt_without_full_blocks_has_none() {
        for chain in [Chain::empty(7), Chain::from_tokens(&scope(KeyKind::Tokens, 16), &[1, 2])] {
            assert_eq!(PromptHashes::of(&chain).to_string(), "");
        }
    }
}
