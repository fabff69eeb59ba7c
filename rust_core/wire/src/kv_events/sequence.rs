//! The order of one engine's batches: what comes next, what is missing, what came twice, and whether it is the same
//! engine still.
//!
//! A pure state machine: messages and time come in, an [`Outlet`] gets the batches in order, and [`Sequence::tick`] says
//! when a replay is to be asked for. A replay is asked from the last batch that was applied, not from the one after it:
//! an engine that still has that batch, byte for byte, is the same one, and one that has another or none under its number
//! has restarted, whatever numbers it has reached by now.
//!
//! ```text
//! never ── no replay endpoint: a gap clears the rank
//! idle ─ gap, silence, (re)connected ─> due ─ tick ─> asked ─ end of the answer ─> idle
//!                                        ^─ no answer, a hole in it ─┘ └─ too often ─> mute: as never, until the next
//!                                                                                      silence or connection
//! ```

use std::collections::{BTreeMap, VecDeque};

use nebula_route::Millis;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

mod answer;

/// One batch as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Its number: one more than that of the batch before, from 0 in a new process.
    pub seq: u64,
    /// The engine's time, where the batch tells it.
    pub ts: Option<f64>,
    /// The batch.
    pub payload: Vec<u8>,
}

/// Where the batches go.
pub trait Outlet {
    /// The next batch.
    fn deliver(&mut self, message: &Message);
    /// What was delivered before does not hold any more.
    fn clear(&mut self, why: Loss);
}

/// Why nothing is known of a cache any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Batches are missing and nobody has them.
    Lost,
    /// Another process answers, with a cache of its own.
    Restarted,
}

/// How long and how much a sequence waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Batches that are held while some before them are missing.
    pub held_batches: usize,
    /// Bytes of those.
    pub held_bytes: usize,
    /// Longest silence within an answer to a replay.
    pub replay_timeout_ms: Millis,
    /// Replays in a row that bring nothing before what is missing is given up.
    pub replay_tries: u32,
    /// Wait after the first of those; it doubles with each.
    pub replay_backoff_ms: Millis,
    /// Silence after which a replay tells a quiet engine from a lost connection.
    pub silence_ms: Millis,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Restarts of the engine that were seen.
    pub generation: u64,
    /// Times that batches were missing.
    pub gaps: u64,
    /// Replays that were asked for.
    pub replays: u64,
    /// Times that what was missing stayed so and the rank was cleared.
    pub losses: u64,
    /// Batches that came again.
    pub duplicates: u64,
    /// Batches that were not held because too many were; a replay brings them.
    pub overflows: u64,
}

/// The order of one engine's batches.
#[derive(Debug)]
pub struct Sequence {
    limits: Limits,
    counts: Counts,
    replay: Replay,
    /// The number of the next batch to deliver.
    next: u64,
    /// Number and hash of the latest that were delivered, in order; the last one is that before `next`. Empty while
    /// nothing is known of the engine.
    recent: VecDeque<(u64, u64)>,
    /// The highest number that was seen, and the latest time that came with one.
    newest: Option<(u64, f64)>,
    /// The highest number on the subscription, which may lie far behind what replays brought.
    live: Option<u64>,
    /// Those that wait for some before them.
    held: BTreeMap<u64, Message>,
    held_bytes: usize,
    /// When a batch last came, or a replay was last asked for.
    quiet_since: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replay {
    /// There is no endpoint.
    Never,
    Idle,
    /// It does not answer.
    Mute,
    Due {
        at: Millis,
        tries: u32,
    },
    Asked(Answer),
}

/// How far the answer to a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    tries: u32,
    /// When something last came.
    since: Millis,
    /// The first batch has come.
    begun: bool,
    /// A batch was new.
    progress: bool,
    /// A batch is missing within it; what follows is passed over.
    torn: bool,
}

/// What a number says beside those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    New,
    Again,
    Restarted,
}

/// Batches within which one may come late or twice; one that is further back is of another process.
const WINDOW: usize = 64;

// === impl Sequence ===

impl Sequence {
    /// Nothing is known; where there is a replay endpoint it is first asked at `first_ask`, or on
    /// [`Sequence::connected`].
    #[must_use]
    pub fn new(limits: Limits, replay: bool, first_ask: Millis) -> Sequence {
        Sequence {
            limits,
            counts: Counts::default(),
            replay: if replay { Replay::Due { at: first_ask, tries: 0 } } else { Replay::Never },
            next: 0,
            recent: VecDeque::with_capacity(WINDOW),
            newest: None,
            live: None,
            held: BTreeMap::new(),
            held_bytes: 0,
            quiet_since: first_ask,
        }
    }

    /// A batch came on the subscription.
    pub fn live(&mut self, message: Message, now: Millis, out: &mut impl Outlet) {
        self.quiet_since = now;
        match self.standing(&message) {
            Standing::New => {}
            Standing::Again => {
                self.counts.duplicates += 1;
                self.live = self.live.max(Some(message.seq));
                return;
            }
            Standing::Restarted => self.restart(out),
        }
        self.live = self.live.max(Some(message.seq));
        if matches!(self.replay, Replay::Due { .. } | Replay::Asked(_)) {
            self.hold(message);
        } else if message.seq == self.next {
            self.apply(&message, out);
        } else {
            self.counts.gaps += u64::from(!self.recent.is_empty());
            if self.replay == Replay::Idle {
                self.replay = Replay::Due { at: now, tries: 0 };
                self.hold(message);
            } else {
                self.skip_to(&message, out);
            }
        }
    }

