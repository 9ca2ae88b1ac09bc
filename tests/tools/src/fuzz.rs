// SPDX-License-Identifier: GPL-2.0-only
//! Wild calls on the control node from many threads: random numbers, structs, pointers and paths,
//! arguments that change while they are read, threads that are interrupted.
//!
//! What a call answers is not known beforehand, but it must be one of the errnos that user space may
//! see; `/proc/datto-info`, read all the time, must be JSON and name each minor once; a caller without
//! the capability must get EPERM. Whether anybody's data is hurt is the caller's to check. Equal seeds
//! give each thread equal calls; only their order between the threads differs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use ioctl_abi::ioctl as abi;
use nix::libc;

use crate::finding::finding;
use crate::rng::Rng;
use crate::sys::{self, Arena};
use crate::{control, errno};

/// What to do.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Threads
    #[arg(long, default_value_t = 10)]
    pub threads: u64,
    /// Calls of all threads together
    #[arg(long, default_value_t = 100_000)]
    pub calls: u64,
    /// Stop after so many seconds, whatever is left
    #[arg(long, default_value_t = 3600)]
    pub seconds: u64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One call in so many has arguments with which it may well succeed
    #[arg(long, default_value_t = 40)]
    pub sense: u64,
    /// Minors that such calls use
    #[arg(long, default_value_t = 4)]
    pub minors: u64,
    /// Block devices that such calls name
    #[arg(long, value_delimiter = ',')]
    pub devices: Vec<PathBuf>,
    /// Folders where such calls want their COW files: those where the first devices are mounted
    #[arg(long, value_delimiter = ',')]
    pub folders: Vec<PathBuf>,
    /// The caller lacks the capability: every call but the open ones must end with EPERM
    #[arg(long)]
    pub unprivileged: bool,
    /// The control node is open already, as this descriptor
    #[arg(long)]
    pub descriptor: Option<i32>,
}

const PROC_EVERY: u64 = 200;
/// Errnos above these are the kernel's own business.
const LAST_ERRNO: i32 = 133;

/// A call that exists, and how long its struct is.
struct Known {
    code: u32,
    bytes: usize,
    open_to_all: bool,
}

const fn known(code: u32, open_to_all: bool) -> Known {
    Known {
        code,
        bytes: abi::ioc_size(code),
        open_to_all,
    }
}

const KNOWN: [Known; 15] = [
    known(abi::SETUP_SNAP, false),
    known(abi::RELOAD_SNAP, false),
    known(abi::RELOAD_INC, false),
    known(abi::DESTROY, false),
    known(abi::TRANSITION_INC, false),
    known(abi::TRANSITION_SNAP, false),
    known(abi::RECONFIGURE, false),
    known(abi::INFO, true),
    known(abi::GET_FREE, true),
    known(abi::EXPAND_COW_FILE, false),
    known(abi::RECONFIGURE_AUTO_EXPAND, false),
    known(abi::DROP_SNAPSHOT, false),
    known(abi::STATUS, false),
    known(abi::EXTENTS, false),
    known(abi::RELEASE, false),
];

/// So many of the first [`names`] can be those of a COW file.
const GOOD_NAMES: u64 = 10;

/// Names that a careless writer of JSON, or of a log, would stumble over.
fn names() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = [
        &b".cow"[..],
        b".cow \"quoted\"",
        b".cow\nwith\nlines",
        b".cow\ttab\rreturn",
        b".cow\\back\\slash",
        b".cow\x01\x02\x1b[31m\x7f",
        b".cow\xff\xfe\xc0\x80 not utf-8",
        b".cow \xe2\x80\xa8 \xf0\x9f\x92\xbe",
        b".cow%s%n%x{}",
        b".cow',\"minor\": 7, \"x\": [",
        b"precious",
        b"link",
        b"loop",
        b"fifo",
        b"",
        b".",
        b"..",
        b"none/.cow",
        b"sub/../.cow-sub",
        b"./././/.cow-dots",
    ]
    .iter()
    .map(|n| n.to_vec())
    .collect();
    out.push(vec![b'n'; 255]);
    out.push(vec![b'n'; 256]);
    out.push([b"./".repeat(2030), b".cow-far".to_vec()].concat());
    out
}

