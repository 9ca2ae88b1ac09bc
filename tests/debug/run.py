#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the VM cases and the stress programs once on the debug kernel, and the programs of this folder.

Runs inside the build chroot (scripts/test-debug.sh enters it). Each program has a VM of its own, with a kernel that
watches itself (tests/debug/config): a case that would pass fails if the kernel says anything, and if the module
leaves memory behind. First come the defects that are planted to see that each checker works. What has passed is
kept in target/debug/results.jsonl and not run again while module, tools and program are the same (`--fresh`).
"""

import argparse
import os
import re
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "../../scripts"), os.path.join(HERE, "../stress")]
import run as stress  # noqa: E402
import vm  # noqa: E402

# What must be said about each planted defect, by its own checker and by nobody else. The last one ends the VM, and
# lockdep gives up after its report and after any of KASAN's: hence the order.
PLANTED = {
    "d0-leak": r"^FAIL d0-leak: kmemleak: leaks: [1-9]\d* objects of the module",
    "d0-sleep": r"^FAIL d0-sleep: kernel log: .*BUG: sleeping function called from invalid context",
    "d0-inversion": r"^FAIL d0-inversion: kernel log: .*WARNING: possible circular locking dependency detected",
    "d0-use-after-free": r"^FAIL d0-use-after-free: kernel log: .*BUG: KASAN: slab-use-after-free in",
    "d0-out-of-bounds": r"^FAIL d0-out-of-bounds: kernel log: .*BUG: KASAN: slab-out-of-bounds in",
    "d0-overflow": r"rust_kernel: panicked at .*sys/defects\.rs[^\n]*\n[^\n]*attempt to add with overflow",
}
# A run that is cut short has seen these: names begin so.
FIRST = ("d0 d1 t05-defects t18 t24 t02-immutable t02-race t01 t03-change t14 t16 t22 t30 t31 t34 t36 t40-cache "
         "t43 s5-race s4 s7 s1 s2 s3 s6").split()


class Program(stress.Job):
    """A case, a stress program (short) or one of this folder."""

    def __init__(self, folder, name, seed):
        self.folder, self.name, self.seed = folder, name, seed
        self.path = os.path.join(HERE, "..", "vm/cases" if folder == "cases" else folder, name)
        self.headers = vm.headers_of(self.path)
        with open(self.path, encoding="utf-8") as f:
            found = re.search(r"^# count: *(\d+)", f.read(), re.M)
        self.count = int(found[1]) if found else 1

    def key(self):
        return self.name

    def again(self):
        return f"make test-debug ONLY={self.name}"


class Planted(Program):
    """All planted defects, in one VM."""

    def __init__(self, seed):
        super().__init__("debug", "d0-leak", seed)
        self.name = " ".join(PLANTED)

    def key(self):
        return "d0-planted"

    def again(self):
        return "make test-debug ONLY=d0"


def programs(only, seed):
    every = [Planted(seed)]
    for folder, letter in (("debug", "d[1-9]"), ("cases", "t"), ("stress", "s")):
        where = os.path.join(HERE, "..", "vm/cases" if folder == "cases" else folder)
        for name in sorted(os.listdir(where)):
            # Counter-cases say something about the other cases, and nothing about the module.
            if re.match(letter + r"\d", name) or (folder == "debug" and re.match(letter, name)):
                if os.access(os.path.join(where, name), os.X_OK) and "-counter-" not in name:
                    every.append(Program(folder, name, seed))
    for word in only:
        if not any(word in p.key() for p in every):
            sys.exit(f"error: no program matches {word!r}")

    def place(program):
        return next((n for n, word in enumerate(FIRST) if program.key().startswith(word)), len(FIRST))
    chosen = [p for p in every if not only or any(word in p.key() for word in only)]
    return sorted(chosen, key=place)


class Run(stress.Run):
    # slab_debug takes away the allocator's arrays of objects for each CPU: a pointer to an object that was handed out
    # stays in there, and kmemleak takes it for a reference.
    # no5lvl: while the CPU's features are read again at boot, KASAN knows nothing of the fifth level of page tables,
    # and an interrupt at that moment makes it report without end. The rest is what Debian's configuration has.
    append = "kasan_multi_shot slab_debug=F no5lvl bdev_allow_write_mounted=1"

    def jobs(self):
        return programs(self.o.only, self.o.seed)

    def job_digest(self, job):
        common = [os.path.join(HERE, "..", n) for n in
                  ("vm/cases/lib.sh", "stress/lib.sh", "vm/harness/run-cases", "vm/harness/leaks")]
        own = [os.path.join(HERE, n) for n in PLANTED] if isinstance(job, Planted) else [job.path]
        kernel = [os.path.join(vm.BOOT, "vmlinuz")]
        # A case may be one that sources another: that is fine, both have names of their own.
        return self.digest_of(self.tools + kernel + common + own)

    def limit_of(self, job):
        return vm.limit_of(job.name) if job.folder == "cases" else {"debug": 600}.get(job.folder, 300) * self.o.slow

    def verdict_of(self, job, lines, console):
        if not isinstance(job, Planted):
            return super().verdict_of(job, lines, console)
        text = "\n".join(lines) + console
        missed = [name for name, pattern in PLANTED.items() if not re.search(pattern, text, re.M)]
        for name in missed:
            lines.append(f"{name}: was not caught by its own checker")
        self.tell(f"planted defects: {len(PLANTED) - len(missed)} of {len(PLANTED)} caught")
        if missed and not any(line.startswith("FAIL") for line in lines):
            return None
        return "FAIL" if missed else "PASS"

    def last_line(self):
        for key in self.skipped:
            stress.say(f"skipped: {key}")
        return f"{len(self.passed)} passed, {len(self.failed)} failed"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--slow", type=int, default=6, help="all time limits times so much")
    p.add_argument("--jobs", type=int, default=2, help="VMs at once")
    p.add_argument("--fresh", action="store_true", help="forget what was run before")
    p.add_argument("--bin", default=f"{vm.TOP}/target/debug/bin")
    p.add_argument("--work", default=f"{vm.TOP}/target/debug")
    p.add_argument("only", nargs="*", help="words of the names of the programs to run")
    options = p.parse_args()
    options.short, options.fault = False, None
    if options.fresh:
        for name in ("results.jsonl", "logs"):
            path = os.path.join(options.work, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.path.exists(path) and os.remove(path)
    vm.SLOW, vm.BOOT_SECONDS = options.slow, 60 * options.slow
    vm.sweep()
    sys.exit(Run(options).run())


if __name__ == "__main__":
    main()
