#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Tests of log.py with a log made up here."""

import os
import random
import struct
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import log as logs  # noqa: E402

S = logs.SECTOR
SIZE = 64 * S


def write(sector, text, sectors=1, flags=0):
    return sector, sectors, flags, b"".join(bytes([text + i]) * S for i in range(sectors))


def flush():
    return 0, 0, logs.FLUSH, b""


def discard(sector, sectors):
    return sector, sectors, logs.DISCARD, b""


class Case(unittest.TestCase):
    def log(self, entries, sector=S, magic=logs.MAGIC, ignored=()):
        f = tempfile.NamedTemporaryFile(delete=False)
        self.addCleanup(os.unlink, f.name)
        with f:
            f.write(struct.pack("<QQQI", magic, 1, len(entries), sector).ljust(sector, b"\0"))
            for at, n, flags, data in entries:
                f.write(struct.pack("<QQQQ", at, n, flags, 0).ljust(sector, b"\0") + data)
        log = logs.Log(f.name, ignored)
        self.addCleanup(log.close)
        return log

    def states(self, log, n, ways=logs.WAYS, seeds=300):
        """All disks that cuts at n lead to."""
        disk = logs.Disk(log, SIZE)
        return {bytes(logs.cut(log, disk, n, way, seed)[0]) for way in ways for seed in range(seeds)}

    def test_refuses_what_is_no_log(self):
        with self.assertRaises(ValueError):
            self.log([], magic=1)
        with self.assertRaises(ValueError):
            self.log([(0, 0, 64, b"")])
        with self.assertRaises(ValueError):
            self.log([(0, 2, 0, b"x" * S)])

    def test_full_replay(self):
        log = self.log([write(1, 10, 3), flush(), discard(2, 1), write(3, 50)])
        disk = logs.Disk(log, SIZE)
        disk.forward(4)
        self.assertEqual(disk.image[S:4 * S], bytes([10]) * S + bytes(S) + bytes([50]) * S)
        self.assertEqual(sum(disk.image[4 * S:]), 0)
        disk.forward(1)
        self.assertEqual(disk.image[S:4 * S], bytes([10]) * S + bytes([11]) * S + bytes([12]) * S)

    def test_larger_log_sectors(self):
        log = self.log([(1, 1, 0, b"a" * 4096)], sector=4096)
        self.assertEqual(log.entries[0][:2], (4096, 4096))

    def test_what_a_flush_covers_is_always_there(self):
        log = self.log([write(1, 1), write(2, 2), flush(), write(3, 3), write(4, 4)])
        for state in self.states(log, 5):
            self.assertEqual(state[S:3 * S], bytes([1]) * S + bytes([2]) * S)

    def test_any_subset_of_the_rest_comes_out(self):
        log = self.log([write(1, 1), flush(), write(2, 2), write(3, 3), write(4, 4)])
        seen = {tuple(s[i * S] for i in (1, 2, 3, 4)) for s in self.states(log, 5)}
        self.assertEqual(seen, {(1, a, b, c) for a in (0, 2) for b in (0, 3) for c in (0, 4)})

    def test_a_sector_keeps_any_of_its_contents_and_nothing_else(self):
        log = self.log([write(1, 1), flush(), write(1, 2), write(1, 3), discard(1, 1)])
        self.assertEqual({s[S] for s in self.states(log, 4)}, {1, 2, 3})
        self.assertEqual({s[S] for s in self.states(log, 5)}, {0, 1, 2, 3})
        self.assertTrue(all(len(set(s[S:2 * S])) == 1 for s in self.states(log, 5)))

    def test_torn_writes_keep_sectors_whole(self):
        log = self.log([write(1, 1, 4)])
        seen = {tuple(s[i * S] for i in (1, 2, 3, 4)) for s in self.states(log, 1)}
        self.assertEqual(len(seen), 16)
        for s in self.states(log, 1):
            for i in range(1, 5):
                self.assertEqual(len(set(s[i * S:(i + 1) * S])), 1)

    def test_a_completed_fua_write_is_durable(self):
        log = self.log([write(1, 1), write(1, 2, 1, logs.FUA), write(1, 3), write(2, 4)])
        self.assertEqual({s[S] for s in self.states(log, 4)}, {2, 3})
        self.assertEqual({s[S] for s in self.states(log, 1)}, {0, 1})

    def test_the_flush_at_the_cut_itself_does_not_count(self):
        log = self.log([write(1, 1), flush()])
        self.assertEqual({s[S] for s in self.states(log, 1)}, {0, 1})
        self.assertEqual({s[S] for s in self.states(log, 2)}, {1})

    def test_a_disk_that_lies_about_flushes(self):
        log = self.log([write(1, 1), flush(), write(2, 2), flush(), write(3, 3)])
        disk = logs.Disk(log, SIZE)
        seen = {bytes(logs.cut(log, disk, 5, way, seed, 1)[0][S:3 * S:S])
                for way in logs.WAYS for seed in range(50)}
        self.assertEqual(seen, {b"\1\0", b"\1\2"})

    def test_a_flush_of_the_recorder_covers_nothing(self):
        log = self.log([write(1, 1), flush(), write(2, 2)], ignored=(1,))
        self.assertEqual({(s[S], s[2 * S]) for s in self.states(log, 3)}, {(a, b) for a in (0, 1) for b in (0, 2)})
        with self.assertRaises(ValueError):
            self.log([write(1, 1), flush()], ignored=(0,))

    def test_a_recording_that_begins_with_a_disk(self):
        log = self.log([write(1, 1)])
        with tempfile.NamedTemporaryFile() as f:
            f.write(bytes([7]) * SIZE)
            f.flush()
            disk = logs.Disk(log, SIZE, f.name)
            disk.forward(1)
            self.assertEqual((disk.image[0], disk.image[S]), (7, 1))
            disk.forward(0)
            self.assertEqual((disk.image[0], disk.image[S], len(disk.image)), (7, 7, SIZE))

    def test_who_wrote_a_place(self):
        log = self.log([write(1, 1, 2), flush(), discard(2, 2), write(3, 3), write(2, 9)])
        self.assertEqual([i for i, _ in log.writes_to(2 * S, 3 * S, 4)], [0, 2])

    def test_the_same_seed_gives_the_same_disk(self):
        entries = [write(random.Random(i).randrange(40), i % 200, 1 + i % 5) for i in range(60)]
        log = self.log(entries + [flush()] + entries)
        for way in logs.WAYS:
            one = logs.cut(log, logs.Disk(log, SIZE), 100, way, 7)
            walked = logs.Disk(log, SIZE)
            walked.forward(110)
            self.assertEqual(one, logs.cut(log, walked, 100, way, 7))

    def test_marks(self):
        text = (logs.MARK_TEXT + b"setup-begin").ljust(S, b"\0")
        log = self.log([write(1, 1), (70, 1, 0, text), (3000, 1, 0, text)])
        self.assertEqual(log.marks(), [(1, "setup-begin")])

    def test_sparse_files(self):
        image = bytearray(3 * logs.HOLE + 512)
        image[logs.HOLE + 5] = 1
        image[-1] = 2
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "image")
            logs.write_sparse(path, image)
            self.assertIsNone(logs.first_difference(image, path))
            self.assertLess(os.stat(path).st_blocks * 512, len(image))
            image[logs.HOLE + 9] = 1
            self.assertEqual(logs.first_difference(image, path), logs.HOLE + 9)


if __name__ == "__main__":
    unittest.main()
