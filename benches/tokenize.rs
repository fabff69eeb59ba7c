//! What a prompt's ids cost: a conversation turn by turn with the cache of segments, and a prompt that nobody has seen.
//!
//! `cargo bench -p nebula-wire --bench tokenize`. First the ratios, which are printed as they are; then criterion's
//! means. The tokenizer is byte-level BPE with Qwen's pattern, trained here on this repository's own text.
#![expect(clippy::print_stdout, reason = "it prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a bench may stop")]

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group};
use nebula_wire::tokenize::Tokenizer;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, ModelWrapper, NormalizerWrapper, SplitDelimiterBehavior};

const VOCABULARY: usize = 8_192;
const TURNS: usize = 32;
/// Bytes of one message, so that 32 turns of two are about 32 k tokens.
const MESSAGE_BYTES: usize = 1_750;
const CACHE_BYTES: usize = 64 << 20;
const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

criterion_group!(groups, turns, cold);

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    ratios(if test { 1 } else { 15 });
    groups();
    Criterion::default().configure_from_args().final_summary();
}

// === what is measured ===

/// Medians of many conversations, no two of which share a message.
fn ratios(rounds: u64) {
    let (tokenizer, text) = (tokenizer(), corpus());
    let mut times: [Vec<Duration>; 4] = Default::default();
    for salt in 0..rounds {
        let prompts = conversation(&text, salt);
        times[0]
            .push(time(|| each(&prompts, |prompt| tokenizer.encode_whole(prompt, false).unwrap())));
        times[1].push(time(|| each(&prompts, |prompt| tokenizer.encode(prompt, false).unwrap())));
        let last = prompts.last().unwrap();
        let other = last.replace("<|im_start|>", "<|im_start|>.");
        times[2].push(time(|| tokenizer.encode_whole(&other, false).unwrap()));
        times[3].push(time(|| tokenizer.encode(&other, false).unwrap()));
        assert_eq!(
            tokenizer.encode(last, false).unwrap(),
            tokenizer.encode_whole(last, false).unwrap()
        );
    }
    let [whole, segments, own, new] = times.map(median);
    let tokens = tokenizer.encode(conversation(&text, 0).last().unwrap(), false).unwrap().len();
    println!("a conversation of {TURNS} turns, {tokens} tokens at the end, all turns together:");
    println!(
        "  whole at each turn {whole:.2?}, segments {segments:.2?}: {:.3}",
        ratio(segments, whole)
    );
    println!("a prompt of as many tokens that nobody has seen:");
    println!("  whole {own:.2?}, segments {new:.2?}: {:.3}", ratio(new, own));
    println!("  {:?}", tokenizer.segment_stats());
}

/// The last turn, of which one question and one answer are new.
fn turns(criterion: &mut Criterion) {
    let (tokenizer, text) = (tokenizer(), corpus());
    let mut group = criterion.benchmark_group("last turn");
    let mut salt = 1_000;
    group.bench_function("whole", |bench| {
        let prompts = conversation(&text, 0);
        bench.iter(|| tokenizer.encode_whole(black_box(prompts.last().unwrap()), false).unwrap());
    });
    group.bench_function("segments", |bench| {
        let next = || {
            salt += 1;
            let prompts = conversation(&text, salt);
            each(&prompts[..TURNS - 1], |prompt| tokenizer.encode(prompt, false).unwrap());
            prompts
        };
        bench.iter_batched(
            next,
            |prompts| tokenizer.encode(black_box(prompts.last().unwrap()), false).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("known", |bench| {
        let prompts = conversation(&text, 0);
        bench.iter(|| tokenizer.encode(black_box(prompts.last().unwrap()), false).unwrap());
    });
    group.finish();
}

fn cold(criterion: &mut Criterion) {
    let text = corpus();
    let tokenizer = Tokenizer::new(byte_bpe(), 0).unwrap();
    let prompts = conversation(&text, 0);
    let prompt = prompts.last().unwrap();
    let mut group = criterion.benchmark_group("cold");
    group.bench_function("whole", |bench| {
        bench.iter(|| tokenizer.encode_whole(black_box(prompt), false).unwrap());
    });
    group.bench_function("segments", |bench| {
        bench.iter(|| tokenizer.encode(black_box(prompt), false).unwrap());
    });
    group.bench_function("one segment", |bench| {
        let plain = prompt.replace("<|im_", "<im_");
        bench.iter(|| tokenizer.encode(black_box(&plain), false).unwrap());
    });
    group.finish();
}

// === what it is measured with ===

fn tokenizer() -> Tokenizer {
    Tokenizer::new(byte_bpe(), CACHE_BYTES).unwrap()
}

fn byte_bpe() -> tokenizers::Tokenizer {
    let split =
        Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false)
            .unwrap();
    let bytes = ByteLevel::new(false, true, false);
    let splitters = vec![PreTokenizerWrapper::from(split), PreTokenizerWrapper::from(bytes)];
    let mut tokenizer = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    tokenizer.with_normalizer(Some(NormalizerWrapper::from(NFC))).unwrap();
    tokenizer.with_pre_tokenizer(Some(Sequence::new(splitters)));
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(VOCABULARY)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), [corpus()].into_iter()).unwrap();
    let special = |content: &&str| AddedToken::from(*content, true);
    let tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    tokenizer.add_special_tokens(tokens.iter().map(special)).unwrap();
    tokenizer
}

/// The pages and the Rust of this repository, in the order of their names.
fn corpus() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = ["docs", "rust_core/route/src", "rust_core/sim/src", "rust_core/wire/src"];
    let mut paths: Vec<_> = folders
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "md" || kind == "rs"))
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The prompt of every turn, in `ChatML`. Conversations of two salts share no message.
fn conversation(text: &str, salt: u64) -> Vec<String> {
    let mut rest = text;
    let mut message = || {
        let end = (MESSAGE_BYTES..rest.len()).find(|&at| rest.is_char_boundary(at)).unwrap();
        let (head, tail) = rest.split_at(end);
        rest = tail;
        format!("{salt} {head}")
    };
    let mut prompt = String::new();
    (0..TURNS)
        .map(|_| {
            prompt.extend([
                "<|im_start|>user\n",
                &message(),
                "<|im_end|>\n<|im_start|>assistant\n",
            ]);
            let asked = prompt.clone();
            prompt.extend([&message(), "<|im_end|>\n"]);
            asked
        })
        .collect()
}

fn each<R>(prompts: &[String], encode: impl Fn(&str) -> R) {
    for prompt in prompts {
        black_box(encode(black_box(prompt)));
    }
}

fn time<R>(work: impl FnOnce() -> R) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
