// SPDX-License-Identifier: GPL-2.0-only
//! Defects of the kind that only a debug kernel sees, for `make test-debug` to see that each of its checkers
//! works in this module (tests/debug/d0-*). Only in a build with `TEST_FAULTS=1`; each happens once, at the moment
//! at which its number is written to the parameter `test_fault`. On any other kernel the machine may be damaged.

use core::hint::black_box;
use kernel::prelude::*;
use kernel::sync::{new_spinlock, SpinLock};

/// Two locks of classes that nothing else uses.
#[pin_data]
struct Locks {
    #[pin]
    first: SpinLock<u32>,
    #[pin]
    second: SpinLock<u32>,
}

fn locks() -> Result<Pin<KBox<Locks>>> {
    KBox::pin_init(
        pin_init!(Locks {
            first <- new_spinlock!(0, "dattobd::defect_first"),
            second <- new_spinlock!(0, "dattobd::defect_second"),
        }),
        GFP_KERNEL,
    )
}

/// 101: memory that nobody points to any more. Several pieces: a stale pointer to one may lie on some stack.
fn leak() -> Result {
    for n in 0..32u8 {
        core::mem::forget(black_box(KBox::new([n; 200], GFP_KERNEL)?));
    }
    Ok(())
}

/// 102: an allocation that may sleep, under a spinlock.
fn sleep_in_atomic() -> Result {
    let locks = locks()?;
    let guard = locks.first.lock();
    let memory = KBox::new(*guard, GFP_KERNEL);
    drop(guard);
    memory.map(drop).map_err(Error::from)
}

/// 103: two locks, taken in one order and in the other. Nothing hangs: it is one task.
fn lock_inversion() -> Result {
    let locks = locks()?;
    {
        let mut outer = locks.first.lock();
        *outer += *locks.second.lock();
    }
    let mut outer = locks.second.lock();
    *outer += *locks.first.lock();
    Ok(())
}

/// 104: a read of memory that was freed.
fn use_after_free() -> Result {
    let memory = KBox::into_raw(KBox::new([104u8; 200], GFP_KERNEL)?);
    // SAFETY: `into_raw` has just given it up.
    drop(unsafe { KBox::from_raw(memory) });
    // SAFETY: None, that is the defect: a byte of memory that the kernel maps and that is not ours any more.
    black_box(unsafe { memory.cast::<u8>().read_volatile() });
    Ok(())
}

/// 105: a read behind the end.
fn out_of_bounds() -> Result {
    let memory = KBox::new([105u8; 200], GFP_KERNEL)?;
    let end = black_box(memory.len());
    // SAFETY: None, that is the defect: the byte behind the 200 that are ours, which the kernel maps.
    black_box(unsafe { memory.as_ptr().wrapping_add(end).read_volatile() });
    Ok(())
}

/// 106: an arithmetic overflow.
fn overflow(number: u32) -> Result {
    let most = black_box(u32::MAX - 105);
    black_box(most + number);
    Ok(())
}

/// Called by shim_ctl.c when a number from 101 on is written to `test_fault`, in process context, without a spinlock.
#[no_mangle]
extern "C" fn dbd_plant_defect(number: u32) -> kernel::ffi::c_int {
    let done = match number {
        101 => leak(),
        102 => sleep_in_atomic(),
        103 => lock_inversion(),
        104 => use_after_free(),
        105 => out_of_bounds(),
        106 => overflow(number),
        _ => Err(EINVAL),
    };
    match done {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}
