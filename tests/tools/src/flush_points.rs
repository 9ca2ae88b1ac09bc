// SPDX-License-Identifier: GPL-2.0-only
//! Goes through every flush of a recorded disk: what is on the disk when the power is cut there, with any
//! part of what no flush covers, must load as a superset of what has really changed since the snapshot.
//!
//! What loads is found out by the module's own code (`kernel/logic/src/load.rs`), and by the rules of
//! `kernel/device_reload.rs`, which are written down here once more. What has changed is found by comparing
//! the disk with the image of the snapshot, block by block, outside the COW file in use.
//!
//! What the journal replay of the next mount will write is no part of it: the reload comes before the mount,
//! so those writes are tracked and marked as all others are. Cuts during the replay are points of a
//! recording of that replay.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{bail, ensure, Context, Result};
use cow_logic::abi::cow::{Extension, Geometry, Header, EXT_OFFSET, EXT_STATE_ROOTED};
use cow_logic::change_map::ChangeMap;
use cow_logic::extents::FileExtent;
use cow_logic::load::{self, Flaw, Source};
use cow_logic::private_format::{digests, Block, GroupWord, Root, RootState};

use crate::rng::Rng;
use crate::writelog::{survivors, Log, Overlay, Way, SECTOR};

const BLOCK: usize = 4096;
const PER_BLOCK: usize = BLOCK / SECTOR;

/// What to look at.
#[derive(clap::Args)]
pub struct Options {
    /// The recorded log
    log: PathBuf,
    /// The images of the snapshots, one behind the other, each as large as the partition
    images: PathBuf,
    /// The disk as it was before the recording; else zeros
    #[arg(long)]
    base: Option<PathBuf>,
    /// Bytes of the disk
    #[arg(long)]
    disk: usize,
    /// First byte of the tracked partition
    #[arg(long)]
    first: usize,
    /// Bytes of the tracked partition
    #[arg(long)]
    size: usize,
    /// Entries that are flushes of the recorder itself
    #[arg(long, value_delimiter = ',')]
    ignore: Vec<usize>,
    /// States with losses that are looked at at each flush
    #[arg(long, default_value_t = 6)]
    lossy: usize,
    /// Seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// NAME:FIRST:LAST:FILES: entries to look at; the numbers of the COW files that may be in use, with
    /// commas; a name that begins with `setup` may find none
    #[arg(required = true)]
    windows: Vec<String>,
}

struct Window {
    name: String,
    first: usize,
    last: usize,
    files: Vec<u64>,
}

impl Window {
    fn parse(text: &str) -> Result<Self> {
        let fields: Vec<&str> = text.split(':').collect();
        let [name, first, last, files] = fields[..] else {
            bail!("{text} is no window");
        };
        Ok(Self {
            name: name.to_owned(),
            first: first.parse()?,
            last: last.parse()?,
            files: files.split(',').map(str::parse).collect::<Result<_, _>>()?,
        })
    }
}

/// The durable disk, and how the partition differs from each image.
struct Disk<'a> {
    log: &'a Log,
    bytes: Vec<u8>,
    first: usize,
    images: Vec<Vec<u8>>,
    /// For each image: blocks that differ.
    differs: Vec<BTreeSet<usize>>,
    /// Blocks of the partition that look like the header of a COW file.
    headers: BTreeSet<usize>,
    at: usize,
}

impl Disk<'_> {
    fn blocks(&self) -> usize {
        self.images.first().map_or(0, |i| i.len() / BLOCK)
    }

    /// Everything before entry `n` is on the disk.
    fn forward(&mut self, n: usize) {
        for i in self.at..n {
            let entry = &self.log.entries[i];
            self.log.apply(&mut self.bytes, entry);
            if entry.len == 0 {
                continue;
            }
            let (from, to) = (entry.offset, entry.offset + entry.len);
            if to > self.first {
                let first = from.max(self.first) - self.first;
                let last = to - self.first;
                self.look(first / BLOCK..last.div_ceil(BLOCK).min(self.blocks()));
            }
        }
        self.at = self.at.max(n);
    }

    fn look(&mut self, blocks: std::ops::Range<usize>) {
        for b in blocks {
            let now = &self.bytes[self.first + b * BLOCK..][..BLOCK];
            for (image, differs) in self.images.iter().zip(&mut self.differs) {
                if image[b * BLOCK..][..BLOCK] == *now {
                    differs.remove(&b);
                } else {
                    differs.insert(b);
                }
            }
            if header_of(now).is_some() {
                self.headers.insert(b);
            } else {
                self.headers.remove(&b);
            }
        }
    }
}

