// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! ioctls on `/dev/datto-ctl`: magic 0x91, x86-64 layout, native endian.
//!
//! Calls 1 to 11 are those of the C driver (dattobd 0.12.1): same numbers, same layout, same
//! meaning. Calls from 32 on are this project's own; each takes a struct that starts with its own
//! size in bytes, so that either side may be the older one: the kernel reads `min(size, known)`
//! bytes, takes the missing ones as zero and refuses non-zero bytes that it does not know (E2BIG).
//!
//! Pointers are plain `u64` addresses of the calling process, so that the structs can be copied as
//! bytes. Padding is spelled out as `_pad` fields, so that no uninitialised byte crosses the border.

use core::mem::{offset_of, size_of};

/// Control node: misc device, mode 0600, opened `O_RDONLY` by clients.
pub const CONTROL_PATH: &str = "/dev/datto-ctl";
/// Prefix of the snapshot nodes: `/dev/datto<minor>`.
pub const SNAPSHOT_PREFIX: &str = "/dev/datto";
/// JSON status of all devices.
pub const PROC_PATH: &str = "/proc/datto-info";

/// `_IOC` type of every call.
pub const MAGIC: u32 = 0x91;
/// Length of the path buffers, the terminating NUL included.
pub const PATH_MAX: usize = 4096;
/// `max_snap_devices` unless given.
pub const DEFAULT_MAX_DEVICES: u32 = 24;
/// Upper bound of `max_snap_devices`.
pub const LIMIT_MAX_DEVICES: u32 = 255;

const READ: u32 = 2;
const WRITE: u32 = 1;

/// `_IOC(dir, MAGIC, nr, size)` of `include/uapi/asm-generic/ioctl.h`.
const fn ioc(dir: u32, nr: u32, size: usize) -> u32 {
    (dir << 30) | ((size as u32) << 16) | (MAGIC << 8) | nr
}

/// The command number (`_IOC_NR`) of an ioctl code.
pub const fn ioc_nr(code: u32) -> u32 {
    code & 0xff
}

/// The argument size in bytes (`_IOC_SIZE`) of an ioctl code.
pub const fn ioc_size(code: u32) -> usize {
    ((code >> 16) & 0x3fff) as usize
}

/// Marks a struct as plain bytes: every bit pattern is valid, no implicit padding.
///
/// # Safety
///
/// The type is `repr(C)`, consists of integers and arrays of them only, and has no padding.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($t:ty),*) => { $(
        // SAFETY: `repr(C)`, integers only; the assertions below show that no padding is left.
        unsafe impl Plain for $t {}
    )* };
}

/// Argument of [`SETUP_SNAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SetupParams {
    /// User address of the NUL-terminated path of the block device.
    pub bdev: u64,
    /// User address of the NUL-terminated path of the COW file, absolute.
    pub cow: u64,
    /// Size to preallocate in MiB; 0: the default share of the device.
    pub fallocated_space: u64,
    /// Limit of the index cache in bytes; 0: the module's default.
    pub cache_size: u64,
    /// Minor to use.
    pub minor: u32,
    /// Not used.
    pub _pad: u32,
}

/// Argument of [`RELOAD_SNAP`] and [`RELOAD_INC`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ReloadParams {
    /// User address of the NUL-terminated path of the block device.
    pub bdev: u64,
    /// User address of the COW file's path, relative to the device's mount point.
    pub cow: u64,
    /// Limit of the index cache in bytes; 0: the module's default.
    pub cache_size: u64,
    /// Minor to use.
    pub minor: u32,
    /// Not used.
    pub _pad: u32,
}

/// Argument of [`TRANSITION_SNAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TransitionSnapParams {
    /// User address of the NUL-terminated path of the new COW file, absolute.
    pub cow: u64,
    /// Size to preallocate in MiB; 0: the default share of the device.
    pub fallocated_space: u64,
    /// The device's minor.
    pub minor: u32,
    /// Not used.
    pub _pad: u32,
}

