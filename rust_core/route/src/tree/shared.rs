//! The tree for many threads at once: readers in front.

use std::hint::spin_loop;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::names::Pool;
use super::{Applied, Overlap, Tree, TreeStats};
use crate::event::{Event, Tier};
use crate::sync::{AtomicU32, Ordering};
use crate::{Millis, RankId};

/// A [`Tree`] behind a lock that is held for one small step at a time.
///
/// Whoever looks up goes before whoever changes: a writer makes way between two steps, and no step is long but that of a
/// rank that left or gets its first limit. Neither side sleeps at once: to wake a thread takes longer than a step.
#[derive(Debug)]
pub struct SharedTree {
    tree: RwLock<Tree>,
    /// Readers that found the lock taken and try again.
    waiting: AtomicU32,
}

/// Blocks of an event, or nodes that expire, in one step: a few microseconds.
const STEP: usize = 64;

/// How often a thread tries again before it sleeps: for longer than a step or a look-up takes, unless their thread lost
/// its core.
const TRIES: u32 = 1024;

impl SharedTree {
    /// As [`Tree::new`].
    #[must_use]
    pub fn new(max_bytes: u64) -> SharedTree {
        SharedTree { tree: RwLock::new(Tree::new(max_bytes)), waiting: AtomicU32::new(0) }
    }

    /// As [`Tree::matches`].
    pub fn matches(&self, chain: &[u64], out: &mut Vec<(RankId, u32)>) {
        self.read().matches(chain, out);
    }

    /// As [`Tree::overlaps`].
    pub fn overlaps(&self, chain: &[u64], out: &mut Vec<(RankId, Overlap)>) {
        self.read().overlaps(chain, out);
    }

    /// As [`Tree::note_route`].
    pub fn note_route(&self, rank: RankId, chain: &[u64], until: Millis) {
        self.write().note_route(rank, chain, until);
    }

    /// As [`Tree::limit`], in one step.
    pub fn limit(&self, rank: RankId, blocks: Option<u64>) {
        self.write().limit(rank, blocks);
    }

    /// As [`Tree::apply`], a step at a time: others may see, and change, what is between two of them.
    pub fn apply(&self, rank: RankId, event: &Event) -> Applied {
        self.apply_tier(rank, Tier::Gpu, event)
    }

    /// As [`Tree::apply_tier`], a step at a time as [`SharedTree::apply`].
    pub fn apply_tier(&self, rank: RankId, tier: Tier, event: &Event) -> Applied {
        let pool = Pool { rank: rank.0, tier };
        let blocks = event.blocks();
        let mut applied = Applied::default();
        let mut from = 0;
        loop {
            let to = (from + STEP).min(blocks);
            let step = self.write().apply_part(pool, event, from..to);
            applied += step;
            if step.refused > 0 {
                applied.refused += (blocks - to) as u64;
                return applied;
            }
            if to == blocks {
                return applied;
            }
            from = to;
        }
    }

    /// As [`Tree::remove_rank`].
    pub fn remove_rank(&self, rank: RankId) {
        self.remove_ranks(&[rank]);
    }

    /// As [`Tree::remove_ranks`].
    pub fn remove_ranks(&self, ranks: &[RankId]) {
        self.write().remove_ranks(ranks);
    }

    /// As [`Tree::expire`].
    pub fn expire(&self, now: Millis) {
        while self.write().expire_some(now, STEP) {}
    }

    /// As [`Tree::named`].
    #[must_use]
    pub fn named(&self, rank: RankId) -> u64 {
        self.read().named(rank)
    }

    /// As [`Tree::stats`].
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        self.read().stats()
    }

    fn read(&self) -> RwLockReadGuard<'_, Tree> {
        if let Some(tree) = self.tree.try_read() {
            return tree;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let tree = persist(|| self.tree.try_read()).unwrap_or_else(|| self.tree.read());
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        tree
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tree> {
        persist(|| (self.waiting.load(Ordering::Relaxed) == 0).then_some(()));
        persist(|| self.tree.try_write()).unwrap_or_else(|| self.tree.write())
    }
}