struct Paths {
    all: Vec<Vec<u8>>,
    /// Of these the sensible calls take theirs.
    devices: Vec<Vec<u8>>,
    /// One list for each of the folders, which are those of the first devices.
    cows: Vec<Vec<Vec<u8>>>,
}

impl Paths {
    fn new(o: &Options) -> Self {
        let bytes = |p: &PathBuf| p.as_os_str().as_encoded_bytes().to_vec();
        let devices: Vec<_> = o.devices.iter().map(bytes).collect();
        let mut cows = Vec::new();
        for folder in &o.folders {
            let name = |n: &Vec<u8>| [&bytes(folder)[..], b"/", n].concat();
            cows.push(names().iter().map(name).collect::<Vec<_>>());
        }
        let mut all: Vec<Vec<u8>> = [
            &b"/dev/null"[..],
            b"/dev/datto-ctl",
            b"/dev/datto0",
            b"/dev/datto1",
            b"/dev/vdz",
            b"/dev",
            b"/",
            b"",
            b".",
            b"relative",
            b"/proc/self/mem",
            b"/proc/datto-info",
            b"/proc/self/fd/0",
            b"/etc/passwd/x",
            b"/dev/\n\"\\",
        ]
        .iter()
        .map(|p| p.to_vec())
        .collect();
        all.push(vec![b'/'; 4095]);
        all.push(vec![b'/'; 4096]);
        all.push(vec![b'x'; 9000]);
        all.extend(devices.iter().cloned());
        all.extend(cows.iter().flatten().cloned());
        Self { all, devices, cows }
    }
}

/// All that the threads share.
struct Shared {
    o: Options,
    paths: Paths,
    /// Rewritten by all of them, also while a call reads it.
    common: Arena,
    read_only: Arena,
    left: AtomicU64,
    over: AtomicBool,
    answers: Mutex<BTreeMap<(u32, i32), u64>>,
    proc_reads: AtomicU64,
}

struct Caller<'a> {
    s: &'a Shared,
    ctl: File,
    rng: Rng,
    own: Arc<Arena>,
    /// Calls answered, by number and errno.
    answers: BTreeMap<(u32, i32), u64>,
}

/// Where the paths of a call lie in an arena, behind its struct.
const FIRST_PATH: usize = 4 * 4096;
const SECOND_PATH: usize = 7 * 4096;
const ARENA_PAGES: usize = 10;

