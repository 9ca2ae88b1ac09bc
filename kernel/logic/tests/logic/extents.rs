// SPDX-License-Identifier: GPL-2.0-only
use crate::config;
use cow_logic::extents::*;
use proptest::prelude::*;

/// A file of pieces with lengths and gaps before them, put on the origin in a shuffled order.
pub fn layout() -> impl Strategy<Value = Vec<FileExtent>> {
    prop::collection::vec((1..6u64, 0..4u64), 1..8)
        .prop_flat_map(|pieces| {
            let order: Vec<usize> = (0..pieces.len()).collect();
            (Just(pieces), Just(order).prop_shuffle())
        })
        .prop_map(|(pieces, order)| {
            let mut origin = 0;
            let mut placed = vec![0; pieces.len()];
            for i in order {
                origin += pieces[i].1;
                placed[i] = origin;
                origin += pieces[i].0;
            }
            let mut file_block = 0;
            let mut out: Vec<FileExtent> = Vec::new();
            for (i, (len, _)) in pieces.iter().enumerate() {
                let next = FileExtent {
                    file_block,
                    origin_block: placed[i],
                    len: *len,
                };
                if let Some(e) = merge_push(out.last_mut(), next) {
                    out.push(e);
                }
                file_block += len;
            }
            out
        })
}

pub fn file_blocks(by_file: &[FileExtent]) -> u64 {
    by_file.last().unwrap().file_end()
}

const ORIGIN: u64 = 100;

/// For each origin block the file block it is.
pub fn owners(list: &[FileExtent]) -> Vec<Option<u64>> {
    let mut out = vec![None; ORIGIN as usize];
    for e in list {
        for i in 0..e.len {
            out[(e.origin_block + i) as usize] = Some(e.file_block + i);
        }
    }
    out
}

proptest! {
    #![proptest_config(config(3))]

    #[test]
    fn outside_leaves_out_just_the_hole(by_file in layout(), start in 0..30u64, len in 0..30u64) {
        let hole = start..start + len;
        let left: Vec<FileExtent> = by_file.iter().flat_map(|e| outside(*e, &hole)).filter(|e| e.len != 0).collect();
        let kept = owners(&left);
        for (o, f) in owners(&by_file).into_iter().enumerate() {
            prop_assert_eq!(kept[o], f.filter(|f| !hole.contains(f)));
        }
        prop_assert!(left.windows(2).all(|w| w[0].file_end() <= w[1].file_block), "in order");
    }

    #[test]
    fn lookups_agree_with_a_table(by_file in layout()) {
        let total = file_blocks(&by_file);
        prop_assert_eq!(validate(&by_file, total, ORIGIN), Ok(()));
        let mut by_origin = by_file.clone();
        sort_by_origin(&mut by_origin);
        prop_assert_eq!(validate_by_origin(&by_origin), Ok(()));
        let mut back = by_origin.clone();
        sort_by_file(&mut back);
        prop_assert_eq!(&back, &by_file);

        let owners = owners(&by_file);
        for f in 0..total + 2 {
            let at = owners.iter().position(|o| *o == Some(f)).map(|o| o as u64);
            prop_assert_eq!(locate(&by_file, f).map(|l| l.0), at);
            if let Some((o, left)) = locate(&by_file, f) {
                let run = (0..).take_while(|i| owners.get((o + i) as usize) == Some(&Some(f + i))).count();
                prop_assert_eq!(left, run as u64);
            }
        }
        let guarded = Guarded::new(by_origin.clone());
        for o in 0..ORIGIN {
            prop_assert_eq!(owner(&by_origin, o).map(|l| l.0), owners[o as usize]);
            if let Some((f, left)) = owner(&by_origin, o) {
                prop_assert_eq!(locate(&by_file, f), Some((o, left)));
            }
            for len in [0, 1, 3, 17, u64::MAX] {
                let end = o.saturating_add(len).min(ORIGIN);
                let first = (o..end).find(|b| owners[*b as usize].is_some());
                let got = next_owned(&by_origin, o, len);
                prop_assert_eq!(got.map(|e| e.origin_block), first);
                prop_assert_eq!(overlaps(&by_origin, o, len), first.is_some());
                prop_assert_eq!(guarded.is_hit(o, len), first.is_some());
                if let Some(e) = got {
                    let (f, left) = owner(&by_origin, e.origin_block).unwrap();
                    prop_assert_eq!(e.file_block, f);
                    prop_assert_eq!(e.len, left.min(end - e.origin_block));
                }
            }
        }
    }

    #[test]
    fn damaged_lists_are_refused(by_file in layout(), which in any::<prop::sample::Index>(), how in 0..5u8) {
        let total = file_blocks(&by_file);
        let mut bad = by_file.clone();
        let i = which.index(bad.len());
        match how {
            0 => bad[i].len += 1,
            1 => bad[i].len = 0,
            2 => { bad.remove(i); }
            3 => bad[i].file_block += 1,
            _ => bad[i].origin_block = ORIGIN,
        }
        prop_assert!(validate(&bad, total, ORIGIN).is_err());
        prop_assert!(validate(&by_file, total + 1, ORIGIN).is_err());

        let mut twice = by_file.clone();
        let copy = twice[i];
        twice.push(FileExtent { file_block: total, ..copy });
        sort_by_origin(&mut twice);
        prop_assert!(validate_by_origin(&twice).is_err());
    }
}

