// SPDX-License-Identifier: GPL-2.0-only
//! The index in memory and its pages on disk, against a table of single blocks; and what it costs.
use crate::{config, Random};
use cow_logic::index::{Index, Stock};
use cow_logic::index_page::{
    page_of, Filling, Found, Page, PageRef, Run, MAX_LEN, MAX_PLACE, PAGE_ENTRIES, SPAN,
};
use cow_logic::mem::without_memory;
use cow_logic::private_format::Block;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Enters all of a run, as the claim work does.
fn insert(index: &mut Index, stock: &mut Stock, run: Run) {
    let mut rest = run.skip(index.insert(run, stock).unwrap());
    while rest.len != 0 {
        stock.fill().unwrap();
        let n = index.insert(rest, stock).unwrap();
        assert!(n != 0, "a full stock is enough for something: {rest:?}");
        rest = rest.skip(n);
    }
}

type Table = BTreeMap<u64, u64>;

/// What the table says of a block: place and length, or the gap.
fn expect(table: &Table, block: u64, max: u64) -> Found {
    match table.get(&block) {
        None => {
            let next = table.range(block..).next().map_or(max, |(b, _)| b - block);
            Found::Gap(next.min(max))
        }
        Some(&place) => {
            let len = (1..max)
                .take_while(|i| table.get(&(block + i)) == Some(&(place + i)))
                .count() as u64;
            Found::Run {
                place,
                len: len + 1,
            }
        }
    }
}

fn enter(table: &mut Table, run: Run) {
    for i in 0..run.len {
        assert!(table.insert(run.block + i, run.place + i).is_none());
    }
}

/// The free parts of a run.
fn free_parts(table: &Table, run: Run) -> Vec<Run> {
    let mut out = Vec::new();
    let mut rest = run;
    while rest.len != 0 {
        match expect(table, rest.block, rest.len) {
            Found::Gap(n) => {
                out.push(Run { len: n, ..rest });
                rest = rest.skip(n);
            }
            Found::Run { len, .. } => rest = rest.skip(len),
        }
    }
    out
}

fn runs(index: &Index, from: u64) -> Vec<Run> {
    let mut all = Vec::new();
    index.walk(from, |run| {
        all.push(run);
        true
    });
    all
}

/// All pages of an index on disk.
fn pages(runs: &[Run]) -> Vec<(PageRef, Block)> {
    let mut out = Vec::new();
    let mut rest = runs.iter().copied().peekable();
    while rest.peek().is_some() {
        let mut page = [0xa5; 4096];
        let mut filling = Filling::default();
        while let Some(run) = rest.peek() {
            if !filling.push(&mut page, *run) {
                break;
            }
            rest.next();
        }
        let first = filling.finish(&mut page).expect("never empty");
        let slot = out.len() as u64;
        out.push((PageRef { first, slot }, page));
    }
    out
}

fn find_on_disk(pages: &[(PageRef, Block)], block: u64, max: u64) -> Found {
    let refs: Vec<PageRef> = pages.iter().map(|p| p.0).collect();
    match page_of(&refs, block) {
        None => Found::Gap(max),
        Some(i) => Page::open(&pages[i].1).unwrap().find(block, max),
    }
}

