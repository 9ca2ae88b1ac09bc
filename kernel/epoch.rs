// SPDX-License-Identifier: GPL-2.0-only
//! What a write has to do between two snapshot points.

use crate::logic::{change_map::ChangeMap, extents::FileExtent};
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use kernel::{prelude::*, sync::Arc};

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
    /// Where the COW file lies on the origin, in order of origin blocks: nobody else may write there.
    pub(crate) guard: Arc<KVVec<FileExtent>>,
}

impl Epoch {
    /// The records that a write has to be entered in.
    pub(crate) fn logs(&self) -> impl Iterator<Item = &Arc<Log>> {
        Iterator::chain(self.log.iter(), self.previous_log.iter())
    }
}
