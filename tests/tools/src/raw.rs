// SPDX-License-Identifier: GPL-2.0-only
//! ioctls with any arguments, good or bad; prints `OK` or the name of the errno.
//!
//! Arguments are `field=value`. A path may be `@null`, `@bad` (a wild pointer), `@edge` (memory
//! ends before a NUL comes), `@long` (4096 bytes without a NUL), `@max` (4095 bytes and a NUL).
//! `arg=@bad` or `arg=@null` replaces the pointer to the whole struct.

use std::collections::BTreeMap;

use anyhow::{bail, ensure, Context, Result};
use ioctl_abi::ioctl as abi;

use crate::control;
use crate::errno;
use crate::sys;

/// An address that no process has mapped.
const WILD: u64 = 0x10;
/// An address of the kernel's own.
const KERNEL: u64 = 0xffff_8880_0000_1000;

struct Args {
    fields: BTreeMap<String, String>,
    /// Path buffers that the struct points to.
    keep: Vec<Vec<u8>>,
}

impl Args {
    fn parse(list: &[String]) -> Result<Self> {
        let fields = list
            .iter()
            .map(|a| {
                let (k, v) = a
                    .split_once('=')
                    .with_context(|| format!("bad argument {a:?}"))?;
                Ok((k.to_string(), v.to_string()))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            fields,
            keep: Vec::new(),
        })
    }

    fn number(&mut self, name: &str) -> Result<u64> {
        match self.fields.remove(name) {
            None => Ok(0),
            Some(v) if v.starts_with("0x") => Ok(u64::from_str_radix(&v[2..], 16)?),
            Some(v) if v.starts_with('-') => Ok(v.parse::<i64>()? as u64),
            Some(v) => v.parse().with_context(|| format!("{name}={v}")),
        }
    }

    fn path(&mut self, name: &str) -> Result<u64> {
        let text = self.fields.remove(name).unwrap_or_else(|| "@null".into());
        let mut bytes = match text.as_str() {
            "@null" => return Ok(0),
            "@bad" => return Ok(WILD),
            "@edge" => return sys::unterminated_at_edge(b"/dev/nothing"),
            "@long" => vec![b'/'; 8192],
            "@max" => [vec![b'/'; 4094], vec![b'x']].concat(),
            t => t.as_bytes().to_vec(),
        };
        bytes.push(0);
        let at = bytes.as_ptr() as u64;
        self.keep.push(bytes);
        Ok(at)
    }

    fn call<T: abi::Plain>(mut self, code: u32, mut arg: T) -> Result<(Result<(), i32>, T)> {
        let ctl = control::open()?;
        let word = self.fields.remove("arg");
        if let Some(k) = self.fields.keys().next() {
            bail!("unknown field {k:?}");
        }
        let result = match word.as_deref() {
            None => control::call(&ctl, code, &mut arg),
            Some("@bad") => sys::ioctl_word(&ctl, code, WILD),
            Some("@kernel") => sys::ioctl_word(&ctl, code, KERNEL),
            Some("@null") => sys::ioctl_word(&ctl, code, 0),
            Some(w) => bail!("arg={w}"),
        };
        Ok((result, arg))
    }
}

