//! Properties of the pure engine, under any order of requests.

use std::collections::HashMap;

use nebula_sim::reply::Reply;
use nebula_sim::timing::Timing;
use nebula_sim::{Emission, Engine, EngineConfig, Finish, Request, SeqId, hash};
use proptest::prelude::*;

const BLOCK: u32 = 4;

fn config(kv_blocks: u32, max_num_seqs: u32, budget: u32) -> EngineConfig {
    EngineConfig {
        block_size: BLOCK,
        kv_blocks,
        max_num_seqs,
        max_num_batched_tokens: budget,
        max_model_len: (kv_blocks - 1) * BLOCK,
        timing: Timing {
            step_base_us: 100.0,
            prefill_us_per_token: 10.0,
            prefill_ns_per_pair: 1.0,
            decode_us_per_seq: 1.0,
            decode_ns_per_resident_token: 1.0,
        },
    }
}

fn request(id: SeqId, prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request { id, prompt, chain_seed: hash::chain_seed(""), max_tokens, finish: Finish::Length }
}

/// Runs until the engine is idle; what each request emitted.
fn drain(engine: &mut Engine, seen: &mut HashMap<SeqId, Vec<Emission>>) {
    let mut out = Vec::new();
    let mut now = engine.now();
    for _ in 0..1_000_000 {
        let ends = engine.step(now, &mut out);
        for emission in out.drain(..) {
            seen.entry(emission.id).or_default().push(emission);
        }
        match ends {
            Some(ends) => now = ends,
            None => return,
        }
    }
    panic!("the engine does not come to rest");
}

fn is_idle(engine: &Engine) -> bool {
    let scheduler = engine.scheduler();
    let cache = scheduler.cache();
    scheduler.running() + scheduler.waiting() == 0
        && cache.free() == cache.capacity()
        && cache.usage() == 0.0
}

#[derive(Clone, Debug)]
enum Op {
    /// A prompt made of a shared beginning and an end of its own.
    Submit {
        shared: u8,
        shared_len: u8,
        own_len: u8,
        max_tokens: u8,
    },
    Abort {
        pick: u8,
    },
    Step,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let submit = (0..3_u8, 0..20_u8, 1..12_u8, 1..16_u8).prop_map(
        |(shared, shared_len, own_len, max_tokens)| Op::Submit {
            shared,
            shared_len,
            own_len,
            max_tokens,
        },
    );
    let abort = any::<u8>().prop_map(|pick| Op::Abort { pick });
    prop::collection::vec(prop_oneof![4 => submit, 1 => abort, 4 => Just(Op::Step)], 1..80)
}

