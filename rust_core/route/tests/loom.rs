//! The ledger and the snapshot swap under every interleaving:
//! `RUSTFLAGS="--cfg nebula_loom" cargo test -p nebula-route --test loom --release`.
#![cfg(nebula_loom)]

use std::sync::Arc;

use loom::thread;
use nebula_route::{Ledger, Load, Swap};

#[test]
fn the_books_are_empty_once_all_guards_are_gone() {
    loom::model(|| {
        let ledger = Arc::new(Ledger::default());
        let threads: Vec<_> = [(10, 40), (5, 5)]
            .into_iter()
            .map(|(prefill, resident)| {
                let ledger = Arc::clone(&ledger);
                thread::spawn(move || {
                    let guard = ledger.book(prefill, resident);
                    guard.first_byte();
                    drop(guard);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(ledger.load(), Load::default());
    });
}

#[test]
fn a_first_byte_that_races_with_the_end_returns_the_prefill_once() {
    loom::model(|| {
        let ledger = Arc::new(Ledger::default());
        let guard = Arc::new(ledger.book(7, 7));
        let other = Arc::clone(&guard);
        let first_byte = thread::spawn(move || other.first_byte());
        guard.first_byte();
        first_byte.join().unwrap();
        assert_eq!(ledger.load().prefill_tokens, 0);
        drop(guard);
        assert_eq!(ledger.load(), Load::default());
    });
}

#[test]
fn a_reader_sees_the_old_snapshot_or_the_new_one_and_never_goes_back() {
    loom::model(|| {
        let swap = Arc::new(Swap::new((1, 1)));
        let writer = {
            let swap = Arc::clone(&swap);
            thread::spawn(move || swap.store((2, 2)))
        };
        let first = swap.load();
        let second = swap.load();
        assert_eq!(first.0, first.1);
        assert!(second.0 >= first.0);
        writer.join().unwrap();
        assert_eq!(*swap.load(), (2, 2));
    });
}
