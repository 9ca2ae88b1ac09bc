// SPDX-License-Identifier: GPL-2.0-only
//! The private blocks of a COW file: what is written can be read, and nothing else is believed.

use cow_logic::abi::cow::{
    Extension, Geometry, EXT_STATE_ROOTED, EXT_STATE_VOLATILE, GROUP_BLOCKS, LOG_BLOCK_GROUPS,
    PRIVATE_GAP,
};
use cow_logic::crc32c::crc32c;
use cow_logic::extents::FileExtent;
use cow_logic::private_format::*;
use proptest::prelude::*;

const TIB: u64 = 1 << 40;

/// Words of a log block; fewer where every step is slow.
const WORDS: usize = if cfg!(miri) {
    130
} else {
    LOG_BLOCK_GROUPS as usize
};

/// What the log may say of a group.
fn word(n: u32) -> GroupWord {
    GroupWord {
        marks: n.wrapping_mul(0x9e37_79b9),
        slot: n,
    }
}

fn block_of(fill: u8) -> Box<Block> {
    Box::new([fill; 4096])
}

#[test]
fn the_checksum_is_the_one_of_iscsi() {
    // RFC 3720, appendix B.4.
    assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
    assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
    assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
    assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xe306_9283);
    let up: Vec<u8> = (0..32).collect();
    let down: Vec<u8> = (0..32).rev().collect();
    assert_eq!(crc32c(&[&up]), 0x46dd_794e);
    assert_eq!(crc32c(&[&down]), 0x113f_db5c);
    assert_eq!(crc32c(&[]), 0);
}

/// Bytes to checksum; fewer where every step is slow.
const BYTES: usize = if cfg!(miri) { 60 } else { 600 };

/// Bit by bit, as the definition says.
fn naive_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
        }
    }
    !crc
}

