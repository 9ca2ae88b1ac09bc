// SPDX-License-Identifier: GPL-2.0-only
//! Where the COW file lies on the origin.
//!
//! The same extents are kept in two orders: *by file* (sorted by `file_block`), to find where a
//! position of the file is, and *by origin* (sorted by `origin_block`), to find whether a block of
//! the origin belongs to the file. All lookups are binary searches on slices. No overlaps in either
//! order, no empty extents: [`validate`] and [`validate_by_origin`] check that once.
//!
//! On a filesystem whose own blocks are smaller, a piece of the file may begin and end anywhere in a
//! block of the origin, which then holds parts of other files too. There the blocks of the file are
//! *counted*: only blocks of the origin that lie within one piece are in the extents, numbered 0, 1, 2
//! in the order of the file, wherever in the file that is. Before number `n` there are `n` whole blocks
//! of the file, so it lies at or behind byte `n * 4096`. From the number of the first data block on,
//! all are in the data part. Below, they may be in either part. When the file grows, no number changes.
//!
//! Any context.

use super::abi::cow::SECTORS_PER_BLOCK;
use core::ops::{Deref, Range};

/// A piece of the COW file that is contiguous on the origin. All numbers are 4096-byte blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileExtent {
    /// First block, counted from the start of the file.
    pub file_block: u64,
    /// Where it is, counted from the start of the tracked device.
    pub origin_block: u64,
    /// Number of blocks, never 0.
    pub len: u64,
}

impl FileExtent {
    /// The block of the file behind this extent.
    pub const fn file_end(&self) -> u64 {
        self.file_block.saturating_add(self.len)
    }

    /// The block of the origin behind this extent.
    pub const fn origin_end(&self) -> u64 {
        self.origin_block.saturating_add(self.len)
    }

    /// First sector on the tracked device (512 bytes, from the device's start).
    pub const fn origin_sector(&self) -> u64 {
        self.origin_block.saturating_mul(SECTORS_PER_BLOCK)
    }

    /// The extent without its first `n` blocks; empty (`len` 0) when it has no more.
    pub const fn skip(&self, n: u64) -> Self {
        let n = if n < self.len { n } else { self.len };
        Self {
            file_block: self.file_block.saturating_add(n),
            origin_block: self.origin_block.saturating_add(n),
            len: self.len.saturating_sub(n),
        }
    }

    /// Takes `next` in if it continues this extent, in the file and on the origin; true if so.
    pub fn append(&mut self, next: FileExtent) -> bool {
        let fits = self.file_block.checked_add(self.len) == Some(next.file_block)
            && self.origin_block.checked_add(self.len) == Some(next.origin_block);
        match self.len.checked_add(next.len) {
            Some(len) if fits => {
                self.len = len;
                true
            }
            _ => false,
        }
    }
}

/// Appends `next` to a list whose last element is `last`. Returns what the caller has to push: `None`
/// when `next` was merged into `last`, or is empty.
///
/// ```
/// # use cow_logic::extents::{merge_push, FileExtent};
/// # let next = FileExtent { file_block: 0, origin_block: 7, len: 1 };
/// # let mut list = Vec::new();
/// if let Some(e) = merge_push(list.last_mut(), next) {
///     list.push(e);
/// }
/// # assert_eq!(list, [next]);
/// ```
pub fn merge_push(last: Option<&mut FileExtent>, next: FileExtent) -> Option<FileExtent> {
    if next.len == 0 || last.is_some_and(|last| last.append(next)) {
        None
    } else {
        Some(next)
    }
}

/// The parts of `e` whose place in the file is before `hole` and behind it; `len` is 0 where there is none.
pub fn outside(e: FileExtent, hole: &Range<u64>) -> [FileExtent; 2] {
    let before = hole.start.saturating_sub(e.file_block).min(e.len);
    let behind = e.skip(hole.end.saturating_sub(e.file_block));
    [FileExtent { len: before, ..e }, behind]
}

/// Sorts by place in the file.
pub fn sort_by_file(list: &mut [FileExtent]) {
    heap_sort(list, |e| e.file_block);
}

/// Sorts by place on the origin.
pub fn sort_by_origin(list: &mut [FileExtent]) {
    heap_sort(list, |e| e.origin_block);
}

