// SPDX-License-Identifier: GPL-2.0-only
//! What an image says of itself, in an extended attribute: of which snapshot it is (`docs/formats.md`).

use dattobd_client::control::uuid;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use xattr::FileExt;

/// Name of the attribute.
pub const NAME: &str = "user.datto.image";
/// Version of the text in it.
const VERSION: &str = "version=1";

/// A snapshot, told from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotId {
    /// Identity of the series.
    pub uuid: [u8; 16],
    /// Its number in the series, and of the COW file that is used while it is there.
    pub seqid: u64,
    /// Nonce of that COW file, 0 when it has none.
    pub nonce: u64,
}

impl SnapshotId {
    /// Both are the same snapshot, as far as can be told: a rolled back or cloned disk has others with the same uuid
    /// and seqid, which only the nonce can tell.
    pub fn is(&self, other: &Self) -> bool {
        (self.uuid, self.seqid) == (other.uuid, other.seqid)
            && (self.nonce == other.nonce || self.nonce == 0 || other.nonce == 0)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (series, seqid, nonce) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || series.len() != 32 {
            return None;
        }
        Some(Self {
            uuid: u128::from_str_radix(series, 16).ok()?.to_be_bytes(),
            seqid: seqid.parse().ok()?,
            nonce: u64::from_str_radix(nonce, 16).ok()?,
        })
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{:016x}", uuid(&self.uuid), self.seqid, self.nonce)
    }
}

/// What shows whether somebody has written to a file since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    seconds: i64,
    nanos: i64,
}

impl Stamp {
    /// The one of this moment.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            size: meta.size(),
            seconds: meta.mtime(),
            nanos: meta.mtime_nsec(),
        }
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A snapshot.
    At(SnapshotId),
    /// An update has begun to turn the first into the second; in any block it may be either, or one between them.
    Updating(SnapshotId, SnapshotId),
}

/// What an image says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub state: State,
    /// The record counts while this is the image's. `None`: it counts always.
    pub stamp: Option<Stamp>,
}

impl Record {
    /// Whether it is about the image as it is now, and not as it was before somebody else wrote to it.
    pub fn counts(&self, now: Stamp) -> bool {
        self.stamp.is_none_or(|then| then == now)
    }

    /// Reads the text; `None` when it is not one that this version writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some(VERSION) {
            return None;
        }
        let (mut at, mut from, mut to, mut size, mut mtime) = (None, None, None, None, None);
        for word in words {
            let (key, value) = word.split_once('=')?;
            match key {
                "at" => at = Some(SnapshotId::parse(value)?),
                "from" => from = Some(SnapshotId::parse(value)?),
                "to" => to = Some(SnapshotId::parse(value)?),
                "size" => size = Some(value.parse().ok()?),
                "mtime" => {
                    let (seconds, nanos) = value.split_once('.')?;
                    mtime = Some((seconds.parse().ok()?, nanos.parse().ok()?));
                }
                _ => return None,
            }
        }
        let stamp = match (size, mtime) {
            (Some(size), Some((seconds, nanos))) => Some(Stamp {
                size,
                seconds,
                nanos,
            }),
            (None, None) => None,
            _ => return None,
        };
        let state = match (at, from, to) {
            // Without a stamp an old record would be believed of a new image.
            (Some(at), None, None) if stamp.is_some() => State::At(at),
            (None, Some(from), Some(to)) => State::Updating(from, to),
            _ => return None,
        };
        Some(Self { state, stamp })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            State::At(at) => write!(f, "{VERSION} at={at}")?,
            State::Updating(from, to) => write!(f, "{VERSION} from={from} to={to}")?,
        }
        match &self.stamp {
            Some(s) => write!(f, " size={} mtime={}.{:09}", s.size, s.seconds, s.nanos),
            None => Ok(()),
        }
    }
}

/// What is found on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A record.
    Record(Record),
    /// A text of another version, or a damaged one.
    Unknown(String),
}

/// The filesystem keeps no attributes for files.
fn unsupported(error: &io::Error) -> bool {
    // EOPNOTSUPP, and ENOSYS of some that are programs.
    error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(nix::libc::EOPNOTSUPP)
}

/// Reads an image's record. Block devices and filesystems that keep none have nothing.
///
/// # Errors
///
/// It cannot be read.
pub fn read(image: &File) -> io::Result<Found> {
    if !image.metadata()?.is_file() {
        return Ok(Found::Nothing);
    }
    match image.get_xattr(NAME) {
        Ok(None) => Ok(Found::Nothing),
        Ok(Some(bytes)) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(Record::parse(&text)
                .map_or_else(|| Found::Unknown(text.into_owned()), Found::Record))
        }
        Err(e) if unsupported(&e) => Ok(Found::Nothing),
        Err(e) => Err(e),
    }
}

