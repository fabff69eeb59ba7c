use super::*;
use crate::tree::tests::{A, B, chain, held, removed, stored};
use crate::tree::{Overlap, SharedTree, TreeStats};

/// Blocks that an engine tells by name alone.
fn moved(names: &[u64]) -> Event {
    Event::Stored { engine_hashes: names.to_vec(), parent: None, seed: 0, locals: Vec::new() }
}

/// The first block of a prompt, under this name.
fn named(name: u64, local: u64) -> Event {
    Event::Stored { engine_hashes: vec![name], parent: None, seed: 0, locals: vec![local] }
}

fn overlap(tree: &Tree, chain: &[u64]) -> [u32; 3] {
    tree.audit().unwrap();
    let mut out = Vec::new();
    tree.overlaps(chain, &mut out);
    let all = out.iter().find(|(rank, _)| *rank == A).map_or(Overlap::default(), |(_, all)| *all);
    [all.gpu, all.cpu, all.storage]
}

#[test]
fn what_was_offloaded_by_name_is_known_there_after_the_gpu_let_go() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..8);
    tree.apply(A, &stored(&[], 0..8));
    let applied = tree.apply_tier(A, Tier::Cpu, &moved(&all[..6]));
    assert_eq!(applied, Applied { stored: 6, ..Applied::default() });
    assert_eq!((overlap(&tree, &all), tree.named(A)), ([8, 0, 0], 14));
    tree.apply(A, &removed(&all));
    assert_eq!(overlap(&tree, &all), [0, 6, 0]);
    assert_eq!(held(&tree, &all), [], "who asks for GPUs alone does not see it");
    assert_eq!(tree.apply_tier(A, Tier::Storage, &moved(&all[..4])).stored, 4);
    tree.apply_tier(A, Tier::Cpu, &removed(&all[2..6]));
    assert_eq!(overlap(&tree, &all), [0, 2, 2]);
    assert_eq!(tree.apply(A, &moved(&all[..1])).stored, 1, "a GPU takes blocks up as well");
    assert_eq!(overlap(&tree, &all), [1, 1, 2]);
    for tier in Tier::ALL {
        tree.apply_tier(A, tier, &removed(&all));
    }
    assert_eq!((tree.stats(), tree.named(A)), (TreeStats::default(), 0));
}

#[test]
fn a_name_that_no_tier_of_the_rank_knows_is_an_orphan() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..4);
    tree.apply(A, &stored(&[], 0..2));
    tree.apply(B, &stored(&[], 0..4));
    let applied = tree.apply_tier(A, Tier::Cpu, &moved(&all));
    assert_eq!(applied, Applied { stored: 2, orphans: 2, ..Applied::default() });
    assert_eq!((overlap(&tree, &all), tree.stats().orphans), ([2, 0, 0], 2));
    assert_eq!(tree.apply(A, &moved(&[12_345])).orphans, 1);
}

#[test]
fn a_name_that_the_tier_knows_already_is_no_news() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..4);
    tree.apply(A, &stored(&[], 0..4));
    tree.apply_tier(A, Tier::Cpu, &moved(&all));
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &moved(&all)), Applied::default());
    tree.apply(A, &removed(&all));
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &moved(&all)), Applied::default());
    assert_eq!(overlap(&tree, &all), [0, 4, 0]);
}

#[test]
fn blocks_that_move_in_any_order_cut_an_edge_once() {
    let mut tree = Tree::new(1 << 20);
    let all = chain(0..40);
    tree.apply(A, &stored(&[], 0..40));
    let mut back = all[20..30].to_vec();
    back.reverse();
    back.swap(3, 7);
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &moved(&back)).stored, 10);
    assert_eq!(tree.stats().nodes, 2);
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &moved(&all)).stored, 30);
    assert_eq!(tree.stats().nodes, 2);
    tree.apply(A, &removed(&all));
    assert_eq!(overlap(&tree, &all), [0, 40, 0]);
}

#[test]
fn one_event_may_move_parts_of_many_prompts() {
    let mut tree = Tree::new(1 << 20);
    let (one, other) = (chain(0..12), chain((0..4).chain(90..98)));
    tree.apply(A, &stored(&[], 0..12));
    tree.apply(A, &stored(&one[..4], 90..98));
    let names = [&other[10..], &one[2..6], &other[4..7], &one[8..9], &one[..1]].concat();
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &moved(&names)).stored, 11);
    tree.apply(A, &removed(&[&one[2..], &other[4..]].concat()));
    assert_eq!(overlap(&tree, &one), [2, 4, 0]);
    assert_eq!(overlap(&tree, &other), [2, 5, 0]);
    assert_eq!(tree.apply_tier(A, Tier::Cpu, &removed(&names)).removed, 11);
    assert_eq!(tree.stats().offloaded, 0);
}

#[test]
fn a_name_that_now_means_another_block_leaves_its_first_one() {
    let mut tree = Tree::new(1 << 20);
    tree.apply_tier(A, Tier::Cpu, &named(10, 0));
    tree.apply(A, &named(10, 1));
    let applied = tree.apply_tier(A, Tier::Cpu, &moved(&[10]));
    assert_eq!(applied, Applied { stored: 1, removed: 1, ..Applied::default() });
    tree.apply(A, &removed(&[10]));
    assert_eq!((overlap(&tree, &chain([0])), overlap(&tree, &chain([1]))), ([0; 3], [0, 1, 0]));
}

#[test]
fn the_best_tier_that_knows_a_name_says_which_block_it_is() {
    let mut tree = Tree::new(1 << 20);
    tree.apply_tier(A, Tier::Cpu, &named(10, 0));
    tree.apply(A, &named(10, 1));
    assert_eq!(tree.apply_tier(A, Tier::Storage, &moved(&[10])).stored, 1);
    tree.apply(A, &removed(&[10]));
    assert_eq!((overlap(&tree, &chain([0])), overlap(&tree, &chain([1]))), ([0, 1, 0], [0, 0, 1]));
}

#[test]
fn of_two_names_for_a_block_that_moves_the_first_one_counts() {
    let mut tree = Tree::new(1 << 20);
    tree.apply(A, &named(10, 0));
    tree.apply_tier(A, Tier::Cpu, &named(20, 0));
    assert_eq!(tree.apply_tier(A, Tier::Storage, &moved(&[20, 10, 20])).stored, 1);
    let applied = tree.apply_tier(A, Tier::Storage, &removed(&[10, 20]));
    assert_eq!((applied.removed, applied.unknown_removed), (1, 1));
    assert_eq!(tree.apply_tier(A, Tier::Storage, &moved(&[10])).stored, 1);
}

#[test]
fn a_long_move_is_applied_in_steps_and_refused_at_the_bound() {
    let all = chain(0..200);
    let shared = SharedTree::new(1 << 20);
    shared.apply(A, &stored(&[], 0..200));
    let applied = shared.apply_tier(A, Tier::Cpu, &moved(&all));
    assert_eq!(applied, Applied { stored: 200, ..Applied::default() });
    shared.apply(A, &removed(&all));
    let mut out = Vec::new();
    shared.overlaps(&all, &mut out);
    assert_eq!(out, [(A, Overlap { cpu: 200, ..Overlap::default() })]);

    let full = SharedTree::new(1);
    full.apply(A, &stored(&[], 0..20));
    let applied = full.apply_tier(A, Tier::Cpu, &moved(&all));
    assert_eq!(applied, Applied { refused: 200, ..Applied::default() });
}
