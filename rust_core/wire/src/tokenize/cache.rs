//! The ids of the segments that were met last, within a bound of bytes.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// What a cache of segments holds, and how often it had what was asked for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SegmentStats {
    /// Segments whose ids were known.
    pub hits: u64,
    /// Segments that had to be encoded.
    pub misses: u64,
    /// Segments that are kept.
    pub entries: usize,
    /// Bytes that they take.
    pub bytes: usize,
}

/// Segments by their text, shared by threads; the one that was asked for longest ago goes first.
pub(super) struct SegmentCache {
    /// Drawn at random, so that nobody can prepare two texts that meet.
    seed: u64,
    capacity_bytes: usize,
    hits: AtomicU64,
    misses: AtomicU64,
    kept: Mutex<Kept>,
}

struct Kept {
    ids: LruCache<Key, Arc<[u32]>>,
    bytes: usize,
}

/// A segment's text and whether it starts the prompt.
///
/// A hash of 128 bits stands for the text: keeping the text too would double the memory, and two texts of a billion meet
/// with a chance of 10^-21.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(super) struct Key {
    hash: u128,
    length: usize,
    first: bool,
}

/// What an entry takes beside its ids: its node, its slot in the map, and what the allocator adds.
const ENTRY_BYTES: usize = 160;

// === impl SegmentCache ===

impl SegmentCache {
    pub(super) fn new(capacity_bytes: usize) -> SegmentCache {
        SegmentCache {
            seed: RandomState::new().hash_one(0),
            capacity_bytes,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            kept: Mutex::new(Kept { ids: LruCache::unbounded(), bytes: 0 }),
        }
    }

    pub(super) fn key(&self, text: &str, first: bool) -> Key {
        let hash = xxh3_128_with_seed(text.as_bytes(), self.seed);
        Key { hash, length: text.len(), first }
    }

    /// The ids of a segment. They are copied after the lock is free again, however many they are.
    pub(super) fn find(&self, key: Key) -> Option<Arc<[u32]>> {
        let found = self.kept.lock().ids.get(&key).map(Arc::clone);
        let count = if found.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps the ids of a segment, unless they alone would fill the cache.
    pub(super) fn keep(&self, key: Key, ids: &[u32]) {
        let bytes = size(ids);
        if bytes > self.capacity_bytes {
            return;
        }
        let ids = Arc::from(ids);
        // What leaves is freed when the lock is, too.
        let mut gone = Vec::new();
        let mut kept = self.kept.lock();
        kept.bytes += bytes;
        if let Some((_, old)) = kept.ids.push(key, ids) {
            kept.bytes -= size(&old);
            gone.push(old);
        }
        while kept.bytes > self.capacity_bytes {
            let Some((_, old)) = kept.ids.pop_lru() else { break };
            kept.bytes -= size(&old);
            gone.push(old);
        }
        drop(kept);
    }

    pub(super) fn stats(&self) -> SegmentStats {
        let kept = self.kept.lock();
        SegmentStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            entries: kept.ids.len(),
            bytes: kept.bytes,
        }
    }
}

fn size(ids: &[u32]) -> usize {
    ENTRY_BYTES + size_of_val(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_stays_within_its_bytes_and_keeps_what_was_asked_for_last() {
        let cache = SegmentCache::new(10 * (ENTRY_BYTES + 40));
        let keys: Vec<Key> = (0..30).map(|at: u32| cache.key(&at.to_string(), true)).collect();
        for key in &keys {
            cache.keep(*key, &[7; 10]);
            assert!(cache.find(keys[0]).is_some(), "asked for each time, so never the oldest");
        }
        let stats = cache.stats();
        assert_eq!((stats.entries, stats.bytes), (10, 10 * (ENTRY_BYTES + 40)));
        assert!(cache.find(keys[29]).is_some());
        assert!(cache.find(keys[1]).is_none());
    }

    #[test]
    fn a_segment_that_would_fill_the_cache_alone_is_not_kept() {
        let cache = SegmentCache::new(ENTRY_BYTES + 40);
        let (small, large) = (cache.key("small", true), cache.key("large", true));
        cache.keep(small, &[1; 10]);
        cache.keep(large, &[1; 11]);
        assert!(cache.find(small).is_some() && cache.find(large).is_none());
        cache.keep(small, &[1; 10]);
        assert_eq!(cache.stats().bytes, ENTRY_BYTES + 40, "kept again, counted once");
    }

    #[test]
    fn the_start_of_a_prompt_is_another_segment() {
        let cache = SegmentCache::new(1 << 20);
        cache.keep(cache.key("a", true), &[1]);
        assert!(cache.find(cache.key("a", false)).is_none());
    }
}
