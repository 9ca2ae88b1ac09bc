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

struct Registry {
    /// There while there are trackers.
    probe: Option<BioQueueProbe>,
    /// An empty list with room for all trackers but one, `None` for none: taking one away needs no memory.
    spare: Option<KBox<List>>,
}

global_lock! {
    // SAFETY: Initialised in `init`, which the module calls before anything else.
    unsafe(uninit) static REGISTRY: Mutex<Registry> = Registry { probe: None, spare: None };
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
                bio.redirect(tracker.shadow_bdev(), tracker.home());
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

/// The same for a bio that waited while the disk came to rest: another tracker of the disk, asked before, may have
/// had a snapshot point meanwhile. The disk did not have the bio under way, so it belongs to the time behind that.
pub(crate) fn ask_all_again(bio: HeldBio) {
    send_on(bio, 0);
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

/// The list with one more.
fn longer(tracker: Arc<Tracker>) -> Result<KBox<List>> {
    let mut list = List::new();
    // The registry lock keeps the list; but allocation must not happen under RCU.
    let n = {
        let guard = rcu::read_lock();
        TRACKERS.read(&guard).map_or(0, |l| l.len())
    };
    list.reserve(n.saturating_add(1), GFP_KERNEL)?;
    {
        let guard = rcu::read_lock();
        if let Some(old) = TRACKERS.read(&guard) {
            for t in old {
                let _ = list.push_within_capacity(t.clone());
            }
        }
    }
    list.push_within_capacity(tracker).map_err(|_| ENOMEM)?;
    Ok(KBox::new(list, GFP_KERNEL)?)
}

/// Starts to show bios to `tracker`. May sleep.
pub(crate) fn attach(tracker: Arc<Tracker>) -> Result {
    let mut registry = REGISTRY.lock();
    let list = longer(tracker)?;
    if registry.probe.is_none() {
        registry.probe = Some(BioQueueProbe::register::<Hook>()?);
    }
    let mut old = TRACKERS.replace(Some(list)).wait();
    if let Some(old) = old.as_mut() {
        // Drops no tracker: all are in the new list.
        old.clear();
    }
    registry.spare = old;
    Ok(())
}

/// Stops showing bios to tracker `id`; none is in its hands any more when this returns, but for
/// those it holds. May sleep, needs no memory: a probe that stayed behind would outlive the module. Unknown
/// numbers are ignored.
pub(crate) fn detach(id: u64) {
    let mut registry = REGISTRY.lock();
    let known = {
        let guard = rcu::read_lock();
        TRACKERS.read(&guard).is_some_and(|l| l.iter().any(|t| t.id() == id))
    };
    if !known {
        return;
    }
    let mut rest = registry.spare.take();
    if let Some(rest) = rest.as_mut() {
        let guard = rcu::read_lock();
        if let Some(list) = TRACKERS.read(&guard) {
            for t in list.iter().filter(|t| t.id() != id) {
                let _ = rest.push_within_capacity(t.clone());
            }
        }
    }
    let rest = rest.filter(|l| !l.is_empty());
    let empty = rest.is_none();
    let mut old = TRACKERS.replace(rest).wait();
    if empty {
        if let Some(p) = registry.probe.take() {
            p.unregister::<Hook>();
        }
        drop(registry);
        drop(old);
        return;
    }
    // The others are in the new list; this one may be dropped only when the lock is not held any more.
    let mut gone = None;
    if let Some(old) = old.as_mut() {
        if let Some(i) = old.iter().position(|t| t.id() == id) {
            gone = old.remove(i).ok();
        }
        old.clear();
    }
    registry.spare = old;
    drop(registry);
    drop(gone);
}
