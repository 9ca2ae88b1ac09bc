// SPDX-License-Identifier: GPL-2.0-only
//! What an image says of itself: which updates it lets through, what it says afterwards.

use anyhow::Result;
use clap::Parser;
use ioctl_abi::cow::{
    Extension, Geometry, Header, EXT_OFFSET, EXT_STATE_ROOTED, FLAG_CLEAN, FLAG_INDEX_ONLY,
    HEADER_BYTES,
};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use update_img::check::{self, Driver, Running};
use update_img::cli::Cli;
use update_img::record::{self, Found, Record, SnapshotId, State};
use update_img::run::run;
use update_img::stage::{Progress, Stage};
use update_img::{copy, ledger};

const BLOCKS: usize = 40;
const BYTES: usize = BLOCKS * 4096;
const UUID: [u8; 16] = [9; 16];

/// A device that is tracked, as plain data: a copy of it is the device at that moment.
#[derive(Clone)]
struct Device {
    content: Vec<u8>,
    uuid: [u8; 16],
    seqid: u64,
    nonce: u64,
    changed: BTreeSet<usize>,
}

impl Device {
    /// At its first snapshot.
    fn new() -> Self {
        Self {
            content: vec![1; BYTES],
            uuid: UUID,
            seqid: 1,
            nonce: 0x101,
            changed: BTreeSet::new(),
        }
    }

    fn write(&mut self, block: usize, byte: u8) {
        self.content[block * 4096..(block + 1) * 4096].fill(byte);
        self.changed.insert(block);
    }

    /// The next snapshot, with a COW file of this nonce; the one so far is handed over.
    fn next(&mut self, dir: &Path, nonce: u64) -> PathBuf {
        let path = dir.join(format!("cow-{}-{:x}", self.seqid, nonce));
        let file = File::create(&path).unwrap();
        let origin_bytes = BYTES as u64;
        file.set_len(Geometry { origin_bytes }.data_offset())
            .unwrap();
        let header = Header {
            flags: FLAG_CLEAN | FLAG_INDEX_ONLY,
            seqid: self.seqid,
            uuid: self.uuid,
            version: 1,
            ..Header::default()
        };
        file.write_all_at(&header.encode(), 0).unwrap();
        if self.nonce != 0 {
            let ext = Extension {
                state: EXT_STATE_ROOTED,
                nonce: self.nonce,
                origin_bytes,
                roots: [1, 2],
            };
            file.write_all_at(&ext.encode(), EXT_OFFSET as u64).unwrap();
        }
        for block in std::mem::take(&mut self.changed) {
            file.write_all_at(&1u64.to_le_bytes(), HEADER_BYTES + block as u64 * 8)
                .unwrap();
        }
        self.seqid += 1;
        self.nonce = nonce;
        path
    }

    fn id(&self) -> SnapshotId {
        SnapshotId {
            uuid: self.uuid,
            seqid: self.seqid,
            nonce: self.nonce,
        }
    }
}

impl Driver for Device {
    fn running(&self, _node: &Path) -> Result<Running> {
        Ok(Running {
            uuid: self.uuid,
            seqid: self.seqid,
            nonce: self.nonce,
            own: Vec::new(),
            origin: None,
        })
    }
}

struct Place {
    dir: tempfile::TempDir,
    snapshot: PathBuf,
    image: PathBuf,
}

impl Place {
    /// With a full copy of the device's snapshot.
    fn new(device: &Device) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self {
            snapshot: dir.path().join("snapshot"),
            image: dir.path().join("image"),
            dir,
        };
        place.dd(device);
        place
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A full copy, over the one that is there, which keeps its attributes.
    fn dd(&self, device: &Device) {
        // The clock of files is a coarse one.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&self.image, &device.content).unwrap();
    }

    fn go(&self, device: &Device, options: &[&str], cows: &[&PathBuf]) -> Result<(), String> {
        fs::write(&self.snapshot, &device.content).unwrap();
        let words = ["update-img", "-q"].iter().chain(options).map(Path::new);
        let paths = [&self.snapshot]
            .into_iter()
            .chain(cows.iter().copied())
            .chain([&self.image]);
        let cli = Cli::try_parse_from(words.chain(paths.map(PathBuf::as_path))).unwrap();
        run(&cli, device, &Stage::new(), &mut Vec::new()).map_err(|e| format!("{e:#}"))
    }

    /// Works, and the image is the snapshot, and says so.
    fn updates(&self, device: &Device, options: &[&str], cows: &[&PathBuf]) {
        self.go(device, options, cows).unwrap();
        assert!(fs::read(&self.image).unwrap() == device.content);
        let found = self.record();
        assert_eq!(found.state, State::At(device.id()));
    }

    /// Says why not, and has touched neither the image nor what it says of itself.
    fn refuses(&self, device: &Device, cows: &[&PathBuf], words: &[&str]) {
        let before = (fs::read(&self.image).unwrap(), self.found());
        for options in [&[][..], &["--dry-run"], &["--verify"]] {
            let error = self.go(device, options, cows).unwrap_err();
            for word in words.iter().chain(&["--image-is-new"]) {
                assert!(error.contains(word), "{error:?} does not say {word:?}");
            }
            assert!(
                (fs::read(&self.image).unwrap(), self.found()) == before,
                "refused, but written to"
            );
        }
    }

