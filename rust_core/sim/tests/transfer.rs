//! Engines that share KV: rules by example, and what holds under any order of requests.

use std::collections::{HashMap, HashSet};

use nebula_sim::cache::CacheEvent;
use nebula_sim::reply::Reply;
use nebula_sim::timing::{Nanos, Timing};
use nebula_sim::{Emission, Engine, EngineConfig, Finish, Request, SeqId, Transfer, hash};
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
            prefill_ns_per_pair: 0.0,
            decode_us_per_seq: 1.0,
            decode_ns_per_resident_token: 0.0,
        },
    }
}

fn request(id: SeqId, prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request { id, prompt, chain_seed: hash::chain_seed(""), max_tokens, finish: Finish::Length }
}

/// Runs until nothing happens any more, by itself or otherwise.
fn drain(engine: &mut Engine) -> Vec<(Nanos, Emission)> {
    let mut all = Vec::new();
    let mut out = Vec::new();
    let mut now = engine.now();
    for _ in 0..1_000_000 {
        let ends = engine.step(now, &mut out);
        all.extend(out.drain(..).map(|emission| (engine.now(), emission)));
        match ends.or_else(|| engine.wakes()) {
            Some(next) => now = next,
            None => return all,
        }
    }
    panic!("the engine does not come to rest");
}