proptest! {
    /// Work is conserved, blocks do not leak, hits never exceed what an earlier request can have stored.
    #[test]
    fn any_order_of_requests(ops in ops(), kv_blocks in 13_u32..40, seqs in 1_u32..6, budget in 1_u32..24) {
        let mut engine = Engine::new(&config(kv_blocks, seqs, budget));
        let mut asked: HashMap<SeqId, (Vec<u32>, u32)> = HashMap::new();
        let mut aborted = Vec::new();
        let mut seen: HashMap<SeqId, Vec<Emission>> = HashMap::new();
        let mut out = Vec::new();
        for (id, op) in (0..).zip(ops) {
            match op {
                Op::Submit { shared, shared_len, own_len, max_tokens } => {
                    let mut prompt = vec![u32::from(shared); usize::from(shared_len)];
                    prompt.extend((0..u32::from(own_len)).map(|i| 100 + u32::try_from(id).unwrap() * 16 + i));
                    asked.insert(id, (prompt.clone(), u32::from(max_tokens)));
                    engine.submit(request(id, prompt, u32::from(max_tokens)), engine.now());
                }
                Op::Abort { pick } => {
                    let id = SeqId::from(pick) % (id + 1);
                    if engine.abort(id, engine.now()) {
                        aborted.push(id);
                    }
                }
                Op::Step => {
                    engine.step(engine.ends().unwrap_or(engine.now()), &mut out);
                    out.drain(..).for_each(|emission| seen.entry(emission.id).or_default().push(emission));
                }
            }
            let cache = engine.scheduler().cache();
            prop_assert!(cache.free() <= cache.capacity());
            prop_assert!(cache.cached() <= cache.capacity() as usize);
            prop_assert!(engine.scheduler().running() <= seqs as usize);
        }
        drain(&mut engine, &mut seen);
        prop_assert!(is_idle(&engine), "blocks or requests are left");
        for (id, (prompt, max_tokens)) in &asked {
            let emissions = seen.get(id).cloned().unwrap_or_default();
            let produced: Vec<u32> = emissions.iter().map(|emission| emission.produced).collect();
            let finished = emissions.last().is_some_and(|emission| emission.finished);
            prop_assert_eq!(&produced, &(1..=u32::try_from(produced.len()).unwrap()).collect::<Vec<_>>());
            prop_assert_eq!(finished, !aborted.contains(id));
            prop_assert!(produced.len() <= *max_tokens as usize);
            prop_assert!(!finished || produced.len() == *max_tokens as usize);
            for emission in emissions {
                let others = asked.iter().filter(|(other, _)| *other != id);
                let most = others.map(|(_, (other, tokens))| storable(prompt, other, *tokens)).max().unwrap_or(0);
                prop_assert_eq!(emission.cached % BLOCK, 0);
                prop_assert!(emission.cached <= most, "hit {} of at most {}", emission.cached, most);
            }
        }
    }

    /// Replies do not depend on what else runs.
    #[test]
    fn preempted_requests_finish(prompts in prop::collection::vec(1_u32..24, 2..8)) {
        // Room for one request of the longest kind, so that running together they must take blocks from each other.
        let mut engine = Engine::new(&config(12, 8, 64));
        for (id, len) in (0..).zip(&prompts) {
            let tokens = (0..*len).map(|i| u32::try_from(id).unwrap() * 100 + i).collect();
            engine.submit(request(id, tokens, 20), 0);
        }
        let mut seen = HashMap::new();
        drain(&mut engine, &mut seen);
        for id in 0..prompts.len() as SeqId {
            prop_assert_eq!(seen[&id].len(), 20);
        }
        prop_assert!(is_idle(&engine));
    }
}

/// Tokens of `prompt` in full blocks that a request for `other` may have left behind; never the prompt's last token.
fn storable(prompt: &[u32], other: &[u32], tokens: u32) -> u32 {
    let reply = Reply::to(other);
    let theirs = other.iter().copied().chain((0..tokens).map(|i| reply.token(i)));
    let common = prompt.iter().zip(theirs).take_while(|(ours, theirs)| **ours == *theirs).count();
    let common = u32::try_from(common.min(prompt.len() - 1)).expect("a short prompt");
    common - common % BLOCK
}

#[test]
fn running_out_of_blocks_preempts_and_all_finish() {
    let mut engine = Engine::new(&config(12, 8, 64));
    for id in 0..4 {
        engine.submit(request(id, vec![u32::try_from(id).unwrap(); 8], 20), 0);
    }
    let mut seen = HashMap::new();
    drain(&mut engine, &mut seen);
    assert!(engine.stats().preemptions > 0);
    assert!((0..4).all(|id| seen[&id].len() == 20));
    // A preempted request asks the cache once: as in vLLM, its return does not count.
    assert_eq!(engine.stats().cache_queries, 4 * 8);
}

#[test]
fn a_long_prompt_is_computed_in_chunks_while_others_decode() {
    let mut engine = Engine::new(&config(200, 8, 16));
    let mut out = Vec::new();
    engine.submit(request(1, vec![1; 4], 50), 0);
    let first = engine.step(0, &mut out).unwrap();
    let second = engine.step(first, &mut out).unwrap();
    engine.submit(request(2, (0..60).collect(), 1), first);
    out.clear();
    // The decoding request takes one token of each step's budget, the prompt 15: four steps.
    let mut now = second;
    for step in 0..5 {
        now = engine.step(now, &mut out).unwrap();
        assert!(out.iter().any(|emission| emission.id == 1), "step {step}");
        assert_eq!(out.iter().any(|emission| emission.id == 2), step == 4, "step {step}");
        out.clear();
    }
}

