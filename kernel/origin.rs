// SPDX-License-Identifier: GPL-2.0-only
//! The device that is tracked: opening it, and finding its filesystem.
//!
//! Nothing here is held but the open device; the filesystem is looked for each time. No locks.

use crate::sys::errno::EOPNOTSUPP;
use kernel::prelude::*;
use kernel::str::{BStr, CString};
use kernel::sync::SetOnce;

use crate::abi::cow::Geometry;
use crate::sys::bdev::{Bdev, Home};
use crate::sys::block_device::{self, OpenDevice};
use crate::sys::superblock::{self, ActiveSuper};

/// An opened origin: a read-only handle without a holder, so that nobody minds.
pub(crate) struct Origin {
    device: OpenDevice,
    name: CString,
    sectors: u64,
    fs_type: SetOnce<CString>,
}

impl Origin {
    /// Opens the device that `path` names.
    ///
    /// # Errors
    ///
    /// ENOENT; ENOTBLK: not a block device; EOPNOTSUPP: one that cannot be tracked, the kernel log
    /// says why.
    pub(crate) fn open(path: &CStr) -> Result<Self> {
        let device = OpenDevice::open(block_device::lookup(path)?)?;
        let traits = device.traits();
        let obstacle = if traits.ours {
            Some("it is a snapshot itself")
        } else if traits.zoned {
            Some("it is a zoned device, whose blocks cannot be overwritten")
        } else if traits.dax {
            Some("it is a DAX device: writes through mappings would not be seen")
        } else if traits.large_blocks {
            Some("its logical blocks are larger than 4096 bytes")
        } else {
            None
        };
        if let Some(why) = obstacle {
            pr_err!("{} cannot be tracked: {}\n", show(path), why);
            return Err(EOPNOTSUPP);
        }
        let sectors = device.bdev().sectors();
        if sectors == 0 {
            pr_err!("{} has no medium\n", show(path));
            return Err(ENXIO);
        }
        Ok(Self {
            device,
            name: CString::try_from(path)?,
            sectors,
            fs_type: SetOnce::new(),
        })
    }

    /// The device, as it was when it was opened: a rescan of the partitions may have put another one in its
    /// place. Valid for as long as `self` lives. I/O after [`Origin::close`] works as long as the
    /// disk is there; otherwise it fails.
    pub(crate) fn device(&self) -> Bdev {
        self.device.bdev()
    }

    /// What bios to the device come through now.
    pub(crate) fn home(&self) -> Home {
        self.device.home()
    }

    /// The device has not the size any more that it had when it was opened.
    pub(crate) fn has_other_size(&self) -> bool {
        self.device.sectors_now() != self.sectors
    }

    /// Takes the device again after [`Origin::close`], under its number of now.
    pub(crate) fn reopen(&self, dev: u32) -> Result {
        self.device.reopen(dev)
    }

    /// Gives the device back early, so that nobody finds it busy. Idempotent.
    pub(crate) fn close(&self) {
        self.device.close();
    }

    /// Size when it was opened, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.sectors.saturating_mul(512)
    }

    /// Size when it was opened, in blocks; a partial last one counts.
    pub(crate) fn blocks(&self) -> u64 {
        Geometry {
            origin_bytes: self.bytes(),
        }
        .blocks()
    }

    /// The type of its filesystem; empty until [`Origin::is_mounted_writable`] has seen one.
    pub(crate) fn fs_type(&self) -> &CStr {
        self.fs_type.as_ref().map_or(c"", |name| name)
    }

    /// Some filesystem of it is mounted read-write, anywhere.
    ///
    /// # Errors
    ///
    /// EOPNOTSUPP: one that cannot be tracked (btrfs).
    pub(crate) fn is_mounted_writable(&self) -> Result<bool> {
        let Some(sb) = superblock::find_on(&self.device) else {
            return Ok(false);
        };
        if !sb.is_simple() {
            pr_err!(
                "{} cannot be tracked: {} spreads one filesystem over several devices\n",
                show(&self.name),
                show(sb.type_name())
            );
            return Err(EOPNOTSUPP);
        }
        if self.fs_type.as_ref().is_none() {
            self.fs_type.populate(CString::try_from(sb.type_name())?);
        }
        Ok(!sb.is_read_only())
    }

    /// Somebody has it in use for more than reading, or is just mounting it: all but a filesystem that is mounted
    /// read-only. May wait for that mount.
    pub(crate) fn is_claimed(&self) -> Result<bool> {
        if !self.device.is_claimed() {
            return Ok(false);
        }
        Ok(match superblock::find_on(&self.device) {
            Some(_) => self.is_mounted_writable()?,
            None => self.device.is_claimed(),
        })
    }

    /// This filesystem is on this device.
    pub(crate) fn holds(&self, sb: &ActiveSuper) -> bool {
        sb.is_on(&self.device)
    }

    /// The path that it was opened by, for messages.
    pub(crate) fn name(&self) -> &BStr {
        show(&self.name)
    }

    /// The device's number.
    pub(crate) fn dev(&self) -> u32 {
        self.device.dev()
    }
}

fn show(s: &CStr) -> &BStr {
    BStr::from_bytes(s.to_bytes())
}
