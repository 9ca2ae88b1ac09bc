// SPDX-License-Identifier: GPL-2.0-only
//! The node `/dev/datto<minor>`.

use crate::snapshot::Snapshot;
use crate::snapshot_read;
use crate::sys::{
    bio::{HeldBio, Status},
    disk::{BioDisk, BioDriver, Kind},
};
use core::time::Duration;
use kernel::{
    bindings,
    prelude::*,
    str::CString,
    sync::{Arc, ArcBorrow},
};

/// How long an operation that needs the node closed waits for passing openers.
const PATIENCE: Duration = Duration::from_secs(5);

struct Node {
    snapshot: Arc<Snapshot>,
}

impl BioDriver for Node {
    fn submit(this: ArcBorrow<'_, Self>, bio: HeldBio) {
        if bio.view().op() == bindings::req_op_REQ_OP_READ {
            snapshot_read::submit(this.snapshot.as_arc_borrow(), bio);
        } else {
            // The node is read-only; what comes all the same is refused.
            bio.end(Status::IoError);
        }
    }

    fn may_open(&self, _for_writing: bool) -> Result {
        // Through the page cache a reader would only see EIO.
        if self.snapshot.is_dormant() {
            return Err(EBUSY);
        }
        Ok(())
    }
}

/// The node of a running snapshot. It disappears on drop, which must come after a successful
/// [`SnapshotDisk::close`].
pub(crate) struct SnapshotDisk {
    disk: BioDisk<Node>,
    snapshot: Arc<Snapshot>,
}

impl SnapshotDisk {
    /// Adds `/dev/datto<minor>`. May sleep. udev opens the node within moments.
    pub(crate) fn add(minor: u32, snapshot: Arc<Snapshot>) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("datto{minor}"))?;
        let node = Arc::new(Node { snapshot: snapshot.clone() }, GFP_KERNEL)?;
        let sectors = snapshot.sectors();
        let disk = BioDisk::add(Kind::Snapshot, &name, snapshot.bdev, sectors, node)?;
        Ok(Self { disk, snapshot })
    }

    /// Waits up to 5 s until nobody has the node open, and keeps further openers out.
    ///
    /// # Errors
    ///
    /// EBUSY: still open. EINTR: a signal. The node stays usable then.
    pub(crate) fn close(&self) -> Result {
        self.disk.close_within(PATIENCE)
    }

    /// Lets openers in again after [`SnapshotDisk::close`].
    pub(crate) fn reopen(&self) {
        self.disk.reopen();
    }
}

impl Drop for SnapshotDisk {
    fn drop(&mut self) {
        // Parts of reads whose reader has gone.
        self.snapshot.readers.wait_empty();
    }
}
