// SPDX-License-Identifier: GPL-2.0-only
//! Stamped sectors: every 512 bytes say who wrote them, where, when and in which order.
//!
//! The targets (preallocated files, or ranges of the raw device) form one row of sectors. A chunk of
//! the row belongs to one thread, which writes to it one write after the other. Before a write its
//! record is put in the thread's log (outside the device under test), after it another one.
//! So for each thread there is one order of writes, and a snapshot, being one instant, must
//! show the state after the first m writes for some m, write m itself perhaps in part when it was
//! in flight: that is what [`verify`] checks, for every sector, besides `m` itself, which can
//! lie neither before the last write that had ended before the point nor behind the last one that
//! had begun when the point had passed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::libc;

use crate::mark::Window;
use crate::rng::{hash, mix, Rng};
use crate::sys::{self, AlignedBuf, SharedMap};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
const MAGIC: u64 = u64::from_le_bytes(*b"dbdSTAMP");
/// Sectors of a chunk: 256 KiB.
const CHUNK: u64 = 512;
/// Sectors of the longest write: 128 KiB.
const MAX_WRITE: u64 = 256;

/// How a target is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Direct,
    Buffered,
    Mmap,
    /// The device itself, O_DIRECT.
    Raw,
}

#[derive(Clone, Debug)]
struct Target {
    how: How,
    path: PathBuf,
    /// Byte offset in `path`.
    at: u64,
    sectors: u64,
    /// First sector in the row.
    first: u64,
}

/// Where sectors of the row lie on the device.
#[derive(Clone, Copy, Debug)]
struct Place {
    row: u64,
    device: u64,
    sectors: u64,
}

#[derive(Debug)]
struct Layout {
    threads: u64,
    targets: Vec<Target>,
    places: Vec<Place>,
}

impl Layout {
    fn sectors(&self) -> u64 {
        self.targets.iter().map(|t| t.sectors).sum()
    }

    fn owner(&self, sector: u64) -> u64 {
        (sector / CHUNK) % self.threads
    }

    fn target_of(&self, sector: u64) -> &Target {
        self.targets
            .iter()
            .find(|t| (t.first..t.first + t.sectors).contains(&sector))
            .expect("sector of the row")
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut out = format!("threads {}\n", self.threads);
        for t in &self.targets {
            out += &format!(
                "target {:?} {} {} {} {}\n",
                t.how,
                t.path.display(),
                t.at,
                t.sectors,
                t.first
            );
        }
        for p in &self.places {
            out += &format!("place {} {} {}\n", p.row, p.device, p.sectors);
        }
        std::fs::write(dir.join("layout"), out)?;
        Ok(())
    }

    fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("layout");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut out = Self {
            threads: 1,
            targets: Vec::new(),
            places: Vec::new(),
        };
        for line in text.lines() {
            let f: Vec<_> = line.split(' ').collect();
            match f[..] {
                ["threads", n] => out.threads = n.parse()?,
                ["target", how, path, at, sectors, first] => out.targets.push(Target {
                    how: match how {
                        "Direct" => How::Direct,
                        "Buffered" => How::Buffered,
                        "Mmap" => How::Mmap,
                        "Raw" => How::Raw,
                        _ => bail!("bad line {line:?}"),
                    },
                    path: path.into(),
                    at: at.parse()?,
                    sectors: sectors.parse()?,
                    first: first.parse()?,
                }),
                ["place", row, device, sectors] => out.places.push(Place {
                    row: row.parse()?,
                    device: device.parse()?,
                    sectors: sectors.parse()?,
                }),
                _ => bail!("bad line {line:?}"),
            }
        }
        Ok(out)
    }
}

fn word(b: &[u8], i: usize) -> u64 {
    u64::from_le_bytes(b[i * 8..i * 8 + 8].try_into().expect("8 bytes"))
}

fn set(b: &mut [u8], i: usize, v: u64) {
    b[i * 8..i * 8 + 8].copy_from_slice(&v.to_le_bytes());
}

