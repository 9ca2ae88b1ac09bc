// SPDX-License-Identifier: GPL-2.0-only
//! Pages of bits, one for each block: what the maps by block ([`super::change_map`], [`super::preserved`]) are made of.

use super::mem::WORDS;
use super::sync::AtomicU64;

/// A page of bits; bit `b` of word `w` is block `64 * w + b` of the leaf.
pub(super) type Leaf = [AtomicU64; WORDS];

/// Blocks that one leaf covers.
pub(super) const LEAF_BLOCKS: u64 = WORDS as u64 * 64;

/// The bits `from..to` of a word, for `from < to <= 64`.
#[inline]
pub(super) fn mask(from: u64, to: u64) -> u64 {
    let low = u64::MAX.wrapping_shl(from as u32);
    let high = u64::MAX.wrapping_shr(64u64.saturating_sub(to) as u32);
    low & high
}

/// `x` as an index. Nothing is lost on the only target, x86-64; elsewhere the index is out of range.
#[inline]
pub(super) fn index(x: u64) -> usize {
    usize::try_from(x).unwrap_or(usize::MAX)
}
