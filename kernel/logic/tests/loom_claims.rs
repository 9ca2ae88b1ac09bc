// SPDX-License-Identifier: GPL-2.0-only
//! Model checks of the protocols that the snapshot's correctness rests on: loom runs each model under
//! every interleaving, and under every value that the memory model lets a load see.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p cow-logic --test loom_claims
//! ```
//! (`tests/host/loom.sh` does that.)
//!
//! The maps are the module's own source files (with leaves of two words, for loom counts every
//! atomic). The disk is an atomic: submitting a write is a Release, the completion of a read an
//! Acquire, which is what the driver and the device between them guarantee; nothing more is assumed.
//!
//! Each model comes with counter-tests: the same model with one step left out or swapped must fail,
//! and must fail with the message of the check that is there for that step.
#![cfg(loom)]

use cow_logic::change_map::ChangeMap;
use cow_logic::mem::without_memory;
use cow_logic::preserved::Preserved;
use cow_logic::read_plan::View;
use cow_logic::space::{Segment, Space};
use cow_logic::sync::{fence, AtomicI32, AtomicU64, Ordering};
use loom::model::Builder;
use loom::sync::{Arc, Mutex};
use loom::thread;

const OLD: u64 = 1;
const NEW: u64 = 2;

/// Checks a model under all interleavings.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = None;
    builder.check(model);
}

/// Checks a big model under all interleavings with at most three preemptions; under all if
/// `LOOM_EXHAUSTIVE` is set (minutes instead of a second).
fn check_big(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = match std::env::var_os("LOOM_EXHAUSTIVE") {
        Some(_) => None,
        None => Some(3),
    };
    builder.check(model);
}

/// A block of a disk.
struct Disk(AtomicU64);

