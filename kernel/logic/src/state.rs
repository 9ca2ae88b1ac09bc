// SPDX-License-Identifier: GPL-2.0-only
//! The states of a device, and which call is legal in which of them (COMPAT.md sections 2 and 3).
//!
//! Plain data; what protects it is up to its owner.

use super::abi::ioctl::{
    DEFAULT_MAX_DEVICES, LIMIT_MAX_DEVICES, STATE_ACTIVE, STATE_SNAPSHOT, STATE_UNVERIFIED,
};
use super::errno::{Errno, EBUSY, EINVAL, EIO, ENOENT};

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Shows a snapshot and tracks changes.
    Snapshot,
    /// Only tracks changes.
    Incremental,
}

/// The calls that need a device in a certain state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// DESTROY.
    Destroy,
    /// TRANSITION_INC.
    TransitionInc,
    /// TRANSITION_SNAP.
    TransitionSnap,
    /// RECONFIGURE.
    Reconfigure,
    /// EXPAND_COW_FILE.
    Expand,
    /// RECONFIGURE_AUTO_EXPAND.
    AutoExpand,
    /// DROP_SNAPSHOT.
    DropSnapshot,
    /// INFO, STATUS, EXTENTS.
    Info,
}

impl Call {
    /// An open snapshot node makes the call fail with EBUSY.
    pub const fn needs_closed_node(self) -> bool {
        match self {
            Call::Destroy
            | Call::TransitionInc
            | Call::TransitionSnap
            | Call::Reconfigure
            | Call::DropSnapshot => true,
            Call::Expand | Call::AutoExpand | Call::Info => false,
        }
    }
}

/// The state of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Snapshot or incremental. A failure does not change it.
    pub mode: Mode,
    /// Its filesystem is mounted. A failure does not change what INFO says about that.
    pub mounted: bool,
    /// Announced by a reload, COW file not seen yet.
    pub unverified: bool,
    /// What it failed with: the snapshot in snapshot mode, the chain in incremental mode.
    pub failed: Option<Errno>,
    /// The change map can be trusted. False implies failed.
    pub chain_intact: bool,
}

impl State {
    /// As SETUP_SNAP leaves it.
    pub const fn new_snapshot() -> Self {
        Self {
            mode: Mode::Snapshot,
            mounted: true,
            unverified: false,
            failed: None,
            chain_intact: true,
        }
    }

    /// The bit set that INFO and the status show.
    pub const fn bits(&self) -> u64 {
        let mut bits = 0;
        if matches!(self.mode, Mode::Snapshot) {
            bits |= STATE_SNAPSHOT;
        }
        if self.unverified {
            bits |= STATE_UNVERIFIED;
        } else if self.mounted {
            bits |= STATE_ACTIVE;
        }
        bits
    }

    /// `error` of INFO and the status: 0, or a negative errno.
    pub fn error(&self) -> i32 {
        self.failed.map_or(0, Errno::negative)
    }

    /// The node `/dev/datto<minor>` exists.
    pub const fn has_node(&self) -> bool {
        matches!(self.mode, Mode::Snapshot) && !self.unverified
    }

    /// What a read of the node fails with, if it does.
    pub const fn read_error(&self) -> Option<Errno> {
        if self.failed.is_some() {
            Some(EIO)
        } else if !self.is_active() {
            Some(EBUSY)
        } else {
            None
        }
    }

    const fn is_active(&self) -> bool {
        self.mounted && !self.unverified
    }

    const fn is(&self, mode: Mode) -> bool {
        matches!(
            (self.mode, mode),
            (Mode::Snapshot, Mode::Snapshot) | (Mode::Incremental, Mode::Incremental)
        )
    }

    const fn healthy_active(&self, mode: Mode) -> Result<(), Errno> {
        if self.failed.is_none() && self.is_active() && self.is(mode) {
            Ok(())
        } else {
            Err(EINVAL)
        }
    }

