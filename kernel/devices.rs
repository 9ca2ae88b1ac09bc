// SPDX-License-Identifier: GPL-2.0-only
//! The table of devices by minor.
//!
//! # Locks of the control side, outer first
//!
//! 1. `Device::op`, a mutex: one operation on a device at a time. Held across everything that an
//!    operation does: file system calls, freezing, waiting for I/O.
//! 2. `Devices::slots`, a mutex: who owns which minor. Held for a few instructions and never across
//!    anything that waits for I/O.
//! 3. `Device::view`, a spinlock and a leaf: what INFO, STATUS, EXTENTS and /proc show. Nothing is
//!    allocated, freed or called under it that could sleep.
//!
//! INFO, GET_FREE, STATUS, EXTENTS and /proc take 2 and 3 only, so they wait for no operation. The unmount
//! callback, which may run inside an operation's own thaw, takes 3 only; what the engine calls when
//! a snapshot fails or runs out of space takes none.

use core::ops::Deref;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{new_mutex, Arc, Mutex};

use crate::device::Device;
use crate::device_reload::ReloadRequest;
use crate::device_setup::SetupRequest;
use crate::device_status::OriginId;
use crate::events::Outlet;
use crate::sys::module::DevicePin;
use crate::sys::shutdown::OnShutdown;

/// A minor's owner.
struct Slot {
    device: Arc<Device>,
    /// Set up completely: others may find it. Until then the minor is only taken.
    ready: bool,
    _pin: DevicePin,
}

/// See the module's description.
#[pin_data]
pub(crate) struct Devices {
    outlet: Arc<Outlet>,
    /// One entry for each minor.
    #[pin]
    slots: Mutex<KVec<Option<Slot>>>,
}

fn index(minor: u32) -> usize {
    usize::try_from(minor).unwrap_or(usize::MAX)
}

impl Devices {
    /// A table for `max` devices.
    pub(crate) fn new(max: u32, outlet: Arc<Outlet>) -> Result<Arc<Self>> {
        let mut slots = KVec::with_capacity(index(max), GFP_KERNEL)?;
        for _ in 0..max {
            slots.push(None, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                outlet,
                slots <- new_mutex!(slots, "dattobd_devices"),
            }),
            GFP_KERNEL,
        )
    }

    /// The device `minor`.
    ///
    /// # Errors
    ///
    /// EINVAL: no such minor can be; ENOENT: no such device now.
    pub(crate) fn get(&self, minor: u32) -> Result<Arc<Device>> {
        let slots = self.slots.lock();
        match slots.get(index(minor)).ok_or(EINVAL)? {
            Some(slot) if slot.ready => Ok(slot.device.clone()),
            _ => Err(ENOENT),
        }
    }

    /// EINVAL: no such minor can be; EBUSY: taken.
    pub(crate) fn check_free(&self, minor: u32) -> Result {
        match self.slots.lock().get(index(minor)).ok_or(EINVAL)? {
            None => Ok(()),
            Some(_) => Err(EBUSY),
        }
    }

    /// The lowest minor that is not taken; ENOENT.
    pub(crate) fn lowest_free(&self) -> Result<u32> {
        let slots = self.slots.lock();
        let free = slots.iter().position(Option::is_none).ok_or(ENOENT)?;
        u32::try_from(free).map_err(|_| ENOENT)
    }

    /// The first device at or behind minor `from`.
    pub(crate) fn next(&self, from: u32) -> Option<Arc<Device>> {
        let slots = self.slots.lock();
        slots
            .iter()
            .skip(index(from))
            .flatten()
            .find(|slot| slot.ready)
            .map(|slot| slot.device.clone())
    }

    /// Takes the first snapshot of a device.
    pub(crate) fn setup(&self, request: SetupRequest) -> Result {
        self.check_free(request.minor)?;
        let pin = DevicePin::new()?;
        let device = Device::new(request.minor, request.bdev, self.outlet.clone())?;
        let reserved = self.reserve(device, pin)?;
        Device::set_up(
            &reserved,
            &request.cow,
            request.fallocated_mib,
            request.cache_size,
            |origin| self.claim(&reserved, origin),
        )?;
        reserved.keep();
        Ok(())
    }

    /// Picks up a device of a former life, before its filesystem is mounted.
    pub(crate) fn reload(&self, request: ReloadRequest) -> Result {
        self.check_free(request.minor)?;
        let pin = DevicePin::new()?;
        let bdev = CString::try_from(&*request.bdev)?;
        let device = Device::new(request.minor, bdev, self.outlet.clone())?;
        let reserved = self.reserve(device, pin)?;
        Device::reload(&reserved, &request, |origin| self.claim(&reserved, origin))?;
        reserved.keep();
        Ok(())
    }

    /// Lets go of a device so that it can be picked up again, and frees its minor.
    pub(crate) fn let_go(&self, minor: u32) -> Result {
        let device = self.get(minor)?;
        device.release()?;
        self.release(&device);
        Ok(())
    }

    /// Ends a device and frees its minor.
    pub(crate) fn destroy(&self, minor: u32) -> Result {
        let device = self.get(minor)?;
        device.destroy()?;
        self.release(&device);
        Ok(())
    }

    fn reserve(&self, device: Arc<Device>, pin: DevicePin) -> Result<Reserved<'_>> {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(index(device.minor())).ok_or(EINVAL)?;
        if slot.is_some() {
            return Err(EBUSY);
        }
        *slot = Some(Slot {
            device: device.clone(),
            ready: false,
            _pin: pin,
        });
        Ok(Reserved {
            table: self,
            device,
            keep: false,
        })
    }

    /// Enters that `device` tracks `origin`; EBUSY when another one tracks a part of it.
    ///
    /// Under the table's lock, so that of two callers one sees the other.
    fn claim(&self, device: &Device, origin: OriginId) -> Result {
        let slots = self.slots.lock();
        let taken = slots
            .iter()
            .flatten()
            .filter(|slot| slot.device.minor() != device.minor())
            .any(|slot| slot.device.tracks(&origin));
        if taken {
            return Err(EBUSY);
        }
        device.set_origin(Some(origin));
        Ok(())
    }

    /// Frees the minor of `device`.
    fn release(&self, device: &Arc<Device>) {
        let mut slots = self.slots.lock();
        let slot = match slots.get_mut(index(device.minor())) {
            Some(entry)
                if entry
                    .as_ref()
                    .is_some_and(|s| Arc::ptr_eq(&s.device, device)) =>
            {
                entry.take()
            }
            _ => None,
        };
        drop(slots);
        // The device's memory and the module's pin go without the lock.
        drop(slot);
    }
}

impl OnShutdown for Devices {
    /// Seals what can be sealed.
    fn shut_down(&self) {
        let mut from = 0;
        while let Some(device) = self.next(from) {
            from = device.minor().saturating_add(1);
            device.shut_down();
        }
    }
}

/// A minor taken for a device that is being set up; freed on drop unless kept.
struct Reserved<'a> {
    table: &'a Devices,
    device: Arc<Device>,
    keep: bool,
}

impl Reserved<'_> {
    /// The device is complete: others may find it.
    fn keep(mut self) {
        let mut slots = self.table.slots.lock();
        if let Some(Some(slot)) = slots.get_mut(index(self.device.minor())) {
            slot.ready = true;
        }
        drop(slots);
        self.keep = true;
    }
}

impl Deref for Reserved<'_> {
    type Target = Arc<Device>;

    fn deref(&self) -> &Arc<Device> {
        &self.device
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.keep {
            self.table.release(&self.device);
        }
    }
}
