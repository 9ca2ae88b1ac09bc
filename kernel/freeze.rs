// SPDX-License-Identifier: GPL-2.0-only
//! Holding a filesystem still for the snapshot point.
//!
//! When [`Frozen`] exists, nothing of the filesystem is in flight and nothing new comes, our own raw
//! I/O excepted. A freeze by user space (`fsfreeze`) nests with ours: each side thaws its own. Ours
//! cannot be undone by user space, which is why this is not `bdev_freeze`.
//!
//! An unmount that happens meanwhile is finished by our thaw, in our task, the unmount callback
//! included: hold no lock then that the callback takes.

use kernel::prelude::*;
use kernel::time::{Instant, Monotonic};

use crate::disk_turn::Turn;
use crate::sys::ffi::NoIo;
use crate::sys::superblock::{ActiveSuper, FrozenSuper};

/// A frozen filesystem. Thawed by [`Frozen::thaw`], or when dropped.
///
/// Until then no allocation of this task starts I/O, which might wait for the thaw.
pub(crate) struct Frozen {
    // Dropped in this order.
    frozen: FrozenSuper,
    since: Instant<Monotonic>,
    _no_io: NoIo,
}

impl Frozen {
    /// EBUSY: another part of the kernel holds it frozen; ETIMEDOUT, EINTR: see [`Turn`]; else what the
    /// filesystem says.
    pub(crate) fn new(sb: ActiveSuper) -> Result<Self> {
        let turn = Turn::wait(&sb)?;
        // Freezing writes back everything while writers wait: let most of it happen before.
        if !sb.writes_stopped() {
            sb.sync();
        }
        Self::in_turn(sb, &turn)
    }

    /// The same, without writing anything back before writers wait.
    pub(crate) fn at_once(sb: ActiveSuper) -> Result<Self> {
        let turn = Turn::wait(&sb)?;
        Self::in_turn(sb, &turn)
    }

    fn in_turn(sb: ActiveSuper, turn: &Turn) -> Result<Self> {
        turn.wait_for_syncs(&sb)?;
        let no_io = NoIo::enter();
        let since = Instant::<Monotonic>::now();
        let frozen = FrozenSuper::freeze(sb)?;
        Ok(Self {
            frozen,
            since,
            _no_io: no_io,
        })
    }

    /// Thaws. Returns for how long writers were held off, the flush at the start included, in
    /// nanoseconds.
    pub(crate) fn thaw(self) -> u64 {
        let since = self.since;
        let Self { frozen, _no_io, .. } = self;
        drop(frozen);
        u64::try_from(since.elapsed().as_nanos()).unwrap_or(0)
    }
}
