// SPDX-License-Identifier: GPL-2.0-only
//! Keeps an image's record true while the image is updated.

use crate::check::Pair;
use crate::history;
use crate::record::{self, Found, Record, SnapshotId, Stamp, State};
use anyhow::{bail, Context, Result};
use dattobd_client::cow_file::CowFile;
use dattobd_client::tell;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// What an update does to an image, and to its record.
#[derive(Debug)]
pub struct Ledger {
    image: File,
    /// What the image was.
    from: SnapshotId,
    /// What it becomes.
    to: SnapshotId,
    /// It has a record, of whatever kind.
    recorded: AtomicBool,
    quiet: bool,
    noted: AtomicBool,
}

fn note(quiet: bool, text: &str) {
    if !quiet {
        tell!("update-img: note: {text}");
    }
}

/// Looks at what the image says of itself, and makes sure that the COW files lead on from there. `new`: the image was
/// copied anew, whatever it says.
///
/// # Errors
///
/// They do not, or the record cannot be understood.
pub fn open(pair: &Pair, files: &[CowFile], new: bool, quiet: bool) -> Result<Ledger> {
    let path = &pair.image_path;
    let running = &pair.running;
    let to = SnapshotId {
        uuid: running.uuid,
        seqid: running.seqid,
        nonce: running.nonce,
    };
    let mut chain: Vec<_> = files
        .iter()
        .map(|f| SnapshotId {
            uuid: f.header.uuid,
            seqid: f.header.seqid,
            nonce: f.nonce,
        })
        .collect();
    chain.push(to);
    let Some(first) = chain.first().copied() else {
        bail!("no COW file given")
    };
    let found = record::read(&pair.image)
        .with_context(|| format!("cannot read of which snapshot {} is", path.display()))?;
    let from = match &found {
        _ if new => first,
        Found::Nothing => first,
        Found::Record(r) if r.counts(Stamp::of(&pair.image.metadata()?)) => {
            history::require(path, r, &chain)?;
            match r.state {
                State::At(from) | State::Updating(from, _) => from,
            }
        }
        Found::Record(_) => {
            note(
                quiet,
                &format!(
                    "{} was written to by something else since its last update; if that was not a new full copy, take \
                     one",
                    path.display()
                ),
            );
            first
        }
        Found::Unknown(text) => bail!(
            "{} has a record of its snapshot that this version does not know ({text:?} in {}): use the version that \
             has written it. If the image was copied anew, say --image-is-new",
            path.display(),
            record::NAME
        ),
    };
    Ok(Ledger {
        image: pair.image.try_clone()?,
        from,
        to,
        recorded: AtomicBool::new(found != Found::Nothing),
        quiet,
        noted: AtomicBool::new(false),
    })
}

impl Ledger {
    /// Puts a record in place of the one that is there, on disk. Where that fails, the old one must not stay: it is no
    /// longer true.
    fn put(&self, state: State, stamp: Option<Stamp>) -> io::Result<()> {
        match record::write(&self.image, &Record { state, stamp }) {
            Ok(true) => {
                self.recorded.store(true, Ordering::Relaxed);
                self.image.sync_all()
            }
            Ok(false) => Ok(()),
            Err(e) => {
                if self.recorded.load(Ordering::Relaxed) {
                    record::remove(&self.image)?;
                    self.image.sync_all()?;
                }
                if !self.noted.swap(true, Ordering::Relaxed) {
                    note(
                        self.quiet,
                        &format!("the image cannot keep of which snapshot it is: {e}"),
                    );
                }
                Ok(())
            }
        }
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.image.metadata().map(|meta| Stamp::of(&meta))
    }

    /// Before the first write: from now on the image is neither of the two. On disk when it returns.
    ///
    /// # Errors
    ///
    /// The record cannot be written, and the one that is there is not true.
    pub fn begin(&self) -> io::Result<()> {
        self.put(State::Updating(self.from, self.to), None)
    }

    /// After the last write of an update that was not finished: whoever writes to the image later writes another one.
    ///
    /// # Errors
    ///
    /// That could not be written down; what is there counts always.
    pub fn unfinished(&self) -> io::Result<()> {
        // Some filesystems only know the time of the last write when all is on disk.
        self.image.sync_all()?;
        let state = State::Updating(self.from, self.to);
        let stamp = Some(self.stamp()?);
        record::write(&self.image, &Record { state, stamp })?;
        self.image.sync_all()
    }

    /// The image is all on disk, and is the snapshot.
    ///
    /// # Errors
    ///
    /// The record cannot be written, and the one that is there is not true.
    pub fn done(&self) -> io::Result<()> {
        self.put(State::At(self.to), Some(self.stamp()?))
    }
}
