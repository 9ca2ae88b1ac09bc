// SPDX-License-Identifier: GPL-2.0-only
//! The few system calls that `std` does not offer. All `unsafe` of this crate is in here.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::libc;

/// Bytes at a 4096-byte boundary, as O_DIRECT wants them.
pub struct AlignedBuf {
    raw: Vec<u8>,
    at: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Self {
        let raw = vec![0; len + 4096];
        let at = raw.as_ptr().align_offset(4096);
        Self { raw, at, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.raw[self.at..self.at + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.at..self.at + self.len]
    }
}

/// Opens for reading with extra `O_*` flags.
pub fn open_read(path: &Path, flags: i32) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// Opens an existing file for reading and writing with extra `O_*` flags.
pub fn open_write(path: &Path, flags: i32) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .with_context(|| format!("open {} for writing", path.display()))
}

/// Size in bytes of a file or block device.
pub fn size_of(file: &File) -> Result<u64> {
    Ok((&mut &*file).seek(SeekFrom::End(0))?)
}

/// Nanoseconds of CLOCK_MONOTONIC: the same clock in all processes.
pub fn now() -> u64 {
    let t = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists");
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}

const BLKDISCARD: u64 = 0x1277;
const BLKSECDISCARD: u64 = 0x127d;
const BLKZEROOUT: u64 = 0x127f;
const BLKSSZGET: u64 = 0x1268;

fn range_ioctl(file: &File, code: u64, start: u64, len: u64) -> io::Result<()> {
    let range = [start, len];
    // SAFETY: the calls read two u64 from the pointer, which points to an array of two.
    let r = unsafe { libc::ioctl(file.as_raw_fd(), code as _, range.as_ptr()) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Discards a byte range of a block device.
pub fn discard(file: &File, start: u64, len: u64) -> io::Result<()> {
    range_ioctl(file, BLKDISCARD, start, len)
}

/// Erases a byte range of a block device securely.
pub fn secure_erase(file: &File, start: u64, len: u64) -> io::Result<()> {
    range_ioctl(file, BLKSECDISCARD, start, len)
}

/// Writes zeroes to a byte range of a block device, by the device's own command where it has one.
pub fn zero_out(file: &File, start: u64, len: u64) -> io::Result<()> {
    range_ioctl(file, BLKZEROOUT, start, len)
}

const FIFREEZE: u32 = 0xc004_5877;
const FITHAW: u32 = 0xc004_5878;

/// Freezes the filesystem that the directory is on.
pub fn freeze(dir: &File) -> io::Result<()> {
    ioctl_word(dir, FIFREEZE, 0).map_err(io::Error::from_raw_os_error)
}

/// Thaws it.
pub fn thaw(dir: &File) -> io::Result<()> {
    ioctl_word(dir, FITHAW, 0).map_err(io::Error::from_raw_os_error)
}

/// `fallocate` with `FALLOC_FL_*`.
pub fn fallocate(file: &File, mode: i32, at: u64, len: u64) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    let r = unsafe { libc::fallocate(file.as_raw_fd(), mode, at as _, len as _) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Asks that the page cache forgets the file.
pub fn drop_cache(file: &File) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    let r = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if r != 0 {
        return Err(io::Error::from_raw_os_error(r));
    }
    Ok(())
}

/// The logical block size of a block device; 512 for a file.
pub fn logical_block_size(file: &File) -> u64 {
    let mut size: libc::c_int = 0;
    // SAFETY: the call writes one int to the pointer.
    let r = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET as _, &mut size) };
    if r < 0 {
        512
    } else {
        size as u64
    }
}

/// Calls an ioctl with an argument word of any kind; returns the errno.
///
/// The word may be a wild pointer on purpose: the kernel must answer EFAULT. It must not point into
/// memory of this process that the call could overwrite, other than a buffer made for it.
pub fn ioctl_word(file: &File, code: u32, word: u64) -> Result<(), i32> {
    // SAFETY: what the pointer points to is the caller's: either nothing mapped, or a buffer.
    let r = unsafe { libc::ioctl(file.as_raw_fd(), u64::from(code) as _, word) };
    if r < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    Ok(())
}

/// A part of a file's place on its device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// Where in the file.
    pub logical: u64,
    /// Where on the device.
    pub physical: u64,
    /// How much.
    pub len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    _reserved64: [u64; 2],
    flags: u32,
    _reserved: [u32; 3],
}

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    _reserved: u32,
    extents: [FiemapExtent; 128],
}

const FS_IOC_FIEMAP: u64 = 0xc020_660b;
const FIEMAP_FLAG_SYNC: u32 = 1;
const EXTENT_LAST: u32 = 1;
/// Unknown place, delayed allocation, encoded, inline, unwritten: nothing that raw reads can check.
const EXTENT_UNUSABLE: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x200 | 0x800;

/// Where the file lies on its device. Fails unless every part is written and plain.
pub fn file_places(file: &File) -> Result<Vec<FilePlace>> {
    let mut out: Vec<FilePlace> = Vec::new();
    let mut start = 0;
    loop {
        let mut map = Fiemap {
            start,
            length: u64::MAX - start,
            flags: FIEMAP_FLAG_SYNC,
            mapped: 0,
            count: 128,
            _reserved: 0,
            extents: [FiemapExtent::default(); 128],
        };
        // SAFETY: the struct is laid out as the kernel's `struct fiemap` with room for `count`.
        let r = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &mut map) };
        if r < 0 {
            return Err(io::Error::last_os_error()).context("FIEMAP");
        }
        if map.mapped == 0 {
            return Ok(out);
        }
        for e in &map.extents[..map.mapped as usize] {
            anyhow::ensure!(
                e.flags & EXTENT_UNUSABLE == 0,
                "extent at {} has flags {:#x}: not a plain written extent",
                e.logical,
                e.flags
            );
            out.push(FilePlace {
                logical: e.logical,
                physical: e.physical,
                len: e.length,
            });
            start = e.logical + e.length;
            if e.flags & EXTENT_LAST != 0 {
                return Ok(out);
            }
        }
    }
}

