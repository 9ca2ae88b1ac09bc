#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the benchmark programs of tests/bench/guest in VMs, and writes the report.

Runs inside the build chroot (scripts/bench.sh enters it). Each program is run by instructions and by wall time, in each
repetition, in a VM of its own. Results are kept in target/bench by a digest of what was measured (module, tools, programs), so
that a run that was stopped goes on where it was. `--fresh` forgets them.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../scripts")]
import report  # noqa: E402
import results  # noqa: E402
import vm  # noqa: E402

WORK = f"{vm.TOP}/target/bench"
DOCS = f"{vm.TOP}/docs/benchmarks"
# What results depend on: all of these, but for what has nothing of ours in it.
BINARIES = ("dattobd.ko", "dbd_benchdisk.ko", "dbdctl", "dbdtest", "update-img")
BINARIES_OF = {"peers": ("dbd_benchdisk.ko", "dbdtest"), "costs": BINARIES + ("dattobd-faults.ko",)}
# By which ways a program is run, and how much of the usual size its loads write.
PROGRAMS = {
    "engine": (("instructions", "wall"), 1),
    "reads": (("instructions", "wall"), 1),
    "peers": (("instructions", "wall"), 0.5),
    "costs": (("instructions", "wall"), 2),
    "cache": (("instructions", "wall"), 8),
    "update": (("instructions", "wall"), 4),
    "times": (("wall",), 1),
}
# Not worth its time for a glance.
NOT_QUICK = ("cache",)


def say(text):
    print(text, flush=True)


class Job:
    def __init__(self, program, by, rep, size, quick, tries, exactly=None):
        self.program, self.by, self.rep, self.quick, self.tries = program, by, rep, quick, tries
        # What counts instructions is as exact with less.
        self.size = exactly or max(32, int(size * PROGRAMS[program][1] * (0.5 if by == "instructions" else 1)))
        self.name = f"{program}-{by}-{self.size}M-" + ("quick" if quick else str(rep))

    def sequential(self):
        """MiB of sequential loads, where there are some: by time as much as there is time for. A file that has to lie in
        one piece fits in a group of blocks."""
        if self.program not in ("engine", "reads", "peers"):
            return 0
        return 512 if self.program == "engine" and self.by == "wall" and not self.quick else 128

    def needs(self):
        room = max(self.size, self.sequential()) * 3 + 64
        if self.by == "instructions":
            # The disks are in the VM's own memory.
            return f"cpus=1 mem={700 + 3 * room}M icount=1 append=tsc=reliable"
        if self.program == "times":
            return "cpus=2 mem=1G disks=1G:memory=sparse," + ("" if self.quick else "64G:memory=sparse,") + \
                "1T:memory=sparse"
        return "cpus=2 mem=1G disks=" + ",".join([f"{room}M:memory=full"] * 3)

    def command(self):
        sizes = "SIZES='1 1024' CHANGED='0 1' STEP=134217728" if self.quick else "STEP=16777216"
        # What counts instructions is exact at once. No target of `costs` is one of wall time.
        samples = 3 if self.by == "wall" and self.program in ("engine", "reads") and not self.quick else 1
        sizes += f" SEQ_MIB={self.sequential()} SAMPLES={samples}"
        return f"BY={self.by} FILE_MIB={self.size} TRIES={self.tries} {sizes} exec bash /t/bench/{self.program}"


class Run:
    def __init__(self, options):
        self.o = options
        if options.fresh:
            shutil.rmtree(WORK, ignore_errors=True)
        self.folders = {}
        self.lock = threading.Lock()
        self.passed, self.failed = [], []

    def folder(self, program):
        """Where results of a program are kept: as long as it, and what it is about, is the same."""
        if program not in self.folders:
            h = hashlib.sha256(vm.kernel().encode())
            for path in [os.path.join(self.o.bin, n) for n in BINARIES_OF.get(program, BINARIES)] + \
                    [os.path.join(HERE, "guest", n) for n in ("lib.sh", "clock", program)]:
                with open(path, "rb") as f:
                    h.update(f.read())
            self.folders[program] = os.path.join(WORK, h.hexdigest()[:16])
            os.makedirs(self.folders[program], exist_ok=True)
        return self.folders[program]

    def kept(self):
        """All that results are kept of, whatever its size."""
        jobs = []
        for program in PROGRAMS:
            for name in sorted(os.listdir(self.folder(program))):
                m = re.fullmatch(program + r"-(wall|instructions)-(\d+)M-(\d+)\.json", name)
                if m:
                    jobs.append(Job(program, m[1], int(m[3]), 0, False, 1, int(m[2])))
        return jobs

    def path(self, job):
        return os.path.join(self.folder(job.program), job.name + ".json")

    def one(self, job):
        if os.path.exists(self.path(job)):
            with self.lock:
                self.passed.append(job.name)
                say(f"{job.name}: done before")
            return
        load = [os.getloadavg()[0]]
        started = time.monotonic()
        for _ in range(3):
            machine = vm.Vm(job.needs(), job.command(), self.o.bin, timeout=self.o.limit)

            def show(line, name=job.name):
                with self.lock:
                    say(f"{name}: {line}")

            status = machine.run(show)
            lines, why = [], None
            try:
                lines = results.read(machine.results)
                if not results.ratios(lines) and not any("row" in m for m in lines):
                    why = "no results"
            except (ValueError, KeyError, ZeroDivisionError, OSError) as e:
                why = f"{type(e).__name__}: {e}"
            crashed = machine.crashed or not machine.booted
            machine.clean(os.path.join(self.folder(job.program), "logs", job.name))
            if not crashed:
                break
        load.append(os.getloadavg()[0])
        if status != 0:
            why = status if isinstance(status, str) else f"exit code {status}"
        with self.lock:
            if why:
                self.failed.append(job.name)
                say(f"FAIL {job.name}: {why}")
                return
            kept = {"measurements": lines, "load": load, "seconds": time.monotonic() - started,
                    "when": datetime.date.today().isoformat()}
            with open(self.path(job) + ".new", "w", encoding="utf-8") as f:
                json.dump(kept, f)
            os.rename(self.path(job) + ".new", self.path(job))
            self.passed.append(job.name)
            say(f"PASS {job.name} ({kept['seconds']:.0f} s)")

    def lanes(self, jobs, count):
        """Runs jobs, so many at a time."""
        jobs = list(jobs)

        def work():
            while True:
                with self.lock:
                    if not jobs:
                        return
                    job = jobs.pop(0)
                self.one(job)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()