#[test]
fn merging() {
    let e = |file_block, origin_block, len| FileExtent {
        file_block,
        origin_block,
        len,
    };
    let mut last = e(0, 10, 2);
    assert_eq!(merge_push(Some(&mut last), e(2, 12, 3)), None);
    assert_eq!(last, e(0, 10, 5));
    assert_eq!(merge_push(Some(&mut last), e(5, 16, 1)), Some(e(5, 16, 1)));
    assert_eq!(merge_push(Some(&mut last), e(6, 15, 1)), Some(e(6, 15, 1)));
    assert_eq!(merge_push(Some(&mut last), e(5, 15, 0)), None);
    assert_eq!(last, e(0, 10, 5));
    assert_eq!(merge_push(None, e(1, 1, 1)), Some(e(1, 1, 1)));
    let mut huge = e(0, 0, u64::MAX);
    assert!(!huge.append(e(u64::MAX, u64::MAX, 1)));
    assert_eq!(e(1, 2, 3).skip(9), e(4, 5, 0));
    assert_eq!(e(1, 2, 3).origin_sector(), 16);
}

#[test]
fn extremes() {
    let end = u64::MAX;
    let wild = [FileExtent {
        file_block: 0,
        origin_block: end,
        len: 2,
    }];
    assert!(validate(&wild, 2, end).is_err());
    assert!(validate_by_origin(&wild).is_err());
    assert_eq!(locate(&[], 0), None);
    assert_eq!(owner(&[], 0), None);
    assert_eq!(next_owned(&[], 0, end), None);
    assert_eq!(validate(&[], 0, 0), Ok(()));
    assert!(validate(&[], 1, 1).is_err());
}

proptest! {
    #![proptest_config(config(3))]

    #[test]
    fn sorting_is_sorting(mut places in proptest::collection::vec((0u64..500, 0u64..500), 0..300)) {
        let mut list: Vec<FileExtent> = places
            .iter()
            .map(|&(file_block, origin_block)| FileExtent { file_block, origin_block, len: 1 })
            .collect();
        sort_by_origin(&mut list);
        prop_assert!(list.windows(2).all(|w| w[0].origin_block <= w[1].origin_block));
        sort_by_file(&mut list);
        prop_assert!(list.windows(2).all(|w| w[0].file_block <= w[1].file_block));
        // Nothing lost, nothing doubled.
        let mut got: Vec<(u64, u64)> = list.iter().map(|e| (e.file_block, e.origin_block)).collect();
        got.sort_unstable();
        places.sort_unstable();
        prop_assert_eq!(got, places);
    }
}

