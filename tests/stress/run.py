#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the stress programs of this folder, each in a VM of its own, round after round.

Runs inside the build chroot (scripts/stress.sh enters it). Round R of a program has the seed SEED + R. What
was run is kept in target/stress/results.jsonl, so a run that was stopped goes on where it was; results count
only for the module and programs that they were made with (`--fresh` forgets them all). A program's header:

    # count: SHORT LONG   how much it does (COUNT)
    # rounds: N           how often in a long run, for each hour of it (default 1)
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "../../scripts")]
import vm  # noqa: E402

RESULT = re.compile(r"(PASS|FAIL|SKIP) (\S+?):? ")


def say(text):
    print(text, flush=True)


def headers_of(name):
    found = {}
    with open(os.path.join(HERE, name), encoding="utf-8") as f:
        for line in list(f)[:40]:
            m = re.match(r"# (vm|params|fault|count|rounds): *(.*)", line)
            if m:
                found[m[1]] = m[2].strip()
    return found


def programs(only):
    every = sorted(n for n in os.listdir(HERE) if re.match(r"s\d", n) and os.access(os.path.join(HERE, n), os.X_OK))
    for word in only:
        if not any(word in n for n in every):
            sys.exit(f"error: no stress program matches {word!r}")
    return [n for n in every if not only or any(word in n for word in only)]


class Job:
    """One program with one seed."""
    folder = "stress"

    def __init__(self, name, seed, count):
        self.name, self.seed, self.count = name, seed, count
        self.headers = headers_of(name)

    def key(self):
        return f"{self.name} {self.seed} {self.count}"

    def again(self):
        return f"make stress ONLY={self.name} SEED={self.seed} COUNT={self.count} ROUNDS=1 FRESH=1"


