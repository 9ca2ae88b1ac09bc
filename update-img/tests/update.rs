// SPDX-License-Identifier: GPL-2.0-only
//! The whole update on plain files, with a driver made up for the purpose.

use anyhow::{bail, Result};
use dattobd_client::cow_file::Union;
use indicatif::ProgressBar;
use ioctl_abi::cow::{Geometry, Header, FLAG_CLEAN, FLAG_INDEX_ONLY, HEADER_BYTES};
use ioctl_abi::ioctl::Extent;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use update_img::check::{self, Driver, Running};
use update_img::stage::{Progress, Stage};
use update_img::{copy, verify};

struct Fake(Running);

impl Driver for Fake {
    fn running(&self, _node: &Path) -> Result<Running> {
        Ok(self.0.clone())
    }
}

struct NoDriver;

impl Driver for NoDriver {
    fn running(&self, _node: &Path) -> Result<Running> {
        bail!("no such device")
    }
}

fn fake(seqid: u64) -> Fake {
    Fake(Running {
        uuid: [9; 16],
        seqid,
        nonce: 0,
        own: Vec::new(),
        origin: None,
    })
}

fn cow(dir: &Path, name: &str, seqid: u64, flags: u32, bytes: u64, changed: &[u64]) -> PathBuf {
    let path = dir.join(name);
    let file = fs::File::create(&path).unwrap();
    file.set_len(
        Geometry {
            origin_bytes: bytes,
        }
        .data_offset(),
    )
    .unwrap();
    let header = Header {
        flags,
        seqid,
        uuid: [9; 16],
        version: 1,
        ..Header::default()
    };
    file.write_all_at(&header.encode(), 0).unwrap();
    for b in changed {
        file.write_all_at(&1u64.to_le_bytes(), HEADER_BYTES + b * 8)
            .unwrap();
    }
    path
}

const SEALED: u32 = FLAG_CLEAN | FLAG_INDEX_ONLY;

struct Files {
    dir: tempfile::TempDir,
    snapshot: PathBuf,
    image: PathBuf,
}

fn files(old: &[u8], new: &[u8]) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let (snapshot, image) = (dir.path().join("snap"), dir.path().join("img"));
    fs::write(&snapshot, new).unwrap();
    fs::write(&image, old).unwrap();
    Files {
        dir,
        snapshot,
        image,
    }
}

