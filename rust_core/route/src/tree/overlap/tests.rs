use super::*;
use crate::event::{Event, Tier};
use crate::tree::tests::{A, B, chain, held, removed, stored};
use crate::tree::{Applied, SharedTree, TreeStats};

fn overlaps(tree: &Tree, chain: &[u64]) -> Vec<(RankId, [u32; 3])> {
    tree.audit().unwrap();
    let mut out = vec![(B, Overlap::default())];
    tree.overlaps(chain, &mut out);
    out.sort_unstable_by_key(|(rank, _)| *rank);
    out.into_iter().map(|(rank, all)| (rank, [all.gpu, all.cpu, all.storage])).collect()
}

#[test]
fn without_lower_tiers_it_is_what_gpus_hold() {
    let mut tree = Tree::new(1 << 20);
    tree.note_route(A, &chain(0..10), 100);
    tree.apply(B, &stored(&[], 0..4));
    assert_eq!(overlaps(&tree, &chain(0..8)), [(A, [8, 0, 0]), (B, [4, 0, 0])]);
    assert_eq!(overlaps(&tree, &chain(1..8)), []);
}

#[test]
fn a_block_that_leaves_the_gpu_may_stay_below() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..8);
    tree.apply(A, &stored(&[], 0..8));
    tree.apply_tier(A, Tier::Cpu, &stored(&[], 0..6));
    assert_eq!(overlaps(&tree, &all), [(A, [8, 0, 0])], "a block counts once");
    assert_eq!((tree.stats().blocks, tree.stats().offloaded, tree.stats().nodes), (8, 6, 1));
    tree.apply(A, &removed(&all[3..]));
    assert_eq!(overlaps(&tree, &all), [(A, [3, 3, 0])]);
    assert_eq!(held(&tree, &all), [(A, 3)], "who asks for GPUs alone does not see it");
    tree.apply_tier(A, Tier::Cpu, &removed(&all));
    assert_eq!(overlaps(&tree, &all), [(A, [3, 0, 0])]);
    tree.apply(A, &removed(&all[..3]));
    assert_eq!(tree.stats(), TreeStats::default());
}

#[test]
fn a_rank_that_holds_blocks_below_alone_is_found() {
    let mut tree = Tree::new(1 << 20);
    tree.apply(A, &stored(&[], 0..8));
    tree.apply_tier(B, Tier::Storage, &stored(&[], 0..5));
    assert_eq!(overlaps(&tree, &chain(0..8)), [(A, [8, 0, 0]), (B, [0, 0, 5])]);
    assert_eq!(held(&tree, &chain(0..8)), [(A, 8)]);
}

#[test]
fn each_block_counts_for_its_best_tier() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..12);
    for tier in Tier::ALL {
        tree.apply_tier(A, tier, &stored(&[], 0..12));
    }
    tree.apply(A, &removed(&all[2..5]));
    tree.apply_tier(A, Tier::Cpu, &removed(&all[3..4]));
    assert_eq!(overlaps(&tree, &all), [(A, [9, 2, 1])]);
    tree.apply_tier(A, Tier::Storage, &removed(&all[3..4]));
    assert_eq!(overlaps(&tree, &all), [(A, [2, 1, 0])], "a block that no tier holds ends it");
}

#[test]
fn a_lower_tier_that_starts_in_the_middle_does_not_hold_what_is_before() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..10);
    tree.apply(A, &stored(&[], 0..10));
    let tail = stored(&all[..3], 3..10);
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &tail).stored, 7, "the parent is the GPU's");
    tree.apply(A, &removed(&all[2..]));
    assert_eq!(overlaps(&tree, &all), [(A, [2, 0, 0])]);
    tree.apply(A, &stored(&all[..2], 2..3));
    assert_eq!(overlaps(&tree, &all), [(A, [3, 7, 0])]);
    tree.apply(A, &removed(&all[..3]));
    assert_eq!(overlaps(&tree, &all), []);
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &removed(&all)).removed, 7);
    assert_eq!(tree.stats(), TreeStats::default());
}