impl Disk {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    fn write(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A lock of the module. (One made of atomics would be weaker than loom's, but loom does not get to an end
/// with whatever spins.)
struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

// ---------------------------------------------------------------------------------------------
// Claims: a snapshot read never returns new data.

#[derive(Clone, Copy, PartialEq)]
enum Claims {
    Right,
    /// The reader believes what it read without looking at the map afterwards.
    NoRecheck,
    /// The reader looks at the map before it reads, not afterwards.
    CheckFirst,
    /// The overwrite is let go before the copy is published.
    PublishLate,
    /// A second writer is let go as soon as the block is claimed by the first.
    ReleaseOnClaim,
    /// The block counts as preserved before its page is in the ring.
    FillLate,
    /// The page leaves the ring before its write has completed.
    RetireEarly,
    /// The claimer looks at the bits first, and then whether the block is claimed.
    BitsFirst,
    /// Entries leave the memory although their blocks are not preserved.
    PageOutEarly,
    /// Entries leave the memory before it is known where they are on disk.
    ForgetFirst,
}

/// What the copy ring holds of the block.
#[derive(Clone, Copy, PartialEq)]
enum Slot {
    Empty,
    Reading,
    Ready(u64),
}

/// Where the index has the block's place.
#[derive(Clone, Copy, Default)]
struct Place {
    in_memory: bool,
    on_disk: bool,
}

struct Engine {
    preserved: Preserved,
    space: Space,
    origin: Disk,
    cow: Disk,
    /// One at a time claims; how often the block was claimed.
    claims: Lock<u32>,
    index: Lock<Place>,
    ring: Lock<Slot>,
    /// See [`Engine::step`].
    steps: AtomicU64,
}

impl Engine {
    fn new() -> Self {
        let preserved = Preserved::new(1).unwrap();
        preserved.reserve(0, 1).unwrap();
        Self {
            preserved,
            space: Space::new().unwrap(),
            origin: Disk::new(OLD),
            cow: Disk::new(0),
            claims: Lock::new(0),
            index: Lock::new(Place::default()),
            ring: Lock::new(Slot::Empty),
            steps: AtomicU64::new(0),
        }
    }

    /// Comes before whatever touches what others see. loom tries another order of two accesses only when
    /// the earlier one was the last to its object: a store is not tried before a load that another load
    /// follows. Steps are tried in every order. They order nothing else, being relaxed.
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn view(&self) -> View<'_> {
        View {
            preserved: &self.preserved,
            own: &[],
            first_data: 0,
            space: &self.space,
        }
    }

    fn is_preserved(&self) -> bool {
        self.step();
        self.preserved.all(0, 1)
    }

    /// Whether it is up to the caller to copy the block.
    fn claim(&self, how: Claims) -> bool {
        self.step();
        self.claims.with(|claims| {
            let early = how == Claims::BitsFirst && self.is_preserved();
            let known = self.place().in_memory;
            let preserved = match how {
                Claims::BitsFirst => early,
                _ => self.is_preserved(),
            };
            if known || preserved {
                return false;
            }
            self.set_slot(Slot::Reading);
            self.step();
            self.index.with(|index| index.in_memory = true);
            *claims += 1;
            assert_eq!(*claims, 1, "a block was claimed twice");
            true
        })
    }

    fn place(&self) -> Place {
        self.step();
        self.index.with(|place| *place)
    }

    fn slot(&self) -> Slot {
        self.step();
        self.ring.with(|slot| *slot)
    }

    fn set_slot(&self, to: Slot) {
        self.step();
        self.ring.with(|slot| *slot = to);
    }

    fn read_origin(&self) -> u64 {
        self.step();
        self.origin.read()
    }

    fn overwrite(&self) {
        self.step();
        self.origin.write(NEW);
    }

    /// A write to the origin's block, held until the old data is preserved. (A model that waited would have
    /// no end: a write that finds the block claimed and not preserved stays held.)
    fn write(&self, how: Claims) {
        if self.claim(how) {
            let old = self.read_origin();
            if how == Claims::PublishLate {
                self.overwrite();
            }
            if how == Claims::FillLate {
                self.step();
                self.preserved.set(0, 1);
            }
            self.step();
            self.ring.with(|slot| {
                *slot = Slot::Ready(old);
                self.step();
                self.preserved.set(0, 1);
            });
        }
        if how == Claims::ReleaseOnClaim || self.is_preserved() {
            self.overwrite();
        }
    }

    /// The copier: from memory to the COW file, if there is something.
    fn store(&self, how: Claims) {
        if let Slot::Ready(old) = self.slot() {
            if how == Claims::RetireEarly {
                self.set_slot(Slot::Empty);
            }
            self.step();
            self.cow.write(old);
            if how != Claims::RetireEarly {
                self.set_slot(Slot::Empty);
            }
        }
    }

    /// The pager: the index's entry goes from memory to disk, if it is there and may go.
    fn page_out(&self, how: Claims) {
        if !self.place().in_memory || (how != Claims::PageOutEarly && self.slot() == Slot::Reading)
        {
            return;
        }
        if how == Claims::ForgetFirst {
            self.step();
            self.index.with(|index| index.in_memory = false);
        }
        self.step();
        self.index.with(|index| {
            index.in_memory = false;
            index.on_disk = true;
        });
    }

    fn read(&self, how: Claims) -> u64 {
        loop {
            if self.is_preserved() {
                let place = self.place();
                assert!(place.in_memory || place.on_disk, "a copy is nowhere");
                return self.copy();
            }
            self.step();
            let before = self.view().origin_holds(0, 8);
            let data = self.read_origin();
            self.step();
            let holds = match how {
                Claims::NoRecheck => true,
                Claims::CheckFirst => before,
                _ => self.view().origin_holds(0, 8),
            };
            if holds {
                return data;
            }
        }
    }

    /// What was copied.
    fn copy(&self) -> u64 {
        match self.slot() {
            Slot::Ready(old) => old,
            // Not in memory: then it is on disk.
            Slot::Empty | Slot::Reading => self.cow.read(),
        }
    }
}

fn one_writer_one_reader(how: Claims) {
    check(move || {
        let engine = Arc::new(Engine::new());
        let writer = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.write(how))
        };
        let data = engine.read(how);
        assert_eq!(data, OLD, "snapshot read returned new data");
        writer.join().unwrap();
        assert_eq!(engine.origin.read(), NEW, "the user's write was lost");
        assert_eq!(engine.copy(), OLD, "the copy holds new data");
    });
}

#[test]
fn claims_protect_reads() {
    one_writer_one_reader(Claims::Right);
}

#[test]
#[should_panic(expected = "snapshot read returned new data")]
fn counter_reads_need_the_check_afterwards() {
    one_writer_one_reader(Claims::NoRecheck);
}

#[test]
#[should_panic(expected = "snapshot read returned new data")]
fn counter_a_check_before_the_read_is_not_enough() {
    one_writer_one_reader(Claims::CheckFirst);
}

#[test]
#[should_panic(expected = "snapshot read returned new data")]
fn counter_publish_comes_before_the_overwrite() {
    one_writer_one_reader(Claims::PublishLate);
}

