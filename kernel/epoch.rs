// SPDX-License-Identifier: GPL-2.0-only
//! What a write has to do between two snapshot points.

use crate::logic::{
    change_map::ChangeMap,
    extents::{FileExtent, Guarded},
};
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use crate::sys::bio::BioRef;
use kernel::{prelude::*, sync::Arc};

/// Where the COW file lies on the origin.
pub(crate) type Guard = Guarded<KVVec<FileExtent>>;

/// The rules for writes from one switch to the next. Immutable: a tracker publishes a new one as a
/// whole, and that store is the snapshot point. Probes read it under RCU.
pub(crate) struct Epoch {
    /// Blocks changed since the last snapshot point.
    pub(crate) changes: Arc<ChangeMap>,
    /// Just after a point: the map of the time before, which writes of unknown side are entered in
    /// as well.
    pub(crate) previous: Option<Arc<ChangeMap>>,
    /// Where changes are recorded for the case of a crash; `None` when that is not possible.
    pub(crate) log: Option<Arc<Log>>,
    /// During a transition: the record of the time before, which counts until the new file does.
    pub(crate) previous_log: Option<Arc<Log>>,
    /// The running snapshot, in snapshot mode.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// A snapshot that is being picked up: it writes to its file, and no write has to wait for it yet.
    pub(crate) coming: Option<Arc<Snapshot>>,
    /// Nobody else may write there.
    pub(crate) guard: Arc<Guard>,
}

impl Epoch {
    /// The records that a write has to be entered in.
    pub(crate) fn logs(&self) -> impl Iterator<Item = &Arc<Log>> {
        Iterator::chain(self.log.iter(), self.previous_log.iter())
    }

    // What follows is asked for every write: an iterator over at most two costs more than the questions.

    /// Whether a bio is our own: of the snapshot, or of a record.
    #[inline]
    pub(crate) fn sent(&self, bio: BioRef<'_>) -> bool {
        self.snapshot.as_ref().is_some_and(|s| s.is_own(bio))
            || self.log.as_ref().is_some_and(|log| log.is_own(bio))
            || self.previous_log.as_ref().is_some_and(|log| log.is_own(bio))
            || self.coming.as_ref().is_some_and(|s| s.is_own(bio))
    }

    /// Whether all records let a bio go to `len` blocks from `start` on ([`Log::is_open`]).
    #[inline]
    pub(crate) fn is_open(&self, start: u64, len: u64, bio: usize) -> bool {
        match (&self.log, &self.previous_log) {
            (Some(log), None) => log.is_open(start, len, bio),
            _ => self.are_open(start, len, bio),
        }
    }

    /// The same for any number of them.
    #[inline(never)]
    fn are_open(&self, start: u64, len: u64, bio: usize) -> bool {
        self.logs().all(|log| log.is_open(start, len, bio))
    }

    /// A bio that starts at block `start` and found them open goes ([`Log::gone`]).
    #[inline]
    pub(crate) fn gone(&self, start: u64, bio: usize) {
        if start == 0 {
            self.logs().for_each(|log| log.gone(start, bio));
        }
    }
}
