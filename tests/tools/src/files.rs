// SPDX-License-Identifier: GPL-2.0-only
//! A busy user of a filesystem that keeps its own log of what it did, and the check against it.
//!
//! Every thread has a directory of its own and does one thing after the other in it: create,
//! append, overwrite, truncate, replace (by rename), rename, delete, with and without fsync. Before an
//! operation its line is put in the log (kept outside the device under test), behind it another one.
//! A snapshot freezes the filesystem, so it must show the state after the first k operations
//! for some k: all that had ended before the point are in it, none that began after it. One that was
//! under way may be there in part. Contents follow from a number in the log, so the
//! log is a complete model of the files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::mark::Window;
use crate::rng::{mix, Rng};
use crate::sys;

const DIRS: u64 = 4;
/// Longest file, in bytes.
const LONGEST: u64 = 192 << 10;

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Create {
        file: u64,
        gen: u64,
        len: u64,
    },
    Append {
        file: u64,
        gen: u64,
        len: u64,
    },
    Overwrite {
        file: u64,
        gen: u64,
        at: u64,
        len: u64,
    },
    Truncate {
        file: u64,
        len: u64,
    },
    Replace {
        file: u64,
        gen: u64,
        len: u64,
    },
    Rename {
        file: u64,
        to: u64,
    },
    Delete {
        file: u64,
    },
}

impl Op {
    fn line(self) -> String {
        match self {
            Op::Create { file, gen, len } => format!("create {file} {gen} {len}"),
            Op::Append { file, gen, len } => format!("append {file} {gen} {len}"),
            Op::Overwrite { file, gen, at, len } => format!("overwrite {file} {gen} {at} {len}"),
            Op::Truncate { file, len } => format!("truncate {file} {len}"),
            Op::Replace { file, gen, len } => format!("replace {file} {gen} {len}"),
            Op::Rename { file, to } => format!("rename {file} {to}"),
            Op::Delete { file } => format!("delete {file}"),
        }
    }

    fn parse(words: &[&str]) -> Result<Self> {
        let n = words[1..]
            .iter()
            .map(|w| w.parse())
            .collect::<Result<Vec<u64>, _>>()?;
        Ok(match (words[0], &n[..]) {
            ("create", &[file, gen, len]) => Op::Create { file, gen, len },
            ("append", &[file, gen, len]) => Op::Append { file, gen, len },
            ("overwrite", &[file, gen, at, len]) => Op::Overwrite { file, gen, at, len },
            ("truncate", &[file, len]) => Op::Truncate { file, len },
            ("replace", &[file, gen, len]) => Op::Replace { file, gen, len },
            ("rename", &[file, to]) => Op::Rename { file, to },
            ("delete", &[file]) => Op::Delete { file },
            _ => bail!("unknown operation {words:?}"),
        })
    }

    /// The files whose state it may change.
    fn touches(self) -> Vec<u64> {
        match self {
            Op::Rename { file, to } => vec![file, to],
            Op::Create { file, .. }
            | Op::Append { file, .. }
            | Op::Overwrite { file, .. }
            | Op::Truncate { file, .. }
            | Op::Replace { file, .. }
            | Op::Delete { file } => vec![file],
        }
    }
}

fn content(gen: u64, at: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len as usize + 16);
    let mut word = at / 8;
    while out.len() < (len + at % 8) as usize {
        out.extend_from_slice(&mix(gen ^ (word << 24)).to_le_bytes());
        word += 1;
    }
    out.drain(..(at % 8) as usize);
    out.truncate(len as usize);
    out
}

/// What the files of a thread hold.
#[derive(Clone, Debug, Default)]
struct Model {
    files: Files,
}

