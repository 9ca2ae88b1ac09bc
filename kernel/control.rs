// SPDX-License-Identifier: GPL-2.0-only
//! The control side as a whole: the node `/dev/datto-ctl`, `/proc/datto-info` and what they work on.

use kernel::prelude::*;
use kernel::sync::Arc;

use crate::devices::Devices;
use crate::events::Outlet;
use crate::ioctl_calls::ControlCalls;
use crate::params;
use crate::proc::Info;
use crate::sys::miscdev::MiscNode;
use crate::sys::module::HibernationWatch;
use crate::sys::procfs::ProcFile;
use crate::sys::shutdown::ShutdownWatch;

/// Exists while the module is loaded. Fields are dropped in this order: first nobody can call any
/// more, then what was called goes.
pub(crate) struct Control {
    _node: MiscNode<ControlCalls>,
    _info: ProcFile<Info>,
    _shutdown: ShutdownWatch<Devices>,
    _devices: Arc<Devices>,
    _hibernation: HibernationWatch,
    outlet: Arc<Outlet>,
}

impl Control {
    /// Makes the node and the file. The last step of loading the module: calls may arrive at once.
    ///
    /// # Safety
    ///
    /// No other value exists.
    pub(crate) unsafe fn new() -> Result<Self> {
        // SAFETY: the caller's promise.
        let hibernation = unsafe { HibernationWatch::new() }?;
        let outlet = Outlet::new()?;
        params::settle_copy_memory();
        let devices = Devices::new(params::settle_max_devices(), outlet.clone())?;
        let info = ProcFile::create(c"datto-info", 0o444, Info::new(devices.clone()))?;
        let node = MiscNode::register(c"datto-ctl", 0o600, ControlCalls::new(devices.clone()))?;
        outlet.set_source(node.event_source());
        // SAFETY: As above.
        let shutdown = unsafe { ShutdownWatch::new(devices.clone()) }?;
        Ok(Self {
            _node: node,
            _info: info,
            _shutdown: shutdown,
            _devices: devices,
            _hibernation: hibernation,
            outlet,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // No device exists (each held the module), but work items of the last ones may still be in
        // their last instructions, which are about to be unloaded.
        self.outlet.flush();
    }
}
