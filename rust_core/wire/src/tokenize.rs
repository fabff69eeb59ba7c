//! Text -> the token ids that the engine sees, at the cost of what is new.
//!
//! A special token cuts a prompt exactly: what stands before it and what stands after it become ids independently of
//! each other. So the ids of every segment between two of them are kept, and the next turn of a conversation
//! tokenises only its new messages. Within a segment nothing is split further: it is encoded as a whole.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{
    AddedVocabulary, Encoding, Model, ModelWrapper, NormalizerWrapper, OffsetReferential,
    OffsetType, PreTokenizer, Token,
};

mod cache;
mod cut;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod tests;

pub use cache::SegmentStats;

use cache::SegmentCache;
use cut::Cuts;

/// A model's tokenizer and the ids of the segments that it met.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What splits a segment that does not start the prompt, where that differs.
    later: Option<PreTokenizerWrapper>,
    /// Without special tokens, and with.
    frames: [Frame; 2],
    cuts: Cuts,
    whole_because: Option<&'static str>,
    cache: SegmentCache,
}

/// Why a text has no ids.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// BPE with dropout gives other ids each time, so no one can know those of the engine.
    #[error("the tokenizer drops merges at random (dropout), so its ids cannot be foretold")]
    Random,
    /// The special tokens cannot be searched for.
    #[error("the tokenizer's added tokens cannot be used: {0}")]
    Tokens(String),
    /// The tokenizer refuses the text.
    #[error("the tokenizer failed: {0}")]
    Text(tokenizers::Error),
}

/// What the post-processor puts around every prompt.
#[derive(Debug, Default)]
struct Frame {
    before: Vec<u32>,
    after: Vec<u32>,
}

/// Stands for a prompt's ids while the frame around them is found.
const PROBE: u32 = u32::MAX;

// === impl Tokenizer ===

impl Tokenizer {
    /// A tokenizer that keeps the ids of segments in at most `cache_bytes`; with 0 it keeps none. Truncation and padding
    /// are off.
    ///
    /// # Errors
    /// [`TokenizeError::Random`] and [`TokenizeError::Tokens`].
    pub fn new(
        mut inner: tokenizers::Tokenizer,
        cache_bytes: usize,
    ) -> Result<Tokenizer, TokenizeError> {
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|share| share > 0.0)
        {
            return Err(TokenizeError::Random);
        }
        inner.with_padding(None);
        inner.with_truncation(None).map_err(TokenizeError::Text)?;
        // Python may have been told to split special tokens; the file cannot say so.
        inner.set_encode_special_tokens(false);

        let frames = [Frame::of(&inner, false), Frame::of(&inner, true)];
        let whole_because = frames
            .iter()
            .any(Option::is_none)
            .then_some("its post-processor does more than to put tokens before and after a prompt");
        let later = inner.get_pre_tokenizer().and_then(later);
        let cuts = Cuts::new(inner.get_added_vocabulary())?;
        Ok(Tokenizer {
            frames: frames.map(Option::unwrap_or_default),
            cache: SegmentCache::new(cache_bytes),
            inner,
            later,
            cuts,
            whole_because,
        })
    }

    /// The ids of a prompt, the same as [`encode_whole`](Self::encode_whole) gives.
    ///
    /// # Cost
    /// Of a segment that is known: finding its end, one hash over its text and a copy of its ids. Of a new one: the
    /// tokenizer's own work. No lock is held meanwhile.
    ///
    /// # Errors
    /// [`TokenizeError::Text`]: the model has no token for a part of the text, and none for what is unknown.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizeError> {
        let ids = self.encode_within(text, add_special_tokens, usize::MAX)?;
        Ok(ids.unwrap_or_default())
    }

    /// The same if no more than `new_bytes` of the text are in segments that are not known; else nothing, at the cost of
    /// those that are. What was new on the way is known from then on.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_within(
        &self,
        text: &str,
        add_special_tokens: bool,
        mut new_bytes: usize,
    ) -> Result<Option<Vec<u32>>, TokenizeError> {
        if self.whole_because.is_some() {
            let few = text.len() <= new_bytes;
            return few.then(|| self.encode_whole(text, add_special_tokens)).transpose();
        }
        let frame = &self.frames[usize::from(add_special_tokens)];
        // Text has about four bytes to a token, so this grows seldom.
        let mut ids = Vec::with_capacity(text.len() / 4 + frame.before.len() + 16);
        ids.extend_from_slice(&frame.before);
        let mut start = 0;
        for (cut, id) in self.cuts.find(text) {
            if !self.segment(&text[start..cut.start], start == 0, &mut new_bytes, &mut ids)? {
                return Ok(None);
            }
            ids.push(id);
            start = cut.end;
        }
        if !self.segment(&text[start..], start == 0, &mut new_bytes, &mut ids)? {
            return Ok(None);
        }
        ids.extend_from_slice(&frame.after);
        Ok(Some(ids))
    }

    /// The ids of a prompt as the tokenizer itself gives them, in one piece and without the cache.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_whole(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, TokenizeError> {
        let encoding =
            self.inner.encode_fast(text, add_special_tokens).map_err(TokenizeError::Text)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Whether segments are encoded and kept by themselves. Where not, every prompt is encoded whole: right, but slower.
    #[must_use]
    pub fn segments_exact(&self) -> bool {
        self.whole_because.is_none()
    }

    /// Why this tokenizer encodes every prompt whole, if it does.
    #[must_use]
    pub fn whole_because(&self) -> Option<&'static str> {
        self.whole_because
    }

    /// What the cache holds, and how often it had what was asked for.
    #[must_use]
    pub fn segment_stats(&self) -> SegmentStats {
        self.cache.stats()
    }

    /// Appends the ids of a segment; `false` if it is new and larger than what is left of `new_bytes`.
    fn segment(
        &self,
        text: &str,
        first: bool,
        new_bytes: &mut usize,
        ids: &mut Vec<u32>,
    ) -> Result<bool, TokenizeError> {
        if text.is_empty() {
            return Ok(true);
        }
        // Where the start of the prompt is not special, a segment is the same anywhere.
        let first = first || self.later.is_none();
        let key = self.cache.key(text, first);
        if let Some(known) = self.cache.find(key) {
            ids.extend_from_slice(&known);
            return Ok(true);
        }
        let Some(left) = new_bytes.checked_sub(text.len()) else {
            return Ok(false);
        };
        *new_bytes = left;
        let start = ids.len();
        self.encode_segment(text, first, ids).map_err(TokenizeError::Text)?;
        self.cache.keep(key, &ids[start..]);
        Ok(true)
    }

    /// The steps of `encode_fast` without the post-processor and without an `Encoding`, which has six columns to a token.
    fn encode_segment(
        &self,
        text: &str,
        first: bool,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        let vocabulary: &AddedVocabulary = self.inner.get_added_vocabulary();
        let mut normalizer = self.inner.get_normalizer();
        if text.is_ascii() {
            normalizer = normalizer.filter(|normalizer| !keeps_ascii(normalizer));
        }
        let mut pieces = vocabulary.extract_and_normalize(normalizer, text);
        let own = self.inner.get_pre_tokenizer();
        let splitter = if first { own } else { self.later.as_ref().or(own) };
        if let Some(splitter) = splitter {
            splitter.pre_tokenize(&mut pieces)?;
        }
        self.inner.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        ids.extend(splits.iter().flat_map(|(_, _, tokens)| tokens.iter().flatten()).map(id));
        Ok(())
    }
}