/// What `attempt` gives as soon as it gives something; nothing if it does not for a while.
fn persist<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..TRIES {
        if let Some(result) = attempt() {
            return Some(result);
        }
        spin_loop();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::link;

    const A: RankId = RankId(3);
    const BLOCKS: u64 = 3 * STEP as u64 + 7;

    fn chain(blocks: std::ops::Range<u64>) -> Vec<u64> {
        let next = |last: &mut u64, local| {
            *last = link(*last, local);
            Some(*last)
        };
        blocks.scan(0, next).collect()
    }

    fn stored(blocks: u64) -> Event {
        let locals = (0..blocks).collect();
        Event::Stored { engine_hashes: chain(0..blocks), parent: None, seed: 0, locals }
    }

    fn held(shared: &SharedTree) -> Vec<(RankId, u32)> {
        assert_eq!(shared.read().audit(), Ok(()));
        let mut out = Vec::new();
        shared.matches(&chain(0..BLOCKS), &mut out);
        out
    }

    #[test]
    fn a_long_event_is_applied_whole_and_counted_once() {
        let shared = SharedTree::new(1 << 20);
        let applied = shared.apply(A, &stored(BLOCKS));
        assert_eq!(applied, Applied { stored: BLOCKS, ..Applied::default() });
        assert_eq!(held(&shared), [(A, u32::try_from(BLOCKS).unwrap())]);
        assert_eq!(shared.stats().nodes, 1);
        let mut engine_hashes = chain(0..BLOCKS);
        engine_hashes.reverse();
        engine_hashes.push(12_345);
        let applied = shared.apply(A, &Event::Removed { engine_hashes });
        assert_eq!(applied, Applied { removed: BLOCKS, unknown_removed: 1, ..Applied::default() });
        assert_eq!(shared.stats(), TreeStats::default());
    }

    #[test]
    fn a_long_orphan_is_counted_once() {
        let shared = SharedTree::new(1 << 20);
        let Event::Stored { engine_hashes, locals, .. } = stored(BLOCKS) else { unreachable!() };
        let orphan = Event::Stored { engine_hashes, parent: Some(12_345), seed: 0, locals };
        let applied = shared.apply(A, &orphan);
        assert_eq!(applied, Applied { orphans: BLOCKS, ..Applied::default() });
        assert_eq!(shared.stats().orphans, BLOCKS);
    }

    #[test]
    fn what_is_behind_a_refused_step_is_refused() {
        let shared = SharedTree::new(1);
        let applied = shared.apply(A, &stored(BLOCKS));
        assert_eq!(applied.stored, STEP as u64, "an empty tree has room for one step");
        assert_eq!(applied.refused, BLOCKS - STEP as u64);
        assert_eq!(applied.orphans, 0);
    }

    #[test]
    fn all_that_lapsed_goes_in_one_call() {
        let shared = SharedTree::new(1 << 20);
        for one in 0..3 * STEP as u64 {
            shared.note_route(A, &[one], 10);
        }
        shared.note_route(A, &chain(0..BLOCKS), 20);
        shared.expire(10);
        assert_eq!(shared.stats().nodes, 1);
        assert_eq!(shared.stats().blocks, BLOCKS);
    }

    #[test]
    fn others_see_whole_steps_only() {
        let shared = SharedTree::new(1 << 20);
        let mut engine_hashes = chain(0..BLOCKS);
        engine_hashes.reverse();
        let removed = Event::Removed { engine_hashes };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..300 {
                    shared.apply(A, &stored(BLOCKS));
                    shared.apply(A, &removed);
                }
            });
            let mut out = Vec::new();
            while !writer.is_finished() {
                shared.matches(&chain(0..BLOCKS), &mut out);
                let blocks = out.first().map_or(0, |(_, blocks)| u64::from(*blocks));
                let whole = |blocks: u64| blocks.is_multiple_of(STEP as u64);
                assert!(whole(blocks) || whole(BLOCKS - blocks), "{blocks} of {BLOCKS}");
            }
        });
        assert_eq!(shared.stats(), TreeStats::default());
    }
}
