// SPDX-License-Identifier: GPL-2.0-only
//! `dbdctl changed`: the change map for other backup tools.

use crate::explain::{self, Asked};
use anyhow::{anyhow, ensure, Context, Result};
use dattobd_client::control::Control;
use dattobd_client::cow_file::CowFile;
use ioctl_abi::cow::{Extension, Geometry, EXT_BYTES, EXT_OFFSET};
use ioctl_abi::ioctl::{Extent, Info, Status, EXTENTS_CHANGED, STATUS_CHAIN_BROKEN};
use nix::errno::Errno;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes runs as they come, as text or as one JSON object.
struct Printer<W: Write> {
    out: W,
    json: bool,
    first: bool,
    blocks: u64,
}

impl<W: Write> Printer<W> {
    fn run(&mut self, e: Extent) -> io::Result<()> {
        self.blocks += e.len;
        if !self.json {
            return writeln!(self.out, "{} {}", e.start, e.len);
        }
        let lead = if self.first {
            "{\"block_size\": 4096, \"extents\": ["
        } else {
            ","
        };
        self.first = false;
        write!(
            self.out,
            "{lead}\n  {{\"start\": {}, \"len\": {}}}",
            e.start, e.len
        )
    }

    fn end(mut self) -> io::Result<()> {
        if self.json {
            if self.first {
                write!(self.out, "{{\"block_size\": 4096, \"extents\": [")?;
            }
            writeln!(self.out, "\n], \"blocks\": {}}}", self.blocks)?;
        }
        self.out.flush()
    }
}

fn printer(json: bool) -> Printer<BufWriter<io::Stdout>> {
    Printer {
        out: BufWriter::new(io::stdout()),
        json,
        first: true,
        blocks: 0,
    }
}

/// The size of the device that a file is of, where the file says it: this driver's do. What lies behind
/// the index of such a file is nobody else's business.
fn origin_bytes(path: &Path) -> Option<u64> {
    let mut bytes = [0; EXT_BYTES];
    File::open(path)
        .and_then(|f| f.read_exact_at(&mut bytes, EXT_OFFSET as u64))
        .ok()?;
    Extension::decode(&bytes).map(|e| e.origin_bytes)
}

/// The changes in a handed-over COW file.
///
/// # Errors
///
/// Not a sealed COW file, or it cannot be read. What was printed by then is not complete.
pub fn of_file(path: &Path, json: bool) -> Result<()> {
    let meta = fs::metadata(path).with_context(|| path.display().to_string())?;
    // Before it is opened: opening a pipe would wait for ever.
    ensure!(
        meta.is_file(),
        "{} is not a COW file: it is no regular file",
        path.display()
    );
    let cow = CowFile::open(path)?;
    cow.require_sealed()?;
    let blocks = match origin_bytes(path) {
        Some(bytes) => {
            cow.require_index(bytes)?;
            Geometry {
                origin_bytes: bytes,
            }
            .blocks()
        }
        None => cow.covered()?,
    };
    let mut printer = printer(json);
    for run in cow.changed(blocks) {
        printer.run(run?)?;
    }
    printer.end().context("writing to standard output")
}

/// What is asked of the driver. The tests have one of their own.
trait Source {
    fn status(&self, minor: u32) -> Result<Status, Errno>;
    fn info(&self, minor: u32) -> Result<Info, Errno>;
    fn changed(&self, minor: u32, each: &mut dyn FnMut(Extent)) -> Result<(), Errno>;
}

impl Source for Control {
    fn status(&self, minor: u32) -> Result<Status, Errno> {
        Self::status(self, minor)
    }

    fn info(&self, minor: u32) -> Result<Info, Errno> {
        Self::info(self, minor)
    }

    fn changed(&self, minor: u32, each: &mut dyn FnMut(Extent)) -> Result<(), Errno> {
        self.extents(minor, EXTENTS_CHANGED, each)
    }
}

/// Why a list of a device would not be complete.
#[derive(Debug)]
enum Stop {
    /// A call failed.
    Call(Errno),
    /// The chain has ended: the driver still has a map, but not all changes are in it.
    ChainEnded,
    /// Another snapshot was taken meanwhile: what was listed is of two maps.
    Replaced,
    /// Nobody takes what is printed.
    Output(io::Error),
}

/// Which map the driver has of a device, as long as it is one to rely on. A driver that knows EXTENTS knows
/// STATUS too, so a STATUS that fails is never passed over.
fn map_of(source: &dyn Source, minor: u32) -> Result<([u8; 16], u64), Stop> {
    let status = source.status(minor).map_err(Stop::Call)?;
    if status.flags & STATUS_CHAIN_BROKEN != 0 {
        return Err(Stop::ChainEnded);
    }
    let info = source.info(minor).map_err(Stop::Call)?;
    Ok((info.uuid, info.seqid))
}

