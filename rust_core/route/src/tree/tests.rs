use super::*;
use crate::block::link;
use crate::event::Event;

pub(super) const A: RankId = RankId(3);
pub(super) const B: RankId = RankId(70_000);

/// A chain of blocks without names: hash `i` stands for all up to `i`, as in real ones.
pub(super) fn chain(locals: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let next = |last: &mut u64, local| {
        *last = link(*last, local);
        Some(*last)
    };
    locals.into_iter().scan(0, next).collect()
}

/// An engine that calls each block by its chain hash.
pub(super) fn stored(parent: &[u64], locals: impl IntoIterator<Item = u64>) -> Event {
    let locals: Vec<u64> = locals.into_iter().collect();
    let parent = parent.last().copied();
    let mut last = parent.unwrap_or(0);
    let engine_hashes = locals.iter().map(|local| {
        last = link(last, *local);
        last
    });
    Event::Stored { engine_hashes: engine_hashes.collect(), parent, seed: 0, locals }
}

pub(super) fn removed(names: &[u64]) -> Event {
    Event::Removed { engine_hashes: names.to_vec() }
}

pub(super) fn held(tree: &Tree, chain: &[u64]) -> Vec<(RankId, u32)> {
    tree.audit().unwrap();
    let mut out = Vec::new();
    tree.matches(chain, &mut out);
    out.sort_unstable();
    out
}

#[test]
fn an_empty_tree_holds_nothing_and_needs_nothing() {
    let tree = Tree::new(1 << 20);
    assert_eq!(held(&tree, &chain(0..5)), []);
    assert_eq!(tree.stats(), TreeStats::default());
}

#[test]
fn a_route_is_found_by_every_prompt_that_shares_its_start() {
    let mut tree = Tree::new(1 << 20);
    tree.note_route(A, &chain(0..10), 100);
    tree.note_route(B, &chain((0..4).chain(90..95)), 100);
    assert_eq!(held(&tree, &chain(0..10)), [(A, 10), (B, 4)]);
    assert_eq!(held(&tree, &chain((0..4).chain(90..93))), [(A, 4), (B, 7)]);
    assert_eq!(held(&tree, &chain(0..2)), [(A, 2), (B, 2)]);
    assert_eq!(held(&tree, &chain(0..20)), [(A, 10), (B, 4)]);
    assert_eq!(held(&tree, &chain(1..9)), []);
    assert_eq!((tree.stats().nodes, tree.stats().blocks), (3, 19));
}

#[test]
fn a_conversation_grows_in_place() {
    let mut tree = Tree::new(1 << 20);
    for turn in 1..20 {
        tree.note_route(A, &chain(0..turn * 7), 100);
    }
    assert_eq!((tree.stats().nodes, tree.stats().blocks), (1, 133));
}

#[test]
fn a_rank_that_holds_less_of_an_edge_needs_no_split() {
    let mut tree = Tree::new(1 << 20);
    tree.note_route(A, &chain(0..10), 100);
    tree.note_route(B, &chain(0..6), 100);
    assert_eq!(held(&tree, &chain(0..10)), [(A, 10), (B, 6)]);
    assert_eq!(tree.stats().nodes, 1);
}

#[test]
fn a_shorter_route_splits_only_where_the_times_differ() {
    let mut tree = Tree::new(1 << 20);
    tree.note_route(A, &chain(0..10), 100);
    tree.note_route(A, &chain(0..4), 100);
    assert_eq!(tree.stats().nodes, 1);
    tree.note_route(A, &chain(0..4), 101);
    assert_eq!((tree.stats().nodes, tree.stats().blocks), (2, 10));
}

#[test]
fn a_route_lapses_and_a_refreshed_one_lasts() {
    let mut tree = Tree::new(1 << 20);
    tree.note_route(A, &chain(0..10), 100);
    tree.note_route(B, &chain(0..10), 100);
    tree.note_route(B, &chain(0..4), 200);
    tree.expire(99);
    assert_eq!(held(&tree, &chain(0..10)), [(A, 10), (B, 10)]);
    tree.expire(100);
    assert_eq!(held(&tree, &chain(0..10)), [(B, 4)], "only what was refreshed is left");
    tree.expire(200);
    assert_eq!(tree.stats(), TreeStats::default());
}

#[test]
fn time_does_not_go_back() {
    let mut tree = Tree::new(1 << 20);
    tree.expire(50);
    tree.expire(10);
    tree.note_route(A, &chain(0..3), 40);
    assert_eq!(held(&tree, &chain(0..3)), []);
}