impl Caller<'_> {
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.rng.below(of.len() as u64) as usize].clone()
    }

    fn minor(&mut self) -> u64 {
        match self.rng.below(8) {
            0 => self.pick(&[
                23,
                24,
                255,
                256,
                0x7fff_ffff,
                0x8000_0000,
                u64::from(u32::MAX),
            ]),
            1 => self.rng.number() & 0xffff_ffff,
            _ => self.rng.below(self.s.o.minors),
        }
    }

    /// A number of the kind where arithmetic goes wrong.
    fn odd_number(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.number(),
            1 => 1 << self.rng.below(64),
            2 => (1u64 << self.rng.below(64)).wrapping_sub(1),
            _ => self.pick(&[
                0,
                1,
                2,
                7,
                8,
                4095,
                4096,
                u64::MAX,
                i64::MAX as u64,
                1 << 43,
            ]),
        }
    }

    /// A pointer of any kind; the first time a path is put at `at` of the arena.
    fn pointer(&mut self, arena: &Arena, at: usize) -> u64 {
        match self.rng.below(12) {
            0 => 0,
            1 => 0x10,
            2 => 0xffff_8880_0000_1000 + self.rng.below(1 << 20),
            3 => 0x7fff_ffff_f000 - self.rng.below(4096),
            4 => arena.address(arena.size() - self.rng.below(64) as usize),
            5 => self.s.common.address(self.rng.below(4096) as usize),
            6 => self
                .s
                .read_only
                .address(self.rng.below(self.s.read_only.size() as u64) as usize),
            _ => {
                let path = self.pick(&self.s.paths.all);
                arena.store(at, &path);
                arena.store(at + path.len(), &[0]);
                arena.address(at)
            }
        }
    }

    /// The code of a call: one that exists, something like it, or anything.
    fn code(&mut self) -> (u32, usize) {
        let n = self.rng.below(KNOWN.len() as u64) as usize;
        let Known { code, bytes, .. } = KNOWN[n];
        match self.rng.below(10) {
            // Other bits of direction and size.
            0 => (code ^ (1 << (16 + self.rng.below(16))), bytes),
            // Another number of ours.
            1 => ((code & !0xff) | (self.rng.number() & 0xff) as u32, 64),
            2 => (
                (abi::MAGIC << 8) | (self.rng.number() as u32 & 0xffff_00ff),
                64,
            ),
            _ => (code, bytes),
        }
    }

    /// Fills a struct of the call as a careless or malicious client might.
    fn wild(&mut self, code: u32, bytes: usize) -> u64 {
        let own = self.own.clone();
        let arena = if self.rng.one_in(6) {
            &self.s.common
        } else {
            &*own
        };
        let mut words: Vec<u64> = (0..bytes.div_ceil(8).max(1)).map(|_| 0).collect();
        for i in 0..words.len().min(20) {
            words[i] = match self.rng.below(4) {
                0 => self.odd_number(),
                1 => self.minor(),
                2 => self.pointer(arena, if i == 0 { FIRST_PATH } else { SECOND_PATH }),
                _ => 0,
            };
        }
        let sized = abi::ioc_nr(code) >= 32;
        if sized {
            let size = if self.rng.one_in(3) {
                self.odd_number()
            } else {
                bytes as u64
            };
            words[0] = (size & 0xffff_ffff) | (self.minor() << 32);
        }
        if code == abi::EXTENTS && !self.rng.one_in(4) {
            let kind = self.rng.below(3);
            words[1] = kind | (self.odd_number() << 32);
            words[3] = self.pointer(arena, FIRST_PATH);
        }
        let raw: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        // At the start, or anywhere, or with the end cut off by the edge.
        let at = match self.rng.below(8) {
            0 => arena.size() - 1 - self.rng.below(bytes as u64 + 1) as usize,
            1 => self.rng.below(64) as usize,
            _ => 0,
        };
        arena.store(at, &raw);
        let address = match self.rng.below(24) {
            0 => self.pointer(arena, FIRST_PATH),
            1 => self.rng.number(),
            2 => self.s.read_only.address(0),
            _ => arena.address(at),
        };
        // A random word must not happen to be memory that belongs to somebody else.
        if !(1 << 16..1 << 47).contains(&address) || self.is_ours(address) {
            address
        } else {
            0x10
        }
    }

    fn is_ours(&self, address: u64) -> bool {
        [&*self.own, &self.s.common, &self.s.read_only]
            .iter()
            .any(|a| (a.address(0)..=a.address(a.size())).contains(&address))
    }

    /// Fills a struct so that the call may succeed: devices come and go.
    fn sensible(&mut self) -> (u32, u64) {
        let minor = self.rng.below(self.s.o.minors);
        // Mostly a device and a name that go with its filesystem.
        let n = self.rng.below(self.s.paths.devices.len() as u64) as usize;
        let device = self.s.paths.devices[n].clone();
        let cows = &self.s.paths.cows;
        let cow = match cows.get(n) {
            Some(own) if !self.rng.one_in(4) => own[self.rng.below(GOOD_NAMES) as usize].clone(),
            _ => {
                let n = self.rng.below(cows.len() as u64) as usize;
                self.pick(&cows[n])
            }
        };
        let (first, second) = (self.own.address(FIRST_PATH), self.own.address(SECOND_PATH));
        let put = |at, path: &[u8]| {
            self.own.store(at, path);
            self.own.store(at + path.len(), &[0]);
        };
        put(FIRST_PATH, &device);
        put(SECOND_PATH, &cow);
        let mib = 4 + self.rng.below(12);
        let (code, words): (u32, Vec<u64>) = match self.rng.below(16) {
            0..=3 => (abi::SETUP_SNAP, vec![first, second, mib, 0, minor]),
            4 => (
                self.pick(&[abi::RELOAD_SNAP, abi::RELOAD_INC]),
                vec![first, second, 0, minor],
            ),
            5 | 6 => (abi::DESTROY, vec![minor]),
            7 | 8 => (abi::TRANSITION_INC, vec![minor]),
            9..=11 => (abi::TRANSITION_SNAP, vec![second, mib, minor]),
            12 => (abi::EXPAND_COW_FILE, vec![self.rng.below(4), minor]),
            13 => (
                abi::RECONFIGURE_AUTO_EXPAND,
                vec![self.rng.below(4), self.rng.below(40), minor],
            ),
            14 => (abi::DROP_SNAPSHOT, vec![8 | (minor << 32)]),
            _ => (abi::RELEASE, vec![8 | (minor << 32)]),
        };
        let raw: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        self.own.store(0, &raw);
        (code, self.own.address(0))
    }

    fn call(&mut self) -> Result<()> {
        let sense = !self.s.o.devices.is_empty() && self.rng.one_in(self.s.o.sense);
        let (code, word) = if sense {
            self.sensible()
        } else {
            let (code, bytes) = self.code();
            (code, self.wild(code, bytes))
        };
        let errno = sys::ioctl_word(&self.ctl, code, word).err().unwrap_or(0);
        ensure_seen(code, errno)?;
        if self.s.o.unprivileged {
            judge_unprivileged(code, errno)?;
        }
        let key = if KNOWN.iter().any(|k| k.code == code) {
            code
        } else {
            0
        };
        *self.answers.entry((key, errno)).or_default() += 1;
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let mut done = 0u64;
        while !self.s.over.load(Ordering::Relaxed) {
            let left = &self.s.left;
            if left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_err()
            {
                break;
            }
            self.call()?;
            done += 1;
            if done % PROC_EVERY == 0 {
                look_at_proc()?;
                self.s.proc_reads.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut all = self.s.answers.lock().expect("no thread panics holding it");
        for (k, n) in &self.answers {
            *all.entry(*k).or_default() += n;
        }
        Ok(())
    }
}

fn ensure_seen(code: u32, errno: i32) -> Result<()> {
    if errno > LAST_ERRNO || errno == libc::ENOSYS {
        return Err(finding(format!("call {code:#x} ended with errno {errno}")));
    }
    Ok(())
}

/// What a caller without the capability may get.
fn judge_unprivileged(code: u32, errno: i32) -> Result<()> {
    let open = KNOWN.iter().find(|k| k.code == code).map(|k| k.open_to_all);
    let wrong = match open {
        Some(true) => errno == libc::EPERM,
        Some(false) => errno != libc::EPERM,
        // Refused in one way or another.
        None => errno == 0,
    };
    if wrong {
        return Err(finding(format!(
            "call {code:#x} without the capability ended with {}",
            errno::name(errno)
        )));
    }
    Ok(())
}

/// `/proc/datto-info` is JSON, and every minor is there once.
fn look_at_proc() -> Result<()> {
    let text = std::fs::read(abi::PROC_PATH).context("read /proc/datto-info")?;
    if let Err(e) = judge_proc(&text) {
        return Err(finding(format!(
            "/proc/datto-info: {e:#}: {}",
            text.escape_ascii()
        )));
    }
    Ok(())
}

fn judge_proc(text: &[u8]) -> Result<()> {
    let json: serde_json::Value = serde_json::from_slice(text)?;
    let devices = json["devices"].as_array().context("no list of devices")?;
    let mut minors = BTreeSet::new();
    for d in devices {
        let minor = d["minor"].as_u64().context("no minor")?;
        ensure!(minors.insert(minor), "minor {minor} is there twice");
        for key in ["cow_file", "block_device"] {
            ensure!(d[key].is_string(), "minor {minor} has no {key}");
        }
        ensure!(
            d["state"].as_u64().is_some_and(|s| s < 8),
            "minor {minor} has no state"
        );
    }
    Ok(())
}

fn open_node(o: &Options) -> Result<File> {
    match o.descriptor {
        None => control::open(),
        Some(fd) => {
            // The caller's descriptor stays as it is: each thread has a duplicate.
            // SAFETY: takes a number; a bad one gives an error.
            let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
            ensure!(own >= 0, "descriptor {fd} is not open");
            // SAFETY: a new descriptor that nobody else has.
            Ok(unsafe { File::from_raw_fd(own) })
        }
    }
}

/// Calls until all calls are made or the time is over; fails at the first answer that must not be.
pub fn run(o: &Options) -> Result<()> {
    ensure!(
        o.devices.is_empty() == o.folders.is_empty(),
        "--devices and --folders belong together"
    );
    if o.devices.is_empty() && !Path::new(abi::PROC_PATH).exists() {
        bail!("the module is not loaded");
    }
    let s = Shared {
        o: o.clone(),
        paths: Paths::new(o),
        common: Arena::new(ARENA_PAGES)?,
        read_only: Arena::new(4)?,
        left: AtomicU64::new(o.calls),
        over: AtomicBool::new(false),
        answers: Mutex::new(BTreeMap::new()),
        proc_reads: AtomicU64::new(0),
    };
    s.read_only.make_read_only()?;
    sys::let_signals_interrupt();
    println!(
        "fuzz: seed {}, {} calls of {} threads",
        o.seed, o.calls, o.threads
    );
    let start = Instant::now();
    let numbers: Vec<AtomicI32> = (0..o.threads).map(|_| AtomicI32::new(0)).collect();
    let result = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..o.threads)
            .map(|n| {
                let (s, number) = (&s, &numbers[n as usize]);
                scope.spawn(move || -> Result<()> {
                    let mut c = Caller {
                        s,
                        ctl: open_node(&s.o)?,
                        rng: Rng::new(s.o.seed ^ (n << 48)),
                        own: Arc::new(Arena::new(ARENA_PAGES)?),
                        answers: BTreeMap::new(),
                    };
                    number.store(sys::thread_number(), Ordering::Relaxed);
                    let r = c.run().with_context(|| format!("thread {n}"));
                    number.store(0, Ordering::Relaxed);
                    if r.is_err() {
                        s.over.store(true, Ordering::Relaxed);
                    }
                    r
                })
            })
            .collect();
        // Interrupts whoever waits in a call, and ends it all in time.
        let pest = scope.spawn(|| {
            let mut rng = Rng::new(o.seed ^ 0xbad);
            while !s.over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                let victim = numbers[rng.below(o.threads) as usize].load(Ordering::Relaxed);
                if victim != 0 {
                    sys::interrupt(victim);
                }
                if start.elapsed() > Duration::from_secs(o.seconds) {
                    s.over.store(true, Ordering::Relaxed);
                }
            }
        });
        let r = callers
            .into_iter()
            .map(|h| h.join().expect("a caller panicked"))
            .fold(Ok(()), Result::and);
        s.over.store(true, Ordering::Relaxed);
        pest.join().expect("the pest panicked");
        r
    });
    report(&s);
    result
}

