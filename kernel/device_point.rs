// SPDX-License-Identifier: GPL-2.0-only
//! Taking a snapshot point, for SETUP and for TRANSITION_SNAP.
//!
//! Everything that the point needs is made before the filesystem is frozen ([`Prepared`]); between
//! freeze and thaw there is only the switch.

use crate::sys::errno::ESTALE;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

use crate::abi::cow::{self, Geometry};
use crate::abi::ioctl::Extent;
use crate::cow_file::CowFile;
use crate::device::{Device, Watch};
use crate::epoch::Epoch;
use crate::events::UnmountHandler;
use crate::freeze::Frozen;
use crate::logic::change_map::ChangeMap;
use crate::logic::errno;
use crate::logic::extents::{sort_by_origin, FileExtent};
use crate::logic::sizes::{self, FileSizes, MAX_FILE_BYTES};
use crate::origin::Origin;
use crate::params;
use crate::snapshot::Snapshot;
use crate::sys::rcu_cell::Retired;
use crate::sys::task::random_u64;
use crate::tracker::Tracker;

/// A new COW file that is removed again unless the snapshot succeeds.
pub(crate) struct NewFile(Option<CowFile>);

impl NewFile {
    /// The file is there to stay.
    pub(crate) fn keep(mut self) -> Option<CowFile> {
        self.0.take()
    }

    /// Freezes the filesystem that it is in.
    fn freeze(&self) -> Result<Frozen> {
        self.0.as_ref().ok_or(EINVAL)?.freeze()
    }

    pub(crate) fn extents(&self) -> &[FileExtent] {
        self.0.as_ref().map_or(&[], CowFile::extents)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(file) = self.0.take() {
            remove_file(file);
        }
    }
}

/// Removes a COW file, or lets go of it when its filesystem is gone. What goes wrong is only worth a
/// message.
pub(crate) fn remove_file(file: CowFile) {
    if file.is_gone() {
        file.forget();
        return;
    }
    match file.remove() {
        Ok(()) => {}
        // Unmounted just now.
        Err(e) if e == ESTALE => {}
        Err(e) => pr_warn!("a COW file could not be removed: error {}\n", e.to_errno()),
    }
}

/// What a snapshot is asked for with.
pub(crate) struct Wanted<'a> {
    pub(crate) cow: &'a CStr,
    /// 0: the default share of the device.
    pub(crate) fallocated_mib: u64,
    pub(crate) seqid: u64,
    pub(crate) uuid: [u8; 16],
}

/// The change map and the COW file of the increment that a point ends.
pub(crate) struct Predecessor<'a> {
    pub(crate) changes: &'a Arc<ChangeMap>,
    /// Header and index: what is ours until the file is handed over.
    pub(crate) private: &'a [FileExtent],
}

/// A snapshot that only needs its point.
pub(crate) struct Prepared {
    pub(crate) file: NewFile,
    pub(crate) cow_path: Arc<CString>,
    pub(crate) sizes: FileSizes,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) changes: Arc<ChangeMap>,
    /// Where the COW file lies, in order of origin blocks.
    pub(crate) cow_extents: Arc<KVVec<Extent>>,
}

/// The epochs of a point.
pub(crate) struct Point {
    /// From the point on, until all writes from before it have come in.
    first: KBox<Epoch>,
    /// From then on. `None` when there is no predecessor: the first one stays.
    settled: Option<KBox<Epoch>>,
}

/// The sizes of a new COW file. An impossible one stays impossible: what is wrong with the path is
/// checked first, then the file's creator refuses the size.
fn file_sizes(geometry: Geometry, fallocated_mib: u64) -> FileSizes {
    let percent = params::fallocate_percentage();
    sizes::new_file(geometry.origin_bytes, fallocated_mib, percent).unwrap_or_else(|e| FileSizes {
        reported_bytes: 0,
        file_bytes: if e == errno::EFBIG { MAX_FILE_BYTES } else { 0 },
    })
}

/// Those extents of `all`, in order of file blocks, that hold header and index. None where blocks are
/// counted: then the filesystem's own writes enter and preserve them.
pub(crate) fn private_extents(all: &[FileExtent], geometry: Geometry) -> Result<KVVec<FileExtent>> {
    let end = geometry.first_data_position();
    let mut out = KVVec::new();
    for e in all {
        let len = end.saturating_sub(e.file_block).min(e.len);
        if len != 0 {
            out.push(FileExtent { len, ..*e }, GFP_KERNEL)?;
        }
    }
    Ok(out)
}

/// Extents in order of origin blocks, as the guard of an epoch.
pub(crate) fn guard(lists: &[&[FileExtent]]) -> Result<KVVec<FileExtent>> {
    let mut out = KVVec::new();
    for list in lists {
        out.extend_from_slice(list, GFP_KERNEL)?;
    }
    sort_by_origin(&mut out);
    Ok(out)
}

/// The same for the EXTENTS call.
pub(crate) fn origin_extents(list: &[FileExtent]) -> Result<KVVec<Extent>> {
    let mut out = KVVec::with_capacity(list.len(), GFP_KERNEL)?;
    for e in &guard(&[list])? {
        let extent = Extent {
            start: e.origin_block,
            len: e.len,
        };
        out.push(extent, GFP_KERNEL)?;
    }
    Ok(out)
}

/// Enters all blocks of `extents` in a change map.
pub(crate) fn mark_all(changes: &ChangeMap, extents: &[FileExtent]) {
    for e in extents {
        changes.mark(e.origin_block, e.len);
    }
}

