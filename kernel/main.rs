// SPDX-License-Identifier: GPL-2.0-only
//! `dattobd`: point-in-time snapshots and changed-block tracking of mounted block devices.
//!
//! Where to start reading: [`intercept`] for the path of a write, [`snapshot_read`] for the path of
//! a read, [`device`] for what the ioctls do. `ARCHITECTURE.md` follows both paths file by file.

use kernel::prelude::*;

#[allow(dead_code, reason = "the tools use the rest of it")]
#[allow(unreachable_pub, reason = "it is a crate of its own elsewhere")]
mod abi;

/// The pure logic: the source files of the crate `kernel/logic`, tested on the host.
#[allow(dead_code, reason = "some of it serves the host tests only")]
#[allow(unreachable_pub, reason = "it is a crate of its own elsewhere")]
mod logic {
    pub(crate) use crate::abi;
    pub(crate) use crate::mem;
    /// Atomics: plain ones here, loom's in the model checks.
    pub(crate) mod sync {
        pub(crate) use core::sync::atomic::{fence, AtomicPtr, AtomicU64, Ordering};
    }

    #[path = "src/change_map.rs"]
    pub mod change_map;
    #[path = "src/crc32c.rs"]
    pub mod crc32c;
    #[path = "src/decide.rs"]
    pub mod decide;
    #[path = "src/errno.rs"]
    pub mod errno;
    #[path = "src/extents.rs"]
    pub mod extents;
    #[path = "src/index.rs"]
    pub mod index;
    #[path = "src/index_page.rs"]
    pub mod index_page;
    #[path = "src/lazy.rs"]
    pub mod lazy;
    #[path = "src/leaf.rs"]
    mod leaf;
    #[path = "src/load.rs"]
    pub mod load;
    #[path = "src/preserved.rs"]
    pub mod preserved;
    #[path = "src/private_format.rs"]
    pub mod private_format;
    #[path = "src/read_plan.rs"]
    pub mod read_plan;
    #[path = "src/regions.rs"]
    pub mod regions;
    #[path = "src/sizes.rs"]
    pub mod sizes;
    #[path = "src/slot_pool.rs"]
    pub mod slot_pool;
    #[path = "src/space.rs"]
    pub mod space;
    #[path = "src/state.rs"]
    pub mod state;
    #[path = "src/status_json.rs"]
    pub mod status_json;
}

mod auto_expand;
mod claim;
mod control;
mod copy;
mod copy_memory;
mod copy_ring;
mod cow_create;
mod cow_file;
mod cow_grow;
mod cow_seal;
mod delays;
mod device;
mod device_destroy;
mod device_mount;
mod device_point;
mod device_reload;
mod device_setup;
mod device_status;
mod device_transition;
mod devices;
mod disk_turn;
mod epoch;
mod events;
mod faults;
mod free_at_point;
mod freeze;
mod identity;
mod index_pager;
mod index_read;
mod index_table;
mod intercept;
mod ioctl_calls;
mod ioctl_extents;
mod ioctl_info;
mod ioctl_sized;
mod log_checkpoint;
mod log_end;
mod log_load;
mod log_seal;
mod mem;
mod origin;
mod params;
mod peek;
mod peek_overlay;
mod peek_replay;
mod proc;
mod region_log;
mod release;
mod reload_parts;
mod snapshot;
mod snapshot_disk;
mod snapshot_read;
mod stored;
mod sys;
mod tracker;

module! {
    type: Dattobd,
    name: "dattobd",
    authors: ["The dattobd authors"],
    description: "Snapshots and changed-block tracking of mounted block devices",
    license: "GPL v2",
}

/// What exists while the module is loaded. A device holds the module, so there is none when this is
/// dropped.
struct Dattobd {
    // Dropped in this order: first nobody can call any more, last what unmount callbacks run on.
    _control: control::Control,
    _watches: sys::fsnotify::Watches,
}

impl kernel::Module for Dattobd {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: The kernel calls this once for each load, before anything else of the module runs.
        unsafe { intercept::init() };
        // SAFETY: As above.
        unsafe { disk_turn::init() };
        let watches = sys::fsnotify::Watches::new()?;
        Ok(Self {
            // SAFETY: As above: the only value. Last, as calls may arrive at once.
            _control: unsafe { control::Control::new() }?,
            _watches: watches,
        })
    }
}
