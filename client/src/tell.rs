// SPDX-License-Identifier: GPL-2.0-only
//! Messages for people, on stderr.

use std::fmt;
use std::io::{self, Write};

/// As `eprintln!`, which panics when stderr cannot be written to: a terminal that has hung up, a pipe whose
/// reader has gone, a full disk. Then nobody is there to be told; what is done goes on, and ends with the exit
/// code that it has.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => { $crate::tell::line(format_args!($($text)*)) };
}

/// What [`tell!`](crate::tell) does.
pub fn line(text: fmt::Arguments<'_>) {
    // In one write, as other programs may write there too.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}
