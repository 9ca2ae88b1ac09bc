// SPDX-License-Identifier: GPL-2.0-only
//! What a command line asks for, from the checks to the summary.

use crate::check::{self, Driver, Pair};
use crate::cli::Cli;
use crate::copy::{self, Done};
use crate::ledger;
use crate::progress;
use crate::stage::{Progress, Stage, PARTLY, UNTOUCHED};
use crate::verify::{self, Compared};
use anyhow::{anyhow, bail, Context, Result};
use dattobd_client::cow_file::Union;
use dattobd_client::{human, tell};
use ioctl_abi::cow::{Geometry, BLOCK_SIZE};
use serde_json::{json, Value};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The exit status when the image differs from the snapshot.
pub const DIFFERS: u8 = 3;
/// The exit status of any other failure. 2 is for mistakes in the command line, as clap has it.
pub const FAILED: u8 = 1;

/// A comparison was carried through, and the image is not the snapshot: something else than a comparison that
/// could not be made, and a script must be able to tell.
#[derive(Debug)]
struct Differs {
    image: PathBuf,
    blocks: u64,
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} differs from the snapshot in {} blocks: do not rely on it, take a full copy",
            self.image.display(),
            self.blocks
        )
    }
}

impl std::error::Error for Differs {}

/// The exit status that goes with an error of [`run`].
pub fn exit_status(error: &anyhow::Error) -> u8 {
    if error.is::<Differs>() {
        DIFFERS
    } else {
        FAILED
    }
}

/// Runs of differing blocks that are named one by one for people.
const NAMED: usize = 20;

/// Does what `cli` says. The summary goes to `out`, differing blocks to standard error; `stage` says how far it
/// is, to whoever interrupts it.
///
/// # Errors
///
/// What went wrong, and what state the image is in.
pub fn run(cli: &Cli, driver: &dyn Driver, stage: &Stage, out: &mut dyn Write) -> Result<()> {
    let Some((image, cows)) = cli.rest.split_last() else {
        bail!("no image given")
    };
    // Without a COW file there is nothing to copy, and comparing is all that --verify can mean.
    if cli.verify_only || (cli.verify && cows.is_empty() && !cli.dry_run) {
        stage.comparing();
        let pair = check::open(driver, &cli.snapshot, image, false)?;
        if !cows.is_empty() {
            check::chain(cows, &pair)?;
        }
        let compared = compare(cli, driver, &pair)?;
        if cli.json {
            let value = json!({ "device_bytes": pair.bytes, "verify": verdict(&compared) });
            print(out, &value.to_string())?;
        }
        return judge(cli, &pair, &compared, out);
    }
    if cows.is_empty() {
        bail!(
            "name the COW file too: update-img {} <cow file> {}",
            cli.snapshot.display(),
            image.display()
        );
    }
    update(cli, driver, cows, image, stage, out)
}

/// A line of the summary. `println!` would panic when the reader of a pipe has gone away.
fn print(out: &mut dyn Write, line: &str) -> Result<()> {
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("writing the summary")
}

fn update(
    cli: &Cli,
    driver: &dyn Driver,
    cows: &[PathBuf],
    image: &Path,
    stage: &Stage,
    out: &mut dyn Write,
) -> Result<()> {
    let pair = check::open(driver, &cli.snapshot, image, !cli.dry_run)?;
    check::elsewhere(&pair)?;
    let files = check::chain(cows, &pair)?;
    let ledger = Arc::new(ledger::open(&pair, &files, cli.image_is_new, cli.quiet)?);
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
        return rehearsed(cli, &pair, changed, blocks, bytes, out);
    }
    stage.keep(ledger.clone());
    let start = Instant::now();
    let bar = progress::bar("updating", bytes, cli.quiet);
    let result = copy::copy(
        &pair.snapshot,
        &pair.image,
        pair.bytes,
        Union::new(&files, blocks),
        cli.queue_depth,
        &bar,
        stage,
    );
    bar.finish_and_clear();
    let done = result.map_err(|error| {
        let state = match stage.progress() {
            Progress::Untouched => UNTOUCHED,
            _ => {
                // Where it fails, the record that is there counts always.
                let _ = ledger.unfinished();
                PARTLY
            }
        };
        error.context(format!("the update failed; {state}"))
    })?;
    let mut summary = summary(&pair, done, start.elapsed().as_secs_f64());
    let told = if cli.json {
        Ok(())
    } else {
        tell(cli, &pair, &summary, out)
    };
    let compared = cli
        .verify
        .then(|| compare(cli, driver, &pair))
        .transpose()
        .context("the image is updated, but comparing it failed");
    // The summary is printed whatever the comparison says: the update itself was done.
    if cli.json {
        if let Ok(Some(compared)) = &compared {
            summary["verify"] = verdict(compared);
        }
        print(out, &summary.to_string()).context("the image is updated")?;
    }
    told.context("the image is updated")?;
    compared?.map_or(Ok(()), |compared| judge(cli, &pair, &compared, out))
}

