// SPDX-License-Identifier: GPL-2.0-only
//! `/proc/datto-info` (COMPAT.md section 4), byte for byte as the C driver's readers expect it, but
//! always valid JSON.
//!
//! A path may hold any bytes but NUL. `"`, `\` and control characters are escaped; bytes that are not
//! UTF-8 become `\u00XX`, the character of that number (JSON has no way to say a byte; a path that is
//! valid UTF-8, which is nearly every path, comes out exact).

use core::fmt::{self, Write};

/// The part that an unverified device leaves out.
#[derive(Clone, Copy, Debug)]
pub struct Details {
    /// Size of the COW file that was asked for, in bytes (whole MiB).
    pub fallocate: u64,
    /// Size of the COW file now, in bytes.
    pub cow_size_current: u64,
    /// Sequence number of the running snapshot or increment.
    pub seq_id: u64,
    /// Identity of the series.
    pub uuid: [u8; 16],
    /// Version of the COW file format.
    pub version: u64,
    /// Blocks changed since the snapshot was taken.
    pub nr_changed_blocks: u64,
    /// Only when set.
    pub auto_expand: Option<AutoExpand>,
}

/// How the COW file grows by itself.
#[derive(Clone, Copy, Debug)]
pub struct AutoExpand {
    /// By how much, in MiB.
    pub step_size_mib: u64,
    /// What is left to the filesystem, in MiB.
    pub reserved_space_mib: u64,
}

/// One device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceStatus<'a> {
    /// Its minor.
    pub minor: u32,
    /// Path of the COW file, without NUL.
    pub cow_file: &'a [u8],
    /// Path of the block device, without NUL.
    pub block_device: &'a [u8],
    /// Limit of the index cache in bytes.
    pub max_cache: u64,
    /// `None` for an unverified device.
    pub details: Option<Details>,
    /// 0, or the negative errno that it failed with.
    pub error: i32,
    /// The state bits.
    pub state: u64,
}

/// Writes what comes before the first device. `version` is the product's.
///
/// # Errors
///
/// Those of `out`.
pub fn write_start(out: &mut impl Write, version: &str) -> fmt::Result {
    out.write_str("{\n\t\"version\": ")?;
    write_string(out, version.as_bytes())?;
    out.write_str(",\n\t\"devices\": [\n")
}

/// Writes one device; `first` tells whether it is the first.
///
/// # Errors
///
/// Those of `out`.
pub fn write_device(out: &mut impl Write, first: bool, d: &DeviceStatus<'_>) -> fmt::Result {
    if !first {
        out.write_str(",\n")?;
    }
    write!(
        out,
        "\t\t{{\n\t\t\t\"minor\": {},\n\t\t\t\"cow_file\": ",
        d.minor
    )?;
    write_string(out, d.cow_file)?;
    out.write_str(",\n\t\t\t\"block_device\": ")?;
    write_string(out, d.block_device)?;
    write!(out, ",\n\t\t\t\"max_cache\": {},\n", d.max_cache)?;
    if let Some(details) = &d.details {
        write_details(out, details)?;
    }
    if d.error != 0 {
        writeln!(out, "\t\t\t\"error\": {},", d.error)?;
    }
    write!(out, "\t\t\t\"state\": {}\n\t\t}}", d.state)
}

fn write_details(out: &mut impl Write, d: &Details) -> fmt::Result {
    writeln!(out, "\t\t\t\"fallocate\": {},", d.fallocate)?;
    writeln!(out, "\t\t\t\"cow_size_current\": {},", d.cow_size_current)?;
    writeln!(out, "\t\t\t\"seq_id\": {},", d.seq_id)?;
    out.write_str("\t\t\t\"uuid\": \"")?;
    for byte in d.uuid {
        write!(out, "{byte:02x}")?;
    }
    out.write_str("\",\n")?;
    writeln!(out, "\t\t\t\"version\": {},", d.version)?;
    writeln!(out, "\t\t\t\"nr_changed_blocks\": {},", d.nr_changed_blocks)?;
    if let Some(a) = &d.auto_expand {
        out.write_str("\t\t\t\"auto_expand\": {\n")?;
        writeln!(out, "\t\t\t\t\"step_size_mib\": {},", a.step_size_mib)?;
        writeln!(
            out,
            "\t\t\t\t\"reserved_space_mib\": {}",
            a.reserved_space_mib
        )?;
        out.write_str("\t\t\t},\n")?;
    }
    Ok(())
}

/// Writes what comes behind the last device.
///
/// # Errors
///
/// Those of `out`.
pub fn write_end(out: &mut impl Write) -> fmt::Result {
    out.write_str("\n\t]\n}\n")
}

/// Writes the whole status: all devices, in the order given.
///
/// # Errors
///
/// Those of `out`.
pub fn write_status<'a>(
    out: &mut impl Write,
    version: &str,
    devices: impl IntoIterator<Item = DeviceStatus<'a>>,
) -> fmt::Result {
    write_start(out, version)?;
    let mut first = true;
    for device in devices {
        write_device(out, first, &device)?;
        first = false;
    }
    write_end(out)
}

/// Writes a JSON string, quotes included, that stands for `bytes` (see the module's description).
///
/// # Errors
///
/// Those of `out`.
pub fn write_string(out: &mut impl Write, bytes: &[u8]) -> fmt::Result {
    out.write_char('"')?;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.write_str("\\\"")?,
                '\\' => out.write_str("\\\\")?,
                '\n' => out.write_str("\\n")?,
                '\r' => out.write_str("\\r")?,
                '\t' => out.write_str("\\t")?,
                c if c.is_control() => write!(out, "\\u{:04x}", u32::from(c))?,
                c => out.write_char(c)?,
            }
        }
        for byte in chunk.invalid() {
            write!(out, "\\u{:04x}", u32::from(*byte))?;
        }
    }
    out.write_char('"')
}
