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
    let global: Vec<_> = dbdctl
        .get_arguments()
        .filter(|a| a.is_global_set())
        .collect();
    for sub in dbdctl.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = sub.get_name();
        let sub = sub
            .clone()
            .args(global.iter().copied())
            .bin_name(format!("dbdctl {name}"));
        page(sub, folder, &format!("dbdctl-{name}"))?;
    }
    // There is no page for it.
    page(dbdctl.disable_help_subcommand(true), folder, "dbdctl")?;
    page(update_img::cli::Cli::command(), folder, "update-img")
}
