//! Where a prompt may be cut: at the added tokens that the tokenizer takes out before it does anything else.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{AddedToken, AddedVocabulary};

use super::TokenizeError;

/// Finds the tokens at which cutting changes nothing.
///
/// The tokenizer searches the raw text for all its tokens that are not `normalized`, leftmost and longest first, and so
/// does this: a search that starts again after a match finds what the search of the whole would. Every piece between
/// two matches is then normalised, split and encoded by itself.
pub(super) struct Cuts {
    finder: Option<AhoCorasick>,
    /// For each token that is searched for, its id if the text may be cut there.
    ids: Vec<Option<u32>>,
}

// === impl Cuts ===

impl Cuts {
    pub(super) fn new(vocabulary: &AddedVocabulary) -> Result<Cuts, TokenizeError> {
        let searched: Vec<(u32, &AddedToken)> = vocabulary
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| !token.normalized)
            .map(|(id, token)| (*id, token))
            .collect();
        let words = searched.iter().any(|(_, token)| token.single_word);
        let ids: Vec<Option<u32>> =
            searched.iter().map(|(id, token)| cuts_cleanly(token, words).then_some(*id)).collect();
        if ids.iter().all(Option::is_none) {
            return Ok(Cuts { finder: None, ids });
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(searched.iter().map(|(_, token)| token.content.as_str()))
            .map_err(|cause| TokenizeError::Tokens(cause.to_string()))?;
        Ok(Cuts { finder: Some(finder), ids })
    }

    /// Where the text is cut, in order, and by which id.
    pub(super) fn find<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (Range<usize>, u32)> {
        let found = self.finder.iter().flat_map(move |finder| finder.find_iter(text));
        found.filter_map(|at| Some((at.range(), self.ids[at.pattern().as_usize()]?)))
    }
}

/// Whether what stands beside the token takes no part in whether and how far it matches, nor the token in its neighbours'.
///
/// `lstrip` and `rstrip` let a token take the spaces beside it, and it ends at the match next to it, so they only rule
/// out the token that has them. A `single_word` token is one or not by the character beside it, which may belong to this
/// token: then this one must begin and end with what is surely no letter of a word.
fn cuts_cleanly(token: &AddedToken, words: bool) -> bool {
    let plain = !token.lstrip && !token.rstrip && !token.single_word;
    let bounds = || [token.content.chars().next(), token.content.chars().next_back()];
    plain
        && (!words
            || bounds().iter().flatten().all(|edge| edge.is_ascii_punctuation() && *edge != '_'))
}
