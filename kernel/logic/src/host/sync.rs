// SPDX-License-Identifier: GPL-2.0-only
//! Atomics of the host build: those of `core`, or loom's when a model is checked.

#[cfg(not(loom))]
pub use core::sync::atomic::{fence, AtomicI32, AtomicPtr, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{fence, AtomicI32, AtomicPtr, AtomicU64, Ordering};
