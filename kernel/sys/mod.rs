// SPDX-License-Identifier: GPL-2.0-only
//! Thin safe wrappers over the C interfaces that the `kernel` crate does not wrap yet. Nearly all
//! `unsafe` of the module lives here; what uses these wrappers contains none.

pub(crate) mod bdev;
pub(crate) mod bio;
pub(crate) mod bio_pool;
pub(crate) mod disk;
pub(crate) mod ffi;
pub(crate) mod gate;
pub(crate) mod page;
pub(crate) mod plug;
pub(crate) mod queues;
pub(crate) mod rcu_cell;
pub(crate) mod tracepoint;