impl Device {
    /// Makes everything for a snapshot of `origin`. May take long (it allocates the COW file);
    /// nothing is left behind on failure.
    pub(crate) fn prepare(
        this: &Arc<Self>,
        origin: &Origin,
        tracker: &Tracker,
        wanted: &Wanted<'_>,
        predecessor: Option<&Predecessor<'_>>,
    ) -> Result<(Prepared, Point)> {
        let geometry = Geometry {
            origin_bytes: origin.bytes(),
        };
        let sizes = file_sizes(geometry, wanted.fallocated_mib);
        let header = cow::Header {
            flags: 0,
            fpos: geometry.first_data_position(),
            fsize: sizes.file_bytes,
            seqid: wanted.seqid,
            uuid: wanted.uuid,
            version: cow::VERSION,
            nr_changed_blocks: 0,
        };
        let extension = cow::Extension {
            state: cow::EXT_STATE_VOLATILE,
            nonce: random_u64(),
            origin_bytes: geometry.origin_bytes,
        };
        this.step("creating the COW file");
        let watch: Arc<dyn UnmountHandler> = Arc::new(Watch(this.clone()), GFP_KERNEL)?;
        let file = NewFile(Some(CowFile::create(
            origin,
            wanted.cow,
            sizes.file_bytes,
            &header,
            &extension,
            watch,
        )?));
        let cow_path = file.0.as_ref().map_or(wanted.cow, CowFile::path_in_fs);
        let cow_path = Arc::new(CString::try_from(cow_path)?, GFP_KERNEL)?;

        this.step("preparing the snapshot");
        let snapshot = tracker.new_snapshot(
            file.extents(),
            geometry.first_data_position(),
            params::copy_memory_max(),
        )?;
        let changes = Arc::new(ChangeMap::new(origin.blocks())?, GFP_KERNEL)?;
        let epoch = |previous: Option<&Predecessor<'_>>| -> Result<KBox<Epoch>> {
            Ok(KBox::new(
                Epoch {
                    changes: changes.clone(),
                    previous: previous.map(|p| p.changes.clone()),
                    snapshot: Some(snapshot.clone()),
                    guard: guard(&[file.extents(), previous.map_or(&[], |p| p.private)])?,
                },
                GFP_KERNEL,
            )?)
        };
        let first = epoch(predecessor)?;
        let settled = match predecessor {
            Some(_) => Some(epoch(None)?),
            None => None,
        };
        if let Some(p) = predecessor {
            // What becomes private before the point is shown as zeros from then on, and what the
            // old file's own blocks hold was never seen by a snapshot: both are changes.
            mark_all(p.changes, p.private);
            mark_all(p.changes, &private_extents(file.extents(), geometry)?);
        }
        let cow_extents = Arc::new(origin_extents(file.extents())?, GFP_KERNEL)?;
        let prepared = Prepared {
            file,
            cow_path,
            sizes,
            snapshot,
            changes,
            cow_extents,
        };
        Ok((prepared, Point { first, settled }))
    }

    /// Takes the point that `file` was made for: freeze, switch, thaw, and wait until all writes from
    /// before it are accounted for. Returns how long the filesystem was held, in nanoseconds.
    ///
    /// After a failure the caller retreats ([`Device::retreat`]).
    pub(crate) fn take_point(
        &self,
        file: &NewFile,
        tracker: &Tracker,
        point: Point,
    ) -> Result<u64> {
        self.step("freezing the filesystem");
        let frozen = file.freeze()?;
        let switched = self.switch(tracker, point.first);
        let held = frozen.thaw();
        // Probes that still saw the epoch before the point have finished when this has waited; then
        // the bios that they let pass are drained. Until both are done, writes are entered in both
        // maps.
        self.step("thawed; waiting for writes from before the point");
        drop(switched?.wait());
        tracker.drain_point();
        if let Some(settled) = point.settled {
            drop(self.switch(tracker, settled)?.wait());
        }
        Ok(held)
    }

    /// Back to the time before a point: no write has anything to do with `snapshot` any more.
    pub(crate) fn retreat(&self, tracker: &Tracker, snapshot: &Arc<Snapshot>, epoch: KBox<Epoch>) {
        // When the tracking has ended there is nothing to go back to, nor to wait for.
        if let Ok(old) = self.switch(tracker, epoch) {
            drop(old.wait());
        }
        self.step("giving up the new snapshot");
        Snapshot::shutdown(snapshot);
        tracker.forget_snapshot();
    }

    /// Publishes an epoch, unless the tracking has ended. Its snapshot becomes the one that an
    /// unmount fails. Neither allocates nor sleeps; the caller waits for the old epoch.
    ///
    /// # Errors
    ///
    /// ENODEV: the tracking has ended.
    pub(crate) fn switch(&self, tracker: &Tracker, epoch: KBox<Epoch>) -> Result<Retired<Epoch>> {
        let running = epoch.snapshot.clone();
        // Under the lock: either the unmount callback sees the new snapshot, or we see its mark.
        let mut view = self.view.lock();
        if view.unmounted {
            drop(view);
            return Err(ENODEV);
        }
        let old = core::mem::replace(&mut view.running, running);
        let switched = tracker.switch(epoch);
        drop(view);
        drop(old);
        switched.map_err(|_epoch| ENODEV)
    }
}
