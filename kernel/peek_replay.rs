// SPDX-License-Identifier: GPL-2.0-only
//! The disk through which a journal is replayed in memory: reads come from the origin, writes stay here, and
//! later reads see them. The origin is never written to.
//!
//! Nothing in `submit` may wait, and there is no need to be quick: once something was written, one work
//! item serves everything, in order. So a read sees every write that had completed before it came.

use crate::origin::Origin;
use crate::peek_overlay::Overlay;
use crate::sys::{
    bdev::Bdev,
    bio::{BioStack, HeldBio, Status},
    disk::{BioDisk, BioDriver, Kind},
    gate::Gate,
    queues::OwnQueue,
};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{
    bindings, impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex},
    workqueue::{Work, WorkItem},
};

#[pin_data]
struct Driver {
    bdev: Bdev,
    /// Something was written, or is about to be.
    written: AtomicBool,
    /// For the work item.
    waiting: BioStack,
    /// Bios that were put there and have not ended.
    held: Gate,
    queue: OwnQueue,
    #[pin]
    overlay: Mutex<Overlay>,
    #[pin]
    work: Work<Driver>,
    /// Keeps `bdev` open. Last: the overlay reads from it.
    origin: Arc<Origin>,
}

impl_has_work! {
    impl HasWork<Self> for Driver { self.work }
}

impl WorkItem for Driver {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let mut overlay = this.overlay.lock();
        let mut bios = this.waiting.take();
        while let Some(bio) = bios.pop_front() {
            this.serve(&mut overlay, bio);
            this.held.leave();
        }
    }
}

impl Driver {
    /// Ends the bio, or sends it on to the origin.
    fn serve(&self, overlay: &mut Overlay, bio: HeldBio) {
        let result = if bio.view().is_write() {
            overlay.write(bio.view())
        } else if overlay.touches(bio.view()) {
            overlay.read(bio.view())
        } else {
            return self.pass_on(bio);
        };
        bio.end(if result.is_ok() { Status::Ok } else { Status::IoError });
    }

    fn pass_on(&self, mut bio: HeldBio) {
        bio.set_device(self.bdev);
        bio.resubmit();
    }
}

impl BioDriver for Driver {
    fn submit(this: ArcBorrow<'_, Self>, bio: HeldBio) {
        match bio.view().op() {
            bindings::req_op_REQ_OP_READ if !this.written.load(Ordering::Acquire) => return this.pass_on(bio),
            bindings::req_op_REQ_OP_READ => {}
            // Before the write completes: who reads after that comes behind it.
            bindings::req_op_REQ_OP_WRITE => this.written.store(true, Ordering::Release),
            // The disk announces nothing else.
            _ => return bio.end(Status::IoError),
        }
        this.held.enter();
        this.waiting.push(bio);
        // An error gives back the reference: it was queued already, and has not begun to take.
        let _ = this.queue.queue().enqueue::<Arc<Self>, 0>(this.into());
    }

    fn may_open(&self, for_writing: bool) -> Result {
        // A mount that is read-only opens it for reading.
        if for_writing {
            return Err(EROFS);
        }
        Ok(())
    }
}

/// The disk, for as long as it lives.
pub(crate) struct ReplayDisk {
    /// `None` while it is being dropped.
    disk: Option<BioDisk<Driver>>,
    driver: Arc<Driver>,
}

impl ReplayDisk {
    /// Adds `/dev/<name>` above `origin`. May sleep.
    pub(crate) fn add(origin: &Arc<Origin>, minor: u32, name: &CStr) -> Result<Self> {
        let overlay = Overlay::new(origin.device())?;
        let queue = OwnQueue::new(c"dattobd-peek", minor)?;
        let driver = Arc::pin_init(
            pin_init!(Driver {
                bdev: origin.device(),
                written: AtomicBool::new(false),
                waiting: BioStack::new(),
                held: Gate::new(),
                queue,
                overlay <- new_mutex!(overlay, "dattobd::peek_overlay"),
                work <- new_work!("dattobd::peek_work"),
                origin: origin.clone(),
            }),
            GFP_KERNEL,
        )?;
        let disk = BioDisk::add(Kind::Overlay, name, origin.device(), origin.device().sectors(), driver.clone())?;
        Ok(Self { disk: Some(disk), driver })
    }
}

impl Drop for ReplayDisk {
    fn drop(&mut self) {
        // From here on nothing comes any more; what has come still ends.
        self.disk = None;
        self.driver.held.wait_empty();
        // The work item holds the driver, whose queue must not be dropped by its own work.
        self.driver.queue.flush();
    }
}