#[test]
fn a_gpu_takes_up_what_the_host_kept() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..8);
    tree.apply_tier(A, Tier::Cpu, &stored(&[], 0..4));
    assert_eq!(tree.apply(A, &stored(&all[..4], 4..8)).stored, 4);
    assert_eq!(overlaps(&tree, &all), [(A, [4, 4, 0])]);
    assert_eq!(held(&tree, &all), []);
}

#[test]
fn another_ranks_parent_is_nobodys() {
    let mut tree = Tree::new(1 << 20);
    tree.apply(B, &stored(&[], 0..3));
    let applied = tree.apply_tier(A, Tier::Cpu, &stored(&chain(0..3), 3..5));
    assert_eq!(applied, Applied { orphans: 2, ..Applied::default() });
    assert_eq!(tree.stats().offloaded, 0);
}

#[test]
fn a_parent_that_another_tier_knows_as_another_block_is_none() {
    let mut tree = Tree::new(1 << 20);
    let named = |parent, local| Event::Stored {
        engine_hashes: vec![10],
        parent,
        seed: 0,
        locals: vec![local],
    };
    tree.apply(A, &named(None, 0));
    tree.apply_tier(A, Tier::Cpu, &named(None, 1));
    let applied = tree.apply_tier(A, Tier::Cpu, &named(Some(10), 2));
    assert_eq!(applied, Applied { removed: 1, orphans: 1, ..Applied::default() });
    assert_eq!(overlaps(&tree, &chain([0, 2])), [(A, [1, 0, 0])]);
    assert_eq!(overlaps(&tree, &chain([1, 2])), []);
}

#[test]
fn a_clear_of_any_tier_clears_all() {
    let mut tree = Tree::new(1 << 20);
    for tier in Tier::ALL {
        tree.apply_tier(A, tier, &stored(&[], 0..4));
        tree.apply_tier(B, tier, &stored(&[], 0..4));
    }
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &Event::Cleared).removed, 12);
    assert_eq!(overlaps(&tree, &chain(0..4)), [(B, [4, 0, 0])]);
    tree.remove_rank(B);
    assert_eq!(tree.stats(), TreeStats::default());
}

#[test]
fn a_route_stands_when_a_lower_tier_lets_go() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..4);
    tree.note_route(A, &all, 100);
    tree.apply_tier(A, Tier::Cpu, &stored(&[], 0..4));
    tree.apply_tier(A, Tier::Cpu, &removed(&all));
    assert_eq!(overlaps(&tree, &all), [(A, [4, 0, 0])]);
    tree.apply_tier(A, Tier::Cpu, &stored(&[], 0..2));
    tree.expire(100);
    assert_eq!(overlaps(&tree, &all), [(A, [0, 2, 0])], "and a lower tier when the route lapses");
}

#[test]
fn more_ranks_than_fit_on_the_stack_are_found_in_all_tiers() {
    let mut tree = Tree::new(1 << 24);
    for rank in 0..100 {
        tree.apply(RankId(rank), &stored(&[], 0..20));
        tree.apply_tier(RankId(rank), Tier::Cpu, &stored(&chain(0..20), 20..20 + u64::from(rank)));
    }
    let all = overlaps(&tree, &chain(0..60));
    assert_eq!(all.len(), 100);
    assert!(all.iter().all(|(rank, blocks)| *blocks == [20, rank.0.min(40), 0]));
}

#[test]
fn a_shared_tree_takes_a_long_event_of_a_lower_tier_in_steps() {
    let shared = SharedTree::new(1 << 20);
    let applied = shared.apply_tier(A, Tier::Storage, &stored(&[], 0..200));
    assert_eq!(applied, Applied { stored: 200, ..Applied::default() });
    let mut out = Vec::new();
    shared.overlaps(&chain(0..150), &mut out);
    assert_eq!(out, [(A, Overlap { storage: 150, ..Overlap::default() })]);
}

#[test]
fn tiers_are_named_in_lower_case() {
    assert_eq!(serde_json::to_string(&Tier::ALL).unwrap(), r#"["gpu","cpu","storage"]"#);
}
