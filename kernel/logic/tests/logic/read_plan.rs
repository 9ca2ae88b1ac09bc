// SPDX-License-Identifier: GPL-2.0-only
use super::extents::{layout, owners};
use crate::config;
use cow_logic::extents::{sort_by_origin, FileExtent};
use cow_logic::preserved::Preserved;
use cow_logic::read_plan::{Piece, Source, View};
use cow_logic::space::{Segment, Space};
use proptest::prelude::*;

const BLOCKS: u64 = 100;

#[derive(Debug, Clone)]
struct Case {
    by_file: Vec<FileExtent>,
    first_data: u64,
    /// Length and whether it is usable, from `first_data` on.
    segments: Vec<(u64, bool)>,
    take: u64,
    /// Start, length.
    preserved: Vec<(u64, u64)>,
    sector: u64,
    sectors: u64,
}

fn case() -> impl Strategy<Value = Case> {
    (
        layout(),
        0..8u64,
        prop::collection::vec((1..5u64, any::<bool>()), 0..6),
        0..30u64,
        prop::collection::vec((0..BLOCKS, 1..12u64), 0..12),
        0..BLOCKS * 8,
        1..300u64,
    )
        .prop_map(
            |(by_file, first_data, segments, take, preserved, sector, sectors)| Case {
                by_file,
                first_data,
                segments,
                take,
                preserved,
                sector,
                sectors,
            },
        )
}

/// The rules of COMPAT.md section 5 for one sector.
fn naive(
    block: u64,
    owners: &[Option<u64>],
    first_data: u64,
    space: &Space,
    map: &Preserved,
) -> Source {
    match owners[block as usize] {
        Some(f) if f < first_data => return Source::Zero,
        Some(f) if space.is_taken(f) && !map.all(block, 1) => return Source::Zero,
        _ => {}
    }
    match map.all(block, 1) {
        false => Source::Origin,
        true => Source::Copy,
    }
}

proptest! {
    #![proptest_config(config(5))]

    #[test]
    fn agrees_with_the_rules_sector_by_sector(c in case()) {
        let mut own = c.by_file.clone();
        sort_by_origin(&mut own);
        let space = Space::new().unwrap();
        let mut start = c.first_data;
        for (len, usable) in &c.segments {
            if *usable {
                space.add(Segment { start, len: *len }).unwrap();
            }
            start += len;
        }
        let mut left = c.take;
        while let Some((_, n)) = space.take(left) {
            left -= n;
        }
        let map = Preserved::new(BLOCKS).unwrap();
        map.reserve(0, BLOCKS).unwrap();
        for (start, len) in &c.preserved {
            map.set(*start, *len);
        }
        let view = View { preserved: &map, own: &own, first_data: c.first_data, space: &space };
        let owners = owners(&c.by_file);

        let pieces: Vec<Piece> = view.plan(c.sector, c.sectors).collect();
        let mut sector = c.sector;
        for p in &pieces {
            prop_assert_eq!(p.sector, sector, "no gap");
            prop_assert!(p.sectors > 0);
            prop_assert_eq!(p.offset_in_block(), sector % 8);
            for s in p.sector..p.sector + p.sectors {
                let want = naive(s / 8, &owners, c.first_data, &space, &map);
                prop_assert_eq!(p.source, want, "sector {}", s);
            }
            sector += p.sectors;
        }
        prop_assert_eq!(sector, (c.sector + c.sectors).min(BLOCKS * 8), "all of it");
        for pair in pieces.windows(2) {
            prop_assert!(pair[1].sector % 8 == 0, "cut at a block");
            prop_assert_ne!(pair[0].source, pair[1].source, "as long as it gets");
        }
        let origin = pieces.iter().all(|p| p.source == Source::Origin);
        prop_assert_eq!(view.origin_holds(c.sector, c.sectors), origin);
    }
}

fn empty() -> (Preserved, Space) {
    (Preserved::new(BLOCKS).unwrap(), Space::new().unwrap())
}

#[test]
fn own_blocks_read_as_the_contract_says() {
    let (map, space) = empty();
    // Header and index: file blocks 0..3 at 10; data 3..8 behind them.
    let own = [FileExtent {
        file_block: 0,
        origin_block: 10,
        len: 8,
    }];
    space.add(Segment { start: 3, len: 5 }).unwrap();
    let view = View {
        preserved: &map,
        own: &own,
        first_data: 3,
        space: &space,
    };
    let sources = |view: View<'_>| -> Vec<(u64, u64, Source)> {
        view.plan(0, BLOCKS * 8)
            .map(|p| (p.sector / 8, p.sectors / 8, p.source))
            .collect()
    };
    assert_eq!(
        sources(view),
        [
            (0, 10, Source::Origin),
            (10, 3, Source::Zero),
            (13, 87, Source::Origin)
        ]
    );
    // Read from the origin; meanwhile a copy is put there: the check notices.
    assert!(view.origin_holds(13 * 8, 16));
    assert_eq!(space.take(2), Some((3, 2)));
    assert!(!view.origin_holds(13 * 8, 16));
    assert!(view.origin_holds(15 * 8, 16));
    assert_eq!(
        sources(view),
        [
            (0, 10, Source::Origin),
            (10, 5, Source::Zero),
            (15, 85, Source::Origin)
        ]
    );
    // Copies win over what the file has put there since, but not over what is private.
    map.reserve(0, BLOCKS).unwrap();
    map.set(12, 2);
    assert_eq!(
        sources(view)[1..4],
        [
            (10, 3, Source::Zero),
            (13, 1, Source::Copy),
            (14, 1, Source::Zero)
        ]
    );
}

#[test]
fn what_was_read_from_the_origin_is_checked() {
    let (map, space) = empty();
    map.reserve(0, BLOCKS).unwrap();
    let view = View {
        preserved: &map,
        own: &[],
        first_data: 0,
        space: &space,
    };
    assert!(view.origin_holds(0, 800));
    map.set(5, 1);
    assert!(!view.origin_holds(47, 1), "last sector of block 5");
    assert!(view.origin_holds(48, 1));
    assert!(view.origin_holds(39, 1));
}

#[test]
fn extremes() {
    let (map, space) = empty();
    let view = View {
        preserved: &map,
        own: &[],
        first_data: 0,
        space: &space,
    };
    assert_eq!(view.plan(0, 0).count(), 0);
    assert_eq!(view.plan(BLOCKS * 8, 8).count(), 0);
    assert_eq!(view.plan(u64::MAX, u64::MAX).count(), 0);
    let all: Vec<_> = view.plan(3, u64::MAX).collect();
    assert_eq!(
        all,
        [Piece {
            sector: 3,
            sectors: BLOCKS * 8 - 3,
            source: Source::Origin
        }]
    );
}
