// SPDX-License-Identifier: GPL-2.0-only
//! Calls on `/dev/datto-ctl`.

use ioctl_abi::ioctl::{self as abi, Extent, Plain};
use nix::errno::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The open control node.
#[derive(Debug)]
pub struct Control(File);

/// A size for the list of extents of one call.
const EXTENTS_AT_ONCE: usize = 4096;

impl Control {
    /// Opens the control node.
    ///
    /// # Errors
    ///
    /// `NotFound`: the module is not loaded; `PermissionDenied`: not root.
    pub fn open() -> io::Result<Self> {
        File::open(abi::CONTROL_PATH).map(Self)
    }

    fn call<T: Plain>(&self, code: u32, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: `T` is plain bytes of the size that `code` carries (the ABI crate asserts it), and
        // the kernel reads and writes no more than that.
        let r = unsafe { nix::libc::ioctl(self.0.as_raw_fd(), u64::from(code) as _, argument) };
        Errno::result(r).map(drop)
    }

    /// Takes the first snapshot of `bdev`. `fallocate_mib` and `cache_bytes`: 0 for the default.
    pub fn setup(
        &self,
        bdev: &CString,
        cow: &CString,
        fallocate_mib: u64,
        cache_bytes: u64,
        minor: u32,
    ) -> Result<(), Errno> {
        self.call(
            abi::SETUP_SNAP,
            &mut abi::SetupParams {
                bdev: bdev.as_ptr() as u64,
                cow: cow.as_ptr() as u64,
                fallocated_space: fallocate_mib,
                cache_size: cache_bytes,
                minor,
                _pad: 0,
            },
        )
    }

    /// Announces a device that was tracked before; `snapshot` is the mode that it was in.
    pub fn reload(
        &self,
        bdev: &CString,
        cow: &CString,
        cache_bytes: u64,
        minor: u32,
        snapshot: bool,
    ) -> Result<(), Errno> {
        let code = if snapshot {
            abi::RELOAD_SNAP
        } else {
            abi::RELOAD_INC
        };
        self.call(
            code,
            &mut abi::ReloadParams {
                bdev: bdev.as_ptr() as u64,
                cow: cow.as_ptr() as u64,
                cache_size: cache_bytes,
                minor,
                _pad: 0,
            },
        )
    }

    /// Ends tracking.
    pub fn destroy(&self, mut minor: u32) -> Result<(), Errno> {
        self.call(abi::DESTROY, &mut minor)
    }

    /// From snapshot to incremental.
    pub fn transition_inc(&self, mut minor: u32) -> Result<(), Errno> {
        self.call(abi::TRANSITION_INC, &mut minor)
    }

    /// From incremental to a new snapshot.
    pub fn transition_snap(&self, cow: &CString, mib: u64, minor: u32) -> Result<(), Errno> {
        self.call(
            abi::TRANSITION_SNAP,
            &mut abi::TransitionSnapParams {
                cow: cow.as_ptr() as u64,
                fallocated_space: mib,
                minor,
                _pad: 0,
            },
        )
    }

    /// Gives a snapshot up and goes on as incremental.
    pub fn drop_snapshot(&self, minor: u32) -> Result<(), Errno> {
        let size = size_of::<abi::DropSnapshotParams>() as u32;
        self.call(
            abi::DROP_SNAPSHOT,
            &mut abi::DropSnapshotParams { size, minor },
        )
    }

    /// Seals a dormant device and lets go of it; its COW file stays.
    pub fn release(&self, minor: u32) -> Result<(), Errno> {
        let size = size_of::<abi::ReleaseParams>() as u32;
        self.call(abi::RELEASE, &mut abi::ReleaseParams { size, minor })
    }

    /// Changes the cache limit.
    pub fn reconfigure(&self, cache_size: u64, minor: u32) -> Result<(), Errno> {
        self.call(
            abi::RECONFIGURE,
            &mut abi::ReconfigureParams {
                cache_size,
                minor,
                _pad: 0,
            },
        )
    }

    /// Grows the COW file.
    pub fn expand(&self, size: u64, minor: u32) -> Result<(), Errno> {
        self.call(
            abi::EXPAND_COW_FILE,
            &mut abi::ExpandParams {
                size,
                minor,
                _pad: 0,
            },
        )
    }

    /// Lets the COW file grow by itself.
    pub fn auto_expand(&self, step: u64, reserve: u64, minor: u32) -> Result<(), Errno> {
        self.call(
            abi::RECONFIGURE_AUTO_EXPAND,
            &mut abi::AutoExpandParams {
                step_size: step,
                reserved_space: reserve,
                minor,
                _pad: 0,
            },
        )
    }

    /// The status of one device.
    pub fn info(&self, minor: u32) -> Result<abi::Info, Errno> {
        let mut info = abi::Info::request(minor);
        self.call(abi::INFO, &mut info)?;
        Ok(info)
    }

    /// More status of one device.
    pub fn status(&self, minor: u32) -> Result<abi::Status, Errno> {
        let size = size_of::<abi::Status>() as u32;
        let mut status = abi::Status {
            size,
            minor,
            ..Default::default()
        };
        self.call(abi::STATUS, &mut status)?;
        Ok(status)
    }

    /// The lowest free minor.
    pub fn free_minor(&self) -> Result<i32, Errno> {
        let mut minor = 0i32;
        self.call(abi::GET_FREE, &mut minor)?;
        Ok(minor)
    }

    /// All extents of a kind ([`abi::EXTENTS_CHANGED`], [`abi::EXTENTS_COW_FILE`]), given to `each` in
    /// ascending order.
    pub fn extents(
        &self,
        minor: u32,
        kind: u32,
        mut each: impl FnMut(Extent),
    ) -> Result<(), Errno> {
        let mut list = vec![Extent::default(); EXTENTS_AT_ONCE];
        let mut start = 0;
        while start != u64::MAX {
            let mut p = abi::ExtentsParams {
                size: size_of::<abi::ExtentsParams>() as u32,
                minor,
                kind,
                count: EXTENTS_AT_ONCE as u32,
                start,
                extents: list.as_mut_ptr() as u64,
            };
            self.call(abi::EXTENTS, &mut p)?;
            list.iter().take(p.count as usize).for_each(|e| each(*e));
            start = p.start;
        }
        Ok(())
    }

    /// The running COW file's own blocks.
    pub fn cow_extents(&self, minor: u32) -> Result<Vec<Extent>, Errno> {
        let mut all = Vec::new();
        self.extents(minor, abi::EXTENTS_COW_FILE, |e| all.push(e))?;
        Ok(all)
    }
}

/// The text in a NUL-terminated buffer, whatever its bytes are.
pub fn text(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).into_owned()
}

/// A uuid as 32 hex digits.
pub fn uuid(bytes: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*bytes))
}