/// Every byte of a block once, and every bit of its envelope, and of a log block every bit of the
/// first sector's envelope.
#[test]
fn no_flipped_bit_is_believed() {
    let mut block = block_of(0x5a);
    seal(&mut block, Kind::Bitmap, 11, 12, 13);
    assert_eq!(check(&block, Kind::Bitmap, 11, 12), Some(13));
    let step = if cfg!(miri) { 509 } else { 1 };
    let bits = (0..ENVELOPE * 8).chain((ENVELOPE..4096).step_by(step).map(|b| b * 8 + b % 8));
    let bits = bits.step_by(if cfg!(miri) { 53 } else { 1 });
    for bit in bits {
        block[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(check(&block, Kind::Bitmap, 11, 12), None, "bit {bit}");
        block[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(check(&block, Kind::Bitmap, 11, 12), Some(13));
}

#[test]
fn no_flipped_bit_of_the_log_is_believed() {
    let words: Vec<_> = (100..100 + WORDS as u32).map(word).collect();
    let mut block = block_of(0);
    encode_log(&mut block, 11, 12, &words);
    let step = if cfg!(miri) { 911 } else { 1 };
    for byte in (0..WORDS.div_ceil(61) * 512).step_by(step) {
        block[byte] ^= 1 << (byte % 8);
        let mut read = vec![GroupWord::default(); WORDS];
        assert_eq!(decode_log(&block, 11, 12, &mut read), 1, "byte {byte}");
        for (i, word) in read.iter().enumerate() {
            let good = i / 61 != byte / 512;
            assert_eq!(
                *word,
                if good { words[i] } else { GroupWord::UNKNOWN },
                "byte {byte}"
            );
        }
        block[byte] ^= 1 << (byte % 8);
    }
}

#[test]
fn a_log_sector_counts_at_its_own_place_only() {
    let words: Vec<_> = (1..=WORDS as u32).map(word).collect();
    let sectors = WORDS.div_ceil(61) as u32;
    let (mut block, mut other) = (block_of(1), block_of(2));
    encode_log(&mut block, 11, 12, &words);
    let mut read = vec![GroupWord::default(); WORDS];
    assert_eq!(decode_log(&block, 11, 13, &mut read), sectors);
    assert_eq!(decode_log(&block, 10, 12, &mut read), sectors);
    assert!(read.iter().all(|w| *w == GroupWord::UNKNOWN));
    assert_eq!(decode_log(&block, 11, 12, &mut read), 0);
    assert_eq!(read, words);

    // Another sector of the same block, the same sector of another block or of an older file.
    let whole = block.clone();
    block.copy_within(512..1024, 0);
    assert_eq!(decode_log(&block, 11, 12, &mut read), 1);
    let others = [(10, 12), (11, 13), (11, 11)];
    for (nonce, number) in others.into_iter().take(if cfg!(miri) { 1 } else { 3 }) {
        block.copy_from_slice(&whole[..]);
        encode_log(&mut other, nonce, number, &words);
        block[..512].copy_from_slice(&other[..512]);
        assert_eq!(decode_log(&block, 11, 12, &mut read), 1);
        assert!(read[..61].iter().all(|w| *w == GroupWord::UNKNOWN));
        assert_eq!(read[61..], words[61..]);
    }
    // Not even a block of another kind, nor nothing at all.
    seal(&mut block, Kind::Bitmap, 11, 12 * 8, 0);
    assert!(decode_log(&block, 11, 12, &mut read) >= 1);
    assert_eq!(
        decode_log(&block_of(0), 0, 0, &mut read),
        sectors,
        "a block of zeros"
    );
    assert_eq!(check(&block_of(0), Kind::Root, 0, 0), None);
}

#[test]
fn a_state_that_is_not_known_is_no_root() {
    for raw in (0..10u32).chain([u32::MAX, 1 << 8, 1 << 31]) {
        let mut block = block_of(0);
        put(&mut block[..], ENVELOPE, &raw.to_le_bytes());
        assert_eq!(
            Root::decode(&block).is_some(),
            (1..=5).contains(&raw),
            "{raw}"
        );
    }
}

#[test]
fn a_list_of_extents_has_room_for_as_many_as_it_says() {
    assert_eq!(EXTENTS_PER_BLOCK, 169);
    let extent = |i: u64| FileExtent {
        file_block: i,
        origin_block: !i,
        len: i << 32,
    };
    let list: Vec<_> = (1..=EXTENTS_PER_BLOCK as u64 + 3).map(extent).collect();
    let mut block = block_of(0xaa);
    encode_extents(&mut block, &list);
    seal(&mut block, Kind::Extents, 1, 2, 3);
    assert_eq!(check(&block, Kind::Extents, 1, 2), Some(3));
    for (i, e) in list.iter().take(EXTENTS_PER_BLOCK).enumerate() {
        assert_eq!(decode_extent(&block, i), *e);
    }
    // What is behind the end, or not in the list, is empty.
    assert_eq!(decode_extent(&block, EXTENTS_PER_BLOCK + 1), extent_none());
    assert_eq!(decode_extent(&block, usize::MAX), extent_none());
    encode_extents(&mut block, &list[..1]);
    assert_eq!(decode_extent(&block, 1), extent_none());
}

fn extent_none() -> FileExtent {
    FileExtent::default()
}

/// The parts of the layout do not overlap, and come in order: from 1 block to 64 TiB.
fn parts_follow_each_other(bytes: u64) {
    let geometry = Geometry {
        origin_bytes: bytes,
    };
    let layout = geometry.private();
    let mut parts = vec![
        (0, geometry.first_data_position() + PRIVATE_GAP),
        (layout.roots, 2),
        (layout.log, layout.log_blocks),
        (layout.lists, layout.list_blocks),
        (layout.lists + layout.list_blocks, layout.list_blocks),
        (layout.slots, layout.slot_count),
    ];
    let sorted = {
        let mut sorted = parts.clone();
        sorted.sort_unstable();
        sorted
    };
    assert_eq!(parts, sorted);
    parts.push((layout.end, 1));
    for pair in parts.windows(2) {
        assert!(pair[0].1 > 0, "an empty part for {bytes}");
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "overlap for {bytes}");
    }
    assert_eq!(geometry.incremental_bytes(), layout.end * 4096);
    assert_eq!(
        geometry.min_file_bytes(),
        geometry.incremental_bytes() + 4096
    );
}

#[test]
fn the_layout_from_one_block_to_64_tib() {
    let log = GROUP_BLOCKS * LOG_BLOCK_GROUPS * 4096;
    let around = [4096, GROUP_BLOCKS * 4096, log, 1 << 32, TIB, 64 * TIB];
    for bytes in around.into_iter().flat_map(|b| {
        [b.saturating_sub(4096), b - 512, b, b + 512, b + 4096]
            .into_iter()
            .filter(|b| *b > 0 && *b <= 64 * TIB)
    }) {
        parts_follow_each_other(bytes);
    }
    let private = |bytes| {
        Geometry {
            origin_bytes: bytes,
        }
        .private()
    };
    assert_eq!(private(4096).groups, 1);
    assert_eq!(private(GROUP_BLOCKS * 4096).groups, 1);
    assert_eq!(private(GROUP_BLOCKS * 4096 + 1).groups, 2);
    assert_eq!(private(log).log_blocks, 1);
    assert_eq!(private(log + 1).log_blocks, 2);
}

/// COMPAT.md section 5: at most 64 MiB for each TiB. One bit a block is 32 MiB; the spare slots, groups of 30
/// regions, not 32, the log and the lists add a fifth.
#[test]
fn what_incremental_mode_costs() {
    for tib in [1, 2, 3, 7, 16, 64] {
        let geometry = Geometry {
            origin_bytes: tib * TIB,
        };
        let bytes = geometry.incremental_bytes() - geometry.data_offset();
        assert!(bytes > (tib * 32) << 20, "{tib} TiB: {bytes}");
        assert!(bytes < (tib * 39) << 20, "{tib} TiB: {bytes}");
    }
    // Small devices: what does not depend on the size is 96 KiB.
    let small = Geometry { origin_bytes: 4096 };
    assert_eq!(small.incremental_bytes() - small.data_offset(), 24 * 4096);
}

#[test]
fn a_bitmap_block_is_believed_for_its_own_group_only() {
    let bits: Vec<u64> = (0..GROUP_BLOCKS / 64).map(|i| !(i << 7)).collect();
    let mut block = block_of(0xaa);
    encode_bitmap(&mut block, 77, &bits);
    seal(&mut block, Kind::Bitmap, 1, 2, 3);
    assert_eq!(check(&block, Kind::Bitmap, 1, 2), Some(3));
    let read: Option<Vec<u64>> = decode_bitmap(&block, 77).map(Iterator::collect);
    assert_eq!(read, Some(bits.clone()));
    assert!(decode_bitmap(&block, 78).is_none());
    // More words than a group has cannot reach what says whose they are.
    encode_bitmap(&mut block, 5, &[vec![u64::MAX; 64], bits].concat());
    assert!(decode_bitmap(&block, 5).is_some());
}

#[test]
fn a_digest_sees_what_a_checksum_of_its_own_kind_does_not() {
    // A superblock that ends with its CRC32C: the CRC32C over all of it is always the same.
    let with_crc = |text: &[u8]| {
        let mut all = text.to_vec();
        all.extend(crc32c(&[text]).to_le_bytes());
        all
    };
    let (a, b) = (with_crc(b"mounted once"), with_crc(b"mounted more"));
    assert_eq!(crc32c(&[&a]), crc32c(&[&b]));
    assert_ne!(digest(&[&a]), digest(&[&b]));
    // FNV-1a, 64 bits: the published value of "a".
    assert_eq!(digest(&[b"a"]), 0xaf63_dc4c_8601_ec8c);
}

#[test]
fn an_identity_allows_what_was_let_through_and_nothing_else() {
    let identity = Identity {
        now: [5; 8],
        next: [7; 8],
    };
    assert!(identity.allows(&[5; 8]) && identity.allows(&[7; 8]));
    // A torn write.
    assert!(identity.allows(&[5, 5, 5, 7, 5, 5, 5, 5]));
    assert!(!identity.allows(&[6; 8]) && !identity.allows(&[0; 8]));
    for i in 0..8 {
        let mut found = [5; 8];
        found[i] = 6;
        assert!(!identity.allows(&found), "sector {i}");
    }
    assert!(!Identity::default().allows(&[0; 8]));
    // To contradict takes more than not to allow: what is not known does not.
    assert!(!identity.contradicts(&[5; 8]) && !identity.contradicts(&[5, 5, 5, 7, 5, 5, 5, 5]));
    assert!(identity.contradicts(&[5, 5, 5, 6, 5, 5, 5, 5]));
    assert!(!Identity::default().contradicts(&[6; 8]));
}

/// Two sectors are written at the same time, each note taken before either write has completed; all that a
/// power cut can leave is allowed, and what it cannot leave is not.
#[test]
fn an_identity_knows_writes_that_are_under_way_together() {
    let with = |second: u64, third: u64| [1, second, third, 1, 1, 1, 1, 1];
    let mut identity = Identity::default();
    identity.write(&with(2, 3), &with(20, 3));
    identity.write(&with(2, 3), &with(2, 30));
    for found in [with(2, 3), with(20, 3), with(2, 30), with(20, 30)] {
        assert!(identity.allows(&found));
    }
    // Seen half way, it still knows what a cut takes back.
    identity.see(&with(20, 3));
    assert!(identity.allows(&with(2, 3)));
    // The next write of a sector: what was before the last one is gone for good.
    identity.write(&with(20, 30), &with(200, 30));
    assert!(identity.allows(&with(20, 30)) && identity.allows(&with(200, 3)));
    assert!(!identity.allows(&with(2, 30)));
    // Nobody took note of a write, as long as nothing was tracked: seeing it is enough.
    identity.see(&with(7, 8));
    assert!(identity.allows(&with(7, 8)));
}

#[test]
fn digests_are_those_of_the_sectors() {
    let mut block: Block = [9; 4096];
    let before = digests(&block);
    assert!(before.iter().all(|d| *d == before[0]));
    block[1535] = 8;
    let after = digests(&block);
    assert_ne!(before[2], after[2]);
    assert_eq!(before[..2], after[..2]);
    assert_eq!(before[3..], after[3..]);
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Root),
        Just(Kind::Extents),
        Just(Kind::Bitmap),
        Just(Kind::CopyMap)
    ]
}

