// SPDX-License-Identifier: GPL-2.0-only
//! What has become of a device that was announced: RELOAD also succeeds with a COW file that is of no use, and the
//! device is there then, as failed, for somebody to see.

use crate::explain;
use anyhow::{anyhow, Result};
use dattobd_client::control::Control;
use dattobd_client::tell;
use ioctl_abi::ioctl::{Info, STATUS_CHAIN_BROKEN};
use std::path::Path;

/// Looks at device `minor`, which was announced with these paths. A snapshot that has not outlived a crash is only
/// mentioned: its chain goes on.
///
/// # Errors
///
/// Nothing is tracked.
pub fn check(control: &Control, minor: u32, bdev: &Path, cow: &Path) -> Result<()> {
    let flags = control.status(minor).map_or(0, |s| s.flags);
    control
        .info(minor)
        .map_or(Ok(()), |info| judge(&info, flags, bdev, cow))
}

fn judge(info: &Info, flags: u32, bdev: &Path, cow: &Path) -> Result<()> {
    let (minor, bdev) = (info.minor, bdev.display());
    if info.error == 0 {
        return Ok(());
    }
    // What a crash leaves of a snapshot: the change map.
    if flags & STATUS_CHAIN_BROKEN == 0 {
        tell!(
            "dbdctl: the snapshot is gone, the changes since it was taken are kept: mount {bdev}, then \
             `dbdctl drop-snapshot {minor}`"
        );
        return Ok(());
    }
    Err(anyhow!(
        "{} on {bdev} cannot be picked up: {}. The kernel log says more. Nothing is tracked: `dbdctl destroy \
         {minor}`, then take a new first snapshot with setup-snapshot, and a full copy",
        cow.display(),
        explain::reason(info)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ended_chain_is_an_error() {
        let judged = |error, flags| {
            let mut info = Info::request(7);
            info.error = error;
            judge(&info, flags, Path::new("/dev/x"), Path::new("/.c"))
        };
        judged(0, 0).unwrap();
        judged(-5, 0).unwrap();
        let why = judged(-116, STATUS_CHAIN_BROKEN).unwrap_err().to_string();
        assert!(
            why.contains("/.c on /dev/x") && why.contains("destroy 7"),
            "{why}"
        );
    }
}
