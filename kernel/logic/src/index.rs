// SPDX-License-Identifier: GPL-2.0-only
//! The part of the index that is in memory: where the copies of blocks lie in the COW file.
//!
//! Entries ([`super::index_page`]) are kept in order in pages of memory, the pages in order in a list: a
//! tree of two levels. A page that is full gives to its neighbours; when they are full too, three pages
//! become four. So pages are at least seven tenths full however the blocks come, and each block costs less
//! than twelve bytes; blocks that are claimed in a row cost a sixty-fourth of that.
//!
//! Nothing here allocates but [`Stock::fill`], so that it can all be done under a spinlock.

use super::index_page::{
    delta, lowered, pack, raised, unpack, Found, Run, MAX_LEN, MAX_PLACE, SPAN,
};
use super::mem::{AllocError, Context, LeafBox, List, WORDS};
use core::mem::{size_of, swap};

type Words = [u64; WORDS];

/// A neighbour with less room than this counts as full: moving one entry at a time would take for ever.
const ROOM: usize = WORDS / 32;

/// Adjacent pages that share one more when all of them are full.
const GROUP: usize = 3;

struct Leaf {
    /// First block of the first entry.
    base: u64,
    used: usize,
    words: LeafBox<Words>,
}

impl Leaf {
    fn words(&self) -> &[u64] {
        self.words.get(..self.used).unwrap_or(&[])
    }

    /// Number of the first entry that begins behind `block`.
    fn behind(&self, block: u64) -> usize {
        let distance = block.saturating_sub(self.base);
        self.words().partition_point(|w| delta(*w) <= distance)
    }

    fn run(&self, i: usize) -> Option<Run> {
        self.words().get(i).map(|w| unpack(self.base, *w))
    }

    fn last_delta(&self) -> u64 {
        self.words().last().map_or(0, |w| delta(*w))
    }

    fn room(&self) -> usize {
        WORDS.saturating_sub(self.used)
    }

    /// Makes the base `n` blocks lower, if all entries can bear it.
    fn lower_base(&mut self, n: u64) -> bool {
        if self.last_delta().saturating_add(n) >= SPAN {
            return false;
        }
        for word in self.words.iter_mut().take(self.used) {
            *word = raised(*word, n);
        }
        self.base = self.base.saturating_sub(n);
        true
    }

    fn put(&mut self, i: usize, word: u64) {
        if let Some(part @ [_, ..]) = self.words.get_mut(i..self.used.saturating_add(1)) {
            part.rotate_right(1);
            if let Some(first) = part.first_mut() {
                *first = word;
            }
            self.used = self.used.saturating_add(1);
        }
    }
}

/// Moves the last `k` entries of `left` to the front of `right`. False, and nothing is done: they do not
/// fit.
fn shift_right(left: &mut Leaf, right: &mut Leaf, k: usize) -> bool {
    let Some(keep) = left.used.checked_sub(k) else {
        return false;
    };
    let Some(first) = left.words().get(keep).copied() else {
        return k == 0;
    };
    let base = left.base.saturating_add(delta(first));
    let raise = if right.used == 0 {
        0
    } else {
        right.base.saturating_sub(base)
    };
    if k > right.room() || right.last_delta().saturating_add(raise) >= SPAN {
        return false;
    }
    for i in (0..right.used).rev() {
        let word = right.words.get(i).copied().unwrap_or(0);
        if let Some(to) = right.words.get_mut(i.saturating_add(k)) {
            *to = raised(word, raise);
        }
    }
    let moved = left.words.iter().skip(keep).take(k);
    for (to, word) in right.words.iter_mut().zip(moved) {
        *to = lowered(*word, delta(first));
    }
    right.base = base;
    right.used = right.used.saturating_add(k);
    left.used = keep;
    true
}

