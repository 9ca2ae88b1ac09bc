// SPDX-License-Identifier: GPL-2.0-only
//! See `update-img --help`, [`update_img::cli`].

use clap::Parser;
use std::process::ExitCode;
use update_img::check::Kernel;
use update_img::cli::Cli;
use update_img::run;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run::run(&cli, &Kernel, &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("update-img: {e:#}");
            ExitCode::FAILURE
        }
    }
}
