// SPDX-License-Identifier: GPL-2.0-only
//! Whole command lines: the program itself where no driver is needed, its library with a driver made
//! up for the purpose elsewhere. And COW files that are damaged in every possible place.

use anyhow::Result;
use clap::Parser;
use ioctl_abi::cow::{Geometry, Header, FLAG_CLEAN, FLAG_INDEX_ONLY, HEADER_BYTES};
use ioctl_abi::ioctl::Extent;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use update_img::check::{Driver, Running};
use update_img::cli::Cli;
use update_img::run::{exit_status, run, DIFFERS, FAILED};
use update_img::stage::{Progress, Stage};

const BLOCKS: u64 = 600;
/// The last block is a partial one.
const BYTES: u64 = BLOCKS * 4096 - 512;
const CHANGED: [u64; 6] = [0, 7, 8, 9, 300, BLOCKS - 1];

/// Snapshot 6 of series 9. Its COW file lies on `own` at first, and on `later` when asked again.
struct Fake {
    asked: AtomicU64,
    own: Vec<Extent>,
    later: Vec<Extent>,
    origin: Option<u64>,
}

impl Driver for Fake {
    fn running(&self, _node: &Path) -> Result<Running> {
        // The first two questions are the checks' and the comparison's own.
        let first = self.asked.fetch_add(1, Ordering::SeqCst) < 2;
        Ok(Running {
            uuid: [9; 16],
            seqid: 6,
            nonce: 0,
            own: if first { &self.own } else { &self.later }.clone(),
            origin: self.origin,
        })
    }
}

fn driver(own: &[Extent], later: &[Extent]) -> Fake {
    Fake {
        asked: AtomicU64::new(0),
        own: own.to_vec(),
        later: later.to_vec(),
        origin: None,
    }
}

struct Files {
    _dir: tempfile::TempDir,
    snapshot: PathBuf,
    cow: PathBuf,
    image: PathBuf,
    old: Vec<u8>,
    new: Vec<u8>,
}

fn files() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let old: Vec<u8> = (0..BYTES).map(|i| (i / 512 % 249) as u8).collect();
    let mut new = old.clone();
    for b in CHANGED {
        let start = b as usize * 4096;
        let end = (start + 4096).min(BYTES as usize);
        new[start..end].fill(0xfe);
    }
    fs::write(path("snap"), &new).unwrap();
    fs::write(path("img"), &old).unwrap();
    let cow = fs::File::create(path("cow")).unwrap();
    let geometry = Geometry {
        origin_bytes: BYTES,
    };
    cow.set_len(geometry.data_offset()).unwrap();
    let header = Header {
        flags: FLAG_CLEAN | FLAG_INDEX_ONLY,
        seqid: 5,
        uuid: [9; 16],
        version: 1,
        nr_changed_blocks: CHANGED.len() as u64,
        ..Header::default()
    };
    cow.write_all_at(&header.encode(), 0).unwrap();
    for (i, b) in CHANGED.iter().enumerate() {
        // As the C driver leaves them: 1, or where a copy once was.
        let entry = if i % 2 == 0 { 1 } else { 1000 + b };
        cow.write_all_at(&u64::to_le_bytes(entry), HEADER_BYTES + b * 8)
            .unwrap();
    }
    Files {
        snapshot: path("snap"),
        cow: path("cow"),
        image: path("img"),
        _dir: dir,
        old,
        new,
    }
}

impl Files {
    fn image(&self) -> Vec<u8> {
        fs::read(&self.image).unwrap()
    }
}

