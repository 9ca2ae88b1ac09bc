// SPDX-License-Identifier: GPL-2.0-only
//! The pure logic of the `dattobd` kernel module.
//!
//! The module compiles these very source files (`kernel/main.rs` includes them by path); this crate
//! builds them for the host, where property tests, Miri and loom can reach them. What they need of
//! their surroundings comes through three modules, which the kernel has its own versions of:
//!
//! * [`abi`], the shared definitions of the ioctls and of the COW file,
//! * [`mem`], memory, with the context it is allocated in,
//! * [`sync`], atomics.
//!
//! Rules of the shared files: `core` only; no kernel types; no panic (kernel Rust has overflow checks
//! on, and a panic there is a crash of the machine); `unsafe` only in [`lazy`].

// Checked by machine, as far as it can be: nothing here panics. (The kernel build has no clippy.)
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]
// Two words a leaf make some divisors 1.
#![cfg_attr(loom, allow(clippy::modulo_one))]

pub use ioctl_abi as abi;

#[path = "host/mem.rs"]
pub mod mem;
#[path = "host/sync.rs"]
pub mod sync;

pub mod change_map;
pub mod crc32c;
pub mod decide;
pub mod errno;
pub mod extents;
pub mod index;
pub mod index_page;
pub mod lazy;
mod leaf;
pub mod load;
pub mod preserved;
pub mod private_format;
pub mod read_plan;
pub mod regions;
pub mod sizes;
pub mod slot_pool;
pub mod space;
pub mod state;
pub mod status_json;
