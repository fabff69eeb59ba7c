use crate::tree::tests::{A, B, chain, held, stored};
use crate::tree::{SharedTree, Tree, TreeStats};
use crate::{Event, RankId};

fn limited(blocks: u64) -> Tree {
    let mut tree = Tree::new(1 << 24);
    tree.limit(A, Some(blocks));
    tree
}

#[test]
fn of_a_chain_above_the_limit_the_leading_blocks_stay() {
    let mut tree = limited(10);
    tree.note_route(A, &chain(100..105), 100);
    tree.note_route(A, &chain(0..30), 100);
    assert_eq!(held(&tree, &chain(0..30)), [(A, 10)]);
    assert_eq!((tree.stats().blocks, tree.stats().nodes), (10, 1));
}

#[test]
fn what_was_used_least_recently_goes_first_block_by_block_from_the_end() {
    let mut tree = limited(20);
    tree.note_route(A, &chain(0..8), 100);
    tree.note_route(A, &chain(100..108), 100);
    tree.note_route(A, &chain(0..3), 100);
    tree.note_route(A, &chain(200..207), 100);
    assert_eq!(held(&tree, &chain(0..8)), [(A, 5)], "three were used again, five were not");
    assert_eq!(held(&tree, &chain(100..108)), [(A, 8)]);
    tree.note_route(A, &chain(300..309), 100);
    assert_eq!(held(&tree, &chain(0..8)), [(A, 3)]);
    assert_eq!(held(&tree, &chain(100..108)), [(A, 1)]);
    assert_eq!(tree.stats().blocks, 20);
    assert_eq!(tree.stats().evicted, 0, "the tree itself has room");
}

#[test]
fn what_others_cut_still_goes_from_the_end() {
    let mut tree = limited(32);
    tree.note_route(A, &chain(0..32), 100);
    for at in [16, 8, 24, 4, 20, 28, 12, 31, 1] {
        tree.note_route(B, &chain((0..at).chain([99])), 100);
    }
    for more in 1..32 {
        tree.note_route(A, &[more], 100);
        let left = u32::try_from(32 - more).unwrap();
        assert_eq!(held(&tree, &chain(0..32)), [(A, left), (B, 31)]);
    }
}

#[test]
fn exact_claims_neither_count_nor_go() {
    let mut tree = limited(4);
    tree.apply(A, &stored(&[], 0..20));
    tree.note_route(A, &chain(100..104), 100);
    tree.note_route(A, &chain(0..3), 100);
    assert_eq!(held(&tree, &chain(0..20)), [(A, 20)]);
    assert_eq!(held(&tree, &chain(100..104)), [(A, 1)]);
}

#[test]
fn other_ranks_have_no_part_in_it() {
    let mut tree = limited(4);
    for start in 0..20 {
        tree.note_route(A, &chain(start * 10..start * 10 + 4), 100);
        tree.note_route(B, &chain(start * 10..start * 10 + 4), 100);
    }
    assert_eq!(held(&tree, &chain(0..4)), [(B, 4)]);
    assert_eq!(held(&tree, &chain(190..194)), [(A, 4), (B, 4)]);
    assert_eq!(tree.stats().blocks, 84);
}

#[test]
fn a_lower_limit_holds_at_once_and_no_limit_again_too() {
    let mut tree = limited(100);
    tree.note_route(A, &chain(0..40), 100);
    tree.limit(A, Some(10));
    assert_eq!(held(&tree, &chain(0..40)), [(A, 10)]);
    tree.limit(A, Some(0));
    tree.note_route(A, &chain(0..40), 100);
    assert_eq!(tree.stats().blocks, 0);
    tree.limit(A, None);
    assert_eq!(tree.stats(), TreeStats::default(), "a lifted limit needs no memory");
    tree.note_route(A, &chain(0..40), 100);
    assert_eq!(held(&tree, &chain(0..40)), [(A, 40)]);
}

#[test]
fn what_was_routed_before_the_first_limit_counts() {
    let mut tree = Tree::new(1 << 20);
    for start in 0..5 {
        tree.note_route(A, &chain(start * 100..start * 100 + 10), 100);
    }
    tree.limit(A, Some(25));
    let left = (0..5).map(|start| held(&tree, &chain(start * 100..start * 100 + 10)));
    let left: Vec<u32> = left.map(|held| held.first().map_or(0, |held| held.1)).collect();
    assert_eq!(left, [0, 0, 5, 10, 10]);
}

#[test]
fn a_limit_outlasts_a_clear() {
    let mut tree = limited(10);
    tree.note_route(A, &chain(0..10), 100);
    tree.apply(A, &Event::Cleared);
    tree.note_route(A, &chain(50..80), 100);
    assert_eq!(held(&tree, &chain(50..80)), [(A, 10)]);
    tree.remove_rank(A);
    tree.note_route(A, &chain(50..80), 100);
    assert_eq!(held(&tree, &chain(50..80)), [(A, 10)]);
}

#[test]
fn a_route_that_lapsed_makes_room() {
    let mut tree = limited(10);
    tree.note_route(A, &chain(0..6), 100);
    tree.note_route(A, &chain(100..104), 200);
    tree.expire(100);
    tree.note_route(A, &chain(200..206), 200);
    assert_eq!(held(&tree, &chain(100..104)), [(A, 4)]);
    assert_eq!(tree.stats().blocks, 10);
}

#[test]
fn the_lists_return_their_memory() {
    let shared = SharedTree::new(1 << 24);
    for rank in 0..20 {
        shared.limit(RankId(rank), Some(1000));
    }
    let empty = shared.stats().bytes;
    for one in 0..20_000 {
        shared.note_route(RankId(one % 20), &[u64::from(one)], 100);
    }
    assert_eq!(shared.stats().blocks, 20_000);
    shared.expire(100);
    assert_eq!(shared.stats().bytes, empty);
}
