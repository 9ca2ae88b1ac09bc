# SPDX-License-Identifier: GPL-2.0-only
"""From measurements to ratios: nothing but computing.

A measurement is what a guest program noted (guest/lib.sh): a load, what it ran on (`bare` or a subject), and what
it took. The ratio of a subject to the bare device is what the bare device took, just before and just after it,
divided by what the subject took: 1 is as fast, 0.5 half as fast.
"""

import json
import os
import statistics

LOADS = ["randwrite-qd1", "randwrite-qd32", "seqwrite", "randread", "snapread-seq", "snapread-seq-half",
         "snapread-rand"]
SUBJECTS = ["incremental", "snapshot-first", "snapshot-rewrite", "dm-snapshot-4k", "dm-snapshot-64k", "dm-thin",
            "dm-era"]
BYS = ["wall", "instructions"]
WRITES = LOADS[:3]
# The time of the VM that counts instructions: no way of measuring that was agreed on, but one that repeats itself.
CLOCK = "clock"

# Of ours, by both ways unless a second number is given for instructions.
TARGETS = {
    ("randwrite-qd1", "incremental"): (0.97, 0.97),
    ("randwrite-qd32", "incremental"): (0.97, 0.97),
    ("seqwrite", "incremental"): (0.97, 0.97),
    ("randwrite-qd1", "snapshot-rewrite"): (0.97, 0.97),
    ("randwrite-qd32", "snapshot-rewrite"): (0.97, 0.97),
    ("seqwrite", "snapshot-rewrite"): (0.97, 0.97),
    ("randwrite-qd1", "snapshot-first"): (0.45, None),
    ("randwrite-qd32", "snapshot-first"): (0.75, 0.60),
    ("seqwrite", "snapshot-first"): (0.30, 0.45),
    ("randread", "snapshot-first"): (1.00, 1.00),
    ("randread", "snapshot-rewrite"): (1.00, 1.00),
    ("snapread-seq", "snapshot-first"): (0.95, 0.95),
    ("snapread-seq-half", "snapshot-first"): (0.85, 0.85),
    ("snapread-rand", "snapshot-first"): (0.95, 0.95),
}

# Farther apart than this the two measurements of the bare device say that something else was going on.
NOISY = 1.15


def left_out():
    """Combinations without meaning, with the reason."""
    out = []
    for load in LOADS:
        for subject in SUBJECTS:
            if not load.startswith("snapread"):
                continue
            if subject in ("incremental", "dm-era"):
                out.append((load, subject, "it tracks changes and has no snapshot to read"))
            elif subject == "snapshot-rewrite":
                out.append((load, subject, "reads depend on what has changed, which the loads name, not on how often"))
    return out


def target(load, subject, by):
    t = TARGETS.get((load, subject))
    return t[BYS.index(by)] if t and by in BYS else None


def base_of(load):
    """The load of the bare device that this one is compared with."""
    return "snapread-seq" if load.startswith("snapread-seq") else load


def read(folder):
    """The measurements of a run, from what the guest has left in a folder."""
    out = []
    with open(os.path.join(folder, "bench.jsonl"), encoding="utf-8") as f:
        for line in f:
            m = json.loads(line)
            if "fio" in m:
                with open(os.path.join(folder, m.pop("fio")), encoding="utf-8") as g:
                    m.update(from_fio(g.read()))
                m["seconds"], m["drained"] = m.pop("ns") / 1e9, m.pop("drained_ns") / 1e9
            out.append(m)
    return out


def from_fio(text):
    """Requests and percentiles of latency (ns) from fio's report, which may have notes before its JSON."""
    job = json.loads(text[text.index("{"):])["jobs"][0]
    if job["error"]:
        raise ValueError(f"fio has failed: {job['error']}")
    io = job["read"] if job["read"]["total_ios"] else job["write"]
    p = io["clat_ns"]["percentile"]
    return {"ios": io["total_ios"], "p50": p["50.000000"], "p99": p["99.000000"], "p999": p["99.900000"]}


def cost(m, by=None):
    """What a measurement took for each request. Copies count where they are what the load is about: by
    instructions always; by time for sequential first overwrites, which can run ahead of the copies."""
    if (by or m["by"]) == "instructions":
        return m["instructions"] / m["ios"]
    return (m["drained"] if m["load"] == "seqwrite" else m["seconds"]) / m["ios"]


def ratios(measurements):
    """The rows of one run of one program: its measurements in the order in which they were made. Where instructions
    were counted, there are rows by the clock of that VM too."""
    rows = []
    measurements = [m for m in measurements if "load" in m]
    for i, m in enumerate(measurements):
        if m["subject"] == "bare":
            continue
        bares = [(j, b) for j, b in enumerate(measurements) if b["subject"] == "bare" and b["load"] == base_of(m["load"])]
        for by in ("instructions", CLOCK) if m["by"] == "instructions" else ("wall",):
            before = [cost(b, by) for j, b in bares if j < i][-1:]
            after = [cost(b, by) for j, b in bares if j > i][:1]
            if not before or not after:
                raise ValueError(f"{m['load']} {m['subject']}: the bare device was not measured before and after")
            apart = max(before[0], after[0]) / min(before[0], after[0])
            rows.append({"load": m["load"], "subject": m["subject"], "by": by,
                         "ratio": (before[0] + after[0]) / 2 / cost(m, by), "apart": apart,
                         "more": cost(m, by) - (before[0] + after[0]) / 2})
    return rows


def combine(rows):
    """Medians over the repetitions, with the least and the greatest."""
    groups = {}
    for r in rows:
        groups.setdefault((r["load"], r["subject"], r["by"]), []).append(r)
    out = []
    for (load, subject, by), group in groups.items():
        values = [r["ratio"] for r in group]
        out.append({"load": load, "subject": subject, "by": by, "ratio": round(statistics.median(values), 3),
                    "min": round(min(values), 3), "max": round(max(values), 3), "runs": len(values),
                    "more": statistics.median(r["more"] for r in group),
                    "noisy": sum(r["apart"] > NOISY for r in group)})
    return out


def find(table, load, subject, by):
    for r in table:
        if (r["load"], r["subject"], r["by"]) == (load, subject, by):
            return r
    return None


def missing(table):
    """Combinations that should be there and are not."""
    skip = {(load, subject) for load, subject, _ in left_out()}
    return [(load, subject, by) for load in LOADS for subject in SUBJECTS for by in BYS
            if (load, subject) not in skip and not find(table, load, subject, by)]


def latencies(measurements):
    """Percentiles of write latency by load and subject in microseconds: medians over the runs."""
    groups = {}
    for m in measurements:
        if m["by"] == "wall" and m.get("load") in WRITES:
            groups.setdefault((m["load"], m["subject"]), []).append(m)
    return {key: {p: statistics.median(m[p] for m in group) / 1000 for p in ("p50", "p99", "p999")}
            for key, group in groups.items()}


def absolute(measurements, by):
    """What a request of the bare device takes: instructions, or microseconds. Medians by load."""
    groups = {}
    for m in measurements:
        if m["by"] == by and m.get("subject") == "bare":
            groups.setdefault(m["load"], []).append(cost(m) * (1 if by == "instructions" else 1e6))
    return {load: statistics.median(v) for load, v in groups.items()}


def figures(measurements):
    """Figures that are no ratios: (what, GiB, percent, by) with median, least and greatest, in the order in which they came."""
    groups = {}
    for m in measurements:
        if "row" in m:
            groups.setdefault((m["row"], m["gib"], m["percent"], m["by"]), []).append(m["value"])
    return {key: (statistics.median(v), min(v), max(v)) for key, v in groups.items()}