/// Two writers of one block: only one of them reads and copies it, the other waits for that.
fn two_writers(how: Claims) {
    check_big(move || {
        let engine = Arc::new(Engine::new());
        let other = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.write(how))
        };
        engine.write(how);
        other.join().unwrap();
        assert_eq!(engine.copy(), OLD, "the copy holds new data");
        assert_eq!(engine.origin.read(), NEW, "the user's write was lost");
    });
}

#[test]
fn one_of_two_writers_copies() {
    two_writers(Claims::Right);
}

#[test]
#[should_panic(expected = "the copy holds new data")]
fn counter_claimed_is_not_preserved() {
    two_writers(Claims::ReleaseOnClaim);
}

#[test]
fn bits_are_not_lost_when_a_leaf_is_made() {
    check(|| {
        let map = Arc::new(Preserved::new(3).unwrap());
        let set = |block| {
            let map = Arc::clone(&map);
            move || {
                map.reserve(block, 1).unwrap();
                map.set(block, 1);
            }
        };
        let other = thread::spawn(set(1));
        set(2)();
        other.join().unwrap();
        assert!(map.all(1, 2), "a bit was lost");
        assert!(!map.all(0, 1));
    });
}

#[test]
fn two_writers_one_reader() {
    check_big(|| {
        let engine = Arc::new(Engine::new());
        let writers: Vec<_> = (1..3)
            .map(|_| {
                let engine = Arc::clone(&engine);
                thread::spawn(move || engine.write(Claims::Right))
            })
            .collect();
        assert_eq!(
            engine.read(Claims::Right),
            OLD,
            "snapshot read returned new data"
        );
        for w in writers {
            w.join().unwrap();
        }
        assert_eq!(engine.copy(), OLD, "the copy holds new data");
    });
}

fn with_copier(how: Claims) {
    check_big(move || {
        let engine = Arc::new(Engine::new());
        let writer = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.write(how))
        };
        let copier = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.store(how))
        };
        assert_eq!(engine.read(how), OLD, "snapshot read returned new data");
        writer.join().unwrap();
        copier.join().unwrap();
        assert_eq!(engine.read(how), OLD, "the COW file holds new data");
    });
}

#[test]
fn writer_copier_and_reader() {
    with_copier(Claims::Right);
}

#[test]
#[should_panic(expected = "snapshot read returned new data")]
fn counter_the_page_comes_before_the_bit() {
    with_copier(Claims::FillLate);
}

#[test]
#[should_panic(expected = "snapshot read returned new data")]
fn counter_the_page_stays_until_the_copy_is_on_disk() {
    with_copier(Claims::RetireEarly);
}

/// Entries of the index leave the memory while others claim and read.
fn with_pager(how: Claims) {
    check_big(move || {
        let engine = Arc::new(Engine::new());
        let writer = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.write(how))
        };
        let pager = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || engine.page_out(how))
        };
        // A second writer of the block, which must not copy it again.
        engine.write(how);
        assert_eq!(engine.read(how), OLD, "snapshot read returned new data");
        writer.join().unwrap();
        pager.join().unwrap();
        assert_eq!(engine.read(how), OLD, "snapshot read returned new data");
    });
}

#[test]
fn entries_leave_the_memory() {
    with_pager(Claims::Right);
}

#[test]
#[should_panic(expected = "a block was claimed twice")]
fn counter_claims_look_at_the_memory_first() {
    with_pager(Claims::BitsFirst);
}

#[test]
#[should_panic(expected = "a block was claimed twice")]
fn counter_only_preserved_entries_leave_the_memory() {
    with_pager(Claims::PageOutEarly);
}

#[test]
#[should_panic(expected = "a copy is nowhere")]
fn counter_entries_are_exchanged_at_once() {
    with_pager(Claims::ForgetFirst);
}

// ---------------------------------------------------------------------------------------------
// Failure: a write that is not preserved is let go only after the failure can be seen.

#[derive(Clone, Copy, PartialEq)]
enum Failing {
    Right,
    /// The write is let go before the failure is recorded.
    RecordLate,
    /// The reader tests for failure before it reads, not afterwards.
    TestFirst,
}

