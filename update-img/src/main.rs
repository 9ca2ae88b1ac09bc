// SPDX-License-Identifier: GPL-2.0-only
//! See `update-img --help`, [`update_img::cli`].

use anyhow::{bail, Result};
use clap::Parser;
use dattobd_client::cow_file::Union;
use dattobd_client::human;
use ioctl_abi::cow::{Geometry, BLOCK_SIZE};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use update_img::check::{self, Kernel, Pair};
use update_img::cli::Cli;
use update_img::copy::{self, Done};
use update_img::{progress, verify};

/// Runs of differing blocks that are named one by one.
const NAMED: usize = 20;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("update-img: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let Some((image, cows)) = cli.rest.split_last() else {
        bail!("no image given")
    };
    if cli.verify_only {
        if !cows.is_empty() {
            bail!("--verify-only takes a snapshot device and an image, no COW file");
        }
        let pair = check::open(&Kernel, &cli.snapshot, image, false)?;
        return compare(cli, &pair);
    }
    if cows.is_empty() {
        bail!(
            "name the COW file too: update-img {} <cow file> {}",
            cli.snapshot.display(),
            image.display()
        );
    }
    update(cli, cows, image)
}

fn update(cli: &Cli, cows: &[PathBuf], image: &Path) -> Result<()> {
    let pair = check::open(&Kernel, &cli.snapshot, image, !cli.dry_run)?;
    let files = check::chain(cows, &pair)?;
    let blocks = Geometry {
        origin_bytes: pair.bytes,
    }
    .blocks();
    // A first walk over the map: the whole of it is readable, and its size is known.
    let mut changed = 0u64;
    for run in Union::new(&files, blocks) {
        changed += run?.len;
    }
    let bytes = changed.saturating_mul(BLOCK_SIZE).min(pair.bytes);
    if cli.dry_run {
        println!(
            "{changed} of {blocks} blocks changed: {} of {} would be copied; nothing was written",
            human::bytes(bytes),
            human::bytes(pair.bytes)
        );
        return Ok(());
    }
    let start = Instant::now();
    let bar = progress::bar("updating", bytes, cli.quiet);
    let runs = Union::new(&files, blocks);
    let result = copy::copy(
        &pair.snapshot,
        &pair.image,
        pair.bytes,
        runs,
        cli.queue_depth,
        &bar,
    );
    bar.finish_and_clear();
    match result {
        Ok(done) => report(cli, &pair, done, start.elapsed().as_secs_f64()),
        Err(failed) => {
            let state = if failed.touched {
                "the image is PARTLY UPDATED: it is neither the old nor the new state. Run the same \
                 command again while the snapshot is there; it starts over and is safe to repeat"
            } else {
                "the image is untouched"
            };
            return Err(failed.error.context(format!("the update failed; {state}")));
        }
    }
    if cli.verify {
        compare(cli, &pair)?;
    }
    Ok(())
}

fn report(cli: &Cli, pair: &Pair, done: Done, seconds: f64) {
    if cli.json {
        println!(
            "{{\"changed_blocks\": {}, \"bytes_copied\": {}, \"requests\": {}, \"device_bytes\": {}, \
             \"seconds\": {seconds:.3}}}",
            done.blocks, done.bytes, done.requests, pair.bytes
        );
    } else if !cli.quiet {
        let share = 100.0 * done.bytes as f64 / pair.bytes.max(1) as f64;
        println!(
            "{}: {} blocks updated, {} copied in {} requests, {seconds:.1} s; {share:.1} % of {}",
            pair.image_path.display(),
            done.blocks,
            human::bytes(done.bytes),
            done.requests,
            human::bytes(pair.bytes)
        );
    }
}

fn compare(cli: &Cli, pair: &Pair) -> Result<()> {
    let bar = progress::bar("comparing", pair.bytes, cli.quiet);
    let compared = verify::compare(
        &pair.snapshot,
        &pair.image,
        pair.bytes,
        &pair.running.own,
        cli.queue_depth.min(8),
        &bar,
    );
    bar.finish_and_clear();
    let compared = compared?;
    if compared.different.is_empty() {
        if !cli.quiet && !cli.json {
            let left_out: u64 = pair.running.own.iter().map(|e| e.len).sum();
            println!(
                "{}: equal to the snapshot, {} compared ({} blocks of the running COW file left out)",
                pair.image_path.display(),
                human::bytes(compared.bytes),
                left_out
            );
        }
        return Ok(());
    }
    let total: u64 = compared.different.iter().map(|e| e.len).sum();
    for e in compared.different.iter().take(NAMED) {
        eprintln!(
            "differs: blocks {}..{} (of 4096 bytes)",
            e.start,
            e.start + e.len
        );
    }
    if compared.different.len() > NAMED {
        eprintln!("… and {} more runs", compared.different.len() - NAMED);
    }
    bail!(
        "{} differs from the snapshot in {total} blocks",
        pair.image_path.display()
    )
}
