// SPDX-License-Identifier: GPL-2.0-only
//! Where the parts of a snapshot read come from.
//!
//! The rules for a block, first match wins (COMPAT.md section 5):
//!
//! 1. The header block of the running COW file and its private structures read as zeros, always. Its index
//!    does not count as the file's here (rule 4): nobody writes there before the file is handed over. (Where
//!    blocks are counted, see [`super::extents`], nor does the header.)
//! 2. A preserved block is read from its copy; the index says where that is.
//! 3. A data block of the running COW file that was taken for a copy reads as zeros. Such a block can be
//!    preserved as well, and is not the file's then (rule 2): the file has gained it after the point, when it
//!    held something of others that had been copied away before. (What the file had at the point is never
//!    preserved: a write there by others ends the snapshot.)
//! 4. Everything else is read from the origin, data blocks of the COW file that were not taken yet
//!    among it. Claimed blocks too: the overwrite is not issued before they are preserved.
//!
//! A piece from the origin is true only if [`View::origin_holds`] says so *after* its read has
//! completed; else ask for a new plan for that piece. The loop ends: each round some block has moved
//! on for good, and no block goes back to the origin.
//!
//! Any context; no lock.

use super::abi::cow::SECTORS_PER_BLOCK;
use super::extents::{next_owned, FileExtent};
use super::preserved::Preserved;
use super::space::Space;

/// What a snapshot read is planned from.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Which blocks have a copy.
    pub preserved: &'a Preserved,
    /// The running COW file's extents without its index, sorted by origin.
    pub own: &'a [FileExtent],
    /// The first block of the file behind all that is private.
    pub first_data: u64,
    /// Which blocks of the file hold copies.
    pub space: &'a Space,
}

/// Where a piece comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Zeros.
    Zero,
    /// Copies, in memory or in the COW file.
    Copy,
    /// The origin, same place. To be checked afterwards with [`View::origin_holds`].
    Origin,
}

/// Contiguous sectors of the snapshot that come from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First sector (512 bytes), from the start of the snapshot.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u64,
    /// Where they come from.
    pub source: Source,
}

impl Piece {
    /// Sectors between the start of the first block and the start of the piece.
    pub const fn offset_in_block(&self) -> u64 {
        self.sector % SECTORS_PER_BLOCK
    }
}

impl<'a> View<'a> {
    /// The pieces of `sectors` sectors from `sector` on, in order, each as long as it gets, and
    /// without a gap up to the end of the device. The plan is made while it is iterated.
    pub fn plan(&self, sector: u64, sectors: u64) -> Plan<'a> {
        let end = sector.saturating_add(sectors);
        Plan {
            view: *self,
            sector,
            end,
            next_block: sector / SECTORS_PER_BLOCK,
            end_block: end.div_ceil(SECTORS_PER_BLOCK).min(self.preserved.blocks()),
            pending: None,
        }
    }

    /// Whether what was read from the origin for these sectors, in a read that has completed, is old
    /// data. Whether the *snapshot* has failed meanwhile must be tested as well, behind this.
    pub fn origin_holds(&self, sector: u64, sectors: u64) -> bool {
        self.plan(sector, sectors)
            .all(|piece| piece.source == Source::Origin)
    }

    /// Source of the blocks from `block` on, and for how many (at least one, at most `max`) it is
    /// known to be the same.
    fn source(&self, block: u64, max: u64) -> (Source, u64) {
        let mut max = max;
        if let Some(own) = next_owned(self.own, block, max) {
            let before = own.origin_block.saturating_sub(block);
            if before != 0 {
                max = before;
            } else if own.file_block < self.first_data {
                let left = self.first_data.saturating_sub(own.file_block);
                return (Source::Zero, left.min(own.len));
            } else {
                let (taken, n) = self.space.taken_run(own.file_block, own.len);
                if taken {
                    return match self.preserved.run(block, n) {
                        (true, n) => (Source::Copy, n),
                        (false, n) => (Source::Zero, n),
                    };
                }
                max = n;
            }
        }
        match self.preserved.run(block, max) {
            (true, n) => (Source::Copy, n),
            (false, n) => (Source::Origin, n),
        }
    }
}

/// Iterator of [`View::plan`].
pub struct Plan<'a> {
    view: View<'a>,
    /// Where the next piece starts.
    sector: u64,
    /// Where the last piece ends.
    end: u64,
    /// The first block that was not looked up yet.
    next_block: u64,
    end_block: u64,
    /// Blocks looked up but not part of a piece yet: they end at `next_block`.
    pending: Option<(Source, u64)>,
}

impl Plan<'_> {
    /// Looks the next blocks up.
    fn fetch(&mut self) -> Option<(Source, u64)> {
        let left = self.end_block.checked_sub(self.next_block)?;
        if left == 0 {
            return None;
        }
        let (source, n) = self.view.source(self.next_block, left);
        if n == 0 {
            return None;
        }
        self.next_block = self.next_block.saturating_add(n);
        Some((source, n))
    }
}

impl Iterator for Plan<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let (source, _) = match self.pending.take() {
            Some(pending) => pending,
            None => self.fetch()?,
        };
        while let Some((more, n)) = self.fetch() {
            if more != source {
                self.pending = Some((more, n));
                break;
            }
        }
        let ahead = self.pending.map_or(0, |(_, n)| n);
        let end_block = self.next_block.saturating_sub(ahead);
        let end = end_block.saturating_mul(SECTORS_PER_BLOCK).min(self.end);
        let piece = Piece {
            sector: self.sector,
            sectors: end.saturating_sub(self.sector),
            source,
        };
        self.sector = end;
        (piece.sectors != 0).then_some(piece)
    }
}
