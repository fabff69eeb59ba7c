//! The tree against a naive model of it, under any interleaving of routes, events of every tier, departures, limits and
//! time.

use std::collections::HashMap;

use nebula_route::block::link;
use nebula_route::tree::Applied;
use nebula_route::{Event, Millis, Overlap, RankId, Tier, Tree};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

mod naive;

use naive::Model;

const RANKS: u32 = 3;

/// The rank that has a limit from the start. Its routes outlast every run, so that the model knows what counts.
const LIMITED: u32 = 2;
const LIMIT: u64 = 9;
const LATE: Millis = 1 << 40;

#[derive(Clone, Debug)]
enum Step {
    Note { rank: u32, chain: Vec<u64>, until: Millis },
    Apply { rank: u32, tier: Tier, event: Event },
    RemoveRanks(Vec<u32>),
    Expire(Millis),
    Limit { rank: u32, blocks: u64 },
}

// === the machine ===

struct Machine;

impl ReferenceStateMachine for Machine {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(limited()).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Step> {
        let now = model.now;
        let (noted, model) = (model.clone(), model.clone());
        prop_oneof![
            4 => (0..RANKS, any_chain(), 0..20_u64).prop_map(move |(rank, chain, ttl)| {
                let until = if noted.is_limited(rank) { LATE } else { now + ttl };
                Step::Note { rank, chain, until }
            }),
            8 => (0..RANKS, any_tier()).prop_flat_map(move |(rank, tier)| {
                let parents = Tier::ALL.into_iter().flat_map(|tier| model.names(rank, tier)).collect();
                any_event(model.names(rank, tier), parents)
                    .prop_map(move |event| Step::Apply { rank, tier, event })
            }),
            1 => vec(0..RANKS, 1..3).prop_map(Step::RemoveRanks),
            2 => (0..8_u64).prop_map(move |passed| Step::Expire(now + passed)),
            1 => (0..30_u64).prop_map(|blocks| Step::Limit { rank: LIMITED, blocks }),
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        model.step(step);
        model
    }
}

/// Few seeds and few kinds of block, so that chains share prefixes and part ways everywhere.
fn any_chain() -> impl Strategy<Value = Vec<u64>> {
    (0..2_u64, any_locals(0..14)).prop_map(|(seed, locals)| chain(seed, &locals))
}

fn any_locals(blocks: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u64>> {
    // Mostly the same block again and again: long common runs, rare forks.
    vec(prop_oneof![6 => Just(0_u64), 1 => Just(1), 1 => Just(2)], blocks)
}

fn any_tier() -> impl Strategy<Value = Tier> {
    prop_oneof![4 => Just(Tier::Gpu), 2 => Just(Tier::Cpu), 1 => Just(Tier::Storage)]
}

fn any_event(names: Vec<u64>, parents: Vec<u64>) -> BoxedStrategy<Event> {
    let (known, held) = (one_of(names), one_of(parents.clone()));
    let parent = prop_oneof![
        3 => Just(None),
        6 => one_of(parents).prop_map(Some),
        1 => (0..40_u64).prop_map(Some),
    ];
    prop_oneof![
        12 => (parent, 0..2_u64, any_locals(0..10), any::<u8>(), vec(any_name(), 10)).prop_map(stored),
        5 => vec(prop_oneof![6 => known, 1 => 0..40_u64], 0..6).prop_map(|engine_hashes| Event::Removed { engine_hashes }),
        3 => any_neighbours().prop_map(|engine_hashes| Event::Removed { engine_hashes }),
        3 => vec(prop_oneof![4 => held, 1 => any_name()], 0..6).prop_map(moved),
        3 => any_neighbours().prop_map(moved),
        1 => Just(Event::Cleared),
    ]
    .boxed()
}

/// Few enough that tiers call different blocks the same.
fn any_name() -> impl Strategy<Value = u64> {
    prop_oneof![0..40_u64, 0..4_u64]
}

fn one_of(names: Vec<u64>) -> BoxedStrategy<u64> {
    if names.is_empty() { Just(u64::MAX).boxed() } else { select(names).boxed() }
}

/// Names as engines give them, the same for the same blocks; or, one time in four, any: twice, elsewhere, its own
/// parent's.
fn stored((parent, seed, locals, how, any): (Option<u64>, u64, Vec<u64>, u8, Vec<u64>)) -> Event {
    let engine_hashes = match how % 4 {
        0 => any,
        variant => chain(parent.unwrap_or(seed), &locals)
            .iter()
            .map(|hash| hash ^ u64::from(variant == 1))
            .collect(),
    };
    Event::Stored { engine_hashes, parent, seed, locals }
}

/// Names of neighbours, as an engine evicts or offloads them, or in the other direction; one of them perhaps left out.
fn any_neighbours() -> impl Strategy<Value = Vec<u64>> {
    (any_chain(), 0..8_usize, any::<u8>()).prop_map(|(mut names, from, how)| {
        names.drain(..from.min(names.len()));
        for name in &mut names {
            *name ^= u64::from(how & 1);
        }
        if how & 2 > 0 && names.len() > 2 {
            names.remove(names.len() / 2);
        }
        if how & 4 > 0 {
            names.reverse();
        }
        names
    })
}

/// Blocks that an engine tells by name alone.
fn moved(engine_hashes: Vec<u64>) -> Event {
    Event::Stored { engine_hashes, parent: None, seed: 0, locals: Vec::new() }
}

fn chain(seed: u64, locals: &[u64]) -> Vec<u64> {
    let next = |last: &mut u64, local: &u64| {
        *last = link(*last, *local);
        Some(*last)
    };
    locals.iter().scan(seed, next).collect()
}

impl StateMachineTest for Machine {
    type SystemUnderTest = (Tree, Model);
    type Reference = Machine;

    fn init_test(_: &Model) -> (Tree, Model) {
        let mut tree = Tree::new(u64::MAX);
        tree.limit(RankId(LIMITED), Some(LIMIT));
        (tree, limited())
    }

    fn apply((mut tree, mut model): (Tree, Model), _: &Model, step: Step) -> (Tree, Model) {
        assert_eq!(take(&mut tree, &step), model.step(&step), "what became of {step:?}");
        (tree, model)
    }

    fn check_invariants((tree, model): &(Tree, Model), _: &Model) {
        assert_eq!(tree.audit(), Ok(()));
        for chain in &model.chains {
            assert_eq!(matches(tree, chain), model.matches(chain), "holders of {chain:?}");
            assert_eq!(overlaps(tree, chain), model.overlaps(chain), "tiers of {chain:?}");
        }
        for rank in 0..RANKS {
            assert_eq!(tree.named(RankId(rank)), model.named(rank) as u64, "names of {rank}");
        }
        assert_eq!(tree.stats().offloaded, model.offloaded() as u64);
        assert!(tree.stats().blocks >= model.blocks() as u64);
    }

    /// Whatever happened, nothing is left when every rank has removed what it stored and time has passed.
    fn teardown((mut tree, mut model): (Tree, Model), _: Model) {
        tree.expire(Millis::MAX);
        model.step(&Step::Expire(Millis::MAX));
        assert_eq!(
            tree.stats().blocks,
            model.blocks() as u64,
            "only exact claims are left, one by one"
        );
        for (rank, tier) in (0..RANKS).flat_map(|rank| Tier::ALL.map(|tier| (RankId(rank), tier))) {
            let engine_hashes = model.names(rank.0, tier);
            let blocks = engine_hashes.len() as u64;
            let applied = tree.apply_tier(rank, tier, &Event::Removed { engine_hashes });
            assert_eq!(applied, Applied { removed: blocks, ..Applied::default() });
            assert_eq!(tree.audit(), Ok(()));
        }
        tree.limit(RankId(LIMITED), None);
        let left = tree.stats();
        assert_eq!((left.nodes, left.blocks, left.bytes), (0, 0, 0), "something is left");
    }
}

fn limited() -> Model {
    let mut model = Model::default();
    model.step(&Step::Limit { rank: LIMITED, blocks: LIMIT });
    model
}

fn take(tree: &mut Tree, step: &Step) -> Applied {
    match step {
        Step::Note { rank, chain, until } => tree.note_route(RankId(*rank), chain, *until),
        Step::Apply { rank, tier, event } => return tree.apply_tier(RankId(*rank), *tier, event),
        Step::RemoveRanks(ranks) => {
            tree.remove_ranks(&ranks.iter().copied().map(RankId).collect::<Vec<_>>());
        }
        Step::Expire(now) => tree.expire(*now),
        Step::Limit { rank, blocks } => tree.limit(RankId(*rank), Some(*blocks)),
    }
    Applied::default()
}

fn matches(tree: &Tree, chain: &[u64]) -> Vec<(RankId, u32)> {
    let mut out = vec![(RankId(7), 7)];
    tree.matches(chain, &mut out);
    out.sort_unstable();
    out
}

fn overlaps(tree: &Tree, chain: &[u64]) -> Vec<(RankId, Overlap)> {
    let mut out = vec![(RankId(7), Overlap::default())];
    tree.overlaps(chain, &mut out);
    out.sort_unstable_by_key(|(rank, _)| *rank);
    out
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_says_what_the_model_says(sequential 1..60 => Machine);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Routed claims never take the tree above its bound, and what it then says is less, never something else.
    #[test]
    fn a_bound_is_kept(max_bytes in 0..60_000_u64, steps in vec((0..RANKS, any_chain_long(), 0..4_u64), 1..120)) {
        let (mut tree, mut model) = (Tree::new(max_bytes), Model::default());
        for (at, (rank, chain, ttl)) in (0..).zip(steps) {
            for step in [Step::Expire(at), Step::Note { rank, chain: chain.clone(), until: at + 20 * ttl }] {
                model.step(&step);
                take(&mut tree, &step);
            }
            prop_assert_eq!(tree.audit(), Ok(()));
            let stats = tree.stats();
            prop_assert!(stats.bytes <= max_bytes, "{} of {max_bytes} bytes", stats.bytes);
            let held: HashMap<RankId, u32> = model.matches(&chain).into_iter().collect();
            for (rank, blocks) in matches(&tree, &chain) {
                prop_assert!(held.get(&rank).is_some_and(|all| blocks <= *all), "{rank:?} holds {blocks} of {held:?}");
            }
        }
    }

    /// Exact claims are not evicted: at the bound, routed ones go first, then events are refused.
    #[test]
    fn exact_claims_stop_at_the_bound(max_bytes in 0..60_000_u64, steps in vec((0..RANKS, any_chain_long()), 1..120)) {
        let mut tree = Tree::new(max_bytes);
        for (rank, chain) in steps {
            tree.note_route(RankId(rank), &chain, 1);
            let before = tree.stats();
            let event = Event::Stored { engine_hashes: chain.clone(), parent: None, seed: 0, locals: chain };
            let applied = tree.apply(RankId(rank), &event);
            prop_assert_eq!(tree.audit(), Ok(()));
            let after = tree.stats();
            if before.bytes > max_bytes {
                prop_assert_eq!(applied.stored, 0);
                prop_assert!(after.bytes <= before.bytes);
            }
            prop_assert!(after.bytes <= max_bytes + 64 * 1024, "{} of {max_bytes} bytes", after.bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// What a limited rank keeps is what it used last, block by block, however other ranks cut the edges.
    #[test]
    fn a_limited_rank_keeps_what_it_used_last(limit in 0..120_u64, steps in vec((0..RANKS, any_chain_long()), 1..80)) {
        let (mut tree, mut model) = (Tree::new(u64::MAX), Model::default());
        let first = Step::Limit { rank: LIMITED, blocks: limit };
        let notes = (1..).zip(steps).map(|(until, (rank, chain))| Step::Note { rank, chain, until: LATE + until });
        for step in std::iter::once(first).chain(notes) {
            model.step(&step);
            take(&mut tree, &step);
            prop_assert_eq!(tree.audit(), Ok(()));
            prop_assert_eq!(tree.stats().blocks, model.blocks() as u64);
            let Step::Note { chain, .. } = step else { continue };
            prop_assert_eq!(matches(&tree, &chain), model.matches(&chain));
        }
        for chain in &model.chains {
            prop_assert_eq!(matches(&tree, chain), model.matches(chain));
        }
    }

    /// Where routes lapse, those whose memory is not back yet count: less is kept, never more, and nothing else.
    #[test]
    fn a_limit_holds_while_routes_lapse(
        max_bytes in 20_000..80_000_u64,
        limits in vec(prop::option::of(0..60_u64), 1..8),
        steps in vec((0..RANKS, any_chain_long(), 0..4_u64), 1..120),
    ) {
        let (mut tree, mut model) = (Tree::new(max_bytes), Model::default());
        let limits = limits.iter().flat_map(|limit| [limit; 20]).cycle();
        for ((at, limit), (rank, chain, ttl)) in (0..).zip(limits).zip(steps) {
            tree.limit(RankId(LIMITED), *limit);
            for step in [Step::Expire(at), Step::Note { rank, chain: chain.clone(), until: at + 20 * ttl }] {
                model.step(&step);
                take(&mut tree, &step);
            }
            // The audit counts the routed claims.
            prop_assert_eq!(tree.audit(), Ok(()));
            prop_assert!(tree.stats().bytes <= max_bytes);
            let held: HashMap<RankId, u32> = model.matches(&chain).into_iter().collect();
            for (rank, blocks) in matches(&tree, &chain) {
                prop_assert!(held.get(&rank).is_some_and(|all| blocks <= *all), "{rank:?} holds {blocks} of {held:?}");
            }
        }
    }
}

fn any_chain_long() -> impl Strategy<Value = Vec<u64>> {
    (0..2_u64, any_locals(0..80)).prop_map(|(seed, locals)| chain(seed, &locals))
}