/// Moves the first `k` entries of `right`, less than all, to the end of `left`. As above.
fn shift_left(left: &mut Leaf, right: &mut Leaf, k: usize) -> bool {
    let raise = right.base.saturating_sub(left.base);
    let (Some(last), Some(next)) = (
        right.words().get(k.wrapping_sub(1)).copied(),
        right.words().get(k).copied(),
    ) else {
        return false;
    };
    if k > left.room() || delta(last).saturating_add(raise) >= SPAN {
        return false;
    }
    let from = right.words.iter().take(k);
    for (to, word) in left.words.iter_mut().skip(left.used).zip(from) {
        *to = raised(*word, raise);
    }
    left.used = left.used.saturating_add(k);
    for i in k..right.used {
        let word = right.words.get(i).copied().unwrap_or(0);
        if let Some(to) = right.words.get_mut(i.wrapping_sub(k)) {
            *to = lowered(word, delta(next));
        }
    }
    right.base = right.base.saturating_add(delta(next));
    right.used = right.used.saturating_sub(k);
    true
}

/// Memory for an [`Index`] to grow, got where one may sleep.
pub struct Stock {
    pages: [Option<LeafBox<Words>>; 2],
    /// Room for a longer list of pages, when `want` says that one is wanted; else what was replaced.
    list: List<Leaf>,
    want: usize,
}

impl Stock {
    /// Nothing.
    pub const fn empty() -> Self {
        Self {
            pages: [None, None],
            list: List::empty(),
            want: 0,
        }
    }

    /// Nothing is missing: [`Stock::fill`] would not allocate.
    pub fn is_full(&self) -> bool {
        self.pages.iter().all(Option::is_some) && self.list.capacity() >= self.want
    }

    /// Gets what is missing. May sleep.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn fill(&mut self) -> Result<(), AllocError> {
        for page in self.pages.iter_mut().filter(|p| p.is_none()) {
            *page = Some(LeafBox::new(Context::Sleep)?);
        }
        if self.want == 0 || self.list.capacity() < self.want {
            self.list = List::empty();
        }
        if self.list.capacity() < self.want {
            self.list = List::with_capacity(self.want)?;
        }
        Ok(())
    }
}

/// How far an insertion has come.
enum Step {
    /// So many blocks.
    Entered(u64),
    /// There is room now.
    Again,
    /// The stock is used up.
    Missing,
}

/// See the module's description.
pub struct Index {
    leaves: List<Leaf>,
}

impl Default for Index {
    fn default() -> Self {
        Self::empty()
    }
}

impl Index {
    /// Nothing, and no memory for it.
    pub const fn empty() -> Self {
        Self {
            leaves: List::empty(),
        }
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    /// Memory that it holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let list = self.leaves.capacity().saturating_mul(size_of::<Leaf>());
        let pages = self.leaves.len().saturating_mul(size_of::<Words>());
        list.saturating_add(pages) as u64
    }

    /// The leaf whose entries may hold `block`: the last one that begins at or before it.
    fn leaf_of(&self, block: u64) -> Option<usize> {
        self.leaves
            .partition_point(|l| l.base <= block)
            .checked_sub(1)
    }

    /// What is known of `block`, for at most `max` blocks.
    pub fn find(&self, block: u64, max: u64) -> Found {
        let (mut place, mut len) = (0, 0u64);
        let mut gap = max;
        self.walk(block, |run| {
            let here = block.saturating_add(len);
            if len == 0 {
                gap = run.block.saturating_sub(block).min(max);
                if gap != 0 || max == 0 {
                    return false;
                }
                place = run.place;
            } else if run.block != here || run.place != place.saturating_add(len) {
                return false;
            }
            len = len.saturating_add(run.len);
            len < max
        });
        match len {
            0 => Found::Gap(gap),
            _ => Found::Run {
                place,
                len: len.min(max),
            },
        }
    }

