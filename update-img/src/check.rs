// SPDX-License-Identifier: GPL-2.0-only
//! What must be true before the first write.

use anyhow::{bail, ensure, Context, Result};
use dattobd_client::control::{uuid, Control};
use dattobd_client::cow_file::CowFile;
use dattobd_client::node;
use ioctl_abi::ioctl::{Extent, Info, STATE_SNAPSHOT};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the driver knows of the running snapshot.
#[derive(Clone, Debug)]
pub struct Running {
    /// Identity of the series.
    pub uuid: [u8; 16],
    /// Sequence number of the running snapshot.
    pub seqid: u64,
    /// The running COW file's blocks, which comparisons leave out.
    pub own: Vec<Extent>,
}

/// Where [`Running`] comes from; the tests have their own.
pub trait Driver {
    /// The device whose snapshot `node` is.
    ///
    /// # Errors
    ///
    /// No such device, not a snapshot, or a failed one.
    fn running(&self, node: &Path) -> Result<Running>;
}

/// The driver itself.
#[derive(Debug)]
pub struct Kernel;

impl Driver for Kernel {
    fn running(&self, path: &Path) -> Result<Running> {
        let minor = node::minor_of(path).with_context(|| {
            format!(
                "{} is not a snapshot device (/dev/datto0, …)",
                path.display()
            )
        })?;
        let control = Control::open().context(
            "cannot open /dev/datto-ctl: is the module loaded (modprobe dattobd), are you root?",
        )?;
        let info: Info = control
            .info(minor)
            .with_context(|| format!("the driver does not know device {minor}"))?;
        ensure!(
            info.state & STATE_SNAPSHOT != 0,
            "device {minor} shows no snapshot now"
        );
        ensure!(
            info.error == 0,
            "the snapshot on device {minor} has failed (error {}): it cannot be read. \
             See `dbdctl info {minor}`, then take a new snapshot",
            info.error
        );
        let own = control
            .cow_extents(minor)
            .context("cannot list the running COW file's blocks")?;
        Ok(Running {
            uuid: info.uuid,
            seqid: info.seqid,
            own,
        })
    }
}

/// A source and an image that belong together, both open.
#[derive(Debug)]
pub struct Pair {
    /// The snapshot, for reading.
    pub snapshot: File,
    /// The image.
    pub image: File,
    /// Where the image is.
    pub image_path: PathBuf,
    /// Size of both in bytes.
    pub bytes: u64,
    /// What the driver says.
    pub running: Running,
}

/// Size in bytes of a file or block device.
fn size_of(file: &File, path: &Path) -> Result<u64> {
    let mut f = file;
    let size = f
        .seek(SeekFrom::End(0))
        .with_context(|| format!("cannot find out the size of {}", path.display()))?;
    f.seek(SeekFrom::Start(0))?;
    Ok(size)
}

/// Opens snapshot and image and makes sure that the image can be one of the snapshot's device.
///
/// # Errors
///
/// A sentence about what is wrong. Nothing was written.
pub fn open(driver: &dyn Driver, snapshot: &Path, image: &Path, write: bool) -> Result<Pair> {
    let source = File::open(snapshot)
        .with_context(|| format!("cannot open the snapshot device {}", snapshot.display()))?;
    let meta = fs::metadata(image).with_context(|| {
        format!(
            "cannot use the image {}: take a full copy first (dd if={} of={} bs=1M)",
            image.display(),
            snapshot.display(),
            image.display()
        )
    })?;
    ensure!(
        !meta.is_dir(),
        "{} is a directory: name the image in it",
        image.display()
    );
    ensure!(
        meta.is_file() || meta.file_type().is_block_device(),
        "{} is neither a file nor a block device",
        image.display()
    );
    let from = source.metadata()?;
    let same = if meta.file_type().is_block_device() {
        from.file_type().is_block_device() && from.rdev() == meta.rdev()
    } else {
        from.is_file() && (from.dev(), from.ino()) == (meta.dev(), meta.ino())
    };
    ensure!(
        !same,
        "snapshot and image are the same: {}",
        image.display()
    );
    let mut options = fs::OpenOptions::new();
    options.read(true).write(write);
    if write && meta.file_type().is_block_device() {
        // Without O_CREAT, O_EXCL on a block device means: not if anybody has it mounted or claimed. It
        // may be the very origin of the snapshot.
        options.custom_flags(nix::libc::O_EXCL);
    }
    let target = options.open(image).with_context(|| {
        format!(
            "cannot open the image {} (a device that is mounted or otherwise in use is refused)",
            image.display()
        )
    })?;
    let running = driver.running(snapshot)?;
    let (bytes, have) = (size_of(&source, snapshot)?, size_of(&target, image)?);
    ensure!(
        bytes == have,
        "the image {} has {have} bytes, the snapshot {} has {bytes}: it is not an image of this \
         device, or it was cut short. Take a full copy instead",
        image.display(),
        snapshot.display()
    );
    Ok(Pair {
        snapshot: source,
        image: target,
        image_path: image.to_owned(),
        bytes,
        running,
    })
}

/// Opens the COW files and makes sure that together they lead from the image to the snapshot.
///
/// # Errors
///
/// A sentence about what is wrong.
pub fn chain(paths: &[PathBuf], pair: &Pair) -> Result<Vec<CowFile>> {
    let mut files = Vec::new();
    for path in paths {
        let cow = CowFile::open(path)?;
        ensure!(
            cow.header.uuid == pair.running.uuid,
            "{} belongs to another series ({}) than the snapshot ({})",
            path.display(),
            uuid(&cow.header.uuid),
            uuid(&pair.running.uuid)
        );
        cow.require_sealed()?;
        cow.require_index(pair.bytes)?;
        files.push(cow);
    }
    let Some(last) = files.last() else {
        bail!("no COW file given")
    };
    ensure!(
        last.header.seqid.checked_add(1) == Some(pair.running.seqid),
        "{} has sequence number {}, the snapshot {}: the COW file must be the one from right before \
         the snapshot ({})",
        last.path().display(),
        last.header.seqid,
        pair.running.seqid,
        pair.running.seqid.saturating_sub(1)
    );
    for (a, b) in files.iter().zip(files.iter().skip(1)) {
        ensure!(
            a.header.seqid.checked_add(1) == Some(b.header.seqid),
            "a link is missing between {} (sequence number {}) and {} ({}): name the COW files \
             oldest first, without a gap",
            a.path().display(),
            a.header.seqid,
            b.path().display(),
            b.header.seqid
        );
    }
    Ok(files)
}