fn list<W: Write>(source: &dyn Source, minor: u32, mut printer: Printer<W>) -> Result<(), Stop> {
    let before = map_of(source, minor)?;
    let mut trouble = None;
    source
        .changed(minor, &mut |e| {
            if let Err(e) = printer.run(e) {
                trouble.get_or_insert(e);
            }
        })
        .map_err(Stop::Call)?;
    if let Some(e) = trouble {
        return Err(Stop::Output(e));
    }
    // The list comes in pieces, and its end says that it is complete.
    if map_of(source, minor)? != before {
        return Err(Stop::Replaced);
    }
    printer.end().map_err(Stop::Output)
}

/// The changes of a device, right now.
///
/// # Errors
///
/// No such device; not root; the chain has ended. What was printed by then is not complete.
pub fn of_device(control: &Control, minor: u32, json: bool) -> Result<()> {
    list(control, minor, printer(json)).map_err(|stop| match stop {
        Stop::Call(errno) => anyhow!(explain::call(control, Asked::Ask, minor, errno)),
        Stop::ChainEnded => anyhow!(
            "device {minor} no longer knows what changes: this list would not be complete. `dbdctl destroy \
             {minor}`, then setup-snapshot and a full copy"
        ),
        Stop::Replaced => anyhow!(
            "another snapshot of device {minor} was taken meanwhile: this list is not complete. Run it again"
        ),
        Stop::Output(e) => anyhow::Error::new(e).context("writing to standard output"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A driver whose chain may end, whose series may go on, or whose STATUS may fail, from the nth question on.
    #[derive(Default)]
    struct Fake {
        asked: Cell<u32>,
        ends: Option<u32>,
        replaced: Option<u32>,
        refused: Option<(u32, Errno)>,
    }

    impl Source for Fake {
        fn status(&self, _: u32) -> Result<Status, Errno> {
            let asked = self.asked.get();
            self.asked.set(asked + 1);
            if let Some((_, errno)) = self.refused.filter(|(from, _)| asked >= *from) {
                return Err(errno);
            }
            let ended = self.ends.is_some_and(|from| asked >= from);
            Ok(Status {
                flags: if ended { STATUS_CHAIN_BROKEN } else { 0 },
                ..Status::default()
            })
        }

        fn info(&self, minor: u32) -> Result<Info, Errno> {
            let mut info = Info::request(minor);
            info.seqid = 4 + u64::from(self.replaced.is_some_and(|from| self.asked.get() > from));
            Ok(info)
        }

        fn changed(&self, _: u32, each: &mut dyn FnMut(Extent)) -> Result<(), Errno> {
            each(Extent { start: 3, len: 2 });
            Ok(())
        }
    }

    fn listed(fake: &Fake, json: bool) -> (Result<(), Stop>, String) {
        let mut out = Vec::new();
        let printer = Printer {
            out: &mut out,
            json,
            first: true,
            blocks: 0,
        };
        let result = list(fake, 0, printer);
        (result, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_whole_map_is_listed_to_its_end() {
        let (result, text) = listed(&Fake::default(), false);
        result.unwrap();
        assert_eq!(text, "3 2\n");
        let (result, text) = listed(&Fake::default(), true);
        result.unwrap();
        let v: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(v["blocks"], 2);
    }

    #[test]
    fn a_map_that_may_lack_changes_is_never_listed_as_complete() {
        for json in [false, true] {
            for from in [0, 1] {
                let ended = Fake {
                    ends: Some(from),
                    ..Fake::default()
                };
                let (result, text) = listed(&ended, json);
                assert!(matches!(result, Err(Stop::ChainEnded)), "{result:?}");
                // Known from the start: nothing. Else no end, so that what reads it sees that it is cut short.
                assert_eq!(text.is_empty(), from == 0, "{text}");
                assert!(!text.contains("blocks\""), "{text}");
                for errno in [Errno::EINVAL, Errno::ENOENT, Errno::ENOMEM] {
                    let refused = Fake {
                        refused: Some((from, errno)),
                        ..Fake::default()
                    };
                    let (result, _) = listed(&refused, json);
                    assert!(
                        matches!(result, Err(Stop::Call(e)) if e == errno),
                        "{result:?}"
                    );
                }
            }
            let replaced = Fake {
                replaced: Some(1),
                ..Fake::default()
            };
            let (result, text) = listed(&replaced, json);
            assert!(matches!(result, Err(Stop::Replaced)), "{result:?}");
            assert!(!text.contains("blocks\""), "{text}");
        }
    }
}
