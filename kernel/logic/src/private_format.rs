// SPDX-License-Identifier: GPL-2.0-only
//! The private blocks of a COW file: how they are written and what is believed when they are read.
//! `docs/formats.md` gives the layout and the argument why nothing is missed after a crash.
//!
//! Every block starts with an envelope: kind, CRC32C, the file's nonce, the block's own number, a
//! generation. Preallocated space may hold valid blocks of an older file: the nonce tells them apart,
//! the number catches a block at a wrong place. A block of the region log consists of eight sectors
//! with an envelope each, so that a torn write leaves every sector whole: the old one or the new one.
//!
//! No allocation; any context.

use super::abi::cow::{BLOCK_SIZE, GROUP_BLOCKS, SECTOR_GROUPS};
use super::crc32c::crc32c;
use super::extents::FileExtent;

/// A block.
pub type Block = [u8; BLOCK_SIZE as usize];

/// Bytes of a block's envelope.
pub const ENVELOPE: usize = 32;
/// Bytes of a log sector's envelope.
const SECTOR_ENVELOPE: usize = 24;
const SECTOR: usize = 512;
/// Sectors of a block.
const SECTORS: usize = BLOCK_SIZE as usize / SECTOR;
/// Bytes of a group in a log sector.
const WORD: usize = 8;

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of the two roots.
    Root,
    /// A list of the file's extents.
    Extents,
    /// The change map of one group.
    Bitmap,
    /// Where the copies of a sealed snapshot are.
    CopyMap,
    /// A page of the index of a running snapshot.
    Index,
}

const LOG_MAGIC: u32 = u32::from_le_bytes(*b"dbdL");

impl Kind {
    const fn magic(self) -> u32 {
        u32::from_le_bytes(match self {
            Kind::Root => *b"dbdR",
            Kind::Extents => *b"dbdE",
            Kind::Bitmap => *b"dbdB",
            Kind::CopyMap => *b"dbdC",
            Kind::Index => *b"dbdI",
        })
    }
}

/// Puts `bytes` at byte `at`; what would not fit is left out (all callers stay within the block).
pub fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn get<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(block.iter().skip(at)) {
        *to = *from;
    }
    out
}

/// The u64 at byte `at`.
pub fn get_u64(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(block, at))
}

/// The u32 at byte `at`.
pub fn get_u32(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(block, at))
}

/// Completes a block whose content, behind [`ENVELOPE`], has been filled in.
pub fn seal(block: &mut Block, kind: Kind, nonce: u64, number: u64, generation: u64) {
    put(block, 0, &kind.magic().to_le_bytes());
    put(block, 4, &[0; 4]);
    put(block, 8, &nonce.to_le_bytes());
    put(block, 16, &number.to_le_bytes());
    put(block, 24, &generation.to_le_bytes());
    let crc = crc32c(&[block]);
    put(block, 4, &crc.to_le_bytes());
}

/// The generation of a block, if it is what it should be.
pub fn check(block: &Block, kind: Kind, nonce: u64, number: u64) -> Option<u64> {
    let (head, rest) = block.split_at_checked(8)?;
    let crc = crc32c(&[head.get(..4)?, &[0; 4], rest]);
    let good = get_u32(block, 0) == kind.magic()
        && get_u32(block, 4) == crc
        && get_u64(block, 8) == nonce
        && get_u64(block, 16) == number;
    good.then(|| get_u64(block, 24))
}

/// What the region log says of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupWord {
    /// One bit for each region, from bit 0 on: its blocks may have changed since the bitmap block was
    /// written.
    pub marks: u32,
    /// 0: no block of the group changed; else one more than the slot that holds its bitmap block.
    pub slot: u32,
}

impl GroupWord {
    /// Nothing is known: all may have changed. There is no such slot.
    pub const UNKNOWN: Self = Self {
        marks: u32::MAX,
        slot: u32::MAX,
    };
}

/// Writes a block of the region log: `words` of its groups, fewer in the last one.
pub fn encode_log(block: &mut Block, nonce: u64, number: u64, words: &[GroupWord]) {
    let per_sector = SECTOR_GROUPS as usize;
    let mut chunks = words.chunks(per_sector);
    for (i, sector) in (0u64..).zip(block.chunks_mut(SECTOR)) {
        sector.fill(0);
        put(sector, 0, &LOG_MAGIC.to_le_bytes());
        put(sector, 8, &nonce.to_le_bytes());
        let number = number.saturating_mul(8).saturating_add(i);
        put(sector, 16, &number.to_le_bytes());
        for (k, word) in chunks.next().unwrap_or(&[]).iter().enumerate() {
            let at = SECTOR_ENVELOPE.saturating_add(k.saturating_mul(WORD));
            put(sector, at, &word.marks.to_le_bytes());
            put(sector, at.saturating_add(4), &word.slot.to_le_bytes());
        }
        let crc = crc32c(&[sector]);
        put(sector, 4, &crc.to_le_bytes());
    }
}

