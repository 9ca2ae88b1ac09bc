// SPDX-License-Identifier: GPL-2.0-only
//! Reading a file's private blocks back: what is asked for at once, and that it changes nothing else.

use crate::Random;
use cow_logic::abi::cow::{Geometry, PrivateLayout, GROUP_BLOCKS};
use cow_logic::change_map::ChangeMap;
use cow_logic::load::{self, Flaw, Groups, Source, AHEAD};
use cow_logic::private_format::*;
use std::collections::{HashMap, HashSet, VecDeque};

const NONCE: u64 = 0x1234_5678_9abc_def1;
/// Where the private blocks lie.
const START: u64 = 100;

/// Groups of the device; fewer where every step is slow.
const GROUPS: u64 = if cfg!(miri) { 80 } else { 700 };

#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    Flaw(Flaw),
    /// This block cannot be read.
    Unreadable(u64),
}

impl From<Flaw> for Trouble {
    fn from(flaw: Flaw) -> Self {
        Trouble::Flaw(flaw)
    }
}

/// A disk that knows what it was told to read ahead, and what was then read.
#[derive(Default)]
struct Disk {
    blocks: HashMap<u64, Box<Block>>,
    unreadable: HashSet<u64>,
    announced: VecDeque<u64>,
    /// How often something was announced.
    times: usize,
    /// Blocks that were read although they were not the next one announced.
    unannounced: Vec<u64>,
    read: Vec<u64>,
}

impl Source for Disk {
    type Error = Trouble;

    fn read(&mut self, block: u64) -> Result<&Block, Trouble> {
        if self.announced.pop_front() != Some(block) {
            self.unannounced.push(block);
        }
        self.read.push(block);
        if self.unreadable.contains(&block) {
            return Err(Trouble::Unreadable(block));
        }
        Ok(self.blocks.entry(block).or_insert(Box::new([0; 4096])))
    }

    fn read_ahead(&mut self, blocks: &[u64]) {
        assert!(blocks.len() <= AHEAD);
        assert_eq!(
            self.announced.len(),
            0,
            "announced before, and not read yet"
        );
        self.times += usize::from(!blocks.is_empty());
        self.announced.extend(blocks);
    }
}

struct File {
    root: Root,
    layout: PrivateLayout,
    geometry: Geometry,
    words: Vec<GroupWord>,
    disk: Disk,
}

impl File {
    /// Every group has a bitmap block with one changed block, in slots of any order.
    fn new() -> Self {
        let geometry = Geometry {
            origin_bytes: GROUPS * GROUP_BLOCKS * 4096,
        };
        let layout = geometry.private();
        let mut first = Box::new([0; 4096]);
        put(&mut *first, ENVELOPE, &[1]);
        seal(&mut first, Kind::Root, 0, 0, 0);
        let mut root = Root::decode(&first).expect("a live root");
        root.state = RootState::Sealed;
        root.origin_bytes = geometry.origin_bytes;
        root.own[0] = (START, layout.end - layout.roots);
        let mut slots: Vec<u32> = (0..layout.slot_count as u32).collect();
        let mut random = Random(1);
        for i in (1..slots.len()).rev() {
            slots.swap(i, random.below(i as u64 + 1) as usize);
        }
        let mut file = Self {
            root,
            layout,
            geometry,
            words: Vec::new(),
            disk: Disk::default(),
        };
        for (group, slot) in (0..GROUPS).zip(slots) {
            file.words.push(GroupWord {
                marks: 0,
                slot: slot + 1,
            });
            let mut block = Box::new([0; 4096]);
            encode_bitmap(&mut block, group, &[0, 1 << (group % 64)]);
            let number = layout.slots + u64::from(slot);
            seal(&mut block, Kind::Bitmap, NONCE, number, 1);
            file.disk.blocks.insert(file.place_of(group), block);
        }
        file
    }

    /// Where the bitmap block of a group lies.
    fn place_of(&self, group: u64) -> u64 {
        let slot = self.words[group as usize].slot - 1;
        START + self.layout.slots - self.layout.roots + u64::from(slot)
    }

    /// The changes, and the groups that were bad.
    fn changes(&mut self, room: usize) -> Result<(ChangeMap, Vec<u32>), Trouble> {
        let changes = ChangeMap::new(self.geometry.blocks()).expect("memory");
        let mut bad = Vec::new();
        load::read_changes(
            &mut self.disk,
            &self.root,
            NONCE,
            &self.layout,
            Groups {
                words: &self.words,
                by_slot: &mut vec![7; room],
            },
            &changes,
            |group| bad.push(group),
        )?;
        Ok((changes, bad))
    }
}

/// The blocks that `File::new` has changed in a group.
fn changed_in(group: u64) -> u64 {
    group * GROUP_BLOCKS + 64 + group % 64
}

