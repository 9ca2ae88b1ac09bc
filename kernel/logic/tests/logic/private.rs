// SPDX-License-Identifier: GPL-2.0-only
//! The private blocks of a COW file: what is written can be read, and nothing else is believed.

use cow_logic::abi::cow::{Geometry, GROUP_BLOCKS, LOG_BLOCK_GROUPS, PRIVATE_GAP};
use cow_logic::crc32c::crc32c;
use cow_logic::extents::FileExtent;
use cow_logic::private_format::*;
use proptest::prelude::*;

/// Words of a log block; fewer where every step is slow.
const WORDS: usize = if cfg!(miri) {
    130
} else {
    LOG_BLOCK_GROUPS as usize
};

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
    let identity = Identity { now: 5, next: 7 };
    assert!(identity.allows(5) && identity.allows(7));
    assert!(!identity.allows(6) && !identity.allows(0));
    assert!(!Identity::default().allows(0));
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
                        now: c[1],
                        next: c[2],
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
        list in proptest::collection::vec(any::<(u64, u64, u64)>(), 0..EXTENTS_PER_BLOCK)
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
        old in proptest::collection::vec(any::<u32>(), 1..=WORDS),
        flips in any::<u32>(), torn in any::<u8>(), bad in any::<u8>(), nonce: u64, number in 0u64..1000,
    ) {
        let new: Vec<u32> = old.iter().map(|w| w ^ flips).collect();
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
        let mut read = vec![7; old.len()];
        let untrusted = decode_log(&a, nonce, number, u32::MAX, &mut read);
        let sectors = old.len().div_ceil(122);
        prop_assert_eq!(untrusted, (0..sectors).filter(|s| (bad >> s) & 1 != 0).count() as u32);
        for (i, word) in read.iter().enumerate() {
            let sector = i / 122;
            let expected = if (bad >> sector) & 1 != 0 {
                u32::MAX
            } else if (torn >> sector) & 1 != 0 {
                new[i]
            } else {
                old[i]
            };
            prop_assert_eq!(*word, expected, "word {}", i);
        }
        // Nobody else's.
        prop_assert_eq!(decode_log(&a, nonce ^ 1, number, 0, &mut read), sectors as u32);
    }

    #[test]
    fn the_layout_has_no_overlaps(bytes in prop_oneof![1u64..1 << 30, 1u64..1 << 46]) {
        let geometry = Geometry { origin_bytes: bytes };
        let layout = geometry.private();
        prop_assert_eq!(layout.roots, geometry.first_data_position() + PRIVATE_GAP);
        prop_assert_eq!(layout.log, layout.roots + 2);
        prop_assert_eq!(layout.lists, layout.log + layout.log_blocks);
        prop_assert_eq!(layout.bitmap, layout.lists + 2 * layout.list_blocks);
        prop_assert_eq!(layout.end, layout.bitmap + 2 * layout.groups);
        prop_assert!(layout.groups * GROUP_BLOCKS >= geometry.blocks());
        prop_assert!(layout.log_blocks * LOG_BLOCK_GROUPS >= layout.groups);
        prop_assert!(geometry.min_file_bytes() > geometry.incremental_bytes());
        // COMPAT.md section 5: at most 64 MiB for each TiB. (72 MiB with room for what is rounded up.)
        let tail = (layout.end - geometry.first_data_position()) * 4096;
        prop_assert!(tail <= 72 * (bytes >> 20).div_ceil(1 << 20) * (1 << 20));
    }
}