impl Model {
    fn apply(&mut self, op: Op) -> Result<()> {
        let lost = || format!("{op:?} of a file that the log does not know");
        match op {
            Op::Create { file, gen, len } | Op::Replace { file, gen, len } => {
                self.files.insert(file, content(gen, 0, len));
            }
            Op::Append { file, gen, len } => {
                let f = self.files.get_mut(&file).with_context(lost)?;
                f.extend(content(gen, f.len() as u64, len));
            }
            Op::Overwrite { file, gen, at, len } => {
                let f = self.files.get_mut(&file).with_context(lost)?;
                f[at as usize..(at + len) as usize].copy_from_slice(&content(gen, at, len));
            }
            Op::Truncate { file, len } => {
                self.files
                    .get_mut(&file)
                    .with_context(lost)?
                    .truncate(len as usize);
            }
            Op::Rename { file, to } => {
                let f = self.files.remove(&file).with_context(lost)?;
                self.files.insert(to, f);
            }
            Op::Delete { file } => {
                self.files.remove(&file).with_context(lost)?;
            }
        }
        Ok(())
    }
}

fn name(file: u64) -> String {
    format!("d{}/f{file}", file % DIRS)
}

fn perform(dir: &Path, op: Op, old_len: u64, sync: bool) -> Result<()> {
    let path = |f: u64| dir.join(name(f));
    let put = |file: &File, gen: u64, at: u64, len: u64| -> Result<()> {
        // In pieces, so that a snapshot can fall between them.
        let mut done = 0;
        while done < len {
            let n = (len - done).min(32 << 10);
            file.write_all_at(&content(gen, at + done, n), at + done)?;
            done += n;
        }
        if sync {
            file.sync_all()?;
        }
        Ok(())
    };
    match op {
        Op::Create { file, gen, len } => {
            let f = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path(file))?;
            put(&f, gen, 0, len)?;
        }
        Op::Append { file, gen, len } => {
            put(
                &OpenOptions::new().write(true).open(path(file))?,
                gen,
                old_len,
                len,
            )?;
        }
        Op::Overwrite { file, gen, at, len } => {
            put(
                &OpenOptions::new().write(true).open(path(file))?,
                gen,
                at,
                len,
            )?;
        }
        Op::Truncate { file, len } => {
            OpenOptions::new()
                .write(true)
                .open(path(file))?
                .set_len(len)?;
        }
        Op::Replace { file, gen, len } => {
            let new = dir.join("new");
            put(&File::create(&new)?, gen, 0, len)?;
            std::fs::rename(&new, path(file))?;
        }
        Op::Rename { file, to } => std::fs::rename(path(file), path(to))?,
        Op::Delete { file } => std::fs::remove_file(path(file))?,
    }
    Ok(())
}

/// Starts from empty directories below `dir` and works until told to stop.
pub fn run(
    log: &Path,
    dir: &Path,
    threads: u64,
    seed: u64,
    seconds: Option<u64>,
    pause_us: u64,
    stop: &AtomicBool,
) -> Result<()> {
    std::fs::create_dir_all(log)?;
    std::fs::write(log.join("threads"), threads.to_string())?;
    println!("seed {seed}");
    let deadline = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|n| {
                scope.spawn(move || {
                    let over = || {
                        stop.load(Ordering::Relaxed)
                            || deadline.is_some_and(|d| Instant::now() >= d)
                    };
                    let r = worker(log, &dir.join(format!("t{n}")), n, seed, pause_us, over);
                    if r.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    r.with_context(|| format!("file writer {n}"))
                })
            })
            .collect();
        let mut ops = 0;
        for h in all {
            ops += h.join().expect("a writer panicked")?;
        }
        println!("{ops} operations");
        Ok(())
    })
}

