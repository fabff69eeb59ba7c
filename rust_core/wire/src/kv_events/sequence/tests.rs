//! Faults by seed: what is lost, doubled, late or restarted between an engine and the index that follows it.

use proptest::prelude::*;

use self::model::{LIMITS, Model, Op, RANK, encoding, op};
use super::*;
use crate::kv_events::Encoding;
use crate::kv_events::tests::engine::PROMPTS;

mod model;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn an_engine_that_remembers_all_is_known_whole_once_it_is_quiet(
        ops in proptest::collection::vec(op(), 1..120),
        encoding in encoding(),
    ) {
        let mut model = Model::new(true, 10_000, encoding);
        let answered = |op: &&Op| !matches!(op, Op::LoseRequest | Op::Wait(100..));
        for op in ops.iter().filter(answered) {
            model.run(op);
        }
        model.quiet();
        for (believed, held) in model.believed() {
            prop_assert_eq!(believed, held);
        }
        prop_assert_eq!(model.sequence.counts().losses, 0);
    }

    #[test]
    fn whatever_happens_no_block_is_believed_in_that_is_not_held(
        ops in proptest::collection::vec(op(), 1..120),
        replay in any::<bool>(),
        remembers in 1_usize..12,
        encoding in encoding(),
    ) {
        let mut model = Model::new(replay, remembers, encoding);
        for op in &ops {
            model.run(op);
        }
        model.quiet();
        for (believed, held) in model.believed() {
            prop_assert!(believed <= held, "{} of {}", believed, held);
        }
    }

    #[test]
    fn a_faultless_stream_is_applied_as_it_comes(
        ops in proptest::collection::vec(op(), 1..80),
        replay in any::<bool>(),
    ) {
        let mut model = Model::new(replay, 10_000, Encoding::Map);
        model.run(&Op::Answer(1_000));
        model.run(&Op::Answer(1_000));
        for op in ops.iter().filter(|op| matches!(op, Op::Store(..) | Op::Evict(_) | Op::Clear)) {
            model.run(op);
            model.run(&Op::Deliver(1));
            for (believed, held) in model.believed() {
                prop_assert_eq!(believed, held);
            }
        }
        let expected = Counts { replays: replay.into(), ..Counts::default() };
        prop_assert_eq!(model.sequence.counts(), expected);
    }
}

/// Delivers what the engine did, and lets the request for a replay be answered.
fn settle(model: &mut Model) {
    model.run(&Op::Deliver(100));
    for _ in 0..20 {
        model.run(&Op::Answer(100));
        model.run(&Op::Wait(10));
    }
}

fn started(replay: bool, remembers: usize) -> Model {
    let mut model = Model::new(replay, remembers, Encoding::Map);
    model.run(&Op::Store(0, 3));
    settle(&mut model);
    assert!(model.index.agrees(RANK, &model.engine));
    model
}

#[test]
fn a_gap_is_replayed_and_what_came_meanwhile_is_applied_once() {
    let mut model = started(true, 100);
    model.run(&Op::Store(1, 5));
    model.run(&Op::Drop);
    model.run(&Op::Evict(0));
    model.run(&Op::Store(2, 4));
    settle(&mut model);
    assert!(model.index.agrees(RANK, &model.engine));
    let counts = model.sequence.counts();
    assert_eq!((counts.gaps, counts.losses, counts.generation), (1, 0, 0));
    assert!(model.index.cleared.lock().is_empty());
}

#[test]
fn a_replay_that_begins_too_late_clears_the_rank_once() {
    let mut model = started(true, 2);
    for prompt in [1, 2, 3, 4, 5] {
        model.run(&Op::Store(prompt, 4));
        model.run(&Op::Drop);
    }
    model.run(&Op::Store(0, 5));
    settle(&mut model);
    model.quiet();
    assert_eq!(model.sequence.counts().losses, 1);
    assert_eq!(*model.index.cleared.lock(), [RANK]);
}

#[test]
fn a_restart_that_has_overtaken_the_old_numbers_is_seen() {
    let mut model = started(true, 100);
    model.run(&Op::Restart(false));
    model.run(&Op::Store(2, 3));
    model.run(&Op::Drop);
    // Its number is the one that was expected of the old process.
    model.run(&Op::Store(3, 3));
    settle(&mut model);
    assert!(model.index.agrees(RANK, &model.engine));
    assert_eq!(model.sequence.counts().generation, 1);
}