    fn found(&self) -> Found {
        record::read(&File::open(&self.image).unwrap()).unwrap()
    }

    fn record(&self) -> Record {
        match self.found() {
            Found::Record(record) => record,
            other => panic!("{other:?}: has the temporary folder user attributes?"),
        }
    }

    /// An update that ends after its first write, by a signal or a failure, or without a word.
    fn half(&self, device: &Device, cows: &[&PathBuf], killed: bool) {
        fs::write(&self.snapshot, &device.content).unwrap();
        let cows: Vec<_> = cows.iter().map(|c| (*c).clone()).collect();
        let pair = check::open(device, &self.snapshot, &self.image, true).unwrap();
        let files = check::chain(&cows, &pair).unwrap();
        let ledger = Arc::new(ledger::open(&pair, &files, false, true).unwrap());
        let stage = Stage::new();
        stage.keep(ledger.clone());
        let block = files[0].changed(BLOCKS as u64).next().unwrap().unwrap();
        let at = block.start as usize * 4096;
        stage
            .write(|| {
                // What a reader sees from the first write on.
                assert!(matches!(self.record().state, State::Updating(_, _)));
                assert_eq!(self.record().stamp, None);
                pair.image
                    .write_all_at(&device.content[at..at + 4096], at as u64)
            })
            .unwrap()
            .unwrap();
        if !killed {
            ledger.unfinished().unwrap();
        }
        assert_eq!(self.record().stamp.is_none(), killed);
    }
}

#[test]
fn the_record_follows_the_cycle() {
    let mut d = Device::new();
    let p = Place::new(&d);
    assert_eq!(p.found(), Found::Nothing);
    for round in 0..3u64 {
        d.write(round as usize, 7);
        let cow = d.next(p.dir(), 0x201 + round);
        p.go(&d, &["--dry-run"], &[&cow]).unwrap();
        p.updates(&d, &["--verify"], &[&cow]);
        // Again, as a script does it that has not seen the first one end.
        p.updates(&d, &[], &[&cow]);
    }
    // One that changes nothing moves the record on, too.
    let cow = d.next(p.dir(), 0x301);
    p.updates(&d, &[], &[&cow]);
}

#[test]
fn a_cow_file_left_out_is_refused() {
    let mut d = Device::new();
    let p = Place::new(&d);
    d.write(1, 2);
    let one = d.next(p.dir(), 0x201);
    p.updates(&d, &[], &[&one]);
    d.write(2, 3);
    let two = d.next(p.dir(), 0x203);
    d.write(3, 4);
    let three = d.next(p.dir(), 0x205);
    p.refuses(
        &d,
        &[&three],
        &["is of snapshot 2", "from number 2 on", "full copy (dd)"],
    );
    // Comparing is not for records to forbid.
    let error = p.go(&d, &["--verify-only"], &[&three]).unwrap_err();
    assert!(error.contains("differs"), "{error}");
    p.updates(&d, &[], &[&two, &three]);
    // With older files than need be.
    d.write(4, 5);
    let four = d.next(p.dir(), 0x207);
    p.updates(&d, &[], &[&one, &two, &three, &four]);
}

/// The device goes back to the midst of an increment, and gets to the same sequence number by another way.
fn rolled_back(nonces: bool) -> (Place, Device, PathBuf, Device, PathBuf) {
    let mut d = Device::new();
    if !nonces {
        d.nonce = 0;
    }
    let nonce = |n| if nonces { n } else { 0 };
    let p = Place::new(&d);
    d.write(1, 2);
    let mut other = d.clone();
    d.write(2, 3);
    let cow = d.next(p.dir(), nonce(0x201));
    p.updates(&d, &[], &[&cow]);
    other.write(5, 6);
    let dir = p.dir().join("other");
    fs::create_dir(&dir).unwrap();
    let led = other.next(&dir, nonce(0x203));
    (p, d, cow, other, led)
}

#[test]
fn another_history_is_refused() {
    let (p, mut d, _, mut other, cow) = rolled_back(true);
    p.refuses(
        &other,
        &[&cow],
        &["is of snapshot 2", "another history", "full copy (dd)"],
    );
    // Nor does it help to go on there.
    other.write(7, 7);
    let next = other.next(p.dir(), 0x305);
    p.refuses(&other, &[&next], &["another history"]);
    p.refuses(&other, &[&cow, &next], &["another history"]);
    // The image has its own history, which goes on.
    d.write(8, 8);
    let next = d.next(p.dir(), 0x307);
    p.updates(&d, &[], &[&next]);
    // A snapshot from before the image's.
    let mut old = Device::new();
    let cow = old.next(p.dir(), 0x309);
    p.refuses(&old, &[&cow], &["is of snapshot 3", "another history"]);
}

