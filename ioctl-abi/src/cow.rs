// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! The COW file, format version 1, as a reader of a handed-over file sees it.
//!
//! ```text
//! byte 0        header (one block): fields below, then this project's private extension, then zeros
//! byte 4096     index: one u64 for each block of the origin, padded to whole sections
//! behind it     data: old blocks (gone once the file is INDEX_ONLY)
//! ```
//! All numbers are little-endian (the format is "native endian"; the only supported target is
//! x86-64). Source: dattobd 0.12.1, `struct cow_header` and `cow_manager`.

use core::mem::size_of;
use core::ops::Range;

/// Bytes of a block: the unit of tracking, of copies and of positions in the file.
pub const BLOCK_SIZE: u64 = 4096;
/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 12;
/// 512-byte sectors in a block.
pub const SECTORS_PER_BLOCK: u64 = 8;
/// Blocks in a section: the unit that the index is padded to.
pub const SECTION_BLOCKS: u64 = 4096;
/// Bytes of the header.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes of the header that version 1 defines.
pub const HEADER_V1_BYTES: usize = 64;
/// Bytes of an index entry.
pub const ENTRY_BYTES: u64 = 8;

/// First field of the header.
pub const MAGIC: u32 = 4776;
/// Format version.
pub const VERSION: u64 = 1;
/// Header flag: all that the header and the index say is true (set when the file is sealed).
pub const FLAG_CLEAN: u32 = 1;
/// Header flag: the file holds no old data, only the index.
pub const FLAG_INDEX_ONLY: u32 = 2;

/// Index entry: the block did not change.
pub const ENTRY_UNCHANGED: u64 = 0;
/// Index entry: the block changed, its old data is not in this file. Larger values: the old data
/// lies (or lay, before the file became INDEX_ONLY) at byte `entry * 4096`.
pub const ENTRY_CHANGED: u64 = 1;

/// The fields of the header that version 1 defines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Bit set of [`FLAG_CLEAN`] and [`FLAG_INDEX_ONLY`].
    pub flags: u32,
    /// Next free position for old data, in blocks from the start of the file.
    pub fpos: u64,
    /// Size of the file in bytes.
    pub fsize: u64,
    /// 1 for a new series, one more at each transition to snapshot.
    pub seqid: u64,
    /// Identity of the series.
    pub uuid: [u8; 16],
    /// [`VERSION`].
    pub version: u64,
    /// Number of non-zero index entries.
    pub nr_changed_blocks: u64,
}

/// Why bytes are not a COW file header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The first four bytes are not [`MAGIC`].
    BadMagic(u32),
    /// A version that this code does not know.
    UnknownVersion(u64),
}

fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    for (dst, src) in buf.iter_mut().skip(at).zip(bytes) {
        *dst = *src;
    }
}

fn get<const N: usize>(buf: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    for (dst, src) in out.iter_mut().zip(buf.iter().skip(at)) {
        *dst = *src;
    }
    out
}