/// Argument of [`RECONFIGURE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ReconfigureParams {
    /// New limit of the index cache in bytes; 0: the module's default.
    pub cache_size: u64,
    /// The device's minor.
    pub minor: u32,
    /// Not used.
    pub _pad: u32,
}

/// Argument of [`EXPAND_COW_FILE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ExpandParams {
    /// By how much the file grows, in MiB.
    pub size: u64,
    /// The device's minor.
    pub minor: u32,
    /// Not used.
    pub _pad: u32,
}

/// Argument of [`RECONFIGURE_AUTO_EXPAND`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AutoExpandParams {
    /// By how much the file grows each time, in MiB; 0 switches growing off.
    pub step_size: u64,
    /// Free space of the filesystem that is never taken, in MiB.
    pub reserved_space: u64,
    /// The device's minor.
    pub minor: u32,
    /// Not used.
    pub _pad: u32,
}

/// Argument of [`INFO`], in and out.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// In: the device asked for.
    pub minor: u32,
    /// Not used.
    pub _pad0: u32,
    /// Bit set of [`STATE_SNAPSHOT`], [`STATE_ACTIVE`], [`STATE_UNVERIFIED`].
    pub state: u64,
    /// 0, or the negative errno that the device failed with.
    pub error: i32,
    /// Not used.
    pub _pad1: u32,
    /// Limit of the index cache in bytes.
    pub cache_size: u64,
    /// Size of the COW file that was asked for, in bytes (whole MiB).
    pub falloc_size: u64,
    /// Sequence number of the running snapshot or increment.
    pub seqid: u64,
    /// Identity of the series.
    pub uuid: [u8; 16],
    /// Path of the COW file, NUL-terminated.
    pub cow: [u8; PATH_MAX],
    /// Path of the block device, NUL-terminated.
    pub bdev: [u8; PATH_MAX],
    /// Version of the COW file format.
    pub version: u64,
    /// Blocks changed since the snapshot was taken.
    pub nr_changed_blocks: u64,
}

impl Info {
    /// All zero but the minor, as a caller passes it in.
    pub const fn request(minor: u32) -> Self {
        Self {
            minor,
            _pad0: 0,
            state: 0,
            error: 0,
            _pad1: 0,
            cache_size: 0,
            falloc_size: 0,
            seqid: 0,
            uuid: [0; 16],
            cow: [0; PATH_MAX],
            bdev: [0; PATH_MAX],
            version: 0,
            nr_changed_blocks: 0,
        }
    }
}

/// Argument of [`DROP_SNAPSHOT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DropSnapshotParams {
    /// `size_of` this struct, in bytes.
    pub size: u32,
    /// The device's minor.
    pub minor: u32,
}

/// Argument of [`RELEASE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ReleaseParams {
    /// `size_of` this struct, in bytes.
    pub size: u32,
    /// The device's minor.
    pub minor: u32,
}

/// Argument of [`STATUS`]: what [`Info`] has no room for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    /// In: `size_of` the caller's struct, in bytes. Out: bytes filled in.
    pub size: u32,
    /// In: the device asked for.
    pub minor: u32,
    /// As [`Info::state`].
    pub state: u64,
    /// 0, or the negative errno that the snapshot failed with.
    pub error: i32,
    /// Bit set of `STATUS_*`.
    pub flags: u32,
    /// Size of the origin in bytes.
    pub origin_bytes: u64,
    /// Size of the COW file now, in bytes.
    pub cow_bytes: u64,
    /// Blocks of the COW file that can hold copies.
    pub cow_blocks_total: u64,
    /// Blocks of the COW file that hold copies, or are promised to one.
    pub cow_blocks_used: u64,
    /// Bound of the copies kept in memory, in bytes.
    pub copy_memory_max: u64,
    /// Copies in memory now, in bytes.
    pub copy_memory_used: u64,
    /// Memory of the maps (bitmaps, region log, index), in bytes.
    pub map_memory: u64,
    /// How long the filesystem was held frozen for the last snapshot point, in nanoseconds.
    pub freeze_ns: u64,
    /// Blocks changed since the snapshot was taken.
    pub nr_changed_blocks: u64,
    /// Auto-expand step in MiB, 0 when off.
    pub auto_expand_step: u64,
    /// Auto-expand reserve in MiB.
    pub auto_expand_reserve: u64,
    /// Writes that had to wait for old data to be read, since the snapshot was taken.
    pub writes_held: u64,
    /// Discards completed without being issued, since the snapshot was taken.
    pub discards_dropped: u64,
    /// Blocks counted as changed only because a crash left their regions marked, since the snapshot
    /// was taken.
    pub crash_blocks: u64,
    /// Memory of the index of copies, in bytes; `cache_size` bounds it.
    pub index_memory: u64,
    /// Pages of the index that are in the COW file, in bytes.
    pub index_on_disk: u64,
    /// Nonce of the running COW file, as its header has it ([`super::cow::Extension::nonce`]): tells apart what uuid
    /// and seqid cannot, two histories of one disk that was rolled back or cloned. 0: no file, or an older module.
    pub cow_nonce: u64,
}