/// Makes the call and prints how it ended. Fails only when the call could not be made at all.
pub fn run(name: &str, list: &[String]) -> Result<()> {
    let mut a = Args::parse(list)?;
    let result = match name {
        "setup" => {
            let p = abi::SetupParams {
                bdev: a.path("bdev")?,
                cow: a.path("cow")?,
                fallocated_space: a.number("falloc")?,
                cache_size: a.number("cache")?,
                minor: a.number("minor")? as u32,
                _pad: 0,
            };
            a.call(abi::SETUP_SNAP, p)?.0
        }
        "reload-snap" | "reload-inc" => {
            let p = abi::ReloadParams {
                bdev: a.path("bdev")?,
                cow: a.path("cow")?,
                cache_size: a.number("cache")?,
                minor: a.number("minor")? as u32,
                _pad: 0,
            };
            let code = if name == "reload-snap" {
                abi::RELOAD_SNAP
            } else {
                abi::RELOAD_INC
            };
            a.call(code, p)?.0
        }
        "destroy" | "to-inc" => {
            let p = a.number("minor")? as u32;
            let code = if name == "destroy" {
                abi::DESTROY
            } else {
                abi::TRANSITION_INC
            };
            a.call(code, p)?.0
        }
        "to-snap" => {
            let p = abi::TransitionSnapParams {
                cow: a.path("cow")?,
                fallocated_space: a.number("falloc")?,
                minor: a.number("minor")? as u32,
                _pad: 0,
            };
            a.call(abi::TRANSITION_SNAP, p)?.0
        }
        "reconfigure" => {
            let p = abi::ReconfigureParams {
                cache_size: a.number("cache")?,
                minor: a.number("minor")? as u32,
                _pad: 0,
            };
            a.call(abi::RECONFIGURE, p)?.0
        }
        "info" => {
            let p = abi::Info::request(a.number("minor")? as u32);
            let (r, i) = a.call(abi::INFO, p)?;
            if r.is_ok() {
                print_info(&i);
            }
            r
        }
        "get-free" => {
            let (r, minor) = a.call(abi::GET_FREE, -1i32)?;
            if r.is_ok() {
                println!("minor={minor}");
            }
            r
        }
        "expand" => {
            let p = abi::ExpandParams {
                size: a.number("size")?,
                minor: a.number("minor")? as u32,
                _pad: 0,
            };
            a.call(abi::EXPAND_COW_FILE, p)?.0
        }
        "auto-expand" => {
            let p = abi::AutoExpandParams {
                step_size: a.number("step")?,
                reserved_space: a.number("reserve")?,
                minor: a.number("minor")? as u32,
                _pad: 0,
            };
            a.call(abi::RECONFIGURE_AUTO_EXPAND, p)?.0
        }
        "drop" => {
            let minor = a.number("minor")? as u32;
            let size = match a.number("struct")? as u32 {
                0 => size_of::<abi::DropSnapshotParams>() as u32,
                n => n,
            };
            a.call(abi::DROP_SNAPSHOT, abi::DropSnapshotParams { size, minor })?
                .0
        }
        "release" => {
            let minor = a.number("minor")? as u32;
            let size = size_of::<abi::ReleaseParams>() as u32;
            a.call(abi::RELEASE, abi::ReleaseParams { size, minor })?.0
        }
        "status" => {
            let minor = a.number("minor")? as u32;
            let size = match a.number("struct")? as u32 {
                0 => size_of::<abi::Status>() as u32,
                n => n,
            };
            let (r, s) = a.call(
                abi::STATUS,
                abi::Status {
                    size,
                    minor,
                    ..Default::default()
                },
            )?;
            if r.is_ok() {
                print_status(&s);
            }
            r
        }
        "extents" => {
            let mut room = [abi::Extent::default(); 16];
            let buffer = match a.fields.remove("buffer").as_deref() {
                None => room.as_mut_ptr() as u64,
                Some("@bad") => WILD,
                Some("@kernel") => KERNEL,
                Some(w) => bail!("buffer={w}"),
            };
            let size = match a.number("struct")? as u32 {
                0 => size_of::<abi::ExtentsParams>() as u32,
                n => n,
            };
            let p = abi::ExtentsParams {
                size,
                minor: a.number("minor")? as u32,
                kind: a.number("kind")? as u32,
                count: a.number("count")? as u32,
                start: a.number("start")?,
                extents: buffer,
            };
            ensure!(p.count as usize <= room.len(), "no room for so many");
            a.call(abi::EXTENTS, p)?.0
        }
        code => {
            let code = code.strip_prefix("0x").context("unknown call")?;
            let code = u32::from_str_radix(code, 16)?;
            ensure!(
                abi::ioc_size(code) <= 4096,
                "argument too large for the buffer"
            );
            a.call(code, ZeroPage([0; 512]))?.0
        }
    };
    println!("{}", result.map_or_else(errno::name, |()| "OK".into()));
    Ok(())
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ZeroPage([u64; 512]);

sys::plain!(ZeroPage);

fn text(b: &[u8]) -> String {
    let end = b.iter().position(|&x| x == 0).unwrap_or(b.len());
    String::from_utf8_lossy(&b[..end]).into_owned()
}

fn print_info(i: &abi::Info) {
    println!("minor={} state={} error={}", i.minor, i.state, i.error);
    println!(
        "cache_size={} falloc_size={} seqid={}",
        i.cache_size, i.falloc_size, i.seqid
    );
    println!("uuid={:032x}", u128::from_be_bytes(i.uuid));
    println!("cow={}", text(&i.cow));
    println!("bdev={}", text(&i.bdev));
    println!(
        "version={} nr_changed_blocks={}",
        i.version, i.nr_changed_blocks
    );
}

fn print_status(s: &abi::Status) {
    println!("state={} error={} flags={}", s.state, s.error, s.flags);
    println!("origin_bytes={} cow_bytes={}", s.origin_bytes, s.cow_bytes);
    println!(
        "cow_blocks_total={} cow_blocks_used={}",
        s.cow_blocks_total, s.cow_blocks_used
    );
    println!(
        "copy_memory_max={} copy_memory_used={}",
        s.copy_memory_max, s.copy_memory_used
    );
    println!("map_memory={} freeze_ns={}", s.map_memory, s.freeze_ns);
    println!("nr_changed_blocks={}", s.nr_changed_blocks);
    println!(
        "auto_expand_step={} auto_expand_reserve={}",
        s.auto_expand_step, s.auto_expand_reserve
    );
    println!(
        "writes_held={} discards_dropped={}",
        s.writes_held, s.discards_dropped
    );
    println!("crash_blocks={}", s.crash_blocks);
    println!(
        "index_memory={} index_on_disk={}",
        s.index_memory, s.index_on_disk
    );
    println!("cow_nonce={}", s.cow_nonce);
}
