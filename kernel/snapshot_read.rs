// SPDX-License-Identifier: GPL-2.0-only
//! Reading the snapshot: where each part of a read comes from, and whether it still held when the
//! read was done.
//!
//! A part read from the origin is checked again on completion. Publication of a copy comes before
//! the overwrite is let go, and so before any read that could have seen the new data completes: if
//! the block is not published by then, what was read is old. Otherwise that part is read again, from
//! the copy. No lock is held across I/O, and readers do not wait for one another.
//!
//! A part whose place in the COW file is not in memory goes to a work item, which may read pages of the
//! index.

use crate::copy_ring::Look;
use crate::faults::{self, Fault};
use crate::index_read::PageReader;
use crate::index_table::Lookup;
use crate::logic::read_plan::{Piece, Source, View};
use crate::snapshot::{FileMap, Snapshot, Wake};
use crate::sys::{
    bio::{HeldBio, Parent, Status},
    bio_pool::{EndIo, PoolBio},
    errno::EUCLEAN,
    ffi::NoIo,
};
use core::sync::atomic::{fence, Ordering};
use kernel::{
    error::{code::ENOMEM, Error},
    sync::{Arc, ArcBorrow},
};

/// One piece of a snapshot read that is under way: a clone of a part of the reader's bio.
pub(crate) struct ReadPart {
    snapshot: Arc<Snapshot>,
    file: Arc<FileMap>,
    parent: Parent,
    /// First sector of the snapshot.
    sector: u64,
    sectors: u64,
    /// Sectors between the start of the reader's bio and this part.
    skip: u64,
    /// Comes from the origin: to be checked again.
    check: bool,
}

/// Answers a reader's bio. May be called inside another `submit_bio`: nothing in here waits for other
/// bios, apart from the pool, whose rescuer sees to those on this task's list.
pub(crate) fn submit(snap: ArcBorrow<'_, Snapshot>, bio: HeldBio) {
    let (sector, sectors) = (bio.view().sector(), bio.view().sectors());
    let snap: Arc<Snapshot> = snap.into();
    issue(&snap, bio.into_parent(), sector, sectors, 0, None);
}

/// The work: repeats the parts that did not hold, and sees to those whose place is not in memory.
pub(crate) fn repeat(snap: &Arc<Snapshot>) {
    let _no_io = NoIo::enter();
    let mut pages = snap.index_pages.lock();
    for bio in snap.rereads.take() {
        // Frees the bio before `issue` allocates the next: the pool must not wait for itself.
        let part = bio.into_payload();
        let ReadPart { snapshot, parent, sector, sectors, skip, .. } = part;
        issue(&snapshot, parent, sector, sectors, skip, Some(&mut pages));
        snap.readers.leave();
    }
}

/// Reads `sectors` sectors from `sector` on into the bio of `whole`, `skip` sectors behind its start. Pages
/// of the index are read with `pages`, or by the work item.
fn issue(
    snap: &Arc<Snapshot>,
    whole: Parent,
    sector: u64,
    sectors: u64,
    skip: u64,
    mut pages: Option<&mut PageReader>,
) {
    if snap.error().is_some() {
        return whole.complete(Status::IoError);
    }
    if snap.is_dormant() {
        return whole.complete(Status::Busy);
    }
    let file = snap.file_map();
    let view = view(snap, &file);
    let mut status = Status::Ok;
    for piece in view.plan(sector, sectors) {
        let skip = skip.saturating_add(piece.sector.saturating_sub(sector));
        let ok = match piece.source {
            Source::Zero => {
                whole.view().fill(bytes(skip), bytes(piece.sectors), None, 0);
                true
            }
            Source::Copy => copies(snap, &whole, &piece, skip, pages.as_deref_mut()),
            Source::Origin => send(snap, &file, &whole, piece.sector, piece.sectors, piece.sector, skip, true),
        };
        if !ok {
            status = Status::IoError;
            break;
        }
    }
    whole.complete(status);
}

fn view<'a>(snap: &'a Snapshot, file: &'a FileMap) -> View<'a> {
    View { preserved: &snap.preserved, own: &file.by_origin, first_data: snap.first_data, space: &snap.space }
}

/// Sectors of one bio in bytes: they fit, as a bio's size does.
fn bytes(sectors: u64) -> u32 {
    (sectors << 9) as u32
}

/// Reads copies, wherever they are.
fn copies(
    snap: &Arc<Snapshot>,
    whole: &Parent,
    piece: &Piece,
    skip: u64,
    mut pages: Option<&mut PageReader>,
) -> bool {
    let mut done = 0;
    while done < piece.sectors {
        let sector = piece.sector.saturating_add(done);
        let left = piece.sectors.saturating_sub(done);
        let block = sector / 8;
        let max = sector.saturating_add(left).div_ceil(8).saturating_sub(block);
        let found = match snap.index.find(block, max) {
            Lookup::Place(place, len) => Ok((place, len)),
            Lookup::Nowhere => Err(EUCLEAN),
            Lookup::OnDisk(gap) => match pages.as_deref_mut() {
                Some(pages) => pages.find(snap, block, gap),
                None => return later(snap, whole, sector, left, skip.saturating_add(done)),
            },
        };
        let (place, len) = match found {
            Ok(found) => found,
            // The reader's misfortune only.
            Err(e) if e == ENOMEM => return false,
            Err(e) => return gone(snap, e),
        };
        let n = len.saturating_mul(8).saturating_sub(sector % 8).min(left);
        if n == 0 || !from_place(snap, whole, sector, n, place, skip.saturating_add(done)) {
            return false;
        }
        done = done.saturating_add(n);
    }
    true
}