/// Blocks of some neighbourhoods, near and far.
fn block() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..3000u64,
        SPAN - 200..SPAN + 200,
        5 * SPAN..5 * SPAN + 300_000,
        0..1u64 << 40,
    ]
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn agrees_with_a_table(
        steps in prop::collection::vec((block(), prop_oneof![4 => 1..3u64, 1 => 1..300u64]), 0..if cfg!(miri) { 20 } else { 200 }),
        probes in prop::collection::vec((block(), 1..400u64), 1..20),
    ) {
        let (mut index, mut stock, mut table) = (Index::empty(), Stock::empty(), Table::new());
        let mut place = 77;
        for (block, len) in &steps {
            for run in free_parts(&table, Run { block: *block, place, len: *len }) {
                insert(&mut index, &mut stock, run);
                enter(&mut table, run);
            }
            place += len + block % 3 / 2;
        }
        let all = runs(&index, 0);
        prop_assert!(all.iter().all(|r| r.len >= 1 && r.len <= MAX_LEN));
        prop_assert!(all.windows(2).all(|r| r[0].end() <= r[1].block), "in order");
        let mut again = Table::new();
        all.iter().for_each(|r| enter(&mut again, *r));
        prop_assert_eq!(&again, &table);
        let pages = pages(&all);
        let edges = steps.iter().flat_map(|(b, n)| [(*b, 1), (b + n, 3), (b + n / 2, 70)]);
        for (block, max) in probes.iter().copied().chain(edges) {
            let want = expect(&table, block, max);
            prop_assert_eq!(index.find(block, max), want, "{} {}", block, max);
            let mut tail = None;
            index.walk(block, |run| {
                tail = Some(run.block);
                false
            });
            let next = match want {
                Found::Run { .. } => Some(block),
                Found::Gap(_) => table.range(block..).next().map(|(b, _)| *b),
            };
            prop_assert_eq!(tail, next);
            // One page says less: it knows single entries, and nothing of the pages behind it.
            match (find_on_disk(&pages, block, max), want) {
                (Found::Run { place, len }, Found::Run { place: p, len: l }) => {
                    prop_assert_eq!(place, p);
                    prop_assert!(len >= 1 && len <= l);
                }
                (Found::Gap(n), Found::Gap(l)) => prop_assert!(n >= l),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

/// Bytes per block after `n` blocks of a device of `blocks`, in this order.
fn cost(order: impl Iterator<Item = u64>, places: impl Fn(u64) -> u64) -> (Index, f64, f64) {
    let (mut index, mut stock) = (Index::empty(), Stock::empty());
    let (mut n, mut worst) = (0u64, 0f64);
    for block in order {
        insert(
            &mut index,
            &mut stock,
            Run {
                block,
                place: places(n),
                len: 1,
            },
        );
        n += 1;
        if n > 5000 {
            worst = worst.max(index.memory_bytes() as f64 / n as f64);
        }
    }
    let end = index.memory_bytes() as f64 / n as f64;
    (index, end, worst)
}

/// `n` different blocks of `blocks`, scattered.
fn scattered(blocks: u64, n: u64) -> impl Iterator<Item = u64> {
    let mut random = Random(blocks ^ n);
    let mut seen = std::collections::HashSet::new();
    std::iter::repeat_with(move || random.below(blocks))
        .filter(move |b| seen.insert(*b))
        .take(n as usize)
}

#[test]
#[cfg_attr(miri, ignore = "takes hours")]
fn a_changed_block_costs_at_most_twelve_bytes() {
    // Scattered single blocks: 1 % and 10 % of 64 GiB, and of 2 GiB.
    for (blocks, percent) in [(1 << 24, 1), (1 << 24, 10), (1 << 19, 1), (1 << 19, 10)] {
        let n = blocks * percent / 100;
        let (_, end, worst) = cost(scattered(blocks, n), |n| 5000 + n);
        println!("{percent} % of {blocks} blocks, scattered: {end:.2} bytes a block, at worst {worst:.2}");
        assert!(worst <= 12.0, "{worst} bytes a block");
    }
    // The same places in the file, but blocks in a row, forwards and backwards.
    let (_, end, _) = cost(0..100_000, |n| 5000 + n);
    println!("in a row: {end:.3} bytes a block");
    assert!(end < 0.25, "{end} bytes a block");
    let (_, end, worst) = cost((0..100_000).rev(), |n| 5000 + n);
    println!("backwards: {end:.2}, at worst {worst:.2}");
    assert!(worst <= 12.0, "{worst} bytes a block");
    // Every other block, in order; two writers from different places.
    let (_, end, worst) = cost((0..100_000).map(|b| 2 * b), |n| 5000 + n);
    println!("every other block: {end:.2}, at worst {worst:.2}");
    assert!(worst <= 12.0, "{worst} bytes a block");
    let two = (0..100_000u64).map(|n| if n % 2 == 0 { n } else { 800_000 + n });
    let (_, end, worst) = cost(two, |n| 5000 + 2 * n);
    println!("two writers: {end:.2}, at worst {worst:.2}");
    assert!(worst <= 12.0, "{worst} bytes a block");
}

/// The proptest above stays small; this one fills pages, gives to neighbours, shares and splits.
#[test]
#[cfg_attr(miri, ignore = "takes hours")]
fn agrees_with_a_table_over_many_pages() {
    for seed in 0..6u64 {
        let mut random = Random(seed);
        let (mut index, mut stock, mut table) = (Index::empty(), Stock::empty(), Table::new());
        let spread = [4000, 60_000, 1 << 22, 3 * SPAN, 40 * SPAN, 1 << 36][seed as usize];
        let mut place = 1000;
        for i in 0..6000u64 {
            let near = random.below(spread);
            let block = match random.below(4) {
                0 => i * 3 + random.below(2),
                1 => spread - spread / 7000 * i,
                _ => near,
            };
            let len = 1 + random.below(2) * random.below(90);
            for run in free_parts(&table, Run { block, place, len }) {
                insert(&mut index, &mut stock, run);
                enter(&mut table, run);
            }
            place += len;
        }
        let mut again = Table::new();
        runs(&index, 0).iter().for_each(|r| enter(&mut again, *r));
        assert_eq!(again, table, "seed {seed}");
        for block in table.keys().flat_map(|b| [b.saturating_sub(1), *b, b + 1]) {
            assert_eq!(
                index.find(block, 9),
                expect(&table, block, 9),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn idle_it_costs_nothing() {
    assert_eq!(Index::empty().memory_bytes(), 0);
    assert!(Index::default().is_empty());
    assert_eq!(Index::empty().find(7, 9), Found::Gap(9));
    assert_eq!(
        Index::empty().find(u64::MAX, u64::MAX),
        Found::Gap(u64::MAX)
    );
}

#[test]
fn without_memory_nothing_is_entered_and_nothing_lost() {
    let (mut index, mut stock) = (Index::empty(), Stock::empty());
    let run = Run {
        block: 5,
        place: 9,
        len: 200,
    };
    assert!(without_memory(|| stock.fill()).is_err());
    assert_eq!(index.insert(run, &mut stock), Some(0));
    assert_eq!(index.find(5, 1), Found::Gap(1));
    insert(&mut index, &mut stock, run);
    assert_eq!(index.find(5, 1000), Found::Run { place: 9, len: 200 });
    // What a page has room for needs no memory.
    let mut none = Stock::empty();
    let more = Run {
        block: 300,
        place: 300,
        len: 64,
    };
    assert_eq!(index.insert(more, &mut none), Some(64));
}

#[test]
fn places_that_do_not_fit_are_refused() {
    let (mut index, mut stock) = (Index::empty(), Stock::empty());
    for (place, len) in [(MAX_PLACE, 1), (MAX_PLACE - 1, 2), (u64::MAX, 1)] {
        let run = Run {
            block: 0,
            place,
            len,
        };
        assert_eq!(index.insert(run, &mut stock), None);
    }
    let last = Run {
        block: 0,
        place: MAX_PLACE - 1,
        len: 1,
    };
    insert(&mut index, &mut stock, last);
    assert_eq!(runs(&index, 0), [last]);
}

#[test]
fn blocks_far_apart_have_pages_of_their_own() {
    let (mut index, mut stock) = (Index::empty(), Stock::empty());
    let far: Vec<Run> = (0..40)
        .map(|i| Run {
            block: (i * 7 % 40) * SPAN,
            place: i + 1,
            len: 1,
        })
        .collect();
    far.iter().for_each(|r| insert(&mut index, &mut stock, *r));
    let mut sorted = far;
    sorted.sort_by_key(|r| r.block);
    assert_eq!(runs(&index, 0), sorted);
    assert_eq!(pages(&sorted).len(), 40);
    // Between two full pages that are as far apart as can be.
    let (mut index, mut stock) = (Index::empty(), Stock::empty());
    let mut table = Table::new();
    for i in 0..600u64 {
        for base in [0, SPAN - 300, 2 * SPAN - 300] {
            let run = Run {
                block: base + (i * 7 % 600) * 3,
                place: 10_000 + 5 * i + base % 4096 * 4096,
                len: 1,
            };
            insert(&mut index, &mut stock, run);
            enter(&mut table, run);
        }
    }
    for (block, place) in &table {
        let found = Found::Run {
            place: *place,
            len: 1,
        };
        assert_eq!(index.find(*block, 1), found);
    }
}

#[test]
fn pages_that_cannot_be_are_refused() {
    let mut page = [0; 4096];
    assert!(Page::open(&page).is_none(), "empty");
    let run = Run {
        block: 3,
        place: 8,
        len: 64,
    };
    let mut filling = Filling::default();
    assert!(filling.push(&mut page, run));
    assert!(!filling.push(
        &mut page,
        Run {
            block: 3 + SPAN,
            ..run
        }
    ));
    for i in 1..PAGE_ENTRIES as u64 {
        assert!(filling.push(
            &mut page,
            Run {
                block: 3 + 64 * i,
                ..run
            }
        ));
    }
    assert!(
        !filling.push(
            &mut page,
            Run {
                block: 1 << 20,
                ..run
            }
        ),
        "full"
    );
    assert_eq!(filling.finish(&mut page), Some(3));
    let opened = Page::open(&page).unwrap();
    assert_eq!(opened.entry(0), Some(run));
    assert_eq!(opened.entry(PAGE_ENTRIES), None);
    assert_eq!(opened.find(2, 5), Found::Gap(1));
    // One entry too many.
    page[40..48].copy_from_slice(&(PAGE_ENTRIES as u64 + 1).to_le_bytes());
    assert!(Page::open(&page).is_none());
    assert_eq!(Filling::default().finish(&mut page), None);
}
