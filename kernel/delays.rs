// SPDX-License-Identifier: GPL-2.0-only
//! Delays between the steps of a first overwrite, so that tests get to see what else happens there.
//!
//! Only a build with `TEST_FAULTS=1` has them (parameter `test_delay`, microseconds at most); in every other
//! build [`at`] is empty. What is right must stay right however long a step takes.

/// Where to wait.
#[derive(Clone, Copy)]
#[cfg_attr(not(dattobd_test_faults), allow(dead_code, reason = "told apart only in test builds"))]
pub(crate) enum Step {
    /// A held bio waits for the claim work.
    Claim = 1,
    /// Old data was read and is not published.
    Publish = 2,
    /// The blocks are published, the bio is about to be handed back.
    Release = 4,
    /// Copies wait to be written to the COW file.
    Copy = 8,
    /// Copies have been written; their memory is about to go.
    Stored = 16,
}

/// Sleeps for a random time, or not at all. Process context, no spinlock held.
#[cfg(dattobd_test_faults)]
pub(crate) fn at(step: Step) {
    use kernel::time::{delay::fsleep, Delta};
    let (most, steps) = crate::params::test_delay();
    if most == 0 || steps & step as u32 == 0 {
        return;
    }
    let n = random();
    // Often none: what comes in time must still meet what is late.
    if n % 4 != 0 {
        fsleep(Delta::from_micros(i64::from(n / 4 % most)));
    }
}

/// Good enough for delays: a Weyl sequence, mixed.
#[cfg(dattobd_test_faults)]
fn random() -> u32 {
    use core::sync::atomic::{AtomicU64, Ordering};
    static STATE: AtomicU64 = AtomicU64::new(0);
    let mut x = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u32
}

/// Sleeps for a random time, or not at all: never.
#[cfg(not(dattobd_test_faults))]
pub(crate) fn at(_step: Step) {}
