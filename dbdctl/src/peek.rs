// SPDX-License-Identifier: GPL-2.0-only
//! A look into a filesystem that must not be touched: one that is not mounted yet, whose journal may
//! have to be replayed, but not by us. Whatever a replay writes has to be seen by the tracking that is
//! only about to begin.
//!
//! A mount with `ro` is not enough: ext4 cleans up orphans even then. So it is made on a read-only loop
//! device, in a mount namespace of this process alone. When the process ends, however it ends, the mount
//! is gone, and the loop device with it.

use nix::errno::Errno;
use nix::fcntl::{openat2, OFlag, OpenHow, ResolveFlag};
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where the mount is put; also holds the marks that `59-dattobd.rules` looks for.
const FOLDER: &str = "/run/dattobd";

// include/uapi/linux/loop.h
const LOOP_CLR_FD: u64 = 0x4c01;
const LOOP_CONFIGURE: u64 = 0x4c0a;
const LOOP_CTL_GET_FREE: u64 = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names_and_key: [u8; 160],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// The filesystem type, told by its magic number, and the mount options that leave its journal alone.
fn filesystem(bdev: &File) -> io::Result<(&'static str, &'static str)> {
    let mut xfs = [0; 4];
    let mut ext4 = [0; 2];
    bdev.read_exact_at(&mut xfs, 0)?;
    // s_magic of the superblock at 1024.
    bdev.read_exact_at(&mut ext4, 1024 + 56)?;
    if &xfs == b"XFSB" {
        Ok(("xfs", "norecovery,nouuid"))
    } else if u16::from_le_bytes(ext4) == 0xef53 {
        Ok(("ext4", "noload"))
    } else {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "neither ext4 nor xfs",
        ))
    }
}

/// A loop device of ours. It carries its origin's UUID: as long as its mark is there, udev makes no
/// links to it.
struct Loop {
    node: PathBuf,
    mark: PathBuf,
    device: Option<File>,
}

impl Loop {
    fn new(backing: &File) -> io::Result<Self> {
        if !Path::new("/dev/loop-control").exists() {
            // The kernel loads the module when a static node is opened; not every initramfs has one.
            let _ = crate::boot::modprobe("loop");
        }
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        let mut last = Errno::EBUSY;
        // Somebody else may take the free one first.
        for _ in 0..16 {
            // SAFETY: this call takes no argument.
            let n = unsafe { nix::libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
            let n = Errno::result(n)?;
            let node = PathBuf::from(format!("/dev/loop{n}"));
            let mark = Path::new(FOLDER).join(format!("peek-loop{n}"));
            let mut new = Self {
                node,
                mark,
                device: None,
            };
            fs::write(&new.mark, "")?;
            match new.configure(backing) {
                Ok(device) => {
                    new.device = Some(device);
                    return Ok(new);
                }
                Err(e) if e.raw_os_error() == Some(Errno::EBUSY as i32) => last = Errno::EBUSY,
                Err(e) => return Err(e),
            }
        }
        Err(last.into())
    }

    fn configure(&self, backing: &File) -> io::Result<File> {
        // In an initramfs the node may take a moment.
        let until = Instant::now() + Duration::from_secs(1);
        let device = loop {
            match File::open(&self.node) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && Instant::now() < until => {
                    sleep(Duration::from_millis(10));
                }
                other => break other?,
            }
        };
        let config = LoopConfig {
            fd: backing.as_raw_fd() as u32,
            block_size: 0,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                names_and_key: [0; 160],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: `config` is laid out as the kernel's struct, which it only reads.
        let r = unsafe { nix::libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &config) };
        Errno::result(r)?;
        Ok(device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            // SAFETY: this call takes no argument. It fails where autoclear was quicker.
            unsafe { nix::libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _) };
            drop(device);
            // Gone when the last opener, maybe udev, has closed it.
            let bound = Path::new("/sys/block")
                .join(self.node.file_name().unwrap_or_default())
                .join("loop");
            let until = Instant::now() + Duration::from_secs(1);
            while bound.exists() && Instant::now() < until {
                sleep(Duration::from_millis(10));
            }
        }
        let _ = fs::remove_file(&self.mark);
    }
}

/// A filesystem, mounted read-only without a replay of its journal, where only this process sees it.
pub struct Peek {
    root: Option<OwnedFd>,
    point: PathBuf,
    _device: Loop,
}

impl Peek {
    /// # Errors
    ///
    /// `Unsupported`: not a filesystem that can be tracked. Otherwise it cannot be read now.
    pub fn new(bdev: &Path) -> io::Result<Self> {
        let backing = File::open(bdev)?;
        let (fs, options) = filesystem(&backing)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Nothing gets out, and later mounts by others are still seen. In a chroot `/` may be no mount
        // point; then the mount is seen outside until it is undone.
        let _ = mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_SLAVE | MsFlags::MS_REC,
            None::<&str>,
        );
        let point = Path::new(FOLDER).join("peek");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&point)?;
        let device = Loop::new(&backing)?;
        let flags = MsFlags::MS_RDONLY
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NOEXEC
            | MsFlags::MS_NOATIME;
        mount(Some(&device.node), &point, Some(fs), flags, Some(options))?;
        let mut peek = Self {
            root: None,
            point,
            _device: device,
        };
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY)
            .open(&peek.point)?;
        peek.root = Some(root.into());
        Ok(peek)
    }

    /// Opens a path as if the filesystem were `/`: links do not lead out of it.
    ///
    /// # Errors
    ///
    /// `NotFound`, for instance.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let root = self.root.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let how = OpenHow::new()
            // A path of the list that leads to a FIFO must not stop the boot.
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(openat2(root, path, how)?.into())
    }
}

impl Drop for Peek {
    fn drop(&mut self) {
        self.root = None;
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
    }
}
