// SPDX-License-Identifier: GPL-2.0-only
//! See `update-img --help`, [`update_img::cli`].

use clap::Parser;
use dattobd_client::tell;
use std::process::ExitCode;
use update_img::check::Kernel;
use update_img::cli::Cli;
use update_img::stage::Stage;
use update_img::{run, signals};

static STAGE: Stage = Stage::new();

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(e) = signals::watch(&STAGE) {
        tell!("update-img: cannot watch for signals: {}", e.desc());
        return ExitCode::from(run::FAILED);
    }
    match run::run(&cli, &Kernel, &STAGE, &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tell!("update-img: {e:#}");
            ExitCode::from(run::exit_status(&e))
        }
    }
}
