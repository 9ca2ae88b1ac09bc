// SPDX-License-Identifier: GPL-2.0-only
//! The private blocks of a COW file, as a reload finds them on a disk that anything has happened to. Their
//! envelopes are made good here, or nothing would get past the checksums. Nothing may panic; what loads has at
//! least the regions that are marked; extents that are accepted lie on the device.
#![no_main]

use cow_logic::abi::cow::{Geometry, GROUP_BLOCKS, GROUP_REGIONS, REGION_BLOCKS};
use cow_logic::change_map::ChangeMap;
use cow_logic::extents::FileExtent;
use cow_logic::load::{self, Flaw, Groups, Source};
use cow_logic::private_format::{
    encode_log, put, seal, Block, GroupWord, Kind, Root, RootState, ENVELOPE,
};
use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;

const NONCE: u64 = 0x1234_5678_9abc_def1;
/// Where the private blocks lie, in blocks of the origin.
const START: u64 = 100;

struct Disk {
    blocks: HashMap<u64, Box<Block>>,
    zeros: Box<Block>,
    size: u64,
}

impl Source for Disk {
    type Error = Flaw;

    fn read(&mut self, block: u64) -> Result<&Block, Flaw> {
        if block >= self.size {
            return Err(Flaw::Impossible);
        }
        Ok(self.blocks.get(&block).unwrap_or(&self.zeros))
    }
}

/// The input, piece by piece; zeros behind its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        now
    }
    fn number(&mut self, n: usize) -> u64 {
        self.bytes(n)
            .iter()
            .fold(0, |sum, b| (sum << 8) | u64::from(*b))
    }
}

fn block(kind: Kind, number: u64, generation: u64, content: &[u8]) -> Box<Block> {
    let mut block = Box::new([0; 4096]);
    put(&mut *block, ENVELOPE, content);
    seal(&mut block, kind, NONCE, number, generation);
    block
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let geometry = Geometry {
        origin_bytes: (1 + input.number(3) % 200_000) * 4096,
    };
    let blocks = geometry.blocks();
    let layout = geometry.private();
    let mut disk = Disk {
        blocks: HashMap::new(),
        zeros: Box::new([0; 4096]),
        size: blocks,
    };
    let roots = [START, START + 1];

    // Roots of any content, or good ones that are changed here and there.
    for place in roots {
        let mut content = Box::new([0; 4096]);
        let how = input.number(1);
        if how & 1 == 0 {
            let mut template = Root::decode(&block(Kind::Root, 0, 0, &[1])).expect("a live root");
            template.origin_bytes = geometry.origin_bytes;
            template.state = [
                RootState::Live,
                RootState::Sealed,
                RootState::Prepared,
                RootState::Closed,
            ][(how as usize >> 1) & 3];
            template.own[0] = (START, layout.end);
            template.extents = input.number(2) as u32;
            template.list = input.number(1) as u32;
            template.list_generation = input.number(1);
            template.encode(&mut content);
        }
        for _ in 0..how >> 4 {
            let at = ENVELOPE + input.number(2) as usize % (4096 - ENVELOPE);
            put(&mut *content, at, input.bytes(8));
        }
        let number = layout.roots + place - START;
        disk.blocks.insert(
            place,
            block(Kind::Root, number, input.number(1), &content[ENVELOPE..]),
        );
    }

    // The log, its sectors good or not.
    let groups = layout.groups as usize;
    let mut log = vec![GroupWord::default(); groups];
    for word in log.iter_mut().take(64) {
        word.slot = input.number(1) as u32;
        word.marks = input.number(4) as u32;
    }
    for (i, words) in (0..).zip(log.chunks(cow_logic::abi::cow::LOG_BLOCK_GROUPS as usize)) {
        let number = layout.log + i;
        let mut block = Box::new([0; 4096]);
        encode_log(&mut block, NONCE, number, words);
        for _ in 0..input.number(1) & 3 {
            let at = input.number(2) as usize % 4096;
            block[at] ^= input.number(1) as u8;
        }
        disk.blocks.insert(START + number - layout.roots, block);
    }

    // Bitmaps and lists, at places that are looked at.
    for _ in 0..input.number(1) & 15 {
        let kind =
            [Kind::Bitmap, Kind::Extents, Kind::Index, Kind::CopyMap][input.number(1) as usize & 3];
        let first = if kind == Kind::Extents {
            layout.lists
        } else {
            layout.slots
        };
        let number = first + input.number(1);
        let generation = input.number(1);
        let len = input.number(2) as usize & 4095;
        let content = input.bytes(len);
        disk.blocks.insert(
            START + number - layout.roots,
            block(kind, number, generation, content),
        );
    }

    let mut found = None;
    if load::read_root(&mut disk, NONCE, roots, &layout, |root| {
        found = Some(root);
        Ok(())
    })
    .is_err()
    {
        return;
    }
    let root = found.expect("the one whose generation was returned");
    let _ = load::lies_within(&root, geometry);
    let mut words = vec![GroupWord::default(); groups];
    if load::read_log(&mut disk, &root, NONCE, &layout, &mut words).is_err() {
        return;
    }
    let changes = ChangeMap::new(blocks).expect("memory");
    let mut bad = Vec::new();
    let mut by_slot = vec![0; layout.slot_count as usize];
    let added = load::read_changes(
        &mut disk,
        &root,
        NONCE,
        &layout,
        Groups {
            words: &words,
            by_slot: &mut by_slot,
        },
        &changes,
        |group| bad.push(group),
    );
    let Ok(added) = added else { return };
    assert!(added <= changes.count() && changes.count() <= blocks);
    let all =
        |first: u64, len: u64| (first..(first + len).min(blocks)).all(|b| changes.is_marked(b));
    for group in bad {
        assert!(
            all(u64::from(group) * GROUP_BLOCKS, GROUP_BLOCKS),
            "a bad bitmap must count as changed"
        );
    }
    if matches!(root.state, RootState::Live | RootState::Prepared) {
        for (group, word) in (0u64..).zip(&words) {
            for region in (0..GROUP_REGIONS).filter(|r| (word.marks >> r) & 1 != 0) {
                assert!(
                    all(group * GROUP_BLOCKS + region * REGION_BLOCKS, REGION_BLOCKS),
                    "a mark was missed"
                );
            }
        }
    }
    let mut list: Vec<FileExtent> = Vec::new();
    let read = load::read_extents(&mut disk, &root, NONCE, &layout, |e| {
        list.push(e);
        Ok(())
    });
    if read.is_ok() && load::check_extents(&root, &list).is_ok() {
        let end = root.origin_bytes.div_ceil(4096);
        for e in &list {
            assert!(e.len > 0 && e.origin_block.checked_add(e.len).is_some_and(|e| e <= end));
        }
    }
});
