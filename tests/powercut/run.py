#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Records a disk under a workload, cuts its power at many places, and looks whether any block is missed.

Runs inside the build chroot (scripts/powercut.sh enters it). One recording serves up to CUTS_EACH cuts.
A cut follows from the seed and the recording; recordings and results are kept in target/powercut, so a
run that was stopped goes on where it was (`--fresh` forgets them).
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../scripts")]
import log as logs  # noqa: E402
import vm  # noqa: E402

DISK = 164 << 20
SCRATCH = 1 << 30
PARTITION = 1 << 20     # where the filesystem begins
ROUNDS = 2
CUTS_EACH = 50          # cuts of one recording
DISKS_EACH = 14         # cuts that one VM looks at
# What a cut hits. One turn of this wheel has each as often as it matters.
WHEEL = ("incremental", "to-snapshot", "sealed", "to-incremental", "snapshot", "incremental",
         "to-snapshot", "setup", "incremental", "sealed", "to-snapshot", "to-incremental")
# In these there may be no chain yet, or none that the driver has promised.
MAY_END = {"setup": "the first snapshot was not taken yet"}


def say(text):
    print(text, flush=True)


class PowerVm(vm.Vm):
    """A VM with disks of our own before the others."""

    def __init__(self, command, bindir, disks, timeout):
        super().__init__("mem=1G disks=", command, bindir, timeout=timeout)
        self.disks = disks

    def argv(self):
        argv = super().argv()
        at = argv.index("virtio-rng-pci") + 1
        return argv[:at] + self.disks + argv[at:]


def plain_disk(n, path, snapshot):
    """A disk that nobody records."""
    return ["-drive", f"if=none,id=p{n},file={path},format=raw,cache=unsafe,discard=unmap,"
            f"detect-zeroes=off,snapshot={'on' if snapshot else 'off'}",
            "-device", f"virtio-blk-pci,drive=p{n},logical_block_size=512,physical_block_size=512"]


def recorded_disk(path, log, append):
    """A disk with a volatile cache whose writes are recorded. The host never flushes; the filter takes
    the guest's flushes all the same, as they are what the log is about."""
    how = "log-append=on" if append else "log-sector-size=512"
    return ["-blockdev", f"driver=file,node-name=file0,filename={path},discard=unmap,cache.no-flush=on",
            "-blockdev", f"driver=file,node-name=log0,filename={log},cache.no-flush=on",
            "-blockdev", f"driver=blklogwrites,node-name=disk0,file=file0,log=log0,{how},"
            "log-super-update-interval=1,discard=unmap,cache.no-flush=off",
            "-device", "virtio-blk-pci,drive=disk0,write-cache=on,logical_block_size=512,"
            "physical_block_size=512"]


def boot(command, bindir, disks, timeout, show, keep):
    """Runs a VM; once more if it never came up or QEMU itself crashed before it said anything."""
    for attempt in range(3):
        machine = PowerVm(command, bindir, disks, timeout)
        lines = []

        def line(text):
            lines.append(text)
            show(text)

        status = machine.run(line)
        machine.clean(keep)
        if isinstance(status, int) or lines or attempt == 2:
            return status
        say("note: the VM never got as far as our first program; starting it again")
    return status


def digest_of(paths):
    h = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as f:
            h.update(f.read())
    return h.hexdigest()[:16]


