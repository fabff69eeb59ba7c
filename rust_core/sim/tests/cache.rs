//! Which block goes first.

use nebula_sim::cache::{BlockId, KvCache};
use proptest::prelude::*;

/// Fills blocks with `hashes` and gives them back.
fn prompt(cache: &mut KvCache, hashes: &[u64]) -> Vec<BlockId> {
    let hits: Vec<_> = cache.find(hashes).collect();
    let fresh = u32::try_from(hashes.len() - hits.len()).expect("few blocks");
    assert!(cache.fits(&hits, fresh));
    let mut blocks = Vec::new();
    cache.share(&hits, &mut blocks);
    assert!(cache.allocate(fresh, &mut blocks));
    for (block, hash) in blocks.iter().zip(hashes).skip(hits.len()) {
        cache.store(*block, *hash);
    }
    blocks
}

#[test]
fn the_oldest_prompt_loses_its_tail_first() {
    let mut cache = KvCache::new(1 + 6);
    let old = prompt(&mut cache, &[1, 2, 3]);
    let young = prompt(&mut cache, &[11, 12, 13]);
    cache.release(&old);
    cache.release(&young);
    let mut new = Vec::new();
    assert!(cache.allocate(2, &mut new));
    assert_eq!(cache.find(&[1, 2, 3]).count(), 1);
    assert_eq!(cache.find(&[11, 12, 13]).count(), 3);
}

#[test]
fn use_makes_a_prompt_young() {
    let mut cache = KvCache::new(1 + 4);
    for hashes in [[1, 2], [11, 12], [1, 2]] {
        let blocks = prompt(&mut cache, &hashes);
        cache.release(&blocks);
    }
    assert!(cache.allocate(2, &mut Vec::new()));
    assert_eq!((cache.find(&[1, 2]).count(), cache.find(&[11, 12]).count()), (2, 0));
}

#[test]
fn blocks_in_use_are_kept_and_blocks_without_content_go_first() {
    let mut cache = KvCache::new(1 + 4);
    let held = prompt(&mut cache, &[1, 2]);
    let mut partial = prompt(&mut cache, &[11]);
    assert!(cache.allocate(1, &mut partial));
    cache.release(&partial);
    let mut new = Vec::new();
    assert!(cache.allocate(1, &mut new));
    assert_eq!(cache.find(&[11]).count(), 1, "the block without content was there to take");
    assert!(!cache.fits(&[], 2) && !cache.allocate(2, &mut new));
    assert_eq!(cache.find(&[1, 2]).count(), 2);
    cache.release(&held);
    assert!(cache.fits(&[], 3));
    assert!(!cache.fits(&held, 2), "hits that nobody uses are free no more once hit");
}

#[test]
fn a_twin_outlives_its_sibling() {
    let mut cache = KvCache::new(1 + 3);
    let (mut one, mut other) = (Vec::new(), Vec::new());
    assert!(cache.allocate(1, &mut one) && cache.allocate(1, &mut other));
    cache.store(one[0], 7);
    cache.store(other[0], 7);
    cache.release(&one);
    assert!(cache.allocate(2, &mut Vec::new()));
    assert_eq!(cache.find(&[7]).collect::<Vec<_>>(), other);
}

#[test]
fn of_several_twins_the_oldest_is_found() {
    let mut cache = KvCache::new(1 + 3);
    let mut blocks = Vec::new();
    assert!(cache.allocate(3, &mut blocks));
    for block in &blocks {
        cache.store(*block, 7);
    }
    cache.release(&blocks[..1]);
    assert!(cache.allocate(1, &mut Vec::new()));
    assert_eq!(cache.find(&[7]).collect::<Vec<_>>(), blocks[1..2]);
}

#[test]
fn of_many_twins_each_can_go() {
    let mut cache = KvCache::new(1 + 50);
    let mut blocks = Vec::new();
    assert!(cache.allocate(50, &mut blocks));
    for block in &blocks {
        cache.store(*block, 7);
    }
    cache.release(&blocks);
    for left in (0..50).rev() {
        assert!(cache.allocate(1, &mut Vec::new()));
        assert_eq!((cache.cached(), cache.find(&[7]).count()), (left, usize::from(left > 0)));
    }
}

proptest! {
    /// Of the blocks that hold a content, the one that was filled first is found, whichever went meanwhile.
    #[test]
    fn the_oldest_holder_is_found(ops in prop::collection::vec((0..4_u64, any::<u8>()), 1..120)) {
        let mut cache = KvCache::new(1 + 12);
        // In the order in which they were filled, and whether somebody uses them.
        let mut filled: Vec<(u64, BlockId, bool)> = Vec::new();
        for (hash, pick) in ops {
            let mut new = Vec::new();
            let used: Vec<usize> = (0..filled.len()).filter(|&at| filled[at].2).collect();
            if pick % 2 == 0 && cache.allocate(1, &mut new) {
                filled.retain(|(_, block, _)| *block != new[0]);
                cache.store(new[0], hash);
                filled.push((hash, new[0], true));
            } else if !used.is_empty() {
                let at = used[usize::from(pick) % used.len()];
                cache.release(&[filled[at].1]);
                filled[at].2 = false;
            }
            prop_assert_eq!(cache.cached(), filled.len());
            for hash in 0..4 {
                let oldest = filled.iter().find(|(content, ..)| *content == hash).map(|found| found.1);
                prop_assert_eq!(cache.find(&[hash]).next(), oldest);
            }
        }
    }
}