/// Reads a block of the region log. The words of a sector that cannot be trusted become
/// [`GroupWord::UNKNOWN`]. Returns how many sectors that were.
pub fn decode_log(block: &Block, nonce: u64, number: u64, words: &mut [GroupWord]) -> u32 {
    let mut untrusted = 0u32;
    let chunks = words.chunks_mut(SECTOR_GROUPS as usize);
    for ((i, sector), words) in (0u64..).zip(block.chunks(SECTOR)).zip(chunks) {
        let number = number.saturating_mul(8).saturating_add(i);
        let crc = crc32c(&[
            sector.get(..4).unwrap_or(&[]),
            &[0; 4],
            sector.get(8..).unwrap_or(&[]),
        ]);
        let good = get_u32(sector, 0) == LOG_MAGIC
            && get_u32(sector, 4) == crc
            && get_u64(sector, 8) == nonce
            && get_u64(sector, 16) == number;
        if !good {
            untrusted = untrusted.saturating_add(1);
        }
        for (k, word) in words.iter_mut().enumerate() {
            let at = SECTOR_ENVELOPE.saturating_add(k.saturating_mul(WORD));
            *word = if good {
                GroupWord {
                    marks: get_u32(sector, at),
                    slot: get_u32(sector, at.saturating_add(4)),
                }
            } else {
                GroupWord::UNKNOWN
            };
        }
    }
    untrusted
}

/// Bytes of a group's bits.
const GROUP_BITS: usize = GROUP_BLOCKS as usize / 8;

/// Fills in the bitmap block of a group: its bits, then whose they are.
pub fn encode_bitmap(block: &mut Block, group: u64, bits: &[u64]) {
    block.fill(0);
    for (i, word) in bits.iter().take(GROUP_BITS / 8).enumerate() {
        let at = ENVELOPE.saturating_add(i.saturating_mul(8));
        put(block, at, &word.to_le_bytes());
    }
    put(
        block,
        ENVELOPE.saturating_add(GROUP_BITS),
        &group.to_le_bytes(),
    );
}

/// The words of a group's bitmap block, if it is that group's.
pub fn decode_bitmap(block: &Block, group: u64) -> Option<impl Iterator<Item = u64> + '_> {
    let (bits, rest) = block.get(ENVELOPE..)?.split_at_checked(GROUP_BITS)?;
    let own = get_u64(rest, 0) == group;
    own.then(|| bits.chunks_exact(8).map(|word| get_u64(word, 0)))
}

/// Bytes of an extent in a list.
const EXTENT: usize = 24;
/// Extents that fit into a block of a list.
pub const EXTENTS_PER_BLOCK: usize = (BLOCK_SIZE as usize - ENVELOPE) / EXTENT;

/// Fills in a block of a list of extents.
pub fn encode_extents(block: &mut Block, list: &[FileExtent]) {
    block.fill(0);
    for (i, e) in list.iter().take(EXTENTS_PER_BLOCK).enumerate() {
        let at = ENVELOPE.saturating_add(i.saturating_mul(EXTENT));
        put(block, at, &e.file_block.to_le_bytes());
        put(block, at.saturating_add(8), &e.origin_block.to_le_bytes());
        put(block, at.saturating_add(16), &e.len.to_le_bytes());
    }
}

/// Extent number `i` of a block of a list.
pub fn decode_extent(block: &Block, i: usize) -> FileExtent {
    let at = ENVELOPE.saturating_add(i.saturating_mul(EXTENT));
    FileExtent {
        file_block: get_u64(block, at),
        origin_block: get_u64(block, at.saturating_add(8)),
        len: get_u64(block, at.saturating_add(16)),
    }
}

/// How far the life of a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootState {
    /// In use: changes are the bitmap and all regions that are marked.
    Live,
    /// Closed in good order: the bitmap is exact, no region is marked.
    Sealed,
    /// Made for the next snapshot, whose point may not have come: the predecessor counts.
    Prepared,
    /// The next file has taken over. The bitmap is the final change map, whatever is marked.
    Closed,
    /// Not to be believed any more.
    Poisoned,
}

