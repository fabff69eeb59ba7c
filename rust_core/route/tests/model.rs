//! The tree against a naive model of it, under any interleaving of routes, events, departures and time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use nebula_route::block::link;
use nebula_route::tree::Applied;
use nebula_route::{Event, Millis, RankId, Tree};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

const RANKS: u32 = 3;

/// What the tree must say: per rank, sets of chain hashes.
#[derive(Clone, Debug, Default)]
struct Model {
    now: Millis,
    ranks: BTreeMap<u32, Held>,
    /// Every chain that was ever named, to ask for.
    chains: BTreeSet<Vec<u64>>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    names: HashMap<u64, u64>,
    exact: HashSet<u64>,
    routed: HashMap<u64, Millis>,
}

#[derive(Clone, Debug)]
enum Step {
    Note { rank: u32, chain: Vec<u64>, until: Millis },
    Apply { rank: u32, event: Event },
    RemoveRank(u32),
    Expire(Millis),
}

// === impl Model ===

impl Model {
    fn step(&mut self, step: &Step) -> Applied {
        match step {
            Step::Note { rank, chain, until } => {
                self.chains.insert(chain.clone());
                if *until > self.now {
                    let held = self.ranks.entry(*rank).or_default();
                    held.routed.extend(chain.iter().map(|hash| (*hash, *until)));
                }
            }
            Step::Apply { rank, event } => return self.apply(*rank, event),
            Step::RemoveRank(rank) => {
                self.ranks.remove(rank);
            }
            Step::Expire(now) => {
                self.now = self.now.max(*now);
                for held in self.ranks.values_mut() {
                    held.routed.retain(|_, until| *until > self.now);
                }
            }
        }
        Applied::default()
    }

    fn apply(&mut self, rank: u32, event: &Event) -> Applied {
        let mut applied = Applied::default();
        let held = self.ranks.entry(rank).or_default();
        match event {
            Event::Stored { engine_hashes, parent, seed, locals } => {
                let before = |held: &Held| {
                    parent.map_or(Some(*seed), |parent| held.names.get(&parent).copied())
                };
                let blocks = engine_hashes.len().min(locals.len());
                let Some(first) = before(held) else {
                    return Applied { orphans: blocks as u64, ..applied };
                };
                let chain = chain(first, &locals[..blocks]);
                for (name, hash) in engine_hashes.iter().zip(&chain) {
                    if held.names.get(name).is_some_and(|block| block != hash) {
                        applied.removed += u64::from(held.forget(*name));
                    }
                }
                if before(held).is_none() {
                    return Applied { orphans: blocks as u64, ..applied };
                }
                for (name, hash) in engine_hashes.iter().zip(&chain) {
                    if held.exact.contains(hash) {
                        continue;
                    }
                    if held.names.contains_key(name) {
                        break;
                    }
                    held.names.insert(*name, *hash);
                    held.exact.insert(*hash);
                    applied.stored += 1;
                }
                if parent.is_none() {
                    self.chains.insert(chain);
                }
            }
            Event::Removed { engine_hashes } => {
                for name in engine_hashes {
                    let known = held.forget(*name);
                    applied.removed += u64::from(known);
                    applied.unknown_removed += u64::from(!known);
                }
            }
            Event::Cleared => {
                applied.removed = held.names.len() as u64;
                *held = Held::default();
            }
        }
        applied
    }

    fn matches(&self, chain: &[u64]) -> Vec<(RankId, u32)> {
        let whole = u32::try_from(chain.len()).unwrap_or(u32::MAX);
        let blocks = |held: &Held| {
            (0..)
                .zip(chain)
                .find(|(_, hash)| !held.holds(**hash))
                .map_or(whole, |(blocks, _)| blocks)
        };
        let all = self.ranks.iter().map(|(rank, held)| (RankId(*rank), blocks(held)));
        all.filter(|(_, blocks)| *blocks > 0).collect()
    }

    fn blocks(&self) -> usize {
        let all =
            |held: &Held| held.exact.iter().chain(held.routed.keys()).collect::<HashSet<_>>().len();
        self.ranks.values().map(all).sum()
    }

