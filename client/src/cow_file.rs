// SPDX-License-Identifier: GPL-2.0-only
//! Reading a COW file that was handed over: this driver's or the C driver's.
//!
//! The index is read in pieces, so memory does not grow with the device. A hole in it reads as zeros
//! and means "unchanged"; holes are passed over, so the time does not grow with the device either. An index
//! that ends too early is an error, never "unchanged".

use ioctl_abi::cow::{
    Extension, Geometry, Header, HeaderError, BLOCK_SIZE, ENTRY_UNCHANGED, EXT_BYTES, EXT_OFFSET,
    HEADER_V1_BYTES,
};
use ioctl_abi::ioctl::Extent;
use nix::errno::Errno;
use nix::fcntl::{posix_fadvise, PosixFadviseAdvice};
use nix::unistd::{lseek64, Whence};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Entries read at once.
const PIECE: u64 = 8192;

/// Why a COW file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Too short to hold a header.
    #[error("{0} is not a COW file: it is shorter than a header")]
    Short(PathBuf),
    /// The magic is wrong.
    #[error("{0} is not a COW file (wrong magic)")]
    NotACowFile(PathBuf),
    /// A later format.
    #[error("{0} has COW file format version {1}, which this program does not know")]
    Version(PathBuf, u64),
    /// Not handed over, or its tracker has failed.
    #[error(
        "{0} was not sealed: it is still in use, or its tracker failed. It must not be used for an update as it is. Is \
         it the running COW file (`dbdctl info`)? Then name the one before it. Does the kernel log say that it is \
         completed later? Then mount its filesystem writable and try again. Otherwise take a full copy"
    )]
    NotSealed(PathBuf),
    /// The index does not cover the device.
    #[error("the index of {path} ends after {have} of {need} blocks: the file is cut short, or of another device")]
    ShortIndex {
        /// The file.
        path: PathBuf,
        /// Blocks that it covers.
        have: u64,
        /// Blocks that it must cover.
        need: u64,
    },
}

/// A COW file, open for reading.
#[derive(Debug)]
pub struct CowFile {
    file: File,
    path: PathBuf,
    /// Its header.
    pub header: Header,
    /// What tells it from all other files, also from one with the same series and sequence number. 0: the C driver's,
    /// which has none.
    pub nonce: u64,
}

impl CowFile {
    /// Opens a COW file and reads its header.
    ///
    /// # Errors
    ///
    /// Not a COW file, or it cannot be read. Whether it is sealed is for [`CowFile::require_sealed`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        // Pages that are read ahead into a hole count as data from then on. Where it cannot be switched off, reading
        // only takes longer.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
        let mut bytes = [0; HEADER_V1_BYTES];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => Error::Short(path.to_owned()),
                _ => io(e),
            })?;
        let header = Header::decode(&bytes).map_err(|e| match e {
            HeaderError::BadMagic(_) => Error::NotACowFile(path.to_owned()),
            HeaderError::UnknownVersion(v) => Error::Version(path.to_owned(), v),
        })?;
        let mut bytes = [0; EXT_BYTES];
        let nonce = match file.read_exact_at(&mut bytes, EXT_OFFSET as u64) {
            Ok(()) => Extension::decode(&bytes).map_or(0, |ext| ext.nonce),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(e) => return Err(io(e)),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            header,
            nonce,
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails unless the file was handed over in good order.
    ///
    /// # Errors
    ///
    /// CLEAN or INDEX_ONLY is missing.
    pub fn require_sealed(&self) -> Result<(), Error> {
        if self.header.is_sealed() {
            Ok(())
        } else {
            Err(Error::NotSealed(self.path.clone()))
        }
    }

    /// Fails unless the index covers a device of `origin_bytes` bytes.
    ///
    /// # Errors
    ///
    /// The file is too short for that.
    pub fn require_index(&self, origin_bytes: u64) -> Result<(), Error> {
        let need = Geometry { origin_bytes }.blocks();
        let have = self.covered()?;
        if have < need {
            return Err(Error::ShortIndex {
                path: self.path.clone(),
                have,
                need,
            });
        }
        Ok(())
    }

    /// Blocks that the index has entries for.
    ///
    /// # Errors
    ///
    /// The file's size cannot be read.
    pub fn covered(&self) -> Result<u64, Error> {
        let len = self
            .file
            .metadata()
            .map_err(|source| Error::Io {
                path: self.path.clone(),
                source,
            })?
            .len();
        Ok(len.saturating_sub(BLOCK_SIZE) / 8)
    }

    /// The changed blocks below `blocks`, as maximal runs in ascending order.
    pub fn changed(&self, blocks: u64) -> Changed<'_> {
        Changed {
            cow: self,
            next: 0,
            end: blocks,
            buffer: Vec::new(),
            first: 0,
            failed: false,
        }
    }
}