fn failing_snapshot(how: Failing) {
    check(move || {
        let engine = Arc::new(Engine::new());
        let failed = Arc::new(AtomicI32::new(0));
        let writer = {
            let (engine, failed) = (Arc::clone(&engine), Arc::clone(&failed));
            thread::spawn(move || {
                // No space for a copy: the snapshot fails, the write goes.
                if how == Failing::RecordLate {
                    engine.origin.write(NEW);
                }
                // Release: the failure before the write.
                failed.store(-27, Ordering::Release);
                engine.origin.write(NEW);
            })
        };
        let before = failed.load(Ordering::Acquire);
        let data = engine.read(Claims::Right);
        let error = if how == Failing::TestFirst {
            before
        } else {
            failed.load(Ordering::Acquire)
        };
        if error == 0 {
            assert_eq!(data, OLD, "a failed snapshot returned new data");
        }
        writer.join().unwrap();
    });
}

#[test]
fn failure_is_recorded_before_the_write_goes() {
    failing_snapshot(Failing::Right);
}

#[test]
#[should_panic(expected = "a failed snapshot returned new data")]
fn counter_failure_recorded_late() {
    failing_snapshot(Failing::RecordLate);
}

#[test]
#[should_panic(expected = "a failed snapshot returned new data")]
fn counter_failure_tested_first() {
    failing_snapshot(Failing::TestFirst);
}

// ---------------------------------------------------------------------------------------------
// Space: the COW file's own block reads as it was, or as zeros, never as a copy.

const COPY: u64 = 3;

fn own_block(take_first: bool) {
    check(move || {
        let space = Arc::new(Space::new().unwrap());
        space.add(Segment { start: 0, len: 1 }).unwrap();
        let block = Arc::new(Disk::new(OLD));
        let copier = {
            let (space, block) = (Arc::clone(&space), Arc::clone(&block));
            thread::spawn(move || {
                if !take_first {
                    block.write(COPY);
                }
                assert_eq!(space.take(1), Some((0, 1)));
                block.write(COPY);
            })
        };
        if !space.is_taken(0) {
            let data = block.read();
            if !space.is_taken(0) {
                assert_eq!(data, OLD, "a copy shows through in the snapshot");
            }
        }
        copier.join().unwrap();
        assert!(space.is_taken(0));
    });
}

#[test]
fn own_blocks_are_taken_before_they_are_written() {
    own_block(true);
}

#[test]
#[should_panic(expected = "a copy shows through in the snapshot")]
fn counter_own_blocks_written_before_they_are_taken() {
    own_block(false);
}

#[test]
fn blocks_are_taken_once_while_segments_are_added() {
    check_big(|| {
        let space = Arc::new(Space::new().unwrap());
        space.add(Segment { start: 0, len: 1 }).unwrap();
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let space = Arc::clone(&space);
                thread::spawn(move || {
                    let got = space.take(2);
                    if let Some((start, _)) = got {
                        // What was taken is seen as taken, its segment too.
                        assert!(space.is_taken(start), "taken but not seen");
                    }
                    got
                })
            })
            .collect();
        // Behind a gap; block 1 is never usable.
        space.add(Segment { start: 2, len: 1 }).unwrap();
        let mut got: Vec<_> = takers
            .into_iter()
            .filter_map(|t| t.join().unwrap())
            .collect();
        got.extend(space.take(2));
        got.sort_unstable();
        assert_eq!(got, [(0, 1), (2, 1)], "a block was taken twice or lost");
        assert!(!space.is_taken(1));
    });
}

// ---------------------------------------------------------------------------------------------
// The change map: lock-free marking loses nothing.

#[test]
fn marks_are_not_lost_when_a_leaf_is_made() {
    check(|| {
        let map = Arc::new(ChangeMap::new(100).unwrap());
        let other = {
            let map = Arc::clone(&map);
            thread::spawn(move || map.mark(1, 2))
        };
        map.mark(2, 2);
        other.join().unwrap();
        for block in 1..4 {
            assert!(map.is_marked(block), "a mark was lost");
        }
        assert_eq!(map.count(), 3, "a block was counted twice or not at all");
    });
}

#[test]
fn marks_are_not_lost_when_there_is_no_memory() {
    check(|| {
        let map = Arc::new(ChangeMap::new(100).unwrap());
        let other = {
            let map = Arc::clone(&map);
            thread::spawn(move || without_memory(|| map.mark(1, 1)))
        };
        map.mark(2, 1);
        other.join().unwrap();
        assert!(map.is_marked(1) && map.is_marked(2), "a mark was lost");
        // Either the whole leaf counts as changed, or the leaf came in time.
        let full = map.is_marked(50);
        assert_eq!(map.count(), if full { 100 } else { 2 });
    });
}

