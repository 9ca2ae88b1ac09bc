// SPDX-License-Identifier: GPL-2.0-only
//! The EXTENTS call: lists of blocks, piece by piece. It waits for no operation.

use core::mem::size_of;
use kernel::prelude::*;

use crate::abi::ioctl::{self as abi, Extent, ExtentsParams};
use crate::devices::Devices;
use crate::ioctl_sized;
use crate::sys::uaccess;

/// Entries filled in by one call at most; the caller comes again for more. Bounds the memory and
/// the time of a call.
const MAX_ENTRIES: usize = 4096;

/// Answers the call.
pub(crate) fn extents(devices: &Devices, arg: u64) -> Result {
    let (mut p, common) = ioctl_sized::read::<ExtentsParams>(arg)?;
    if common < size_of::<ExtentsParams>() {
        // Without a buffer there is nothing that could be answered.
        return Err(EINVAL);
    }
    let (changes, cow_file) = devices.get(p.minor)?.extents()?;
    let room = usize::try_from(p.count)
        .map_err(|_| EINVAL)?
        .min(MAX_ENTRIES);
    let mut list = KVVec::with_capacity(room, GFP_KERNEL)?;
    let next = match p.kind {
        abi::EXTENTS_CHANGED => fill(&mut list, room, p.start, |from| changes.next_run(from))?,
        abi::EXTENTS_COW_FILE => fill(&mut list, room, p.start, |from| next_in(&cow_file, from))?,
        _ => return Err(EINVAL),
    };
    let mut addr = p.extents;
    for extent in &list {
        uaccess::write(addr, extent)?;
        addr = addr.checked_add(size_of::<Extent>() as u64).ok_or(EFAULT)?;
    }
    p.count = u32::try_from(list.len()).map_err(|_| EINVAL)?;
    p.start = next;
    p.size = u32::try_from(common).map_err(|_| EINVAL)?;
    ioctl_sized::write(arg, &p, common)
}

/// Takes up to `room` extents from `next_from`, from block `start` on. Returns where to go on.
fn fill(
    list: &mut KVVec<Extent>,
    room: usize,
    start: u64,
    next_from: impl Fn(u64) -> Option<Extent>,
) -> Result<u64> {
    let mut from = start;
    while let Some(extent) = next_from(from) {
        if list.len() >= room {
            return Ok(extent.start);
        }
        list.push(extent, GFP_KERNEL)?;
        from = extent.start.saturating_add(extent.len);
    }
    Ok(u64::MAX)
}

/// The first extent of a sorted list at or behind `from`, cut at `from`.
fn next_in(list: &[Extent], from: u64) -> Option<Extent> {
    let i = list.partition_point(|e| e.start.saturating_add(e.len) <= from);
    let e = list.get(i)?;
    let start = e.start.max(from);
    Some(Extent {
        start,
        len: e.start.saturating_add(e.len).saturating_sub(start),
    })
}
