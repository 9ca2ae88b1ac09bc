// SPDX-License-Identifier: GPL-2.0-only
//! What the tools share: the driver's control node ([`control`]), COW files that it handed over
//! ([`cow_file`]), snapshot nodes ([`node`]), and messages ([`tell`]).

pub mod control;
pub mod cow_file;
pub mod human;
pub mod node;
pub mod tell;