#[test]
fn a_prompt_from_elsewhere_takes_its_way_and_one_token_of_work() {
    let mut engine = Engine::new(&config(64, 8, 64));
    engine.record_events();
    let receive = Transfer::Receive { us_per_token: 7.0 };
    engine.submit_transfer(request(1, (0..18).collect(), 3), receive, 1_000);
    assert_eq!(engine.step(1_000, &mut Vec::new()), None, "nothing is computed yet");
    assert_eq!(engine.wakes(), Some(1_000 + 18 * 7_000));
    let scheduler = engine.scheduler();
    assert_eq!((scheduler.waiting(), scheduler.fetching(), scheduler.running()), (1, (1, 0), 0));
    assert_eq!(scheduler.cache().capacity() - scheduler.cache().free(), 5, "all of it has a place");
    assert!(engine.take_events().is_empty(), "nothing can be found before it is there");

    let tokens = drain(&mut engine);
    // The step computes the last token of the prompt.
    assert_eq!(tokens[0].0, 1_000 + 18 * 7_000 + 100_000 + 10_000);
    assert_eq!(
        (tokens.len(), tokens[2].1.finished, tokens[0].1.cached, tokens[0].1.external),
        (3, true, 0, 18)
    );
    let stats = engine.stats();
    assert_eq!((stats.cache_queries, stats.cache_hits), (18, 0));
    assert_eq!((stats.external_queries, stats.external_hits), (18, 18));
    assert_eq!((stats.prompt_tokens, stats.prompt_tokens_external), (18, 18));
    assert!((stats.transfer.sum() - 126e-6).abs() < 1e-12);
    let stored: usize = engine
        .take_events()
        .iter()
        .map(|event| match event {
            CacheEvent::Stored { hashes, .. } => hashes.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(stored, 5, "four blocks of the prompt and one that the reply filled up");

    // What is here already does not travel, but for the last token.
    engine.submit_transfer(request(2, (0..16).collect(), 1), receive, engine.now());
    let tokens = drain(&mut engine);
    assert_eq!((tokens[0].1.cached, tokens[0].1.external), (12, 4));
}

#[test]
fn requests_on_their_way_stand_in_nobodys_way() {
    let mut engine = Engine::new(&config(64, 1, 64));
    let receive = Transfer::Receive { us_per_token: 1_000.0 };
    engine.submit_transfer(request(1, (0..16).collect(), 2), receive, 0);
    engine.submit(request(2, (100..116).collect(), 4), 0);
    let order: Vec<SeqId> = drain(&mut engine).iter().map(|(_, emission)| emission.id).collect();
    assert_eq!(order, [2, 2, 2, 2, 1, 1]);
}

#[test]
fn blocks_are_kept_until_released_or_the_lease_is_over() {
    let mut engine = Engine::new(&config(64, 8, 64));
    let hold = Transfer::Hold { lease: 1_000_000 };
    for id in 1..=3 {
        let own = u32::try_from(id).unwrap() * 100;
        engine.submit_transfer(request(id, (own..own + 9).collect(), 1), hold, 0);
    }
    let mut out = Vec::new();
    let ends = engine.step(0, &mut out).expect("a step");
    assert_eq!(engine.held(1), None, "it is not over yet");
    assert_eq!(engine.step(ends, &mut out), None);
    assert_eq!(out.len(), 3);
    let used =
        |engine: &Engine| engine.scheduler().cache().capacity() - engine.scheduler().cache().free();
    assert_eq!((used(&engine), engine.held(1).map(<[_]>::len)), (9, Some(3)));

    assert!(engine.release(1) && !engine.release(1));
    assert_eq!((used(&engine), engine.held(1)), (6, None));
    assert!(engine.renew(2, 5_000_000, ends));
    assert_eq!(engine.wakes(), Some(ends + 1_000_000));
    assert_eq!(engine.step(ends + 1_000_000, &mut out), None);
    assert_eq!((used(&engine), engine.held(3), engine.stats().expired), (3, None, 1));
    assert!(!engine.renew(3, 1, ends), "it is too late");
    assert!(engine.expire(2));
    assert_eq!((used(&engine), engine.wakes(), engine.stats().expired), (0, None, 2));

    // Who leaves before the end leaves nothing.
    engine.submit_transfer(request(4, (0..40).collect(), 9), hold, engine.now());
    engine.step(engine.now(), &mut out);
    assert!(engine.abort(4, engine.now()));
    assert_eq!((used(&engine), engine.held(4)), (0, None));
}

#[test]
fn a_request_waits_for_the_lease_that_takes_its_room() {
    let mut engine = Engine::new(&config(1 + 8, 8, 64));
    engine.submit_transfer(
        request(1, (0..28).collect(), 1),
        Transfer::Hold { lease: 1_000_000_000 },
        0,
    );
    let held = drain_until_idle(&mut engine);
    engine.submit(request(2, (100..120).collect(), 8), held);
    assert_eq!(engine.step(held, &mut Vec::new()), None, "there is no room");
    let tokens = drain(&mut engine);
    assert!(tokens[0].0 > 1_000_000_000 && tokens.len() == 8);
}

fn drain_until_idle(engine: &mut Engine) -> Nanos {
    let mut now = engine.now();
    while let Some(ends) = engine.step(now, &mut Vec::new()) {
        now = ends;
    }
    now
}

#[derive(Clone, Debug)]
enum Op {
    /// A prompt made of a shared beginning and an end of its own.
    Submit {
        shared: u8,
        shared_len: u8,
        own_len: u8,
        max_tokens: u8,
        transfer: Transfer,
    },
    Abort {
        pick: u8,
    },
    Release {
        pick: u8,
    },
    Step,
    Wait {
        us: u16,
    },
}

fn transfers() -> impl Strategy<Value = Transfer> {
    prop_oneof![
        3 => Just(Transfer::None),
        2 => (0..200_u32).prop_map(|us| Transfer::Receive { us_per_token: f64::from(us) }),
        2 => (0..5_000_000_u64).prop_map(|lease| Transfer::Hold { lease }),
    ]
}

fn ops(aborts: u32) -> impl Strategy<Value = Vec<Op>> {
    let submit = (0..3_u8, 0..20_u8, 1..12_u8, 1..16_u8, transfers()).prop_map(
        |(shared, shared_len, own_len, max_tokens, transfer)| Op::Submit {
            shared,
            shared_len,
            own_len,
            max_tokens,
            transfer,
        },
    );
    let op = prop_oneof![
        4 => submit,
        aborts => any::<u8>().prop_map(|pick| Op::Abort { pick }),
        1 => any::<u8>().prop_map(|pick| Op::Release { pick }),
        4 => Just(Op::Step),
        1 => any::<u16>().prop_map(|us| Op::Wait { us }),
    ];
    prop::collection::vec(op, 1..80)
}

/// An engine under any requests, beside what its events say that it holds.
struct Trial {
    engine: Engine,
    now: Nanos,
    asked: HashMap<SeqId, (Vec<u32>, u32)>,
    seen: HashMap<SeqId, Vec<Emission>>,
    aborted: HashSet<SeqId>,
    /// How many blocks hold a content, by the events alone.
    told: HashMap<u64, u32>,
}

impl Trial {
    fn new(config: &EngineConfig) -> Trial {
        let mut engine = Engine::new(config);
        engine.record_events();
        Trial {
            engine,
            now: 0,
            asked: HashMap::new(),
            seen: HashMap::new(),
            aborted: HashSet::new(),
            told: HashMap::new(),
        }
    }

    fn run(&mut self, id: SeqId, op: &Op) {
        match *op {
            Op::Submit { shared, shared_len, own_len, max_tokens, transfer } => {
                let mut prompt = vec![u32::from(shared); usize::from(shared_len)];
                let own = 100 + u32::try_from(id).expect("few requests") * 16;
                prompt.extend(own..own + u32::from(own_len));
                self.asked.insert(id, (prompt.clone(), u32::from(max_tokens)));
                let request = request(id, prompt, u32::from(max_tokens));
                self.engine.submit_transfer(request, transfer, self.now);
            }
            Op::Abort { pick } => {
                let id = SeqId::from(pick) % (id + 1);
                if self.engine.abort(id, self.now) {
                    self.aborted.insert(id);
                }
            }
            Op::Release { pick } => drop(self.engine.release(SeqId::from(pick) % (id + 1))),
            Op::Step => self.step(self.engine.ends().unwrap_or(self.now)),
            Op::Wait { us } => self.step(self.now + u64::from(us) * 1_000),
        }
    }

    fn step(&mut self, at: Nanos) {
        self.now = self.now.max(at);
        let mut out = Vec::new();
        self.engine.step(self.now, &mut out);
        for emission in out {
            self.seen.entry(emission.id).or_default().push(emission);
        }
        for event in self.engine.take_events() {
            match event {
                CacheEvent::Stored { hashes, tokens, .. } => {
                    assert_eq!(tokens.len(), hashes.len() * BLOCK as usize);
                    for hash in hashes {
                        *self.told.entry(hash).or_default() += 1;
                    }
                }
                CacheEvent::Removed { hash } => {
                    let count = self.told.get_mut(&hash).expect("only what was stored is removed");
                    *count -= 1;
                    if *count == 0 {
                        self.told.remove(&hash);
                    }
                }
                CacheEvent::Cleared => self.told.clear(),
            }
        }
    }

    /// Runs until nothing happens any more.
    fn rest(&mut self) {
        for _ in 0..1_000_000 {
            self.step(self.now);
            match self.engine.ends().or_else(|| self.engine.wakes()) {
                Some(next) => self.now = self.now.max(next),
                None => return,
            }
        }
        panic!("the engine does not come to rest");
    }

    /// The events and the cache agree, on what is there and on every prefix of every prompt.
    fn events_agree(&self) -> bool {
        let cache = self.engine.scheduler().cache();
        let told: u32 = self.told.values().sum();
        told as usize == cache.cached()
            && self.asked.values().all(|(prompt, tokens)| {
                let chain = chain(prompt, *tokens);
                let known = chain.iter().take_while(|hash| self.told.contains_key(hash)).count();
                cache.find(&chain).count() == known
            })
    }
}

/// The blocks that a prompt and its reply can fill.
fn chain(prompt: &[u32], tokens: u32) -> Vec<u64> {
    let reply = Reply::to(prompt);
    let all: Vec<u32> =
        prompt.iter().copied().chain((0..tokens).map(|index| reply.token(index))).collect();
    let blocks = all.chunks_exact(BLOCK as usize);
    blocks
        .scan(hash::chain_seed(""), |parent, block| {
            *parent = hash::block_hash(*parent, block);
            Some(*parent)
        })
        .collect()
}

proptest! {
    /// No block leaks, every request ends, and whoever listens to the events knows what a request will find.
    #[test]
    fn any_order_of_requests(ops in ops(1), kv_blocks in 13_u32..40, seqs in 1_u32..6, budget in 1_u32..24) {
        let mut trial = Trial::new(&config(kv_blocks, seqs, budget));
        for (id, op) in (0..).zip(ops) {
            trial.run(id, &op);
            let scheduler = trial.engine.scheduler();
            prop_assert!(scheduler.cache().free() <= scheduler.cache().capacity());
            prop_assert!(scheduler.running() <= seqs as usize);
        }
        trial.rest();
        prop_assert!(trial.events_agree());
        let scheduler = trial.engine.scheduler();
        prop_assert_eq!(scheduler.running() + scheduler.waiting(), 0);
        prop_assert_eq!(scheduler.cache().free(), scheduler.cache().capacity(), "blocks are lost");
        for (id, (prompt, max_tokens)) in &trial.asked {
            let emissions = trial.seen.get(id).cloned().unwrap_or_default();
            let produced: Vec<u32> = emissions.iter().map(|emission| emission.produced).collect();
            prop_assert_eq!(&produced, &(1..=u32::try_from(produced.len()).unwrap()).collect::<Vec<_>>());
            prop_assert!(trial.aborted.contains(id) || produced.len() == *max_tokens as usize);
            for emission in emissions {
                let given = emission.cached + emission.external;
                prop_assert!(given <= u32::try_from(prompt.len()).unwrap());
                prop_assert_eq!(emission.cached % BLOCK, 0);
            }
        }
    }

    /// Every token is computed once, but for what was found, what came from elsewhere, and what a preemption lost.
    #[test]
    fn work_is_conserved(ops in ops(0), kv_blocks in 13_u32..40, seqs in 1_u32..6, budget in 1_u32..24) {
        let mut trial = Trial::new(&config(kv_blocks, seqs, budget));
        for (id, op) in (0..).zip(ops) {
            trial.run(id, &op);
            prop_assert!(trial.events_agree());
        }
        trial.rest();
        let stats = trial.engine.stats();
        let needed: u32 = trial.seen.values().map(|emissions| {
            let last = emissions.last().expect("a token");
            let prompt = u32::try_from(trial.asked[&last.id].0.len()).unwrap();
            // The last token of a reply is not computed. The last one of a prompt is, wherever its KV came from.
            let given = last.cached + last.external.saturating_sub(1);
            prompt - given + last.produced - 1
        }).sum();
        let again = stats.lost_tokens - stats.regained_tokens;
        let computed = u64::from(needed) + again;
        prop_assert!((stats.step_tokens.sum() - computed as f64).abs() < 0.5, "{} and not {computed}", stats.step_tokens.sum());
        prop_assert_eq!(stats.generation_tokens, trial.seen.values().map(|all| all.len() as u64).sum::<u64>());
    }
}
