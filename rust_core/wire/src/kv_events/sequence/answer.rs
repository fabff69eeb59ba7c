//! The answer to a replay, and what follows from its end.

use nebula_route::Millis;
use xxhash_rust::xxh3::xxh3_64;

use super::{Answer, Message, Outlet, Replay, Sequence};

impl Sequence {
    /// A batch came in answer to the replay that was last asked for.
    pub fn replayed(&mut self, message: &Message, now: Millis, out: &mut impl Outlet) {
        let Replay::Asked(mut answer) = self.replay else { return };
        let last = self.recent.back().copied();
        if answer.torn || last.is_some_and(|(last, _)| message.seq < last) {
            return;
        }
        answer.since = now;
        if self.held.get(&message.seq).is_some_and(|held| held.payload != message.payload) {
            // They are of a process that is gone.
            self.drop_held();
        }
        let begins = !std::mem::replace(&mut answer.begun, true);
        match last {
            Some((last, hash)) if begins && message.seq == last => {
                if hash != xxh3_64(&message.payload) {
                    return self.restart_and_ask(now, out);
                }
            }
            Some((last, _)) if message.seq == last => {}
            // The engine does not remember as far back, or never was there.
            Some(_) if begins => {
                self.skip_to(message, out);
                answer.progress = true;
            }
            Some((last, _)) if message.seq > last + 1 => answer.torn = true,
            // Nothing is known yet: whatever there is will do.
            _ => {
                self.apply(message, out);
                answer.progress = true;
            }
        }
        self.replay = Replay::Asked(answer);
    }

    /// The answer is complete.
    pub fn replay_ended(&mut self, now: Millis, out: &mut impl Outlet) {
        let Replay::Asked(answer) = self.replay else { return };
        if !answer.begun && !self.recent.is_empty() {
            // An engine remembers at least its last batch: this one is not the one that sent ours.
            return self.restart_and_ask(now, out);
        }
        if answer.begun {
            self.release(out);
        }
        // An engine that remembers nothing has not sent what is held, or has by now: the next answer tells.
        if answer.torn || !self.held.is_empty() {
            self.again(answer, now, out);
        } else {
            self.replay = Replay::Idle;
        }
    }

    /// Asks once more, at once if the last answer brought anything; goes on without what is missing if it was asked for
    /// too often.
    pub(super) fn again(&mut self, answer: Answer, now: Millis, out: &mut impl Outlet) {
        let tries = if answer.progress { 0 } else { answer.tries + 1 };
        if tries >= self.limits.replay_tries {
            self.replay = Replay::Idle;
            self.give_up(out);
            return;
        }
        let wait = self.limits.replay_backoff_ms.saturating_mul(1 << answer.tries.min(16));
        let at = if answer.progress { now } else { now.saturating_add(wait) };
        self.replay = Replay::Due { at, tries };
    }

    fn restart_and_ask(&mut self, now: Millis, out: &mut impl Outlet) {
        self.restart(out);
        self.replay = Replay::Due { at: now, tries: 0 };
    }

    /// Delivers what was held, as far as nothing is missing.
    fn release(&mut self, out: &mut impl Outlet) {
        while let Some(first) = self.held.first_entry() {
            if *first.key() > self.next {
                return;
            }
            let message = first.remove();
            self.held_bytes -= message.payload.len();
            if message.seq == self.next {
                self.apply(&message, out);
            }
        }
    }

    /// Delivers all that was held, over every gap.
    fn give_up(&mut self, out: &mut impl Outlet) {
        self.release(out);
        while let Some((_, message)) = self.held.pop_first() {
            self.held_bytes -= message.payload.len();
            self.skip_to(&message, out);
            self.release(out);
        }
    }
}