/// Iterator of [`CowFile::changed`]. Ends after the first error.
#[derive(Debug)]
pub struct Changed<'a> {
    cow: &'a CowFile,
    next: u64,
    end: u64,
    /// Entries from block `first` on.
    buffer: Vec<u8>,
    first: u64,
    failed: bool,
}

impl Changed<'_> {
    /// The first block from `block` on whose entry does not lie in a hole of the file; `end` when there is none.
    fn past_hole(&self, block: u64) -> Result<u64, Error> {
        // Out of range: the read that follows says so.
        let Ok(at) = i64::try_from(BLOCK_SIZE.saturating_add(block.saturating_mul(8))) else {
            return Ok(block);
        };
        match lseek64(&self.cow.file, at, Whence::SeekData) {
            Ok(data) => {
                let entry = (data.unsigned_abs() - BLOCK_SIZE) / 8;
                Ok(entry.clamp(block, self.end))
            }
            // Nothing but a hole, or nothing at all, up to the end of the file.
            Err(Errno::ENXIO) => match self.cow.covered()? {
                have if have >= self.end => Ok(self.end),
                have => Err(Error::ShortIndex {
                    path: self.cow.path.clone(),
                    have,
                    need: self.end,
                }),
            },
            // A filesystem that cannot tell.
            Err(_) => Ok(block),
        }
    }

    /// Whether the entry of `block` was read.
    fn is_buffered(&self, block: u64) -> bool {
        let have = self.buffer.len() as u64 / 8;
        (self.first..self.first + have).contains(&block)
    }

    /// Whether `block` has changed.
    fn entry(&mut self, block: u64) -> Result<bool, Error> {
        if !self.is_buffered(block) {
            let n = PIECE.min(self.end - block);
            self.buffer.resize(n as usize * 8, 0);
            self.first = block;
            let read = self
                .cow
                .file
                .read_exact_at(&mut self.buffer, BLOCK_SIZE + block * 8);
            if let Err(source) = read {
                self.buffer.clear();
                let path = self.cow.path.clone();
                return Err(if source.kind() == io::ErrorKind::UnexpectedEof {
                    Error::ShortIndex {
                        path,
                        have: self.cow.covered()?,
                        need: self.end,
                    }
                } else {
                    Error::Io { path, source }
                });
            }
        }
        let at = (block - self.first) as usize * 8;
        let entry = self.buffer[at..at + 8]
            .iter()
            .fold(0, |acc, b| acc | u64::from(*b));
        Ok(entry != ENTRY_UNCHANGED)
    }

    fn advance(&mut self) -> Result<Option<Extent>, Error> {
        while self.next < self.end {
            if !self.is_buffered(self.next) {
                self.next = self.past_hole(self.next)?;
                if self.next == self.end {
                    break;
                }
            }
            if !self.entry(self.next)? {
                self.next += 1;
                continue;
            }
            let start = self.next;
            while self.next < self.end && self.entry(self.next)? {
                self.next += 1;
            }
            return Ok(Some(Extent {
                start,
                len: self.next - start,
            }));
        }
        Ok(None)
    }
}

impl Iterator for Changed<'_> {
    type Item = Result<Extent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance();
        self.failed = item.is_err();
        item.transpose()
    }
}

/// The union of several lists of changed runs, each in ascending order, as maximal runs.
pub struct Union<'a> {
    lists: Vec<std::iter::Peekable<Changed<'a>>>,
}

impl<'a> Union<'a> {
    /// The union of what changed in `files`.
    pub fn new(files: &'a [CowFile], blocks: u64) -> Self {
        Self {
            lists: files.iter().map(|f| f.changed(blocks).peekable()).collect(),
        }
    }

    /// Takes the error that some list has come to.
    fn error(&mut self) -> Option<Error> {
        self.lists
            .iter_mut()
            .find_map(|l| l.next_if(Result::is_err))
            .and_then(Result::err)
    }
}

impl Iterator for Union<'_> {
    type Item = Result<Extent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run: Option<Extent> = None;
        loop {
            if let Some(e) = self.error() {
                self.lists.clear();
                return Some(Err(e));
            }
            let first = self
                .lists
                .iter_mut()
                .filter_map(|l| match l.peek() {
                    Some(Ok(e)) => Some((e.start, l)),
                    _ => None,
                })
                .min_by_key(|(start, _)| *start);
            let Some((start, list)) = first else {
                return run.map(Ok);
            };
            if run.is_some_and(|r| start > r.start + r.len) {
                return run.map(Ok);
            }
            if let Some(Ok(e)) = list.next() {
                let r = run.get_or_insert(e);
                r.len = r.len.max(e.start + e.len - r.start);
            }
        }
    }
}