    fn names(&self, rank: u32) -> Vec<u64> {
        let mut names: Vec<u64> =
            self.ranks.get(&rank).into_iter().flat_map(|held| held.names.keys().copied()).collect();
        names.sort_unstable();
        names
    }
}

impl Held {
    fn holds(&self, hash: u64) -> bool {
        self.exact.contains(&hash) || self.routed.contains_key(&hash)
    }

    fn forget(&mut self, name: u64) -> bool {
        let Some(hash) = self.names.remove(&name) else { return false };
        self.exact.remove(&hash);
        self.routed.remove(&hash);
        true
    }
}

// === the machine ===

struct Machine;

impl ReferenceStateMachine for Machine {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::default()).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Step> {
        let now = model.now;
        let model = model.clone();
        prop_oneof![
            4 => (0..RANKS, any_chain(), 0..20_u64)
                .prop_map(move |(rank, chain, ttl)| Step::Note { rank, chain, until: now + ttl }),
            8 => (0..RANKS).prop_flat_map(move |rank| {
                any_event(model.names(rank)).prop_map(move |event| Step::Apply { rank, event })
            }),
            1 => (0..RANKS).prop_map(Step::RemoveRank),
            2 => (0..8_u64).prop_map(move |passed| Step::Expire(now + passed)),
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

fn any_event(names: Vec<u64>) -> BoxedStrategy<Event> {
    let known = if names.is_empty() { Just(u64::MAX).boxed() } else { select(names).boxed() };
    let parent = prop_oneof![
        3 => Just(None),
        6 => known.clone().prop_map(Some),
        1 => (0..40_u64).prop_map(Some),
    ];
    prop_oneof![
        12 => (parent, 0..2_u64, any_locals(0..10), any::<u8>(), vec(0..40_u64, 10)).prop_map(stored),
        5 => vec(prop_oneof![6 => known, 1 => 0..40_u64], 0..6).prop_map(|engine_hashes| Event::Removed { engine_hashes }),
        3 => (any_chain(), 0..8_usize, any::<u8>()).prop_map(evicted),
        1 => Just(Event::Cleared),
    ]
    .boxed()
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

/// Neighbours, as an engine evicts them, or in the other direction; one of them perhaps left out.
fn evicted((mut names, from, how): (Vec<u64>, usize, u8)) -> Event {
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
    Event::Removed { engine_hashes: names }
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
        (Tree::new(u64::MAX), Model::default())
    }

    fn apply((mut tree, mut model): (Tree, Model), _: &Model, step: Step) -> (Tree, Model) {
        assert_eq!(take(&mut tree, &step), model.step(&step), "what became of {step:?}");
        (tree, model)
    }

    fn check_invariants((tree, model): &(Tree, Model), _: &Model) {
        assert_eq!(tree.audit(), Ok(()));
        for chain in &model.chains {
            assert_eq!(matches(tree, chain), model.matches(chain), "holders of {chain:?}");
        }
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
        for rank in 0..RANKS {
            let engine_hashes = model.names(rank);
            let blocks = engine_hashes.len() as u64;
            let applied = tree.apply(RankId(rank), &Event::Removed { engine_hashes });
            assert_eq!(applied, Applied { removed: blocks, ..Applied::default() });
            assert_eq!(tree.audit(), Ok(()));
        }
        let left = tree.stats();
        assert_eq!((left.nodes, left.blocks, left.bytes), (0, 0, 0), "something is left");
    }
}

fn take(tree: &mut Tree, step: &Step) -> Applied {
    match step {
        Step::Note { rank, chain, until } => tree.note_route(RankId(*rank), chain, *until),
        Step::Apply { rank, event } => return tree.apply(RankId(*rank), event),
        Step::RemoveRank(rank) => tree.remove_rank(RankId(*rank)),
        Step::Expire(now) => tree.expire(*now),
    }
    Applied::default()
}

fn matches(tree: &Tree, chain: &[u64]) -> Vec<(RankId, u32)> {
    let mut out = vec![(RankId(7), 7)];
    tree.matches(chain, &mut out);
    out.sort_unstable();
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

fn any_chain_long() -> impl Strategy<Value = Vec<u64>> {
    (0..2_u64, any_locals(0..80)).prop_map(|(seed, locals)| chain(seed, &locals))
}