/// Header and extension, if a block is the first one of a COW file.
fn header_of(block: &[u8]) -> Option<(Header, Extension)> {
    let header = Header::decode(block.first_chunk()?).ok()?;
    let ext = Extension::decode(block.get(EXT_OFFSET..)?.first_chunk()?)?;
    Some((header, ext))
}

/// The partition after a cut: what is durable, and what of the rest has survived.
struct State<'a> {
    disk: &'a Disk<'a>,
    overlay: &'a Overlay<'a>,
    /// Blocks of the partition that the overlay touches.
    touched: BTreeSet<usize>,
    block: Box<Block>,
}

impl<'a> State<'a> {
    fn new(disk: &'a Disk<'a>, overlay: &'a Overlay<'a>) -> Self {
        let first = disk.first / SECTOR;
        let touched = overlay
            .keys()
            .filter_map(|s| s.checked_sub(first))
            .map(|s| s / PER_BLOCK)
            .filter(|b| *b < disk.blocks())
            .collect();
        Self {
            disk,
            overlay,
            touched,
            block: Box::new([0; BLOCK]),
        }
    }

    fn fill(&mut self, b: usize) {
        let at = self.disk.first + b * BLOCK;
        self.block.copy_from_slice(&self.disk.bytes[at..at + BLOCK]);
        let first = at / SECTOR;
        for (s, data) in self.overlay.range(first..first + PER_BLOCK) {
            self.block[(s - first) * SECTOR..][..SECTOR].copy_from_slice(data);
        }
    }

    /// The blocks that differ from image `n`.
    fn differing(&mut self, n: usize) -> BTreeSet<usize> {
        let mut out = self.disk.differs[n].clone();
        for b in self.touched.clone() {
            self.fill(b);
            if self.disk.images[n][b * BLOCK..][..BLOCK] == self.block[..] {
                out.remove(&b);
            } else {
                out.insert(b);
            }
        }
        out
    }

    /// The COW file with this sequence number, if it is there.
    fn find(&mut self, seqid: u64) -> Option<(Header, Extension)> {
        let places: BTreeSet<usize> = self.disk.headers.union(&self.touched).copied().collect();
        places.into_iter().find_map(|b| {
            self.fill(b);
            header_of(&self.block[..]).filter(|(h, _)| h.seqid == seqid)
        })
    }
}

/// Why something could not be read.
#[derive(Debug)]
struct Unreadable(Flaw);

impl From<Flaw> for Unreadable {
    fn from(flaw: Flaw) -> Self {
        Self(flaw)
    }
}

impl Source for State<'_> {
    type Error = Unreadable;

    fn read(&mut self, block: u64) -> Result<&Block, Unreadable> {
        let b = usize::try_from(block).unwrap_or(usize::MAX);
        if b >= self.disk.blocks() {
            return Err(Unreadable(Flaw::Impossible));
        }
        self.fill(b);
        Ok(&self.block)
    }
}

/// A file that a reload would pick up.
struct Loaded {
    /// What it says has changed.
    changes: ChangeMap,
    /// Blocks that only the marks have added.
    added: u64,
    /// Where it lies.
    file: Vec<FileExtent>,
}

fn newest_root(
    state: &mut State<'_>,
    nonce: u64,
    roots: [u64; 2],
    layout: &cow_logic::abi::cow::PrivateLayout,
) -> Result<Root, Unreadable> {
    let mut best = None;
    load::read_root(state, nonce, roots, layout, |root| {
        best = Some(root);
        Ok(())
    })?;
    best.ok_or(Unreadable(Flaw::Damaged))
}

fn extents_of(
    state: &mut State<'_>,
    root: &Root,
    nonce: u64,
    layout: &cow_logic::abi::cow::PrivateLayout,
) -> Result<Vec<FileExtent>, Unreadable> {
    let mut list = Vec::new();
    load::read_extents(state, root, nonce, layout, |e| {
        list.push(e);
        Ok(())
    })?;
    load::check_extents(root, &list)?;
    Ok(list)
}

