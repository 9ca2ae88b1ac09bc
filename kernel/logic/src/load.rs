// SPDX-License-Identifier: GPL-2.0-only
//! Reading a COW file's private blocks back: which root counts, what changed, where the file lies.
//!
//! Nothing is believed that does not carry the file's nonce, its own number and a good checksum. What
//! is bad and means changes counts as changed: a sector of the log all its regions, a bitmap block
//! its group. What is bad and means anything else is an error. The module reads a device with this
//! (`kernel/log_load.rs`), the power-cut tests recorded disks, at each of their flushes.

use super::abi::cow::{
    Geometry, PrivateLayout, GROUP_BLOCKS, GROUP_REGIONS, LOG_BLOCK_GROUPS, REGION_BLOCKS,
};
use super::change_map::ChangeMap;
use super::extents::{validate_from, FileExtent};
use super::private_format::{
    check, decode_bitmap, decode_extent, decode_log, Block, GroupWord, Kind, Root, RootState,
    EXTENTS_PER_BLOCK,
};
use super::regions::GROUP_MASK;

/// What is wrong with what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A number that cannot be: nothing lies there.
    Impossible,
    /// A block that is not what it should be.
    Damaged,
}

/// Where blocks of the origin are read from.
pub trait Source {
    /// Reading fails with this, and so does what cannot be believed.
    type Error: From<Flaw>;

    /// A block of the origin.
    ///
    /// # Errors
    ///
    /// It could not be read.
    fn read(&mut self, block: u64) -> Result<&Block, Self::Error>;

    /// Says what will be read next, in this order: at most [`AHEAD`] blocks. Only a hint: what cannot be read
    /// is an error when it is its turn, not before.
    fn read_ahead(&mut self, _blocks: &[u64]) {}
}

/// How many blocks are asked for at once. A disk that takes 10 ms for a request, whatever its size, then reads the
/// bitmap of a TiB in a second instead of in a minute and a half.
pub const AHEAD: usize = 128;

/// Reads a block for each of `numbers` and shows it to `each`; `at` says where it lies.
///
/// # Errors
///
/// Of the first one whose place is not known, that cannot be read, or that `each` does not like.
pub fn read_each<S: Source, N>(
    source: &mut S,
    numbers: impl Iterator<Item = N> + Clone,
    at: impl Fn(&N) -> Result<u64, Flaw>,
    mut each: impl FnMut(N, &Block) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    let mut left = numbers;
    loop {
        let mut ahead = [0; AHEAD];
        let mut known = 0usize;
        for (room, number) in ahead.iter_mut().zip(left.clone()) {
            // Its error is for when it is its turn.
            let Ok(block) = at(&number) else { break };
            *room = block;
            known = known.saturating_add(1);
        }
        source.read_ahead(ahead.get(..known).unwrap_or(&[]));
        let mut last = true;
        for number in left.by_ref().take(AHEAD) {
            last = false;
            let block = source.read(at(&number)?)?;
            each(number, block)?;
        }
        if last {
            return Ok(());
        }
    }
}

/// Where a private block of a file lies on the origin, by the list in its root.
pub fn place(root: &Root, layout: &PrivateLayout, file_block: u64) -> Result<u64, Flaw> {
    let mut offset = file_block
        .checked_sub(layout.roots)
        .ok_or(Flaw::Impossible)?;
    for &(start, len) in &root.own {
        if offset < len {
            return start.checked_add(offset).ok_or(Flaw::Impossible);
        }
        offset = offset.saturating_sub(len);
    }
    Err(Flaw::Impossible)
}

/// Shows `keep` the roots that are good, each only if it is newer than the one before: the last one
/// that it gets is the one that counts. Its generation is returned.
///
/// # Errors
///
/// [`Flaw::Damaged`]: neither is good; or reading has failed; or what `keep` says.
#[inline(never)] // Large on the stack.
pub fn read_root<S: Source>(
    source: &mut S,
    nonce: u64,
    roots: [u64; 2],
    layout: &PrivateLayout,
    mut keep: impl FnMut(Root) -> Result<(), S::Error>,
) -> Result<u64, S::Error> {
    let mut best: Option<u64> = None;
    for (i, place) in (0u64..).zip(roots) {
        let block = source.read(place)?;
        let number = layout.roots.saturating_add(i);
        let Some(generation) = check(block, Kind::Root, nonce, number) else {
            continue;
        };
        if best.is_some_and(|newest| newest >= generation) {
            continue;
        }
        if let Some(root) = Root::decode(block) {
            keep(root)?;
            best = Some(generation);
        }
    }
    best.ok_or_else(|| Flaw::Damaged.into())
}

/// Whether all private blocks lie on the device.
pub fn lies_within(root: &Root, geometry: Geometry) -> bool {
    root.own.iter().all(|(start, len)| {
        start
            .checked_add(*len)
            .is_some_and(|end| end <= geometry.blocks())
    })
}

/// Reads the region log into `words`, one for each group. Returns how many of its sectors were bad.
///
/// # Errors
///
/// Reading has failed, or the root does not say where it lies.
pub fn read_log<S: Source>(
    source: &mut S,
    root: &Root,
    nonce: u64,
    layout: &PrivateLayout,
    words: &mut [GroupWord],
) -> Result<u32, S::Error> {
    let mut bad = 0u32;
    let blocks = words.len().div_ceil(LOG_BLOCK_GROUPS as usize) as u64;
    let mut chunks = words.chunks_mut(LOG_BLOCK_GROUPS as usize);
    read_each(
        source,
        layout.log..layout.log.saturating_add(blocks),
        |number| place(root, layout, *number),
        |number, block| {
            if let Some(chunk) = chunks.next() {
                bad = bad.saturating_add(decode_log(block, nonce, number, chunk));
            }
            Ok(())
        },
    )?;
    Ok(bad)
}