fn rehearsed(
    cli: &Cli,
    pair: &Pair,
    changed: u64,
    blocks: u64,
    bytes: u64,
    out: &mut dyn Write,
) -> Result<()> {
    if cli.json {
        let value = json!({
            "dry_run": true,
            "changed_blocks": changed,
            "bytes_to_copy": bytes,
            "device_bytes": pair.bytes,
        });
        return print(out, &value.to_string());
    }
    if cli.quiet {
        return Ok(());
    }
    print(
        out,
        &format!(
            "{changed} of {blocks} blocks changed: {} of {} would be copied; nothing was written",
            human::bytes(bytes),
            human::bytes(pair.bytes)
        ),
    )
}

fn summary(pair: &Pair, done: Done, seconds: f64) -> Value {
    json!({
        "changed_blocks": done.blocks,
        "bytes_copied": done.bytes,
        "requests": done.requests,
        "device_bytes": pair.bytes,
        "seconds": (seconds * 1e3).round() / 1e3,
    })
}

fn tell(cli: &Cli, pair: &Pair, summary: &Value, out: &mut dyn Write) -> Result<()> {
    if cli.quiet {
        return Ok(());
    }
    let copied = summary["bytes_copied"].as_u64().unwrap_or(0);
    let line = format!(
        "{}: {} blocks updated, {} copied in {} requests, {:.1} s; {:.1} % of {}",
        pair.image_path.display(),
        summary["changed_blocks"],
        human::bytes(copied),
        summary["requests"],
        summary["seconds"].as_f64().unwrap_or(0.0),
        100.0 * copied as f64 / pair.bytes.max(1) as f64,
        human::bytes(pair.bytes)
    );
    print(out, &line)
}

fn compare(cli: &Cli, driver: &dyn Driver, pair: &Pair) -> Result<Compared> {
    let bar = progress::bar("comparing", pair.bytes, cli.quiet);
    // The COW file may grow while we read, and its new blocks then read as zeros: what differs is held
    // against the list of this moment, not against the one from the start.
    let now = || {
        let now = driver.running(&cli.snapshot)?;
        if (now.uuid, now.seqid) != (pair.running.uuid, pair.running.seqid) {
            return Err(anyhow!(
                "{} shows another snapshot now",
                cli.snapshot.display()
            ));
        }
        Ok(now.own)
    };
    let compared = verify::compare(
        &pair.snapshot,
        &pair.image,
        pair.bytes,
        &now,
        cli.queue_depth.min(8),
        &bar,
    );
    bar.finish_and_clear();
    compared
}

fn verdict(compared: &Compared) -> Value {
    let list: Vec<Value> = compared
        .different
        .iter()
        .map(|e| json!({ "start": e.start, "len": e.len }))
        .collect();
    json!({
        "equal": compared.blocks == 0,
        "bytes_compared": compared.bytes,
        "left_out_blocks": compared.left_out,
        "different_blocks": compared.blocks,
        // The first ones only, when there are very many.
        "different": list,
    })
}

fn judge(cli: &Cli, pair: &Pair, compared: &Compared, out: &mut dyn Write) -> Result<()> {
    if compared.blocks == 0 {
        if cli.quiet || cli.json {
            return Ok(());
        }
        let line = format!(
            "{}: equal to the snapshot, {} compared ({} blocks of the running COW file left out)",
            pair.image_path.display(),
            human::bytes(compared.bytes),
            compared.left_out
        );
        return print(out, &line);
    }
    let mut named = 0;
    for e in compared.different.iter().take(NAMED) {
        tell!(
            "differs: blocks {}..{} (of 4096 bytes)",
            e.start,
            e.start + e.len
        );
        named += e.len;
    }
    if compared.blocks > named {
        tell!("… and {} more blocks", compared.blocks - named);
    }
    Err(anyhow::Error::new(Differs {
        image: pair.image_path.clone(),
        blocks: compared.blocks,
    }))
}
