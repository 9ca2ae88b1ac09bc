// SPDX-License-Identifier: GPL-2.0-only
//! Markers of a snapshot point: a command is run, and when it began and ended is written down.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{bail, Context, Result};

use crate::sys;

/// The times between which a snapshot point lies.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Nothing of the point had happened yet.
    pub begin: u64,
    /// The point had passed.
    pub end: u64,
}

/// Runs a command and enters its times in `dir/marks` under `name`.
pub fn run(dir: &Path, name: &str, command: &[String]) -> Result<ExitCode> {
    let (program, args) = command.split_first().context("no command given")?;
    let begin = sys::now();
    let status = Command::new(program)
        .args(args)
        .status()
        .with_context(|| format!("run {program}"))?;
    let end = sys::now();
    if status.success() {
        let mut marks = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("marks"))?;
        marks.write_all(format!("{name} {begin} {end}\n").as_bytes())?;
    }
    Ok(ExitCode::from(status.code().map_or(255, |c| c as u8)))
}

/// The window of the last mark of that name.
pub fn find(dir: &Path, name: &str) -> Result<Window> {
    let path = dir.join("marks");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for line in text.lines().rev() {
        let f: Vec<_> = line.split(' ').collect();
        if let [n, begin, end] = f[..] {
            if n == name {
                return Ok(Window {
                    begin: begin.parse()?,
                    end: end.parse()?,
                });
            }
        }
    }
    bail!("no mark {name:?} in {}", path.display())
}