def about(jobs, kept, options):
    """The facts at the top of the report."""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        cpu = re.search(r"model name\s*: (.*)", f.read())
    with open("/proc/meminfo", encoding="utf-8") as f:
        mem = int(re.search(r"MemTotal:\s*(\d+)", f.read())[1]) / (1 << 20)
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    wall = [x for job, k in zip(jobs, kept) if job.by == "wall" for x in k["load"]]
    counts = [sum(j.program == p and j.by == by for j in jobs) for p, by in sorted({(j.program, j.by) for j in jobs})]
    reps = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])
    out = {
        "source": options.source,
        "kernel of the VM": vm.kernel(),
        "host": f"{os.cpu_count()} CPUs ({cpu[1] if cpu else 'unknown'}), {mem:.0f} GiB, {os.uname().release}",
        "VM": re.sub(r"\s*\(.*", "", qemu.splitlines()[0]) + f", {vm.accel()} by wall time (2 CPUs), "
              "TCG with one thread by instructions",
        "repetitions": reps + ("" if reps == "1" else ", medians"),
        "each load": ", ".join(f"{s} MiB" for s in sorted({j.size for j in jobs})),
        "measured": " to ".join(sorted({min(k["when"] for k in kept), max(k["when"] for k in kept)})),
    }
    if wall:
        out["load average of the host around wall measurements"] = \
            f"{min(wall):.1f} to {max(wall):.1f}; 1 to 2 of it is the VM itself" + \
            (": other work was going on, so that the wall figures are rough" if max(wall) > 3 else "")
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default=f"{vm.TOP}/target/vm-bin")
    p.add_argument("--quick", action="store_true", help="one repetition, small loads; the report goes to target/bench/quick")
    p.add_argument("--reps", type=int, default=3)
    p.add_argument("--size", type=int, default=64, help="MiB that a load writes or reads")
    p.add_argument("--tries", type=int, default=2, help="how often a measurement is made when it is noisy")
    p.add_argument("--limit", type=float, default=1800, help="seconds that a VM may run")
    p.add_argument("--source", default="unknown", help="the commit, for the report")
    p.add_argument("--report", action="store_true", help="run nothing: report what is kept, of any size")
    p.add_argument("--fresh", action="store_true")
    p.add_argument("--only", default="", help="words of job names, for development: no report is written")
    options = p.parse_args()
    vm.sweep()
    reps, size = (1, 32) if options.quick else (options.reps, options.size)
    run = Run(options)
    jobs = [Job(program, by, rep, size, options.quick, 1 if options.quick else options.tries) for rep in range(1, reps + 1) for by in ("instructions", "wall")
            for program, (ways, _) in PROGRAMS.items()
            if by in ways and not (options.quick and program in NOT_QUICK)]
    if options.only:
        jobs = [j for j in jobs if any(w in j.name for w in options.only.split(","))]
    # What counts instructions does not mind company; what takes times gets the machine for itself.
    if options.report:
        jobs = run.kept()
        run.passed = [j.name for j in jobs]
    else:
        run.lanes([j for j in jobs if j.by == "instructions"], 2)
        run.lanes([j for j in jobs if j.by == "wall"], 1)

    done, kept = [], []
    for job in jobs:
        if os.path.exists(run.path(job)):
            with open(run.path(job), encoding="utf-8") as f:
                done.append(job)
                kept.append(json.load(f))
    rows = [r for k in kept for r in results.ratios(k["measurements"])]
    table = results.combine(rows)
    measurements = [m for k in kept for m in k["measurements"]]
    for by in results.BYS:
        say(f"\nRatio to the bare device, by {by}:\n\n{report.ratio_table(table, by)}")
    if done and not options.only:
        folder = f"{WORK}/quick" if options.quick else DOCS
        for load, subject, by in results.missing(table):
            say(f"FAIL no figure for {load} {subject} by {by}")
            run.failed.append(f"{load} {subject} {by}")
        report.write(folder, table, measurements, about(done, kept, options))
        say(f"\nreport: {os.path.relpath(folder, vm.TOP)}")
    for name in run.failed:
        say(f"failed: {name}")
    say(f"{len(run.passed)} passed, {len(run.failed)} failed")
    sys.exit(1 if run.failed or not run.passed else 0)


if __name__ == "__main__":
    main()
