//! What a decision costs: the key of a prompt, the overlap with every rank, events, memory.
//!
//! `cargo bench -p nebula-route --bench route`. First the tails and the memory, which are printed as they are; then
//! criterion's means. A filter (`-- matches`) narrows the second part only; `-- --test` runs all of it on little.
#![expect(clippy::print_stdout, reason = "it prints what it measured")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers, chosen here"
)]

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use nebula_route::block::link;
use nebula_route::{Chain, Event, KeyKind, RankId, Scope, SharedTree};

const RANKS: u32 = 64;
const BLOCKS: u64 = 512;
/// Blocks that every prompt starts with, and blocks that one turn of a conversation adds.
const SYSTEM: u64 = 64;
const TURN: u64 = 32;
const NEVER: u64 = u64::MAX;
/// Name, pause before each event, blocks of a prompt.
const WRITERS: [(&str, Duration, u64); 3] = [
    ("  beside a paced writer", Duration::from_micros(50), TURN),
    ("  beside a writer without pause", Duration::ZERO, TURN),
    ("  beside one with long prompts", Duration::ZERO, BLOCKS),
];

criterion_group!(groups, keys, matches, events);

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    memory(if test { 1 } else { 100 });
    tails(if test { 1_000 } else { 50_000 });
    groups();
    Criterion::default().configure_from_args().final_summary();
}

// === what is measured ===

fn keys(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("key");
    for bytes in [4_000, 400_000] {
        let text: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
        let scope = Scope {
            model: "meta-llama/Llama-3.1-8B-Instruct",
            cache_salt: None,
            block: 64,
            kind: KeyKind::Text,
        };
        group.throughput(Throughput::Bytes(bytes));
        group.bench_with_input(BenchmarkId::new("text", bytes), &text, |bench, text| {
            bench.iter(|| Chain::from_text(&scope, black_box(text), 4.0));
        });
        let tokens: Vec<u32> = (0..bytes as u32 / 4).collect();
        let scope = Scope { block: 16, kind: KeyKind::Tokens, ..scope };
        group.bench_with_input(
            BenchmarkId::new("tokens", tokens.len()),
            &tokens,
            |bench, tokens| {
                bench.iter(|| Chain::from_tokens(&scope, black_box(tokens)));
            },
        );
    }
    group.finish();
}

fn matches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matches");
    for (name, shape) in SHAPES {
        let (tree, prompts) = shape();
        let (mut out, mut at) = (Vec::new(), 0);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                at = (at + 1) % prompts.len();
                tree.matches(black_box(&prompts[at]), &mut out);
                out.len()
            });
        });
    }
    group.finish();
}

/// One engine's life: a turn is stored in three events and later removed, tail first.
fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("events");
    let (tree, _) = conversations();
    let mut turn = 1_000_000;
    group.throughput(Throughput::Elements(2 * TURN));
    group.bench_function("blocks stored and removed", |bench| {
        bench.iter(|| {
            turn += 1;
            let rank = RankId(turn as u32 % RANKS);
            let [prefill, step, last, removed] = life(turn, TURN);
            for event in [prefill, step, last, removed] {
                black_box(tree.apply(rank, &event));
            }
        });
    });
    group.finish();
}

/// The slowest of `lookups`: alone, beside a writer with as many events as 64 busy engines send, and beside two without
/// a pause.
fn tails(lookups: usize) {
    println!("matches, {RANKS} ranks, {BLOCKS} blocks; microseconds");
    println!("{:36}{:>8}{:>8}{:>8}{:>8}", "", "p50", "p99", "p99.9", "max");
    for (name, shape) in SHAPES {
        let (tree, prompts) = shape();
        tail(name, lookups, &tree, &prompts);
        for (writer, pause, blocks) in WRITERS {
            let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
            let start = now();
            std::thread::scope(|scope| {
                scope.spawn(|| write(&tree, pause, blocks, &stop, &written));
                while written.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
                tail(writer, lookups, &tree, &prompts);
                stop.store(true, Ordering::Relaxed);
            });
            let rate = written.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
            println!("{:36}{rate:>8.0} events/s", "    of");
        }
    }
}

