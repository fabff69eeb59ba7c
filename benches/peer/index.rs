//! The index beside the one of Dynamo's router, on the same trace: events, lookups, both at once, memory.
//!
//! `cargo bench --manifest-path benches/peer/Cargo.toml`; `-- --test` runs all of it on little, for a few seconds;
//! `-- --trace FILE --requests N --rounds N` for more than the part of the trace that is kept here.

mod measure;
mod peers;
mod trace;

use std::hint::black_box;
use std::io::{BufRead as _, BufWriter, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::measure::{Clock, Spread, median, rss};
use crate::peers::{Dynamo, Index, Nebula};
use crate::trace::{Prompt, Trace, tokens};

/// Blocks of the longest prompt that is looked up: 8 k tokens.
const PROMPT_BLOCKS: usize = 512;
const LOOKUPS: usize = 20_000;
/// As many events as 64 busy engines send: 20,000 a second, a few at a time.
const BURST: usize = 20;
const BURST_EVERY: Duration = Duration::from_millis(1);
/// Changes in five minutes of the trace.
const FIVE_MINUTES: usize = 40_000;

struct Options {
    trace: PathBuf,
    requests: usize,
    rounds: usize,
}

/// One index, ready to be measured on the trace.
struct Subject<I: Index> {
    events: Vec<I::Event>,
    /// Events before the cut: what an index holds when it is asked.
    first: usize,
    /// The prompts behind the cut.
    prompts: Vec<Vec<u32>>,
    keys: Vec<I::Key>,
    blocks: usize,
}

#[derive(Default)]
struct Round {
    events: f64,
    events_wall: f64,
    blocks: f64,
    lookups: f64,
    from_tokens: f64,
    /// Of lookups alone, beside bursts of events, beside events without a pause.
    spreads: [Spread; 3],
    /// Blocks that all lookups found, so that it shows if the two indexes disagree.
    found: u64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--memory-of"
    {
        let bytes = if name == Nebula::NAME { resident::<Nebula>() } else { resident::<Dynamo>() };
        println!("{bytes}");
        return;
    }
    let options = Options::parse(&arguments);
    let trace = Trace::read(&options.trace, options.requests);
    println!(
        "{} requests, {} events of {} blocks, {} ranks, {} (block, rank) pairs held at the end",
        trace.prompts.len(),
        trace.changes.len(),
        trace.blocks(),
        trace::RANKS,
        trace.held
    );
    let (ours, theirs) = (Subject::<Nebula>::new(&trace), Subject::<Dynamo>::new(&trace));
    let mut rounds = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        rounds.0.push(ours.round());
        rounds.1.push(theirs.round());
    }
    let memory = [Nebula::NAME, Dynamo::NAME].map(|name| memory_of(name, &trace));
    print(&rounds.0, &rounds.1, memory);
}

// === what is measured ===

impl<I: Index> Subject<I> {
    fn new(trace: &Trace) -> Subject<I> {
        let (first_prompt, first) = trace.half();
        let prompt = |prompt: &Prompt| {
            let contents = prompt.contents.iter().take(PROMPT_BLOCKS);
            contents.flat_map(|content| tokens(*content)).collect::<Vec<u32>>()
        };
        let prompts: Vec<Vec<u32>> = trace.prompts[first_prompt..].iter().map(prompt).collect();
        Subject {
            events: trace.changes.iter().map(I::event).collect(),
            first,
            keys: prompts.iter().map(|tokens| I::key(tokens)).collect(),
            prompts,
            blocks: trace.blocks(),
        }
    }

    fn round(&self) -> Round {
        let mut round = Round::default();
        self.events(&mut round);
        self.lookups(&mut round);
        round.spreads[1] = self.both(Some(BURST_EVERY));
        round.spreads[2] = self.both(None);
        round
    }

    /// All events into an empty index, until the last one is in it.
    fn events(&self, round: &mut Round) {
        let index = I::new();
        let events = self.events.clone();
        let clock = Clock::start();
        for event in events {
            index.apply(event);
        }
        index.drain();
        let (wall, cpu) = clock.stop();
        round.events = self.events.len() as f64 / cpu;
        round.events_wall = self.events.len() as f64 / wall;
        round.blocks = self.blocks as f64 / cpu;
    }

    /// The prompts behind the cut in an index of all events before it, which rests.
    fn lookups(&self, round: &mut Round) {
        let index = self.filled();
        round.found = self.keys.iter().map(|key| index.find(key)).sum();
        let repeats = LOOKUPS.div_ceil(self.keys.len());
        let lookups = repeats * self.keys.len();
        let clock = Clock::start();
        for key in (0..repeats).flat_map(|_| &self.keys) {
            black_box(index.find(key));
        }
        round.lookups = lookups as f64 / clock.stop().1;
        let clock = Clock::start();
        for tokens in &self.prompts {
            black_box(index.find(&I::key(tokens)));
        }
        round.from_tokens = self.prompts.len() as f64 / clock.stop().1;
        round.spreads[0] = self.tail(&index, |done| done == lookups);
    }