impl RootState {
    const fn encode(self) -> u32 {
        match self {
            RootState::Live => 1,
            RootState::Sealed => 2,
            RootState::Prepared => 3,
            RootState::Poisoned => 4,
            RootState::Closed => 5,
        }
    }

    const fn decode(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => RootState::Live,
            2 => RootState::Sealed,
            3 => RootState::Prepared,
            4 => RootState::Poisoned,
            5 => RootState::Closed,
            _ => return None,
        })
    }
}

/// Another COW file of the same chain, as one names it on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sibling {
    /// Its nonce; 0: there is none.
    pub nonce: u64,
    /// Where its roots lie, in blocks of the origin.
    pub roots: [u64; 2],
    /// Inode number and generation.
    pub ino: u64,
    /// See `ino`.
    pub igen: u32,
}

/// A [`digest`] for each sector of the first block.
pub type Digests = [u64; SECTORS];

/// The digests of a block.
pub fn digests(block: &Block) -> Digests {
    let mut out = [0; SECTORS];
    for (out, sector) in out.iter_mut().zip(block.chunks(SECTOR)) {
        *out = digest(&[sector]);
    }
    out
}

/// The first block of the origin, as it must be found: each mount, repair or replay by somebody else
/// changes the superblock in it.
///
/// Sector by sector: a power cut may tear ext4's superblock, which has two, and xfs keeps something else
/// than the superblock in the others, and writes it at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Each sector as it was when the last write to it was let go. 0: not known.
    pub now: Digests,
    /// What that write makes of it. 0: there was none.
    pub next: Digests,
}

impl Identity {
    /// A block with these digests is one that we have left there.
    pub fn allows(&self, found: &Digests) -> bool {
        let known = self.now.iter().zip(&self.next);
        known
            .zip(found)
            .all(|((now, next), found)| *found != 0 && (found == now || found == next))
    }

    /// A sector that is known is something else than we have left there. What is not known says nothing.
    pub fn contradicts(&self, found: &Digests) -> bool {
        let known = self.now.iter().zip(&self.next);
        known
            .zip(found)
            .any(|((now, next), found)| *now != 0 && found != now && found != next)
    }

    /// A write makes `after` of what is `before` now. What it does not change, another one may be
    /// changing: that stays as it is known.
    pub fn write(&mut self, before: &Digests, after: &Digests) {
        let known = self.now.iter_mut().zip(&mut self.next);
        for ((now, next), (before, after)) in known.zip(before.iter().zip(after)) {
            if before != after {
                (*now, *next) = (*before, *after);
            } else if *now == 0 {
                *now = *before;
            }
        }
    }

    /// The block is like this now, whoever may be writing to it.
    pub fn see(&mut self, found: &Digests) {
        let known = self.now.iter_mut().zip(&self.next);
        for ((now, next), found) in known.zip(found) {
            // What a write has made of it may not be durable yet: what was before still counts then.
            if found != next {
                *now = *found;
            }
        }
    }
}

/// FNV-1a, 64 bits, of all pieces, one behind the other.
///
/// Not a CRC32C: superblocks end with a CRC32C of their own, and the CRC32C of something that holds its
/// own is always the same.
pub fn digest(pieces: &[&[u8]]) -> u64 {
    let bytes = pieces.iter().copied().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Extents of the private blocks themselves that a root has room for.
pub const ROOT_EXTENTS: usize = 100;
/// Pieces of the copy map that a root has room for.
pub const ROOT_PIECES: usize = 16;

/// The root of a file's private structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// How far the file's life has come.
    pub state: RootState,
    /// Snapshot mode, else incremental.
    pub snapshot: bool,
    /// The blocks of the file are counted (see [`super::extents`]).
    pub counted: bool,
    /// Size of the origin in bytes.
    pub origin_bytes: u64,
    /// As in the header.
    pub seqid: u64,
    /// As in the header.
    pub uuid: [u8; 16],
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// What INFO reports as `falloc_size`, in bytes.
    pub falloc_size: u64,
    /// Inode number and generation of the file.
    pub ino: u64,
    /// See `ino`.
    pub igen: u32,
    /// Which of the two lists of extents counts.
    pub list: u32,
    /// Extents in it.
    pub extents: u32,
    /// Generation of its blocks.
    pub list_generation: u64,
    /// Blocks that crashes have added since the file's snapshot.
    pub crash_blocks: u64,
    /// The file whose increment this one continues: its hand-over may have to be completed.
    pub predecessor: Sibling,
    /// The file that is about to take over.
    pub successor: Sibling,
    /// The filesystem at the last moment that is known.
    pub identity: Identity,
    /// 64-bit words of the copy map of a sealed snapshot; 0: there is none.
    pub map_words: u64,
    /// Where the copy map lies: runs of blocks of the file, in order; (start, length).
    pub map_pieces: [(u64, u64); ROOT_PIECES],
    /// Extents of the private blocks, from the first root on; unused ones are empty.
    pub own: [(u64, u64); ROOT_EXTENTS],
}

