// SPDX-License-Identifier: GPL-2.0-only
//! A page of the index of copies, as it may come from a damaged disk: any bytes behind its envelope. Nothing
//! may panic; in a page whose entries are in order, what is found is what a look at each entry finds.
#![no_main]

use cow_logic::index_page::{Filling, Found, Page, Run, MAX_LEN, PAGE_ENTRIES};
use cow_logic::private_format::{Block, ENVELOPE};
use libfuzzer_sys::fuzz_target;

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    for (to, from) in out.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(out)
}

fn entries(page: &Page<'_>) -> Vec<Run> {
    (0..PAGE_ENTRIES).map_while(|i| page.entry(i)).collect()
}

/// What each entry says, one after the other.
fn slow(runs: &[Run], block: u64, max: u64) -> Found {
    if let Some(run) = runs.iter().find(|r| r.block <= block && block < r.end()) {
        let rest = run.skip(block - run.block);
        return Found::Run {
            place: rest.place,
            len: rest.len.min(max),
        };
    }
    let next = runs.iter().map(|r| r.block).filter(|b| *b > block).min();
    Found::Gap(next.map_or(max, |b| (b - block).min(max)))
}

fn in_order(runs: &[Run]) -> bool {
    runs.windows(2).all(|w| {
        w[0].block
            .checked_add(w[0].len)
            .is_some_and(|end| end <= w[1].block)
    }) && runs.iter().all(|r| r.block.checked_add(r.len).is_some())
}

/// Asks for the neighbourhood of each entry, and for some block.
fn ask(page: &Page<'_>, runs: &[Run], other: u64) {
    let exact = in_order(runs);
    for run in runs.iter().step_by(1 + runs.len() / 16) {
        for block in [
            run.block.saturating_sub(1),
            run.block,
            run.end() - 1,
            run.end(),
            other,
        ] {
            for max in [1, 7, 1 << 20] {
                let found = page.find(block, max);
                if exact {
                    assert_eq!(
                        found,
                        slow(runs, block, max),
                        "block {block}, at most {max}"
                    );
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    // As it may be read.
    let mut block: Block = [0; 4096];
    for (to, from) in block.iter_mut().skip(ENVELOPE).zip(data) {
        *to = *from;
    }
    if let Some(page) = Page::open(&block) {
        ask(&page, &entries(&page), number(data, 3));
    }

    // As it is written: what goes in comes out.
    let mut page: Block = [0; 4096];
    let mut filling = Filling::default();
    let mut wanted = Vec::new();
    let mut next = number(data, 0) >> 24;
    for piece in data.chunks_exact(8) {
        let word = number(piece, 0);
        let run = Run {
            block: next + (word & 0xffff),
            place: word >> 30,
            len: 1 + (word >> 16) % MAX_LEN,
        };
        if !filling.push(&mut page, run) {
            break;
        }
        next = run.end();
        wanted.push(run);
    }
    if filling.finish(&mut page).is_some() {
        let read = Page::open(&page).expect("a page that was just made");
        assert_eq!(entries(&read), wanted);
        ask(&read, &wanted, number(data, 3));
    }
});