/// Runs a command line; what it wrote to standard output, and the error in full.
fn go(driver: &Fake, options: &[&str], paths: &[&Path]) -> (String, Result<(), String>) {
    let words = ["update-img"].iter().chain(options).map(Path::new);
    let cli = Cli::try_parse_from(words.chain(paths.iter().copied())).unwrap();
    let mut out = Vec::new();
    let result = run(&cli, driver, &Stage::new(), &mut out).map_err(|e| format!("{e:#}"));
    (String::from_utf8(out).unwrap(), result)
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn updates_verifies_and_sums_up() {
    let f = files();
    let all = [&*f.snapshot, &*f.cow, &*f.image];
    let (out, result) = go(&driver(&[], &[]), &["--verify"], &all);
    result.unwrap();
    assert!(f.image() == f.new);
    assert!(out.contains("6 blocks updated"), "{out}");
    assert!(out.contains("in 4 requests"), "{out}");
    assert!(out.contains("equal to the snapshot"), "{out}");
    // Once more is harmless.
    let (out, result) = go(&driver(&[], &[]), &["-q", "--verify"], &all);
    result.unwrap();
    assert_eq!(out, "");
    assert!(f.image() == f.new);
}

#[test]
fn json_is_one_object_whatever_was_asked() {
    let f = files();
    let all = [&*f.snapshot, &*f.cow, &*f.image];
    let (out, result) = go(&driver(&[], &[]), &["--json", "--dry-run"], &all);
    result.unwrap();
    assert!(f.image() == f.old, "--dry-run wrote");
    let v = json(&out);
    assert_eq!(
        (v["dry_run"].as_bool(), v["changed_blocks"].as_u64()),
        (Some(true), Some(6))
    );
    let (out, result) = go(
        &driver(&[], &[]),
        &["--json", "--verify-only"],
        &[&f.snapshot, &f.image],
    );
    assert!(result
        .unwrap_err()
        .contains("differs from the snapshot in 6 blocks"));
    let v = json(&out);
    assert_eq!(v["verify"]["equal"], false);
    assert_eq!(
        v["verify"]["different"],
        json(
            r#"[{"start":0,"len":1},{"start":7,"len":3},{"start":300,"len":1},{"start":599,"len":1}]"#
        )
    );
    assert!(f.image() == f.old, "--verify-only wrote");
    let (out, result) = go(&driver(&[], &[]), &["--json", "--verify"], &all);
    result.unwrap();
    let v = json(&out);
    assert_eq!(v["bytes_copied"], 6 * 4096 - 512);
    assert_eq!(
        (&v["requests"], &v["device_bytes"]),
        (&4.into(), &BYTES.into())
    );
    assert_eq!(v["verify"]["equal"], true);
}

#[test]
fn dry_run_writes_nothing_and_says_how_much_it_would() {
    let f = files();
    let (out, result) = go(&driver(&[], &[]), &["-n"], &[&f.snapshot, &f.cow, &f.image]);
    result.unwrap();
    assert!(out.contains("6 of 600 blocks changed"), "{out}");
    assert!(f.image() == f.old);
}

/// Auto-expand may give the COW file more of the device while the comparison runs.
#[test]
fn a_cow_file_that_grows_is_left_out_as_far_as_it_goes() {
    let f = files();
    let (own, more) = (
        Extent { start: 0, len: 8 },
        Extent {
            start: 290,
            len: 400,
        },
    );
    let pair = [&*f.snapshot, &*f.image];
    let grown = driver(&[own], &[own, Extent { start: 8, len: 2 }, more]);
    let (out, result) = go(&grown, &["--verify-only"], &pair);
    result.unwrap();
    assert!(
        out.contains("410 blocks of the running COW file left out"),
        "{out}"
    );
    // Had it not grown, those would be differences.
    let (_, result) = go(&driver(&[own], &[own]), &["--verify-only"], &pair);
    assert!(result.unwrap_err().contains("in 4 blocks"));
}

#[test]
fn verify_notices_a_change_that_the_map_does_not_have() {
    let f = files();
    fs::OpenOptions::new()
        .write(true)
        .open(&f.snapshot)
        .unwrap()
        .write_all_at(b"x", 100 * 4096 + 5)
        .unwrap();
    let all = [&*f.snapshot, &*f.cow, &*f.image];
    let (out, result) = go(&driver(&[], &[]), &["--json", "--verify"], &all);
    assert!(result.unwrap_err().contains("in 1 blocks"));
    // The update was done, and is summed up.
    let v = json(&out);
    assert_eq!(v["changed_blocks"], 6);
    assert_eq!(v["verify"]["different"], json(r#"[{"start":100,"len":1}]"#));
}

#[test]
fn wrong_files_are_refused_with_a_reason() {
    let f = files();
    let d = driver(&[], &[]);
    let (none, dir) = (f.image.with_file_name("none"), f.image.parent().unwrap());
    let pipe = f.image.with_file_name("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let cases: [(&[&Path], &str); 9] = [
        (&[&f.snapshot, &f.image], "name the COW file too"),
        (&[&none, &f.cow, &f.image], "dbdctl transition-to-snapshot"),
        (&[&f.snapshot, &none, &f.image], "cannot use the COW file"),
        (&[&f.snapshot, &f.cow, &none], "take a full copy first"),
        (&[&f.snapshot, dir, &f.image], "no regular file"),
        (&[&f.snapshot, &pipe, &f.image], "no regular file"),
        (&[&f.snapshot, &f.cow, dir], "is a directory"),
        (
            &[&f.snapshot, &f.cow, &pipe],
            "neither a file nor a block device",
        ),
        (&[&f.snapshot, &f.image, &f.image], "are the same"),
    ];
    for (paths, word) in cases {
        let (out, result) = go(&d, &[], paths);
        let error = result.unwrap_err();
        assert!(error.contains(word), "{error:?} does not say {word:?}");
        assert_eq!(out, "");
        assert!(f.image() == f.old, "{word}: the image was written to");
    }
    let (_, result) = go(&d, &["-n"], &[&f.snapshot, &f.image]);
    assert!(result.unwrap_err().contains("name the COW file too"));
}

#[test]
fn an_image_on_the_device_itself_is_refused() {
    use std::os::unix::fs::MetadataExt;
    let f = files();
    let here = fs::metadata(&f.image).unwrap().dev();
    let all = [&*f.snapshot, &*f.cow, &*f.image];
    let mut d = driver(&[], &[]);
    d.origin = Some(here);
    for options in [&[][..], &["--dry-run"]] {
        let (out, result) = go(&d, options, &all);
        assert!(result.unwrap_err().contains("on another filesystem"));
        assert!(out.is_empty() && f.image() == f.old, "{options:?}");
    }
    // Looking at it does no harm.
    let (_, result) = go(&d, &["--verify-only"], &all);
    assert!(result.unwrap_err().contains("differs"));
    d.origin = Some(here ^ 1);
    go(&d, &[], &all).1.unwrap();
}

/// `--verify` alone is `--verify-only`; neither of them writes, and a COW file is looked at, not applied.
#[test]
fn comparing_alone_needs_no_cow_file_and_takes_one() {
    let f = files();
    let d = || {
        driver(
            &[Extent { start: 7, len: 1 }],
            &[Extent { start: 7, len: 1 }],
        )
    };
    let without = [&*f.snapshot, &*f.image];
    let with = [&*f.snapshot, &*f.cow, &*f.image];
    for (option, paths) in [
        ("--verify", &without[..]),
        ("--verify-only", &without),
        ("--verify-only", &with),
    ] {
        let (_, result) = go(&d(), &[option], paths);
        assert!(result
            .unwrap_err()
            .contains("differs from the snapshot in 5 blocks"));
        assert!(f.image() == f.old, "{option} wrote");
    }
    // One of another snapshot does not go with the pair.
    fs::OpenOptions::new()
        .write(true)
        .open(&f.cow)
        .unwrap()
        .write_all_at(&[3], 24)
        .unwrap();
    let (_, result) = go(&d(), &["--verify-only"], &with);
    assert!(result.unwrap_err().contains("right before the snapshot"));
    fs::write(&f.image, &f.new).unwrap();
    for option in ["--verify", "--verify-only"] {
        go(&d(), &[option], &without).1.unwrap();
    }
}

/// A script must be able to tell "differs" from "could not be compared".
#[test]
fn what_differs_has_an_exit_status_of_its_own() {
    let f = files();
    let status = |words: &[&Path]| {
        let words = [Path::new("update-img"), Path::new("-q")]
            .into_iter()
            .chain(words.iter().copied());
        let cli = Cli::try_parse_from(words).unwrap();
        let driver = driver(&[], &[]);
        let result = run(&cli, &driver, &Stage::new(), &mut Vec::new());
        exit_status(&result.unwrap_err())
    };
    let (only, verify) = (Path::new("--verify-only"), Path::new("--verify"));
    let none = f.image.with_file_name("none");
    assert_eq!(status(&[only, &f.snapshot, &f.image]), DIFFERS);
    assert_eq!(status(&[verify, &f.snapshot, &f.image]), DIFFERS);
    assert_eq!(status(&[only, &f.snapshot, &none]), FAILED);
    assert_eq!(status(&[&f.snapshot, &none, &f.image]), FAILED);
    // An update that was done, of an image that was another's before.
    fs::OpenOptions::new()
        .write(true)
        .open(&f.image)
        .unwrap()
        .write_all_at(b"x", 100 * 4096)
        .unwrap();
    assert_eq!(status(&[verify, &f.snapshot, &f.cow, &f.image]), DIFFERS);
}

/// A writer that a pipe's reader has left.
struct Gone;

impl std::io::Write for Gone {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_summary_that_cannot_be_written_does_not_spoil_the_update() {
    for option in ["--verify", "--json"] {
        let f = files();
        let words = ["update-img", option].map(Path::new);
        let paths = [&*f.snapshot, &*f.cow, &*f.image];
        let cli = Cli::try_parse_from(words.into_iter().chain(paths)).unwrap();
        let stage = Stage::new();
        let error = run(&cli, &driver(&[], &[]), &stage, &mut Gone).unwrap_err();
        assert_eq!(stage.progress(), Progress::Updated);
        assert!(
            format!("{error:#}").contains("the image is updated"),
            "{error:#}"
        );
        assert!(f.image() == f.new);
    }
}

fn program(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_update-img"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn the_program_tells_usage_from_failure() {
    for args in [&["--help"][..], &["--version"]] {
        let o = program(args);
        assert!(o.status.success() && !o.stdout.is_empty(), "{args:?}");
    }
    for args in [
        &[][..],
        &["/dev/datto0"],
        &["--nonsense", "a", "b", "c"],
        &["--queue-depth", "0", "a", "b", "c"],
        &["--verify-only", "--dry-run", "a", "b"],
    ] {
        let o = program(args);
        assert_eq!(o.status.code(), Some(2), "{args:?}");
        assert!(!o.stderr.is_empty() && o.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn the_program_refuses_a_plain_file_as_a_snapshot() {
    let f = files();
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    let o = program(&[&text(&f.snapshot), &text(&f.cow), &text(&f.image)]);
    assert_eq!(o.status.code(), Some(1));
    let said = String::from_utf8_lossy(&o.stderr).into_owned();
    assert!(said.contains("is not a snapshot device"), "{said}");
    assert!(o.stdout.is_empty());
    assert!(f.image() == f.old);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Bytes of header and index changed, and the file cut: it is refused with the image untouched, or
    /// applied; never a panic, never a byte in the image that is neither the old nor the new one.
    #[test]
    fn damaged_cow_files_do_no_harm(
        damage in proptest::collection::vec((0usize..64, any::<u8>()), 0..4),
        index in proptest::collection::vec((0usize..BLOCKS as usize * 8, any::<u8>()), 0..8),
        keep in prop_oneof![3 => Just(usize::MAX), 1 => 0usize..40_000],
    ) {
        let f = files();
        let good = fs::read(&f.cow).unwrap();
        let mut bytes = good.clone();
        for (at, byte) in &damage {
            bytes[*at] = *byte;
        }
        for (at, byte) in &index {
            bytes[HEADER_BYTES as usize + at] = *byte;
        }
        bytes.truncate(keep);
        fs::write(&f.cow, &bytes).unwrap();
        let (_, result) = go(&driver(&[], &[]), &["-q"], &[&f.snapshot, &f.cow, &f.image]);
        prop_assert!(fs::read(&f.cow).unwrap() == bytes, "the COW file was written to");
        let image = f.image();
        if result.is_err() {
            prop_assert!(image == f.old, "refused, but written to");
            return Ok(());
        }
        // What may be believed is intact: magic, sealed, sequence number, series, version.
        for range in [0..4, 24..56] {
            prop_assert_eq!(&bytes[range.clone()], &good[range]);
        }
        prop_assert_eq!(bytes[4] & 3, 3);
        prop_assert!(bytes.len() as u64 >= HEADER_BYTES + BLOCKS * 8);
        prop_assert_eq!(image.len() as u64, BYTES);
        for b in 0..BLOCKS {
            let range = b as usize * 4096..(b as usize * 4096 + 4096).min(image.len());
            let entry = HEADER_BYTES as usize + b as usize * 8;
            let want = if bytes[entry..entry + 8] == [0; 8] { &f.old } else { &f.new };
            prop_assert!(image[range.clone()] == want[range], "block {}", b);
        }
    }

    /// Nothing but garbage.
    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40_000)) {
        let f = files();
        fs::write(&f.cow, &bytes).unwrap();
        let (_, result) = go(&driver(&[], &[]), &["-q"], &[&f.snapshot, &f.cow, &f.image]);
        prop_assert!(result.is_err());
        prop_assert!(f.image() == f.old);
    }
}
