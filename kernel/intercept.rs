// SPDX-License-Identifier: GPL-2.0-only
//! Where every bio of the system passes: finds the tracked devices that it concerns.
//!
//! The probe runs in the submitter's task, before the bio is queued, and must not sleep. It looks at
//! the list of trackers under RCU. A bio that has to wait is redirected to a tracker's shadow disk;
//! when it is handed back, the trackers behind that one are asked ([`resume`]), as the probe does
//! not see a bio twice.

use crate::sys::{
    bio::{BioRef, HeldBio},
    rcu_cell::RcuCell,
    tracepoint::{BioHook, BioQueueProbe},
};
use crate::tracker::{Action, Tracker};
use core::sync::atomic::{AtomicUsize, Ordering};
use kernel::{
    prelude::*,
    sync::{global_lock, rcu, Arc},
};

type List = KVec<Arc<Tracker>>;

/// All trackers, in ascending order of their number. Replaced as a whole under `REGISTRY`.
static TRACKERS: RcuCell<List> = RcuCell::empty();

global_lock! {
    // SAFETY: Initialised in `init`, which the module calls before anything else.
    unsafe(uninit) static REGISTRY: Mutex<Option<BioQueueProbe>> = None;
}

/// To be called once, before anything else of this module.
///
/// # Safety
///
/// Not called twice.
pub(crate) unsafe fn init() {
    // SAFETY: The caller's promise.
    unsafe { REGISTRY.init() }
}

struct Hook;

impl BioHook for Hook {
    fn on_bio(bio: BioRef<'_>) {
        if !bio.is_write() {
            if LISTENERS.load(Ordering::Relaxed) != 0 {
                show_read(bio);
            }
            return;
        }
        let guard = rcu::read_lock();
        let Some(list) = TRACKERS.read(&guard) else { return };
        for tracker in list {
            if tracker.on_bio(&guard, bio) == Action::Redirect {
                // Counted under RCU: whoever unpublishes the epoch and waits for a grace period
                // sees the count.
                tracker.held().enter();
                bio.redirect(tracker.shadow_bdev());
                return;
            }
        }
    }
}

/// Trackers that want to see reads too: those whose filesystem is not mounted.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);

/// One more, or one less, tracker wants to see reads.
pub(crate) fn listen(more: bool) {
    if more {
        LISTENERS.fetch_add(1, Ordering::Relaxed);
    } else {
        LISTENERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells trackers that wait for a mount of a read.
#[cold]
fn show_read(bio: BioRef<'_>) {
    let guard = rcu::read_lock();
    let Some(list) = TRACKERS.read(&guard) else { return };
    for tracker in list {
        tracker.on_read(bio);
    }
}

/// Enters a bio that tracker `id` holds in its change maps of now.
pub(crate) fn mark_again(bio: BioRef<'_>, id: u64) {
    let guard = rcu::read_lock();
    if let Some(list) = TRACKERS.read(&guard) {
        if let Some(tracker) = list.iter().find(|t| t.id() == id) {
            tracker.mark_again(&guard, bio);
        }
    }
}

/// Sends a bio that tracker `from` has held on its way, past the trackers behind it.
pub(crate) fn resume(bio: HeldBio, from: u64) {
    send_on(bio, from.saturating_add(1));
}

/// The same for a bio that tracker `from` itself has to decide about once more: what it had to wait for
/// has come, but other things may have changed meanwhile.
pub(crate) fn ask_again(bio: HeldBio, from: u64) {
    send_on(bio, from);
}

fn send_on(bio: HeldBio, first: u64) {
    let next = {
        let guard = rcu::read_lock();
        let next = TRACKERS.read(&guard).and_then(|list| {
            list.iter()
                .filter(|t| t.id() >= first)
                .find(|t| t.on_bio(&guard, bio.view()) == Action::Redirect)
        });
        // Counted under RCU, as in the probe.
        next.inspect(|t| t.held().enter()).cloned()
    };
    match next {
        Some(tracker) => tracker.hold().park(bio),
        None => bio.resubmit(),
    }
}

fn replaced(edit: impl FnOnce(&mut List) -> Result) -> Result<KBox<List>> {
    let mut list = List::new();
    {
        // The registry lock keeps the list; but allocation must not happen under RCU.
        let n = {
            let guard = rcu::read_lock();
            TRACKERS.read(&guard).map_or(0, |l| l.len())
        };
        list.reserve(n.saturating_add(1), GFP_KERNEL)?;
        let guard = rcu::read_lock();
        if let Some(old) = TRACKERS.read(&guard) {
            for t in old {
                let _ = list.push_within_capacity(t.clone());
            }
        }
    }
    edit(&mut list)?;
    Ok(KBox::new(list, GFP_KERNEL)?)
}

/// Starts to show bios to `tracker`. May sleep.
pub(crate) fn attach(tracker: Arc<Tracker>) -> Result {
    let mut probe = REGISTRY.lock();
    let list = replaced(|l| {
        l.push_within_capacity(tracker).map_err(|_| ENOMEM)
    })?;
    if probe.is_none() {
        *probe = Some(BioQueueProbe::register::<Hook>()?);
    }
    drop(TRACKERS.replace(Some(list)).wait());
    Ok(())
}

/// Stops showing bios to tracker `id`; none is in its hands any more when this returns, but for
/// those it holds. May sleep. Unknown numbers are ignored.
pub(crate) fn detach(id: u64) {
    let mut probe = REGISTRY.lock();
    let Ok(list) = replaced(|l| {
        l.retain(|t| t.id() != id);
        Ok(())
    }) else {
        // No memory for a shorter list: the old one stays. Its tracker has no epoch, so all passes.
        pr_warn!("no memory to forget a tracker; it stays, without effect\n");
        return;
    };
    let empty = list.is_empty();
    let old = TRACKERS.replace((!empty).then_some(list)).wait();
    if empty {
        if let Some(p) = probe.take() {
            p.unregister::<Hook>();
        }
    }
    drop(probe);
    drop(old);
}