fn sibling() -> impl Strategy<Value = Sibling> {
    (any::<u64>(), any::<[u64; 2]>(), any::<u64>(), any::<u32>()).prop_map(
        |(nonce, roots, ino, igen)| Sibling {
            nonce,
            roots,
            ino,
            igen,
        },
    )
}

fn root() -> impl Strategy<Value = Root> {
    let state = prop_oneof![
        Just(RootState::Live),
        Just(RootState::Sealed),
        Just(RootState::Prepared),
        Just(RootState::Closed),
        Just(RootState::Poisoned)
    ];
    (
        (
            state,
            any::<(bool, bool)>(),
            any::<[u64; 6]>(),
            any::<[u8; 16]>(),
        ),
        (any::<[u32; 3]>(), any::<[u64; 5]>(), sibling(), sibling()),
        proptest::collection::vec(any::<(u64, u64)>(), ROOT_PIECES + ROOT_EXTENTS),
    )
        .prop_map(
            |((state, flags, a, uuid), (b, c, predecessor, successor), pieces)| {
                let mut root = Root {
                    state,
                    snapshot: flags.0,
                    counted: flags.1,
                    origin_bytes: a[0],
                    seqid: a[1],
                    uuid,
                    file_bytes: a[2],
                    falloc_size: a[3],
                    ino: a[4],
                    igen: b[0],
                    list: b[1],
                    extents: b[2],
                    list_generation: a[5],
                    crash_blocks: c[0],
                    predecessor,
                    successor,
                    identity: Identity {
                        now: core::array::from_fn(|i| c[1].wrapping_add(i as u64)),
                        next: core::array::from_fn(|i| c[2].wrapping_sub(i as u64)),
                    },
                    map_words: c[3],
                    map_pieces: [(0, 0); ROOT_PIECES],
                    own: [(0, 0); ROOT_EXTENTS],
                };
                root.map_pieces.copy_from_slice(&pieces[..ROOT_PIECES]);
                root.own.copy_from_slice(&pieces[ROOT_PIECES..]);
                root
            },
        )
}