fn report(s: &Shared) {
    let answers = s.answers.lock().expect("no thread panics holding it");
    let mut lines: BTreeMap<u32, String> = BTreeMap::new();
    for (&(code, errno), n) in answers.iter() {
        let name = if errno == 0 {
            "OK".into()
        } else {
            errno::name(errno)
        };
        *lines.entry(code).or_default() += &format!(" {name}={n}");
    }
    for (code, line) in lines {
        println!("fuzz: {code:#010x}{line}");
    }
    let good: u64 = answers
        .iter()
        .filter(|((_, e), _)| *e == 0)
        .map(|(_, n)| n)
        .sum();
    println!(
        "fuzz: calls={} successful={good} proc_reads={}",
        answers.values().sum::<u64>(),
        s.proc_reads.load(Ordering::Relaxed)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_status_files_are_found() {
        let good =
            br#"{"devices": [{"minor": 0, "cow_file": "/.c", "block_device": "/d", "state": 3}]}"#;
        judge_proc(good).unwrap();
        let twice =
            br#"{"devices": [{"minor": 0, "cow_file": "/.c", "block_device": "/d", "state": 3},
            {"minor": 0, "cow_file": "/.c", "block_device": "/d", "state": 3}]}"#;
        judge_proc(twice).unwrap_err();
        judge_proc(b"{\"devices\": [{\"minor\": 0, \"cow_file\": \"a\nb\"}]}").unwrap_err();
        judge_proc(b"{\"devices\": [{\"minor\": 0, \"cow_file\": \"\xff\"}]}").unwrap_err();
    }

    #[test]
    fn answers_that_must_not_be_are_found() {
        ensure_seen(abi::INFO, libc::EINVAL).unwrap();
        ensure_seen(abi::INFO, 512).unwrap_err();
        judge_unprivileged(abi::DESTROY, libc::EPERM).unwrap();
        judge_unprivileged(abi::DESTROY, libc::ENOENT).unwrap_err();
        judge_unprivileged(abi::INFO, libc::ENOENT).unwrap();
        judge_unprivileged(abi::INFO, libc::EPERM).unwrap_err();
    }
}
