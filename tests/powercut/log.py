# SPDX-License-Identifier: GPL-2.0-only
"""Reads what QEMU's `blklogwrites` has recorded of a disk, and makes the disk after a power cut of it.

The log is in the format of dm-log-writes. What QEMU's driver guarantees about its order:

* A write, write-zeroes or discard gets its place in the log when the disk has done it, before the
  guest hears of it. So whatever the guest issues after that stands behind it.
* A flush gets its place when it is issued (the file below ignores flushes, so it takes no time).
  A write that is behind a flush in the log may have been under way with it: it counts as not covered.
* virtio has no FUA: the guest makes a write and a flush of it. A log that has FUA is understood too.

A cut at N means: the entries before N have reached the disk or its cache. What a flush before N covers
is there. Of the rest, each 512-byte sector holds any of the contents that it was given since.
"""

import mmap
import os
import random
import struct
from typing import NamedTuple

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SECTOR = 512
# Sectors between the partition table and the first partition: what the guest writes there tells where
# in the log a step began or ended.
MARK_FIRST, MARK_END = 64, 2048
MARK_TEXT = b"dattobd-mark "
HOLE = 65536


class Entry(NamedTuple):
    """One request. `data` is its place in the log file, None for a discard (reads as zeros)."""
    offset: int
    length: int
    flags: int
    data: int | None


class Log:
    """A log file, mapped into memory. The entries `ignored` are flushes of the recorder itself."""

    def __init__(self, path, ignored=()):
        with open(path, "rb") as f:
            self.map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, count, size = struct.unpack_from("<QQQI", self.map, 0)
        if magic != MAGIC or version != 1:
            raise ValueError(f"{path} is not a write log")
        if size < SECTOR or size & (size - 1):
            raise ValueError(f"{path}: sector size {size}")
        self.sector = size
        self.entries = []
        at = size
        for i in range(count):
            sector, sectors, flags, _ = struct.unpack_from("<QQQQ", self.map, at)
            if flags & ~(FLUSH | FUA | DISCARD | MARK):
                raise ValueError(f"{path}: entry {i} has flags {flags:#x}: the log is damaged")
            at += size
            length = sectors * size
            if i in ignored:
                if length:
                    raise ValueError(f"{path}: entry {i} is more than a flush")
                flags = 0
            data = None if flags & DISCARD else at
            self.entries.append(Entry(sector * size, length, flags, data))
            if data is not None:
                at += length
            if at > len(self.map):
                # A write of zeros at the end may be a hole behind the file's end.
                raise ValueError(f"{path}: entry {i} ends behind the file")

    def close(self):
        self.map.close()

    def bytes_of(self, entry, start=0, length=None):
        """The bytes from `start` in the entry's range."""
        length = entry.length - start if length is None else length
        if entry.data is None:
            return bytes(length)
        return self.map[entry.data + start:entry.data + start + length]

    def apply(self, image, entry):
        """Carries out the whole entry on a bytearray."""
        if entry.length and not entry.flags & MARK:
            image[entry.offset:entry.offset + entry.length] = self.bytes_of(entry)

    def marks(self):
        """(index, text) of the marks that the guest has written, in order."""
        found = []
        for i, e in enumerate(self.entries):
            if e.data is None or not e.length or not MARK_FIRST <= e.offset // SECTOR < MARK_END:
                continue
            data = self.bytes_of(e, 0, SECTOR)
            if data.startswith(MARK_TEXT):
                found.append((i, data[len(MARK_TEXT):].rstrip(b"\0\n").decode()))
        return found

    def last_flush(self, n, lies=0):
        """The number of entries that a flush before entry `n` covers. A disk that lies says so of that
        many flushes in vain."""
        for i in range(n - 1, -1, -1):
            if self.entries[i].flags & FLUSH:
                if not lies:
                    return i
                lies -= 1
        return 0

    def writes_to(self, start, end, before):
        """(index, entry) of what changes bytes of the range before the entry `before`."""
        return [(i, e) for i, e in enumerate(self.entries[:before])
                if e.length and e.offset < end and e.offset + e.length > start]