/// Words: magic, sector, thread, sequence, time, filling that depends on all of them, checksum.
fn write_stamp(b: &mut [u8], sector: u64, thread: u64, seq: u64, time: u64) {
    set(b, 0, MAGIC);
    set(b, 1, sector);
    set(b, 2, thread);
    set(b, 3, seq);
    set(b, 4, time);
    let fill = mix(sector ^ (seq << 32) ^ (thread << 56));
    for i in 5..63 {
        set(b, i, fill.wrapping_mul(2 * i as u64 + 1));
    }
    let sum = hash(MAGIC, &b[..504]);
    set(b, 63, sum);
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Write { thread: u64, seq: u64 },
    Broken(&'static str),
}

fn read_stamp(b: &[u8], sector: u64) -> Found {
    if word(b, 0) != MAGIC {
        return Found::Broken(if b.iter().all(|&x| x == 0) {
            "zeros"
        } else {
            "no stamp"
        });
    }
    if word(b, 63) != hash(MAGIC, &b[..504]) {
        return Found::Broken("bad checksum");
    }
    if word(b, 1) != sector {
        return Found::Broken("another sector's stamp");
    }
    Found::Write {
        thread: word(b, 2),
        seq: word(b, 3),
    }
}

/// One write of a thread, as its log tells it.
#[derive(Clone, Copy, Debug)]
struct Record {
    sector: u64,
    sectors: u64,
    begin: u64,
    /// `u64::MAX`: not known to have ended.
    end: u64,
}

const RECORD: usize = 40;
const BEGIN: u64 = 1;
const END: u64 = 2;

fn put_record(log: &mut File, kind: u64, seq: u64, sector: u64, sectors: u64) -> Result<()> {
    let mut b = [0; RECORD];
    for (i, v) in [kind, seq, sector, sectors, sys::now()]
        .into_iter()
        .enumerate()
    {
        set(&mut b, i, v);
    }
    log.write_all(&b).context("write the model log")
}

/// Writes 1, 2, … of a thread; a record that is being written just now is left out.
fn load_log(dir: &Path, thread: u64) -> Result<Vec<Record>> {
    let path = dir.join(format!("log.{thread}"));
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let mut out: Vec<Record> = Vec::new();
    for b in bytes.chunks_exact(RECORD) {
        let seq = word(b, 1) as usize;
        match word(b, 0) {
            BEGIN => {
                ensure!(
                    seq == out.len() + 1,
                    "{}: write {seq} out of order",
                    path.display()
                );
                out.push(Record {
                    sector: word(b, 2),
                    sectors: word(b, 3),
                    begin: word(b, 4),
                    end: u64::MAX,
                });
            }
            END => {
                ensure!(
                    seq == out.len(),
                    "{}: end of {seq} out of order",
                    path.display()
                );
                out[seq - 1].end = word(b, 4);
            }
            k => bail!("{}: record of kind {k}", path.display()),
        }
    }
    Ok(out)
}

/// Lays out targets, writes the first stamp (sequence 0) everywhere and saves the layout.
///
/// A target is `direct:PATH:BYTES`, `buffered:PATH:BYTES`, `mmap:PATH:BYTES` (files, created) or
/// `raw:DEVICE:OFFSET:BYTES`.
pub fn init(dir: &Path, threads: u64, targets: &[String]) -> Result<()> {
    ensure!(threads > 0 && threads < 256, "1 to 255 threads");
    std::fs::create_dir_all(dir)?;
    let mut layout = Layout {
        threads,
        targets: Vec::new(),
        places: Vec::new(),
    };
    let mut first = 0;
    for spec in targets {
        let f: Vec<_> = spec.split(':').collect();
        let (how, path, at, bytes) = match f[..] {
            ["direct", p, n] => (How::Direct, p, "0", n),
            ["buffered", p, n] => (How::Buffered, p, "0", n),
            ["mmap", p, n] => (How::Mmap, p, "0", n),
            ["raw", p, at, n] => (How::Raw, p, at, n),
            _ => bail!("bad target {spec:?}"),
        };
        let sectors = parse_size(bytes)? / SECTOR as u64 / CHUNK * CHUNK;
        ensure!(sectors > 0, "{spec:?} is smaller than a chunk");
        let t = Target {
            how,
            path: path.into(),
            at: parse_size(at)?,
            sectors,
            first,
        };
        first_stamps(&t, &layout)?;
        layout.places.extend(places(&t)?);
        layout.targets.push(t);
        first += sectors;
    }
    for n in 0..threads {
        File::create(dir.join(format!("log.{n}")))?;
    }
    layout.save(dir)?;
    println!(
        "stamped {} sectors of {} targets",
        layout.sectors(),
        layout.targets.len()
    );
    Ok(())
}

fn first_stamps(t: &Target, layout: &Layout) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).read(true);
    if t.how != How::Raw {
        options.create(true).truncate(true);
    } else {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options
        .open(&t.path)
        .with_context(|| format!("open {}", t.path.display()))?;
    let mut buf = AlignedBuf::new(CHUNK as usize * SECTOR);
    for chunk in 0..t.sectors / CHUNK {
        for i in 0..CHUNK {
            let s = t.first + chunk * CHUNK + i;
            let b = &mut buf[i as usize * SECTOR..][..SECTOR];
            write_stamp(b, s, layout.owner(s), 0, 0);
        }
        file.write_all_at(&buf, t.at + chunk * CHUNK * SECTOR as u64)
            .with_context(|| format!("fill {}", t.path.display()))?;
    }
    file.sync_all()?;
    Ok(())
}

