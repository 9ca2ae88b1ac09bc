# SPDX-License-Identifier: GPL-2.0-only
"""The figures beside the agreed loads: other loads, times of operations, memory, update-img."""

import results


def number(v):
    return f"{v:.0f}" if v >= 100 else f"{v:.1f}" if v >= 10 else f"{v:.2f}"


def spread(v):
    middle, least, most = v
    return number(middle) + ("" if most - least < 0.02 * middle else f" ({number(least)} to {number(most)})")


def ratio(r):
    return f"{r['ratio']:.3f}" + ("" if r["max"] - r["min"] < 0.005 else f" ({r['min']:.2f} to {r['max']:.2f})")


def other_loads(table):
    """Ratios of loads that are not among the agreed ones."""
    found = {}
    for r in table:
        if r["load"] not in results.LOADS:
            found.setdefault((r["load"], r["subject"]), {})[r["by"]] = r
    lines = ["| load | subject | by instructions | by the clock of that VM | by wall time |", "|---|---|---|---|---|"]
    for (load, subject), by in sorted(found.items()):
        cells = [ratio(by[b]) if b in by else "-" for b in ("instructions", results.CLOCK, "wall")]
        lines.append(f"| {load} | {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if found else ""


def by_size(figures):
    """Operations by size of the device and share that has changed."""
    columns = sorted({(gib, percent) for _, gib, percent, _ in figures if gib is not None and percent is not None})
    names = list(dict.fromkeys(what for what, gib, percent, _ in figures if gib is not None and percent is not None))
    lines = ["| | " + " | ".join(f"{gib} GiB, {percent} %" for gib, percent in columns) + " |",
             "|---" * (len(columns) + 1) + "|"]
    for what in names:
        cells = [figures.get((what, gib, percent, "wall")) for gib, percent in columns]
        lines.append(f"| {what} | " + " | ".join(spread(c) if c else "-" for c in cells) + " |")
    return "\n".join(lines) if columns else ""


def plain(figures, of_a_size):
    """Figures without a size, or of a device of a size as a whole."""
    lines = []
    for what, gib, percent, _ in list(dict.fromkeys((w, g, p, "") for w, g, p, _ in figures)):
        if percent is None and (gib is not None) == of_a_size:
            cells = [figures.get((what, gib, percent, by)) for by in ("instructions", "wall")]
            size = f" ({gib} GiB)" if gib is not None else ""
            lines.append(f"| {what}{size} | " + " | ".join(spread(c) if c else "-" for c in cells) + " |")
    head = ["| | VM that counts instructions | VM with wall time |", "|---|---|---|"]
    return "\n".join(head + lines) if lines else ""


def others(figures):
    """The targets that are no ratio of a load: (what, what was seen, what was wanted, whether it was reached)."""
    out = []

    def judge(what, seen, limit, shown, least=False):
        reached = seen >= limit if least else seen <= limit
        out.append((what, shown, f"{'at least' if least else 'at most'} {number(limit)}", reached))

    sizes = sorted({(g, p) for w, g, p, _ in figures if w == "freeze by fsfreeze, ms" and p is not None})
    for what in ("setup", "transition"):
        for gib, percent in sizes:
            bare = figures.get(("freeze by fsfreeze, ms", gib, percent, "wall"))
            ours = figures.get((f"freeze in {what}, ms", gib, percent, "wall"))
            if bare and ours:
                judge(f"freeze in {what}, {gib} GiB, {percent} % changed: ms", ours[0], bare[0] + 10, spread(ours))
    for what in ("setup", "transition to incremental", "transition to snapshot", "destroy"):
        # What the filesystem takes to allocate the file, or to free what is not needed of it, grows with it.
        theirs, name = THEIRS.get(what, (None, ""))
        rows = [(g, figures.get((f"{what}, ms", g, 0, "wall")), figures.get((theirs, g, 0, "wall")) if theirs else [0])
                for g, p in sizes if p == 0]
        rows = [(g, ours, bare) for g, ours, bare in rows if ours and bare]
        if len(rows) > 1:
            own = [ours[0] - bare[0] for _, ours, bare in rows]
            judge(f"{what}, {rows[-1][0]} GiB, nothing changed{name}: ms; twice that of {rows[0][0]} GiB",
                  own[-1], 2 * own[0], number(own[-1]))
    for (what, gib, percent, by), v in figures.items():
        if what.startswith("bytes of memory for a block"):
            judge(f"{what}, by {by}", v[0], 12, spread(v))
        for name, limit in MAPS.items():
            if what == name:
                judge(f"{what} ({gib} GiB)", v[0], limit, spread(v))
        if what == "update-img, scattered blocks: MiB/s":
            reads = figures.get((RANDOM, gib, percent, by))
            if reads:
                judge(f"{what}, by {by}; half of random reads", v[0], reads[0] / 2, spread(v), least=True)
    return out


def others_table(figures):
    lines = [f"| {what} | {shown} | {wanted} | {'reached' if reached else '**missed**'} |"
             for what, shown, wanted, reached in others(figures)]
    return "\n".join(["| | seen | target | |", "|---|---|---|---|", *lines]) if lines else ""


def sections(table, measurements):
    """All of it as text; parts that were not measured are left out."""
    figures = results.figures(measurements)
    out = []
    for title, words, body in (
            ("Other loads", OTHER, other_loads(table)),
            ("Targets that are no ratio", "", others_table(figures)),
            ("Operations", OPERATIONS, by_size(figures)),
            ("Maps of a device without an untouched part", "", plain(figures, True)),
            ("Memory for changed blocks, and update-img", PLAIN, plain(figures, False))):
        if body:
            out.append(f"\n## {title}\n\n" + (words + "\n\n" if words else "") + body + "\n")
    return "".join(out)


ALLOCATED = "fallocate of a file as large as the COW file, ms"
FREED = "truncate of that file to what a change map needs, ms"
# In the time of these, and the filesystem's.
THEIRS = {"setup": (ALLOCATED, ", without fallocate of its file"),
          "transition to snapshot": (ALLOCATED, ", without fallocate of its file"),
          "transition to incremental": (FREED, ", without truncate of its file")}
RANDOM = "random reads of as many blocks, 32 under way: MiB/s"
# MiB for a TiB of which no part is untouched: two bits for each block, and what keeps them.
MAPS = {"maps in incremental mode, every part touched, MiB": 33, "maps in a snapshot, every part touched, MiB": 66,
        "maps in a transition, every part touched before it, MiB": 99}

OTHER = """`log-on`, `log-off`: incremental mode with the write-intent log and without it, by a build for tests that can
leave it out; what the log costs once regions are marked is the one divided by the other. `first-touch`: a block in each region of
4 MiB, one after the other: each waits for its region's mark to be on disk. `snapread-seq-every-other`: the snapshot read in
pieces of 1 MiB with every other block changed. `randread-untracked`: reads of a disk that is not tracked, with the module
loaded, and with another disk tracked. `randwrite-qd32-cache`: first overwrites in random order, with the default limit of the
index of copies and with a tenth of what it has used (`-c`)."""

OPERATIONS = """Wall time. Sparse disks in memory; changes are made with write-zeroes in a file that was only preallocated, so many percent
before each operation. "-": left out, as the copies (10 % of 1 TiB) would take longer than all the rest. `fsfreeze`: freeze and thaw of the same filesystem before it is tracked,
with as much to write back."""

PLAIN = """In the VM that counts instructions a second is 10⁹ of them, waiting included; requests take 10 microseconds there.
`update-img` and `dd` are timed with their start, which counts for much at so few MiB. The data is in no cache, the programs are."""