/// In place, in O(n log n). `core`'s own sorts contain panicking paths, for orders that contradict
/// themselves, and a panic in the kernel is a crash of the machine.
fn heap_sort(list: &mut [FileExtent], key: impl Fn(&FileExtent) -> u64) {
    let n = list.len();
    for root in (0..n / 2).rev() {
        sift_down(list, root, n, &key);
    }
    for end in (1..n).rev() {
        exchange(list, 0, end);
        sift_down(list, 0, end, &key);
    }
}

/// Moves the element at `root` down until no child of it, within the first `end`, is larger.
fn sift_down(list: &mut [FileExtent], root: usize, end: usize, key: impl Fn(&FileExtent) -> u64) {
    let mut root = root;
    loop {
        let left = root.saturating_mul(2).saturating_add(1);
        let larger = (left..end.min(left.saturating_add(2))).max_by_key(|i| list.get(*i).map(&key));
        match larger {
            Some(child) if list.get(child).map(&key) > list.get(root).map(&key) => {
                exchange(list, root, child);
                root = child;
            }
            _ => return,
        }
    }
}

fn exchange(list: &mut [FileExtent], a: usize, b: usize) {
    if let (Some(x), Some(y)) = (list.get(a).copied(), list.get(b).copied()) {
        if let Some(slot) = list.get_mut(a) {
            *slot = y;
        }
        if let Some(slot) = list.get_mut(b) {
            *slot = x;
        }
    }
}

/// The last extent whose `key` is at most `at`.
fn at_or_before(
    list: &[FileExtent],
    at: u64,
    key: impl Fn(&FileExtent) -> u64,
) -> Option<&FileExtent> {
    let behind = list.partition_point(|e| key(e) <= at);
    list.get(behind.checked_sub(1)?)
}

/// Where a block of the file is: the block of the origin, and how many blocks (this one included) go
/// on contiguously from there. `None`: not in the file.
pub fn locate(by_file: &[FileExtent], file_block: u64) -> Option<(u64, u64)> {
    let rest = covering(at_or_before(by_file, file_block, |e| e.file_block)?, |e| {
        file_block.checked_sub(e.file_block)
    })?;
    Some((rest.origin_block, rest.len))
}

/// Which block of the file a block of the origin is, and how many blocks (this one included) go on
/// contiguously from there. `None`: the block does not belong to the file.
pub fn owner(by_origin: &[FileExtent], origin_block: u64) -> Option<(u64, u64)> {
    let rest = covering(
        at_or_before(by_origin, origin_block, |e| e.origin_block)?,
        |e| origin_block.checked_sub(e.origin_block),
    )?;
    Some((rest.file_block, rest.len))
}

/// The rest of the extent from the given distance on, if that is within it.
fn covering(e: &FileExtent, distance: impl Fn(&FileExtent) -> Option<u64>) -> Option<FileExtent> {
    let rest = e.skip(distance(e)?);
    (rest.len != 0).then_some(rest)
}

/// The first piece of the range of `len` origin blocks from `start` on that belongs to the file, cut
/// to that range; contiguous in both orders.
pub fn next_owned(by_origin: &[FileExtent], start: u64, len: u64) -> Option<FileExtent> {
    let end = start.saturating_add(len);
    // The first extent that ends behind `start`: ends are sorted as the starts are, for there are no
    // overlaps.
    let first = by_origin.partition_point(|e| e.origin_end() <= start);
    let mut piece = *by_origin.get(first)?;
    piece = piece.skip(start.saturating_sub(piece.origin_block));
    piece.len = piece.len.min(end.saturating_sub(piece.origin_block));
    (piece.len != 0).then_some(piece)
}

/// Whether any of `len` origin blocks from `start` on belongs to the file.
#[inline]
pub fn overlaps(by_origin: &[FileExtent], start: u64, len: u64) -> bool {
    // Most lie before or behind the file.
    let end = start.saturating_add(len);
    let (Some(first), Some(last)) = (by_origin.first(), by_origin.last()) else {
        return false;
    };
    end > first.origin_block && start < last.origin_end() && overlaps_within(by_origin, start, len)
}

