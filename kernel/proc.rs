// SPDX-License-Identifier: GPL-2.0-only
//! `/proc/datto-info`: the status of all devices as JSON. Reading it, or holding it open, keeps no
//! operation waiting, and no operation keeps a reader waiting.

use kernel::sync::Arc;

use crate::abi::cow;
use crate::device_status::DeviceStatus;
use crate::devices::Devices;
use crate::logic::status_json as json;
use crate::sys::module::version;
use crate::sys::procfs::{SeqWriter, Show};

/// The content of the file.
pub(crate) struct Info {
    devices: Arc<Devices>,
}

impl Info {
    pub(crate) fn new(devices: Arc<Devices>) -> Self {
        Self { devices }
    }
}

fn entry(s: &DeviceStatus) -> json::DeviceStatus<'_> {
    json::DeviceStatus {
        minor: s.minor,
        cow_file: s.cow_path.to_bytes(),
        block_device: s.bdev_path.to_bytes(),
        max_cache: s.cache_size,
        details: (!s.unverified).then(|| json::Details {
            fallocate: s.falloc_size,
            cow_size_current: s.cow_bytes,
            seq_id: s.seqid,
            uuid: s.uuid,
            version: cow::VERSION,
            nr_changed_blocks: s.nr_changed_blocks,
            auto_expand: s.auto_expand.map(|a| json::AutoExpand {
                step_size_mib: a.step_mib,
                reserved_space_mib: a.reserve_mib,
            }),
        }),
        error: s.error,
        state: s.state,
    }
}

impl Show for Info {
    fn show(&self, out: &mut SeqWriter<'_>) -> core::fmt::Result {
        json::write_start(out, version())?;
        let mut first = true;
        let mut from = 0;
        // One device at a time: no list, no allocation, no lock over the output.
        while let Some(device) = self.devices.next(from) {
            from = device.minor().saturating_add(1);
            // A device that was destroyed meanwhile is left out.
            if let Ok(status) = device.status() {
                json::write_device(out, first, &entry(&status))?;
                first = false;
            }
        }
        json::write_end(out)
    }
}
