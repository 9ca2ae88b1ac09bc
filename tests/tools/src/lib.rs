// SPDX-License-Identifier: GPL-2.0-only
//! What the VM tests of dattobd run: one program, `dbdtest`, with a command for each job.
//!
//! Writers keep a model of what they wrote apart from the device under test (in a directory that
//! the caller puts on a tmpfs); checkers compare a snapshot or an image with that model. Nothing in
//! here shares code with the module or with the tools, the ABI crate aside, so that a mistake
//! there cannot hide itself; but for [`flush_points`], which puts the module's own code to the test,
//! and [`root_state`], which writes what that code is to read.

pub mod clock;
pub mod cmp;
pub mod control;
pub mod cow;
pub mod errno;
pub mod extents;
pub mod files;
pub mod finding;
pub mod flush_points;
pub mod fsx;
pub mod fuzz;
pub mod hammer;
pub mod hog;
pub mod mark;
pub mod race;
pub mod raw;
pub mod rewrite;
pub mod rng;
pub mod root_state;
pub mod stamp;
pub mod sys;
pub mod wipe;
pub mod writelog;
