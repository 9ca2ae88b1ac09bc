#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Tests of results.py and report.py: figures that are easy to check by hand."""

import json
import os
import sys
import unittest
import xml.dom.minidom

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]
import extras  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402


def m(load, subject, took, by="instructions", ios=10, drained=None):
    return {"load": load, "subject": subject, "by": by, "ios": ios, "instructions": took, "seconds": took,
            "drained": took if drained is None else drained, "p50": 1000, "p99": 2000, "p999": 3000}


class Ratios(unittest.TestCase):
    def test_mean_of_the_nearest_bare_ones(self):
        rows = results.ratios([m("randread", "bare", 1), m("randread", "bare", 100), m("randread", "incremental", 220),
                               m("randread", "bare", 120), m("randread", "bare", 1)])
        self.assertEqual([r["by"] for r in rows], ["instructions", "clock"])
        self.assertAlmostEqual(rows[0]["ratio"], 0.5)
        self.assertAlmostEqual(rows[0]["apart"], 1.2)
        self.assertAlmostEqual(rows[0]["more"], 11)

    def test_other_loads_do_not_count(self):
        rows = results.ratios([m("randread", "bare", 100), m("seqwrite", "bare", 7), m("randread", "dm-era", 100),
                               m("seqwrite", "bare", 7), m("randread", "bare", 100)])
        self.assertAlmostEqual(rows[0]["ratio"], 1)

    def test_by_request(self):
        rows = results.ratios([m("seqwrite", "bare", 400, ios=40), m("seqwrite", "snapshot-first", 20),
                               m("seqwrite", "bare", 400, ios=40)])
        self.assertAlmostEqual(rows[0]["ratio"], 5)

    def test_drained_only_for_sequential_writes(self):
        for load, ratio in (("seqwrite", 0.25), ("randwrite-qd32", 0.5)):
            rows = results.ratios([m(load, "bare", 1, "wall"), m(load, "snapshot-first", 2, "wall", drained=4),
                                   m(load, "bare", 1, "wall")])
            self.assertAlmostEqual(rows[0]["ratio"], ratio)

    def test_half_changed_against_the_plain_read(self):
        rows = results.ratios([m("snapread-seq", "bare", 1), m("snapread-seq-half", "dm-thin", 2),
                               m("snapread-seq", "bare", 1)])
        self.assertAlmostEqual(rows[0]["ratio"], 0.5)

    def test_no_bare_after(self):
        with self.assertRaises(ValueError):
            results.ratios([m("randread", "bare", 1), m("randread", "dm-era", 1)])


class Fio(unittest.TestCase):
    def report(self, error=0):
        io = {"total_ios": 5, "clat_ns": {"percentile": {"50.000000": 1, "99.000000": 2, "99.900000": 3}}}
        return "note: something\n" + json.dumps({"jobs": [{"error": error, "read": {"total_ios": 0}, "write": io}]})

    def test_notes_before_it(self):
        self.assertEqual(results.from_fio(self.report()), {"ios": 5, "p50": 1, "p99": 2, "p999": 3})

    def test_an_error_is_one(self):
        with self.assertRaises(ValueError):
            results.from_fio(self.report(5))