/// What a checkpoint needs of a mark: either the marker sees that the log is closing, or the one who
/// closed it sees the mark. Two markers of one block, so that one may find the bit set already.
fn barrier<M: Sync + Send + 'static>(new: fn() -> M, mark: fn(&M), is_marked: fn(&M) -> bool) {
    check(move || {
        let map = Arc::new(new());
        let closing = Arc::new(AtomicU64::new(0));
        let markers: Vec<_> = (0..2)
            .map(|_| {
                let (map, closing) = (Arc::clone(&map), Arc::clone(&closing));
                thread::spawn(move || {
                    mark(&map);
                    closing.load(Ordering::Acquire) == 1
                })
            })
            .collect();
        closing.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let copied = is_marked(&map);
        for marker in markers {
            let seen = marker.join().unwrap();
            assert!(seen || copied, "the mark slipped between copy and log");
        }
    });
}

#[test]
fn a_mark_is_a_full_barrier() {
    barrier(
        || {
            let map = ChangeMap::new(100).unwrap();
            // The leaf is there: the models of making it are above.
            map.mark(9, 1);
            map
        },
        |map| map.mark(0, 1),
        |map| map.is_marked(0),
    );
}

#[test]
#[should_panic(expected = "the mark slipped between copy and log")]
fn counter_setting_a_bit_alone_is_no_barrier() {
    barrier(
        || AtomicU64::new(0),
        |word| {
            word.fetch_or(1, Ordering::AcqRel);
        },
        |word| word.load(Ordering::Acquire) != 0,
    );
}

// ---------------------------------------------------------------------------------------------
// The point: what is written before it is in the sealed map, what comes after is in the new one.

#[derive(Clone, Copy, PartialEq)]
enum Point {
    Right,
    /// The old map is sealed without waiting for what was in flight at the switch.
    NoDrain,
    /// The old map is sealed when the last old probe has returned, while its bio is still on its way.
    DrainProbesOnly,
}

/// A write that races with the switch from epoch n (only tracking) to n + 1 (a new snapshot). The
/// counter stands for the probe's read section *and* the bio's time in flight: what the switch waits
/// for is the grace period of the tracepoint and the drained queue.
fn point(how: Point) {
    check_big(move || {
        let epoch = Arc::new(AtomicU64::new(0));
        let in_flight = Arc::new(AtomicU64::new(0));
        let old_map = Arc::new(ChangeMap::new(100).unwrap());
        let new_map = Arc::new(ChangeMap::new(100).unwrap());
        let engine = Arc::new(Engine::new());

        let writer = {
            let (epoch, in_flight) = (Arc::clone(&epoch), Arc::clone(&in_flight));
            let (old_map, new_map) = (Arc::clone(&old_map), Arc::clone(&new_map));
            let engine = Arc::clone(&engine);
            thread::spawn(move || {
                in_flight.fetch_add(1, Ordering::AcqRel);
                fence(Ordering::SeqCst);
                let old_epoch = epoch.load(Ordering::Acquire) == 0;
                old_map.mark(0, 1);
                if !old_epoch {
                    // Draining: both maps.
                    new_map.mark(0, 1);
                }
                if how == Point::DrainProbesOnly {
                    in_flight.fetch_sub(1, Ordering::AcqRel);
                }
                if old_epoch {
                    engine.origin.write(NEW);
                } else {
                    // The new snapshot is protected.
                    engine.write(Claims::Right);
                }
                if how != Point::DrainProbesOnly {
                    in_flight.fetch_sub(1, Ordering::AcqRel);
                }
            })
        };

        epoch.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if how != Point::NoDrain {
            while in_flight.load(Ordering::Acquire) != 0 {
                thread::yield_now();
            }
        }
        let sealed = old_map.is_marked(0);
        // The node is readable now. An image that was brought up to date with the sealed map:
        let first = engine.read(Claims::Right);
        let image = if sealed { first } else { OLD };
        writer.join().unwrap();
        let later = engine.read(Claims::Right);
        assert_eq!(first, later, "the snapshot changed");
        assert_eq!(image, later, "a changed block is missing in the sealed map");
        if engine.origin.read() != later {
            assert!(
                new_map.is_marked(0),
                "a changed block is missing in the new map"
            );
        }
    });
}

#[test]
fn the_point_loses_no_change() {
    point(Point::Right);
}

#[test]
#[should_panic(expected = "the snapshot changed")]
fn counter_the_point_waits_for_what_is_in_flight() {
    point(Point::NoDrain);
}

#[test]
#[should_panic(expected = "the snapshot changed")]
fn counter_the_probe_alone_is_not_all_that_is_in_flight() {
    point(Point::DrainProbesOnly);
}