class Run:
    """The runs of a list of jobs. tests/debug/run.py makes its own of it."""
    append = ""                                 # to the kernel's command line

    def __init__(self, options):
        self.o = options
        os.makedirs(options.work, exist_ok=True)
        self.results = os.path.join(options.work, "results.jsonl")
        self.lock = threading.Lock()
        self.passed, self.failed, self.skipped = [], [], []
        self.counts = {}
        self.tools = [os.path.join(options.bin, n)
                      for n in ("dattobd.ko", "dattobd-faults.ko", "dbdctl", "dbdtest", "update-img")]
        self.digest = self.digest_of(self.tools + sorted(os.path.join(HERE, n) for n in os.listdir(HERE))) \
            + (f"-fault{options.fault}" if options.fault else "")

    @staticmethod
    def digest_of(paths):
        h = hashlib.sha256()
        for path in paths:
            if os.path.isfile(path):
                with open(path, "rb") as f:
                    h.update(f.read())
        return h.hexdigest()[:16]

    def job_digest(self, _job):
        """A result counts for what has the same one."""
        return self.digest

    def jobs(self):
        """All that is to be run. A round has every program, so that a run cut short has seen each."""
        names = programs(self.o.only)
        out = []
        if self.o.short:
            for name in names:
                short = headers_of(name).get("count", "1 1").split()[0]
                out.append(Job(name, self.o.seed, self.o.count or int(short)))
            return out
        weights = {n: float(headers_of(n).get("rounds", "1")) * self.o.hours for n in names}
        if self.o.rounds:
            weights = {n: self.o.rounds for n in names}
        r = 0
        while any(r < w for w in weights.values()):
            for name in names:
                if r < weights[name]:
                    long = headers_of(name).get("count", "1 1").split()[1]
                    out.append(Job(name, self.o.seed + r, self.o.count or int(long)))
            r += 1
        return out

    def done_before(self):
        found = {}
        try:
            with open(self.results, encoding="utf-8") as f:
                for line in f:
                    r = json.loads(line)
                    found[r["key"], r["digest"]] = r
        except (OSError, ValueError, KeyError):
            pass
        return found

    def add(self, job, verdict, counts):
        {"PASS": self.passed, "FAIL": self.failed, "SKIP": self.skipped}[verdict].append(job.key())
        for k, n in counts.items():
            self.counts[k] = self.counts.get(k, 0) + n

    def limit_of(self, _job):
        """Seconds that it may take."""
        return (300 if self.o.short else self.o.limit) * self.o.slow

    @staticmethod
    def verdict_of(job, lines, _console):
        """PASS, FAIL, SKIP; None: there is none."""
        found = None
        for line in lines:
            m = RESULT.match(line)
            if m and m[2] == job.name:
                found = m[1]
        return found

    def run_job(self, job):
        """Runs it, once more where the result says as much about a busy machine as about us."""
        needs = job.headers.get("vm", vm.DEFAULT_NEEDS)
        limit = int(self.limit_of(job))
        digest = self.job_digest(job)
        fault = f"FAULT={self.o.fault} " if self.o.fault else ""
        command = (f"{fault}SLOW={self.o.slow} SEED={job.seed} COUNT={job.count} CASE_DIR={job.folder} "
                   f"CASE_TIMEOUT={limit} exec /t/harness/run-cases {job.name}")
        again = crashes = 0
        while True:
            machine = vm.Vm(needs, command, self.o.bin, self.append, timeout=limit + 180 * self.o.slow)
            lines = []

            def show(line):
                lines.append(line)

            started = time.monotonic()
            status = machine.run(show)
            seconds = time.monotonic() - started
            verdict = self.verdict_of(job, lines, machine.console_tail(1000))
            counts = self.read_counts(machine.results)
            crashed, booted = machine.crashed, machine.booted
            machine.clean(os.path.join(self.o.work, "logs", job.key().replace(" ", "-")))
            if verdict is None and (crashed or not booted) and crashes < 2:
                crashes += 1
                self.tell(f"note: the VM for {job.name} never got as far as our first program, or QEMU itself "
                          "crashed; starting it again")
                continue
            text = "\n".join(lines)
            if verdict == "FAIL" and vm.LOAD.search(text) and not again:
                again = 1
                self.tell(f"note: {job.key()}: {vm.LOAD.search(text)[0]}...; once more")
                continue
            break
        if verdict is None:
            verdict = "FAIL"
            lines.append(status if isinstance(status, str) else "the runner stopped")
        with self.lock:
            shown = " ".join(f"{k}={n}" for k, n in sorted(counts.items()))
            if verdict == "FAIL":
                say("\n".join(lines))
                say(f"FAIL {job.key()} ({seconds:.0f} s). Again: {job.again()}")
            else:
                say(f"{verdict} {job.key()} ({seconds:.0f} s) {shown}")
            self.add(job, verdict, counts)
            with open(self.results, "a", encoding="utf-8") as f:
                f.write(json.dumps({"key": job.key(), "digest": digest, "verdict": verdict,
                                    "seconds": round(seconds), "counts": counts}) + "\n")

    def tell(self, text):
        with self.lock:
            say(text)

    @staticmethod
    def read_counts(folder):
        counts = {}
        try:
            with open(os.path.join(folder, "counts"), encoding="utf-8") as f:
                for line in f:
                    k, n = line.split()
                    counts[k] = counts.get(k, 0) + int(n)
        except (OSError, ValueError):
            pass
        return counts

    def last_line(self):
        return f"{len(self.passed)} passed, {len(self.failed)} failed" \
            + (f", {len(self.skipped)} skipped" if self.skipped else "")

    def run(self):
        started = time.monotonic()
        jobs = self.jobs()
        before = {} if self.o.short else self.done_before()
        todo = []
        for job in jobs:
            r = before.get((job.key(), self.job_digest(job)))
            # What has failed is looked at again.
            if r and r["verdict"] != "FAIL":
                self.add(job, r["verdict"], r["counts"])
            else:
                todo.append(job)
        if len(todo) < len(jobs):
            say(f"{len(jobs) - len(todo)} of {len(jobs)} were run before")
        say(f"{len(todo)} programs to run, seed {self.o.seed}, on {vm.kernel()}")

        def lane():
            while True:
                with self.lock:
                    if not todo:
                        return
                    job = todo.pop(0)
                self.run_job(job)

        lanes = [threading.Thread(target=lane) for _ in range(self.o.jobs)]
        for t in lanes:
            t.start()
        for t in lanes:
            t.join()
        say(f"{time.monotonic() - started:.0f} s; " + ", ".join(f"{k} {n}" for k, n in sorted(self.counts.items())))
        with open(os.path.join(self.o.work, "totals.json"), "w", encoding="utf-8") as f:
            json.dump({"kernel": vm.kernel(), "digest": self.digest, "passed": sorted(self.passed),
                       "failed": sorted(self.failed), "counts": self.counts}, f, indent=1)
        for key in self.failed:
            say(f"failed: {key}")
        say(self.last_line())
        return 1 if self.failed or not self.passed else 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--short", action="store_true", help="each program once, as short as it makes sense")
    p.add_argument("--hours", type=float, default=1, help="how long a long run is to take, about")
    p.add_argument("--rounds", type=int, default=0, help="so many rounds of each program instead")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=0, help="instead of the programs' own")
    p.add_argument("--limit", type=float, default=7200, help="seconds that one program may take")
    p.add_argument("--slow", type=int, default=1, help="all time limits times so much: for debug kernels")
    p.add_argument("--jobs", type=int, default=0, help="VMs at once (1; short: 2)")
    p.add_argument("--fault", help="load the build for counter-tests with this fault: programs must fail")
    p.add_argument("--fresh", action="store_true", help="forget what was run before")
    p.add_argument("--bin", default=f"{vm.TOP}/target/vm-bin")
    p.add_argument("--work", default=f"{vm.TOP}/target/stress")
    p.add_argument("only", nargs="*", help="words of the names of the programs to run")
    options = p.parse_args()
    options.jobs = options.jobs or (2 if options.short else 1)
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    vm.sweep()
    sys.exit(Run(options).run())


if __name__ == "__main__":
    main()