/// A file mapped shared and writable.
pub struct SharedMap {
    at: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone; `&mut self` guards every store.
unsafe impl Send for SharedMap {}

impl SharedMap {
    /// Maps the first `len` bytes of the file, which has at least that many.
    pub fn new(file: &File, len: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        Ok(Self { at: at.cast(), len })
    }

    /// Stores bytes.
    pub fn store(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: inside the mapping by the assertion; `bytes` cannot overlap it, since nobody
        // can borrow from the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(at), bytes.len()) };
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the very range that `new` mapped.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// A path string that ends exactly at the end of mapped memory, without a NUL: reading on faults.
pub fn unterminated_at_edge(text: &[u8]) -> Result<u64> {
    let page = 4096;
    let pages = text.len().div_ceil(page);
    // SAFETY: a new anonymous mapping; the page behind it is made inaccessible, and the bytes are
    // stored inside the accessible part. It is left mapped until the process ends.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            (pages + 1) * page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        let at: *mut u8 = at.cast();
        if libc::mprotect(at.add(pages * page).cast(), page, libc::PROT_NONE) < 0 {
            return Err(io::Error::last_os_error()).context("mprotect");
        }
        let start = at.add(pages * page - text.len());
        std::ptr::copy_nonoverlapping(text.as_ptr(), start, text.len());
        Ok(start as u64)
    }
}

/// Pages for arguments of wild calls, with inaccessible ones on both sides: what the kernel writes
/// past either end faults instead of hitting memory of this process. Several threads may use one;
/// nobody reads it, so that it does not matter what they leave there.
pub struct Arena {
    at: *mut u8,
    len: usize,
}

// SAFETY: the mapping is never unmapped, and no reference into it ever exists.
unsafe impl Send for Arena {}
// SAFETY: as above; racing stores leave some mixture of bytes, which is welcome.
unsafe impl Sync for Arena {}

impl Arena {
    const PAGE: usize = 4096;

    /// `pages` readable and writable pages, left mapped until the process ends.
    pub fn new(pages: usize) -> Result<Self> {
        let len = pages * Self::PAGE;
        // SAFETY: a new anonymous mapping; its first and last page are made inaccessible.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                len + 2 * Self::PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error()).context("mmap");
            }
            let at: *mut u8 = at.cast();
            for edge in [at, at.add(Self::PAGE + len)] {
                if libc::mprotect(edge.cast(), Self::PAGE, libc::PROT_NONE) < 0 {
                    return Err(io::Error::last_os_error()).context("mprotect");
                }
            }
            Ok(Self {
                at: at.add(Self::PAGE),
                len,
            })
        }
    }

    /// From now on the kernel can read it and not write to it; neither can [`Arena::store`].
    pub fn make_read_only(&self) -> Result<()> {
        // SAFETY: the very range that `new` mapped.
        if unsafe { libc::mprotect(self.at.cast(), self.len, libc::PROT_READ) } < 0 {
            return Err(io::Error::last_os_error()).context("mprotect");
        }
        Ok(())
    }

    /// Bytes of it.
    pub fn size(&self) -> usize {
        self.len
    }

    /// The address of a byte, or of the first one behind the end.
    pub fn address(&self, at: usize) -> u64 {
        assert!(at <= self.len);
        self.at as u64 + at as u64
    }

    /// Stores as much of `bytes` as fits behind `at`.
    pub fn store(&self, at: usize, bytes: &[u8]) {
        let n = bytes.len().min(self.len.saturating_sub(at));
        for (i, &b) in bytes[..n].iter().enumerate() {
            // SAFETY: inside the mapping; volatile, as others may store there too.
            unsafe { self.at.add(at + i).write_volatile(b) };
        }
    }
}

/// Makes SIGUSR1 interrupt system calls of this process and do nothing else.
pub fn let_signals_interrupt() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing, so it is safe in any state; the struct is plain data, for
    // which zeros are valid: no flags (SA_RESTART among them), an empty mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

/// The number of the calling thread, for [`interrupt`].
pub fn thread_number() -> i32 {
    // SAFETY: no preconditions.
    unsafe { libc::gettid() }
}

/// Sends SIGUSR1 to a thread of this process, if it still runs.
pub fn interrupt(thread: i32) {
    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
}

/// Marks types of this crate as plain bytes for ioctls.
macro_rules! plain {
    ($t:ty) => {
        // SAFETY: `repr(C)`, an array of integers, no padding.
        unsafe impl ioctl_abi::ioctl::Plain for $t {}
    };
}
pub(crate) use plain;

/// The processor's time stamp counter. Where QEMU counts instructions, this is their number.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Lets the calling thread run only when nothing else wants to.
pub fn run_only_when_idle() -> Result<()> {
    let p = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the struct that the pointer points to.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &p) } < 0 {
        return Err(io::Error::last_os_error()).context("SCHED_IDLE");
    }
    Ok(())
}

/// A number in a file that several processes have mapped.
pub struct SharedCounter(&'static AtomicU64);

impl SharedCounter {
    /// Maps the first eight bytes of the file, which stays mapped until the process ends.
    pub fn new(file: &File) -> Result<Self> {
        anyhow::ensure!(size_of(file)? >= 8, "the counter's file is too short");
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        // SAFETY: mapped for good, page-aligned, and used by everybody as an atomic only.
        Ok(Self(unsafe { &*at.cast::<AtomicU64>() }))
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Changes its value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}
