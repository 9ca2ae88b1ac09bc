// SPDX-License-Identifier: GPL-2.0-only
//! `dbdctl info`: for people, and for scripts.

use crate::explain::{self, Asked};
use anyhow::{anyhow, Result};
use dattobd_client::control::{text, uuid, Control};
use dattobd_client::human;
use ioctl_abi::ioctl::{
    Info, Status, LIMIT_MAX_DEVICES, STATE_ACTIVE, STATE_SNAPSHOT, STATE_UNVERIFIED,
    STATUS_CHAIN_BROKEN, STATUS_NOT_RECORDED,
};
use serde_json::{json, Value};
use std::io::{self, Write};

/// The state in words.
fn state(info: &Info, status: Option<&Status>) -> String {
    let mode = if info.state & STATE_SNAPSHOT != 0 {
        "snapshot"
    } else {
        "incremental"
    };
    if info.error != 0 {
        let end = match status {
            Some(s) if s.flags & STATUS_CHAIN_BROKEN != 0 => "chain ended",
            _ => "changes still tracked",
        };
        return format!("{mode} FAILED: {} ({end})", explain::reason(info));
    }
    let activity = if info.state & STATE_UNVERIFIED != 0 {
        "unverified"
    } else if info.state & STATE_ACTIVE != 0 {
        "active"
    } else {
        "dormant"
    };
    format!("{activity} {mode}")
}

fn devices(control: &Control, minor: Option<u32>) -> Result<Vec<Info>> {
    if let Some(minor) = minor {
        return match control.info(minor) {
            Ok(info) => Ok(vec![info]),
            Err(e) => Err(anyhow!(explain::call(control, Asked::Ask, minor, e))),
        };
    }
    Ok((0..LIMIT_MAX_DEVICES)
        .filter_map(|n| control.info(n).ok())
        .collect())
}

/// Prints the devices.
///
/// # Errors
///
/// No such device.
pub fn print(control: &Control, minor: Option<u32>, as_json: bool) -> Result<()> {
    let all = devices(control, minor)?;
    if as_json {
        let list: Vec<Value> = all.iter().map(|i| full(control, i)).collect();
        let text = serde_json::to_string_pretty(&json!({ "devices": list }))?;
        return Ok(writeln!(io::stdout(), "{text}")?);
    }
    // Not by `println!`, which panics when the reader of a pipe has gone away.
    let mut out = String::new();
    if all.is_empty() {
        out.push_str("no device is tracked; `dbdctl setup-snapshot --help` shows how to begin\n");
    }
    for (n, info) in all.iter().enumerate() {
        if n > 0 {
            out.push('\n');
        }
        out.push_str(&table(info, control.status(info.minor).ok().as_ref()));
    }
    Ok(io::stdout().write_all(out.as_bytes())?)
}