fn worker(
    log: &Path,
    dir: &Path,
    thread: u64,
    seed: u64,
    pause_us: u64,
    over: impl Fn() -> bool,
) -> Result<u64> {
    for d in 0..DIRS {
        std::fs::create_dir_all(dir.join(format!("d{d}")))?;
    }
    let mut log = File::create(log.join(format!("ops.{thread}")))?;
    let mut rng = Rng::new(seed ^ (thread << 48));
    let mut model: BTreeMap<u64, u64> = BTreeMap::new(); // file -> length
    let (mut next, mut done) = (0, 0u64);
    while !over() {
        let gen = rng.number() >> 8;
        let some = model
            .keys()
            .copied()
            .nth(rng.below(model.len().max(1) as u64) as usize);
        let small = |rng: &mut Rng| {
            if rng.one_in(8) {
                rng.below(LONGEST)
            } else {
                rng.below(16384)
            }
        };
        let op = match (rng.below(10), some) {
            (_, None) => None,
            (0..=2, _) if model.len() < 150 => None,
            (0..=3, Some(file)) => Some(Op::Overwrite {
                file,
                gen,
                at: 0,
                len: 0,
            }),
            (4, Some(file)) => Some(Op::Append {
                file,
                gen,
                len: small(&mut rng),
            }),
            (5, Some(file)) => Some(Op::Truncate {
                file,
                len: rng.below(model[&file] + 1),
            }),
            (6, Some(file)) => Some(Op::Replace {
                file,
                gen,
                len: small(&mut rng),
            }),
            (7, Some(file)) => Some(Op::Rename { file, to: next }),
            (_, Some(file)) if model.len() > 100 => Some(Op::Delete { file }),
            (_, Some(file)) => Some(Op::Overwrite {
                file,
                gen,
                at: 0,
                len: 0,
            }),
        };
        let op = match op {
            None => Op::Create {
                file: next,
                gen,
                len: small(&mut rng),
            },
            Some(Op::Overwrite { file, gen, .. }) => {
                let at = rng.below(model[&file] + 1);
                Op::Overwrite {
                    file,
                    gen,
                    at,
                    len: rng.below(model[&file] - at + 1),
                }
            }
            Some(Op::Append { file, gen, len }) => Op::Append {
                file,
                gen,
                len: len.min(LONGEST - model[&file].min(LONGEST)),
            },
            Some(op) => op,
        };
        let sync = rng.one_in(6);
        log.write_all(
            format!("B {done} {} {} {}\n", sys::now(), u8::from(sync), op.line()).as_bytes(),
        )?;
        let old_len = model.get(&op.touches()[0]).copied().unwrap_or(0);
        perform(dir, op, old_len, sync)
            .with_context(|| format!("{} in {}", op.line(), dir.display()))?;
        log.write_all(format!("E {done} {}\n", sys::now()).as_bytes())?;
        done += 1;
        match op {
            Op::Create { file, len, .. } => {
                model.insert(file, len);
                next += 1;
            }
            Op::Replace { file, len, .. } | Op::Truncate { file, len } => {
                model.insert(file, len);
            }
            Op::Append { file, len, .. } => *model.get_mut(&file).expect("known") += len,
            Op::Overwrite { .. } => {}
            Op::Rename { file, to } => {
                let len = model.remove(&file).expect("known");
                model.insert(to, len);
                next += 1;
            }
            Op::Delete { file } => {
                model.remove(&file);
            }
        }
        if pause_us > 0 {
            std::thread::sleep(Duration::from_micros(rng.below(2 * pause_us)));
        }
    }
    Ok(done)
}

struct Entry {
    op: Op,
    sync: bool,
    begin: u64,
    end: u64,
}

fn load(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut out: Vec<Entry> = Vec::new();
    for line in text.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else {
            break;
        };
        let w: Vec<_> = line.split(' ').collect();
        match w[..] {
            ["B", _, time, sync, ..] => out.push(Entry {
                op: Op::parse(&w[4..])?,
                sync: sync == "1",
                begin: time.parse()?,
                end: u64::MAX,
            }),
            ["E", n, time] => {
                let n: usize = n.parse()?;
                ensure!(
                    n + 1 == out.len(),
                    "{}: end of {n} out of order",
                    path.display()
                );
                out[n].end = time.parse()?;
            }
            _ => bail!("{}: bad line {line:?}", path.display()),
        }
    }
    Ok(out)
}