#[test]
fn events_are_followed_block_by_block() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..8);
    assert_eq!(tree.apply(A, &stored(&[], 0..5)).stored, 5);
    assert_eq!(tree.apply(A, &stored(&all[..5], 5..8)).stored, 3);
    assert_eq!(
        tree.apply(A, &stored(&all[..3], 3..8)),
        Applied::default(),
        "a second time is no news"
    );
    assert_eq!(held(&tree, &all), [(A, 8)]);
    assert_eq!(tree.stats().nodes, 1);
    for (at, name) in (0..8).zip(&all).rev() {
        assert_eq!(tree.apply(A, &removed(&[*name])).removed, 1);
        assert_eq!(held(&tree, &all).first().map_or(0, |held| held.1), at);
    }
    assert_eq!(tree.stats(), TreeStats::default());
}

#[test]
fn a_hole_ends_the_match_until_it_is_filled() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..8);
    tree.apply(A, &stored(&[], 0..8));
    tree.apply(B, &stored(&[], 0..8));
    tree.apply(A, &removed(&all[3..4]));
    assert_eq!(held(&tree, &all), [(A, 3), (B, 8)]);
    assert_eq!(tree.stats().blocks, 15, "what is behind the hole is still there");
    tree.apply(A, &stored(&all[..3], 3..4));
    assert_eq!(held(&tree, &all), [(A, 8), (B, 8)]);
}

#[test]
fn a_name_is_followed_through_many_splits() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..32);
    tree.apply(A, &stored(&[], 0..32));
    for at in [16, 8, 24, 4, 20, 28, 12, 31, 1] {
        tree.note_route(B, &chain((0..at).chain([99])), 100);
    }
    assert_eq!(tree.apply(A, &stored(&all[..30], 300..302)).stored, 2);
    assert_eq!(tree.apply(A, &removed(&all)).removed, 32);
    assert_eq!(held(&tree, &all), [(B, 31)]);
    tree.expire(100);
    assert_eq!(tree.stats().blocks, 2, "a block whose parents are gone is held, but leads nowhere");
}

#[test]
fn an_orphan_is_counted_and_never_rooted() {
    let mut tree = Tree::new(1 << 20);
    tree.apply(B, &stored(&[], 0..3));
    let applied = tree.apply(A, &stored(&chain(0..3), 3..5));
    assert_eq!(
        applied,
        Applied { orphans: 2, ..Applied::default() },
        "another rank's parent is not this one's"
    );
    assert_eq!(held(&tree, &chain(0..5)), [(B, 3)]);
    assert_eq!(tree.stats().orphans, 2);
}

#[test]
fn a_removal_goes_on_past_an_unknown_block() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..4);
    tree.apply(A, &stored(&[], 0..4));
    let applied = tree.apply(A, &removed(&[all[3], 12_345, all[2]]));
    assert_eq!((applied.removed, applied.unknown_removed), (2, 1));
    assert_eq!(held(&tree, &all), [(A, 2)]);
}

#[test]
fn a_block_is_held_while_either_claim_stands() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..6);
    tree.apply(A, &stored(&[], 0..4));
    tree.note_route(A, &all, 100);
    assert_eq!(held(&tree, &all), [(A, 6)]);
    assert_eq!(tree.stats().blocks, 6, "a pair claimed twice is one pair");
    tree.expire(100);
    assert_eq!(held(&tree, &all), [(A, 4)], "the route lapsed, the events stand");
}

#[test]
fn a_removal_ends_both_claims_and_a_later_route_counts_again() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..6);
    tree.note_route(A, &all, 100);
    tree.apply(A, &stored(&[], 0..6));
    tree.apply(A, &removed(&all[2..3]));
    assert_eq!(held(&tree, &all), [(A, 2)]);
    tree.note_route(A, &all, 110);
    assert_eq!(held(&tree, &all), [(A, 6)]);
    tree.expire(110);
    assert_eq!(held(&tree, &all), [(A, 2)]);
}

#[test]
fn a_clear_forgets_one_rank_and_its_names() {
    let mut tree = Tree::new(1 << 20);
    tree.apply(A, &stored(&[], 0..6));
    tree.note_route(A, &chain(0..9), 100);
    tree.apply(B, &stored(&[], 0..6));
    assert_eq!(tree.apply(A, &Event::Cleared).removed, 6);
    assert_eq!(held(&tree, &chain(0..9)), [(B, 6)]);
    assert_eq!(tree.apply(A, &removed(&chain(0..6))).unknown_removed, 6);
    tree.remove_rank(B);
    assert_eq!(tree.stats(), TreeStats::default());
}