/// Whether a file keeps what it was given.
fn kept(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if unsupported(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives an image a record, in place of the one that it has. `false`: it cannot have one. It is on disk with the next
/// fsync of the image.
///
/// # Errors
///
/// It could have one, and does not: there is no room, or the disk has failed.
pub fn write(image: &File, record: &Record) -> io::Result<bool> {
    if !image.metadata()?.is_file() {
        return Ok(false);
    }
    kept(image.set_xattr(NAME, record.to_string().as_bytes()))
}

/// Takes an image's record away, if it has one.
///
/// # Errors
///
/// It is still there.
pub fn remove(image: &File) -> io::Result<()> {
    match image.remove_xattr(NAME) {
        Err(e) if e.raw_os_error() == Some(nix::libc::ENODATA) => Ok(()),
        other => kept(other).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(seqid: u64, nonce: u64) -> SnapshotId {
        SnapshotId {
            uuid: [7; 16],
            seqid,
            nonce,
        }
    }

    #[test]
    fn the_text_is_as_documented() {
        let stamp = Stamp {
            size: 4096,
            seconds: 1_700_000_000,
            nanos: 5,
        };
        let u = "07".repeat(16);
        let at = Record {
            state: State::At(id(3, 0xab)),
            stamp: Some(stamp),
        };
        let text =
            format!("version=1 at={u}:3:00000000000000ab size=4096 mtime=1700000000.000000005");
        assert_eq!(at.to_string(), text);
        assert_eq!(Record::parse(&text), Some(at));
        let updating = Record {
            state: State::Updating(id(3, 0xab), id(5, 1)),
            stamp: None,
        };
        let text = format!("version=1 from={u}:3:00000000000000ab to={u}:5:0000000000000001");
        assert_eq!(updating.to_string(), text);
        assert_eq!(Record::parse(&text), Some(updating));
    }

    #[test]
    fn what_is_not_understood_is_no_record() {
        let u = "07".repeat(16);
        for text in [
            String::new(),
            format!("version=2 at={u}:3:1 size=1 mtime=1.1"),
            format!("version=1 at={u}:3:1"),
            format!("version=1 at={u}:3:1 size=1"),
            format!("version=1 at={u}:3 size=1 mtime=1.1"),
            format!("version=1 at={u}:3:1:1 size=1 mtime=1.1"),
            "version=1 at=07:3:1 size=1 mtime=1.1".into(),
            format!("version=1 from={u}:3:1"),
            format!("version=1 from={u}:3:1 to={u}:4:1 at={u}:4:1 size=1 mtime=1.1"),
            format!("version=1 from={u}:3:1 to={u}:4:1 more=1"),
        ] {
            assert_eq!(Record::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn a_nonce_counts_where_both_have_one() {
        assert!(id(3, 1).is(&id(3, 1)));
        assert!(!id(3, 1).is(&id(3, 2)));
        assert!(id(3, 1).is(&id(3, 0)) && id(3, 0).is(&id(3, 1)));
        assert!(!id(3, 0).is(&id(4, 0)) && !id(3, 1).is(&id(4, 1)));
        let other = SnapshotId {
            uuid: [8; 16],
            ..id(3, 0)
        };
        assert!(!id(3, 1).is(&other));
    }

    /// ramfs and the like; `t54-image-record` has the real one.
    #[test]
    fn a_filesystem_without_attributes_is_no_error() {
        let error = io::Error::from_raw_os_error;
        assert!(!kept(Err(error(nix::libc::EOPNOTSUPP))).unwrap());
        assert!(!kept(Err(error(nix::libc::ENOSYS))).unwrap());
        assert!(kept(Ok(())).unwrap());
        assert!(kept(Err(error(nix::libc::ENOSPC))).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(uuid: [u8; 16], seqid: u64, nonce: u64, to: u64, size: u64, seconds: i64,
                                       nanos in 0i64..1_000_000_000, at: bool, stamped: bool) {
            let first = SnapshotId { uuid, seqid, nonce };
            let state = if at { State::At(first) } else { State::Updating(first, SnapshotId { seqid: to, ..first }) };
            let stamp = (at || stamped).then_some(Stamp { size, seconds, nanos });
            let record = Record { state, stamp };
            prop_assert_eq!(Record::parse(&record.to_string()), Some(record));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = Record::parse(&text);
            let _ = Record::parse(&format!("{VERSION} {text}"));
        }
    }
}
