// SPDX-License-Identifier: GPL-2.0-only
//! Which blocks were free at the snapshot point.
//!
//! What a COW file gains after the point may be blocks that belonged to a file then: they must not be
//! overwritten before they are preserved. The snapshot itself knows which were free: it is mounted
//! read-only, in the kernel and seen by nobody, and asked.

use crate::sys::errno::EOPNOTSUPP;
use kernel::prelude::*;
use kernel::str::BStr;

use crate::abi::cow::BLOCK_SIZE;
use crate::abi::ioctl::Extent;
use crate::sys::block_device;
use crate::sys::getfsmap::UserBuffer;
use crate::sys::superblock::PrivateMount;
use crate::sys::vfs::OpenFile;

/// Most extents that are kept: 16 MiB of them. If there are more, the smallest are left out, which is
/// always right: a block that is not in the list is just not used.
const MAX_EXTENTS: usize = 1 << 20;

/// `struct fsmap_head` without its records, and `struct fsmap`.
const HEAD: usize = 192;
const RECORD: usize = 64;
const RECORDS: usize = 4092;
const BUFFER: usize = HEAD + RECORDS * RECORD;

/// Offsets in `struct fsmap_head`.
const OFLAGS: usize = 4;
const COUNT: usize = 8;
const ENTRIES: usize = 12;
const LOW_KEY: usize = 64;
const HIGH_KEY: usize = 128;
/// Bit of `fmh_oflags`: `fmr_device` is a device number.
const DEVICE_NUMBERS: u32 = 1;
/// Bits of `fmr_flags`.
const SPECIAL_OWNER: u32 = 0x10;
const LAST: u32 = 0x20;
/// `FMR_OWN_FREE`.
const FREE: u64 = 1;

/// `struct fsmap`, as far as it is needed.
struct Record {
    device: u32,
    flags: u32,
    physical: u64,
    owner: u64,
    length: u64,
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .copied()
        .ok_or(EINVAL)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value) {
        *to = *from;
    }
}

impl Record {
    fn decode(b: &[u8]) -> Result<Self> {
        Ok(Self {
            device: u32::from_le_bytes(get(b, 0)?),
            flags: u32::from_le_bytes(get(b, 4)?),
            physical: u64::from_le_bytes(get(b, 8)?),
            owner: u64::from_le_bytes(get(b, 16)?),
            length: u64::from_le_bytes(get(b, 32)?),
        })
    }

    /// The whole blocks in it, if it is free space of `device`.
    fn free_blocks(&self, device: u32) -> Option<Extent> {
        if self.device != device || self.flags & SPECIAL_OWNER == 0 || self.owner != FREE {
            return None;
        }
        let start = self.physical.div_ceil(BLOCK_SIZE);
        let end = self.physical.checked_add(self.length)? / BLOCK_SIZE;
        let len = end.checked_sub(start)?;
        (len != 0).then_some(Extent { start, len })
    }
}

/// A list that stays below [`MAX_EXTENTS`] by leaving out the smallest.
struct Bounded {
    list: KVVec<Extent>,
    least: u64,
    /// Behind the last extent that was seen.
    next: u64,
}

impl Bounded {
    /// Extents come in order; one that does not is left out.
    fn add(&mut self, e: Extent) -> Result {
        if e.start < self.next {
            return Ok(());
        }
        self.next = e.start.saturating_add(e.len);
        if let Some(last) = self.list.last_mut() {
            if last.start.checked_add(last.len) == Some(e.start) {
                last.len = last.len.saturating_add(e.len);
                return Ok(());
            }
        }
        while self.list.len() >= MAX_EXTENTS {
            self.least = self.least.saturating_mul(2);
            let least = self.least;
            self.list.retain(|e| e.len >= least);
        }
        if e.len >= self.least {
            self.list.push(e, GFP_KERNEL)?;
        }
        Ok(())
    }
}

/// How user space sees a device number (`new_encode_dev`).
const fn encode(dev: u32) -> u32 {
    let (major, minor) = (dev >> 20, dev & 0xf_ffff);
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The free space of the filesystem on the snapshot node `node`, in blocks, sorted.
///
/// Only in the context of a process (an ioctl). Opens the node for as long as it takes.
///
/// # Errors
///
/// EOPNOTSUPP: not for this type of filesystem; else what mounting says.
pub(crate) fn free_at_point(node: &CStr, fs_type: &CStr) -> Result<KVVec<Extent>> {
    // The journal is empty since the freeze; replaying it would write.
    let options: &[&CStr] = match fs_type.to_bytes() {
        b"ext4" => &[c"noload"],
        b"xfs" => &[c"norecovery", c"nouuid"],
        other => {
            pr_err!(
                "the free space of {} is not known to this module\n",
                BStr::from_bytes(other)
            );
            return Err(EOPNOTSUPP);
        }
    };
    let device = encode(block_device::lookup(node)?);
    let mount = PrivateMount::read_only(fs_type, node, options)?;
    let root = OpenFile::root_of(&mount)?;
    let buffer = UserBuffer::new(BUFFER)?;
    let mut out = Bounded {
        list: KVVec::new(),
        least: 1,
        next: 0,
    };
    let mut records: KVVec<u8> = KVVec::new();
    records.resize(RECORDS.saturating_mul(RECORD), 0, GFP_KERNEL)?;

    let mut head = [0u8; HEAD];
    put(&mut head, COUNT, &(RECORDS as u32).to_le_bytes());
    // Device, flags, place, owner, offset: to the very end.
    put(&mut head, HIGH_KEY, &[0xff; 32]);
    loop {
        buffer.write(0, &head)?;
        buffer.getfsmap(&root)?;
        let mut answer = [0u8; HEAD];
        buffer.read(0, &mut answer)?;
        if u32::from_le_bytes(get(&answer, OFLAGS)?) & DEVICE_NUMBERS == 0 {
            return Err(EOPNOTSUPP);
        }
        let n = u32::from_le_bytes(get(&answer, ENTRIES)?) as usize;
        if n == 0 {
            break;
        }
        let got = records.get_mut(..n.saturating_mul(RECORD)).ok_or(EINVAL)?;
        buffer.read(HEAD, got)?;
        let mut flags = 0;
        for record in got.chunks_exact(RECORD) {
            let r = Record::decode(record)?;
            flags = r.flags;
            if let Some(e) = r.free_blocks(device) {
                out.add(e)?;
            }
        }
        if flags & LAST != 0 {
            break;
        }
        // Go on behind the last one.
        let last = got.rchunks_exact(RECORD).next().ok_or(EINVAL)?;
        put(&mut head, LOW_KEY, last);
    }
    Ok(out.list)
}