impl Header {
    /// The header as it stands at the start of the file.
    pub fn encode(&self) -> [u8; HEADER_V1_BYTES] {
        let mut b = [0; HEADER_V1_BYTES];
        put(&mut b, 0, &MAGIC.to_le_bytes());
        put(&mut b, 4, &self.flags.to_le_bytes());
        put(&mut b, 8, &self.fpos.to_le_bytes());
        put(&mut b, 16, &self.fsize.to_le_bytes());
        put(&mut b, 24, &self.seqid.to_le_bytes());
        put(&mut b, 32, &self.uuid);
        put(&mut b, 48, &self.version.to_le_bytes());
        put(&mut b, 56, &self.nr_changed_blocks.to_le_bytes());
        b
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// The magic or the version is not this format's. Flags, sizes and counts are *not* judged:
    /// what they must be depends on what the reader wants to do.
    pub fn decode(b: &[u8; HEADER_V1_BYTES]) -> Result<Self, HeaderError> {
        let magic = u32::from_le_bytes(get(b, 0));
        if magic != MAGIC {
            return Err(HeaderError::BadMagic(magic));
        }
        let version = u64::from_le_bytes(get(b, 48));
        if version != VERSION {
            return Err(HeaderError::UnknownVersion(version));
        }
        Ok(Self {
            flags: u32::from_le_bytes(get(b, 4)),
            fpos: u64::from_le_bytes(get(b, 8)),
            fsize: u64::from_le_bytes(get(b, 16)),
            seqid: u64::from_le_bytes(get(b, 24)),
            uuid: get(b, 32),
            version,
            nr_changed_blocks: u64::from_le_bytes(get(b, 56)),
        })
    }

    /// Sealed and handed over: the index may be believed.
    pub fn is_sealed(&self) -> bool {
        self.flags & (FLAG_CLEAN | FLAG_INDEX_ONLY) == FLAG_CLEAN | FLAG_INDEX_ONLY
    }
}

/// Where this project's private extension starts in the header block.
pub const EXT_OFFSET: usize = 64;
/// First field of the extension.
pub const EXT_MAGIC: [u8; 8] = *b"dbdx\0\0\0\x04";
/// Extension state: nothing that a reload could build on lies on disk. A file in this state that is
/// not sealed has lost its chain.
pub const EXT_STATE_VOLATILE: u32 = 0;
/// Extension state: the private roots tell whether the file can be picked up again.
pub const EXT_STATE_ROOTED: u32 = 1;

/// The start of the private extension: enough to tell that the file is this project's, and where its
/// private structures begin. `docs/formats.md` describes those. Written once, when the file is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// [`EXT_STATE_VOLATILE`] or [`EXT_STATE_ROOTED`].
    pub state: u32,
    /// Random, one for each file: tells its private blocks from an older file's.
    pub nonce: u64,
    /// Size of the origin in bytes.
    pub origin_bytes: u64,
    /// Where the two copies of the private root lie: blocks of the origin. 0 when volatile.
    pub roots: [u64; 2],
}

/// Bytes of the encoded [`Extension`].
pub const EXT_BYTES: usize = 48;

impl Extension {
    /// The extension as it stands at [`EXT_OFFSET`].
    pub fn encode(&self) -> [u8; EXT_BYTES] {
        let mut b = [0; EXT_BYTES];
        put(&mut b, 0, &EXT_MAGIC);
        put(&mut b, 8, &self.state.to_le_bytes());
        put(&mut b, 16, &self.nonce.to_le_bytes());
        put(&mut b, 24, &self.origin_bytes.to_le_bytes());
        put(&mut b, 32, &self.roots[0].to_le_bytes());
        put(&mut b, 40, &self.roots[1].to_le_bytes());
        b
    }

    /// Reads the extension; `None` when the file was not written by this project.
    pub fn decode(b: &[u8; EXT_BYTES]) -> Option<Self> {
        if get::<8>(b, 0) != EXT_MAGIC {
            return None;
        }
        Some(Self {
            state: u32::from_le_bytes(get(b, 8)),
            nonce: u64::from_le_bytes(get(b, 16)),
            origin_bytes: u64::from_le_bytes(get(b, 24)),
            roots: [
                u64::from_le_bytes(get(b, 32)),
                u64::from_le_bytes(get(b, 40)),
            ],
        })
    }
}

/// Blocks of the origin in a region, the unit of the region log: 4 MiB.
pub const REGION_BLOCKS: u64 = 1024;
/// Regions in a group, the unit of a bitmap block.
pub const GROUP_REGIONS: u64 = 30;
/// Blocks of the origin in a group.
pub const GROUP_BLOCKS: u64 = GROUP_REGIONS * REGION_BLOCKS;
/// Groups in a sector of the region log: eight bytes each, behind an envelope of 24.
pub const SECTOR_GROUPS: u64 = 61;
/// Groups in a block of the region log.
pub const LOG_BLOCK_GROUPS: u64 = SECTOR_GROUPS * SECTORS_PER_BLOCK;
/// Blocks between what is written through the filesystem and what is written raw: `ext4` may zero as
/// much (`s_extent_max_zeroout_kb`, 32 KiB) around what it writes.
pub const PRIVATE_GAP: u64 = 8;