#[test]
fn time_follows_the_model_and_does_not_drift() {
    let mut engine = Engine::new(&config(64, 8, 64));
    let mut out = Vec::new();
    engine.submit(request(1, vec![9; 10], 3), 1_000);
    // base 100 us, 10 tokens of 10 us, and 50 pairs of 1 ns; from the time of asking.
    assert_eq!(engine.step(1_000, &mut out), Some(1_000 + 200_050));
    assert_eq!(engine.step(150_000, &mut out), Some(201_050), "the step has not ended");
    assert!(out.is_empty());
    // The caller is late; the next step starts when the last one ended. It reads the KV of 10 tokens.
    assert_eq!(engine.step(260_000, &mut out), Some(201_050 + 101_010));
    assert_eq!(out.len(), 1);
    engine.set_slowdown(3.0);
    assert_eq!(engine.step(302_060, &mut out), Some(302_060 + 3 * 101_011));
    assert_eq!(engine.step(605_093, &mut out), None);
    assert!(out[2].finished);
    assert_eq!(engine.stats().ttft.count(), 1);
    assert!((engine.stats().ttft.sum() - 200.05e-6).abs() < 1e-12);
}

#[test]
fn a_conversation_hits_all_full_blocks_of_its_past() {
    let mut engine = Engine::new(&config(256, 8, 64));
    let mut seen = HashMap::new();
    let mut prompt: Vec<u32> = (0..11).collect();
    let mut stored = 0;
    for turn in 0..5 {
        engine.submit(request(turn, prompt.clone(), 9), engine.now());
        drain(&mut engine, &mut seen);
        assert_eq!(seen[&turn][0].cached, stored, "turn {turn}");
        let reply = Reply::to(&prompt);
        prompt.extend((0..9).map(|i| reply.token(i)));
        // The last token of a reply has no KV: nobody asked for the one after it.
        stored = u32::try_from(prompt.len() - 1).unwrap() / BLOCK * BLOCK;
        prompt.extend((0..6).map(|i| 1000 + i));
    }
}

#[test]
fn salts_and_resets_separate() {
    let mut engine = Engine::new(&config(64, 8, 64));
    let mut seen = HashMap::new();
    let salted = |id, salt| Request {
        chain_seed: hash::chain_seed(salt),
        ..request(id, (0..12).collect(), 1)
    };
    engine.submit(salted(1, "a"), 0);
    assert!(engine.step(0, &mut Vec::new()).is_some());
    assert!(!engine.reset_cache(), "blocks are in use");
    drain(&mut engine, &mut seen);
    for (id, salt, cached) in [(2, "b", 0), (3, "a", 8)] {
        engine.submit(salted(id, salt), engine.now());
        drain(&mut engine, &mut seen);
        assert_eq!(seen[&id][0].cached, cached);
    }
    assert!(engine.reset_cache());
    engine.submit(salted(4, "a"), engine.now());
    drain(&mut engine, &mut seen);
    assert_eq!(seen[&4][0].cached, 0);
}

/// The requests of a captured run (prompt tokens, reply tokens), whose engine then counted 384 hit tokens: the repeated
/// prompt and the extended one each found six blocks of 32; a salt, another prompt and a reset found none.
#[test]
fn hits_are_those_of_a_real_engine() {
    let mut engine = Engine::new(&EngineConfig { block_size: 32, ..config(1024, 8, 512) });
    let mut seen = HashMap::new();
    let chat: Vec<u32> = (5000..5222).collect();
    let steps: [(Vec<u32>, u32, &str); 6] = [
        ((0..201).collect(), 8, ""),
        ((0..201).collect(), 8, ""),
        ((0..332).collect(), 40, ""),
        (chat, 8, ""),
        ((0..163).collect(), 2, "s1"),
        ((0..201).collect(), 2, ""),
    ];
    for (id, (prompt, tokens, salt)) in (0..).zip(steps) {
        if id == 5 {
            assert!(engine.reset_cache());
        }
        let chain_seed = hash::chain_seed(salt);
        engine.submit(Request { chain_seed, ..request(id, prompt, tokens) }, engine.now());
        drain(&mut engine, &mut seen);
    }
    let cached: Vec<u32> = (0..6).map(|id| seen[&id][0].cached).collect();
    assert_eq!(cached, [0, 192, 192, 0, 0, 0]);
    assert_eq!((engine.stats().cache_queries, engine.stats().cache_hits), (1320, 384));
}
