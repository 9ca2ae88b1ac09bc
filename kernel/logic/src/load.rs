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
    for (i, chunk) in (0u64..).zip(words.chunks_mut(LOG_BLOCK_GROUPS as usize)) {
        let number = layout.log.saturating_add(i);
        let block = source.read(place(root, layout, number)?)?;
        bad = bad.saturating_add(decode_log(block, nonce, number, chunk));
    }
    Ok(bad)
}

/// Whether any region is marked.
pub fn any_mark(words: &[GroupWord]) -> bool {
    words.iter().any(|w| w.marks & GROUP_MASK != 0)
}

/// Enters in `changes` what a file says: its bitmap, and the regions that are marked if its root makes
/// them count. `bad` is told of groups whose bitmap block is bad; they count as changed. Returns how many
/// blocks only the marks have added.
///
/// # Errors
///
/// Reading has failed, or the root does not say where something lies.
pub fn read_changes<S: Source>(
    source: &mut S,
    root: &Root,
    nonce: u64,
    layout: &PrivateLayout,
    words: &[GroupWord],
    changes: &ChangeMap,
    mut bad: impl FnMut(usize),
) -> Result<u64, S::Error> {
    for (group, word) in words.iter().enumerate() {
        let Some(slot) = word.slot.checked_sub(1) else {
            continue;
        };
        let first = (group as u64).saturating_mul(GROUP_BLOCKS);
        let number = layout.slots.saturating_add(u64::from(slot));
        // A bad sector of the log names a slot that there is not: no block can be right.
        let block = match u64::from(slot) < layout.slot_count {
            true => Some(source.read(place(root, layout, number)?)?),
            false => None,
        };
        let good = block.filter(|b| check(b, Kind::Bitmap, nonce, number).is_some());
        match good.and_then(|b| decode_bitmap(b, group as u64)) {
            Some(bits) => changes.mark_words(first, bits),
            None => {
                bad(group);
                changes.mark(first, GROUP_BLOCKS);
            }
        }
    }
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
    let mut number = layout.lists.saturating_add(list);
    let mut left = root.extents as usize;
    if left.div_ceil(EXTENTS_PER_BLOCK) as u64 > layout.list_blocks {
        return Err(Flaw::Impossible.into());
    }
    while left != 0 {
        let block = source.read(place(root, layout, number)?)?;
        if check(block, Kind::Extents, nonce, number) != Some(root.list_generation) {
            return Err(Flaw::Damaged.into());
        }
        for i in 0..left.min(EXTENTS_PER_BLOCK) {
            push(decode_extent(block, i))?;
        }
        left = left.saturating_sub(EXTENTS_PER_BLOCK);
        number = number.saturating_add(1);
    }
    Ok(())
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
