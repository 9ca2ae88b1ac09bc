// SPDX-License-Identifier: GPL-2.0-only
//! Reading a COW file's private blocks back, from the raw device, before its filesystem is mounted.
//! What is believed, and what not, is in `logic/load.rs`.

use crate::abi::cow::{Geometry, PrivateLayout};
use crate::faults::{self, Fault};
use crate::log_seal::MAP_WORDS;
use crate::logic::{
    change_map::ChangeMap,
    extents::{merge_push, FileExtent},
    load::{self, Flaw, Groups, Source, AHEAD},
    private_format::{check, get_u64, Block, GroupWord, Kind, Root, RootState, ENVELOPE},
    space::Segment,
};
use crate::sys::{bdev::Bdev, errno::EUCLEAN, raw_io::RawIo};
use kernel::prelude::*;

impl From<Flaw> for Error {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Impossible => EINVAL,
            Flaw::Damaged => EUCLEAN,
        }
    }
}

impl Source for RawIo {
    type Error = Error;

    fn read(&mut self, block: u64) -> Result<&Block> {
        RawIo::read(self, block)
    }

    fn read_ahead(&mut self, blocks: &[u64]) {
        RawIo::read_ahead(self, blocks);
    }
}

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
    /// The block behind all copies, and behind the copy map itself.
    pub(crate) end: u64,
    pub(crate) segments: KVVec<Segment>,
    /// Origin block, file block, length.
    pub(crate) runs: KVVec<(u64, u64, u64)>,
}

/// Why a file cannot be picked up, for the log.
pub(crate) type Reason = &'static str;

/// The root that counts, and its generation: the newer one of the good ones. EUCLEAN: there is none.
pub(crate) fn read_root(
    io: &mut RawIo,
    nonce: u64,
    roots: [u64; 2],
    layout: &PrivateLayout,
) -> Result<(KBox<Root>, u64)> {
    let mut best = None;
    let generation = load::read_root(io, nonce, roots, layout, |root| {
        best = Some(KBox::new(root, GFP_KERNEL)?);
        Ok(())
    })?;
    Ok((best.ok_or(EUCLEAN)?, generation))
}

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
        let mut io = RawIo::with_room(bdev, AHEAD).map_err(why("there is no memory"))?;
        // What is read may have come only as far as the disk's cache, before a reset that left that alone.
        // It must not be built on before it is where a power cut cannot take it back.
        io.flush().map_err(why("the device cannot be flushed"))?;
        let (mut root, generation) = read_root(&mut io, nonce, roots, &layout)
            .map_err(why("neither of its roots is good"))?;
        if root.origin_bytes != origin_bytes {
            return Err((EINVAL, "the device has another size than when it was last tracked"));
        }
        if !load::lies_within(&root, geometry) {
            return Err((EINVAL, "its private blocks lie behind the end of the device"));
        }

        let mut words: KVVec<GroupWord> = KVVec::new();
        words
            .resize(layout.groups as usize, GroupWord::default(), GFP_KERNEL)
            .map_err(|_| (ENOMEM, "there is no memory"))?;
        let bad = load::read_log(&mut io, &root, nonce, &layout, &mut words)
            .map_err(why("its region log cannot be read"))?;
        if bad != 0 {
            pr_warn!("{} sectors of the region log are bad: their regions count as changed\n", bad);
        }
        let marked = load::any_mark(&words);
        if root.state == RootState::Sealed && marked && !faults::active(Fault::NoUnseal) {
            // A newer root has been lost: the log knows better.
            root.state = RootState::Live;
        }

        let changes = ChangeMap::new(geometry.blocks()).map_err(|_| (ENOMEM, "there is no memory"))?;
        let mut by_slot: KVVec<u32> = KVVec::new();
        by_slot
            .resize(layout.slot_count as usize, 0, GFP_KERNEL)
            .map_err(|_| (ENOMEM, "there is no memory"))?;
        let groups = Groups { words: &words, by_slot: &mut by_slot };
        let added = load::read_changes(&mut io, &root, nonce, &layout, groups, &changes, |group| {
            pr_warn!("bitmap block {} is bad: all blocks of its group count as changed\n", group);
        })
        .map_err(why("its change map cannot be read"))?;

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

/// Where a file lies, by the list that its root names.
pub(crate) fn read_extents(
    io: &mut RawIo,
    root: &Root,
    nonce: u64,
    layout: &PrivateLayout,
) -> Result<KVVec<FileExtent>> {
    let mut list: KVVec<FileExtent> = KVVec::new();
    load::read_extents(io, root, nonce, layout, |extent| {
        if let Some(e) = merge_push(list.last_mut(), extent) {
            list.push(e, GFP_KERNEL)?;
        }
        Ok(())
    })?;
    load::check_extents(root, &list)?;
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
    let numbers = root.map_pieces.iter().flat_map(|(start, len)| *start..start.saturating_add(*len));
    load::read_each(
        io,
        numbers.take(total.div_ceil(MAP_WORDS)),
        |number| {
            let place = crate::logic::extents::locate(extents, *number);
            place.map(|(at, _)| at).ok_or(Flaw::Impossible)
        },
        |number, block| {
            check(block, Kind::CopyMap, nonce, number).ok_or(EUCLEAN)?;
            for i in 0..MAP_WORDS.min(total.saturating_sub(words.len())) {
                let at = ENVELOPE.saturating_add(i.saturating_mul(8));
                words.push(get_u64(block, at), GFP_KERNEL)?;
            }
            Ok(())
        },
    )?;
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
    let ends = root.map_pieces.iter().map(|(start, len)| start.saturating_add(*len));
    let end = ends.fold(high_water, u64::max);
    Ok(CopyMap { end, segments, runs })
}