fn places(t: &Target) -> Result<Vec<Place>> {
    let sector = SECTOR as u64;
    if t.how == How::Raw {
        return Ok(vec![Place {
            row: t.first,
            device: t.at / sector,
            sectors: t.sectors,
        }]);
    }
    let found = sys::file_places(&File::open(&t.path)?)
        .with_context(|| format!("where {} lies", t.path.display()))?;
    let out: Vec<_> = found
        .iter()
        .map(|p| Place {
            row: t.first + p.logical / sector,
            device: p.physical / sector,
            sectors: (p.len / sector).min(t.sectors.saturating_sub(p.logical / sector)),
        })
        .collect();
    let covered: u64 = out.iter().map(|p| p.sectors).sum();
    ensure!(covered == t.sectors, "{} has holes", t.path.display());
    Ok(out)
}

/// Reads `64M`, `4k` or plain bytes.
pub fn parse_size(text: &str) -> Result<u64> {
    let (digits, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_alphabetic()).len());
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => bail!("bad size {text:?}"),
    };
    let n: u64 = digits
        .parse()
        .with_context(|| format!("bad size {text:?}"))?;
    n.checked_mul(1 << shift)
        .with_context(|| format!("{text:?} is too large"))
}

/// Writes until `stop` is set or the time is over. Goes on where earlier logs ended.
pub fn run(
    dir: &Path,
    seed: u64,
    seconds: Option<u64>,
    pause_us: u64,
    stop: &AtomicBool,
) -> Result<()> {
    let layout = Layout::load(dir)?;
    let deadline = seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let written = AtomicU64::new(0);
    println!("seed {seed}");
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..layout.threads)
            .map(|n| {
                let (layout, written) = (&layout, &written);
                scope.spawn(move || {
                    let r = writer(dir, layout, n, seed, written, pause_us, || {
                        stop.load(Ordering::Relaxed)
                            || deadline.is_some_and(|d| Instant::now() >= d)
                    });
                    if r.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    r.with_context(|| format!("writer {n}"))
                })
            })
            .collect();
        for w in workers {
            w.join().expect("a writer panicked")?;
        }
        Ok(())
    })?;
    println!("wrote {} sectors", written.load(Ordering::Relaxed));
    Ok(())
}

struct OpenTarget {
    plain: File,
    /// O_DSYNC besides, so that writes carry FUA; for direct targets.
    durable: File,
    map: Option<SharedMap>,
    /// Sectors that a write's start and length must be a multiple of.
    unit: u64,
}