/// The change map itself can no longer be trusted: the chain has ended (in [`Status::flags`]).
pub const STATUS_CHAIN_BROKEN: u32 = 1;
/// Changes are not recorded on disk: a crash would end the chain (in [`Status::flags`]).
pub const STATUS_NOT_RECORDED: u32 = 2;

/// A run of 4096-byte blocks of the origin.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub start: u64,
    /// Number of blocks, never 0.
    pub len: u64,
}

/// Argument of [`EXTENTS`]: reads a list of extents piece by piece.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtentsParams {
    /// `size_of` this struct, in bytes.
    pub size: u32,
    /// The device's minor.
    pub minor: u32,
    /// [`EXTENTS_CHANGED`] or [`EXTENTS_COW_FILE`].
    pub kind: u32,
    /// In: room in `extents`, in entries. Out: entries filled in.
    pub count: u32,
    /// In: the first block of interest. Out: where to go on; `u64::MAX` when all was listed.
    pub start: u64,
    /// User address of an array of [`Extent`].
    pub extents: u64,
}

/// List what changed since the snapshot was taken, in ascending order.
pub const EXTENTS_CHANGED: u32 = 0;
/// List where the running COW file lies on the origin, in ascending order.
pub const EXTENTS_COW_FILE: u32 = 1;

plain!(
    SetupParams,
    ReloadParams,
    TransitionSnapParams,
    ReconfigureParams,
    ExpandParams,
    AutoExpandParams,
    Info,
    DropSnapshotParams,
    ReleaseParams,
    Status,
    Extent,
    ExtentsParams,
    u32,
    i32
);

/// [`Info::state`]: the device shows a snapshot (otherwise it only tracks changes).
pub const STATE_SNAPSHOT: u64 = 1;
/// [`Info::state`]: the filesystem is mounted.
pub const STATE_ACTIVE: u64 = 2;
/// [`Info::state`]: announced by a reload, COW file not seen yet.
pub const STATE_UNVERIFIED: u64 = 4;