/// A copy that must be there is not.
fn gone(snap: &Arc<Snapshot>, error: Error) -> bool {
    Snapshot::fail(snap.as_arc_borrow(), error);
    false
}

/// Leaves a part to the work item.
fn later(snap: &Arc<Snapshot>, whole: &Parent, sector: u64, sectors: u64, skip: u64) -> bool {
    let part = ReadPart {
        snapshot: snap.clone(),
        file: snap.file_map(),
        parent: whole.split(),
        sector,
        sectors,
        skip,
        check: false,
    };
    // The bio only carries the part: it is not submitted.
    match snap.part_pool.clone_part(whole.view(), skip, sectors, snap.bdev, sector, part) {
        Some(bio) => {
            snap.readers.enter();
            snap.rereads.push(bio);
            snap.as_arc_borrow().wake_reread();
            true
        }
        None => false,
    }
}

/// Reads copies with places in a row: those that are in the ring from there, the others from the file.
fn from_place(
    snap: &Arc<Snapshot>,
    whole: &Parent,
    sector: u64,
    sectors: u64,
    place: u64,
    skip: u64,
) -> bool {
    // What is not in the ring at this look is on disk for good.
    let file = snap.file_map();
    let mut done = 0;
    while done < sectors {
        let left = sectors.saturating_sub(done);
        let offset = sector.saturating_add(done) % 8;
        let place = place.saturating_add((sector % 8).saturating_add(done) / 8);
        let max = offset.saturating_add(left).div_ceil(8);
        let look = snap.ring.lock().look(place, max);
        let in_blocks = |len: u64| len.saturating_mul(8).saturating_sub(offset).min(left);
        let to = skip.saturating_add(done);
        let n = match look {
            Look::Here(pages, first, len) => {
                let n = in_blocks(len);
                let from = first.saturating_mul(8).saturating_add(offset);
                whole.view().fill(bytes(to), bytes(n), Some(&pages), bytes(from));
                n
            }
            Look::OnDisk(len) => {
                let n = in_blocks(len);
                if !from_file(snap, &file, whole, (sector.saturating_add(done), n), place, to) {
                    return false;
                }
                n
            }
        };
        if n == 0 {
            return false;
        }
        done = done.saturating_add(n);
    }
    true
}

/// Reads sectors (the first and how many) from the COW file, extent by extent.
fn from_file(
    snap: &Arc<Snapshot>,
    file: &Arc<FileMap>,
    whole: &Parent,
    (first, sectors): (u64, u64),
    file_block: u64,
    skip: u64,
) -> bool {
    let mut done = 0;
    let mut file_block = file_block;
    while done < sectors {
        let Some((block, run)) = Snapshot::locate(file, file_block) else { return false };
        let sector = first.saturating_add(done);
        let offset = sector % 8;
        let n = run.saturating_mul(8).saturating_sub(offset).min(sectors.saturating_sub(done));
        let from = block.saturating_mul(8).saturating_add(offset);
        if !send(snap, file, whole, sector, n, from, skip.saturating_add(done), false) {
            return false;
        }
        done = done.saturating_add(n);
        file_block = file_block.saturating_add(offset.saturating_add(n) / 8);
    }
    true
}

/// Sends a clone of a part of the bio to sector `from` of the origin.
#[expect(clippy::too_many_arguments, reason = "each is one coordinate of the same read")]
fn send(
    snap: &Arc<Snapshot>,
    file: &Arc<FileMap>,
    whole: &Parent,
    sector: u64,
    sectors: u64,
    from: u64,
    skip: u64,
    check: bool,
) -> bool {
    let part = ReadPart {
        snapshot: snap.clone(),
        file: file.clone(),
        parent: whole.split(),
        sector,
        sectors,
        skip,
        check,
    };
    match snap.part_pool.clone_part(whole.view(), skip, sectors, snap.bdev, from, part) {
        Some(bio) => {
            snap.readers.enter();
            bio.submit();
            true
        }
        // The part was dropped with its share of the bio, which fails it.
        None => false,
    }
}

impl ReadPart {
    /// Whether what was read is what the snapshot holds.
    fn holds(&self) -> bool {
        if !self.check || faults::active(Fault::NoRecheck) {
            return true;
        }
        // The look at the map must not move before the completion that brought us here.
        fence(Ordering::SeqCst);
        view(&self.snapshot, &self.file).origin_holds(self.sector, self.sectors)
    }
}

impl EndIo for ReadPart {
    fn end_io(bio: PoolBio<Self>) {
        let ok = bio.status() == Status::Ok;
        // If it does not hold, its data does not matter, and neither does an error: there is a copy.
        if !bio.payload().holds() {
            let snapshot = bio.payload().snapshot.clone();
            snapshot.rereads.push(bio);
            snapshot.as_arc_borrow().wake_reread();
            return;
        }
        let ReadPart { snapshot, parent, .. } = bio.into_payload();
        // After the check: a failure is stored before a write is let go that the check cannot see.
        let ok = ok && snapshot.error().is_none();
        let readers = snapshot.readers.clone();
        // Before leaving: whoever waits for the gate may then drop the last reference, in a context
        // that may sleep, which this one may not.
        drop(snapshot);
        parent.complete(if ok { Status::Ok } else { Status::IoError });
        readers.leave();
    }
}
