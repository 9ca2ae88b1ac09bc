// SPDX-License-Identifier: GPL-2.0-only
//! Calls on the control node, as any client would make them.

use std::fs::File;
use std::path::Path;

use anyhow::{bail, Result};
use ioctl_abi::ioctl as abi;

use crate::errno;
use crate::sys;

/// Opens `/dev/datto-ctl`.
pub fn open() -> Result<File> {
    sys::open_read(Path::new(abi::CONTROL_PATH), 0)
}

/// Makes a call with a struct as its argument.
pub fn call<T: abi::Plain>(ctl: &File, code: u32, arg: &mut T) -> Result<(), i32> {
    sys::ioctl_word(ctl, code, std::ptr::from_mut(arg) as u64)
}

/// Lists extents (`EXTENTS_*`) of a device, in blocks.
pub fn extents(minor: u32, kind: u32) -> Result<Vec<abi::Extent>> {
    let ctl = open()?;
    let mut out = Vec::new();
    let mut start = 0;
    loop {
        let mut room = [abi::Extent::default(); 256];
        let mut p = abi::ExtentsParams {
            size: size_of::<abi::ExtentsParams>() as u32,
            minor,
            kind,
            count: room.len() as u32,
            start,
            extents: room.as_mut_ptr() as u64,
        };
        if let Err(e) = call(&ctl, abi::EXTENTS, &mut p) {
            bail!("EXTENTS of minor {minor}: {}", errno::name(e));
        }
        out.extend_from_slice(&room[..p.count as usize]);
        if p.start == u64::MAX {
            return Ok(out);
        }
        if p.start <= start {
            bail!(
                "EXTENTS of minor {minor} does not get on: start {} after {start}",
                p.start
            );
        }
        start = p.start;
    }
}

/// Asks for a device's status.
pub fn info(minor: u32) -> Result<Box<abi::Info>> {
    let mut i = Box::new(abi::Info::request(minor));
    match call(&open()?, abi::INFO, &mut *i) {
        Ok(()) => Ok(i),
        Err(e) => bail!("INFO of minor {minor}: {}", errno::name(e)),
    }
}