    /// Calls `f` for the entries from `block` on, in order, until it returns false. What the first one
    /// says of earlier blocks is left out.
    pub fn walk(&self, block: u64, mut f: impl FnMut(Run) -> bool) {
        let first = self.leaf_of(block).unwrap_or(0);
        for leaf in self.leaves.iter().skip(first) {
            let behind = if leaf.base <= block {
                leaf.behind(block)
            } else {
                0
            };
            let from = behind.saturating_sub(1);
            for word in leaf.words().iter().skip(from) {
                let run = unpack(leaf.base, *word);
                let run = run.skip(block.saturating_sub(run.block));
                if run.len != 0 && !f(run) {
                    return;
                }
            }
        }
    }

    /// Enters the first blocks of a run, of none of which anything is known, as far as `stock` reaches. How
    /// many: if not all, fill the stock and go on with the rest. `None`: the place does not fit.
    pub fn insert(&mut self, run: Run, stock: &mut Stock) -> Option<u64> {
        if run.place.checked_add(run.len)? > MAX_PLACE {
            return None;
        }
        let mut rest = run;
        let mut retried = false;
        while rest.len != 0 {
            match self.insert_one(rest, stock) {
                Step::Entered(n) => {
                    rest = rest.skip(n);
                    retried = false;
                }
                // Room was made, which once is enough.
                Step::Again if !retried => retried = true,
                Step::Again | Step::Missing => break,
            }
        }
        Some(run.len.saturating_sub(rest.len))
    }

    /// Enters up to [`MAX_LEN`] blocks.
    fn insert_one(&mut self, run: Run, stock: &mut Stock) -> Step {
        let one = Run {
            len: run.len.min(MAX_LEN),
            ..run
        };
        let at = match self.leaf_of(run.block) {
            Some(at) => at,
            None => {
                // In front of all others.
                let lowered = self.leaves.first_mut().is_some_and(|leaf| {
                    let n = leaf.base.saturating_sub(run.block);
                    leaf.lower_base(n)
                });
                if !lowered {
                    return self.add(0, one, stock);
                }
                0
            }
        };
        let last = self.leaves.len().saturating_sub(1);
        let Some(leaf) = self.leaves.get_mut(at) else {
            return Step::Missing;
        };
        let behind = leaf.behind(run.block);
        if let Some(before) = behind.checked_sub(1).and_then(|i| leaf.run(i)) {
            let n = MAX_LEN.saturating_sub(before.len).min(run.len);
            let follows =
                before.end() == run.block && before.place.saturating_add(before.len) == run.place;
            let longer = Run {
                len: before.len.saturating_add(n),
                ..before
            };
            if let Some(word) = pack(leaf.base, longer).filter(|_| follows && n != 0) {
                if let Some(to) = leaf.words.get_mut(behind.saturating_sub(1)) {
                    *to = word;
                }
                return Step::Entered(n);
            }
        }
        let Some(word) = pack(leaf.base, one) else {
            // Too far behind the first block of the page.
            return self.add(at.saturating_add(1), one, stock);
        };
        if leaf.room() != 0 {
            leaf.put(behind, word);
            return Step::Entered(one.len);
        }
        if at == last && behind == leaf.used {
            // Ascending: leave full pages behind.
            return self.add(at.saturating_add(1), one, stock);
        }
        if self.make_room(at, stock) {
            Step::Again
        } else {
            Step::Missing
        }
    }

    /// A new leaf with one entry.
    fn add(&mut self, at: usize, run: Run, stock: &mut Stock) -> Step {
        let Some(word) = pack(run.block, run) else {
            return Step::Missing;
        };
        if !self.add_leaf(at, run.block, stock) {
            return Step::Missing;
        }
        if let Some(leaf) = self.leaves.get_mut(at) {
            leaf.put(0, word);
        }
        Step::Entered(run.len)
    }