    /// The subscription is up, for the first time or again: what was sent meanwhile is missing. Where nobody can be asked
    /// whether the process is the same, nothing of before holds.
    pub fn connected(&mut self, now: Millis, out: &mut impl Outlet) {
        if self.replay != Replay::Never {
            // What is held is of the connection before, and comes again if the process is still the same.
            self.drop_held();
            self.replay = Replay::Due { at: now, tries: 0 };
        } else if !self.recent.is_empty() {
            self.counts.losses += 1;
            out.clear(Loss::Lost);
            self.forget();
        }
    }

    /// Begins anew with the same process, whose blocks the index has forgotten.
    pub fn relearn(&mut self, now: Millis) {
        self.forget();
        if self.replay != Replay::Never {
            self.replay = Replay::Due { at: now, tries: 0 };
        }
    }

    /// Lets time pass. Gives the number from which a replay is to be asked now; an earlier one that is not answered
    /// whole is void then.
    pub fn tick(&mut self, now: Millis, out: &mut impl Outlet) -> Option<u64> {
        match self.replay {
            Replay::Asked(answer) if now >= answer.since + self.limits.replay_timeout_ms => {
                self.again(answer, now, out);
                if self.replay == Replay::Idle {
                    self.replay = Replay::Mute;
                }
            }
            Replay::Idle if now >= self.quiet_since + self.limits.silence_ms => {
                self.replay = Replay::Due { at: now, tries: 0 };
            }
            Replay::Mute if now >= self.quiet_since + self.limits.silence_ms => {
                // One try, so that what comes meanwhile is not held for long.
                let tries = self.limits.replay_tries.saturating_sub(1);
                self.replay = Replay::Due { at: now, tries };
            }
            _ => {}
        }
        let Replay::Due { at, tries } = self.replay else { return None };
        if now < at {
            return None;
        }
        self.counts.replays += 1;
        self.quiet_since = now;
        self.replay =
            Replay::Asked(Answer { tries, since: now, begun: false, progress: false, torn: false });
        Some(self.recent.back().map_or(self.next, |(last, _)| *last))
    }

    /// When [`Sequence::tick`] has something to do, if nothing comes before.
    #[must_use]
    pub fn due(&self) -> Option<Millis> {
        match self.replay {
            Replay::Never => None,
            Replay::Idle | Replay::Mute => Some(self.quiet_since + self.limits.silence_ms),
            Replay::Due { at, .. } => Some(at),
            Replay::Asked(answer) => Some(answer.since + self.limits.replay_timeout_ms),
        }
    }

    /// True while an answer is waited for.
    #[must_use]
    pub fn asked(&self) -> bool {
        matches!(self.replay, Replay::Asked(_))
    }

    /// The number of the last batch that was delivered.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.recent.back().map(|(last, _)| *last)
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Batches that wait for some before them, and their bytes.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        (self.held.len(), self.held_bytes)
    }

    /// A number that was seen and holds the same came again; anything else under it, or a later time, is of another
    /// process. A number that was not seen but should have been came late if it is near.
    fn standing(&self, message: &Message) -> Standing {
        let seen = self.held.last_key_value().map(|(seq, _)| *seq).or(self.last());
        if seen.is_none_or(|seen| message.seq > seen) {
            return Standing::New;
        }
        let recent = self.recent.iter().find(|(seq, _)| *seq == message.seq);
        let known = recent.map(|(_, hash)| *hash);
        let known =
            known.or_else(|| self.held.get(&message.seq).map(|held| xxh3_64(&held.payload)));
        if let Some(known) = known {
            let same = known == xxh3_64(&message.payload);
            return if same { Standing::Again } else { Standing::Restarted };
        }
        let later = message.ts.zip(self.newest).is_some_and(|(ts, (_, newest))| ts > newest);
        let near = message.seq.saturating_add(WINDOW as u64);
        let far = self.live.is_some_and(|live| near < live);
        if later || far {
            Standing::Restarted
        } else if message.seq >= self.next {
            Standing::New
        } else {
            Standing::Again
        }
    }

    fn apply(&mut self, message: &Message, out: &mut impl Outlet) {
        out.deliver(message);
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back((message.seq, xxh3_64(&message.payload)));
        self.next = message.seq.saturating_add(1);
        self.note_time(message);
    }

    /// Goes on behind batches that nobody has.
    fn skip_to(&mut self, message: &Message, out: &mut impl Outlet) {
        if !self.recent.is_empty() {
            self.counts.losses += 1;
            out.clear(Loss::Lost);
        }
        self.apply(message, out);
    }

    fn restart(&mut self, out: &mut impl Outlet) {
        self.counts.generation += 1;
        out.clear(Loss::Restarted);
        self.forget();
        if matches!(self.replay, Replay::Due { .. } | Replay::Asked(_)) {
            self.replay = Replay::Idle;
        }
    }

    fn forget(&mut self) {
        self.next = 0;
        self.recent.clear();
        self.newest = None;
        self.live = None;
        self.drop_held();
    }

    fn drop_held(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
    }

    /// Keeps a batch until those before it are there. One for which there is no room is a gap of its own later.
    fn hold(&mut self, message: Message) {
        let bytes = self.held_bytes.saturating_add(message.payload.len());
        if self.held.len() >= self.limits.held_batches || bytes > self.limits.held_bytes {
            self.counts.overflows += 1;
            return;
        }
        self.note_time(&message);
        self.held_bytes = bytes;
        self.held.insert(message.seq, message);
    }

    fn note_time(&mut self, message: &Message) {
        if let Some(ts) = message.ts
            && self.newest.is_none_or(|(seq, _)| seq <= message.seq)
        {
            self.newest = Some((message.seq, ts));
        }
    }
}

#[cfg(test)]
mod tests;
