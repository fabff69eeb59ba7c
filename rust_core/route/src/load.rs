//! What is booked on each rank, in tokens; booked at the choice, returned by the [`Guard`] exactly once on every path.

use std::sync::Arc;

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The books of one rank.
///
/// Counters are independent: a reader may see one request's tokens a moment before its count, which moves a price by
/// one request for nanoseconds, and every sum is exact once the guards are gone.
#[derive(Debug, Default)]
pub struct Ledger {
    prefill_tokens: AtomicU64,
    resident_tokens: AtomicU64,
    running: AtomicU32,
    /// `f32` bits of the KV usage that the engine last reported.
    kv_usage: AtomicU32,
    /// The router's turn in which the rank was last chosen.
    turn: AtomicU64,
}

/// What a rank has on its hands now.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Load {
    /// Booked prompt tokens that are still to be computed.
    pub prefill_tokens: u64,
    /// Prompt tokens of all booked requests.
    pub resident_tokens: u64,
    /// Booked requests.
    pub running: u32,
    /// Used share of the KV cache, 0 to 1, as the engine last reported.
    pub kv_usage: f32,
}

/// One request's place in the books; dropping it gives everything back.
#[derive(Debug)]
pub struct Guard {
    ledger: Arc<Ledger>,
    prefill_tokens: AtomicU64,
    resident_tokens: AtomicU64,
    running: AtomicU32,
}

impl Ledger {
    /// What is booked now.
    pub fn load(&self) -> Load {
        Load {
            prefill_tokens: self.prefill_tokens.load(Ordering::Relaxed),
            resident_tokens: self.resident_tokens.load(Ordering::Relaxed),
            running: self.running.load(Ordering::Relaxed),
            kv_usage: f32::from_bits(self.kv_usage.load(Ordering::Relaxed)),
        }
    }

    /// Books a request that must compute `prefill_tokens` of its `resident_tokens`.
    pub fn book(self: &Arc<Self>, prefill_tokens: u64, resident_tokens: u64) -> Guard {
        self.prefill_tokens.fetch_add(prefill_tokens, Ordering::Relaxed);
        self.resident_tokens.fetch_add(resident_tokens, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Guard {
            ledger: Arc::clone(self),
            prefill_tokens: AtomicU64::new(prefill_tokens),
            resident_tokens: AtomicU64::new(resident_tokens),
            running: AtomicU32::new(1),
        }
    }

    /// A usage that is no number is not a report.
    pub(crate) fn set_kv_usage(&self, usage: f32) {
        if usage.is_finite() {
            self.kv_usage.store(usage.clamp(0.0, 1.0).to_bits(), Ordering::Relaxed);
        }
    }

    pub(crate) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    pub(crate) fn take_turn(&self, turn: u64) {
        self.turn.store(turn, Ordering::Relaxed);
    }
}

impl Guard {
    /// The prompt has been computed: its prefill is returned. Calling it again changes nothing.
    pub fn first_byte(&self) {
        let prefill_tokens = self.prefill_tokens.swap(0, Ordering::Relaxed);
        self.ledger.prefill_tokens.fetch_sub(prefill_tokens, Ordering::Relaxed);
    }

    /// The engine is done with the request, or never took it: everything is returned now. Calling it again, or dropping
    /// the guard later, changes nothing.
    pub fn release(&self) {
        self.first_byte();
        let resident_tokens = self.resident_tokens.swap(0, Ordering::Relaxed);
        self.ledger.resident_tokens.fetch_sub(resident_tokens, Ordering::Relaxed);
        let running = self.running.swap(0, Ordering::Relaxed);
        self.ledger.running.fetch_sub(running, Ordering::Relaxed);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(all(test, not(nebula_loom)))]
mod tests {
    use super::*;

    #[test]
    fn prefill_goes_at_the_first_byte_and_the_rest_at_the_end() {
        let ledger = Arc::new(Ledger::default());
        let guard = ledger.book(100, 400);
        assert_eq!(
            ledger.load(),
            Load { prefill_tokens: 100, resident_tokens: 400, running: 1, kv_usage: 0.0 }
        );
        guard.first_byte();
        guard.first_byte();
        assert_eq!(
            ledger.load(),
            Load { prefill_tokens: 0, resident_tokens: 400, running: 1, kv_usage: 0.0 }
        );
        drop(guard);
        assert_eq!(ledger.load(), Load::default());
    }

    #[test]
    fn a_usage_that_is_no_number_changes_nothing() {
        let ledger = Ledger::default();
        ledger.set_kv_usage(0.5);
        ledger.set_kv_usage(f32::NAN);
        assert!((ledger.load().kv_usage - 0.5).abs() < f32::EPSILON);
    }

    #[test]
    fn a_released_guard_returns_nothing_twice() {
        let ledger = Arc::new(Ledger::default());
        let (kept, released) = (ledger.book(10, 20), ledger.book(3, 4));
        released.release();
        drop(released);
        assert_eq!((ledger.load().prefill_tokens, ledger.load().resident_tokens), (10, 20));
        drop(kept);
        assert_eq!(ledger.load(), Load::default());
    }

    #[test]
    fn a_guard_dropped_before_the_first_byte_returns_everything() {
        let ledger = Arc::new(Ledger::default());
        let guards: Vec<_> = (1..50).map(|n| ledger.book(n, 3 * n)).collect();
        drop(guards);
        assert_eq!(ledger.load(), Load::default());
    }
}
