// SPDX-License-Identifier: GPL-2.0-only
//! What to do with a bio that is about to be queued: the probe's decision, from facts alone.
//!
//! Any context. The caller finds the facts under the epoch that it decides for.

use super::abi::cow::SECTORS_PER_BLOCK;
use super::errno::{Errno, EOPNOTSUPP, ESTALE};

/// What a bio does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Changes nothing.
    Read,
    /// Writes data (zone append too).
    Write,
    /// A hint that the content is no longer needed. What is read afterwards is undefined.
    Discard,
    /// A demand that the content be gone for good.
    SecureErase,
    /// Writes zeroes.
    WriteZeroes,
    /// Zone reset and the like; such devices are refused, so this is not expected.
    ZoneOp,
    /// No sectors: an empty flush, or any bio that does not overlap the tracked range.
    Flush,
    /// Not known to this code: taken as changing content.
    Other,
}

/// Whether there is a snapshot to protect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Changes are tracked only (incremental mode).
    None,
    /// A snapshot is active.
    Active,
    /// The snapshot has failed; changes are tracked still.
    Failed,
}

/// What the decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What the bio does.
    pub op: Op,
    /// Whether there is a snapshot to protect.
    pub protection: Protection,
    /// The old data of every block of the bio is preserved ([`super::preserved::Preserved::all`]).
    pub preserved: bool,
    /// The bio reaches into the guarded part of the running COW file, and is not our own.
    pub hits_guard: bool,
}

/// What to do. The order of the words is the order of the deeds: a bio that is let go was marked
/// before, and a failure is recorded before the bio that causes it is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not our concern.
    Pass,
    /// Mark the blocks as changed, let it go.
    MarkAndPass,
    /// Mark the blocks, park the bio until their old data is preserved.
    Hold,
    /// Complete it successfully without issuing it. The content stays, so nothing is marked.
    DropDiscard,
    /// Mark the blocks, fail the snapshot, let the bio go.
    FailThenPass(Errno),
    /// Mark the blocks, fail the snapshot, park the bio until our own writes to the COW file have
    /// completed.
    FailThenHold(Errno),
    /// Mark the blocks, end the chain (the COW file's metadata is being overwritten), park the bio
    /// until our own writes to the COW file have completed.
    BreakChainThenHold(Errno),
}

/// The snapshot ended because somebody asked for content to be gone for good, or did something that
/// copy-on-write cannot follow.
pub const ENDED_BY_ERASE: Errno = EOPNOTSUPP;
/// The snapshot or the chain ended because somebody else wrote to blocks of the COW file: the
/// filesystem has given them away.
pub const ENDED_BY_FOREIGN_WRITE: Errno = ESTALE;

impl Decision {
    /// The blocks are to be marked before anything else is done.
    pub const fn marks(self) -> bool {
        !matches!(self, Decision::Pass | Decision::DropDiscard)
    }

    /// The bio is to be parked.
    pub const fn holds(self) -> bool {
        matches!(
            self,
            Decision::Hold | Decision::FailThenHold(_) | Decision::BreakChainThenHold(_)
        )
    }
}

/// The rules, first match wins:
///
/// 1. Reads and empty flushes pass.
/// 2. A discard is a hint. It goes if nothing is lost by it: all blocks preserved or no snapshot to
///    protect, and not into the COW file. Otherwise it is dropped, so that one `fstrim` cannot fill
///    the COW file.
/// 3. Anything else that hits the COW file: the filesystem has given those blocks away. What depends on
///    them ends at once, and the bio waits until nothing of ours can land on top of it.
/// 4. Without an active snapshot everything is marked and goes.
/// 5. Writes and write-zeroes go when all blocks are preserved, else they wait for that.
/// 6. Secure erase ends the snapshot: its point is that no copy stays. So does what we do not know.
#[inline]
pub const fn decide(facts: &Facts) -> Decision {
    let active = matches!(facts.protection, Protection::Active);
    match facts.op {
        Op::Read | Op::Flush => Decision::Pass,
        Op::Discard if facts.hits_guard || (active && !facts.preserved) => Decision::DropDiscard,
        Op::Discard => Decision::MarkAndPass,
        _ if facts.hits_guard => match facts.protection {
            Protection::None => Decision::BreakChainThenHold(ENDED_BY_FOREIGN_WRITE),
            Protection::Active | Protection::Failed => {
                Decision::FailThenHold(ENDED_BY_FOREIGN_WRITE)
            }
        },
        _ if !active => Decision::MarkAndPass,
        Op::Write | Op::WriteZeroes if facts.preserved => Decision::MarkAndPass,
        Op::Write | Op::WriteZeroes => Decision::Hold,
        Op::SecureErase | Op::ZoneOp | Op::Other => Decision::FailThenPass(ENDED_BY_ERASE),
    }
}

/// The blocks of the tracked range that a bio touches: the first and how many. `None` when it touches
/// none. All arguments are in 512-byte sectors; the bio's and the origin's first sector count from
/// the start of the same disk.
#[inline]
pub const fn block_range(
    bio_sector: u64,
    bio_sectors: u64,
    origin_start: u64,
    origin_sectors: u64,
) -> Option<(u64, u64)> {
    let bio_end = bio_sector.saturating_add(bio_sectors);
    let origin_end = origin_start.saturating_add(origin_sectors);
    let from = if bio_sector > origin_start {
        bio_sector
    } else {
        origin_start
    };
    let to = if bio_end < origin_end {
        bio_end
    } else {
        origin_end
    };
    if from >= to {
        return None;
    }
    let first = from.saturating_sub(origin_start) / SECTORS_PER_BLOCK;
    let behind = to.saturating_sub(origin_start).div_ceil(SECTORS_PER_BLOCK);
    Some((first, behind.saturating_sub(first)))
}
