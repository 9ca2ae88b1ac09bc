// SPDX-License-Identifier: GPL-2.0-only
//! What crosses the border to user space: the source files of the crate `ioctl-abi`.

#[path = "../ioctl-abi/src/cow.rs"]
pub mod cow;
#[path = "../ioctl-abi/src/ioctl.rs"]
pub mod ioctl;