#[test]
fn a_second_name_for_a_block_is_not_learned() {
    let mut tree = Tree::new(1 << 20);
    let named = |names: [u64; 2]| Event::Stored {
        engine_hashes: names.to_vec(),
        parent: None,
        seed: 0,
        locals: vec![0, 1],
    };
    tree.apply(A, &named([10, 11]));
    assert_eq!(tree.apply(A, &named([20, 21])).stored, 0);
    assert_eq!(tree.apply(A, &removed(&[20, 21])).unknown_removed, 2);
    assert_eq!(held(&tree, &chain(0..2)), [(A, 2)]);
}

#[test]
fn a_name_that_comes_again_leaves_its_first_block() {
    let mut tree = Tree::new(1 << 20);
    let named = |local| Event::Stored {
        engine_hashes: vec![10],
        parent: None,
        seed: 0,
        locals: vec![local],
    };
    tree.apply(A, &named(0));
    let applied = tree.apply(A, &named(1));
    assert_eq!((applied.stored, applied.removed), (1, 1));
    assert_eq!((held(&tree, &chain([0])), held(&tree, &chain([1]))), (vec![], vec![(A, 1)]));
}

#[test]
fn a_block_cannot_be_its_own_parent() {
    let mut tree = Tree::new(1 << 20);
    tree.apply(
        A,
        &Event::Stored { engine_hashes: vec![10], parent: None, seed: 0, locals: vec![0] },
    );
    let itself =
        Event::Stored { engine_hashes: vec![10], parent: Some(10), seed: 0, locals: vec![0] };
    let applied = tree.apply(A, &itself);
    assert_eq!(applied, Applied { removed: 1, orphans: 1, ..Applied::default() });
    assert_eq!(tree.stats().nodes, 0);
}

#[test]
fn the_least_recently_used_leaf_goes_first() {
    let mut tree = Tree::new(u64::MAX);
    let system = || 0..40;
    for user in 1000..1100 {
        tree.note_route(A, &chain(system().chain(user * 100..user * 100 + 40)), 1_000_000);
    }
    tree.max_bytes = tree.stats().bytes;
    let first = chain(system().chain(100_000..100_040));
    tree.note_route(A, &first, 1_000_000);
    for user in 2000..2020 {
        tree.note_route(A, &chain(system().chain(user * 100..user * 100 + 40)), 1_000_000);
        assert!(tree.stats().bytes <= tree.max_bytes);
    }
    assert_eq!(held(&tree, &first), [(A, 80)], "it was used again before the others came");
    let second = chain(system().chain(100_100..100_140));
    assert_eq!(
        held(&tree, &second),
        [(A, 40)],
        "it was the oldest, and the start that all share was not"
    );
    assert_eq!(tree.stats().evicted % 40, 0);
    assert!((20 * 40..30 * 40).contains(&tree.stats().evicted), "{}", tree.stats().evicted);
}

#[test]
fn exact_claims_stay_and_further_events_are_refused_at_the_bound() {
    let mut tree = Tree::new(40_000);
    tree.note_route(A, &chain(500_000..500_100), 1_000_000);
    let mut refused = 0;
    for user in 0..100 {
        refused += tree.apply(A, &stored(&[], user * 100..user * 100 + 40)).refused;
    }
    assert_eq!(held(&tree, &chain(0..40)), [(A, 40)], "the first is still there");
    assert_eq!(held(&tree, &chain(500_000..500_100)), [], "a guess makes room for what is known");
    assert_eq!(refused + tree.stats().blocks, 100 * 40);
    assert!(tree.stats().bytes < 80_000, "one event above, and one table that doubled");
}

#[test]
fn more_ranks_than_fit_on_the_stack_are_all_found() {
    let mut tree = Tree::new(1 << 24);
    for rank in (0..300).rev() {
        tree.note_route(RankId(rank), &chain((0..20).chain([u64::from(rank) + 1000])), 100);
    }
    let all = held(&tree, &chain((0..20).chain([1077])));
    assert_eq!(all.len(), 300);
    assert!(all.iter().all(|(rank, blocks)| *blocks == 20 + u32::from(rank.0 == 77)));
}
