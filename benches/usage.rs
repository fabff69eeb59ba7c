//! The filter that takes the usage event out of a stream, per chunk of a streamed reply: of one event, of half of one,
//! and of what coalesced while the gateway was busy. And a whole reply of 256 tokens, its last events with it.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nebula_wire::usage::Strip;

const EVENT: &str = r#"data: {"id":"chatcmpl-964194ce68312f49","object":"chat.completion.chunk","created":1795187282,"model":"tiny","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#;
const USAGE: &str = r#"data: {"id":"chatcmpl-964194ce68312f49","object":"chat.completion.chunk","created":1795187282,"model":"tiny","choices":[],"usage":{"prompt_tokens":125,"total_tokens":381,"completion_tokens":256,"prompt_tokens_details":{"cached_tokens":96}},"system_fingerprint":"vllm-0.32.0-2f16b6a7"}"#;
const TOKENS: usize = 256;

fn chunks(criterion: &mut Criterion) {
    let event = format!("{EVENT}\n\n");
    let mut group = criterion.benchmark_group("strip");
    for (name, chunk) in [("event", event.clone()), ("40_events", event.repeat(40))] {
        let chunk = Bytes::from(chunk);
        group.throughput(Throughput::Bytes(chunk.len() as u64));
        group.bench_function(name, |bencher| {
            let mut strip = Strip::new();
            bencher.iter(|| strip.push(black_box(chunk.clone())));
        });
    }
    let (head, tail) = event.split_at(event.len() / 2);
    let halves = [Bytes::from(head.to_owned()), Bytes::from(tail.to_owned())];
    group.throughput(Throughput::Bytes(event.len() as u64));
    group.bench_function("two_halves", |bencher| {
        let mut strip = Strip::new();
        bencher.iter(|| halves.each_ref().map(|half| strip.push(black_box(half.clone()))));
    });
    let last = EVENT.replace(r#""finish_reason":null"#, r#""finish_reason":"stop""#);
    let mut reply = vec![Bytes::from(event); TOKENS];
    reply.extend([last.as_str(), USAGE, "data: [DONE]"].map(|text| format!("{text}\n\n").into()));
    group.throughput(Throughput::Elements(reply.len() as u64));
    group.bench_function("reply_of_256", |bencher| {
        bencher.iter_batched_ref(
            Strip::new,
            |strip| {
                for chunk in &reply {
                    black_box(strip.push(chunk.clone()));
                }
                strip.usage()
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, chunks);
criterion_main!(benches);
