//! One rank's cache as its batches tell it: decoded, sifted, handed to the index.

use std::sync::Arc;

use nebula_route::{Event, RankId};

use super::Sink;
use super::decode::{self, Medium};
use super::layout::Layout;
use super::sequence::{Loss, Message, Outlet};
use super::stats::Tally;

/// Takes batches in order.
pub(super) struct Cache {
    rank: RankId,
    sink: Arc<dyn Sink>,
    pub(super) layout: Layout,
    pub(super) tally: Tally,
    /// Empty between batches; kept for its memory.
    events: Vec<(Medium, Event)>,
}

// === impl Cache ===

impl Cache {
    pub(super) fn new(rank: RankId, sink: Arc<dyn Sink>) -> Cache {
        Cache { rank, sink, layout: Layout::default(), tally: Tally::default(), events: Vec::new() }
    }
}

impl Outlet for Cache {
    /// What cannot be read is counted and passed over; the number of the batch counts all the same, so that it is not
    /// asked for again.
    fn deliver(&mut self, message: &Message) {
        self.tally.batches += 1;
        let Some(batch) = decode::batch(&message.payload) else {
            self.tally.decode_errors += 1;
            return;
        };
        self.tally.decode_errors += batch.undecodable;
        self.tally.encoding = batch.encoding.or(self.tally.encoding);
        for change in &batch.changes {
            self.tally.skipped += u64::from(!self.layout.read(change, &mut self.events));
        }
        let mut events = self.events.drain(..).peekable();
        while let Some((medium, first)) = events.next() {
            let mut run = vec![first];
            while let Some((_, event)) = events.next_if(|(next, _)| *next == medium) {
                run.push(event);
            }
            self.tally.applied += self.sink.apply(self.rank, medium, &run);
        }
    }

    fn clear(&mut self, why: Loss) {
        self.sink.clear(self.rank);
        if why == Loss::Restarted {
            // The new process may have another model, or other blocks.
            self.layout = Layout::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use nebula_route::tree::Applied;
    use proptest::prelude::*;

    use super::super::decode::tests as captured;
    use super::super::tests::engine::{DEPTH, Engine, Index, PROMPTS};
    use super::*;

    const RANK: RankId = RankId(1);

    fn cache() -> (Cache, Arc<Index>) {
        let index = Arc::new(Index::new());
        (Cache::new(RANK, Arc::clone(&index) as Arc<dyn Sink>), index)
    }

    #[test]
    fn a_restart_forgets_the_layout_and_a_loss_does_not() {
        let (mut cache, index) = cache();
        cache.deliver(&Engine::new(1).store(0, 2).unwrap());
        cache.clear(Loss::Lost);
        assert_eq!((cache.layout.block_size(), index.depth(RANK, 0)), (Some(2), 0));
        cache.clear(Loss::Restarted);
        assert_eq!(cache.layout.block_size(), None);
    }

    #[test]
    fn what_a_simulated_engine_of_32_blocks_sent_leaves_31_in_the_index() {
        let (mut cache, index) = cache();
        for message in captured::mocker()["frames_hex"].as_array().unwrap() {
            let (seq, payload) = captured::frames(message);
            cache.deliver(&Message { seq, ts: None, payload });
        }
        let expected = Applied { stored: 57, removed: 26, ..Applied::default() };
        assert_eq!(cache.tally.applied, expected);
        assert_eq!((cache.tally.decode_errors, cache.tally.skipped), (0, 0));
        assert_eq!((cache.layout.block_size(), index.tree.stats().blocks), (Some(16), 31));
    }

    proptest! {
        #[test]
        fn a_batch_that_cannot_be_read_is_counted_and_costs_nothing_else(
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let (mut cache, index) = cache();
            let mut engine = Engine::new(100);
            for prompt in 0..PROMPTS {
                cache.deliver(&engine.store(prompt, DEPTH).unwrap());
            }
            cache.deliver(&Message { seq: 99, ts: None, payload });
            prop_assert!(index.agrees(RANK, &engine) && index.cleared.lock().is_empty());
            prop_assert_eq!(cache.tally.batches, u64::from(PROMPTS) + 1);
        }
    }
}
