//! An engine, a subscriber, and between them a network that tests command.

use std::collections::VecDeque;
use std::sync::Arc;

use nebula_route::{Millis, RankId};
use proptest::prelude::*;

use super::super::{Limits, Message, Sequence};
use crate::kv_events::cache::Cache;
use crate::kv_events::tests::engine::{DEPTH, Engine, Index, PROMPTS};
use crate::kv_events::{Encoding, Sink};

pub(super) const RANK: RankId = RankId(4);
pub(super) const LIMITS: Limits = Limits {
    held_batches: 6,
    held_bytes: 1_000,
    replay_timeout_ms: 100,
    replay_tries: 3,
    replay_backoff_ms: 10,
    silence_ms: 1_000,
};

/// What is on the wire of the subscription.
#[derive(Debug)]
enum Wire {
    Batch(Message),
    Connected,
}

/// A request for a replay on its way, or the answer; `None` ends it.
#[derive(Debug)]
enum Asked {
    No,
    Request(u64),
    Answer(VecDeque<Option<Message>>),
}

pub(super) struct Model {
    pub(super) engine: Engine,
    pub(super) index: Arc<Index>,
    cache: Cache,
    pub(super) sequence: Sequence,
    live: VecDeque<Wire>,
    asked: Asked,
    pub(super) now: Millis,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Store(u32, usize),
    Evict(u32),
    Clear,
    /// The process goes; what it sent last arrives, or does not.
    Restart(bool),
    /// The connection goes and comes back; what was on it is lost.
    Reconnect,
    /// What was sent last is lost, comes twice, comes before what was sent before it.
    Drop,
    Double,
    Swap,
    Deliver(usize),
    /// A request is answered, in part or whole, or lost.
    Answer(usize),
    LoseRequest,
    Wait(Millis),
}

// === impl Model ===

impl Model {
    pub(super) fn new(replay: bool, remembers: usize, encoding: Encoding) -> Model {
        let index = Arc::new(Index::new());
        let mut engine = Engine::new(remembers);
        engine.encoding = encoding;
        Model {
            engine,
            cache: Cache::new(RANK, Arc::clone(&index) as Arc<dyn Sink>),
            index,
            sequence: Sequence::new(LIMITS, replay, 0),
            live: VecDeque::new(),
            asked: Asked::No,
            now: 0,
        }
    }

    pub(super) fn run(&mut self, op: &Op) {
        match *op {
            Op::Store(prompt, depth) => self.send(|engine| engine.store(prompt, depth)),
            Op::Evict(prompt) => self.send(|engine| engine.evict(prompt)),
            Op::Clear => self.send(|engine| Some(engine.clear())),
            Op::Restart(arrives) => {
                self.engine.restart();
                self.reconnect(arrives);
            }
            Op::Reconnect => self.reconnect(false),
            // That a connection came about is not lost on the way.
            Op::Drop => {
                if let Some(Wire::Batch(_)) = self.live.back() {
                    self.live.pop_back();
                }
            }
            Op::Double => {
                if let Some(Wire::Batch(last)) = self.live.back() {
                    self.live.push_back(Wire::Batch(last.clone()));
                }
            }
            Op::Swap => {
                if let [.., Wire::Batch(_), Wire::Batch(_)] = self.live.make_contiguous() {
                    let last = self.live.len() - 1;
                    self.live.swap(last - 1, last);
                }
            }
            Op::Deliver(most) => (0..most).for_each(|_| self.deliver()),
            Op::Answer(most) => self.answer(most),
            Op::LoseRequest => self.asked = Asked::No,
            Op::Wait(ms) => self.now += ms,
        }
        self.tick();
    }

    fn send(&mut self, act: impl FnOnce(&mut Engine) -> Option<Message>) {
        self.live.extend(act(&mut self.engine).map(Wire::Batch));
    }

    fn reconnect(&mut self, arrives: bool) {
        if !arrives {
            self.live.clear();
        }
        self.live.push_back(Wire::Connected);
        self.asked = Asked::No;
    }

    fn deliver(&mut self) {
        match self.live.pop_front() {
            Some(Wire::Batch(message)) => self.sequence.live(message, self.now, &mut self.cache),
            Some(Wire::Connected) => self.sequence.connected(self.now, &mut self.cache),
            None => {}
        }
        self.check();
    }

    fn answer(&mut self, most: usize) {
        if let Asked::Request(from) = self.asked {
            let batches = self.engine.replay(from).into_iter().map(Some);
            self.asked = Asked::Answer(batches.chain([None]).collect());
        }
        for _ in 0..most {
            let Asked::Answer(answer) = &mut self.asked else { return };
            match answer.pop_front() {
                Some(Some(message)) => {
                    self.sequence.replayed(&message, self.now, &mut self.cache);
                }
                Some(None) => self.sequence.replay_ended(self.now, &mut self.cache),
                None => self.asked = Asked::No,
            }
            self.check();
        }
    }

    fn tick(&mut self) {
        let from = self.sequence.tick(self.now, &mut self.cache);
        if let Some(from) = from {
            self.asked = Asked::Request(from);
        }
        self.check();
    }

    fn check(&mut self) {
        if !self.sequence.asked() {
            self.asked = Asked::No;
        }
        let (batches, bytes) = self.sequence.held();
        assert!(batches <= LIMITS.held_batches && bytes <= LIMITS.held_bytes);
        assert_eq!(self.cache.tally.decode_errors + self.cache.tally.skipped, 0);
    }

    /// All that is under way arrives, one more batch too, and then nothing more is sent for a while.
    pub(super) fn quiet(&mut self) {
        let depth = self.engine.depth(0);
        self.send(|engine| match depth {
            0 => engine.store(0, 1),
            _ => Some(engine.clear()),
        });
        for _ in 0..200 {
            while !self.live.is_empty() {
                self.deliver();
            }
            self.tick();
            self.answer(usize::MAX);
            self.now += 50;
        }
        assert_eq!(self.sequence.held(), (0, 0));
    }

    pub(super) fn believed(&self) -> Vec<(usize, usize)> {
        let depths = |prompt| (self.index.depth(RANK, prompt), self.engine.depth(prompt));
        (0..PROMPTS).map(depths).collect()
    }
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let depth = 1..=DEPTH;
    prop_oneof![
        8 => (0..PROMPTS, depth).prop_map(|(prompt, depth)| Op::Store(prompt, depth)),
        5 => (0..PROMPTS).prop_map(Op::Evict),
        1 => Just(Op::Clear),
        1 => any::<bool>().prop_map(Op::Restart),
        1 => Just(Op::Reconnect),
        2 => Just(Op::Drop),
        1 => Just(Op::Double),
        1 => Just(Op::Swap),
        6 => (1_usize..8).prop_map(Op::Deliver),
        4 => (1_usize..8).prop_map(Op::Answer),
        1 => Just(Op::LoseRequest),
        2 => (1_u64..400).prop_map(Op::Wait),
    ]
}

pub(super) fn encoding() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Array), Just(Encoding::Map)]
}
