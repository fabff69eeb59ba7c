//! What the engine answers: a pure function of the prompt.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::token::{MAX_TOKEN_BYTES, pack};

/// The reply to one prompt. Two engines give the same reply to the same prompt, whatever their seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    seed: u64,
}

/// Each is one token: four bytes that open with a space, and nothing that JSON escapes.
pub(crate) const WORDS: [&str; 64] = [
    " ace", " age", " air", " and", " ant", " ark", " arm", " art", " ash", " bay", " bee", " bow",
    " box", " bus", " cap", " cat", " cow", " cup", " day", " dew", " dog", " ear", " elk", " elm",
    " fan", " fig", " fir", " fog", " fox", " gem", " hat", " hay", " hen", " ice", " ink", " ivy",
    " jar", " jay", " key", " kit", " lap", " law", " log", " map", " mud", " net", " nut", " oak",
    " oar", " orb", " owl", " pan", " pea", " pen", " ray", " rye", " sea", " sky", " sun", " tea",
    " the", " vat", " web", " yew",
];

// === impl Reply ===

impl Reply {
    /// The reply to `prompt`.
    #[must_use]
    pub fn to(prompt: &[u32]) -> Reply {
        Reply { seed: crate::hash::block_hash(0, prompt) }
    }

    /// Its text number `index`, one token long.
    #[must_use]
    pub fn word(self, index: u32) -> &'static str {
        // The multiplication spreads the index over the upper bits (Fibonacci hashing), of which six choose.
        let spread = (self.seed ^ u64::from(index)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        WORDS[usize::from((spread >> 58) as u8)]
    }

    /// Its token number `index`.
    #[must_use]
    pub fn token(self, index: u32) -> u32 {
        pack(self.word(index).as_bytes())
    }

    /// How many tokens it has when the client sets no limit: 16 to 143.
    #[must_use]
    pub fn natural_len(self) -> u32 {
        16 + (xxh3_64_with_seed(b"length", self.seed) % 128) as u32
    }

    /// Its first `tokens` tokens as text.
    #[must_use]
    pub fn text(self, tokens: u32) -> String {
        let mut text = String::with_capacity(tokens as usize * MAX_TOKEN_BYTES);
        (0..tokens).for_each(|i| text.push_str(self.word(i)));
        text
    }
}
