// SPDX-License-Identifier: GPL-2.0-only
//! The COW file reader against a naive model, and against files that are broken on purpose.

use dattobd_client::cow_file::{CowFile, Error, Union};
use ioctl_abi::cow::{
    Extension, Geometry, Header, EXT_OFFSET, EXT_STATE_ROOTED, FLAG_CLEAN, FLAG_INDEX_ONLY,
    HEADER_BYTES,
};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

fn header(seqid: u64) -> Header {
    Header {
        flags: FLAG_CLEAN | FLAG_INDEX_ONLY,
        seqid,
        uuid: [7; 16],
        version: 1,
        ..Header::default()
    }
}

/// Writes a COW file as either driver would: sparse, entries 1 or the place that a copy once had.
fn write(dir: &Path, name: &str, entries: &[u64]) -> PathBuf {
    let path = dir.join(name);
    let file = fs::File::create(&path).unwrap();
    let geometry = Geometry {
        origin_bytes: entries.len() as u64 * 4096,
    };
    file.set_len(geometry.data_offset()).unwrap();
    file.write_all_at(&header(1).encode(), 0).unwrap();
    for (i, e) in entries.iter().enumerate().filter(|(_, e)| **e != 0) {
        file.write_all_at(&e.to_le_bytes(), HEADER_BYTES + i as u64 * 8)
            .unwrap();
    }
    path
}

fn blocks(list: impl Iterator<Item = Result<ioctl_abi::ioctl::Extent, Error>>) -> Vec<u64> {
    let mut last_end = None;
    let mut all = Vec::new();
    for e in list {
        let e = e.unwrap();
        assert!(e.len > 0);
        // Maximal: two runs never touch.
        assert!(last_end.is_none_or(|end| e.start > end));
        last_end = Some(e.start + e.len);
        all.extend(e.start..e.start + e.len);
    }
    all
}

#[test]
fn the_nonce_is_ours_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "cow", &[0, 1]);
    // The C driver's file has zeros there.
    assert_eq!(CowFile::open(&path).unwrap().nonce, 0);
    let ext = Extension {
        state: EXT_STATE_ROOTED,
        nonce: 0x0123_4567_89ab_cdef,
        origin_bytes: 8192,
        roots: [1, 2],
    };
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&ext.encode(), EXT_OFFSET as u64).unwrap();
    assert_eq!(CowFile::open(&path).unwrap().nonce, ext.nonce);
    // Cut within it: whoever needs the index refuses the file.
    file.set_len(EXT_OFFSET as u64 + 30).unwrap();
    assert_eq!(CowFile::open(&path).unwrap().nonce, 0);
}

#[test]
fn the_time_grows_with_what_changed_and_not_with_the_device() {
    // The index of 32 TiB: read byte by byte it would take minutes.
    let blocks = 1u64 << 33;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cow");
    let file = fs::File::create(&path).unwrap();
    let geometry = Geometry {
        origin_bytes: blocks * 4096,
    };
    file.set_len(geometry.data_offset()).unwrap();
    file.write_all_at(&header(1).encode(), 0).unwrap();
    let changed = [3, 4, 100_000_000, 100_000_511, 100_000_512, blocks - 1];
    for block in changed {
        let entry = 1u64.to_le_bytes();
        file.write_all_at(&entry, HEADER_BYTES + block * 8).unwrap();
    }
    let cow = CowFile::open(&path).unwrap();
    let start = std::time::Instant::now();
    assert_eq!(self::blocks(cow.changed(blocks)), changed);
    // Generous: it takes milliseconds.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    // A hole up to an end that comes too early is not "unchanged".
    file.set_len(HEADER_BYTES + (blocks - 512) * 8).unwrap();
    let cow = CowFile::open(&path).unwrap();
    let last = cow.changed(blocks).last().unwrap();
    assert!(matches!(last, Err(Error::ShortIndex { .. })), "{last:?}");
}

fn entries() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(
        prop_oneof![4 => Just(0), 2 => Just(1), 1 => 2u64..1 << 40],
        1..20_000,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn reads_what_was_written(list in entries()) {
        let dir = tempfile::tempdir().unwrap();
        let cow = CowFile::open(&write(dir.path(), "a", &list)).unwrap();
        cow.require_sealed().unwrap();
        cow.require_index(list.len() as u64 * 4096).unwrap();
        let want: Vec<u64> =
            (0..list.len() as u64).filter(|b| list[*b as usize] != 0).collect();
        prop_assert_eq!(blocks(cow.changed(list.len() as u64)), want);
    }

    #[test]
    fn a_union_is_every_block_of_any(a in entries(), b in entries(), c in entries()) {
        let n = a.len().min(b.len()).min(c.len());
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<CowFile> = [("a", &a), ("b", &b), ("c", &c)]
            .iter()
            .map(|(name, l)| CowFile::open(&write(dir.path(), name, &l[..n])).unwrap())
            .collect();
        let want: Vec<u64> = (0..n as u64)
            .filter(|i| [&a, &b, &c].iter().any(|l| l[*i as usize] != 0))
            .collect();
        prop_assert_eq!(blocks(Union::new(&files, n as u64)), want);
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..20_000),
                            magic in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut bytes = bytes;
        if magic && bytes.len() >= 64 {
            bytes[..64].copy_from_slice(&header(1).encode());
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(cow) = CowFile::open(&path) {
            let _ = cow.require_sealed();
            let _ = cow.require_index(u64::MAX / 2);
            // Far more blocks than there are: an error, not an endless list of unchanged ones.
            prop_assert!(cow.changed(1 << 40).any(|e| e.is_err()) || bytes.len() < 4096);
        }
        prop_assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn an_unsealed_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for flags in [0, FLAG_CLEAN, FLAG_INDEX_ONLY, 4] {
        let path = write(dir.path(), "a", &[1, 0, 1]);
        let h = Header { flags, ..header(1) };
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&h.encode(), 0)
            .unwrap();
        let cow = CowFile::open(&path).unwrap();
        assert!(
            matches!(cow.require_sealed(), Err(Error::NotSealed(_))),
            "{flags}"
        );
    }
}

#[test]
fn a_short_index_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a", &[0; 5000]);
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096 + 8 * 4000)
        .unwrap();
    let cow = CowFile::open(&path).unwrap();
    assert!(matches!(
        cow.require_index(5000 * 4096),
        Err(Error::ShortIndex { have: 4000, .. })
    ));
    assert!(cow.changed(5000).any(|e| e.is_err()));
}
