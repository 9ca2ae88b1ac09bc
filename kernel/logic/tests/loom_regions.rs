// SPDX-License-Identifier: GPL-2.0-only
//! Model checks of the region log's promises, under every interleaving:
//!
//! * a write that found its regions open has its blocks in the bitmap that a checkpoint writes before it
//!   takes the regions' marks back;
//! * a write that found its region open has the region's mark on disk.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p cow-logic --test loom_regions
//! ```
//! (`tests/host/loom.sh` does that.)
//!
//! Nobody waits for anybody: the full barriers in [`ChangeMap::mark`] and [`Regions::close`] carry it all.
//! (Without that of `close` the models fail: to loom as to the language, a SeqCst change of a word is no
//! full barrier.) Each model comes with counter-tests: the same model with one step swapped must fail, with
//! the message of the check that is there for that step.
#![cfg(loom)]

use cow_logic::abi::cow::REGION_BLOCKS;
use cow_logic::change_map::ChangeMap;
use cow_logic::regions::Regions;
use cow_logic::sync::{AtomicU64, Ordering};
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

/// The block that is written to.
const BLOCK: u64 = 5;

/// Checks a model under all interleavings.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = None;
    builder.check(model);
}

/// Checks a big model under all interleavings with at most three preemptions; under all if
/// `LOOM_EXHAUSTIVE` is set.
fn check_big(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = match std::env::var_os("LOOM_EXHAUSTIVE") {
        Some(_) => None,
        None => Some(3),
    };
    builder.check(model);
}

/// What a writer does.
#[derive(Clone, Copy, PartialEq)]
enum Writer {
    Right,
    /// It looks before it enters its block.
    LookFirst,
}

/// What a checkpoint does.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Right,
    /// It copies the map before it closes the region.
    CopyFirst,
}

struct Model {
    map: ChangeMap,
    regions: Regions,
}

impl Model {
    /// Regions 0 and 1 are open.
    fn new() -> Self {
        let map = ChangeMap::new(64).unwrap();
        // The leaf is there: the models of making it are in loom_claims.
        map.mark(63, 1);
        let regions = Regions::new(1).unwrap();
        regions.open(0, 3);
        Self { map, regions }
    }

    /// A write of `block`, which looks at the regions of `look`; whether it goes at once.
    fn write(&self, block: u64, look: (u64, u64), how: Writer) -> bool {
        if how == Writer::LookFirst {
            let open = self.regions.is_open(look.0, look.1);
            self.map.mark(block, 1);
            return open;
        }
        self.map.mark(block, 1);
        self.regions.is_open(look.0, look.1)
    }

    fn copy(&self) -> u64 {
        let mut words = [0];
        self.map.copy_words(0, &mut words);
        words[0]
    }

    /// What the bitmap block says that a checkpoint of region 0 writes.
    fn checkpoint(&self, how: Owner) -> u64 {
        if how == Owner::CopyFirst {
            let copied = self.copy();
            self.regions.close(0, 1);
            return copied;
        }
        self.regions.close(0, 1);
        self.copy()
    }
}

fn is_in(copied: u64, block: u64) -> bool {
    (copied >> block) & 1 != 0
}

fn one_writer(writer: Writer, owner: Owner, look: (u64, u64)) {
    check(move || {
        let model = Arc::new(Model::new());
        let thread = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.write(BLOCK, look, writer))
        };
        let copied = model.checkpoint(owner);
        assert!(is_in(copied, 63), "an old mark was lost");
        let went = thread.join().unwrap();
        assert!(
            !went || is_in(copied, BLOCK),
            "a write went that no map on disk knows"
        );
        assert!(!model.regions.is_open(0, 1), "the region is closed");
        assert!(model.regions.is_open(REGION_BLOCKS, 1), "nobody closed it");
    });
}

/// The block's own region.
const OWN: (u64, u64) = (BLOCK, 1);
/// Two regions, of which only the first is closed.
const BOTH: (u64, u64) = (REGION_BLOCKS - 1, 2);

