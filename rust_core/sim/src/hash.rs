//! Hashing of blocks, and a hasher for keys that are already spread.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Identity of a full block: its tokens and everything before them. Two different prefixes share one with a chance of 2^-64.
pub type BlockHash = u64;

/// A map keyed by block hashes or other well-spread numbers.
pub(crate) type HashedMap<V> = HashMap<u64, V, BuildHasherDefault<Spread>>;

/// Passes a `u64` key through: xxh3 has spread it already.
#[derive(Default)]
pub(crate) struct Spread(u64);

/// Where the chains of requests start that may share blocks: same salt, same chain.
#[must_use]
pub fn chain_seed(salt: &str) -> BlockHash {
    xxh3_64(salt.as_bytes())
}

/// The hash of a full block that follows the block hashed to `parent`.
#[must_use]
pub fn block_hash(parent: BlockHash, tokens: &[u32]) -> BlockHash {
    let mut bytes = [0_u8; 4 * 64];
    let mut hash = parent;
    for part in tokens.chunks(64) {
        for (slot, token) in bytes.chunks_exact_mut(4).zip(part) {
            slot.copy_from_slice(&token.to_le_bytes());
        }
        hash = xxh3_64_with_seed(&bytes[..4 * part.len()], hash);
    }
    hash
}

// === impl Spread ===

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
