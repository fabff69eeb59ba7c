//! What happens next.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use nebula_route::event::Event;

use crate::timing::Nanos;

/// Something that happens at a time.
#[derive(Debug)]
pub(super) enum Happening {
    /// A user asks.
    Ask { session: usize, turn: usize },
    /// A step of an engine ends.
    Step { host: usize },
    /// The rule hears what happened to a cache.
    Told { host: usize, events: Vec<Event> },
}

/// All that is planned. What is planned for the same time happens in the order of planning.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    heap: BinaryHeap<Reverse<Entry>>,
    planned: u64,
}

#[derive(Debug)]
struct Entry {
    at: Nanos,
    order: u64,
    what: Happening,
}

// === impl Agenda ===

impl Agenda {
    pub(super) fn put(&mut self, at: Nanos, what: Happening) {
        self.planned += 1;
        self.heap.push(Reverse(Entry { at, order: self.planned, what }));
    }

    pub(super) fn next(&mut self) -> Option<(Nanos, Happening)> {
        self.heap.pop().map(|Reverse(Entry { at, what, .. })| (at, what))
    }
}

// === impl Entry ===

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}
