// SPDX-License-Identifier: GPL-2.0-only
//! What the tools share: the driver's control node ([`control`]), COW files that it handed over
//! ([`cow_file`]), and snapshot nodes ([`node`]).

pub mod control;
pub mod cow_file;
pub mod human;
pub mod node;