    /// Whether a call is legal, as far as the state decides it. Minor, existence and an open node are
    /// checked before ([`check_minor`], [`precheck`]).
    ///
    /// # Errors
    ///
    /// The errno of COMPAT.md section 2.
    pub const fn may(&self, call: Call) -> Result<(), Errno> {
        match call {
            Call::Destroy | Call::Info => Ok(()),
            Call::TransitionInc | Call::Expand | Call::AutoExpand => {
                self.healthy_active(Mode::Snapshot)
            }
            Call::TransitionSnap => self.healthy_active(Mode::Incremental),
            Call::Reconfigure => {
                if self.failed.is_none() {
                    Ok(())
                } else {
                    Err(EINVAL)
                }
            }
            // The way back for a failed snapshot: all that counts is the change map.
            Call::DropSnapshot => {
                if self.chain_intact && self.is_active() && self.is(Mode::Snapshot) {
                    Ok(())
                } else {
                    Err(EINVAL)
                }
            }
        }
    }

    /// [`State::may`] for TRANSITION_INC.
    ///
    /// # Errors
    ///
    /// EINVAL: failed, or not an active snapshot.
    pub const fn may_transition_inc(&self) -> Result<(), Errno> {
        self.may(Call::TransitionInc)
    }

    /// [`State::may`] for TRANSITION_SNAP.
    ///
    /// # Errors
    ///
    /// EINVAL: failed, or not an active incremental.
    pub const fn may_transition_snap(&self) -> Result<(), Errno> {
        self.may(Call::TransitionSnap)
    }

    /// [`State::may`] for RECONFIGURE.
    ///
    /// # Errors
    ///
    /// EINVAL: failed.
    pub const fn may_reconfigure(&self) -> Result<(), Errno> {
        self.may(Call::Reconfigure)
    }

    /// [`State::may`] for EXPAND_COW_FILE and RECONFIGURE_AUTO_EXPAND.
    ///
    /// # Errors
    ///
    /// EINVAL: failed, or not an active snapshot.
    pub const fn may_expand(&self) -> Result<(), Errno> {
        self.may(Call::Expand)
    }

    /// [`State::may`] for DROP_SNAPSHOT.
    ///
    /// # Errors
    ///
    /// EINVAL: not a mounted snapshot, or its change map is lost.
    pub const fn may_drop_snapshot(&self) -> Result<(), Errno> {
        self.may(Call::DropSnapshot)
    }

    /// The snapshot failed; change tracking goes on. The first error stays. In incremental mode there
    /// is no snapshot, and nothing happens.
    pub fn fail_snapshot(&mut self, error: Errno) {
        if self.is(Mode::Snapshot) && self.failed.is_none() {
            self.failed = Some(error);
        }
    }

    /// The change map can no longer be trusted. The first error stays.
    pub fn break_chain(&mut self, error: Errno) {
        self.chain_intact = false;
        if self.failed.is_none() {
            self.failed = Some(error);
        }
    }

    /// TRANSITION_INC or DROP_SNAPSHOT has succeeded: the snapshot's failure went with the snapshot.
    pub fn became_incremental(&mut self) {
        self.mode = Mode::Incremental;
        if self.chain_intact {
            self.failed = None;
        }
    }

    /// TRANSITION_SNAP has succeeded.
    pub fn became_snapshot(&mut self) {
        self.mode = Mode::Snapshot;
    }
}

/// `max_snap_devices` as it takes effect: 0 means the default, the limit caps it.
pub const fn max_devices(parameter: u32) -> u32 {
    match parameter {
        0 => DEFAULT_MAX_DEVICES,
        n if n > LIMIT_MAX_DEVICES => LIMIT_MAX_DEVICES,
        n => n,
    }
}

/// The check of a minor, which comes first. `max` is out of [`max_devices`].
///
/// # Errors
///
/// EINVAL: out of range.
pub const fn check_minor(minor: u32, max: u32) -> Result<(), Errno> {
    if minor < max {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// All checks of a call in their order: range of the minor, existence, open node, state.
/// `node_open` is what is left after waiting for a passing opener.
///
/// # Errors
///
/// The errno of COMPAT.md section 2.
pub fn precheck(
    call: Call,
    minor: u32,
    max: u32,
    device: Option<&State>,
    node_open: bool,
) -> Result<(), Errno> {
    check_minor(minor, max)?;
    let state = device.ok_or(ENOENT)?;
    if node_open && call.needs_closed_node() {
        return Err(EBUSY);
    }
    state.may(call)
}
