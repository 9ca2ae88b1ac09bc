// SPDX-License-Identifier: GPL-2.0-only
//! DESTROY.

use kernel::prelude::*;

use crate::device::{Device, Live};
use crate::device_point::remove_file;
use crate::log_seal::Keep;
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use crate::sys::delayed::flush_delayed;

/// How a device ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// With its COW file.
    Destroy,
    /// To be picked up again.
    Release,
}

impl Device {
    /// Ends the tracking, removes the node and the COW file. ENOENT, EBUSY, EINTR.
    pub(crate) fn destroy(&self) -> Result {
        let mut op = self.op.lock();
        op.as_ref().ok_or(ENOENT)?.close_node()?;
        // The point of no return: what cannot be undone goes on to the end.
        if let Some(live) = op.take() {
            self.take_down(live, End::Destroy);
        }
        drop(op);
        // It finds nothing to do any more, but must have run before the module may go.
        flush_delayed(&self.poll_work);
        Ok(())
    }

    /// Seals the COW file of a device whose filesystem is not mounted and lets go of the device. ENOENT,
    /// EBUSY: mounted, or the node is open; EINVAL: failed, there is nothing to be picked up again.
    pub(crate) fn release(&self) -> Result {
        let mut op = self.op.lock();
        let live = op.as_ref().ok_or(ENOENT)?;
        if !self.unmounted() {
            return Err(EBUSY);
        }
        live.close_node()?;
        let log = live.log.as_ref().filter(|_| self.chain_error() == 0).ok_or(EINVAL);
        let sealed = log.and_then(|log| Log::seal(log, live.snapshot.as_ref(), Keep::Snapshot, false));
        if let Err(e) = sealed {
            live.reopen_node();
            return Err(e);
        }
        if let Some(live) = op.take() {
            self.take_down(live, End::Release);
        }
        drop(op);
        flush_delayed(&self.poll_work);
        Ok(())
    }

    /// Takes a device apart that nobody has open. Afterwards its parts hold no reference to it, and
    /// it holds none to them.
    fn take_down(&self, mut live: Live, end: End) {
        self.step("ending the tracking");
        live.disk = None;
        if let Some(log) = live.log.as_ref().filter(|_| end == End::Destroy) {
            // Before the first write goes untracked, and before the file goes: nothing is written to it
            // afterwards, and no reload believes it.
            Log::abandon(log);
        }
        if let Some(tracker) = live.tracker.as_ref() {
            tracker.listen(false);
            tracker.end();
        }
        if let Some(log) = live.log.as_ref() {
            Log::stop(log);
        }
        if let Some(snapshot) = live.snapshot.as_ref() {
            Snapshot::shutdown(snapshot);
        }
        if let Some(file) = live.file.take() {
            match end {
                End::Destroy => remove_file(file),
                End::Release => file.forget(),
            }
        }
        self.replace_shown(None);
        self.forget_tracking();
        live.snapshot = None;
        if let Some(log) = live.log.take() {
            Log::finish(&log);
        }
        if let Some(tracker) = live.tracker.take() {
            tracker.stop();
        }
        live.origin.close();
    }
}