fn id(token: &Token) -> u32 {
    token.id
}

/// Whether text of ASCII comes out as it went in. Unicode's normal forms keep it, at a price that is better not paid.
fn keeps_ascii(normalizer: &NormalizerWrapper) -> bool {
    use NormalizerWrapper::{NFC, NFD, NFKC, NFKD};
    matches!(normalizer, NFC(_) | NFD(_) | NFKC(_) | NFKD(_))
}

/// The splitter for segments after the first, if it is another one: `Metaspace` may put its mark at the start of the
/// prompt alone. All other splitters look at nothing but the piece that they get.
fn later(splitter: &PreTokenizerWrapper) -> Option<PreTokenizerWrapper> {
    let mut changed = splitter.clone();
    without_first(&mut changed).then_some(changed)
}

/// Whether something depended on the start of the prompt. The match names every splitter, so that a new one is looked at.
fn without_first(splitter: &mut PreTokenizerWrapper) -> bool {
    match splitter {
        PreTokenizerWrapper::Metaspace(metaspace) => {
            let first = metaspace.prepend_scheme == PrependScheme::First;
            if first {
                metaspace.prepend_scheme = PrependScheme::Never;
            }
            first
        }
        PreTokenizerWrapper::Sequence(sequence) => {
            let mut any = false;
            for inner in sequence.as_mut() {
                any |= without_first(inner);
            }
            any
        }
        PreTokenizerWrapper::BertPreTokenizer(_)
        | PreTokenizerWrapper::ByteLevel(_)
        | PreTokenizerWrapper::Delimiter(_)
        | PreTokenizerWrapper::Whitespace(_)
        | PreTokenizerWrapper::Split(_)
        | PreTokenizerWrapper::Punctuation(_)
        | PreTokenizerWrapper::WhitespaceSplit(_)
        | PreTokenizerWrapper::Digits(_)
        | PreTokenizerWrapper::UnicodeScripts(_)
        | PreTokenizerWrapper::FixedLength(_) => false,
    }
}

// === impl Frame ===

impl Frame {
    /// What surrounds a prompt of one id; nothing if that id does not come back exactly once. No post-processor looks at
    /// the ids that it is given.
    fn of(tokenizer: &tokenizers::Tokenizer, add_special_tokens: bool) -> Option<Frame> {
        let probe = Encoding::from_tokens(vec![Token::new(PROBE, String::new(), (0, 0))], 0);
        let framed = tokenizer.post_process(probe, None, add_special_tokens).ok()?;
        let ids = framed.get_ids();
        let at = ids.iter().position(|&id| id == PROBE)?;
        let (before, after) = (&ids[..at], &ids[at + 1..]);
        let once = !after.contains(&PROBE);
        once.then(|| Frame { before: before.to_vec(), after: after.to_vec() })
    }
}