/// What all this is for: the check left out, the update goes through, and the image is no snapshot.
#[test]
fn without_the_check_another_history_spoils_the_image() {
    let (p, _, _, other, cow) = rolled_back(true);
    p.go(&other, &["--image-is-new"], &[&cow]).unwrap();
    assert!(fs::read(&p.image).unwrap() != other.content);
    // Without nonces, of an older module, uuid and seqid must do; they cannot tell.
    let (p, _, _, other, cow) = rolled_back(false);
    p.go(&other, &[], &[&cow]).unwrap();
    assert!(fs::read(&p.image).unwrap() != other.content);
}

#[test]
fn another_series_is_refused_until_a_new_copy_is_made() {
    let mut d = Device::new();
    let p = Place::new(&d);
    d.write(1, 2);
    let cow = d.next(p.dir(), 0x201);
    p.updates(&d, &[], &[&cow]);
    let mut again = Device::new();
    again.uuid = [8; 16];
    let first = again.clone();
    again.write(2, 3);
    let cow = again.next(p.dir(), 0x203);
    p.refuses(&again, &[&cow], &["another series", "full copy (dd)"]);
    p.dd(&first);
    p.updates(&again, &[], &[&cow]);
}

#[test]
fn a_half_update_goes_on_with_the_right_files_only() {
    for killed in [false, true] {
        let mut d = Device::new();
        let p = Place::new(&d);
        d.write(1, 2);
        let one = d.next(p.dir(), 0x201);
        d.write(2, 3);
        p.half(&d, &[&one], killed);
        let mut rolled_back = d.clone();
        rolled_back.seqid = 1;
        rolled_back.nonce = 0x101;
        let other = rolled_back.next(p.dir(), 0x202);
        p.refuses(
            &rolled_back,
            &[&other],
            &["partly updated, from snapshot 1 to 2", "another history"],
        );
        // The snapshot has failed meanwhile; and then the next one, too.
        let two = d.next(p.dir(), 0x203);
        p.refuses(&d, &[&two], &["partly updated", "from number 1 on"]);
        p.half(&d, &[&one, &two], killed);
        d.write(3, 4);
        let three = d.next(p.dir(), 0x205);
        p.refuses(&d, &[&three], &["from snapshot 1 to 3"]);
        p.refuses(&d, &[&two, &three], &["from snapshot 1 to 3"]);
        p.updates(&d, &[], &[&one, &two, &three]);
        // The same command as the one that was interrupted, and one that repeats a finished one.
        d.write(4, 5);
        let four = d.next(p.dir(), 0x207);
        p.half(&d, &[&four], killed);
        p.updates(&d, &[], &[&four]);
        p.half(&d, &[&four], killed);
        p.updates(&d, &[], &[&four]);
    }
}

#[test]
fn a_new_copy_over_a_half_updated_image_is_noticed_where_it_can_be() {
    for killed in [false, true] {
        let mut d = Device::new();
        let p = Place::new(&d);
        d.write(1, 2);
        let one = d.next(p.dir(), 0x201);
        p.half(&d, &[&one], killed);
        p.dd(&d);
        d.write(2, 3);
        let two = d.next(p.dir(), 0x203);
        if killed {
            p.refuses(&d, &[&two], &["partly updated"]);
            p.updates(&d, &["--image-is-new"], &[&two]);
        } else {
            p.updates(&d, &[], &[&two]);
        }
    }
}

#[test]
fn a_record_that_is_not_understood_is_not_passed_over() {
    let mut d = Device::new();
    let p = Place::new(&d);
    d.write(1, 2);
    let cow = d.next(p.dir(), 0x201);
    for text in ["version=2 whatever", "", "\u{0}"] {
        xattr::set(&p.image, record::NAME, text.as_bytes()).unwrap();
        p.refuses(&d, &[&cow], &["does not know"]);
    }
    p.updates(&d, &["--image-is-new"], &[&cow]);
}

/// A read that fails before the first write: the record that was true is true.
#[test]
fn what_was_not_written_to_keeps_its_record() {
    let mut d = Device::new();
    let p = Place::new(&d);
    d.write(1, 2);
    let cow = d.next(p.dir(), 0x201);
    p.updates(&d, &[], &[&cow]);
    let before = p.record();
    d.write(1, 3);
    let cow = d.next(p.dir(), 0x203);
    fs::write(&p.snapshot, &d.content).unwrap();
    let pair = check::open(&d, &p.snapshot, &p.image, true).unwrap();
    let files = check::chain(&[cow], &pair).unwrap();
    let stage = Stage::new();
    stage.keep(Arc::new(ledger::open(&pair, &files, false, true).unwrap()));
    File::create(&p.snapshot).unwrap();
    copy::copy(
        &pair.snapshot,
        &pair.image,
        pair.bytes,
        files[0].changed(BLOCKS as u64),
        1,
        &indicatif::ProgressBar::hidden(),
        &stage,
    )
    .unwrap_err();
    assert_eq!(stage.progress(), Progress::Untouched);
    assert_eq!(p.record(), before);
}