fn tail(name: &str, lookups: usize, tree: &SharedTree, prompts: &[Vec<u64>]) {
    let mut out = Vec::new();
    let mut once = |at: usize| {
        let start = now();
        tree.matches(black_box(&prompts[at * 7919 % prompts.len()]), &mut out);
        black_box(out.len());
        start.elapsed()
    };
    for at in 0..lookups / 100 {
        once(at);
    }
    let mut taken: Vec<Duration> = (0..lookups).map(once).collect();
    taken.sort_unstable();
    let micros =
        |share: f64| taken[((taken.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1e3;
    let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(micros);
    println!("{name:36}{p50:>8.2}{p99:>8.2}{p999:>8.2}{max:>8.1}");
}

fn write(tree: &SharedTree, pause: Duration, blocks: u64, stop: &AtomicBool, written: &AtomicU64) {
    let mut turn = 2_000_000;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        for event in life(turn, blocks) {
            let before = now();
            while before.elapsed() < pause {
                std::hint::spin_loop();
            }
            tree.apply(RankId(turn as u32 % RANKS), &event);
            written.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Bytes per (block, rank), as the tree counts them and as the system does.
fn memory(conversations: u64) {
    println!("memory, {RANKS} ranks, conversations of {BLOCKS} blocks; bytes per (block, rank)");
    println!("{:32}{:>8}{:>8}{:>12}{:>10}", "", "counted", "RSS", "pairs", "nodes");
    for (name, exact) in [("routed", false), ("exact, turn by turn", true)] {
        let before = rss();
        let tree = SharedTree::new(u64::MAX);
        for rank in 0..RANKS {
            for conversation in 0..conversations {
                let user = 1_000 * u64::from(rank) + conversation;
                for turn in 1..=(BLOCKS - SYSTEM) / TURN {
                    converse(&tree, RankId(rank), user, turn, exact);
                }
            }
        }
        let (after, stats) = (rss(), tree.stats());
        let per_pair = |bytes: u64| bytes as f64 / stats.blocks as f64;
        let (counted, resident) = (per_pair(stats.bytes), per_pair(after.saturating_sub(before)));
        println!("{name:32}{counted:>8.1}{resident:>8.1}{:>12}{:>10}", stats.blocks, stats.nodes);
        drop(tree);
    }
}

// === trees and prompts to measure on ===

type Shape = fn() -> (SharedTree, Vec<Vec<u64>>);

const SHAPES: [(&str, Shape); 4] = [
    ("one chain", one_chain),
    ("turns", turns),
    ("conversations", conversations),
    ("a fork at every block", forks),
];

/// Every rank holds the same chain.
fn one_chain() -> (SharedTree, Vec<Vec<u64>>) {
    let tree = SharedTree::new(u64::MAX);
    let prompt = chain(0, 0..BLOCKS);
    for rank in 0..RANKS {
        tree.note_route(RankId(rank), &prompt, NEVER);
    }
    (tree, vec![prompt])
}

/// Every rank holds the same chain, from which other chains part after every turn.
fn turns() -> (SharedTree, Vec<Vec<u64>>) {
    parted(TURN as usize)
}

/// The same with a node per block: as bad as it gets.
fn forks() -> (SharedTree, Vec<Vec<u64>>) {
    parted(1)
}

fn parted(every: usize) -> (SharedTree, Vec<Vec<u64>>) {
    let (tree, prompts) = one_chain();
    for at in (every..BLOCKS as usize).step_by(every) {
        let branch = chain(prompts[0][at - 1], [u64::MAX]);
        let prompt = [&prompts[0][..at], &branch].concat();
        tree.note_route(RankId(0), &prompt, NEVER);
    }
    (tree, prompts)
}

/// A start that all ranks hold, and 200 conversations on each: more than a cache holds.
fn conversations() -> (SharedTree, Vec<Vec<u64>>) {
    let tree = SharedTree::new(u64::MAX);
    let mut prompts = Vec::new();
    for user in 0..200 * u64::from(RANKS) {
        let prompt = prompt(user, (BLOCKS - SYSTEM) / TURN);
        for (rank, share) in [(user, BLOCKS), (user * 7 + 1, BLOCKS / 2)] {
            tree.note_route(RankId(rank as u32 % RANKS), &prompt[..share as usize], NEVER);
        }
        prompts.push(prompt);
    }
    (tree, prompts)
}

/// The chain of a conversation after some turns.
fn prompt(user: u64, turns: u64) -> Vec<u64> {
    let mut prompt = chain(0, 0..SYSTEM);
    let seed = prompt[prompt.len() - 1];
    prompt.extend(chain(seed, (0..turns * TURN).map(|at| (user + 1) << 32 | at)));
    prompt
}

/// One more turn: a route, or what an engine says of it, which is one event for the prompt and one per decoded block.
fn converse(tree: &SharedTree, rank: RankId, user: u64, turn: u64, exact: bool) {
    let prompt = prompt(user, turn);
    if !exact {
        tree.note_route(rank, &prompt, NEVER);
        return;
    }
    let (known, decoded) = (prompt.len() - TURN as usize, 4);
    let known = if turn == 1 { 0 } else { known };
    store(tree, rank, &prompt, known..prompt.len() - decoded, user);
    for at in prompt.len() - decoded..prompt.len() {
        store(tree, rank, &prompt, at..at + 1, user);
    }
}

fn store(
    tree: &SharedTree,
    rank: RankId,
    prompt: &[u64],
    blocks: std::ops::Range<usize>,
    user: u64,
) {
    let local = |at: usize| {
        if (at as u64) < SYSTEM { at as u64 } else { (user + 1) << 32 | (at as u64 - SYSTEM) }
    };
    let event = Event::Stored {
        engine_hashes: prompt[blocks.clone()].to_vec(),
        parent: blocks.start.checked_sub(1).map(|at| prompt[at]),
        seed: 0,
        locals: blocks.map(local).collect(),
    };
    tree.apply(rank, &event);
}

/// A turn of its own: its first blocks, two that were decoded, and all of it removed, tail first.
fn life(turn: u64, blocks: u64) -> [Event; 4] {
    let locals: Vec<u64> = (0..blocks).map(|at| turn << 32 | at).collect();
    let names = chain(0, locals.iter().copied());
    let part = |from: usize, to: usize| Event::Stored {
        engine_hashes: names[from..to].to_vec(),
        parent: from.checked_sub(1).map(|at| names[at]),
        seed: 0,
        locals: locals[from..to].to_vec(),
    };
    let len = names.len();
    let removed = Event::Removed { engine_hashes: names.iter().rev().copied().collect() };
    [part(0, len - 2), part(len - 2, len - 1), part(len - 1, len), removed]
}

fn chain(seed: u64, locals: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let next = |last: &mut u64, local| {
        *last = link(*last, local);
        Some(*last)
    };
    locals.into_iter().scan(seed, next).collect()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark has a clock")]
fn now() -> Instant {
    Instant::now()
}

/// Resident bytes of this process; zero where the system does not tell.
fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
