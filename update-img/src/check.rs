// SPDX-License-Identifier: GPL-2.0-only
//! What must be true before the first write.

use anyhow::{anyhow, bail, ensure, Context, Result};
use dattobd_client::control::{text, uuid, Control};
use dattobd_client::cow_file::CowFile;
use dattobd_client::node;
use ioctl_abi::ioctl::{Extent, Info, STATE_SNAPSHOT, STATUS_CHAIN_BROKEN};
use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the driver knows of the running snapshot.
#[derive(Clone, Debug)]
pub struct Running {
    /// Identity of the series.
    pub uuid: [u8; 16],
    /// Sequence number of the running snapshot.
    pub seqid: u64,
    /// Nonce of its COW file, 0 when the module does not tell it.
    pub nonce: u64,
    /// The running COW file's blocks, which comparisons leave out.
    pub own: Vec<Extent>,
    /// Device number of the origin, where it can be found out.
    pub origin: Option<u64>,
}

/// Where [`Running`] comes from; the tests have their own.
pub trait Driver: Sync {
    /// The device whose snapshot `node` is.
    ///
    /// # Errors
    ///
    /// No such device, not a snapshot, or a failed one.
    fn running(&self, node: &Path) -> Result<Running>;
}

/// A snapshot that cannot be read, and how to go on without a full copy where that can be.
fn failed(info: &Info, chain_ended: bool) -> String {
    let n = info.minor;
    let why = std::io::Error::from_raw_os_error(info.error.saturating_neg());
    if chain_ended {
        return format!(
            "device {n} is no longer tracked ({why}): `dbdctl destroy {n}`, then setup-snapshot and a full copy"
        );
    }
    format!(
        "the snapshot on device {n} has failed ({why}): it cannot be read. Keep the COW files and go on with `dbdctl \
         drop-snapshot {n}`, `dbdctl transition-to-snapshot <new COW file> {n}`, then `update-img /dev/datto{n} \
         <this COW file> <the failed snapshot's COW file> <image>`"
    )
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
        let control = Control::open().map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                anyhow!("the dattobd module is not loaded: run `modprobe dattobd`")
            }
            ErrorKind::PermissionDenied => anyhow!("only root may do this: use sudo"),
            _ => anyhow::Error::new(e).context("cannot open /dev/datto-ctl"),
        })?;
        let info: Info = control.info(minor).with_context(|| {
            format!("the driver does not know device {minor}: see `dbdctl info`")
        })?;
        ensure!(
            info.state & STATE_SNAPSHOT != 0,
            "device {minor} shows no snapshot now: take one with `dbdctl transition-to-snapshot`"
        );
        if info.error != 0 {
            let ended = control
                .status(minor)
                .is_ok_and(|s| s.flags & STATUS_CHAIN_BROKEN != 0);
            bail!(failed(&info, ended));
        }
        let status = control
            .status(minor)
            .context("cannot ask for the running COW file")?;
        let own = control
            .cow_extents(minor)
            .context("cannot list the running COW file's blocks")?;
        Ok(Running {
            uuid: info.uuid,
            seqid: info.seqid,
            nonce: status.cow_nonce,
            own,
            origin: fs::metadata(text(&info.bdev))
                .ok()
                .filter(|m| m.file_type().is_block_device())
                .map(|m| m.rdev()),
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

/// Two names of the same file or the same block device.
fn same(a: &Metadata, b: &Metadata) -> bool {
    if a.file_type().is_block_device() && b.file_type().is_block_device() {
        a.rdev() == b.rdev()
    } else {
        (a.dev(), a.ino()) == (b.dev(), b.ino())
    }
}

/// Opens snapshot and image and makes sure that the image can be one of the snapshot's device.
///
/// # Errors
///
/// A sentence about what is wrong. Nothing was written.
pub fn open(driver: &dyn Driver, snapshot: &Path, image: &Path, write: bool) -> Result<Pair> {
    let source = File::open(snapshot).with_context(|| {
        let hint = if snapshot.exists() {
            ""
        } else {
            " (is the module loaded, and the device in snapshot mode? see `dbdctl info`; take a snapshot with `dbdctl \
             transition-to-snapshot`)"
        };
        format!("cannot open the snapshot device {}{hint}", snapshot.display())
    })?;
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
    ensure!(
        !same(&source.metadata()?, &meta),
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
            "cannot open the image {}{}",
            image.display(),
            if meta.is_file() {
                ""
            } else {
                " (a device that is mounted or otherwise in use is refused)"
            }
        )
    })?;
    let running = driver.running(snapshot)?;
    let (bytes, have) = (size_of(&source, snapshot)?, size_of(&target, image)?);
    ensure!(
        fits(meta.is_file(), have, bytes),
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

/// Whether an image of `have` bytes can be one of a device of `bytes` bytes. A block device may be larger: what is
/// behind is left alone.
fn fits(is_file: bool, have: u64, bytes: u64) -> bool {
    have == bytes || (!is_file && have > bytes)
}

/// Makes sure that the image does not lie on the very device that it is an image of: each update would be a change
/// for the next one and fill the COW file, and the image would be lost together with the device. Filesystems whose
/// device number is not that of a disk (btrfs, network ones) are somewhere else.
///
/// # Errors
///
/// It does.
pub fn elsewhere(pair: &Pair) -> Result<()> {
    let meta = pair.image.metadata()?;
    ensure!(
        !meta.is_file() || pair.running.origin != Some(meta.dev()),
        "the image {} lies on the very device that it is an image of: keep it on another filesystem",
        pair.image_path.display()
    );
    Ok(())
}

/// Opens the COW files and makes sure that together they lead from the image to the snapshot.
///
/// # Errors
///
/// A sentence about what is wrong.
pub fn chain(paths: &[PathBuf], pair: &Pair) -> Result<Vec<CowFile>> {
    let mut files = Vec::new();
    let image = pair.image.metadata()?;
    for path in paths {
        // Looked at before it is opened: opening a pipe would wait for ever.
        let meta = fs::metadata(path)
            .with_context(|| format!("cannot use the COW file {}", path.display()))?;
        ensure!(
            meta.is_file(),
            "{} is not a COW file: it is no regular file",
            path.display()
        );
        ensure!(
            !same(&meta, &image),
            "COW file and image are the same: {}",
            path.display()
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_snapshot_ends_no_chain_that_goes_on() {
        let mut info = Info::request(2);
        info.error = -27;
        let said = failed(&info, false);
        assert!(said.contains("dbdctl drop-snapshot 2"), "{said}");
        assert!(!said.contains("full copy"), "{said}");
        assert!(failed(&info, true).contains("dbdctl destroy 2"));
    }
}