#[test]
fn bitmaps_are_read_in_the_order_of_the_disk_and_many_at_once() {
    let mut file = File::new();
    let room = file.layout.slot_count as usize;
    let (changes, bad) = file.changes(room).unwrap();
    assert_eq!(changes.count(), GROUPS);
    assert!((0..GROUPS).all(|g| changes.is_marked(changed_in(g))));
    assert!(bad.is_empty());
    assert!(file.disk.unannounced.is_empty());
    assert!(file.disk.read.is_sorted());
    assert_eq!(file.disk.read.len(), GROUPS as usize);
    assert_eq!(file.disk.times, (GROUPS as usize).div_ceil(AHEAD));
}

#[test]
fn without_room_for_the_order_the_same_is_read() {
    for room in [0, 1, GROUPS as usize / 2] {
        let mut file = File::new();
        let (changes, _) = file.changes(room).unwrap();
        assert_eq!(changes.count(), GROUPS);
        assert!((0..GROUPS).all(|g| changes.is_marked(changed_in(g))));
        assert_eq!(file.disk.read.len(), GROUPS as usize);
    }
}

#[test]
fn one_block_that_cannot_be_read_is_the_error() {
    let room = File::new().layout.slot_count as usize;
    for group in [0, 1, GROUPS / 2, GROUPS - 1] {
        let mut file = File::new();
        let place = file.place_of(group);
        file.disk.unreadable.insert(place);
        assert_eq!(
            file.changes(room).err(),
            Some(Trouble::Unreadable(place)),
            "group {group}"
        );
        // Others were not asked for after it.
        assert_eq!(file.disk.read.last(), Some(&place));
    }
}

#[test]
fn bad_blocks_and_wrong_slots_count_as_changed() {
    let mut file = File::new();
    let room = file.layout.slot_count as usize;
    let spoilt = file.place_of(3);
    file.disk.blocks.get_mut(&spoilt).unwrap()[2000] ^= 1;
    // One that there is not, and one that belongs to another group.
    file.words[5].slot = file.layout.slot_count as u32 + 1;
    file.words[8].slot = file.words[7].slot;
    // No bitmap: nothing had changed.
    file.words[9].slot = 0;
    let (changes, mut bad) = file.changes(room).unwrap();
    bad.sort_unstable();
    assert_eq!(bad, [3, 5, 8]);
    for group in 0..GROUPS {
        let first = group * GROUP_BLOCKS;
        let count = (first..first + GROUP_BLOCKS)
            .filter(|b| changes.is_marked(*b))
            .count() as u64;
        let want = match group {
            3 | 5 | 8 => GROUP_BLOCKS,
            9 => 0,
            _ => 1,
        };
        assert_eq!(count, want, "group {group}");
    }
    assert!(changes.is_marked(changed_in(7)));
}

#[test]
fn the_log_and_the_extents_are_read_ahead() {
    let mut file = File::new();
    let (layout, root) = (file.layout, file.root);
    for (i, words) in (0..).zip(
        file.words
            .chunks(cow_logic::abi::cow::LOG_BLOCK_GROUPS as usize),
    ) {
        let mut block = Box::new([0; 4096]);
        encode_log(&mut block, NONCE, layout.log + i, words);
        let place = START + layout.log - layout.roots + i;
        file.disk.blocks.insert(place, block);
    }
    let mut words = vec![GroupWord::default(); GROUPS as usize];
    let bad = load::read_log(&mut file.disk, &root, NONCE, &layout, &mut words).unwrap();
    assert_eq!(bad, 0);
    assert_eq!(words, file.words);
    assert!(file.disk.unannounced.is_empty());
    assert_eq!(file.disk.times, 1);

    // A list of more extents than there is room for is none; one that cannot be read is that error.
    let mut root = root;
    root.extents = 3 * EXTENTS_PER_BLOCK as u32;
    let place = START + layout.lists - layout.roots;
    file.disk.unreadable.insert(place);
    let result = load::read_extents(&mut file.disk, &root, NONCE, &layout, |_| Ok(()));
    assert_eq!(result, Err(Trouble::Unreadable(place)));
    root.extents = u32::MAX;
    let result = load::read_extents(&mut file.disk, &root, NONCE, &layout, |_| Ok(()));
    assert_eq!(result, Err(Trouble::Flaw(Flaw::Impossible)));
}

/// What has no place is an error when it is its turn: what comes before it is still shown.
#[test]
fn a_place_that_is_not_known_ends_it_there() {
    let mut disk = Disk::default();
    let mut seen = Vec::new();
    let at = |n: &u64| {
        if *n == 70 {
            Err(Flaw::Impossible)
        } else {
            Ok(*n)
        }
    };
    let result = load::read_each(&mut disk, 0..200u64, at, |n, _| {
        seen.push(n);
        Ok(())
    });
    assert_eq!(result, Err(Trouble::Flaw(Flaw::Impossible)));
    assert_eq!(seen, (0..70).collect::<Vec<_>>());
    assert!(disk.unannounced.is_empty());
}