    /// A new, empty leaf. False: the stock is used up.
    fn add_leaf(&mut self, at: usize, base: u64, stock: &mut Stock) -> bool {
        let len = self.leaves.len();
        if len == self.leaves.capacity() {
            if stock.list.capacity() <= len {
                stock.want = len.saturating_mul(2).max(8);
                return false;
            }
            stock.list.move_from(&mut self.leaves);
            swap(&mut self.leaves, &mut stock.list);
            // What was replaced goes where one may sleep.
            stock.want = 0;
        }
        let Some(words) = stock.pages.iter_mut().find_map(Option::take) else {
            return false;
        };
        self.leaves.insert(
            at,
            Leaf {
                base,
                used: 0,
                words,
            },
        )
    }

    /// Two leaves, one behind the other.
    fn pair(&mut self, left: usize) -> Option<(&mut Leaf, &mut Leaf)> {
        match self.leaves.get_mut(left..left.saturating_add(2)) {
            Some([left, right]) => Some((left, right)),
            _ => None,
        }
    }

    /// Leaf number `left` takes some of the one behind it, if it has room enough.
    fn give_left(&mut self, left: usize) -> bool {
        self.pair(left).is_some_and(|(left, right)| {
            let k = left.room() / 2;
            right.room() < ROOM && left.room() >= ROOM.max(2) && shift_left(left, right, k)
        })
    }

    /// Leaf number `left` gives some to the one behind it, if that has room enough.
    fn give_right(&mut self, left: usize) -> bool {
        self.pair(left).is_some_and(|(left, right)| {
            let k = right.room() / 2;
            left.room() < ROOM && right.room() >= ROOM.max(2) && shift_right(left, right, k)
        })
    }

    /// Makes room in the full leaf number `at`: see the module's description. False: the stock is used
    /// up.
    fn make_room(&mut self, at: usize, stock: &mut Stock) -> bool {
        // A neighbour gives too, so that the group below really is full.
        for _ in 0..2 {
            if at.checked_sub(1).is_some_and(|left| self.give_left(left)) || self.give_right(at) {
                return true;
            }
            let left = at.checked_sub(2).is_some_and(|left| self.give_left(left));
            if !left && !self.give_right(at.saturating_add(1)) {
                break;
            }
        }
        // One more for the group around it.
        let first = at
            .min(self.leaves.len().saturating_sub(GROUP))
            .min(at.saturating_sub(1));
        let behind = first.saturating_add(GROUP).min(self.leaves.len());
        let all = self.leaves.get(first..behind).unwrap_or(&[]);
        let total = all.iter().fold(0usize, |n, l| n.saturating_add(l.used));
        let each = total.checked_div(all.len().saturating_add(1)).unwrap_or(0);
        let end = all
            .last()
            .map_or(0, |l| l.base.saturating_add(l.last_delta()));
        if !self.add_leaf(behind, end, stock) {
            return false;
        }
        for left in (first..behind).rev() {
            if let Some((left, right)) = self.pair(left) {
                let k = each.saturating_sub(right.used);
                if !shift_right(left, right, k) {
                    // So sparse that they do not fit together: each may keep its own.
                    break;
                }
            }
        }
        self.drop_empty(behind);
        if self.leaves.get(at).is_some_and(|l| l.room() == 0) {
            return self.halve(at, stock);
        }
        true
    }

    /// A leaf of its own for the upper half of leaf number `at`: that always fits.
    fn halve(&mut self, at: usize, stock: &mut Stock) -> bool {
        let end = self
            .leaves
            .get(at)
            .map_or(0, |l| l.base.saturating_add(l.last_delta()));
        self.add_leaf(at.saturating_add(1), end, stock)
            && self
                .pair(at)
                .is_some_and(|(left, right)| shift_right(left, right, WORDS / 2))
    }

    /// Takes out a leaf that has got nothing.
    fn drop_empty(&mut self, at: usize) {
        if self.leaves.get(at).is_some_and(|l| l.used == 0) {
            self.leaves.remove(at);
        }
    }
}
