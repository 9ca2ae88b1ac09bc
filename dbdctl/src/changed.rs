// SPDX-License-Identifier: GPL-2.0-only
//! `dbdctl changed`: the change map for other backup tools.

use anyhow::{ensure, Context, Result};
use dattobd_client::control::Control;
use dattobd_client::cow_file::CowFile;
use ioctl_abi::cow::{Extension, Geometry, EXT_BYTES, EXT_OFFSET};
use ioctl_abi::ioctl::{Extent, EXTENTS_CHANGED};
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

/// The changes of a device, right now.
///
/// # Errors
///
/// No such device; not root.
pub fn of_device(control: &Control, minor: u32, json: bool) -> Result<Option<nix::errno::Errno>> {
    let mut printer = printer(json);
    let mut trouble = None;
    let asked = control.extents(minor, EXTENTS_CHANGED, |e| {
        if let Err(e) = printer.run(e) {
            trouble.get_or_insert(e);
        }
    });
    if let Err(errno) = asked {
        return Ok(Some(errno));
    }
    if let Some(e) = trouble {
        return Err(e).context("writing to standard output");
    }
    printer.end().context("writing to standard output")?;
    Ok(None)
}
