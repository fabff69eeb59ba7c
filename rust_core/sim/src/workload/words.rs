//! Made-up text: a pure function of seed and position.

use crate::reply::WORDS;
use crate::token::{MAX_TOKEN_BYTES, pack};

/// Words that are drawn at once: one per byte of what [`mix`] gives.
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
    draws(seed, count, |drawn, words| {
        out.extend_from_slice(&drawn.map(|byte| TOKENS[index(byte)])[..words]);
    });
}

/// Appends the first `count` words of `seed`.
pub(super) fn text(seed: u64, count: u32, out: &mut String) {
    out.reserve(count as usize * MAX_TOKEN_BYTES);
    draws(seed, count, |drawn, words| {
        drawn[..words].iter().for_each(|&byte| out.push_str(WORDS[index(byte)]));
    });
}

/// Hands on random bytes, one per word, and how many of them count.
fn draws(seed: u64, count: u32, mut each: impl FnMut([u8; AT_ONCE], usize)) {
    let count = count as usize;
    // Mixed once more, so that seeds in a row do not walk the same sequence of keys.
    let mut key = mix(seed ^ GOLDEN);
    for done in (0..count).step_by(AT_ONCE) {
        key = key.wrapping_add(GOLDEN);
        each(mix(key).to_le_bytes(), AT_ONCE.min(count - done));
    }
}

fn index(byte: u8) -> usize {
    usize::from(byte) % WORDS.len()
}
