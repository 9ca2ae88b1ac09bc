// SPDX-License-Identifier: GPL-2.0-only
//! Model check of the region log's promise: a write that found its region open has its block in the
//! bitmap that a checkpoint writes before it takes the region's mark back.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p cow-logic --test loom_regions
//! ```
//! The grace period is a counter of writers inside their look, which the owner waits for.
#![cfg(loom)]

use cow_logic::change_map::ChangeMap;
use cow_logic::regions::Regions;
use cow_logic::sync::{fence, AtomicU64, Ordering};
use loom::sync::Arc;
use loom::thread;

const BLOCK: u64 = 5;

struct Model {
    map: ChangeMap,
    regions: Regions,
    looking: AtomicU64,
}

/// What the model leaves out, for a counter-test.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    Grace,
    MarkFirst,
}

fn run(without: Without) {
    loom::model(move || {
        let model = Arc::new(Model {
            map: ChangeMap::new(64).unwrap(),
            regions: Regions::new(1).unwrap(),
            looking: AtomicU64::new(0),
        });
        model.regions.open(0, 1);
        let writer = {
            let m = model.clone();
            thread::spawn(move || {
                m.looking.fetch_add(1, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                let open = if without == Without::MarkFirst {
                    let open = m.regions.is_open(BLOCK, 1);
                    m.looking.fetch_sub(1, Ordering::SeqCst);
                    m.map.mark(BLOCK, 1);
                    open
                } else {
                    m.map.mark(BLOCK, 1);
                    let open = m.regions.is_open(BLOCK, 1);
                    m.looking.fetch_sub(1, Ordering::SeqCst);
                    open
                };
                open
            })
        };
        // The checkpoint.
        model.regions.close(0, 1);
        fence(Ordering::SeqCst);
        if without != Without::Grace {
            while model.looking.load(Ordering::SeqCst) != 0 {
                thread::yield_now();
            }
        }
        let mut bits = [0u64];
        model.map.copy_words(0, &mut bits);
        let written = bits[0] & (1 << BLOCK) != 0;
        let went = writer.join().unwrap();
        assert!(!went || written, "a write went that no map on disk knows");
    });
}

#[test]
fn a_write_that_goes_is_in_the_bitmap() {
    run(Without::Nothing);
}

/// A mark that is only relaxed would do: the bit is set before the look. What the grace period adds is
/// that the copy is made after it.
#[test]
#[should_panic(expected = "no map on disk knows")]
fn without_the_mark_first_it_is_missed() {
    run(Without::MarkFirst);
}

/// Full barriers on both sides alone would do for one writer and one look; the grace period is what
/// makes it true for looks that began long ago. Here it must at least do no harm.
#[test]
fn barriers_alone_hold_in_this_small_model() {
    run(Without::Grace);
}