/// Writes fields one behind the other.
struct Writer<'a>(&'a mut Block, usize);

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        put(self.0, self.1, bytes);
        self.1 = self.1.saturating_add(bytes.len());
    }
    fn u64(&mut self, v: u64) {
        self.bytes(&v.to_le_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }
    fn sibling(&mut self, s: &Sibling) {
        self.u64(s.nonce);
        self.u64(s.roots[0]);
        self.u64(s.roots[1]);
        self.u64(s.ino);
        self.u32(s.igen);
    }
}

/// Reads fields one behind the other.
struct Reader<'a>(&'a Block, usize);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let out = get(self.0, self.1);
        self.1 = self.1.saturating_add(N);
        out
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }
    fn digests(&mut self) -> Digests {
        let mut out = [0; SECTORS];
        out.iter_mut().for_each(|digest| *digest = self.u64());
        out
    }
    fn sibling(&mut self) -> Sibling {
        Sibling {
            nonce: self.u64(),
            roots: [self.u64(), self.u64()],
            ino: self.u64(),
            igen: self.u32(),
        }
    }
}

const FLAG_SNAPSHOT: u32 = 1;
const FLAG_COUNTED: u32 = 2;

impl Root {
    /// Fills in a block; [`seal`] completes it.
    pub fn encode(&self, block: &mut Block) {
        block.fill(0);
        let mut w = Writer(block, ENVELOPE);
        w.u32(self.state.encode());
        let mut flags = 0;
        if self.snapshot {
            flags |= FLAG_SNAPSHOT;
        }
        if self.counted {
            flags |= FLAG_COUNTED;
        }
        w.u32(flags);
        w.u64(self.origin_bytes);
        w.u64(self.seqid);
        w.bytes(&self.uuid);
        w.u64(self.file_bytes);
        w.u64(self.falloc_size);
        w.u64(self.ino);
        w.u32(self.igen);
        w.u32(self.list);
        w.u32(self.extents);
        w.u64(self.list_generation);
        w.u64(self.crash_blocks);
        w.sibling(&self.predecessor);
        w.sibling(&self.successor);
        for digest in Iterator::chain(self.identity.now.iter(), self.identity.next.iter()) {
            w.u64(*digest);
        }
        w.u64(self.map_words);
        for (start, len) in Iterator::chain(self.map_pieces.iter(), self.own.iter()) {
            w.u64(*start);
            w.u64(*len);
        }
    }

    /// Reads a block that [`check`] has found good. `None`: a state that this code does not know.
    pub fn decode(block: &Block) -> Option<Self> {
        let mut r = Reader(block, ENVELOPE);
        let state = RootState::decode(r.u32())?;
        let flags = r.u32();
        let mut root = Self {
            state,
            snapshot: flags & FLAG_SNAPSHOT != 0,
            counted: flags & FLAG_COUNTED != 0,
            origin_bytes: r.u64(),
            seqid: r.u64(),
            uuid: r.bytes(),
            file_bytes: r.u64(),
            falloc_size: r.u64(),
            ino: r.u64(),
            igen: r.u32(),
            list: r.u32(),
            extents: r.u32(),
            list_generation: r.u64(),
            crash_blocks: r.u64(),
            predecessor: r.sibling(),
            successor: r.sibling(),
            identity: Identity {
                now: r.digests(),
                next: r.digests(),
            },
            map_words: r.u64(),
            map_pieces: [(0, 0); ROOT_PIECES],
            own: [(0, 0); ROOT_EXTENTS],
        };
        for piece in root.map_pieces.iter_mut() {
            *piece = (r.u64(), r.u64());
        }
        for piece in root.own.iter_mut() {
            *piece = (r.u64(), r.u64());
        }
        Some(root)
    }
}

const _: () = {
    // Fixed fields stay below 400 bytes; the lists follow.
    assert!(ENVELOPE + 400 + 16 * (ROOT_PIECES + ROOT_EXTENTS) <= BLOCK_SIZE as usize);
    assert!(SECTOR_ENVELOPE + WORD * SECTOR_GROUPS as usize == SECTOR);
    assert!(ENVELOPE + GROUP_BITS + 8 <= BLOCK_SIZE as usize);
};