/// As RELOAD does it (`Device::pick_up`, `check_state`, `Device::publish`).
///
/// # Errors
///
/// Why the file is not picked up.
fn reload(state: &mut State<'_>, seqid: u64) -> Result<Loaded, String> {
    let bytes = (state.disk.blocks() * BLOCK) as u64;
    let geometry = Geometry {
        origin_bytes: bytes,
    };
    let layout = geometry.private();
    let (header, ext) = state.find(seqid).ok_or("no such file")?;
    if header.is_sealed() {
        return Err("handed over".into());
    }
    if ext.state != EXT_STATE_ROOTED {
        return Err("in too many pieces".into());
    }
    let says = |what: &str| {
        let what = what.to_owned();
        move |e: Unreadable| format!("{what}: {e:?}")
    };
    let nonce = ext.nonce;
    let mut root = newest_root(state, nonce, ext.roots, &layout).map_err(says("no good root"))?;
    if root.origin_bytes != bytes || !load::lies_within(&root, geometry) {
        return Err("its root is that of another device".into());
    }
    let mut words = vec![GroupWord::default(); layout.groups as usize];
    load::read_log(state, &root, nonce, &layout, &mut words).map_err(says("log"))?;
    if root.state == RootState::Sealed && load::any_mark(&words) {
        root.state = RootState::Live;
    }
    let changes = ChangeMap::new(geometry.blocks()).map_err(|_| "no memory")?;
    let mut by_slot = vec![0; layout.slot_count as usize];
    let added = load::read_changes(
        state,
        &root,
        nonce,
        &layout,
        load::Groups {
            words: &words,
            by_slot: &mut by_slot,
        },
        &changes,
        |_| {},
    )
    .map_err(says("bitmap"))?;
    let file = extents_of(state, &root, nonce, &layout).map_err(says("extents"))?;
    match root.state {
        RootState::Live | RootState::Sealed => {}
        other => return Err(format!("its root says {other:?}")),
    }
    let mut abandoned = Vec::new();
    if root.successor.nonce != 0 {
        let nonce = root.successor.nonce;
        match newest_root(state, nonce, root.successor.roots, &layout) {
            Ok(next) if matches!(next.state, RootState::Prepared | RootState::Poisoned) => {
                abandoned =
                    extents_of(state, &next, nonce, &layout).map_err(says("next extents"))?;
            }
            Ok(_) => return Err("another file has taken over".into()),
            Err(Unreadable(Flaw::Damaged)) => {}
            Err(e) => return Err(says("next root")(e)),
        }
    }
    if root.snapshot && root.state == RootState::Sealed && root.map_words != 0 {
        // No recording has an orderly end in snapshot mode: this one's copies would not be where it says.
        return Err("its snapshot would count as sealed".into());
    }
    let own: &[FileExtent] = if root.snapshot { &file } else { &[] };
    for e in abandoned.iter().chain(own) {
        changes.mark(e.origin_block, e.len);
    }
    state.fill(0);
    if !root.identity.allows(&digests(&state.block)) {
        return Err("the superblock is not one that the root names".into());
    }
    Ok(Loaded {
        changes,
        added,
        file,
    })
}

/// What the states of a window came to.
#[derive(Default)]
struct Tally {
    flushes: u64,
    states: u64,
    /// No file was picked up.
    none: u64,
    /// Blocks that had changed, blocks that were loaded as changed, blocks that only marks have covered.
    true_changes: u64,
    loaded: u64,
    by_marks: u64,
    bad: u64,
}

/// Judges one state; what is wrong with it.
fn judge(state: &mut State<'_>, window: &Window, tally: &mut Tally) -> Result<(), String> {
    tally.states += 1;
    let mut why = String::new();
    for n in &window.files {
        match reload(state, n + 1) {
            Ok(loaded) => return compare(state, *n as usize, &loaded, tally),
            Err(e) => why = format!("{why}; .datto{n}: {e}"),
        }
    }
    tally.none += 1;
    if window.name.starts_with("setup") {
        return Ok(());
    }
    Err(format!("the chain has ended{why}"))
}