fn update(driver: &dyn Driver, f: &Files, cows: &[PathBuf]) -> Result<copy::Done> {
    let pair = check::open(driver, &f.snapshot, &f.image, true)?;
    let chain = check::chain(cows, &pair)?;
    let blocks = Geometry {
        origin_bytes: pair.bytes,
    }
    .blocks();
    let runs = Union::new(&chain, blocks);
    copy::copy(
        &pair.snapshot,
        &pair.image,
        pair.bytes,
        runs,
        4,
        &ProgressBar::hidden(),
        &Stage::new(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_image_becomes_the_snapshot(sectors in 1usize..6000,
                                      changes in proptest::collection::vec(any::<u32>(), 0..200)) {
        let bytes = sectors * 512;
        let blocks = (bytes as u64).div_ceil(4096);
        let old: Vec<u8> = (0..bytes).map(|i| (i / 512 % 251) as u8).collect();
        let mut new = old.clone();
        let mut changed: Vec<u64> = changes.iter().map(|c| u64::from(*c) % blocks).collect();
        changed.sort_unstable();
        changed.dedup();
        for b in &changed {
            let start = *b as usize * 4096;
            let end = (start + 4096).min(bytes);
            new[start..end].fill(0xee);
        }
        let f = files(&old, &new);
        // Spread over two links of a chain.
        let (a, b): (Vec<u64>, Vec<u64>) = changed.iter().partition(|b| **b % 2 == 0);
        let cows = [
            cow(f.dir.path(), "c1", 4, SEALED, bytes as u64, &a),
            cow(f.dir.path(), "c2", 5, SEALED, bytes as u64, &b),
        ];
        let done = update(&fake(6), &f, &cows).unwrap();
        prop_assert_eq!(done.blocks, changed.len() as u64);
        prop_assert!(fs::read(&f.image).unwrap() == new);
        // What did not change was not read.
        prop_assert!(done.bytes <= changed.len() as u64 * 4096);
    }
}

/// Every refusal must come before the first write.
fn refused(driver: &dyn Driver, f: &Files, cows: &[PathBuf], word: &str) {
    let before = fs::read(&f.image).unwrap();
    let error = format!("{:#}", update(driver, f, cows).unwrap_err());
    assert!(error.contains(word), "{error:?} does not say {word:?}");
    assert!(
        fs::read(&f.image).unwrap() == before,
        "the image was written to"
    );
}

#[test]
fn wrong_pairs_are_refused() {
    let old = vec![1; 40960];
    let new = vec![2; 40960];
    let f = files(&old, &new);
    let d = f.dir.path();
    let good = cow(d, "good", 5, SEALED, 40960, &[1, 3]);
    refused(&NoDriver, &f, std::slice::from_ref(&good), "no such device");
    refused(&fake(7), &f, std::slice::from_ref(&good), "right before");
    refused(&fake(5), &f, std::slice::from_ref(&good), "right before");
    let other = Fake(Running {
        uuid: [8; 16],
        seqid: 6,
        nonce: 0,
        own: vec![],
        origin: None,
    });
    refused(&other, &f, std::slice::from_ref(&good), "another series");
    for flags in [0, FLAG_CLEAN, FLAG_INDEX_ONLY] {
        refused(
            &fake(6),
            &f,
            &[cow(d, "open", 5, flags, 40960, &[1])],
            "not sealed",
        );
    }
    let short = cow(d, "short", 5, SEALED, 40960, &[1]);
    fs::OpenOptions::new()
        .write(true)
        .open(&short)
        .unwrap()
        .set_len(4096 + 9 * 8)
        .unwrap();
    refused(&fake(6), &f, &[short], "ends after 9 of 10");
    let gap = cow(d, "gap", 3, SEALED, 40960, &[1]);
    refused(&fake(6), &f, &[gap, good.clone()], "a link is missing");
    refused(
        &fake(6),
        &f,
        &[good.clone(), good.clone()],
        "a link is missing",
    );
    refused(&fake(6), &f, &[d.join("nowhere")], "nowhere");
    fs::write(
        d.join("text"),
        "not a cow file, but long enough to hold a header of 64 bytes, yes",
    )
    .unwrap();
    refused(&fake(6), &f, &[d.join("text")], "wrong magic");
    refused(&fake(6), &f, &[], "no COW file");
    // And the right one works.
    update(&fake(6), &f, &[good]).unwrap();
    let image = fs::read(&f.image).unwrap();
    assert!(image[4096..8192].iter().all(|b| *b == 2));
    assert!(image[..4096].iter().all(|b| *b == 1));
}

#[test]
fn size_mismatch_and_same_file_are_refused() {
    let f = files(&[1; 4096], &[2; 8192]);
    let c = cow(f.dir.path(), "c", 1, SEALED, 8192, &[0]);
    refused(&fake(2), &f, std::slice::from_ref(&c), "has 4096 bytes");
    let same = Files {
        dir: f.dir,
        snapshot: f.snapshot.clone(),
        image: f.snapshot,
    };
    refused(&fake(2), &same, &[c], "the same");
}

/// The C tool counted a short read as success.
#[test]
fn a_short_read_is_an_error_and_the_image_is_said_to_be_touched() {
    let f = files(&[1; 40960], &[2; 40960]);
    let c = cow(f.dir.path(), "c", 1, SEALED, 40960, &[0, 9]);
    let pair = check::open(&fake(2), &f.snapshot, &f.image, true).unwrap();
    let chain = check::chain(&[c], &pair).unwrap();
    // The device shrinks under us after everything was checked.
    fs::OpenOptions::new()
        .write(true)
        .open(&f.snapshot)
        .unwrap()
        .set_len(20480)
        .unwrap();
    let runs = Union::new(&chain, 10);
    let stage = Stage::new();
    let failed = copy::copy(
        &pair.snapshot,
        &pair.image,
        pair.bytes,
        runs,
        1,
        &ProgressBar::hidden(),
        &stage,
    )
    .unwrap_err();
    assert_eq!(stage.progress(), Progress::Writing);
    assert!(format!("{failed:#}").contains("36864"), "{failed:#}");
}

#[test]
fn verify_names_what_differs_and_leaves_out_the_cow_file() {
    let mut new = vec![1u8; 3 << 20];
    for b in [0usize, 5, 6, 300, 767] {
        new[b * 4096 + 17] = 9;
    }
    let f = files(&vec![1u8; 3 << 20], &new);
    let (a, b) = (
        fs::File::open(&f.snapshot).unwrap(),
        fs::File::open(&f.image).unwrap(),
    );
    let skip = [Extent {
        start: 290,
        len: 20,
    }];
    let own = || Ok(skip.to_vec());
    let found = verify::compare(&a, &b, 3 << 20, &own, 3, &ProgressBar::hidden()).unwrap();
    let want = [(0, 1), (5, 2), (767, 1)].map(|(start, len)| Extent { start, len });
    assert_eq!(found.different, want);
    assert_eq!((found.blocks, found.left_out), (4, 20));
    assert!(verify::compare(&a, &b, 4 << 20, &own, 1, &ProgressBar::hidden()).is_err());
}
