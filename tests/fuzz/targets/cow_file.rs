// SPDX-License-Identifier: GPL-2.0-only
//! Any bytes as COW files: opening and listing them ends in an error or in the runs that the bytes say.
#![no_main]

use dattobd_client::cow_file::{CowFile, Union};
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{memfd_create, MFdFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

const BLOCK: usize = 4096;

/// A file in memory, and the name under which it can be opened.
fn file(bytes: &[u8]) -> (File, std::path::PathBuf) {
    let mut file = File::from(memfd_create(c"cow", MFdFlags::empty()).expect("a file in memory"));
    file.write_all(bytes).expect("room in memory");
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, name.into())
}

/// What the index says of block `b`, if it is long enough.
fn changed(bytes: &[u8], b: usize) -> Option<bool> {
    let at = BLOCK + 8 * b;
    Some(bytes.get(at..at + 8)?.iter().any(|x| *x != 0))
}

fuzz_target!(|data: &[u8]| {
    // Blocks to ask for, where the index begins within the input, flips of the header.
    let [a, b, cut, data @ ..] = data else { return };
    let blocks = usize::from(*a) * 7 + usize::from(*b);
    let (first, second) = data.split_at(usize::from(*cut).min(data.len()));
    let whole = |header: &[u8], index: &[u8]| {
        let mut bytes = header.to_vec();
        bytes.resize(BLOCK, 0);
        bytes.extend_from_slice(index);
        bytes
    };
    let files = [whole(first, second), whole(first, first), data.to_vec()];
    let mut open = Vec::new();
    for bytes in &files {
        let (_keep, path) = file(bytes);
        let Ok(cow) = CowFile::open(&path) else {
            continue;
        };
        let _ = (cow.require_sealed(), cow.header);
        let covered = cow.covered().expect("its size");
        assert_eq!(
            cow.require_index(blocks as u64 * 4096).is_ok(),
            covered >= blocks as u64
        );
        let mut listed = vec![false; blocks];
        let mut end = 0;
        let mut error = false;
        for run in cow.changed(blocks as u64) {
            match run {
                Ok(run) => {
                    assert!(
                        run.len > 0 && (run.start > end || end == 0),
                        "runs touch or go backwards"
                    );
                    end = run.start + run.len;
                    listed[run.start as usize..end as usize].fill(true);
                }
                Err(_) => error = true,
            }
        }
        let said: Option<Vec<bool>> = (0..blocks).map(|b| changed(bytes, b)).collect();
        match said {
            Some(said) => assert!(!error && said == listed),
            None => assert!(error, "an index that ends too early is no error"),
        }
        if !error {
            open.push((cow, listed));
        }
    }
    let mut all = vec![false; blocks];
    for (_, listed) in &open {
        all.iter_mut().zip(listed).for_each(|(a, l)| *a |= *l);
    }
    let cows: Vec<CowFile> = open.into_iter().map(|(cow, _)| cow).collect();
    let mut union = vec![false; blocks];
    for run in Union::new(&cows, blocks as u64) {
        let run = run.expect("files that could be read");
        union[run.start as usize..(run.start + run.len) as usize].fill(true);
    }
    assert!(cows.is_empty() || union == all);
});