fn open_target(t: &Target) -> Result<OpenTarget> {
    let direct = matches!(t.how, How::Direct | How::Raw);
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let plain = sys::open_write(&t.path, flags)?;
    let durable = sys::open_write(&t.path, flags | libc::O_DSYNC)?;
    let unit = match t.how {
        How::Raw => sys::logical_block_size(&plain) / SECTOR as u64,
        How::Direct => direct_unit(&plain)?,
        _ => 1,
    };
    let map = match t.how {
        How::Mmap => Some(SharedMap::new(&plain, t.sectors as usize * SECTOR)?),
        _ => None,
    };
    Ok(OpenTarget {
        plain,
        durable,
        map,
        unit,
    })
}

/// 512-byte units where the filesystem takes such a direct write, else 4096.
fn direct_unit(file: &File) -> Result<u64> {
    let mut buf = AlignedBuf::new(SECTOR);
    match file.read_exact_at(&mut buf, SECTOR as u64) {
        Ok(()) => Ok(1),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(8),
        Err(e) => Err(e).context("a direct read of one sector"),
    }
}

fn writer(
    dir: &Path,
    layout: &Layout,
    thread: u64,
    seed: u64,
    written: &AtomicU64,
    pause_us: u64,
    over: impl Fn() -> bool,
) -> Result<()> {
    let mut seq = load_log(dir, thread)?.len() as u64;
    let mut log = OpenOptions::new()
        .append(true)
        .open(dir.join(format!("log.{thread}")))?;
    let mut rng = Rng::new(seed ^ (thread << 48) ^ seq);
    let mut open = layout
        .targets
        .iter()
        .map(open_target)
        .collect::<Result<Vec<_>>>()?;
    let mut buf = AlignedBuf::new(MAX_WRITE as usize * SECTOR);
    let chunks = layout.sectors() / CHUNK;
    let own = (chunks + layout.threads - 1 - thread) / layout.threads;
    ensure!(own > 0, "no chunk for this thread");
    while !over() {
        let chunk = rng.below(own) * layout.threads + thread;
        let target = layout.target_of(chunk * CHUNK);
        let n = layout
            .targets
            .iter()
            .position(|t| t.first == target.first)
            .expect("a target");
        let unit = open[n].unit;
        // Small writes are the common case; they make the interesting races.
        let most = if rng.one_in(4) { MAX_WRITE } else { 16 };
        let sectors = (1 + rng.below(most)).div_ceil(unit) * unit;
        let start = chunk * CHUNK + rng.below((CHUNK - sectors) / unit + 1) * unit;
        seq += 1;
        let bytes = sectors as usize * SECTOR;
        let time = sys::now();
        for i in 0..sectors {
            let b = &mut buf[i as usize * SECTOR..][..SECTOR];
            write_stamp(b, start + i, thread, seq, time);
        }
        put_record(&mut log, BEGIN, seq, start, sectors)?;
        let at = target.at + (start - target.first) * SECTOR as u64;
        match target.how {
            How::Mmap => {
                let map = open[n].map.as_mut().expect("mapped");
                map.store((start - target.first) as usize * SECTOR, &buf[..bytes]);
            }
            _ => {
                let f = if rng.one_in(8) {
                    &open[n].durable
                } else {
                    &open[n].plain
                };
                f.write_all_at(&buf[..bytes], at)
                    .with_context(|| format!("write {} at {at}", target.path.display()))?;
            }
        }
        put_record(&mut log, END, seq, start, sectors)?;
        written.fetch_add(sectors, Ordering::Relaxed);
        if matches!(target.how, How::Buffered | How::Mmap) && rng.one_in(64) {
            open[n].plain.sync_data()?;
        }
        if pause_us > 0 {
            std::thread::sleep(Duration::from_micros(rng.below(2 * pause_us)));
        }
    }
    Ok(())
}