#[test]
fn a_write_that_goes_is_in_the_bitmap() {
    one_writer(Writer::Right, Owner::Right, OWN);
}

#[test]
fn a_write_to_two_regions_that_goes_is_in_the_bitmap() {
    one_writer(Writer::Right, Owner::Right, BOTH);
}

#[test]
#[should_panic(expected = "a write went that no map on disk knows")]
fn counter_the_copy_comes_after_the_close() {
    one_writer(Writer::Right, Owner::CopyFirst, OWN);
}

#[test]
#[should_panic(expected = "a write went that no map on disk knows")]
fn counter_the_mark_comes_before_the_look() {
    one_writer(Writer::LookFirst, Owner::Right, OWN);
}

/// Two writers of one block: one of them may find the bit set already, and goes on the other's mark.
fn two_writers(owner: Owner) {
    check_big(move || {
        let model = Arc::new(Model::new());
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let model = Arc::clone(&model);
                thread::spawn(move || model.write(BLOCK, OWN, Writer::Right))
            })
            .collect();
        let copied = model.checkpoint(owner);
        for thread in threads {
            let went = thread.join().unwrap();
            assert!(
                !went || is_in(copied, BLOCK),
                "a write went that no map on disk knows"
            );
        }
    });
}

#[test]
fn two_writers_of_one_block_are_in_the_bitmap() {
    two_writers(Owner::Right);
}

#[test]
#[should_panic(expected = "a write went that no map on disk knows")]
fn counter_two_writers_the_copy_comes_after_the_close() {
    two_writers(Owner::CopyFirst);
}

// ---------------------------------------------------------------------------------------------
// Open means marked on disk.

/// Region 0 is closed; the owner writes its mark and opens it. A writer that goes leaves new data on
/// the origin: after a crash, the mark has to be there.
fn opening(mark_first: bool) {
    check(move || {
        let regions = Arc::new(Regions::new(1).unwrap());
        let mark = Arc::new(AtomicU64::new(0));
        let owner = {
            let (regions, mark) = (Arc::clone(&regions), Arc::clone(&mark));
            thread::spawn(move || {
                if !mark_first {
                    regions.open(0, 1);
                }
                // Relaxed: the order is that of `open`.
                mark.store(1, Ordering::Relaxed);
                if mark_first {
                    regions.open(0, 1);
                }
            })
        };
        if regions.is_open(BLOCK, 1) {
            let on_disk = mark.load(Ordering::Relaxed) == 1;
            assert!(on_disk, "a write went whose region has no mark on disk");
        }
        owner.join().unwrap();
        assert!(regions.is_open(BLOCK, 1));
    });
}

#[test]
fn an_open_region_has_its_mark_on_disk() {
    opening(true);
}

#[test]
#[should_panic(expected = "a write went whose region has no mark on disk")]
fn counter_the_mark_is_written_before_the_region_is_opened() {
    opening(false);
}

/// The owner's questions, its changes and the writers' hints are in one word: none undoes another.
#[test]
fn hints_and_changes_of_one_word_do_not_undo_each_other() {
    check(|| {
        let regions = Arc::new(Regions::new(1).unwrap());
        regions.open(0, 3);
        regions.take_touched(0);
        let writer = {
            let regions = Arc::clone(&regions);
            thread::spawn(move || regions.is_open(REGION_BLOCKS, 1))
        };
        regions.close(0, 1);
        let touched = regions.take_touched(0);
        regions.open(0, 4);
        assert!(writer.join().unwrap(), "nobody closed it");
        let touched = touched | regions.take_touched(0);
        assert_eq!(touched, 2 | 4, "a hint was lost or made up");
        assert!(!regions.is_open(0, 1), "a closed region came back");
        assert!(regions.is_open(REGION_BLOCKS, 2 * REGION_BLOCKS));
    });
}
