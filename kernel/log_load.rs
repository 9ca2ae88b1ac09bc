// SPDX-License-Identifier: GPL-2.0-only
//! Reading a COW file's private blocks back, from the raw device, before its filesystem is mounted.
//!
//! Nothing is believed that does not carry the file's nonce, its own number and a good checksum. What
//! is bad and means changes counts as changed: a sector of the log all its regions, a bitmap block
//! its group. What is bad and means anything else ends the chain.

use crate::abi::cow::{Geometry, GROUP_BLOCKS, LOG_BLOCK_GROUPS};
use crate::faults::{self, Fault};
use crate::log_checkpoint::slot_number;
use crate::log_seal::MAP_WORDS;
use crate::logic::{
    change_map::ChangeMap,
    extents::{merge_push, validate_from, FileExtent},
    private_format::{
        check, decode_bitmap, decode_extent, decode_log, get_u64, GroupWord, Kind, Root, RootState,
        ENVELOPE, EXTENTS_PER_BLOCK,
    },
    regions::GROUP_MASK,
    space::Segment,
};
use crate::region_log::place;
use crate::sys::{bdev::Bdev, raw_io::RawIo};
use kernel::prelude::*;

/// What a file says.
pub(crate) struct Loaded {
    pub(crate) root: KBox<Root>,
    pub(crate) generation: u64,
    pub(crate) words: KVVec<GroupWord>,
    /// What changed: the bitmap and the marked regions.
    pub(crate) changes: ChangeMap,
    /// Blocks that only the marks have added.
    pub(crate) added: u64,
    /// Where the file lies, in order of its blocks.
    pub(crate) extents: KVVec<FileExtent>,
    /// The copies of a snapshot that was sealed.
    pub(crate) copies: Option<CopyMap>,
}

/// Where the copies of a sealed snapshot are.
pub(crate) struct CopyMap {
    pub(crate) high_water: u64,
    pub(crate) segments: KVVec<Segment>,
    /// Origin block, file block, length.
    pub(crate) runs: KVVec<(u64, u64, u64)>,
}

/// Why a file cannot be picked up, for the log.
pub(crate) type Reason = &'static str;

/// The root that counts, and its generation: the newer one of the good ones.
#[inline(never)] // Large on the stack.
pub(crate) fn read_root(
    io: &mut RawIo,
    nonce: u64,
    roots: [u64; 2],
    first: u64,
) -> Result<(KBox<Root>, u64)> {
    let mut best: Option<(KBox<Root>, u64)> = None;
    for (i, place) in (0u64..).zip(roots) {
        let block = io.read(place)?;
        let Some(generation) = check(block, Kind::Root, nonce, first.saturating_add(i)) else {
            continue;
        };
        if best.as_ref().is_some_and(|(_, g)| *g >= generation) {
            continue;
        }
        if let Some(root) = Root::decode(block) {
            best = Some((KBox::new(root, GFP_KERNEL)?, generation));
        }
    }
    best.ok_or(ENODATA_OR_CLEAN)
}

const ENODATA_OR_CLEAN: Error = crate::sys::errno::EUCLEAN;

impl Loaded {
    /// Reads the file whose header names `nonce` and `roots`, on a device of `origin_bytes` bytes.
    pub(crate) fn read(
        bdev: Bdev,
        origin_bytes: u64,
        nonce: u64,
        roots: [u64; 2],
    ) -> Result<Self, (Error, Reason)> {
        let why = |reason: Reason| move |e: Error| (e, reason);
        let geometry = Geometry { origin_bytes };
        let layout = geometry.private();
        if roots.iter().any(|r| *r >= geometry.blocks()) {
            return Err((EINVAL, "its roots lie behind the end of the device"));
        }
        let mut io = RawIo::new(bdev).map_err(why("there is no memory"))?;
        let (root, generation) = read_root(&mut io, nonce, roots, layout.roots)
            .map_err(why("neither of its roots is good"))?;
        if root.origin_bytes != origin_bytes {
            return Err((EINVAL, "the device has another size than when it was last tracked"));
        }
        if root
            .own
            .iter()
            .any(|(start, len)| start.checked_add(*len).is_none_or(|end| end > geometry.blocks()))
        {
            return Err((EINVAL, "its private blocks lie behind the end of the device"));
        }

        let mut words: KVVec<GroupWord> = KVVec::new();
        words
            .resize(layout.groups as usize, GroupWord::default(), GFP_KERNEL)
            .map_err(|_| (ENOMEM, "there is no memory"))?;
        for (i, chunk) in (0u64..).zip(words.chunks_mut(LOG_BLOCK_GROUPS as usize)) {
            let number = layout.log.saturating_add(i);
            let block = place(&root, &layout, number)
                .and_then(|at| io.read(at))
                .map_err(why("its region log cannot be read"))?;
            let bad = decode_log(block, nonce, number, chunk);
            if bad != 0 {
                pr_warn!("{} sectors of the region log are bad: their regions count as changed\n", bad);
            }
        }
        let marked = words.iter().any(|w| w.marks & GROUP_MASK != 0);
        let mut root = root;
        if root.state == RootState::Sealed && marked && !faults::active(Fault::NoUnseal) {
            // A newer root has been lost: the log knows better.
            root.state = RootState::Live;
        }

        let changes = ChangeMap::new(geometry.blocks()).map_err(|_| (ENOMEM, "there is no memory"))?;
        read_bitmap(&mut io, &root, nonce, &layout, &words, &changes)
            .map_err(why("its change map cannot be read"))?;
        let before = changes.count();
        if root.state == RootState::Live || root.state == RootState::Prepared {
            mark_regions(&changes, &words);
        }
        let added = changes.count().saturating_sub(before);

        let extents = read_extents(&mut io, &root, nonce, &layout)
            .map_err(why("the list of its extents is bad"))?;
        let copies = if root.state == RootState::Sealed && root.snapshot && root.map_words != 0 {
            match read_copies(&mut io, &root, nonce, &extents) {
                Ok(copies) => Some(copies),
                Err(e) => {
                    pr_warn!("the map of the copies is bad (error {}): only changes are left\n", e.to_errno());
                    None
                }
            }
        } else {
            None
        };
        Ok(Self { root, generation, words, changes, added, extents, copies })
    }
}