/// Takes the first snapshot of a device ([`SetupParams`]).
pub const SETUP_SNAP: u32 = ioc(WRITE, 1, size_of::<SetupParams>());
/// Announces a device that was in snapshot mode ([`ReloadParams`]).
pub const RELOAD_SNAP: u32 = ioc(WRITE, 2, size_of::<ReloadParams>());
/// Announces a device that was in incremental mode ([`ReloadParams`]).
pub const RELOAD_INC: u32 = ioc(WRITE, 3, size_of::<ReloadParams>());
/// Ends tracking and removes the COW file (pointer to the minor, `u32`).
pub const DESTROY: u32 = ioc(WRITE, 4, size_of::<u32>());
/// From snapshot to incremental (pointer to the minor, `u32`).
pub const TRANSITION_INC: u32 = ioc(WRITE, 5, size_of::<u32>());
/// From incremental to a new snapshot ([`TransitionSnapParams`]).
pub const TRANSITION_SNAP: u32 = ioc(WRITE, 6, size_of::<TransitionSnapParams>());
/// Changes the cache limit ([`ReconfigureParams`]).
pub const RECONFIGURE: u32 = ioc(WRITE, 7, size_of::<ReconfigureParams>());
/// Asks for a device's status ([`Info`]). The number carries the direction bits of the C driver
/// (`_IOR`), though the struct goes both ways.
pub const INFO: u32 = ioc(READ, 8, size_of::<Info>());
/// Asks for the lowest free minor (`i32`, out).
pub const GET_FREE: u32 = ioc(READ, 9, size_of::<i32>());
/// Grows the COW file ([`ExpandParams`]).
pub const EXPAND_COW_FILE: u32 = ioc(WRITE, 10, size_of::<ExpandParams>());
/// Lets the COW file grow by itself ([`AutoExpandParams`]).
pub const RECONFIGURE_AUTO_EXPAND: u32 = ioc(WRITE, 11, size_of::<AutoExpandParams>());
/// Turns a failed (or active) snapshot into an active incremental, change map intact
/// ([`DropSnapshotParams`]).
pub const DROP_SNAPSHOT: u32 = ioc(WRITE, 32, size_of::<DropSnapshotParams>());
/// Asks for more status than [`INFO`] has room for ([`Status`]).
pub const STATUS: u32 = ioc(READ | WRITE, 33, size_of::<Status>());
/// Lists changed blocks or the COW file's own blocks ([`ExtentsParams`]).
pub const EXTENTS: u32 = ioc(READ | WRITE, 34, size_of::<ExtentsParams>());
/// Seals the COW file of a device whose filesystem is not mounted, and lets go of the device without
/// removing the file ([`ReleaseParams`]): a reload picks it up again.
pub const RELEASE: u32 = ioc(WRITE, 35, size_of::<ReleaseParams>());

// The numbers and offsets that the C driver's clients were compiled with.
const _: () = {
    assert!(SETUP_SNAP == 0x4028_9101);
    assert!(RELOAD_SNAP == 0x4020_9102);
    assert!(RELOAD_INC == 0x4020_9103);
    assert!(DESTROY == 0x4004_9104);
    assert!(TRANSITION_INC == 0x4004_9105);
    assert!(TRANSITION_SNAP == 0x4018_9106);
    assert!(RECONFIGURE == 0x4010_9107);
    assert!(INFO == 0xa050_9108);
    assert!(GET_FREE == 0x8004_9109);
    assert!(EXPAND_COW_FILE == 0x4010_910a);
    assert!(RECONFIGURE_AUTO_EXPAND == 0x4018_910b);

    assert!(offset_of!(SetupParams, minor) == 32 && size_of::<SetupParams>() == 40);
    assert!(offset_of!(ReloadParams, minor) == 24 && size_of::<ReloadParams>() == 32);
    assert!(offset_of!(TransitionSnapParams, minor) == 16);
    assert!(offset_of!(ReconfigureParams, minor) == 8);
    assert!(offset_of!(ExpandParams, minor) == 8);
    assert!(offset_of!(AutoExpandParams, minor) == 16);
    assert!(offset_of!(Info, state) == 8);
    assert!(offset_of!(Info, error) == 16);
    assert!(offset_of!(Info, cache_size) == 24);
    assert!(offset_of!(Info, falloc_size) == 32);
    assert!(offset_of!(Info, seqid) == 40);
    assert!(offset_of!(Info, uuid) == 48);
    assert!(offset_of!(Info, cow) == 64);
    assert!(offset_of!(Info, bdev) == 4160);
    assert!(offset_of!(Info, version) == 8256);
    assert!(offset_of!(Info, nr_changed_blocks) == 8264);
    assert!(size_of::<Info>() == 8272);

    assert!(size_of::<DropSnapshotParams>() == 8);
    assert!(offset_of!(Status, cow_nonce) == 152 && size_of::<Status>() == 160);
    assert!(size_of::<ReleaseParams>() == 8);
    assert!(size_of::<Extent>() == 16);
    assert!(size_of::<ExtentsParams>() == 32);
};
