// SPDX-License-Identifier: GPL-2.0-only
//! Faults that counter-tests switch on, to see that the tests notice.
//!
//! Only a build with `TEST_FAULTS=1` (`--cfg dattobd_test_faults`) can misbehave; in every other
//! build [`active`] is a constant `false` and the branches vanish.

/// A deliberate defect. The names are those of the module parameter `test_fault`. Its numbers from 101 on are
/// others: what only a debug kernel can see (`sys/defects.rs`).
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(dattobd_test_faults),
    allow(dead_code, reason = "constructed in every build, compared only in test builds")
)]
pub(crate) enum Fault {
    /// `no_cow`: writes are never held back for their old data.
    NoCow,
    /// `no_recheck`: a snapshot read from the origin is not checked again when it completes.
    NoRecheck,
    /// `publish_early`: a block counts as preserved before its old data was read.
    PublishEarly,
    /// `no_mark`: one write in 64 is not entered in the change map.
    NoMark,
    /// `no_guard`: a write by others to the COW file's blocks goes unnoticed.
    NoGuard,
    /// `no_region_mark`: a write does not wait for the mark of its region.
    NoRegionMark,
    /// `no_unseal`: a sealed file stays sealed when it is written to again.
    NoUnseal,
    /// `no_reload_check`: a reload does not look whether the filesystem was mounted elsewhere.
    NoReloadCheck,
    /// `no_log`: nothing is recorded on disk, as if there were no write-intent log. To tell what it costs.
    NoLog,
    /// `slow_join`: half a second passes before a mount has brought everything back. No defect: what a slow
    /// machine does, for the cases that must not see a device half there.
    SlowJoin,
    /// `index_wrong`: one entry in 64 of the index names the wrong place when it is written to disk.
    IndexWrong,
}

/// Whether the module was told to misbehave like this.
#[cfg(dattobd_test_faults)]
pub(crate) fn active(fault: Fault) -> bool {
    use core::sync::atomic::{AtomicU64, Ordering};
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let chosen = match crate::params::test_fault() {
        1 => Fault::NoCow,
        2 => Fault::NoRecheck,
        3 => Fault::PublishEarly,
        4 => Fault::NoMark,
        5 => Fault::NoGuard,
        6 => Fault::NoRegionMark,
        7 => Fault::NoUnseal,
        8 => Fault::NoReloadCheck,
        9 => Fault::NoLog,
        10 => Fault::SlowJoin,
        11 => Fault::IndexWrong,
        _ => return false,
    };
    chosen == fault
        && (!matches!(fault, Fault::NoMark | Fault::IndexWrong) || WRITES.fetch_add(1, Ordering::Relaxed) % 64 == 63)
}

/// Whether the module was told to misbehave like this: never.
#[cfg(not(dattobd_test_faults))]
pub(crate) const fn active(_fault: Fault) -> bool {
    false
}