fn compare(
    state: &mut State<'_>,
    image: usize,
    loaded: &Loaded,
    tally: &mut Tally,
) -> Result<(), String> {
    let differing = state.differing(image);
    let own = |b: u64| {
        loaded
            .file
            .iter()
            .any(|e| (e.origin_block..e.origin_end()).contains(&b))
    };
    let missed: Vec<usize> = differing
        .iter()
        .copied()
        .filter(|b| !loaded.changes.is_marked(*b as u64) && !own(*b as u64))
        .collect();
    tally.true_changes += differing.len() as u64;
    tally.loaded += loaded.changes.count();
    tally.by_marks += loaded.added;
    if missed.is_empty() {
        return Ok(());
    }
    let some: Vec<String> = missed.iter().take(8).map(usize::to_string).collect();
    Err(format!(
        "{} BLOCKS MISSED with .datto{image}: {}",
        missed.len(),
        some.join(" ")
    ))
}

fn read_images(options: &Options) -> Result<Vec<Vec<u8>>> {
    let file = File::open(&options.images)
        .with_context(|| format!("open {}", options.images.display()))?;
    let n = file.metadata()?.len() as usize / options.size;
    ensure!(n != 0, "{} holds no image", options.images.display());
    (0..n)
        .map(|i| {
            let mut image = vec![0; options.size];
            file.read_exact_at(&mut image, (i * options.size) as u64)?;
            Ok(image)
        })
        .collect()
}

/// Runs it. Returns how many states were not as they have to be.
///
/// # Errors
///
/// The recording cannot be read.
pub fn run(options: &Options) -> Result<u64> {
    let log = Log::read(&options.log, &options.ignore)?;
    let windows: Vec<Window> = options
        .windows
        .iter()
        .map(|w| Window::parse(w))
        .collect::<Result<_>>()?;
    let images = read_images(options)?;
    let mut bytes = match &options.base {
        Some(path) => std::fs::read(path).with_context(|| format!("read {}", path.display()))?,
        None => Vec::new(),
    };
    bytes.resize(options.disk, 0);
    let mut disk = Disk {
        log: &log,
        bytes,
        first: options.first,
        differs: vec![BTreeSet::new(); images.len()],
        images,
        headers: BTreeSet::new(),
        at: 0,
    };
    let blocks = disk.blocks();
    ensure!(
        options.first + options.size <= options.disk && options.size % BLOCK == 0,
        "the partition does not lie on the disk"
    );
    disk.look(0..blocks);
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut bad = 0u64;
    let mut durable = 0;
    for f in (0..log.entries.len()).filter(|f| log.entries[*f].is_flush()) {
        // The cut is just before entry `f`: what the flush before it covers is durable.
        disk.forward(durable);
        let pending = log.changes(durable..f);
        let here: Vec<&Window> = windows
            .iter()
            .filter(|w| (w.first..=w.last).contains(&f))
            .collect();
        for window in here {
            let tally = tallies.entry(&window.name).or_default();
            tally.flushes += 1;
            let lossy = if pending.is_empty() { 0 } else { options.lossy };
            for k in 0..=lossy {
                let mut rng = Rng::new(options.seed ^ ((f as u64) << 16) ^ k as u64);
                let way = match k {
                    0 => Way::All,
                    _ => Way::LOSSY[(f + k) % Way::LOSSY.len()],
                };
                let overlay = survivors(&log, &pending, way, &mut rng);
                let mut state = State::new(&disk, &overlay);
                if let Err(what) = judge(&mut state, window, tally) {
                    tally.bad += 1;
                    bad += 1;
                    if bad <= 20 {
                        println!(
                            "FAIL flush {f} of {} ({}, {way:?} of {} unflushed): {what}",
                            log.entries.len(),
                            window.name,
                            pending.len()
                        );
                    }
                }
            }
        }
        durable = f;
    }
    for (name, t) in &tallies {
        let mean = |n: u64| n / (t.states - t.none).max(1);
        println!(
            "{name}: {} flushes, {} disks; changed {} blocks, loaded {} (mean), {} of them by marks alone; no chain \
             {}, wrong {}",
            t.flushes,
            t.states,
            mean(t.true_changes),
            mean(t.loaded),
            mean(t.by_marks),
            t.none,
            t.bad
        );
    }
    let states: u64 = tallies.values().map(|t| t.states).sum();
    let flushes: u64 = tallies.values().map(|t| t.flushes).sum();
    println!("{flushes} flush points, {states} disks: {bad} wrong");
    Ok(bad)
}
