//! When to ask what.
//!
//! One task owns all of it: sessions that are still to begin, users who think, requests that wait for their turn, and
//! the requests in flight. What is meant to be sent next stands ready as bytes before its time has come.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nebula_sim::timing::Nanos;
use nebula_sim::workload::{Turn, Workload};
use tokio::task::JoinSet;

use crate::alarm::Alarm;
use crate::arrivals::arrivals;
use crate::ask::{Asker, Call, Clock, Outcome};
use crate::config::Config;
use crate::error::Error;
use crate::reply::{Answer, Expect};
use crate::tally::{Ended, Tally};
use crate::transcript::{Form, Transcript};

/// Most bytes of first prompts that stand ready.
const READY_BYTES: usize = 64 * 1024 * 1024;

/// What others may see of a run.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: AtomicU64,
    pub(crate) completed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) inflight: AtomicU64,
}

/// A run, from its first request to its last reply.
pub(crate) struct Player {
    asker: Arc<Asker>,
    clock: Clock,
    workload: Arc<Workload>,
    form: Form,
    rules: Rules,
    counters: Arc<Counters>,
    pub(crate) tally: Tally,
    pub(crate) peak_inflight: usize,
    /// Turns that are never asked because one before them failed.
    pub(crate) skipped: u64,
    /// When sessions begin; none where users decide.
    arrivals: Option<Vec<Nanos>>,
    /// The next session that nobody has begun.
    next_session: usize,
    /// First turns that stand ready, from `next_session` on.
    ready: VecDeque<Transcript>,
    ready_bytes: usize,
    /// Turns that are to be asked at a known time.
    thinking: BinaryHeap<Reverse<Due>>,
    /// Turns whose time has come and that wait for a place in flight.
    waiting: VecDeque<Due>,
    inflight: JoinSet<(Due, Outcome)>,
}

/// What holds for every request.
#[derive(Clone, Copy, Debug)]
struct Rules {
    expect: Expect,
    ignore_eos: bool,
    most_inflight: usize,
}

/// A turn, and when it is meant to be asked.
struct Due {
    at: Nanos,
    session: usize,
    turn: usize,
    transcript: Transcript,
}

// === impl Player ===

impl Player {
    pub(crate) fn new(
        config: &Config,
        asker: Arc<Asker>,
        workload: Arc<Workload>,
        counters: Arc<Counters>,
    ) -> Result<Player, Error> {
        let expect =
            Expect { stream: config.stream, tokens: None, checksum: config.checksum, text: false };
        let rules =
            Rules { expect, ignore_eos: config.ignore_eos, most_inflight: config.most_inflight() };
        let mut player = Player {
            form: Form::new(config),
            rules,
            counters,
            tally: Tally::new()?,
            peak_inflight: 0,
            skipped: 0,
            arrivals: arrivals(&workload, config.pace, config.seed),
            next_session: 0,
            ready: VecDeque::new(),
            ready_bytes: 0,
            thinking: BinaryHeap::new(),
            waiting: VecDeque::new(),
            inflight: JoinSet::new(),
            clock: Clock::start(),
            asker,
            workload,
        };
        while player.may_prepare() {
            player.prepare();
        }
        Ok(player)
    }

    /// Plays the workload to its end, or until it is dropped; time counts from the start of `clock`.
    ///
    /// # Cancel safety
    /// What was measured until then stays; requests in flight break off.
    ///
    /// # Errors
    /// The system refuses a timer.
    pub(crate) async fn play(&mut self, clock: Clock) -> Result<(), Error> {
        let mut alarm = Alarm::new()?;
        self.clock = clock;
        if self.arrivals.is_none() {
            (0..self.rules.most_inflight).for_each(|_| self.begin_next(0));
        }
        loop {
            self.send_what_is_due();
            let due = self.next_due();
            if due.is_none() && self.inflight.is_empty() {
                return Ok(());
            }
            let due = due.map(|due| self.clock.at(due));
            tokio::select! {
                biased;
                Some(ended) = self.inflight.join_next() => {
                    self.take(ended);
                    while let Some(ended) = self.inflight.try_join_next() {
                        self.take(ended);
                    }
                }
                woken = alarm.at(due.unwrap_or_else(std::time::Instant::now)), if due.is_some() => woken?,
                () = tokio::task::yield_now(), if self.may_prepare() => self.prepare(),
            }
        }
    }

