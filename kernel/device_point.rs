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
use crate::cow_file::{CowFile, Layout};
use crate::device::{Device, Watch};
use crate::epoch::{Epoch, Guard};
use crate::events::UnmountHandler;
use crate::freeze::Frozen;
use crate::logic::change_map::ChangeMap;
use crate::logic::errno;
use crate::logic::extents::{outside, sort_by_origin, FileExtent, Guarded};
use crate::logic::private_format::{Identity, Root, RootState, Sibling, ROOT_PIECES};
use crate::logic::sizes::{self, FileSizes, MAX_FILE_BYTES};
use crate::origin::Origin;
use crate::params;
use crate::region_log::{own_extents, Log, LogSetup};
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

    pub(crate) fn file(&self) -> Option<&CowFile> {
        self.0.as_ref()
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
    /// All of its file: what is ours until it is handed over.
    pub(crate) private: &'a [FileExtent],
    pub(crate) log: Option<&'a Arc<Log>>,
    /// Its file, as the new one's root names it.
    pub(crate) sibling: Sibling,
}

/// The log of a new file. It ends, and what it wrote is made unbelievable, unless the snapshot
/// succeeds.
pub(crate) struct NewLog(Option<Arc<Log>>);

impl NewLog {
    pub(crate) fn log(&self) -> Option<&Arc<Log>> {
        self.0.as_ref()
    }

    /// The log is there to stay.
    pub(crate) fn keep(mut self) -> Option<Arc<Log>> {
        self.0.take()
    }
}

impl Drop for NewLog {
    fn drop(&mut self) {
        if let Some(log) = self.0.take() {
            Log::abandon(&log);
            Log::finish(&log);
        }
    }
}

/// A snapshot that only needs its point.
pub(crate) struct Prepared {
    // Dropped in this order: nothing is written to the file when it goes.
    pub(crate) log: NewLog,
    pub(crate) file: NewFile,
    pub(crate) cow_path: Arc<CString>,
    pub(crate) sizes: FileSizes,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) changes: Arc<ChangeMap>,
    /// Where the COW file lies, in order of origin blocks.
    pub(crate) cow_extents: Arc<KVVec<Extent>>,
    /// The rules from when the new file counts, and the one before does no more.
    pub(crate) committed: Option<KBox<Epoch>>,
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

/// Those extents of `all`, in order of file blocks, that hold header, index and private blocks. Where
/// blocks are counted, only the last: the filesystem's own writes enter and preserve the others.
pub(crate) fn private_extents(all: &[FileExtent], geometry: Geometry) -> Result<KVVec<FileExtent>> {
    let end = geometry.private().end;
    let mut out = KVVec::new();
    for e in all {
        let len = end.saturating_sub(e.file_block).min(e.len);
        if len != 0 {
            out.push(FileExtent { len, ..*e }, GFP_KERNEL)?;
        }
    }
    Ok(out)
}

/// Those of `private` that a snapshot shows as zeros: all but the index, which is written through the filesystem
/// and tracked like any file.
fn shown_as_zeros(private: &[FileExtent], geometry: Geometry) -> Result<KVVec<FileExtent>> {
    let index = geometry.index_blocks();
    let mut out = KVVec::new();
    for piece in private.iter().flat_map(|e| outside(*e, &index)).filter(|e| e.len != 0) {
        out.push(piece, GFP_KERNEL)?;
    }
    Ok(out)
}

/// The guard of an epoch over these extents.
pub(crate) fn guard(lists: &[&[FileExtent]]) -> Result<Arc<Guard>> {
    Ok(Arc::new(Guarded::new(by_origin(lists)?), GFP_KERNEL)?)
}

fn by_origin(lists: &[&[FileExtent]]) -> Result<KVVec<FileExtent>> {
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
    for e in &by_origin(&[list])? {
        let extent = Extent {
            start: e.origin_block,
            len: e.len,
        };
        out.push(extent, GFP_KERNEL)?;
    }
    Ok(out)
}

/// Enters all blocks of `extents` in a change map, and on disk.
pub(crate) fn mark_all(changes: &ChangeMap, log: Option<&Arc<Log>>, extents: &[FileExtent]) {
    for e in extents {
        changes.mark(e.origin_block, e.len);
    }
    if let Some(log) = log {
        Log::mark_extents(log, extents.iter().map(|e| (e.origin_block, e.len)));
    }
}