class Tables(unittest.TestCase):
    def rows(self, values, apart=1.0):
        return [{"load": "seqwrite", "subject": "incremental", "by": "wall", "ratio": v, "apart": apart, "more": 1} for v in values]

    def test_median_and_spread(self):
        row = results.combine(self.rows([0.9, 0.1, 0.95]))[0]
        self.assertEqual((row["ratio"], row["min"], row["max"], row["runs"]), (0.9, 0.1, 0.95, 3))

    def test_noise_is_counted(self):
        self.assertEqual(results.combine(self.rows([1, 1], 1.2))[0]["noisy"], 2)

    def test_nothing_is_forgotten(self):
        every = {(load, s) for load in results.LOADS for s in results.SUBJECTS}
        skip = {(load, s) for load, s, _ in results.left_out()}
        self.assertLess(skip, every)
        self.assertEqual({(load, s) for load, s, _ in results.missing([])}, every - skip)
        self.assertFalse(skip & set(results.TARGETS))

    def test_target(self):
        self.assertEqual(results.target("seqwrite", "snapshot-first", "wall"), 0.30)
        self.assertEqual(results.target("seqwrite", "snapshot-first", "instructions"), 0.45)
        self.assertIsNone(results.target("seqwrite", "dm-era", "wall"))

    def test_figures(self):
        rows = [{"row": "setup", "gib": 1, "percent": 10, "by": "wall", "value": v} for v in (3, 1, 2)]
        found = results.figures(rows + [m("seqwrite", "bare", 1)])
        self.assertEqual(found, {("setup", 1, 10, "wall"): (2, 1, 3)})
        self.assertIn("| setup | 2.00 (1.00 to 3.00) |", extras.by_size(found))
        self.assertEqual(extras.plain(found, True), "")

    def test_targets_that_are_no_ratio(self):
        def row(what, value, gib=None, percent=None, by="wall"):
            return {"row": what, "gib": gib, "percent": percent, "by": by, "value": value}

        rows = [row("freeze by fsfreeze, ms", 20, 1, 0), row("freeze in setup, ms", 29, 1, 0), row("setup, ms", 300, 1, 0),
                row("freeze in transition, ms", 31, 1, 0), row("fallocate of a file as large as the COW file, ms", 10, 1, 0),
                row("freeze by fsfreeze, ms", 20, 1024, 0), row("setup, ms", 2000, 1024, 0),
                row("fallocate of a file as large as the COW file, ms", 1500, 1024, 0),
                row("destroy, ms", 100, 1, 0), row("destroy, ms", 201, 1024, 0),
                row("transition to incremental, ms", 120, 1, 0), row("transition to incremental, ms", 500, 1024, 0),
                row("truncate of that file to what a change map needs, ms", 20, 1, 0),
                row("truncate of that file to what a change map needs, ms", 301, 1024, 0),
                row("bytes of memory for a block overwritten in a row: all maps", 12.1),
                row("maps in a snapshot, every part touched, MiB", 66, 1024),
                row("update-img, scattered blocks: MiB/s", 49), row("random reads of as many blocks, 32 under way: MiB/s", 100)]
        seen = {what.split(",")[0]: reached for what, _, _, reached in extras.others(results.figures(rows))}
        self.assertEqual(seen, {"freeze in setup": True, "freeze in transition": False, "setup": True, "destroy": False,
                                "transition to incremental": True,
                                "bytes of memory for a block overwritten in a row: all maps": False,
                                "maps in a snapshot": True, "update-img": False})
        self.assertEqual(extras.others({}), [])
        self.assertIn("| 201 | at most 200 | **missed** |", extras.others_table(results.figures(rows)))

    def test_latencies(self):
        found = results.latencies([m("seqwrite", "bare", 1, "wall"), m("seqwrite", "bare", 1)])
        self.assertEqual(found, {("seqwrite", "bare"): {"p50": 1, "p99": 2, "p999": 3}})


class Report(unittest.TestCase):
    def test_latest_has_the_agreed_fields_only(self):
        rows = Tables().rows([0.9]) + [{"load": "snapread-seq-every-other", "subject": "snapshot-first", "by": "wall",
                                        "ratio": 1, "apart": 1, "more": 1}]
        self.assertEqual(report.latest(results.combine(rows)),
                         [{"load": "seqwrite", "subject": "incremental", "by": "wall", "ratio": 0.9, "min": 0.9,
                           "max": 0.9}])

    def test_plot_is_xml(self):
        xml.dom.minidom.parseString(report.svg(results.combine(Tables().rows([0.5, 0.7, 2.4]))))

    def test_a_missed_target_is_marked(self):
        text = report.ratio_table(results.combine(Tables().rows([0.5])), "wall")
        self.assertIn("**0.50**", text)
        self.assertNotIn("**", report.ratio_table(results.combine(Tables().rows([0.97])), "wall"))


if __name__ == "__main__":
    unittest.main()
