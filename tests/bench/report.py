# SPDX-License-Identifier: GPL-2.0-only
"""Writes what the benchmarks showed: latest.json, a README.md with tables and method, ratios.svg."""

import json
import os

import extras
import results
import text

COLOURS = {"incremental": "#1b7837", "snapshot-first": "#2166ac", "snapshot-rewrite": "#67a9cf",
           "dm-snapshot-4k": "#b2182b", "dm-snapshot-64k": "#ef8a62", "dm-thin": "#7f3b08", "dm-era": "#888888"}


def latest(table):
    """The agreed file: the named loads and subjects, and these fields only."""
    out = []
    for load in results.LOADS:
        for subject in results.SUBJECTS:
            for by in results.BYS:
                r = results.find(table, load, subject, by)
                if r:
                    out.append({k: r[k] for k in ("load", "subject", "by", "ratio", "min", "max")})
    return out


def cell(r, target):
    """Median and spread; bold where the target is missed, with the target."""
    value = f"{r['ratio']:.2f}" if r["ratio"] < 9.95 else f"{r['ratio']:.0f}"
    missed = target is not None and r["ratio"] < target - 0.005
    shown = f"**{value}**" if missed else value
    spread = "" if r["max"] - r["min"] < 0.01 else f" ({r['min']:.2f} to {r['max']:.2f})"
    return shown + spread + (f", target {target:.2f}" if missed else "") + ("?" if r.get("noisy") else "")


def ratio_table(table, by):
    lines = ["| load | " + " | ".join(results.SUBJECTS) + " |", "|---" * (len(results.SUBJECTS) + 1) + "|"]
    for load in results.LOADS:
        cells = []
        for subject in results.SUBJECTS:
            r = results.find(table, load, subject, by)
            cells.append(cell(r, results.target(load, subject, by)) if r else "-")
        if any(c != "-" for c in cells):
            lines.append(f"| {load} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def more_table(table):
    """What a request takes beyond the bare device, in instructions."""
    lines = ["| load | " + " | ".join(results.SUBJECTS) + " |", "|---" * (len(results.SUBJECTS) + 1) + "|"]
    for load in results.LOADS:
        found = [results.find(table, load, s, "instructions") for s in results.SUBJECTS]
        if any(found):
            lines.append(f"| {load} | " + " | ".join(f"{r['more']:.0f}" if r else "-" for r in found) + " |")
    return "\n".join(lines)


def misses(table):
    """Every target that is missed, with what bounds the figure."""
    lines = []
    for by in results.BYS:
        for load in results.LOADS:
            for subject in results.SUBJECTS:
                r, t = results.find(table, load, subject, by), results.target(load, subject, by)
                if r and t is not None and r["ratio"] < t - 0.005:
                    why = text.BOUNDS.get((load, subject, by)) or text.BOUNDS.get((load, subject), "not explained yet")
                    quiet = results.find(table, load, subject, results.CLOCK)
                    if by == "wall" and quiet:
                        if r["max"] >= t - 0.005 and quiet["ratio"] >= t - 0.005:
                            why = f"within the spread: up to {r['max']:.2f} was seen"
                        why += f"; {quiet['ratio']:.2f} by the clock of the VM that counts instructions"
                    lines.append(f"| {load} | {subject} | {by} | {r['ratio']:.2f} | {t:.2f} | {why} |")
    head = ["| load | subject | by | ratio | target | what bounds it |", "|---|---|---|---|---|---|"]
    return "\n".join(head + lines) if lines else "None."


def latency_table(found):
    subjects = ["bare"] + results.SUBJECTS
    lines = ["| load | " + " | ".join(subjects) + " |", "|---" * (len(subjects) + 1) + "|"]
    for load in results.WRITES:
        cells = []
        for s in subjects:
            v = found.get((load, s))
            cells.append(" / ".join(f"{v[p]:.0f}" for p in ("p50", "p99", "p999")) if v else "-")
        lines.append(f"| {load} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def svg(table):
    """One panel for each way of measuring: a line from least to greatest and a dot at the median, by load."""
    width, left, row, scale = 1000, 150, 13, 1.2
    right = width - 30
    out, y = [], 40

    def x(ratio):
        return left + (right - left) * min(ratio, scale) / scale

    def put(kind, content="", **attributes):
        a = " ".join(f'{k.replace("_", "-")}="{v}"' for k, v in attributes.items())
        out.append(f"<{kind} {a}>{content}</{kind}>")

    place = left
    for subject in results.SUBJECTS:
        put("circle", cx=place, cy=14, r=5, fill=COLOURS[subject])
        put("text", subject, x=place + 9, y=18)
        place += 25 + 7 * len(subject)
    for by in results.BYS:
        put("text", f"Ratio to the bare device, by {by}", x=left, y=y + 12, font_weight="bold")
        y += 22
        top, grid = y, len(out)
        for load in results.LOADS:
            found = [(s, results.find(table, load, s, by)) for s in results.SUBJECTS]
            found = [(s, r) for s, r in found if r]
            if not found:
                continue
            put("text", load, x=left - 8, y=y + row * len(found) / 2 + 4, text_anchor="end")
            for subject, r in found:
                middle = y + row / 2
                put("line", x1=x(r["min"]), x2=x(r["max"]), y1=middle, y2=middle, stroke=COLOURS[subject], stroke_width=3)
                put("circle", cx=round(x(r["ratio"]), 1), cy=middle, r=5, fill=COLOURS[subject])
                if r["ratio"] > scale:
                    put("text", f"{r['ratio']:.1f} &#8594;", x=right - 8, y=middle + 4, text_anchor="end")
                y += row
            y += 4
            put("line", x1=left, x2=right, y1=y, y2=y, stroke="#dddddd")
            y += 4
        front = out[grid:]
        del out[grid:]
        for tick in range(0, 13, 2):
            at = round(x(tick / 10), 1)
            put("line", x1=at, x2=at, y1=top, y2=y, stroke="#999999" if tick == 10 else "#eeeeee")
            put("text", f"{tick / 10:.1f}", x=at, y=y + 14, text_anchor="middle")
        out += front
        y += 34
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" '
            'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(out) + "\n</svg>\n")


def readme(table, measurements, about):
    left = "\n".join(f"| {load} | {subject} | {why} |" for load, subject, why in results.left_out())
    bare = {by: results.absolute(measurements, by) for by in results.BYS}
    costs = "\n".join(f"| {load} | {bare['wall'].get(load, 0):.0f} | {bare['instructions'].get(load, 0):.0f} |"
                      for load in results.LOADS if load in bare["wall"] or load in bare["instructions"])
    facts = "\n".join(f"| {k} | {v} |" for k, v in about.items())
    return text.README.format(
        facts=facts, wall=ratio_table(table, "wall"), instructions=ratio_table(table, "instructions"),
        more=more_table(table),
        clock=ratio_table(table, results.CLOCK),
        misses=misses(table), latencies=latency_table(results.latencies(measurements)), bare=costs, left=left,
        extras=extras.sections(table, measurements))


def write(folder, table, measurements, about):
    os.makedirs(folder, exist_ok=True)
    rows = ",\n".join("  " + json.dumps(r) for r in latest(table))
    for name, content in (("latest.json", f"[\n{rows}\n]\n"), ("ratios.svg", svg(table)),
                          ("README.md", readme(table, measurements, about))):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            f.write(content)