class Disk:
    """The disk as a bytearray that goes forward through the log, from zeros or from the file `base`."""

    def __init__(self, log, size, base=None):
        self.log = log
        self.size = size
        self.base = base
        self.begin()

    def begin(self):
        self.image = bytearray(self.size)
        if self.base:
            with open(self.base, "rb") as f:
                f.readinto(self.image)
        self.at = 0

    def forward(self, n):
        """Everything before entry n is on the disk."""
        if n < self.at:
            self.begin()
        for e in self.log.entries[self.at:n]:
            self.log.apply(self.image, e)
        self.at = n


# How the disk treats what no flush covers. Chosen by the seed; each is an adversary of its own.
WAYS = ("none", "all", "half", "few", "most", "torn", "newest", "all-but-one", "only-one")


def pending(log, n, lies=0):
    """Indices of the entries before n that change the disk and that no flush covers."""
    return [i for i in range(log.last_flush(n, lies), n)
            if log.entries[i].length and not log.entries[i].flags & MARK]


def survivors(log, n, way, rng, lies=0):
    """What of the uncovered entries has reached the disk: a list of (index, sectors or None for all).
    In the log's order: a sector's content is the newest that survived, and as each may be lost, any
    content may come out that any order of writing gives."""
    open_ = pending(log, n, lies)
    forced = {i for i in open_ if log.entries[i].flags & FUA}
    chosen = {}
    if way == "all":
        chosen = {i: None for i in open_}
    elif way in ("half", "few", "most"):
        share = {"half": 0.5, "few": 0.1, "most": 0.9}[way]
        chosen = {i: None for i in open_ if rng.random() < share}
    elif way == "torn":
        for i in open_:
            sectors = log.entries[i].length // SECTOR
            kind = rng.random()
            if kind < 0.25:
                chosen[i] = None
            elif kind < 0.5:
                # A piece of it, from one end: how a transfer that breaks off looks.
                cut = rng.randrange(sectors + 1)
                chosen[i] = set(range(cut) if rng.random() < 0.5 else range(cut, sectors))
            elif kind < 0.85:
                chosen[i] = {s for s in range(sectors) if rng.random() < 0.5}
    elif way == "newest" and open_:
        chosen = {i: None for i in open_[-rng.randrange(1, min(len(open_), 8) + 1):]}
    elif way == "all-but-one" and open_:
        lost = rng.choice(open_)
        chosen = {i: None for i in open_ if i != lost}
    elif way == "only-one" and open_:
        chosen = {rng.choice(open_): None}
    for i in forced:
        chosen[i] = None
    return sorted(chosen.items())


def cut(log, disk, n, way, seed, lies=0):
    """The disk after a cut before entry n, as a new bytearray, and what was lost (a dict of counts).
    Follows from its arguments alone."""
    rng = random.Random(f"{seed}/{n}/{way}")
    covered = log.last_flush(n, lies)
    disk.forward(covered)
    image = bytearray(disk.image)
    kept = survivors(log, n, way, rng, lies)
    for i, sectors in kept:
        e = log.entries[i]
        if sectors is None:
            log.apply(image, e)
        else:
            for s in sectors:
                at = e.offset + s * SECTOR
                image[at:at + SECTOR] = log.bytes_of(e, s * SECTOR, SECTOR)
    torn = sum(1 for _, s in kept if s is not None)
    return image, {"covered": covered, "pending": len(pending(log, n, lies)), "kept": len(kept), "torn": torn}


def write_sparse(path, image):
    """Writes a bytearray as a file with holes."""
    zeros = bytes(HOLE)
    with open(path, "wb") as f:
        f.truncate(len(image))
        view = memoryview(image)
        for at in range(0, len(image), HOLE):
            piece = view[at:at + HOLE]
            if piece != zeros[:len(piece)]:
                f.seek(at)
                f.write(piece)


def first_difference(image, path):
    """Offset of the first byte in which a file is not as the bytearray; None if there is none."""
    if os.path.getsize(path) != len(image):
        return min(os.path.getsize(path), len(image))
    with open(path, "rb") as f:
        for at in range(0, len(image), HOLE):
            a, b = f.read(HOLE), image[at:at + HOLE]
            if a != b:
                return at + next(i for i in range(len(a)) if a[i] != b[i])
    return None