impl Device {
    /// Makes everything for a snapshot of `origin`. May take long (it allocates the COW file);
    /// nothing is left behind on failure.
    pub(crate) fn prepare(
        this: &Arc<Self>,
        origin: &Arc<Origin>,
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
            // 0 stands for "none".
            nonce: random_u64() | 1,
            origin_bytes: geometry.origin_bytes,
            roots: [0, 0],
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
            geometry.private().end,
            params::copy_memory_max(),
            None,
        )?;
        Snapshot::set_cache_limit(&snapshot, this.cache_size());
        let changes = Arc::new(ChangeMap::new(origin.blocks())?, GFP_KERNEL)?;
        // Before the first raw write to the new file.
        if let Some(p) = predecessor {
            // What becomes private before the point is shown as zeros from then on, and what the
            // old file's own blocks hold was never seen by a snapshot: both are changes.
            mark_all(p.changes, p.log, &shown_as_zeros(p.private, geometry)?);
            let private = private_extents(file.extents(), geometry)?;
            mark_all(p.changes, p.log, &shown_as_zeros(&private, geometry)?);
        }
        let log = NewLog(this.new_log(origin, tracker, &file, &changes, wanted, &sizes, predecessor)?);
        let epoch = |previous: Option<&Predecessor<'_>>, both: bool| -> Result<KBox<Epoch>> {
            let old = predecessor.filter(|_| both);
            Ok(KBox::new(
                Epoch {
                    changes: changes.clone(),
                    previous: previous.map(|p| p.changes.clone()),
                    log: log.log().cloned(),
                    previous_log: old.and_then(|p| p.log.cloned()),
                    snapshot: Some(snapshot.clone()),
                    coming: None,
                    guard: guard(&[file.extents(), old.map_or(&[], |p| p.private)])?,
                },
                GFP_KERNEL,
            )?)
        };
        let first = epoch(predecessor, true)?;
        let (settled, committed) = match predecessor {
            Some(_) => (Some(epoch(None, true)?), Some(epoch(None, false)?)),
            None => (None, None),
        };
        let cow_extents = Arc::new(origin_extents(file.extents())?, GFP_KERNEL)?;
        let prepared = Prepared {
            log,
            file,
            cow_path,
            sizes,
            snapshot,
            changes,
            cow_extents,
            committed,
        };
        Ok((prepared, Point { first, settled }))
    }

    /// The log of a new file, written. `None`: its extents are too many; a crash costs the chain then.
    #[allow(clippy::too_many_arguments, reason = "all parts of one file")]
    #[inline(never)] // Large on the stack.
    fn new_log(
        &self,
        origin: &Arc<Origin>,
        tracker: &Tracker,
        file: &NewFile,
        changes: &Arc<ChangeMap>,
        wanted: &Wanted<'_>,
        sizes: &FileSizes,
        predecessor: Option<&Predecessor<'_>>,
    ) -> Result<Option<Arc<Log>>> {
        let file = file.file().ok_or(EINVAL)?;
        if file.ext.state != cow::EXT_STATE_ROOTED {
            pr_warn!(
                "datto{}: the COW file lies in too many pieces ({}) to be found again after a reboot or a \
                 crash: the next backup after one must be a full one\n",
                self.minor(),
                file.extents().len()
            );
            return Ok(None);
        }
        let layout = Geometry {
            origin_bytes: origin.bytes(),
        }
        .private();
        let mut words = KVVec::new();
        words.resize(layout.groups as usize, Default::default(), GFP_KERNEL)?;
        let root = Root {
            state: match predecessor {
                Some(_) => RootState::Prepared,
                None => RootState::Live,
            },
            snapshot: true,
            counted: matches!(file.layout, Layout::Counted { .. }),
            origin_bytes: origin.bytes(),
            seqid: wanted.seqid,
            uuid: wanted.uuid,
            file_bytes: file.size(),
            falloc_size: sizes.reported_bytes,
            ino: file.id.ino,
            igen: file.id.generation,
            list: 0,
            extents: 0,
            list_generation: 0,
            crash_blocks: 0,
            predecessor: predecessor.map_or(Sibling::default(), |p| p.sibling),
            successor: Sibling::default(),
            identity: Identity::default(),
            map_words: 0,
            map_pieces: [(0, 0); ROOT_PIECES],
            own: own_extents(file.extents(), &layout)?,
        };
        let log = Log::new(LogSetup {
            origin,
            tracker,
            changes,
            nonce: file.ext.nonce,
            roots: file.ext.roots,
            root: KBox::new(root, GFP_KERNEL)?,
            generation: 0,
            words,
        })?;
        log.write_new(file.extents())?;
        Ok(Some(log))
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
        let settled = if switched.is_ok() { tracker.settle_point() } else { Ok(()) };
        let held = frozen.thaw();
        // Probes that still saw the epoch before the point have finished when this has waited; then
        // the bios that they let pass are drained. Until both are done, writes are entered in both
        // maps.
        self.step("thawed; waiting for writes from before the point");
        drop(switched?.wait());
        settled?;
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
        let (running, log) = (epoch.snapshot.clone(), epoch.log.clone());
        // Under the lock: either the unmount callback sees the new snapshot, or we see its mark.
        let mut view = self.view.lock();
        if let Some(snapshot) = &running {
            snapshot.set_mounted(!view.unmounted);
        }
        let old = core::mem::replace(&mut view.running, running);
        let old_log = core::mem::replace(&mut view.log, log);
        let switched = tracker.switch(epoch);
        drop(view);
        drop((old, old_log));
        switched.map_err(|_epoch| ENODEV)
    }
}