/// Contents of files by number.
type Files = BTreeMap<u64, Vec<u8>>;

/// Everything below a thread's directory; apart from it the file that a replacement is written to.
fn scan(dir: &Path) -> Result<(Files, Option<Vec<u8>>)> {
    let (mut files, mut new) = (BTreeMap::new(), None);
    let mut names = vec![];
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((files, new)),
        Err(e) => return Err(e).with_context(|| format!("list {}", dir.display())),
        Ok(list) => {
            for e in list {
                let p = e?.path();
                if p.is_dir() {
                    for e in std::fs::read_dir(&p)? {
                        names.push(e?.path());
                    }
                } else {
                    names.push(p);
                }
            }
        }
    }
    for p in names {
        let rel = p.strip_prefix(dir)?.to_string_lossy().into_owned();
        let bytes = std::fs::read(&p).with_context(|| format!("read {}", p.display()))?;
        let number = rel.split_once("/f").and_then(|(_, n)| n.parse().ok());
        match number {
            Some(n) if name(n) == rel => {
                files.insert(n, bytes);
            }
            _ if rel == "new" => new = Some(bytes),
            _ => bail!("{} is no file of the writer", p.display()),
        }
    }
    Ok((files, new))
}

/// Whether a file is in a state that an operation under way can have left.
fn partly(op: Op, old: Option<&Vec<u8>>, new: Option<&Vec<u8>>, is: Option<&Vec<u8>>) -> bool {
    let Some(is) = is else {
        // A rename between two directories may show neither or both only if torn: not allowed.
        return matches!(op, Op::Create { .. }) || is == old || is == new;
    };
    match (op, old, new) {
        (Op::Create { .. }, _, Some(new)) => new.starts_with(is),
        (Op::Append { .. }, Some(old), Some(new)) => is.len() >= old.len() && new.starts_with(is),
        (Op::Overwrite { .. }, Some(old), Some(new)) => {
            is.len() == old.len()
                && is
                    .iter()
                    .zip(old)
                    .zip(new)
                    .all(|((i, o), n)| i == o || i == n)
        }
        _ => Some(is) == old || Some(is) == new,
    }
}

/// Compares the files below `dir` with the log; returns the number of errors.
pub fn check(log: &Path, dir: &Path, window: Option<Window>) -> Result<u64> {
    let threads: u64 = std::fs::read_to_string(log.join("threads"))?
        .trim()
        .parse()?;
    let w = window.unwrap_or(Window {
        begin: u64::MAX - 1,
        end: u64::MAX,
    });
    let (mut errors, mut total, mut synced) = (0, 0, 0);
    for n in 0..threads {
        let ops = load(&log.join(format!("ops.{n}")))?;
        let (is, new) = scan(&dir.join(format!("t{n}")))?;
        synced += ops.iter().filter(|e| e.sync && e.end <= w.begin).count();
        total += is.len();
        match check_thread(&ops, &is, new.as_ref(), w) {
            Ok(text) => println!("thread {n}: {} files, {text}", is.len()),
            Err(e) => {
                errors += 1;
                eprintln!("files: thread {n}: {e:#}");
            }
        }
    }
    println!(
        "{}: {total} files of {threads} writers checked against the log ({synced} fsynced \
         operations before the point), {errors} errors",
        dir.display()
    );
    Ok(errors)
}