/// Checks every stamped sector of a snapshot or image against the logs.
///
/// `window`: when the snapshot was taken; without it the writers must have stopped, and all they
/// wrote must be there. Returns the number of errors.
pub fn verify(dir: &Path, device: &Path, window: Option<Window>) -> Result<u64> {
    let layout = Layout::load(dir)?;
    let logs = (0..layout.threads)
        .map(|n| load_log(dir, n))
        .collect::<Result<Vec<_>>>()?;
    let w = window.unwrap_or(Window {
        begin: u64::MAX - 1,
        end: u64::MAX,
    });
    let file = sys::open_read(device, 0)?;
    let mut report = Report::default();

    // What is there: the sequence number of every sector, or that it has no valid stamp.
    let mut found: Vec<Option<u64>> = vec![None; layout.sectors() as usize];
    let mut broken: Vec<(u64, &'static str)> = Vec::new();
    let mut buf = vec![0; CHUNK as usize * SECTOR];
    for p in &layout.places {
        let mut done = 0;
        while done < p.sectors {
            let n = CHUNK.min(p.sectors - done);
            let part = &mut buf[..n as usize * SECTOR];
            file.read_exact_at(part, (p.device + done) * SECTOR as u64)
                .with_context(|| {
                    format!("read {} at sector {}", device.display(), p.device + done)
                })?;
            for (i, b) in part.chunks_exact(SECTOR).enumerate() {
                let sector = p.row + done + i as u64;
                let owner = layout.owner(sector);
                match read_stamp(b, sector) {
                    Found::Write { thread, seq } if thread == owner => {
                        found[sector as usize] = Some(seq);
                    }
                    Found::Write { .. } => broken.push((sector, "another thread's stamp")),
                    Found::Broken(why) => broken.push((sector, why)),
                }
            }
            done += n;
        }
    }

    // The number of writes that each thread's part of the snapshot holds.
    let mut last = vec![0; layout.threads as usize];
    for (sector, seq) in found.iter().enumerate() {
        if let Some(seq) = *seq {
            let owner = layout.owner(sector as u64) as usize;
            if seq as usize > logs[owner].len() {
                report.error(format!(
                    "row sector {sector}: write {seq} is not in the log"
                ));
            } else {
                last[owner] = seq.max(last[owner]);
            }
        }
    }
    let mut in_flight = 0;
    // Newest write up to `last` of each sector, and the newest one before write `last` itself.
    let mut want = vec![0u64; found.len()];
    let mut before = vec![0u64; found.len()];
    for (n, log) in logs.iter().enumerate() {
        let m = last[n];
        let complete = log.iter().take_while(|r| r.end <= w.begin).count() as u64;
        if m < complete {
            report.error(format!(
                "thread {n}: the newest write found is {m}, but write {complete} had ended before \
                 the point: writes are missing"
            ));
        }
        if m > 0 && log[m as usize - 1].begin > w.end {
            report.error(format!(
                "thread {n}: write {m} is found, but it began {} us after the point had passed: \
                 the snapshot is not stable",
                (log[m as usize - 1].begin - w.end) / 1000
            ));
        }
        for (i, r) in log.iter().enumerate().take(m as usize) {
            let seq = i as u64 + 1;
            for s in r.sector..r.sector + r.sectors {
                want[s as usize] = seq;
                if seq < m {
                    before[s as usize] = seq;
                }
            }
        }
        if m > complete {
            in_flight += 1;
        }
    }
    for (sector, seq) in found.iter().enumerate() {
        let owner = layout.owner(sector as u64) as usize;
        let m = last[owner];
        let torn = m > 0 && logs[owner][m as usize - 1].end > w.begin;
        if let Some(seq) = *seq {
            let ok = seq == want[sector] || (torn && seq == before[sector]);
            if !ok {
                report.error(format!(
                    "row sector {sector} (device sector {}): holds write {seq} of thread {owner}, \
                     the snapshot ends with write {m} and this sector's newest is {}",
                    layout.device_sector(sector as u64),
                    want[sector]
                ));
            }
        }
    }
    for (sector, why) in broken {
        let owner = layout.owner(sector) as usize;
        // A store into a mapping can be cut anywhere, also inside a sector.
        let cut = layout.target_of(sector).how == How::Mmap
            && [last[owner], last[owner] + 1].into_iter().any(|m| {
                m > 0
                    && logs[owner].get(m as usize - 1).is_some_and(|r| {
                        (r.sector..r.sector + r.sectors).contains(&sector)
                            && r.end > w.begin
                            && r.begin <= w.end
                    })
            });
        if !cut {
            report.error(format!(
                "row sector {sector} (device sector {}): {why}",
                layout.device_sector(sector)
            ));
        }
    }
    let writes: u64 = last.iter().sum();
    println!(
        "{}: {} sectors hold the first {writes} writes of {} threads ({in_flight} with a write in \
         flight at the point), {} errors",
        device.display(),
        found.len(),
        layout.threads,
        report.errors
    );
    Ok(report.errors)
}

impl Layout {
    fn device_sector(&self, row: u64) -> u64 {
        self.places
            .iter()
            .find(|p| (p.row..p.row + p.sectors).contains(&row))
            .map_or(u64::MAX, |p| p.device + row - p.row)
    }
}

#[derive(Default)]
struct Report {
    errors: u64,
}

impl Report {
    fn error(&mut self, text: String) {
        self.errors += 1;
        match self.errors {
            1..=10 => eprintln!("stamp: {text}"),
            11 => eprintln!("stamp: more of the same"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("stamp-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A "device" that is a plain file, written with O_DIRECT where the filesystem can.
    fn device(dir: &Path) -> PathBuf {
        let path = dir.join("device");
        File::create(&path).unwrap().set_len(8 << 20).unwrap();
        path
    }

    fn setup(name: &str) -> (PathBuf, PathBuf, PathBuf) {
        let dir = scratch(name);
        let dev = device(&dir);
        let log = dir.join("log");
        init(&log, 3, &[format!("raw:{}:1M:4M", dev.display())]).unwrap();
        run(&log, 7, Some(1), 0, &AtomicBool::new(false)).unwrap();
        (dir, dev, log)
    }

    #[test]
    fn a_finished_run_verifies_and_damage_is_found() {
        let (dir, dev, log) = setup("plain");
        assert_eq!(verify(&log, &dev, None).unwrap(), 0);
        let f = sys::open_write(&dev, 0).unwrap();
        f.write_all_at(b"x", (1 << 20) + 777).unwrap();
        assert_eq!(verify(&log, &dev, None).unwrap(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_lost_write_and_a_late_write_are_found() {
        let (dir, dev, log) = setup("late");
        // The point lies before the run: what the run wrote must not be there. Any thread may be the first.
        let begin = (0..3)
            .map(|thread| load_log(&log, thread).unwrap()[0].begin)
            .min()
            .unwrap();
        let early = Window {
            begin: begin - 10,
            end: begin - 5,
        };
        assert!(verify(&log, &dev, Some(early)).unwrap() > 0);
        // Put the first stamps back: every completed write is missing.
        let layout = Layout::load(&log).unwrap();
        first_stamps(&layout.targets[0], &layout).unwrap();
        assert!(verify(&log, &dev, None).unwrap() > 0);
        assert_eq!(verify(&log, &dev, Some(early)).unwrap(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn one_stale_sector_is_found() {
        let (dir, dev, log) = setup("stale");
        let layout = Layout::load(&log).unwrap();
        let r = *load_log(&log, 1).unwrap().iter().rev().nth(3).unwrap();
        let mut b = [0; SECTOR];
        write_stamp(&mut b, r.sector, layout.owner(r.sector), 0, 0);
        let at = (1 << 20) + r.sector * SECTOR as u64;
        sys::open_write(&dev, 0)
            .unwrap()
            .write_all_at(&b, at)
            .unwrap();
        assert_eq!(verify(&log, &dev, None).unwrap(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
