// SPDX-License-Identifier: GPL-2.0-only
//! Copies of old blocks on their way from the origin to the COW file.
//!
//! Blocks that are claimed together and lie in a row, on the origin and in the COW file, make a *chunk*:
//! one buffer, one entry of the ring. Every chunk gets the next sequence number; slot `seq % slots` holds
//! what is known of it until its copy is on disk. The blocks of all chunks between claim and disk are never
//! more than the capacity, which thereby bounds the memory for copies.
//!
//! ```text
//!   Reading --fill()--> Ready --next_batch()--> Writing --retire()--> Empty
//! ```
//! Ready and Writing slots hold the buffer, so that snapshot reads can take it from here. They look by
//! place: places in the COW file go up with the sequence numbers. A preserved block whose copy is not here
//! is on disk (`logic/preserved.rs` has the argument).

use crate::copy_memory::{CopyMemory, RESERVE_PAGES};
use crate::sys::page::CopyPages;
use kernel::alloc::AllocError;
use kernel::prelude::*;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Reading,
    Ready,
    Writing,
}

struct Slot {
    state: State,
    pages: Option<CopyPages>,
    /// First block of the COW file that it goes to.
    place: u64,
    /// Where that lies on the origin.
    origin: u64,
    /// Blocks.
    len: u64,
}

/// See the module's description. The owner guards it by a spinlock; nothing in here sleeps.
pub(crate) struct CopyRing {
    slots: KVVec<Slot>,
    /// Most blocks between claim and disk.
    capacity: u64,
    /// Blocks between claim and disk.
    used: u64,
    /// Blocks that are Ready.
    ready: u64,
    /// Lowest sequence number not yet retired.
    tail: u64,
    /// First sequence number that `next_batch` has not given out.
    cursor: u64,
    /// Next sequence number.
    head: u64,
    memory: CopyMemory,
}

/// Chunks that go to consecutive blocks of the origin.
pub(crate) struct Batch {
    pub(crate) seq: u64,
    /// How many chunks.
    pub(crate) chunks: u16,
    /// First block of the origin.
    pub(crate) origin: u64,
}

/// Where the copy of a preserved block is.
pub(crate) enum Look {
    /// In this buffer, from this block of it on, for so many blocks.
    Here(CopyPages, u64, u64),
    /// In the COW file, for so many blocks.
    OnDisk(u64),
}

impl CopyRing {
    /// A ring for at most `capacity` blocks. Allocates its reserve. May sleep.
    pub(crate) fn new(capacity: u64) -> Result<Self, AllocError> {
        let n = usize::try_from(capacity).map_err(|_| AllocError)?.max(RESERVE_PAGES * 2);
        let mut slots = KVVec::with_capacity(n, GFP_KERNEL)?;
        for _ in 0..n {
            slots.push(
                Slot { state: State::Empty, pages: None, place: 0, origin: 0, len: 0 },
                GFP_KERNEL,
            )?;
        }
        let capacity = n as u64;
        let memory = CopyMemory::new(capacity)?;
        Ok(Self { slots, capacity, used: 0, ready: 0, tail: 0, cursor: 0, head: 0, memory })
    }

    /// Most blocks at once.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Blocks between claim and disk.
    pub(crate) fn in_use(&self) -> u64 {
        self.used
    }

    /// How many more blocks may be claimed now.
    pub(crate) fn room(&self) -> u64 {
        // Chunks that were retired keep their slots until all before them are.
        let slots = (self.slots.len() as u64).saturating_sub(self.head.saturating_sub(self.tail));
        self.capacity.saturating_sub(self.used).min(slots)
    }

    /// Blocks whose old data has been read and that wait to be written.
    pub(crate) fn ready(&self) -> u64 {
        self.ready
    }

    /// So much of the room is taken that copies should not wait for company.
    pub(crate) fn is_half_full(&self) -> bool {
        self.used >= self.capacity / 2
    }

    fn slot(&mut self, seq: u64) -> Option<&mut Slot> {
        if seq < self.tail || seq >= self.head {
            return None;
        }
        let n = (self.slots.len() as u64).max(1);
        self.slots.get_mut((seq % n) as usize)
    }

    /// A page from the reserve.
    pub(crate) fn reserve_page(&mut self) -> Option<CopyPages> {
        self.memory.reserve_page()
    }

    /// Pages that are kept and not reserved, as far as `out` has room.
    pub(crate) fn take_singles(&mut self, out: &mut KVec<CopyPages>) {
        self.memory.take_singles(out);
    }

    /// The largest buffer of at most `blocks` blocks, if one is kept. Not for single pages.
    pub(crate) fn take_large(&mut self, blocks: u64) -> Option<CopyPages> {
        self.memory.take_large(blocks, self.used)
    }

    /// Takes back a buffer that was not needed.
    pub(crate) fn unused(&mut self, pages: CopyPages) {
        self.memory.give(pages, self.used);
    }