/// Slots for bitmap blocks that are free when every group has one: at least this many, and one for each
/// [`SPARE_SHARE`] groups. They bound how many groups a checkpoint writes between two flushes.
pub const SPARE_SLOTS: u64 = 4;
/// See [`SPARE_SLOTS`].
pub const SPARE_SHARE: u64 = 16;

/// Where the private structures lie, in blocks of the file: behind the index and a gap, two roots, the
/// region log, two lists of extents, slots for bitmap blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateLayout {
    /// The first of the two roots.
    pub roots: u64,
    /// First block of the region log.
    pub log: u64,
    /// Blocks of the region log.
    pub log_blocks: u64,
    /// First block of the first list of extents; the second follows.
    pub lists: u64,
    /// Blocks of one list.
    pub list_blocks: u64,
    /// First slot for a bitmap block.
    pub slots: u64,
    /// Number of slots: more than there are groups.
    pub slot_count: u64,
    /// Groups of the origin.
    pub groups: u64,
    /// The first block that can hold a copy of old data.
    pub end: u64,
}

/// Sizes that follow from the size of the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the origin in bytes; a multiple of 512.
    pub origin_bytes: u64,
}

impl Geometry {
    /// Blocks of the origin; a partial last block counts.
    pub const fn blocks(self) -> u64 {
        self.origin_bytes.div_ceil(BLOCK_SIZE)
    }

    /// Sections of the index.
    pub const fn sections(self) -> u64 {
        self.blocks().div_ceil(SECTION_BLOCKS)
    }

    /// Bytes of the index.
    pub const fn index_bytes(self) -> u64 {
        self.sections() * (SECTION_BLOCKS * ENTRY_BYTES)
    }

    /// First byte behind the index: where data starts, and the size of an INDEX_ONLY file.
    pub const fn data_offset(self) -> u64 {
        HEADER_BYTES + self.index_bytes()
    }

    /// First position (in blocks of the file) that can hold old data.
    pub const fn first_data_position(self) -> u64 {
        self.data_offset() / BLOCK_SIZE
    }

    /// The blocks of the file that hold the index. Nobody writes there before the file is handed over, and
    /// then the filesystem does: until that they are ordinary blocks of the origin.
    pub const fn index_blocks(self) -> Range<u64> {
        HEADER_BYTES / BLOCK_SIZE..self.first_data_position()
    }

    /// Where the private structures lie.
    pub const fn private(self) -> PrivateLayout {
        let blocks = self.blocks();
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let roots = self.first_data_position() + PRIVATE_GAP;
        let log = roots + 2;
        let log_blocks = groups.div_ceil(LOG_BLOCK_GROUPS);
        let lists = log + log_blocks;
        // 169 extents a block: some for every file, more for large ones.
        let list_blocks = 4 + (blocks >> 20);
        let slots = lists + 2 * list_blocks;
        let slot_count = groups + SPARE_SLOTS + groups / SPARE_SHARE;
        PrivateLayout {
            roots,
            log,
            log_blocks,
            lists,
            list_blocks,
            slots,
            slot_count,
            groups,
            end: slots + slot_count,
        }
    }

    /// Bytes of the file in incremental mode: header, index and the private structures.
    pub const fn incremental_bytes(self) -> u64 {
        self.private().end * BLOCK_SIZE
    }

    /// The least file that can hold a snapshot: the file of incremental mode and one copy; in bytes.
    pub const fn min_file_bytes(self) -> u64 {
        self.incremental_bytes() + BLOCK_SIZE
    }
}

const _: () = {
    assert!(size_of::<[u8; HEADER_V1_BYTES]>() == EXT_OFFSET);
    // COMPAT.md section 5: data at 4096 + ceil(blocks / 4096) * 32768.
    assert!(
        (Geometry {
            origin_bytes: 4096 * 4097
        })
        .data_offset()
            == 4096 + 2 * 32768
    );
};