    /// Lookups without a pause while a writer applies the events behind the cut, in bursts or without a pause too.
    fn both(&self, every: Option<Duration>) -> Spread {
        let index = self.filled();
        let rest = self.events[self.first..].to_vec();
        let drained = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for (at, event) in rest.into_iter().enumerate() {
                    if at % BURST == 0
                        && let Some(every) = every
                    {
                        std::thread::sleep(every);
                    }
                    index.apply(event);
                }
                index.drain();
                drained.store(true, Ordering::Release);
            });
            self.tail(&index, |_| drained.load(Ordering::Acquire))
        })
    }

    fn tail(&self, index: &I, done: impl Fn(usize) -> bool) -> Spread {
        let mut taken = Vec::new();
        while !done(taken.len()) {
            // A stride that shares no factor with the number of prompts visits them all, in an order of its own.
            let key = &self.keys[taken.len() * 7_919 % self.keys.len()];
            let start = Instant::now();
            black_box(index.find(key));
            taken.push(start.elapsed());
        }
        Spread::of(taken)
    }

    fn filled(&self) -> I {
        let index = I::new();
        for event in &self.events[..self.first] {
            index.apply(event.clone());
        }
        index.drain();
        index
    }
}

/// Bytes per (block, rank): what a process grows by while it reads changes and does nothing else but apply them.
fn memory_of(name: &str, trace: &Trace) -> f64 {
    let this = std::env::current_exe().expect("a process has a file");
    let mut child = Command::new(this)
        .args(["--memory-of", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this file can be run");
    let mut lines = BufWriter::new(child.stdin.take().expect("it is piped"));
    for change in &trace.changes {
        serde_json::to_writer(&mut lines, change).expect("the child reads");
        lines.write_all(b"\n").expect("the child reads");
    }
    drop(lines);
    let output = child.wait_with_output().expect("the child ends");
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().parse::<f64>().expect("the child says a number") / trace.held as f64
}

fn resident<I: Index>() -> u64 {
    let index = I::new();
    let mut lines = std::io::stdin().lock();
    let mut line = String::with_capacity(1 << 16);
    let before = rss();
    let mut changes = 0;
    while lines.read_line(&mut line).expect("the parent writes") > 0 {
        index.apply(I::event(&serde_json::from_str(&line).expect("a change")));
        index.drain();
        line.clear();
        changes += 1;
        if changes % FIVE_MINUTES == 0 {
            index.sweep();
        }
    }
    rss() - before
}

// === how it is told ===

fn print(ours: &[Round], theirs: &[Round], memory: [f64; 2]) {
    println!("| | {} | {} | ratio |", Nebula::NAME, Dynamo::NAME);
    println!("|---|---|---|---|");
    let row = |what: &str, [ours, theirs]: [f64; 2]| {
        println!("| {what} | {ours:.2} | {theirs:.2} | {:.2} |", ours / theirs);
    };
    let of = |value: &dyn Fn(&Round) -> f64| {
        [ours, theirs].map(|rounds| median(rounds.iter().map(value)))
    };
    row("events, thousand/s per core", of(&|round| round.events / 1e3));
    row("events, thousand/s of wall time", of(&|round| round.events_wall / 1e3));
    row("blocks in them, million/s per core", of(&|round| round.blocks / 1e6));
    row("lookups, thousand/s per core", of(&|round| round.lookups / 1e3));
    row("lookups from token ids, thousand/s per core", of(&|round| round.from_tokens / 1e3));
    for (at, when) in
        ["alone", "beside 20,000 events/s", "beside events without pause"].iter().enumerate()
    {
        row(&format!("lookup {when}, p50 µs"), of(&|round| round.spreads[at].p50));
        row(&format!("lookup {when}, p99 µs"), of(&|round| round.spreads[at].p99));
        row(&format!("lookup {when}, p99.9 µs"), of(&|round| round.spreads[at].p999));
    }
    row("blocks found, thousand", of(&|round| round.found as f64 / 1e3));
    row("bytes per (block, rank), RSS", memory);
}

// === impl Options ===

impl Options {
    fn parse(arguments: &[String]) -> Options {
        let head = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/conversation_head.jsonl");
        let mut options = Options { trace: head.into(), requests: usize::MAX, rounds: 5 };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().unwrap_or_else(|| panic!("{argument} needs a value"));
            match argument.as_str() {
                "--test" => (options.requests, options.rounds) = (200, 1),
                "--trace" => options.trace = value().into(),
                "--requests" => options.requests = number(argument, value()),
                "--rounds" => options.rounds = number(argument, value()).max(1),
                "--bench" => {} // from cargo
                _ => {
                    panic!("{argument} is unknown; there are --test, --trace, --requests, --rounds")
                }
            }
        }
        options
    }
}

fn number(argument: &str, value: &str) -> usize {
    value.parse().unwrap_or_else(|_| panic!("{argument} {value}: a whole number is needed"))
}
