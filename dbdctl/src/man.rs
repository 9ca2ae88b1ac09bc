// SPDX-License-Identifier: GPL-2.0-only
//! Man pages, from the same source as the help.

use crate::cli::Cli;
use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use std::fs;
use std::path::Path;

fn page(command: Command, folder: &Path, name: &str) -> Result<()> {
    let mut text = Vec::new();
    // Section 8: for the administrator.
    clap_mangen::Man::new(command.name(name.to_owned()))
        .section("8")
        .render(&mut text)?;
    let path = folder.join(format!("{name}.8"));
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// Writes `dbdctl.8`, a page for each command, and `update-img.8`.
///
/// # Errors
///
/// The folder cannot be written to.
pub fn write(folder: &Path) -> Result<()> {
    let dbdctl = Cli::command();
    for sub in dbdctl.get_subcommands().filter(|c| !c.is_hide_set()) {
        page(sub.clone(), folder, &format!("dbdctl-{}", sub.get_name()))?;
    }
    page(dbdctl, folder, "dbdctl")?;
    page(update_img::cli::Cli::command(), folder, "update-img")
}