/// The same for blocks between the file's.
#[inline(never)]
fn overlaps_within(by_origin: &[FileExtent], start: u64, len: u64) -> bool {
    // As in `next_owned`, without the piece itself.
    let end = start.saturating_add(len);
    let first = by_origin.partition_point(|e| e.origin_end() <= start);
    by_origin
        .get(first)
        .is_some_and(|e| len != 0 && e.len != 0 && e.origin_block < end)
}

/// Extents that nobody else may write to, asked about for every write.
pub struct Guarded<L> {
    by_origin: L,
    /// The widest gap between two of them, from its first block to the one behind it: what lies in there
    /// needs no search.
    gap: (u64, u64),
}

impl<L: Deref<Target = [FileExtent]>> Guarded<L> {
    /// Of extents in order of origin blocks, none of which overlaps another.
    pub fn new(by_origin: L) -> Self {
        let starts = by_origin.iter().skip(1).map(|e| e.origin_block);
        let gap = by_origin
            .iter()
            .map(FileExtent::origin_end)
            .zip(starts)
            .max_by_key(|(end, start)| start.saturating_sub(*end))
            .unwrap_or((0, 0));
        Self { by_origin, gap }
    }

    /// In order of origin blocks.
    pub fn extents(&self) -> &[FileExtent] {
        &self.by_origin
    }

    /// Whether any of `len` blocks from `start` on is guarded. Any context.
    #[inline]
    pub fn is_hit(&self, start: u64, len: u64) -> bool {
        let in_gap = start >= self.gap.0 && start.saturating_add(len) <= self.gap.1;
        !in_gap && overlaps(&self.by_origin, start, len)
    }
}

/// Checks extents sorted by file: together they are exactly the blocks `0..file_blocks`, and all lie
/// within the origin. Whether they overlap on the origin only [`validate_by_origin`] can tell.
///
/// # Errors
///
/// What is wrong, for the kernel log.
pub fn validate(
    by_file: &[FileExtent],
    file_blocks: u64,
    origin_blocks: u64,
) -> Result<(), &'static str> {
    match validate_from(0, by_file, origin_blocks)? {
        end if end > file_blocks => Err("extent behind the end of the file"),
        end if end < file_blocks => Err("the end of the file has no extent"),
        _ => Ok(()),
    }
}

/// Checks extents sorted by file: they are contiguous in the file, from block `first` on, and lie within
/// the origin. Returns the block behind the last.
///
/// # Errors
///
/// What is wrong, for the kernel log.
pub fn validate_from(
    first: u64,
    by_file: &[FileExtent],
    origin_blocks: u64,
) -> Result<u64, &'static str> {
    let mut next = first;
    for e in by_file {
        if e.len == 0 {
            return Err("empty extent");
        }
        if e.file_block > next {
            return Err("hole in the file");
        }
        if e.file_block < next {
            return Err("extents overlap in the file");
        }
        next = e
            .file_block
            .checked_add(e.len)
            .ok_or("extent behind the end of the file")?;
        match e.origin_block.checked_add(e.len) {
            Some(end) if end <= origin_blocks => {}
            _ => return Err("extent behind the end of the device"),
        }
    }
    Ok(next)
}

/// Checks counted extents of a file of `file_blocks` blocks (see the module's description): as
/// [`validate`] does, but there may be less of them.
///
/// # Errors
///
/// What is wrong, for the kernel log.
pub fn validate_counted(
    by_file: &[FileExtent],
    file_blocks: u64,
    origin_blocks: u64,
) -> Result<(), &'static str> {
    let count = by_file.last().map_or(0, FileExtent::file_end);
    validate(by_file, count.min(file_blocks), origin_blocks)
}

/// Checks extents sorted by origin: no two of them share a block.
///
/// # Errors
///
/// What is wrong, for the kernel log.
pub fn validate_by_origin(by_origin: &[FileExtent]) -> Result<(), &'static str> {
    let mut next = 0;
    for e in by_origin {
        if e.len == 0 {
            return Err("empty extent");
        }
        if e.origin_block < next {
            return Err("extents overlap on the device");
        }
        next = e
            .origin_block
            .checked_add(e.len)
            .ok_or("extent behind the end of the device")?;
    }
    Ok(())
}