    /// Nothing is on its way, and yet more memory is kept than the reserve.
    pub(crate) fn can_shrink(&self) -> bool {
        self.used == 0 && self.memory.can_shrink()
    }

    /// Gives back some of the memory beside the reserve. Whether there is more.
    pub(crate) fn shrink(&mut self) -> bool {
        if self.can_shrink() {
            self.memory.shrink_by(256);
        }
        self.can_shrink()
    }

    /// Enters a claimed chunk; its sequence number. The caller has asked for [`CopyRing::room`].
    pub(crate) fn push(&mut self, place: u64, origin: u64, len: u64) -> u64 {
        let seq = self.head;
        self.head = seq.saturating_add(1);
        self.used = self.used.saturating_add(len);
        if let Some(slot) = self.slot(seq) {
            *slot = Slot { state: State::Reading, pages: None, place, origin, len };
        }
        seq
    }

    /// The old data of `seq` has been read into `pages`.
    pub(crate) fn fill(&mut self, seq: u64, pages: CopyPages) {
        if let Some(slot) = self.slot(seq) {
            slot.pages = Some(pages);
            slot.state = State::Ready;
            let len = slot.len;
            self.ready = self.ready.saturating_add(len);
        }
    }

    /// The buffer of `seq`, while it is here, and the blocks in it.
    pub(crate) fn pages(&mut self, seq: u64) -> Option<(CopyPages, u64)> {
        let slot = self.slot(seq)?;
        Some((slot.pages.as_ref()?.share(), slot.len))
    }

    /// Next sequence number.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Whether the old data of all below `seq` has been read.
    pub(crate) fn has_read(&mut self, seq: u64) -> bool {
        (self.tail..seq.min(self.head))
            .all(|seq| self.slot(seq).is_none_or(|s| s.state != State::Reading))
    }

    /// Where the copy of the preserved block with this place is, and the `max - 1` behind it, as far as
    /// they are in one buffer, or all on disk.
    pub(crate) fn look(&mut self, place: u64, max: u64) -> Look {
        // The first chunk that does not end before it.
        let (mut seq, mut end) = (self.tail, self.head);
        while seq < end {
            let middle = seq.saturating_add(end.saturating_sub(seq) / 2);
            if self.slot(middle).is_some_and(|s| s.place.saturating_add(s.len) <= place) {
                seq = middle.saturating_add(1);
            } else {
                end = middle;
            }
        }
        let Some(slot) = self.slot(seq) else { return Look::OnDisk(max) };
        if place < slot.place {
            return Look::OnDisk(slot.place.saturating_sub(place).min(max));
        }
        let first = place.saturating_sub(slot.place);
        let len = slot.len.saturating_sub(first).min(max);
        match &slot.pages {
            Some(pages) => Look::Here(pages.share(), first, len),
            None => Look::OnDisk(len),
        }
    }

    /// The next chunks to write, in order: at most `max` blocks, at least `min`, bound for consecutive
    /// blocks of the origin. They are `Writing` from then on.
    pub(crate) fn next_batch(&mut self, min: u64, max: u64) -> Option<Batch> {
        let seq = self.cursor.max(self.tail);
        let (mut chunks, mut blocks) = (0u16, 0u64);
        let mut first = 0;
        // A run that cannot grow any more is as good as a full one.
        let mut closed = false;
        while let Some(s) = self.slot(seq.saturating_add(u64::from(chunks))) {
            let (ready, origin, len) = (s.state == State::Ready, s.origin, s.len);
            if chunks == 0 {
                first = origin;
            } else if origin != first.saturating_add(blocks) || blocks.saturating_add(len) > max {
                closed = true;
                break;
            }
            if !ready {
                break;
            }
            chunks = chunks.saturating_add(1);
            blocks = blocks.saturating_add(len);
        }
        if chunks == 0 || (blocks < min && !closed) {
            return None;
        }
        for i in 0..u64::from(chunks) {
            if let Some(s) = self.slot(seq.saturating_add(i)) {
                s.state = State::Writing;
            }
        }
        self.ready = self.ready.saturating_sub(blocks);
        self.cursor = seq.saturating_add(u64::from(chunks));
        Some(Batch { seq, chunks, origin: first })
    }

    /// The copy of `seq` is on disk: forgets it.
    pub(crate) fn retire(&mut self, seq: u64) {
        let Some(slot) = self.slot(seq) else { return };
        slot.state = State::Empty;
        let (pages, len) = (slot.pages.take(), slot.len);
        self.used = self.used.saturating_sub(len);
        if let Some(pages) = pages {
            self.memory.give(pages, self.used);
        }
        while self.tail < self.cursor {
            let tail = self.tail;
            match self.slot(tail) {
                Some(s) if s.state == State::Empty => self.tail = tail.saturating_add(1),
                _ => break,
            }
        }
    }
}
