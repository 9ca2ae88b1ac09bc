// SPDX-License-Identifier: GPL-2.0-only
//! Times for benchmarks. Where QEMU counts instructions (one for each nanosecond, one CPU) the time stamp
//! counter is the number of instructions executed so far. A process that runs only when nobody else wants to
//! ([`spin`]) counts its own: the rest is what the others, the kernel and the interrupts have used, exact
//! to some ten instructions for each time that it is interrupted. The CPU never idles, so that the clock never
//! jumps either, and timers go off no earlier than on a real machine that is as fast.

use std::path::Path;
use std::time::Duration;

use anyhow::{ensure, Result};
use ioctl_abi::ioctl as abi;

use crate::control;
use crate::errno;
use crate::sys::{self, SharedCounter};

/// More ticks than this between two looks at the clock: something else has run. A turn of the loop has ten
/// or so, an interrupt thousands.
const INTERRUPTED: u64 = 100;

/// What `dbd_benchdisk` spends on moving data, which a real disk does by itself.
const MOVING: &str = "/sys/module/dbd_benchdisk/parameters/ticks";

/// Counts idle ticks in the file, for ever.
pub fn spin(file: &Path) -> Result<()> {
    let counter = SharedCounter::new(&sys::open_write(file, 0)?)?;
    sys::run_only_when_idle()?;
    let (mut idle, mut last) = (0, sys::ticks());
    loop {
        let now = sys::ticks();
        let gap = now.wrapping_sub(last);
        last = now;
        if gap < INTERRUPTED {
            idle += gap;
            counter.set(idle);
        }
    }
}

/// Bytes of copies of a minor that are still on their way to the COW file.
fn under_way(minor: u32) -> Result<u64> {
    let mut s = abi::Status {
        size: size_of::<abi::Status>() as u32,
        minor,
        ..Default::default()
    };
    let r = control::call(&control::open()?, abi::STATUS, &mut s);
    ensure!(
        r.is_ok(),
        "STATUS: {}",
        r.map_or_else(errno::name, |()| "OK".into())
    );
    ensure!(s.error == 0, "the snapshot has failed: {}", s.error);
    Ok(s.copy_memory_used)
}

/// Prints `ns ticks idle`, and with `drain` a second line when that minor has no copy under way any more.
pub fn print(file: Option<&Path>, drain: Option<u32>) -> Result<()> {
    let counter = file
        .map(|f| SharedCounter::new(&sys::open_write(f, 0)?))
        .transpose()?;
    while counter.as_ref().is_some_and(|c| c.get() == 0) {
        // It has not begun.
        std::thread::sleep(Duration::from_millis(1));
    }
    let line = || -> Result<String> {
        let idle = counter.as_ref().map_or(0, SharedCounter::get);
        let (now, ticks) = (sys::now(), sys::ticks());
        let moving: u64 = match std::fs::read_to_string(MOVING) {
            Ok(text) => text.trim().parse()?,
            Err(_) => 0,
        };
        Ok(format!("{now} {ticks} {}", idle + moving))
    };
    println!("{}", line()?);
    if let Some(minor) = drain {
        while under_way(minor)? > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("{}", line()?);
    }
    Ok(())
}

/// Freezes a filesystem and thaws it, as `fsfreeze` does; how long that took, in nanoseconds.
pub fn freeze(mount: &Path) -> Result<u64> {
    let dir = sys::open_read(mount, 0)?;
    let start = sys::now();
    sys::freeze(&dir)?;
    sys::thaw(&dir)?;
    Ok(sys::now() - start)
}