    fn send_what_is_due(&mut self) {
        let now = self.clock.now();
        while let Some(at) = self.next_due().filter(|&at| at <= now) {
            self.tally.late(now - at);
            let due = match self.thinking.peek() {
                Some(Reverse(due)) if due.at == at => self.thinking.pop().map(|Reverse(due)| due),
                _ => self.open(at),
            };
            self.waiting.extend(due);
        }
        while self.inflight.len() < self.rules.most_inflight
            && let Some(due) = self.waiting.pop_front()
        {
            self.send(due);
        }
    }

    /// When the next turn is to be asked of those whose time is known.
    fn next_due(&self) -> Option<Nanos> {
        let thinking = self.thinking.peek().map(|Reverse(due)| due.at);
        let arrival = self.arrivals.as_ref().and_then(|at| at.get(self.next_session)).copied();
        thinking.into_iter().chain(arrival).min()
    }

    /// The first turn of the next session.
    fn open(&mut self, at: Nanos) -> Option<Due> {
        if self.ready.is_empty() {
            self.prepare();
        }
        let transcript = self.ready.pop_front()?;
        self.ready_bytes -= transcript.json().len();
        let session = self.next_session;
        self.next_session += 1;
        Some(Due { at, session, turn: 0, transcript })
    }

    /// A user begins the next session, if there is one.
    fn begin_next(&mut self, at: Nanos) {
        let due = self.open(at);
        self.thinking.extend(due.map(Reverse));
    }

    fn may_prepare(&self) -> bool {
        self.ready_bytes < READY_BYTES
            && self.next_session + self.ready.len() < self.workload.sessions.len()
    }

    /// Writes the first turn of one more session.
    fn prepare(&mut self) {
        let next = self.next_session + self.ready.len();
        let Some(turn) = self.workload.sessions.get(next).and_then(|session| session.turns.first())
        else {
            return;
        };
        let mut transcript = Transcript::default();
        transcript.ask(turn, self.form.endpoint());
        self.ready_bytes += transcript.json().len();
        self.ready.push_back(transcript);
    }

    fn send(&mut self, due: Due) {
        let session = &self.workload.sessions[due.session];
        let Turn { output_tokens, .. } = session.turns[due.turn];
        let expect = Expect {
            tokens: self.rules.ignore_eos.then_some(output_tokens),
            text: due.turn + 1 < session.turns.len(),
            ..self.rules.expect
        };
        let body = self.form.body(&due.transcript, output_tokens);
        let call = Call { body, key: session.key, expect };
        let (asker, clock) = (Arc::clone(&self.asker), self.clock);
        self.inflight.spawn(async move { (due, asker.ask(clock, call).await) });
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        self.peak_inflight = self.peak_inflight.max(self.inflight.len());
        self.counters.inflight.store(self.inflight.len() as u64, Ordering::Relaxed);
    }

    fn take(&mut self, ended: Result<(Due, Outcome), tokio::task::JoinError>) {
        self.counters.inflight.store(self.inflight.len() as u64, Ordering::Relaxed);
        // A task fails only when it panics, which the runtime has told of already.
        let Ok((due, outcome)) = ended else { return };
        let at = outcome.ended;
        let numbers = (narrow(due.session), narrow(due.turn));
        let measured =
            Ended { session: numbers.0, turn: numbers.1, intended: due.at, outcome: &outcome };
        let over = match &outcome.result {
            Ok(answer) => {
                self.tally.good(&measured, answer);
                self.counters.completed.fetch_add(1, Ordering::Relaxed);
                self.go_on(due, answer, at)
            }
            Err(failure) => {
                self.tally.bad(failure.clone().without(due.transcript.json()));
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                let left = self.workload.sessions[due.session].turns.len() - due.turn - 1;
                self.skipped += left as u64;
                self.counters.skipped.store(self.skipped, Ordering::Relaxed);
                true
            }
        };
        if over && self.arrivals.is_none() {
            self.begin_next(at);
        }
    }

    /// Lets the user think about the next turn; whether there is none.
    fn go_on(&mut self, mut due: Due, answer: &Answer, now: Nanos) -> bool {
        due.turn += 1;
        let Some(turn) = self.workload.sessions[due.session].turns.get(due.turn) else {
            return true;
        };
        due.at = now.saturating_add(turn.think);
        due.transcript.answer(&answer.text, self.form.endpoint());
        due.transcript.ask(turn, self.form.endpoint());
        self.thinking.push(Reverse(due));
        false
    }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

// === impl Due ===

impl Due {
    /// By time; what is due at once, in the order of the workload.
    fn key(&self) -> (Nanos, usize, usize) {
        (self.at, self.session, self.turn)
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