#[test]
fn a_replay_that_runs_ahead_of_the_subscription_is_no_restart() {
    let mut model = started(true, 1_000);
    model.run(&Op::Store(2, 1));
    model.run(&Op::Drop);
    for round in 0..40 {
        model.run(&Op::Store(round % PROMPTS, 5));
        model.run(&Op::Clear);
    }
    // The first of the many makes the gap; the rest is still on its way when the answer has it all.
    model.run(&Op::Deliver(1));
    model.run(&Op::Answer(1_000));
    assert!(model.index.agrees(RANK, &model.engine));
    settle(&mut model);
    assert!(model.index.agrees(RANK, &model.engine));
    assert_eq!(model.sequence.counts().generation, 0);
    assert_eq!(model.sequence.counts().duplicates, 79);
}

#[test]
fn a_quiet_engine_is_told_from_a_lost_connection() {
    let mut model = started(true, 100);
    model.run(&Op::Wait(LIMITS.silence_ms));
    settle(&mut model);
    assert_eq!(model.sequence.counts().replays, 2);
    model.run(&Op::Store(1, 5));
    model.run(&Op::Drop);
    model.run(&Op::Wait(LIMITS.silence_ms));
    settle(&mut model);
    assert!(model.index.agrees(RANK, &model.engine));
    assert!(model.index.cleared.lock().is_empty());
}

#[test]
fn a_replay_that_never_answers_is_given_up_and_asked_again_in_silence() {
    let mut model = started(true, 100);
    model.run(&Op::Store(1, 5));
    model.run(&Op::Drop);
    model.run(&Op::Store(2, 5));
    model.run(&Op::Deliver(1));
    for _ in 0..LIMITS.replay_tries {
        model.run(&Op::LoseRequest);
        model.run(&Op::Wait(LIMITS.replay_timeout_ms));
        model.run(&Op::Wait(100));
    }
    assert_eq!((model.sequence.counts().losses, model.index.depth(RANK, 2)), (1, 5));
    assert_eq!(model.index.depth(RANK, 0), 0);
    // Nothing is held while nobody can be asked.
    model.run(&Op::Store(3, 2));
    model.run(&Op::Deliver(1));
    assert_eq!((model.index.depth(RANK, 3), model.sequence.asked()), (2, false));
    model.run(&Op::Wait(LIMITS.silence_ms));
    assert!(model.sequence.asked());
    settle(&mut model);
    assert_eq!(model.sequence.counts().losses, 1);
}

#[test]
fn without_a_replay_a_gap_clears_and_a_late_joiner_does_not() {
    let mut model = Model::new(false, 100, Encoding::Map);
    model.run(&Op::Store(0, 3));
    model.run(&Op::Drop);
    model.run(&Op::Store(2, 3));
    settle(&mut model);
    assert!(model.index.cleared.lock().is_empty());
    assert_eq!((model.index.depth(RANK, 0), model.index.depth(RANK, 2)), (0, 3));
    model.run(&Op::Store(4, 3));
    model.run(&Op::Drop);
    model.run(&Op::Store(5, 5));
    settle(&mut model);
    assert_eq!(model.sequence.counts().losses, 1);
    assert_eq!(model.index.depth(RANK, 2), 0);
}

#[test]
fn what_the_index_forgot_is_learned_again_from_the_same_process() {
    let mut model = started(true, 100);
    model.index.tree.remove_rank(RANK);
    model.sequence.relearn(model.now);
    settle(&mut model);
    assert!(model.index.agrees(RANK, &model.engine));
    assert_eq!(model.sequence.counts().generation, 0);
}

#[test]
fn a_flood_while_an_answer_is_awaited_is_not_held_without_bound_and_loses_nothing() {
    let mut model = started(true, 1_000);
    model.run(&Op::Store(2, 1));
    model.run(&Op::Drop);
    for round in 0..30 {
        model.run(&Op::Store(round % PROMPTS, 5));
        model.run(&Op::Clear);
    }
    model.run(&Op::Deliver(50));
    let counts = model.sequence.counts();
    assert_eq!((model.sequence.held().0, counts.overflows), (LIMITS.held_batches, 44));
    settle(&mut model);
    assert!(model.index.agrees(RANK, &model.engine));
    assert_eq!(model.sequence.counts().losses, 0);
}

#[test]
fn what_is_held_of_a_process_that_is_gone_is_never_applied() {
    let mut model = Model::new(true, 100, Encoding::Map);
    for op in [Op::Store(0, 2), Op::Restart(true), Op::Deliver(2), Op::Answer(1)] {
        model.run(&op);
    }
    // Its number is the one before which the old batch would stand.
    model.run(&Op::Store(2, 1));
    model.run(&Op::Drop);
    model.run(&Op::Store(3, 4));
    settle(&mut model);
    assert!(model.index.agrees(RANK, &model.engine));
    assert_eq!(model.index.depth(RANK, 0), 0);
}
