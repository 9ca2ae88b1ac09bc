// SPDX-License-Identifier: GPL-2.0-only
//! Whether an update leads on from what the image is.
//!
//! The chain of an update: the snapshots that its COW files begin with, oldest first, and the running one. Each of them
//! is known by its COW file, the running one's too. An image can be brought up to date by it when every snapshot that
//! its record names is in that chain.

use crate::record::{Record, SnapshotId, State};
use anyhow::{bail, Result};
use dattobd_client::control::uuid;
use std::path::Path;

/// An image, for people.
fn told(image: &Path, state: &State) -> String {
    let image = image.display();
    match state {
        State::At(at) => format!(
            "{image} is of snapshot {} of series {}",
            at.seqid,
            uuid(&at.uuid)
        ),
        State::Updating(from, to) => format!(
            "{image} is partly updated, from snapshot {} to {} of series {}",
            from.seqid,
            to.seqid,
            uuid(&from.uuid)
        ),
    }
}

/// Makes sure that `chain` leads on from the image that has this record.
///
/// # Errors
///
/// It does not: of which snapshot the image is, and what to do.
pub fn require(image: &Path, record: &Record, chain: &[SnapshotId]) -> Result<()> {
    let named = match record.state {
        State::At(at) => [at, at],
        State::Updating(from, to) => [from, to],
    };
    let Some(unknown) = named
        .iter()
        .find(|s| !chain.iter().any(|known| known.is(s)))
    else {
        return Ok(());
    };
    let (Some(first), Some(running)) = (chain.first(), chain.last()) else {
        bail!("no COW file given")
    };
    let told = told(image, &record.state);
    let new = format!(
        "Was the image copied anew meanwhile, from snapshot {}? Then say --image-is-new",
        first.seqid
    );
    if unknown.uuid != running.uuid {
        bail!(
            "{told}, and the running snapshot is of another series ({}): take a full copy (dd). {new}",
            uuid(&running.uuid)
        );
    }
    if unknown.seqid < first.seqid {
        bail!(
            "{told}, and the first COW file is number {}: the image would lack what changed before. Name the COW files \
             from number {} on, oldest first; if they are gone, take a full copy (dd). {new}",
            first.seqid,
            unknown.seqid
        );
    }
    bail!(
        "{told}, but of another history of the device than the running snapshot ({}): the device was rolled back or \
         cloned, and the COW files of one history do not know what changed in the other. Take a full copy (dd). {new}",
        running.seqid
    );
}
