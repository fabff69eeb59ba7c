//! Which requests of a trace belong to one conversation, where the trace does not say.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use crate::hash::{HashedMap, Spread};
use crate::workload::words::mix;

/// A block that at least so many different ones follow is a prompt that many share, such as a system prompt: no
/// conversation forks so often. In Mooncake's conversation trace the most forked block but the first has 11.
const SHARED_FROM: u32 = 16;

/// The conversation of every request, given its chain of block ids: the key of the request that was first to hold the
/// deepest block which is known already; a key of its own, its position, where that block is the first of the chain or
/// one that many share.
///
/// An id must stand for a block and all before it.
pub(super) fn keys<'a>(chains: impl Iterator<Item = &'a [u64]> + Clone) -> Vec<u64> {
    let followers = followers(chains.clone());
    let mut owners: HashedMap<u64> = HashedMap::default();
    let mut keys = Vec::new();
    for (chain, fresh) in chains.zip(0..) {
        let beyond_first = chain.get(1..).unwrap_or_default();
        let known = beyond_first.iter().rev().find_map(|&id| Some((id, *owners.get(&mix(id))?)));
        let key = match known {
            Some((id, key)) if followers.get(&mix(id)).is_none_or(|&n| n < SHARED_FROM) => key,
            _ => fresh,
        };
        for &id in beyond_first {
            owners.entry(mix(id)).or_insert(key);
        }
        keys.push(key);
    }
    keys
}

/// How many different blocks follow each block.
fn followers<'a>(chains: impl Iterator<Item = &'a [u64]>) -> HashedMap<u32> {
    let mut seen: HashSet<u64, BuildHasherDefault<Spread>> = HashSet::default();
    let mut followers: HashedMap<u32> = HashedMap::default();
    for pair in chains.flat_map(|chain| chain.windows(2)) {
        // An id stands for all before it, so that a block is known as soon as it has followed once.
        if seen.insert(mix(pair[1])) {
            *followers.entry(mix(pair[0])).or_default() += 1;
        }
    }
    followers
}
