// SPDX-License-Identifier: GPL-2.0-only
//! DESTROY.

use kernel::prelude::*;

use crate::device::{Device, Live};
use crate::device_point::remove_file;
use crate::snapshot::Snapshot;

impl Device {
    /// Ends the tracking, removes the node and the COW file. ENOENT, EBUSY, EINTR.
    pub(crate) fn destroy(&self) -> Result {
        let mut op = self.op.lock();
        op.as_ref().ok_or(ENOENT)?.close_node()?;
        // The point of no return: what cannot be undone goes on to the end.
        if let Some(live) = op.take() {
            self.take_down(live);
        }
        Ok(())
    }

    /// Takes a device apart that nobody has open. Afterwards its parts hold no reference to it, and
    /// it holds none to them.
    fn take_down(&self, mut live: Live) {
        self.step("ending the tracking");
        live.disk = None;
        if let Some(tracker) = live.tracker.as_ref() {
            tracker.end();
        }
        if let Some(snapshot) = live.snapshot.as_ref() {
            Snapshot::shutdown(snapshot);
        }
        if let Some(file) = live.file.take() {
            remove_file(file);
        }
        self.replace_shown(None);
        self.forget_tracking();
        live.snapshot = None;
        if let Some(tracker) = live.tracker.take() {
            tracker.stop();
        }
        live.origin.close();
    }
}