class Run:
    def __init__(self, options):
        self.o = options
        self.work = options.work
        os.makedirs(self.work, exist_ok=True)
        self.module = None
        used = [os.path.join(HERE, n) for n in ("record", "verify", "verify-one", "guest.sh", "log.py")]
        if not options.no_module:
            self.module = "dattobd-faults.ko" if options.fault else "dattobd.ko"
            used += [os.path.join(options.bin, n)
                     for n in (self.module, "dattobd.ko", "dbdctl", "dbdtest", "update-img")]
        # Results and recordings count only for what they were made with.
        self.digest = digest_of(used) + (f"-fault{options.fault}" if options.fault else "") \
            + ("-plain" if options.no_module else "") + (f"-lies{options.lies}" if options.lies else "") \
            + (f"-{options.fs}" if options.fs else "")
        self.results_path = os.path.join(self.work, "results.jsonl")

    def insmod(self, name, extra=""):
        return f"insmod /t/bin/{name} {extra} && " if name else ""

    # --- recording

    def recording(self, fs, number):
        """The folder of a recording, made if need be; None if that fails."""
        folder = os.path.join(self.work, f"rec-{fs}-{self.o.seed}-{number}")
        note = os.path.join(folder, "recording.json")
        try:
            with open(note, encoding="utf-8") as f:
                if json.load(f)["digest"] == self.digest:
                    return folder
        except (OSError, ValueError, KeyError):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        start = time.monotonic()
        seed = random.Random(f"{self.o.seed}/{fs}/{number}").randrange(1, 30000)
        disk, log, scratch = (os.path.join(folder, n) for n in ("disk.img", "log", "scratch.img"))
        for path, size in ((disk, DISK), (log, 0), (scratch, SCRATCH)):
            with open(path, "wb") as f:
                f.truncate(size)
        output = open(os.path.join(folder, "output.txt"), "w", encoding="utf-8")

        def show(line):
            print(line, file=output, flush=True)
            if self.o.verbose:
                say("  " + line)

        fault = f"test_fault={self.o.fault}" if self.o.fault else ""
        # Marks are taken back all the time in one half of the recordings, after ten seconds as usual in
        # the other.
        if number % 2 == 0:
            fault += " checkpoint_ms=400"
        status = 0
        for life in (1, 2):
            if life == 2 and self.o.no_module:
                break
            status = boot(self.insmod(self.module, fault)
                          + f"ROUNDS={ROUNDS} exec /t/powercut/record {fs} {seed} {life}",
                          self.o.bin, recorded_disk(disk, log, life > 1) + plain_disk(0, scratch, False),
                          300, show, os.path.join(folder, f"life{life}"))
            if status != 0:
                break
        output.close()
        lives = life
        if status != 0 and life == 1:
            say(f"recording {fs} {number} failed: {status}; its output:")
            with open(output.name, encoding="utf-8") as f:
                say("".join(f.readlines()[-30:]))
            return None
        if status != 0:
            # The first life is still good for cuts. Why the second failed is a finding of its own.
            say(f"FAIL recording {fs} {number}: the disk after a clean reboot: {status}")
            with open(output.name, encoding="utf-8") as f:
                say("".join(f.readlines()[-8:]))
            lives = 1
        recorded = time.monotonic() - start
        start = time.monotonic()
        # Is the recorder right at all?
        log = logs.Log(log)
        whole = logs.Disk(log, DISK)
        whole.forward(len(log.entries))
        at = logs.first_difference(whole.image, disk)
        if at is not None:
            say(f"FAIL recording {fs} {number}: replaying it does not give the disk: byte {at}")
            return None
        marks = log.marks()
        flushes = sum(1 for e in log.entries if e.flags & logs.FLUSH)
        discards = sum(1 for e in log.entries if e.flags & logs.DISCARD)
        size = sum(e.length for e in log.entries if e.data is not None)
        say(f"recorded {fs} {number} in {recorded:.0f} s: {len(log.entries)} entries, {flushes} flushes, "
            f"{discards} discards, {size >> 20} MiB written; replayed in {time.monotonic() - start:.1f} s, "
            "equal to the disk byte for byte")
        with open(note, "w", encoding="utf-8") as f:
            json.dump({"digest": self.digest, "fs": fs, "number": number, "seed": seed, "lives": lives,
                       "marks": marks}, f)
        log.close()
        return folder

    # --- choosing cuts

    def windows(self, marks):
        """scenario -> list of (first N, last N, numbers of COW files that may be in use)."""
        at = {name: i for i, name in marks if not name.startswith("synced")}
        found = {}

        def add(scenario, begin, end, cows):
            if begin in at and end in at:
                found.setdefault(scenario, []).append((at[begin] + 1, at[end], cows))

        if self.o.no_module:
            add("plain", "start-begin", "plain-end", "-")
            add("plain", "umount-begin", "umount-end", "-")
            return found
        add("setup", "setup0-begin", "setup0-end", "0")
        for n in range(ROUNDS + 1):
            ready = "setup0-end" if n == 0 else f"snap{n}-end"
            add("snapshot", ready, f"inc{n}-begin", str(n))
            add("to-incremental", f"inc{n}-begin", f"inc{n}-end", str(n))
            add("incremental", f"inc{n}-end", f"snap{n + 1}-begin" if n < ROUNDS else "steady-end", str(n))
            add("to-snapshot", f"snap{n + 1}-begin", f"snap{n + 1}-end", f"{n},{n + 1}")
        # From the unmount that seals, over the reboot, to the life after it.
        last = str(ROUNDS)
        lives = [i for i, name in marks if name == "umount-begin"]
        if lives and "again-end" in at:
            found["sealed"] = [(lives[0] + 1, at["reload-end"], last),
                               (at["reload-end"] + 1, at["mount-end"], last),
                               (at["mount-end"] + 1, at["again-end"], last),
                               (at["mount-end"] + 1, at["again-end"], last)]
        elif lives:
            found["sealed"] = [(lives[0] + 1, at["umount-end"], last)]
        return found

    def choose(self, number, log, marks, windows):
        """Where and how the cut `number` is made."""
        seed = f"{self.o.seed}/{number}"
        rng = random.Random(seed)
        scenario = "plain" if self.o.no_module else WHEEL[number // (1 if self.o.fs else 2) % len(WHEEL)]
        first, last, cows = rng.choice(windows[scenario])
        n = rng.randint(first, last)
        if rng.random() < 0.5:
            # Just before a flush: as much as can be is at stake.
            n = next((i for i in range(n, last + 1) if log.entries[i].flags & logs.FLUSH), n)
        way = rng.choice(logs.WAYS)
        synced = max((int(name.split()[1]) for i, name in marks
                      if i < n and name.startswith("synced ")), default=0)
        return {"cut": number, "seed": seed, "scenario": scenario, "at": n, "of": len(log.entries),
                "way": way, "cows": cows, "synced": synced}

    # --- looking at cuts

    def judge(self, cut, code, fields):
        """(passed, what is to be said about it)"""
        missed = int(fields.get("missed", 0))
        if missed:
            return False, f"{missed} BLOCKS MISSED at {fields.get('where')}"
        if code != 0:
            return False, "no result in time" if code == 124 else f"failed (exit code {code})"
        chain = fields.get("chain")
        synced = f"{fields['synced']} files synced" if "synced" in fields else "nothing synced yet"
        if chain == "none":
            return True, f"journal replayed, {synced}"
        if chain == "ended":
            why = MAY_END.get(cut["scenario"])
            if why:
                return True, f"no chain, rightly: {why}; {synced}"
            return False, f"the chain has ended ({fields.get('why')}), but had no reason to"
        snapshot = "" if "snapshot" not in fields else (
            ", snapshot survived" if fields["snapshot"] == "0" else ", snapshot lost")
        return True, (f"chain went on with .datto{chain}{snapshot}, {fields.get('added', '?')} blocks added of "
                      f"{fields.get('changed', '?')}, none missed, {synced}")

    def explain(self, cut, fields, log, marks):
        """Says who wrote the missed blocks, and in which step."""
        at = [(i, name) for i, name in marks if not name.startswith("synced")]
        for place in fields.get("where", "").split(",")[:6]:
            m = re.fullmatch(r"(\d+)\+(\d+)", place)
            if not m:
                continue
            start = PARTITION + int(m[1]) * 4096
            hits = log.writes_to(start, start + int(m[2]) * 4096, cut["at"])[-3:]
            for i, e in hits:
                step = [name for j, name in at if j < i][-1:]
                say(f"       blocks {place}: entry {i} ({'discard' if e.data is None else 'write'} of "
                    f"{e.length} bytes at {e.offset - PARTITION}), after {''.join(step)}")

    def finish(self, cut, code, fields, image, log, marks):
        passed, text = self.judge(cut, code, fields)
        say(f"{'PASS' if passed else 'FAIL'} cut {cut['cut']} seed {cut['seed']} {cut['fs']} {cut['scenario']} "
            f"at {cut['at']}/{cut['of']}, {cut['way']} ({cut['kept']} of {cut['pending']} unflushed kept, "
            f"{cut['torn']} torn): {text}")
        with open(self.results_path, "a", encoding="utf-8") as f:
            f.write(json.dumps({**cut, "passed": passed, "text": text, "code": code, "fields": fields,
                                "digest": self.digest, "run": self.o.seed}) + "\n")
        if not passed:
            self.explain(cut, fields, log, marks)
            failed = os.path.join(self.work, "failed")
            os.makedirs(failed, exist_ok=True)
            os.replace(image, os.path.join(failed, f"cut{cut['cut']}.img"))
        return passed

    def look(self, folder, cuts, log, disk, note):
        """Makes the disks of these cuts and looks at them in one VM. Returns how many passed."""
        place = os.path.join(self.work, "cuts")
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        start = time.monotonic()
        images = {}
        for cut in cuts:
            image, counts = logs.cut(log, disk, cut["at"], cut["way"], cut["seed"], self.o.lies)
            cut.update(counts)
            images[cut["cut"]] = os.path.join(place, f"cut{cut['cut']}.img")
            logs.write_sparse(images[cut["cut"]], image)
        built = time.monotonic() - start
        passed = 0
        todo = list(cuts)
        spent, count = 0.0, len(cuts)
        start = time.monotonic()
        while todo:
            disks = plain_disk(0, os.path.join(folder, "scratch.img"), True)
            names, words = {}, []
            for i, cut in enumerate(todo):
                name = "vd" + "bcdefghijklmnopqrstuvwxyz"[i]
                names[name] = cut
                path = images[cut["cut"]]
                disks += plain_disk(i + 1, path, True)
                # The whole disk is recorded, the filesystem is on its first partition.
                words.append(f"{name}1:{cut['fs']}:{note['seed']}:{cut['cows']}:{cut['synced']}")
            done = set()

            def show(line):
                nonlocal spent, passed
                m = re.match(r"CUT (vd[a-z])1 (\d+) (.*)", line)
                if m:
                    fields = dict(w.split("=", 1) for w in m[3].split() if "=" in w)
                    done.add(m[1])
                    spent += int(fields.get("ms", 0)) / 1000
                    cut = names[m[1]]
                    passed += self.finish(cut, int(m[2]), fields, images[cut["cut"]], log, note["marks"])
                elif self.o.verbose or line.startswith("note"):
                    say("  " + line)

            module = None if self.o.no_module else "dattobd.ko"
            status = boot(self.insmod(module) + "exec /t/powercut/verify " + " ".join(words),
                          self.o.bin, disks, 60 + 100 * len(todo), show, os.path.join(self.work, "last-look"))
            todo = [cut for name, cut in names.items() if name not in done]
            if status == 3:
                say("FAIL the kernel's log of the last VM, see above")
                passed -= 1
            if todo and done and isinstance(status, int):
                # A script of ours has failed, not the cut.
                continue
            if todo:
                # It has hung or brought down the machine.
                say(f"  the VM ended early: {status}")
                culprit = todo.pop(0)
                passed += self.finish(culprit, 125, {}, images[culprit["cut"]], log, note["marks"])
        say(f"  {count} cuts: made in {built:.1f} s, looked at in {time.monotonic() - start:.0f} s "
            f"({spent / count:.1f} s each)")
        shutil.rmtree(place, ignore_errors=True)
        return passed

    # --- all

    def done_before(self):
        found = {}
        try:
            with open(self.results_path, encoding="utf-8") as f:
                for line in f:
                    r = json.loads(line)
                    if r["digest"] == self.digest and r["run"] == self.o.seed:
                        found[r["cut"]] = r
        except (OSError, ValueError, KeyError):
            pass
        return found

    def run(self):
        start = time.monotonic()
        before = {} if self.o.only else self.done_before()
        wanted = self.o.only or range(self.o.cuts)
        passed = failed = 0
        for n in wanted:
            if n in before:
                passed += before[n]["passed"]
                failed += not before[n]["passed"]
        if passed + failed:
            say(f"{passed + failed} cuts were made before: {passed} passed, {failed} failed")
        # Cut n is one of filesystem n % 2, of that one's recording n // 2 // CUTS_EACH.
        kinds = (self.o.fs, self.o.fs) if self.o.fs else ("ext4", "xfs")
        groups = {}
        for n in wanted:
            if n not in before:
                groups.setdefault((kinds[n % 2], n // 2 // CUTS_EACH), []).append(n)
        for (fs, number), numbers in sorted(groups.items(), key=lambda g: (g[0][1], g[0][0])):
            folder = self.recording(fs, number)
            if folder is None:
                failed += len(numbers)
                continue
            with open(os.path.join(folder, "recording.json"), encoding="utf-8") as f:
                note = json.load(f)
            if note["lives"] == 1 and not self.o.no_module:
                failed += 1
            log = logs.Log(os.path.join(folder, "log"))
            windows = self.windows(note["marks"])
            cuts = [{**self.choose(n, log, note["marks"], windows), "fs": fs} for n in numbers]
            cuts.sort(key=lambda c: c["at"])
            disk = logs.Disk(log, DISK)
            for i in range(0, len(cuts), DISKS_EACH):
                batch = cuts[i:i + DISKS_EACH]
                good = self.look(folder, batch, log, disk, note)
                passed += good
                failed += len(batch) - good
            log.close()
        say(f"{time.monotonic() - start:.0f} s")
        missed = sum(1 for r in self.done_before().values() if int(r["fields"].get("missed", 0)))
        if self.o.fault:
            say(f"fault {self.o.fault}: noticed by {missed} cuts" if missed else
                f"fault {self.o.fault}: NOT NOTICED")
        say(f"{passed} passed, {failed} failed")
        if self.o.fault:
            return 0 if missed else 1
        return 1 if failed or not passed else 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cuts", type=int, default=200)
    p.add_argument("--seed", default="1")
    p.add_argument("--fs", choices=("ext4", "xfs"), help="only this one: half the recordings")
    p.add_argument("--fault", type=int, default=0, help="record with the build for counter-tests; some cut must miss")
    p.add_argument("--no-module", action="store_true", help="only the filesystem's own promises: tests the harness")
    p.add_argument("--lies", type=int, default=0, metavar="N",
                   help="a disk that forgets what the last N flushes covered: cuts must fail (tests the harness)")
    p.add_argument("--only", type=int, nargs="*", help="just these cuts, again")
    p.add_argument("--fresh", action="store_true", help="forget recordings and results")
    p.add_argument("--verbose", action="store_true")
    p.add_argument("--bin", default=f"{vm.TOP}/target/vm-bin")
    p.add_argument("--work", default=f"{vm.TOP}/target/powercut")
    options = p.parse_args()
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    vm.sweep()
    sys.exit(Run(options).run())


if __name__ == "__main__":
    main()