/// Whether any region is marked.
pub fn any_mark(words: &[GroupWord]) -> bool {
    words.iter().any(|w| w.marks & GROUP_MASK != 0)
}

/// What the region log says, and room for its groups in the order in which their bitmaps lie on the disk.
///
/// Checkpoints give slots to groups as they come, and a disk that has to seek for each would take minutes for many TiB.
pub struct Groups<'a> {
    /// One for each group.
    pub words: &'a [GroupWord],
    /// A number for each slot, whatever is in there. A slot for which there is none is read by itself.
    pub by_slot: &'a mut [u32],
}

/// Enters in `changes` what a file says: its bitmap, and the regions that are marked if its root makes
/// them count. `bad` is told of groups whose bitmap block is bad; they count as changed. Returns how many
/// blocks only the marks have added.
///
/// # Errors
///
/// Reading has failed, or the root does not say where something lies. Which one comes first does not matter.
pub fn read_changes<S: Source>(
    source: &mut S,
    root: &Root,
    nonce: u64,
    layout: &PrivateLayout,
    groups: Groups<'_>,
    changes: &ChangeMap,
    mut bad: impl FnMut(u32),
) -> Result<u64, S::Error> {
    let Groups { words, by_slot } = groups;
    let number = |slot: u64| layout.slots.saturating_add(slot);
    let mut enter = |group: u32, slot: u64, block: Option<&Block>| {
        let first = u64::from(group).saturating_mul(GROUP_BLOCKS);
        let good = block.filter(|b| check(b, Kind::Bitmap, nonce, number(slot)).is_some());
        match good.and_then(|b| decode_bitmap(b, u64::from(group))) {
            Some(bits) => changes.mark_words(first, bits),
            None => {
                bad(group);
                changes.mark(first, GROUP_BLOCKS);
            }
        }
    };
    by_slot.fill(0);
    for (group, word) in (0u32..).zip(words) {
        let Some(slot) = word.slot.checked_sub(1) else {
            continue;
        };
        if u64::from(slot) >= layout.slot_count {
            // A bad sector of the log names a slot that there is not: no block can be right.
            enter(group, u64::from(slot), None);
            continue;
        }
        match by_slot.get_mut(slot as usize).filter(|taken| **taken == 0) {
            Some(taken) => *taken = group.saturating_add(1),
            None => {
                let block = source.read(place(root, layout, number(u64::from(slot)))?)?;
                enter(group, u64::from(slot), Some(block));
            }
        }
    }
    let taken = |(slot, taken): (u64, &u32)| Some((slot, taken.checked_sub(1)?));
    read_each(
        source,
        (0u64..).zip(by_slot.iter()).filter_map(taken),
        |(slot, _)| place(root, layout, number(*slot)),
        |(slot, group), block| {
            enter(group, slot, Some(block));
            Ok(())
        },
    )?;
    let before = changes.count();
    if matches!(root.state, RootState::Live | RootState::Prepared) {
        mark_regions(changes, words);
    }
    Ok(changes.count().saturating_sub(before))
}

/// Marks all blocks of the marked regions.
fn mark_regions(changes: &ChangeMap, words: &[GroupWord]) {
    for (group, word) in (0u64..).zip(words) {
        for region in (0..GROUP_REGIONS).filter(|r| word.marks.wrapping_shr(*r as u32) & 1 != 0) {
            let start = group
                .saturating_mul(GROUP_BLOCKS)
                .saturating_add(region.saturating_mul(REGION_BLOCKS));
            changes.mark(start, REGION_BLOCKS);
        }
    }
}

/// Shows `push` where the file lies, by the list that its root names. [`check_extents`] then judges the
/// whole.
///
/// # Errors
///
/// The list is bad or cannot be read; or what `push` says.
pub fn read_extents<S: Source>(
    source: &mut S,
    root: &Root,
    nonce: u64,
    layout: &PrivateLayout,
    mut push: impl FnMut(FileExtent) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    let list = u64::from(root.list & 1).saturating_mul(layout.list_blocks);
    let first = layout.lists.saturating_add(list);
    let mut left = root.extents as usize;
    let blocks = left.div_ceil(EXTENTS_PER_BLOCK) as u64;
    if blocks > layout.list_blocks {
        return Err(Flaw::Impossible.into());
    }
    read_each(
        source,
        first..first.saturating_add(blocks),
        |number| place(root, layout, *number),
        |number, block| {
            if check(block, Kind::Extents, nonce, number) != Some(root.list_generation) {
                return Err(Flaw::Damaged.into());
            }
            for i in 0..left.min(EXTENTS_PER_BLOCK) {
                push(decode_extent(block, i))?;
            }
            left = left.saturating_sub(EXTENTS_PER_BLOCK);
            Ok(())
        },
    )
}

/// Whether extents, in order of the file, can be where the file of `root` lies.
///
/// # Errors
///
/// [`Flaw::Impossible`].
pub fn check_extents(root: &Root, list: &[FileExtent]) -> Result<(), Flaw> {
    let geometry = Geometry {
        origin_bytes: root.origin_bytes,
    };
    let start = if root.counted {
        geometry.first_data_position()
    } else {
        0
    };
    validate_from(start, list, geometry.blocks())
        .map(|_| ())
        .map_err(|_| Flaw::Impossible)
}
