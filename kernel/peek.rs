// SPDX-License-Identifier: GPL-2.0-only
//! Looking at a file of a filesystem that is not mounted, without writing a bit to its device.
//!
//! A mount, even a read-only one, replays the journal and cleans up orphans. So the filesystem is mounted
//! in the kernel, seen by nobody, from a read-only disk of ours that passes reads on, with the journal
//! left alone. What was on disk at the last freeze (the COW file's header was) is found that way.
//!
//! Unless a power cut has torn a block on the way to it, of the directory say, which the replay would make
//! good. Then the journal is replayed, in memory (`peek_replay.rs`).

use crate::identity;
use crate::origin::Origin;
use crate::peek_replay::ReplayDisk;
use crate::sys::{
    bdev::Bdev,
    bio::{HeldBio, Status},
    disk::{BioDisk, BioDriver, Kind},
    errno::{EBADMSG, EUCLEAN},
    raw_io::RawIo,
    superblock::PrivateMount,
    vfs::Place,
};
use kernel::{
    bindings,
    prelude::*,
    str::{BStr, CString},
    sync::{Arc, ArcBorrow},
};

/// An option of ext4: what it finds damaged here must not become a panic, whatever its superblock says.
const NO_PANIC: &CStr = c"errors=continue";

/// Passes reads on to the origin.
struct ReadOnly {
    bdev: Bdev,
    /// Keeps `bdev` open.
    _origin: Arc<Origin>,
}

impl BioDriver for ReadOnly {
    fn submit(this: ArcBorrow<'_, Self>, mut bio: HeldBio) {
        if bio.view().op() == bindings::req_op_REQ_OP_READ {
            bio.set_device(this.bdev);
            bio.resubmit();
        } else {
            bio.end(Status::IoError);
        }
    }
}

/// The first block of the file `path` (from the root of the filesystem) on `origin`.
///
/// # Errors
///
/// EINVAL: neither ext4 nor xfs; ENOENT and the like: no such file; else what mounting says.
pub(crate) fn first_block(
    origin: &Arc<Origin>,
    minor: u32,
    path: &CStr,
    block: &mut [u8; 4096],
) -> Result {
    let result = without_replay(origin, minor, path, block);
    let Err(e @ (EBADMSG | EUCLEAN | EIO | ENOENT)) = result else { return result };
    // A power cut may have torn a block that is on the way, or come when one of two blocks of a directory had been
    // written home, between which entries had moved. What was to be written there is in the journal.
    pr_notice!(
        "datto{}: {} cannot be read in the filesystem as it is on disk (error {}): it is looked at with its journal \
         replayed in memory\n",
        minor,
        BStr::from_bytes(path.to_bytes()),
        e.to_errno()
    );
    match with_replay(origin, minor, path, block) {
        Ok(()) => Ok(()),
        Err(after) => {
            pr_notice!("datto{}: nor is it found then (error {})\n", minor, after.to_errno());
            Err(e)
        }
    }
}

/// Mounts what is on disk.
fn without_replay(origin: &Arc<Origin>, minor: u32, path: &CStr, block: &mut [u8; 4096]) -> Result {
    let mut io = RawIo::new(origin.device())?;
    let fs_type = identity::fs_type(&mut io)?;
    let spare = identity::spare_super(&mut io)?;
    drop(io);
    let options: &[&CStr] = match fs_type.to_bytes() {
        b"xfs" => &[c"norecovery", c"nouuid"],
        _ => &[c"noload", NO_PANIC],
    };
    let driver = Arc::new(
        ReadOnly { bdev: origin.device(), _origin: origin.clone() },
        GFP_KERNEL,
    )?;
    let (name, node) = names(minor)?;
    let sectors = origin.device().sectors();
    let disk = BioDisk::add(Kind::Snapshot, &name, origin.device(), sectors, driver)?;
    let mut result = read(fs_type, &node, options, path, block);
    if let (Err(EBADMSG), Some(spare)) = (result, spare) {
        // A power cut may have torn the superblock. What is looked for was there long before.
        let option = CString::try_from_fmt(fmt!("sb={spare}"))?;
        // If it is something else the first error says more: there need not even be a second group.
        result = read(fs_type, &node, &[c"noload", NO_PANIC, &option], path, block).or(result);
    }
    // Removed while it is still open: the mount's own handle is only given back when this task returns
    // to user space. Who holds it finds it dead.
    drop(disk);
    result
}

/// Mounts what the disk will hold once its journal has been replayed, which is done in memory.
fn with_replay(origin: &Arc<Origin>, minor: u32, path: &CStr, block: &mut [u8; 4096]) -> Result {
    let fs_type = identity::fs_type(&mut RawIo::new(origin.device())?)?;
    let option = match fs_type.to_bytes() {
        b"xfs" => c"nouuid",
        _ => NO_PANIC,
    };
    let (name, node) = names(minor)?;
    let disk = ReplayDisk::add(origin, minor, &name)?;
    let result = read(fs_type, &node, &[option], path, block);
    // As above.
    drop(disk);
    result
}

/// The name of the disk, and the path of its node.
fn names(minor: u32) -> Result<(CString, CString)> {
    Ok((
        CString::try_from_fmt(fmt!("dattopeek{minor}"))?,
        CString::try_from_fmt(fmt!("/dev/dattopeek{minor}"))?,
    ))
}

fn read(
    fs_type: &CStr,
    node: &CStr,
    options: &[&CStr],
    path: &CStr,
    block: &mut [u8; 4096],
) -> Result {
    let mount = PrivateMount::read_only(fs_type, node, options)?;
    let place = Place::in_mount(&mount, path)?;
    if !place.traits().is_regular() {
        return Err(EINVAL);
    }
    if !place.open_read()?.read_at(block, 0)? {
        return Err(EINVAL);
    }
    Ok(())
}
