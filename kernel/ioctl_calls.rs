// SPDX-License-Identifier: GPL-2.0-only
//! ioctls: who may call, which call it is, and the calls of the C driver (1 to 11). Each reads its
//! argument completely and hands plain values to the device table; the order of the checks is that
//! of COMPAT.md section 2.

use kernel::prelude::*;
use kernel::sync::Arc;

use crate::abi::ioctl as abi;
use crate::device::Device;
use crate::device_reload::ReloadRequest;
use crate::device_setup::SetupRequest;
use crate::devices::Devices;
use crate::ioctl_extents;
use crate::ioctl_info;
use crate::ioctl_sized;
use crate::sys::miscdev::Calls;
use crate::sys::task::is_admin;
use crate::sys::uaccess;

/// Answers the calls on the control node.
pub(crate) struct ControlCalls {
    devices: Arc<Devices>,
}

impl ControlCalls {
    pub(crate) fn new(devices: Arc<Devices>) -> Self {
        Self { devices }
    }

    fn setup(&self, arg: u64) -> Result {
        let p: abi::SetupParams = uaccess::read(arg)?;
        let bdev = uaccess::read_path(p.bdev)?;
        let cow = uaccess::read_path(p.cow)?;
        self.devices.setup(SetupRequest {
            minor: p.minor,
            bdev,
            cow,
            fallocated_mib: p.fallocated_space,
            cache_size: p.cache_size,
        })
    }

    fn reload(&self, arg: u64, snapshot: bool) -> Result {
        let p: abi::ReloadParams = uaccess::read(arg)?;
        let bdev = uaccess::read_path(p.bdev)?;
        let cow = uaccess::read_path(p.cow)?;
        self.devices.reload(ReloadRequest {
            minor: p.minor,
            bdev,
            cow,
            cache_size: p.cache_size,
            snapshot,
        })
    }

    fn transition_snap(&self, arg: u64) -> Result {
        let p: abi::TransitionSnapParams = uaccess::read(arg)?;
        let cow = uaccess::read_path(p.cow)?;
        let device = self.devices.get(p.minor)?;
        Device::transition_to_snapshot(&device, &cow, p.fallocated_space)
    }

    fn destroy(&self, arg: u64) -> Result {
        let minor: u32 = uaccess::read(arg)?;
        self.devices.destroy(minor)
    }

    fn transition_inc(&self, arg: u64) -> Result {
        let minor: u32 = uaccess::read(arg)?;
        self.devices.get(minor)?.transition_to_incremental()
    }

    fn reconfigure(&self, arg: u64) -> Result {
        let p: abi::ReconfigureParams = uaccess::read(arg)?;
        self.devices.get(p.minor)?.reconfigure(p.cache_size)
    }

    fn expand(&self, arg: u64) -> Result {
        let p: abi::ExpandParams = uaccess::read(arg)?;
        self.devices.get(p.minor)?.expand(p.size)
    }

    fn auto_expand(&self, arg: u64) -> Result {
        let p: abi::AutoExpandParams = uaccess::read(arg)?;
        let device = self.devices.get(p.minor)?;
        Device::set_auto_expand(&device, p.step_size, p.reserved_space)
    }

    fn free_minor(&self, arg: u64) -> Result {
        let minor = i32::try_from(self.devices.lowest_free()?).map_err(|_| EINVAL)?;
        uaccess::write(arg, &minor)
    }
}

impl Calls for ControlCalls {
    fn call(&self, cmd: u32, arg: u64) -> Result {
        // A call from 32 on carries its argument's size in the argument (see `abi`), so a caller
        // with a longer struct, and therefore another number, means the same call.
        let sized = ioctl_sized::without_size(cmd);
        // COMPAT.md, section 1.
        if !matches!(cmd, abi::INFO | abi::GET_FREE) && !is_admin() {
            return Err(EPERM);
        }
        match cmd {
            abi::SETUP_SNAP => self.setup(arg),
            abi::RELOAD_SNAP => self.reload(arg, true),
            abi::RELOAD_INC => self.reload(arg, false),
            abi::DESTROY => self.destroy(arg),
            abi::TRANSITION_INC => self.transition_inc(arg),
            abi::TRANSITION_SNAP => self.transition_snap(arg),
            abi::RECONFIGURE => self.reconfigure(arg),
            abi::INFO => ioctl_info::info(&self.devices, arg),
            abi::GET_FREE => self.free_minor(arg),
            abi::EXPAND_COW_FILE => self.expand(arg),
            abi::RECONFIGURE_AUTO_EXPAND => self.auto_expand(arg),
            _ => match sized {
                ioctl_sized::DROP_SNAPSHOT => ioctl_sized::drop_snapshot(&self.devices, arg),
                ioctl_sized::RELEASE => ioctl_sized::release(&self.devices, arg),
                ioctl_sized::STATUS => ioctl_sized::status(&self.devices, arg),
                ioctl_sized::EXTENTS => ioctl_extents::extents(&self.devices, arg),
                _ => Err(EINVAL),
            },
        }
    }
}