fn check_thread(ops: &[Entry], is: &Files, new: Option<&Vec<u8>>, w: Window) -> Result<String> {
    let complete = ops.iter().take_while(|e| e.end <= w.begin).count();
    let begun = ops.iter().take_while(|e| e.begin <= w.end).count();
    let mut model = Model::default();
    for e in &ops[..complete] {
        model.apply(e.op)?;
    }
    // Files that are not as the model has them, kept up to date operation by operation.
    let mut wrong: BTreeSet<u64> = model
        .files
        .keys()
        .chain(is.keys())
        .copied()
        .filter(|f| model.files.get(f) != is.get(f))
        .collect();
    let first_wrong = wrong.clone();
    for k in complete..=begun {
        let next = ops.get(k).filter(|_| k < begun).map(|e| e.op);
        if wrong.is_empty() && (new.is_none() || matches!(next, Some(Op::Replace { .. }))) {
            if let (Some(Op::Replace { gen, len, .. }), Some(new)) = (next, new) {
                ensure!(
                    content(gen, 0, len).starts_with(new),
                    "the file \"new\" has wrong content"
                );
            }
            return Ok(format!(
                "state after {k} operations ({complete} had ended before the point, {} more had \
                 begun before its end)",
                begun - complete
            ));
        }
        let Some(op) = next else { break };
        let before = model.clone_files(&op.touches());
        model.apply(op)?;
        let touched = op.touches();
        if wrong.iter().all(|f| touched.contains(f)) {
            let all = touched.iter().all(|f| {
                partly(
                    op,
                    before.get(f).and_then(Option::as_ref),
                    model.files.get(f),
                    is.get(f),
                )
            });
            // A rename is one step: old name and new name change together.
            let whole = !matches!(op, Op::Rename { .. });
            if all && whole && new.is_none() {
                return Ok(format!(
                    "state after {k} operations and part of the next ({})",
                    op.line()
                ));
            }
        }
        for f in touched {
            if model.files.get(&f) == is.get(&f) {
                wrong.remove(&f);
            } else {
                wrong.insert(f);
            }
        }
    }
    let show = |set: &BTreeSet<u64>| {
        set.iter()
            .take(5)
            .map(|f| {
                let known = ops[..begun]
                    .iter()
                    .rev()
                    .find(|e| e.op.touches().contains(f));
                format!(
                    "{} ({} bytes found; last in the log: {})",
                    name(*f),
                    is.get(f).map_or("no".to_string(), |b| b.len().to_string()),
                    known.map_or("never".to_string(), |e| e.op.line())
                )
            })
            .collect::<Vec<_>>()
            .join("; ")
    };
    bail!(
        "no state between operation {complete} and {begun} fits. {} files differ from the state \
         after {complete}: {}. {} differ from the state after {begun}: {}",
        first_wrong.len(),
        show(&first_wrong),
        wrong.len(),
        show(&wrong)
    )
}

impl Model {
    fn clone_files(&self, files: &[u64]) -> BTreeMap<u64, Option<Vec<u8>>> {
        files
            .iter()
            .map(|f| (*f, self.files.get(f).cloned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_match_the_log_and_damage_is_found() {
        let dir = std::env::temp_dir().join(format!("files-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (log, data) = (dir.join("log"), dir.join("data"));
        run(&log, &data, 2, 3, Some(1), 0, &AtomicBool::new(false)).unwrap();
        assert_eq!(check(&log, &data, None).unwrap(), 0);
        // A point before anything was done: every file is one too many.
        assert_eq!(
            check(&log, &data, Some(Window { begin: 0, end: 1 })).unwrap(),
            2
        );
        let some = std::fs::read_dir(data.join("t0/d1"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let mut bytes = std::fs::read(&some).unwrap();
        bytes.push(1);
        std::fs::write(&some, &bytes).unwrap();
        assert_eq!(check(&log, &data, None).unwrap(), 1);
        bytes.pop();
        std::fs::write(&some, &bytes).unwrap();
        assert_eq!(check(&log, &data, None).unwrap(), 0);
        std::fs::write(data.join("t1/d0/f1000000"), "").unwrap();
        assert_eq!(check(&log, &data, None).unwrap(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn content_does_not_depend_on_the_pieces() {
        let all = content(5, 0, 1000);
        assert_eq!(all[13..713], content(5, 13, 700));
    }
}
