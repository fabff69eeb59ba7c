//! Made-up text: a pure function of seed and position.

use crate::reply::WORDS;
use crate::token::{MAX_TOKEN_BYTES, pack};

/// Words that are drawn at once: six bits each, of the 64 that [`mix`] gives.
const AT_ONCE: usize = 8;

/// Spreads the numbers of draws (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Each word as its token.
static TOKENS: [u32; 64] = {
    let mut tokens = [0; 64];
    let mut i = 0;
    while i < tokens.len() {
        tokens[i] = pack(WORDS[i].as_bytes());
        i += 1;
    }
    tokens
};

/// A number that differs in about half its bits for any change of `key` (the finaliser of `SplitMix64`, as cited above).
#[must_use]
pub(super) const fn mix(key: u64) -> u64 {
    let key = (key ^ (key >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    key ^ (key >> 31)
}

/// Appends the first `count` tokens of `seed`.
pub(super) fn tokens(seed: u64, count: u32, out: &mut Vec<u32>) {
    out.reserve(count as usize);
    draws(seed, count, |drawn| {
        let words: [u32; AT_ONCE] = std::array::from_fn(|i| TOKENS[index(drawn.bits, i)]);
        out.extend_from_slice(&words[..drawn.words]);
    });
}

/// Appends the first `count` words of `seed`.
pub(super) fn text(seed: u64, count: u32, out: &mut String) {
    out.reserve(count as usize * MAX_TOKEN_BYTES);
    draws(seed, count, |drawn| {
        (0..drawn.words).for_each(|i| out.push_str(WORDS[index(drawn.bits, i)]));
    });
}

struct Drawn {
    bits: u64,
    words: usize,
}

fn draws(seed: u64, count: u32, mut each: impl FnMut(Drawn)) {
    let count = count as usize;
    // Mixed once more, so that seeds in a row do not walk the same sequence of keys.
    let mut key = mix(seed ^ GOLDEN);
    for done in (0..count).step_by(AT_ONCE) {
        key = key.wrapping_add(GOLDEN);
        each(Drawn { bits: mix(key), words: AT_ONCE.min(count - done) });
    }
}

fn index(bits: u64, word: usize) -> usize {
    (bits >> (6 * word)) as usize % WORDS.len()
}
