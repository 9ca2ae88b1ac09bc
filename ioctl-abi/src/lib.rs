// SPDX-License-Identifier: MIT OR GPL-2.0-only
//! What crosses the border between the `dattobd` module and user space.
//!
//! * [`ioctl`]: the calls on `/dev/datto-ctl`, their numbers and argument structs.
//! * [`cow`]: the COW file, version 1, as programs that read a handed-over file see it.
//!
//! The kernel module compiles these very source files (`kernel/main.rs` includes them by path), so
//! the two sides cannot disagree. Everything is `no_std` and free of dependencies.
#![no_std]

pub mod cow;
pub mod ioctl;