/// Pieces of a file on a filesystem with `PARTS` of its blocks to one of ours: place and length of
/// each, in those small blocks, in the order of the file.
type Pieces = Vec<(u64, u64)>;
const PARTS: u64 = 4;

/// Pieces that do not overlap, in a shuffled order.
fn pieces() -> impl Strategy<Value = Pieces> {
    prop::collection::vec((1..23u64, 0..6u64), 1..9)
        .prop_map(|list| {
            let mut at = 1;
            list.into_iter()
                .map(|(len, gap)| {
                    let start = at + gap;
                    at = start + len;
                    (start, len)
                })
                .collect::<Vec<_>>()
        })
        .prop_shuffle()
}

/// What the kernel makes of pieces for swap files (fs/iomap/swapfile.c).
fn counted(pieces: &Pieces) -> Vec<FileExtent> {
    let mut joined: Pieces = Vec::new();
    for &(start, len) in pieces {
        match joined.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += len,
            _ => joined.push((start, len)),
        }
    }
    let mut out: Vec<FileExtent> = Vec::new();
    let mut file_block = 0;
    for (start, len) in joined {
        let (first, end) = (start.div_ceil(PARTS), (start + len) / PARTS);
        let next = FileExtent {
            file_block,
            origin_block: first,
            len: end.saturating_sub(first),
        };
        file_block += next.len;
        if let Some(e) = merge_push(out.last_mut(), next) {
            out.push(e);
        }
    }
    out
}

proptest! {
    #![proptest_config(config(3))]

    #[test]
    fn counted_blocks_lie_at_or_behind_their_number(all in pieces(), cut in any::<prop::sample::Index>()) {
        let list = counted(&all);
        let small: u64 = all.iter().map(|p| p.1).sum();
        let blocks = small / PARTS;
        prop_assert_eq!(validate_counted(&list, blocks, ORIGIN), Ok(()));
        // Which small block of the file each one of the device is.
        let mut place = std::collections::HashMap::new();
        let in_order = all.iter().flat_map(|&(start, len)| start..start + len);
        for (i, at) in in_order.enumerate() {
            place.insert(at, i as u64);
        }
        let mut last = 0;
        for e in &list {
            for i in 0..e.len {
                let first = (e.origin_block + i) * PARTS;
                let at = place[&first];
                prop_assert!((0..PARTS).all(|j| place[&(first + j)] == at + j), "in one piece");
                prop_assert!(at >= (e.file_block + i) * PARTS, "behind all that come before it");
                prop_assert!(at >= last, "in order of the file");
                last = at + PARTS;
            }
        }
        // None is changed when the file grows, be it within a piece.
        let n = cut.index(small as usize) as u64 + 1;
        let mut left = n;
        let mut before = Vec::new();
        for &(start, len) in &all {
            before.push((start, len.min(left)));
            left -= len.min(left);
        }
        before.retain(|p| p.1 != 0);
        for e in counted(&before) {
            for i in 0..e.len {
                let now = locate(&list, e.file_block + i).map(|l| l.0);
                prop_assert_eq!(now, Some(e.origin_block + i));
            }
        }
    }

    #[test]
    fn damaged_counted_lists_are_refused(by_file in layout(), which in any::<prop::sample::Index>(), how in 0..4u8) {
        let total = file_blocks(&by_file);
        prop_assert_eq!(validate_counted(&by_file, total, ORIGIN), Ok(()));
        prop_assert_eq!(validate_counted(&by_file, total + 3, ORIGIN), Ok(()));
        prop_assert!(validate_counted(&by_file, total - 1, ORIGIN).is_err());
        let mut bad = by_file.clone();
        let i = which.index(bad.len());
        match how {
            0 => bad[i].len = 0,
            1 => bad[i].file_block += 1,
            2 => bad[i].origin_block = ORIGIN,
            _ => bad[i].len = u64::MAX,
        }
        prop_assert!(validate_counted(&bad, total, ORIGIN).is_err());
    }
}
