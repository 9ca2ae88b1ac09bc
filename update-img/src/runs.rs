// SPDX-License-Identifier: GPL-2.0-only
//! Requests: pieces of changed runs, small enough to be read at once, in bytes.

use ioctl_abi::cow::BLOCK_SIZE;
use ioctl_abi::ioctl::Extent;

/// The most bytes of one request.
pub const MAX_REQUEST: u64 = 1 << 20;

/// Contiguous bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, never 0.
    pub len: u64,
}

/// Cuts a run of blocks into requests that end with the device.
pub fn requests(run: Extent, device_bytes: u64) -> impl Iterator<Item = Request> {
    let start = run.start.saturating_mul(BLOCK_SIZE);
    let end = run
        .start
        .saturating_add(run.len)
        .saturating_mul(BLOCK_SIZE)
        .min(device_bytes);
    (start..end)
        .step_by(MAX_REQUEST as usize)
        .map(move |offset| Request {
            offset,
            len: MAX_REQUEST.min(end - offset),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_cover_the_run_and_nothing_else(start in 0u64..5000, len in 1u64..5000,
                                                   bytes in 1u64..20_000_000) {
            let bytes = bytes / 512 * 512;
            let mut next = start * 4096;
            for r in requests(Extent { start, len }, bytes) {
                prop_assert_eq!(r.offset, next);
                prop_assert!(r.len > 0 && r.len <= MAX_REQUEST);
                next += r.len;
            }
            prop_assert_eq!(next, ((start + len) * 4096).min(bytes).max(start * 4096));
        }
    }
}