proptest! {
    #![proptest_config(crate::config(41))]

    #[test]
    fn the_checksum_follows_its_definition(
        bytes in proptest::collection::vec(any::<u8>(), 0..BYTES), cut in 0..BYTES,
    ) {
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(crc32c(&[a, b]), naive_crc(&bytes));
    }

    #[test]
    fn an_extension_comes_back_as_it_was(
        rooted: bool, nonce: u64, origin_bytes: u64, roots: [u64; 2], at in 0usize..8, bit in 0u8..8,
    ) {
        let state = if rooted { EXT_STATE_ROOTED } else { EXT_STATE_VOLATILE };
        let ext = Extension { state, nonce, origin_bytes, roots };
        let mut bytes = ext.encode();
        prop_assert_eq!(Extension::decode(&bytes), Some(ext));
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(Extension::decode(&bytes), None);
    }

    #[test]
    fn a_sealed_block_is_believed_and_a_changed_one_is_not(
        kind in kinds(), nonce: u64, number: u64, generation: u64, fill: u8,
        byte in 0usize..4096, bit in 0u8..8,
    ) {
        let mut block = block_of(fill);
        seal(&mut block, kind, nonce, number, generation);
        prop_assert_eq!(check(&block, kind, nonce, number), Some(generation));
        prop_assert_eq!(check(&block, kind, nonce ^ 1, number), None);
        prop_assert_eq!(check(&block, kind, nonce, number ^ 1), None);
        block[byte] ^= 1 << bit;
        prop_assert_eq!(check(&block, kind, nonce, number), None);
    }

    #[test]
    fn kinds_are_told_apart(a in kinds(), b in kinds(), nonce: u64) {
        let mut block = block_of(0);
        seal(&mut block, a, nonce, 1, 1);
        prop_assert_eq!(check(&block, b, nonce, 1).is_some(), a == b);
    }

    #[test]
    fn a_root_comes_back_as_it_was(root in root()) {
        let mut block = block_of(0xaa);
        root.encode(&mut block);
        seal(&mut block, Kind::Root, 1, 2, 3);
        prop_assert_eq!(check(&block, Kind::Root, 1, 2), Some(3));
        prop_assert_eq!(Root::decode(&block), Some(root));
    }

    #[test]
    fn extents_come_back_as_they_were(
        list in proptest::collection::vec(any::<(u64, u64, u64)>(), 0..=EXTENTS_PER_BLOCK)
    ) {
        let list: Vec<FileExtent> = list.into_iter()
            .map(|(file_block, origin_block, len)| FileExtent { file_block, origin_block, len })
            .collect();
        let mut block = block_of(0xaa);
        encode_extents(&mut block, &list);
        for (i, e) in list.iter().enumerate() {
            prop_assert_eq!(decode_extent(&block, i), *e);
        }
    }

    /// A torn write of a log block: each sector is the old one or the new one, and is read as that.
    #[test]
    fn a_torn_log_block_is_old_or_new_sector_by_sector(
        words in proptest::collection::vec(any::<([u32; 2], [u32; 2])>(), 1..=WORDS),
        torn in any::<u8>(), bad in any::<u8>(), nonce: u64, number in 0u64..1000,
    ) {
        let of = |[marks, slot]: [u32; 2]| GroupWord { marks, slot };
        let (old, new): (Vec<_>, Vec<_>) = words.into_iter().map(|(a, b)| (of(a), of(b))).unzip();
        let (mut a, mut b) = (block_of(1), block_of(2));
        encode_log(&mut a, nonce, number, &old);
        encode_log(&mut b, nonce, number, &new);
        for sector in 0..8 {
            let range = sector * 512..sector * 512 + 512;
            if (torn >> sector) & 1 != 0 {
                a[range.clone()].copy_from_slice(&b[range.clone()]);
            }
            if (bad >> sector) & 1 != 0 {
                a[sector * 512 + 100] ^= 0x10;
            }
        }
        let mut read = vec![GroupWord::default(); old.len()];
        let untrusted = decode_log(&a, nonce, number, &mut read);
        let sectors = old.len().div_ceil(61);
        prop_assert_eq!(untrusted, (0..sectors).filter(|s| (bad >> s) & 1 != 0).count() as u32);
        for (i, word) in read.iter().enumerate() {
            let sector = i / 61;
            let expected = if (bad >> sector) & 1 != 0 {
                GroupWord::UNKNOWN
            } else if (torn >> sector) & 1 != 0 {
                new[i]
            } else {
                old[i]
            };
            prop_assert_eq!(*word, expected, "word {}", i);
        }
        // Nobody else's.
        prop_assert_eq!(decode_log(&a, nonce ^ 1, number, &mut read), sectors as u32);
    }

    #[test]
    fn the_layout_has_no_overlaps(bytes in prop_oneof![1u64..1 << 30, 1u64..1 << 46]) {
        parts_follow_each_other(bytes);
        let geometry = Geometry { origin_bytes: bytes };
        let layout = geometry.private();
        prop_assert_eq!(layout.roots, geometry.first_data_position() + PRIVATE_GAP);
        prop_assert_eq!(layout.log, layout.roots + 2);
        prop_assert_eq!(layout.lists, layout.log + layout.log_blocks);
        prop_assert_eq!(layout.slots, layout.lists + 2 * layout.list_blocks);
        prop_assert_eq!(layout.end, layout.slots + layout.slot_count);
        prop_assert!(layout.slot_count > layout.groups, "one is always free");
        prop_assert!(layout.groups * GROUP_BLOCKS >= geometry.blocks());
        prop_assert!(layout.log_blocks * LOG_BLOCK_GROUPS >= layout.groups);
        prop_assert!(geometry.min_file_bytes() > geometry.incremental_bytes());
        // COMPAT.md section 5: at most 64 MiB for each TiB, begun ones too.
        let tail = (layout.end - geometry.first_data_position()) * 4096;
        prop_assert!(tail <= bytes.div_ceil(TIB) * (64 << 20));
        // In proportion, but for a fixed part.
        prop_assert!(tail <= bytes / (1 << 20) * 64 + 38 * 4096);
    }
}