fn read_bitmap(
    io: &mut RawIo,
    root: &Root,
    nonce: u64,
    layout: &crate::abi::cow::PrivateLayout,
    words: &[GroupWord],
    changes: &ChangeMap,
) -> Result {
    for (group, word) in words.iter().enumerate() {
        let Some(slot) = word.slot.checked_sub(1) else {
            continue;
        };
        let first = (group as u64).saturating_mul(GROUP_BLOCKS);
        let number = slot_number(layout, slot);
        // A bad sector of the log names a slot that there is not: no block can be right.
        let block = match u64::from(slot) < layout.slot_count {
            true => Some(io.read(place(root, layout, number)?)?),
            false => None,
        };
        let good = block.filter(|b| check(b, Kind::Bitmap, nonce, number).is_some());
        match good.and_then(|b| decode_bitmap(b, group as u64)) {
            Some(bits) => changes.mark_words(first, bits),
            None => {
                pr_warn!("bitmap block {} is bad: its {} blocks count as changed\n", group, GROUP_BLOCKS);
                changes.mark(first, GROUP_BLOCKS);
            }
        }
    }
    Ok(())
}

/// Marks all blocks of the marked regions.
fn mark_regions(changes: &ChangeMap, words: &[GroupWord]) {
    use crate::abi::cow::{GROUP_REGIONS, REGION_BLOCKS};
    for (group, word) in (0u64..).zip(words) {
        for region in (0..GROUP_REGIONS).filter(|r| word.marks.wrapping_shr(*r as u32) & 1 != 0) {
            let start = group
                .saturating_mul(GROUP_BLOCKS)
                .saturating_add(region.saturating_mul(REGION_BLOCKS));
            changes.mark(start, REGION_BLOCKS);
        }
    }
}

/// Where a file lies, by the list that its root names.
pub(crate) fn read_extents(
    io: &mut RawIo,
    root: &Root,
    nonce: u64,
    layout: &crate::abi::cow::PrivateLayout,
) -> Result<KVVec<FileExtent>> {
    let first = layout
        .lists
        .saturating_add(u64::from(root.list & 1).saturating_mul(layout.list_blocks));
    let total = root.extents as usize;
    if total.div_ceil(EXTENTS_PER_BLOCK) as u64 > layout.list_blocks {
        return Err(EINVAL);
    }
    let mut list: KVVec<FileExtent> = KVVec::new();
    let mut left = total;
    let mut number = first;
    while left != 0 {
        let block = io.read(place(root, layout, number)?)?;
        if check(block, Kind::Extents, nonce, number) != Some(root.list_generation) {
            return Err(ENODATA_OR_CLEAN);
        }
        for i in 0..left.min(EXTENTS_PER_BLOCK) {
            if let Some(e) = merge_push(list.last_mut(), decode_extent(block, i)) {
                list.push(e, GFP_KERNEL)?;
            }
        }
        left = left.saturating_sub(EXTENTS_PER_BLOCK);
        number = number.saturating_add(1);
    }
    let geometry = Geometry { origin_bytes: root.origin_bytes };
    let start = if root.counted { geometry.first_data_position() } else { 0 };
    validate_from(start, &list, geometry.blocks()).map_err(|_| EINVAL)?;
    Ok(list)
}

fn read_copies(
    io: &mut RawIo,
    root: &Root,
    nonce: u64,
    extents: &[FileExtent],
) -> Result<CopyMap> {
    let total = usize::try_from(root.map_words).map_err(|_| EINVAL)?;
    let mut words: KVVec<u64> = KVVec::new();
    for &(start, len) in &root.map_pieces {
        for number in start..start.saturating_add(len) {
            if words.len() >= total {
                break;
            }
            let (at, _) = crate::logic::extents::locate(extents, number).ok_or(EINVAL)?;
            let block = io.read(at)?;
            check(block, Kind::CopyMap, nonce, number).ok_or(ENODATA_OR_CLEAN)?;
            for i in 0..MAP_WORDS.min(total.saturating_sub(words.len())) {
                let at = ENVELOPE.saturating_add(i.saturating_mul(8));
                words.push(get_u64(block, at), GFP_KERNEL)?;
            }
        }
    }
    if words.len() != total {
        return Err(EINVAL);
    }
    let mut words = words.iter().copied();
    let mut next = || words.next().ok_or(EINVAL);
    let high_water = next()?;
    let mut segments = KVVec::new();
    for _ in 0..next()? {
        segments.push(Segment { start: next()?, len: next()? }, GFP_KERNEL)?;
    }
    let mut runs = KVVec::new();
    while let Ok(block) = next() {
        runs.push((block, next()?, next()?), GFP_KERNEL)?;
    }
    let geometry = Geometry { origin_bytes: root.origin_bytes };
    for &(block, file_block, len) in &runs {
        let end = block.checked_add(len).ok_or(EINVAL)?;
        let inside = crate::logic::extents::locate(extents, file_block).is_some();
        if len == 0 || end > geometry.blocks() || !inside {
            return Err(EINVAL);
        }
    }
    Ok(CopyMap { high_water, segments, runs })
}
