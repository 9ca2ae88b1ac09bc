#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Records a disk under a workload, cuts its power at many places, and looks whether any block is missed.

Runs inside the build chroot (scripts/powercut.sh enters it). One recording serves many cuts (--each). Some of
its disks are recorded once more from the cut on, while they are reloaded, mounted and written to, and cut
again. And at each flush of every recording the disk is loaded on the host and compared (`dbdtest flush-points`).
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
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../scripts")]
import log as logs  # noqa: E402
import vm  # noqa: E402

DISK = 164 << 20
SCRATCH = 1 << 30
PARTITION = 1 << 20     # where the filesystem begins
DISKS_EACH = 14         # cuts that one VM looks at
SIZE = 160 << 20        # of the filesystem's partition
# What a cut hits. One turn of this wheel has each as often as it matters.
WHEEL = ("incremental", "to-snapshot", "sealed", "to-incremental", "snapshot", "incremental",
         "to-snapshot", "again", "reset", "incremental", "setup", "sealed", "again", "to-snapshot",
         "reset", "to-incremental")
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


class Source:
    """A recording that cuts are made of."""

    def __init__(self, folder, note, parent):
        self.folder, self.note = folder, note
        # Where the images are.
        self.parent = parent
        self.log = logs.Log(os.path.join(folder, "log"), note["ignored"])
        self.base = os.path.join(folder, "base.img") if folder != parent else None
        self.disk = logs.Disk(self.log, DISK, self.base)

    def synced(self, n):
        """First and last file that was synced for sure before entry n, as a text."""
        found, first, last = self.note["synced"], 1, 0
        for i, name in self.note["marks"]:
            if i >= n:
                break
            if name.startswith("synced-from "):
                first = int(name.split()[1])
            elif name.startswith("synced "):
                last = int(name.split()[1])
                found = f"{first}-{last}"
        return found


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
    """Runs a VM; once more if it never came up or QEMU itself crashed before it said anything. A VM that
    said that it would reset itself has ended well."""
    for attempt in range(3):
        machine = PowerVm(command, bindir, disks, timeout)
        lines = []

        def line(text):
            lines.append(text)
            show(text)

        status = machine.run(line)
        machine.clean(keep)
        if not isinstance(status, int) and any(re.search(r"\] resetting$", text) for text in lines):
            return 0
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
            + (f"-{options.fs}" if options.fs else "") + (f"-{options.rounds}" if options.rounds != 2 else "") \
            + (f"-{options.lives}" if options.lives != 4 else "")
        self.results_path = os.path.join(self.work, "results.jsonl")
        # The recording that a cut is made of.
        self.source_of = {}

    def insmod(self, name, extra=""):
        return f"insmod /t/bin/{name} {extra} && " if name else ""

    # --- recording

    def known(self, folder):
        """What is known of the recording in a folder, if it counts."""
        try:
            with open(os.path.join(folder, "recording.json"), encoding="utf-8") as f:
                note = json.load(f)
                return note if note["digest"] == self.digest else None
        except (OSError, ValueError, KeyError):
            return None

    def record(self, folder, lives, fs, parent, number):
        """Records one life after the other, each a command for the guest. Returns how many went well, the
        entries that are flushes of the recorder, and the last lines that were printed."""
        disk, log = (os.path.join(folder, n) for n in ("disk.img", "log"))
        scratch, images = (os.path.join(parent, n) for n in ("scratch.img", "images.img"))
        lines, ignored = [], []
        fault = f"test_fault={self.o.fault}" if self.o.fault else ""
        # Marks are taken back all the time in one half of the recordings, after ten seconds as usual in
        # the other.
        if (number + (fs == "xfs")) % 2 == 0:
            fault += " checkpoint_ms=400"
        with open(os.path.join(folder, "output.txt"), "a", encoding="utf-8") as output:
            def show(line):
                print(line, file=output, flush=True)
                lines.append(line)
                if self.o.verbose:
                    say("  " + line)

            for n, life in enumerate(lives):
                append = os.path.getsize(log) > 0
                # What is only done once must not touch the images.
                disks = recorded_disk(disk, log, append) + plain_disk(0, scratch, folder != parent) \
                    + plain_disk(1, images, folder != parent)
                status = boot(self.insmod(self.module, fault) + f"ROUNDS={self.o.rounds} exec /t/powercut/record {life}",
                              self.o.bin, disks, 900, show, os.path.join(folder, f"life{n + 1}"))
                if status != 0:
                    lines.append(f"life {n + 1}: {status}")
                    return n, ignored, lines
                entries = logs.Log(log).entries
                # What QEMU itself flushes when it ends is no promise to anybody.
                if entries and entries[-1].flags & logs.FLUSH and not entries[-1].length:
                    ignored.append(len(entries) - 1)
        return len(lives), ignored, lines

    def recorder_is_right(self, source, name):
        whole = logs.Disk(source.log, DISK, source.base)
        whole.forward(len(source.log.entries))
        at = logs.first_difference(whole.image, os.path.join(source.folder, "disk.img"))
        if at is not None:
            say(f"FAIL recording {name}: replaying it does not give the disk: byte {at}")
        return at is None

    def describe(self, source, name, seconds):
        log = source.log
        flushes = sum(1 for e in log.entries if e.flags & logs.FLUSH)
        discards = sum(1 for e in log.entries if e.flags & logs.DISCARD)
        size = sum(e.length for e in log.entries if e.data is not None)
        say(f"recorded {name} in {seconds:.0f} s: {len(log.entries)} entries, {flushes} flushes, {discards} discards, "
            f"{size >> 20} MiB written; replayed, equal to the disk byte for byte")

    def save(self, folder, note):
        with open(os.path.join(folder, "recording.json"), "w", encoding="utf-8") as f:
            json.dump({"digest": self.digest, **note}, f)

    def empty(self, folder, **files):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        for name, size in files.items():
            with open(os.path.join(folder, name.replace("_", ".")), "wb") as f:
                f.truncate(size)

    def recording(self, fs, number):
        """A recording of the whole cycle, made if need be; None if that fails."""
        folder = os.path.join(self.work, f"rec-{fs}-{self.o.seed}-{number}")
        note = self.known(folder)
        if note:
            return Source(folder, note, folder)
        self.empty(folder, disk_img=DISK, log=0, scratch_img=SCRATCH, images_img=(self.o.rounds + 1) * SIZE)
        start = time.monotonic()
        seed = random.Random(f"{self.o.seed}/{fs}/{number}").randrange(1, 30000)
        lives = [f"{fs} {seed} {life}" for life in range(1, self.o.lives + 1)]
        good, ignored, lines = self.record(folder, lives[:1] if self.o.no_module else lives, fs, folder, number)
        seconds = time.monotonic() - start
        if good == 0:
            say(f"recording {fs} {number} failed; its output:\n" + "\n".join(lines[-30:]))
            return None
        if good != len(lives) and not self.o.no_module:
            # What was recorded before is still good for cuts. Why a later life failed is a finding of its own.
            say(f"FAIL recording {fs} {number}: the disk in its life {good + 1}:\n" + "\n".join(lines[-8:]))
        # Of a life that failed nothing counts but that it was there.
        note = {"fs": fs, "number": number, "seed": seed, "lives": good, "ignored": ignored, "synced": "0"}
        note["marks"] = logs.Log(os.path.join(folder, "log"), ignored).marks()
        source = Source(folder, note, folder)
        if not self.recorder_is_right(source, f"{fs} {number}"):
            return None
        self.describe(source, f"{fs} {number}", seconds)
        self.save(folder, note)
        return source

    def again(self, main, k):
        """A recording that begins with a cut of `main`: reload, mount, and life after it. None if that fails."""
        fs, number = main.note["fs"], main.note["number"]
        folder = f"{main.folder}-again-{k}"
        note = self.known(folder)
        if note:
            return Source(folder, note, main.folder)
        self.empty(folder, log=0)
        start = time.monotonic()
        seed = f"{self.o.seed}/{fs}/{number}/again/{k}"
        rng = random.Random(seed)
        scenario = rng.choice(("incremental", "to-snapshot", "snapshot", "to-incremental"))
        cut = self.cut_at(main, scenario, rng, seed)
        image, counts = logs.cut(main.log, main.disk, cut["at"], cut["way"], seed, self.o.lies)
        base = os.path.join(folder, "base.img")
        logs.write_sparse(base, image)
        shutil.copyfile(base, os.path.join(folder, "disk.img"))
        life = f"{fs} {main.note['seed']} 5 {cut['cows']}"
        good, ignored, lines = self.record(folder, [life], fs, main.folder, number)
        used = re.findall(r"in use: \.datto(\d+)", "\n".join(lines))
        name = f"{fs} {number} again {k}"
        if not good or not used:
            say(f"FAIL recording {name} (cut {seed} {scenario} at {cut['at']}, {cut['way']}):\n" + "\n".join(lines[-12:]))
            return None
        note = {"fs": fs, "number": number, "seed": main.note["seed"], "lives": 1, "ignored": ignored,
                "synced": cut["synced"], "cows": used[-1], "cut": {**cut, **counts}}
        note["marks"] = logs.Log(os.path.join(folder, "log"), ignored).marks()
        source = Source(folder, note, main.folder)
        if not self.recorder_is_right(source, name):
            return None
        self.describe(source, f"{name} (a disk cut in {scenario} at {cut['at']}, {cut['way']})",
                      time.monotonic() - start)
        self.save(folder, note)
        return source

    # --- choosing cuts

    def windows(self, source):
        """scenario -> list of (first N, last N, numbers of COW files that may be in use)."""
        marks = source.note["marks"]
        at = {name: i for i, name in marks if not name.startswith("synced")}
        found = {}

        def add(scenario, begin, end, cows):
            if begin in at and end in at:
                found.setdefault(scenario, []).append((at[begin] + 1, at[end], cows))

        if self.o.no_module:
            add("plain", "start-begin", "plain-end", "-")
            add("plain", "umount-begin", "umount-end", "-")
            return found
        if source.base:
            cows = source.note["cows"]
            # The replay of the journal is worth as much as all the rest.
            add("again", "reload5-begin", "mount5-end", cows)
            add("again", "mount5-begin", "mount5-end", cows)
            add("again", "mount5-end", "again5-end", cows)
            return found
        add("setup", "setup0-begin", "setup0-end", "0")
        for n in range(self.o.rounds + 1):
            ready = "setup0-end" if n == 0 else f"snap{n}-end"
            add("snapshot", ready, f"inc{n}-begin", str(n))
            add("to-incremental", f"inc{n}-begin", f"inc{n}-end", str(n))
            add("incremental", f"inc{n}-end", f"snap{n + 1}-begin" if n < self.o.rounds else "steady-end", str(n))
            add("to-snapshot", f"snap{n + 1}-begin", f"snap{n + 1}-end", f"{n},{n + 1}")
        # From the unmount that seals, over the reboot, to the life after it.
        last = str(self.o.rounds)
        lives = [i for i, name in marks if name == "umount-begin"]
        if lives and "again-end" in at:
            found["sealed"] = [(lives[0] + 1, at["reload-end"], last),
                               (at["reload-end"] + 1, at["mount-end"], last),
                               (at["mount-end"] + 1, at["again-end"], last),
                               (at["mount-end"] + 1, at["again-end"], last)]
        elif lives:
            found["sealed"] = [(lives[0] + 1, at["umount-end"], last)]
        if "reset3-begin" in at:
            found["sealed"].append((at["again-end"] + 1, at["reset3-begin"], last))
        # A reset, which leaves the disk's cache alone, and then a power cut.
        add("reset", "reset3-begin", "mount4-end", last)
        add("reset", "mount4-begin", "mount4-end", last)
        add("reset", "mount4-end", "again4-end", last)
        return found

    def scenario(self, number):
        """What the cut `number` hits."""
        if self.o.no_module:
            return "plain"
        # Without what was not to be recorded.
        wheel = [s for s in WHEEL if (s != "again" or self.o.again) and (s != "reset" or self.o.lives == 4)]
        return wheel[number // (1 if self.o.fs else 2) % len(wheel)]

    def choose(self, number, source):
        """Where and how the cut `number` is made."""
        seed = f"{self.o.seed}/{number}"
        return {"cut": number, "fs": source.note["fs"],
                **self.cut_at(source, self.scenario(number), random.Random(seed), seed)}

    def cut_at(self, source, scenario, rng, seed):
        log = source.log
        first, last, cows = rng.choice(self.windows(source)[scenario])
        n = rng.randint(first, last)
        if rng.random() < 0.5:
            # Just before a flush: as much as can be is at stake.
            n = next((i for i in range(n, last + 1) if log.entries[i].flags & logs.FLUSH), n)
        way = rng.choice(logs.WAYS)
        return {"seed": seed, "scenario": scenario, "at": n, "of": len(log.entries), "way": way, "cows": cows,
                "synced": source.synced(n)}

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
        if cut["fs"] == "xfs" and "repaired" in fields and not cut["torn"]:
            return False, "xfs could not recover its log, and nothing was torn"
        if chain == "none":
            return True, f"journal replayed, {synced}"
        if chain == "ended":
            why = MAY_END.get(cut["scenario"])
            if why:
                return True, f"no chain, rightly: {why}; {synced}"
            return False, f"the chain has ended ({fields.get('why')}), but had no reason to"
        # Where its copies lie is kept in memory, until an orderly end in snapshot mode. No recording has such an end.
        if fields.get("snapshot") == "0":
            return False, "the snapshot came up as good, but nothing on the disk can say where its copies are"
        if cut["scenario"] == "snapshot" and "snapshot" not in fields:
            return False, "cut in snapshot mode, but it came up in incremental mode"
        snapshot = ", snapshot lost, as it must be" if "snapshot" in fields else ""
        snapshot += ", through a repair of the filesystem" if "repaired" in fields else ""
        return True, (f"chain went on with .datto{chain}{snapshot}, {fields.get('added', '?')} blocks added of "
                      f"{fields.get('changed', '?')}, none missed, {synced}")

    def explain(self, cut, fields, source):
        """Says who wrote the missed blocks, and in which step."""
        log, marks = source.log, source.note["marks"]
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

    def finish(self, cut, code, fields, image, source):
        passed, text = self.judge(cut, code, fields)
        say(f"{'PASS' if passed else 'FAIL'} cut {cut['cut']} seed {cut['seed']} {cut['fs']} {cut['scenario']} "
            f"at {cut['at']}/{cut['of']}, {cut['way']} ({cut['kept']} of {cut['pending']} unflushed kept, "
            f"{cut['torn']} torn): {text}")
        with open(self.results_path, "a", encoding="utf-8") as f:
            f.write(json.dumps({**cut, "passed": passed, "text": text, "code": code, "fields": fields,
                                "digest": self.digest, "run": self.o.seed}) + "\n")
        if not passed:
            self.explain(cut, fields, source)
            failed = os.path.join(self.work, "failed")
            os.makedirs(failed, exist_ok=True)
            os.replace(image, os.path.join(failed, f"cut{cut['cut']}.img"))
        return passed

    def look(self, cuts):
        """Makes the disks of these cuts, all of one recording and what followed from it, and looks at them in
        one VM. Returns how many passed."""
        place = os.path.join(self.work, "cuts")
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(place)
        start = time.monotonic()
        images = {}
        for cut in cuts:
            source = self.source_of[cut["cut"]]
            image, counts = logs.cut(source.log, source.disk, cut["at"], cut["way"], cut["seed"], self.o.lies)
            cut.update(counts)
            images[cut["cut"]] = os.path.join(place, f"cut{cut['cut']}.img")
            logs.write_sparse(images[cut["cut"]], image)
        built = time.monotonic() - start
        passed = 0
        todo = list(cuts)
        late = set()
        spent, count = 0.0, len(cuts)
        start = time.monotonic()
        while todo:
            scratch = os.path.join(self.source_of[todo[0]["cut"]].parent, "scratch.img")
            disks = plain_disk(0, scratch, True)
            names, words = {}, []
            for i, cut in enumerate(todo):
                name = "vd" + "bcdefghijklmnopqrstuvwxyz"[i]
                names[name] = cut
                path = images[cut["cut"]]
                disks += plain_disk(i + 1, path, True)
                # The whole disk is recorded, the filesystem is on its first partition.
                seed = self.source_of[cut["cut"]].note["seed"]
                words.append(f"{name}1:{cut['fs']}:{seed}:{cut['cows']}:{cut['synced']}")
            done = set()

            def show(line):
                nonlocal spent, passed
                m = re.match(r"CUT (vd[a-z])1 (\d+) (.*)", line)
                if m:
                    fields = dict(w.split("=", 1) for w in m[3].split() if "=" in w)
                    spent += int(fields.get("ms", 0)) / 1000
                    cut = names[m[1]]
                    if int(m[2]) == 124 and cut["cut"] not in late:
                        # A busy machine does that as well; a hang comes again.
                        late.add(cut["cut"])
                        say(f"  note: no result of cut {cut['cut']} in time; once more")
                        return
                    done.add(m[1])
                    passed += self.finish(cut, int(m[2]), fields, images[cut["cut"]], self.source_of[cut["cut"]])
                elif self.o.verbose or line.startswith("note"):
                    say("  " + line)

            module = None if self.o.no_module else "dattobd.ko"
            status = boot(self.insmod(module) + "exec /t/powercut/verify " + " ".join(words),
                          self.o.bin, disks, 120 + 400 * len(todo), show, os.path.join(self.work, "last-look"))
            todo = [cut for name, cut in names.items() if name not in done]
            if status == 3:
                say("FAIL the kernel's log of the last VM, see above")
                passed -= 1
            if todo and (done or late) and isinstance(status, int):
                # A script of ours has failed, not the cut.
                continue
            if todo:
                # It has hung or brought down the machine.
                say(f"  the VM ended early: {status}")
                culprit = todo.pop(0)
                passed += self.finish(culprit, 125, {}, images[culprit["cut"]], self.source_of[culprit["cut"]])
        say(f"  {count} cuts: made in {built:.1f} s, looked at in {time.monotonic() - start:.0f} s "
            f"({spent / count:.1f} s each)")
        shutil.rmtree(place, ignore_errors=True)
        return passed

    def flush_points(self, source, key):
        """Loads the disk at each flush of a recording, on this side. Whether all was as it has to be."""
        windows = self.windows(source)
        words = {f"{name}:{first}:{last}:{cows}" for name, found in windows.items() for first, last, cows in found
                 if not any(a <= first and last <= b and (a, b) != (first, last) for a, b, _ in found)}
        command = [os.path.join(self.o.bin, "dbdtest"), "flush-points", os.path.join(source.folder, "log"),
                   os.path.join(source.parent, "images.img"), "--disk", str(DISK), "--first", str(PARTITION),
                   "--size", str(SIZE), "--seed", str(source.note["seed"])]
        if source.base:
            command += ["--base", source.base]
        if source.note["ignored"]:
            command += ["--ignore", ",".join(map(str, source.note["ignored"]))]
        start = time.monotonic()
        done = subprocess.run(command + sorted(words), capture_output=True, text=True, check=False)
        passed = done.returncode == 0
        lines = done.stdout.splitlines() + done.stderr.splitlines()
        say(f"{'PASS' if passed else 'FAIL'} {key}: {lines[-1] if lines else done.returncode} "
            f"({time.monotonic() - start:.0f} s)")
        for line in lines[:-1]:
            say("       " + line)
        wrong = re.search(r": (\d+) wrong", lines[-1]) if lines else None
        with open(self.results_path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"cut": key, "passed": passed, "text": "\n".join(lines), "code": done.returncode,
                                "fields": {"missed": wrong[1] if wrong else 0}, "digest": self.digest,
                                "run": self.o.seed}) + "\n")
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
        for n, result in before.items():
            if n in wanted or isinstance(n, str):
                passed += result["passed"]
                failed += not result["passed"]
        if passed + failed:
            say(f"{passed + failed} were looked at before: {passed} passed, {failed} failed")
        # Cut n is one of filesystem n % 2, of that one's recording n // 2 // self.o.each.
        kinds = (self.o.fs, self.o.fs) if self.o.fs else ("ext4", "xfs")
        groups = {}
        for n in wanted:
            if n not in before:
                groups.setdefault((kinds[n % 2], n // 2 // self.o.each), []).append(n)
        for (fs, number), numbers in sorted(groups.items(), key=lambda g: (g[0][1], g[0][0])):
            main = self.recording(fs, number)
            if main is None:
                failed += len(numbers)
                continue
            sources = [main]
            if not self.o.no_module:
                failed += main.note["lives"] != self.o.lives
                again = [self.again(main, k) for k in range(self.o.again)]
                failed += again.count(None)
                sources += filter(None, again)
            if not self.o.no_module and not self.o.lies:
                for source in sources:
                    key = f"flushes of {os.path.basename(source.folder)}"
                    if key not in before:
                        good = self.flush_points(source, key)
                        passed += good
                        failed += not good
            cuts = []
            for n in numbers:
                scenario = self.scenario(n)
                fitting = [s for s in sources if scenario in self.windows(s)]
                if not fitting:
                    say(f"FAIL cut {n}: nothing was recorded for the scenario {scenario}")
                    failed += 1
                    continue
                self.source_of[n] = fitting[n // len(WHEEL) % len(fitting)]
                cuts.append(self.choose(n, self.source_of[n]))
            cuts.sort(key=lambda c: (self.source_of[c["cut"]].folder, c["at"]))
            for i in range(0, len(cuts), DISKS_EACH):
                batch = cuts[i:i + DISKS_EACH]
                good = self.look(batch)
                passed += good
                failed += len(batch) - good
            for source in sources:
                source.log.close()
        say(f"{time.monotonic() - start:.0f} s")
        missed = sum(1 for r in self.done_before().values() if int(r["fields"].get("missed", 0)))
        if self.o.fault:
            say(f"fault {self.o.fault}: noticed by {missed} of the checks above, which name missed blocks" if missed else
                f"fault {self.o.fault}: NOT NOTICED")
        say(f"{passed} passed, {failed} failed")
        if self.o.fault:
            return 0 if missed else 1
        return 1 if failed or not passed else 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cuts", type=int, default=200)
    p.add_argument("--each", type=int, default=50, help="cuts of one recording")
    p.add_argument("--rounds", type=int, default=2, help="increments in a recording")
    p.add_argument("--lives", type=int, default=4, choices=(2, 4), help="2: without the reset, and what comes after it")
    p.add_argument("--again", type=int, default=2,
                   help="cuts of one recording whose reload, mount and new life are recorded and cut again")
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
    with vm.place():
        sys.exit(Run(options).run())


if __name__ == "__main__":
    main()