fn table(info: &Info, status: Option<&Status>) -> String {
    let mut out = format!(
        "datto{}  {}  {}\n",
        info.minor,
        text(&info.bdev),
        state(info, status)
    );
    let mut row = |name: &str, value: String| {
        out.push_str(&format!("{name:>16}  {value}\n"));
    };
    row("COW file", text(&info.cow));
    row(
        "sequence",
        format!("{} of {}", info.seqid, uuid(&info.uuid)),
    );
    row(
        "changed",
        format!(
            "{} blocks, {}",
            info.nr_changed_blocks,
            human::bytes(info.nr_changed_blocks.saturating_mul(4096))
        ),
    );
    let Some(s) = status else { return out };
    if s.crash_blocks > 0 {
        row(
            "after a crash",
            format!(
                "{} of these blocks may not have changed: they were near writes when the machine crashed",
                s.crash_blocks
            ),
        );
    }
    if s.flags & STATUS_NOT_RECORDED != 0 && s.flags & STATUS_CHAIN_BROKEN == 0 {
        row(
            "crash safety",
            "none: after a reboot, a crash or hand-over the next backup must be a full one. The next snapshot's \
             COW file records changes again"
                .into(),
        );
    }
    if let Some(last) = (s.origin_bytes > 0).then_some(s.origin_bytes) {
        row("device size", human::bytes(last));
    }
    if info.state & STATE_SNAPSHOT != 0 && s.cow_blocks_total > 0 {
        row(
            "COW file used",
            format!(
                "{} of {} ({:.0} %)",
                human::bytes(s.cow_blocks_used.saturating_mul(4096)),
                human::bytes(s.cow_blocks_total.saturating_mul(4096)),
                100.0 * s.cow_blocks_used as f64 / s.cow_blocks_total as f64
            ),
        );
        row(
            "copies in memory",
            format!(
                "{} of {}",
                human::bytes(s.copy_memory_used),
                human::bytes(s.copy_memory_max)
            ),
        );
        row(
            "writes held",
            format!(
                "{} ({} discards dropped)",
                s.writes_held, s.discards_dropped
            ),
        );
    }
    row("COW file size", human::bytes(s.cow_bytes));
    row("memory of maps", human::bytes(s.map_memory));
    if s.index_memory != 0 || s.index_on_disk != 0 {
        row(
            "index of copies",
            format!(
                "{} of {} in memory, {} on disk",
                human::bytes(s.index_memory),
                human::bytes(info.cache_size),
                human::bytes(s.index_on_disk)
            ),
        );
    }
    row("last freeze", human::nanoseconds(s.freeze_ns));
    if s.auto_expand_step > 0 {
        row(
            "auto-expand",
            format!(
                "by {} MiB, leaving {} MiB free",
                s.auto_expand_step, s.auto_expand_reserve
            ),
        );
    }
    out
}

fn full(control: &Control, info: &Info) -> Value {
    let status = control.status(info.minor).ok();
    let extents: Option<Vec<Value>> = control.cow_extents(info.minor).ok().map(|list| {
        list.iter()
            .map(|e| json!({ "start": e.start, "len": e.len }))
            .collect()
    });
    json!({
        "minor": info.minor,
        "block_device": text(&info.bdev),
        "cow_file": text(&info.cow),
        "state": info.state,
        "state_text": state(info, status.as_ref()),
        "snapshot": info.state & STATE_SNAPSHOT != 0,
        "active": info.state & STATE_ACTIVE != 0,
        "unverified": info.state & STATE_UNVERIFIED != 0,
        "error": info.error,
        "chain_broken": status.map(|s| s.flags & STATUS_CHAIN_BROKEN != 0),
        "recorded": status.map(|s| s.flags & STATUS_NOT_RECORDED == 0),
        "crash_blocks": status.map(|s| s.crash_blocks),
        "uuid": uuid(&info.uuid),
        "seq_id": info.seqid,
        "version": info.version,
        "max_cache": info.cache_size,
        "fallocate": info.falloc_size,
        "nr_changed_blocks": info.nr_changed_blocks,
        "origin_bytes": status.map(|s| s.origin_bytes),
        "cow_bytes": status.map(|s| s.cow_bytes),
        "cow_blocks_total": status.map(|s| s.cow_blocks_total),
        "cow_blocks_used": status.map(|s| s.cow_blocks_used),
        "copy_memory_max": status.map(|s| s.copy_memory_max),
        "copy_memory_used": status.map(|s| s.copy_memory_used),
        "map_memory": status.map(|s| s.map_memory),
        "index_memory": status.map(|s| s.index_memory),
        "index_on_disk": status.map(|s| s.index_on_disk),
        "freeze_ns": status.map(|s| s.freeze_ns),
        "writes_held": status.map(|s| s.writes_held),
        "discards_dropped": status.map(|s| s.discards_dropped),
        "auto_expand_step_mib": status.map(|s| s.auto_expand_step),
        "auto_expand_reserve_mib": status.map(|s| s.auto_expand_reserve),
        // In 4096-byte blocks of the device; null without the right to see them.
        "cow_extents": extents,
    })
}
