#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command in a VM with the stock kernel, or the VM test cases.

Runs inside the build chroot (scripts/vm.sh enters it). QEMU's own facilities are enough here:
virtme-ng wants 9p or virtiofs, which Debian's cloud kernels and Debian 12 lack.

    vm.py run [--mem 1G] [--cpus 2] [--disk 1G[:lbs=4096][:memory=full|sparse]]... [--icount] [--append ...] COMMAND...
    vm.py test [--faults] [NAME...]
"""

import argparse
import contextlib
import fcntl
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

TOP = "/dattobd"
TARGET = os.environ.get("DBD_TARGET", "trixie")
STATE = f"/cache/{TARGET}"
# Another kernel than the packaged one, on the same root file system: a folder with vmlinuz, initrd.img, kernel
# (its release) and modules.tar, as scripts/debug-kernel.sh makes one.
BOOT = os.environ.get("DBD_BOOT")
# What a case may take (harness/run-cases), with LONG=1 too, unless its `# timeout:` says otherwise. SLOW: times
# so much, on a machine where everything takes longer.
CASE_SECONDS, CASE_SECONDS_LONG = 280, 7200
LONG = os.environ.get("LONG") == "1"
SLOW = float(os.environ.get("SLOW") or 1)
# Emulated. Without ERMS and FSRM programs and kernel copy eight bytes with an instruction where it would be one:
# `rep movsb`, fast on all that has it, is emulated byte by byte.
EMULATED_CPU = "max,-erms,-fsrm"
# What a kernel that watches itself needs for that.
DEBUG_MEMORY_MIB = 640
# Until the first program of ours has started. What has not by then has died on the way.
BOOT_SECONDS = max(180, 60 * SLOW)
# Some more for what a case left behind. Without a result after that the VM hangs: a process in
# uninterruptible sleep outlives its timeout.
CASE_SLACK = 120
# A failure that a busy machine can cause: a leak shows again. A hang is never repeated, it may be a
# deadlock that comes only now and then.
LOAD = re.compile(r": memory grew by \d+ kB \(")
RESULT = re.compile(r"(PASS|FAIL|SKIP) ([^\s:]+)")
DEFAULT_NEEDS = "disks=1G,1G,512M mem=1G"


def say(text):
    print(text, flush=True)


def kernel():
    with open(f"{BOOT or STATE}/kernel", encoding="utf-8") as f:
        return f.read().strip()


def accel():
    """KVM if a short trial boot works, else TCG. A /dev/kvm may exist and still not run a kernel.
    Decided once for each boot of this machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as f:
        boot = f.read().strip()
    note = f"/cache/accel-{boot}"
    if os.path.exists(note):
        with open(note, encoding="utf-8") as f:
            return f.read().strip()
    choice = "tcg,thread=multi"
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        try:
            out = subprocess.run(
                ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "512", "-nographic",
                 "-no-reboot", "-kernel", f"{STATE}/vmlinuz", "-append",
                 "console=ttyS0 panic=-1 quiet"],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=15, check=False).stdout
            # No root file system was given: the panic about it shows that the kernel runs.
            if b"Kernel panic" in out or b"VFS:" in out:
                choice = "kvm"
        except (subprocess.TimeoutExpired, OSError):
            pass
    with open(note, "w", encoding="utf-8") as f:
        f.write(choice)
    say(f"VMs run with {choice}")
    return choice


@contextlib.contextmanager
def place():
    """One of the places for VMs: with DBD_LANES=N there are N of them for all programs that `make` runs side by side in
    this checkout, so that a machine with two cores is never asked for more. Without it there is no limit."""
    places = int(os.environ.get("DBD_LANES") or 0)
    if not places:
        yield
        return
    os.makedirs(f"{TOP}/target/lanes", exist_ok=True)
    with contextlib.ExitStack() as files:
        locks = [files.enter_context(open(f"{TOP}/target/lanes/{n}", "w", encoding="utf-8")) for n in range(places)]
        while not any(taken(lock) for lock in locks):
            time.sleep(0.2)
        # Closing the file gives the place back, however this program ends.
        yield


def taken(lock):
    """Whether the lock is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def size_of(text):
    m = re.fullmatch(r"(\d+)([KMGT]?)", text)
    if not m:
        sys.exit(f"error: bad size {text!r}")
    return int(m[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[m[2]]


def sweep():
    """Removes what runs left behind that were killed. No VM runs for a day."""
    for work in glob.glob("/cache/vm-*/") + glob.glob("/dev/shm/dattobd-vm-*/"):
        if time.time() - os.stat(work).st_mtime > 86400:
            shutil.rmtree(work, ignore_errors=True)


class Vm:
    """One run of one VM."""

    def __init__(self, needs, command, bindir, append="", timeout=None, stall=None):
        self.needs = dict(n.split("=", 1) for n in needs.split())
        self.command = command
        self.bindir = bindir
        self.append = append
        self.timeout = timeout or float(self.needs.get("timeout", "900"))
        self.stall = stall
        self.work = tempfile.mkdtemp(prefix="vm-", dir="/cache")
        self.memory = None
        self.crashed = False
        self.booted = False
        self.results = os.path.join(self.work, "results")
        os.mkdir(self.results)

    def _input(self):
        path = os.path.join(self.work, "in.tar")
        command = os.path.join(self.work, "command")
        with open(command, "w", encoding="utf-8") as f:
            f.write(self.command + "\n")
        with tarfile.open(path, "w") as tar:
            tar.add(f"{TOP}/tests/vm", "t")
            tar.add(f"{TOP}/tests/demo", "t/demo") if os.path.isdir(f"{TOP}/tests/demo") else None
            tar.add(f"{TOP}/tests/powercut", "t/powercut")
            tar.add(f"{TOP}/tests/stress", "t/stress") if os.path.isdir(f"{TOP}/tests/stress") else None
            tar.add(f"{TOP}/tests/bench/guest", "t/bench")
            tar.add(f"{TOP}/dist", "t/dist") if os.path.isdir(f"{TOP}/dist") else None
            tar.add(f"{TOP}/tests/debug", "t/debug")
            tar.add(self.bindir, "t/bin")
            tar.add(f"{BOOT}/modules.tar", "t/modules.tar") if BOOT else None
            tar.add(command, "t/command")
        # Whole sectors, or the last one would not be readable in the guest.
        with open(path, "ab") as f:
            f.truncate((f.tell() + 65535) // 65536 * 65536)
        return path

    def _disks(self):
        for i, spec in enumerate(filter(None, self.needs.get("disks", "").split(","))):
            size, *options = spec.split(":")
            options = dict(o.split("=", 1) for o in options)
            if "image" in options:
                path, snapshot = options["image"], "on"
            else:
                path, snapshot = os.path.join(self.work, f"disk{i}.img"), "off"
                if options.get("memory"):
                    path = os.path.join(self._memory(), f"disk{i}.img")
                if options.get("memory") == "sparse":
                    # Not raw: write-zeroes would take all the memory that they stand for.
                    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size_of(size))], check=True)
                else:
                    with open(path, "wb") as f:
                        f.truncate(size_of(size) + int(options.get("odd", "0")))
                        if options.get("memory") == "full":
                            os.posix_fallocate(f.fileno(), 0, size_of(size))
            lbs = options.get("lbs", "512")
            how = "qcow2,detect-zeroes=on" if options.get("memory") == "sparse" else "raw,detect-zeroes=off"
            yield path, snapshot, f"logical_block_size={lbs},physical_block_size={lbs}", how

    def _memory(self):
        """A folder in memory, for disks whose speed must not depend on the host's disks."""
        if not self.memory:
            self.memory = tempfile.mkdtemp(prefix="dattobd-vm-", dir="/dev/shm")
        return self.memory

    def argv(self):
        a = accel()
        cpu, icount = "host" if a == "kvm" else EMULATED_CPU, []
        if self.needs.get("icount"):
            # A nanosecond of the guest's time for each instruction. Only TCG counts, and only with one thread.
            a, cpu, icount = "tcg,thread=single", EMULATED_CPU, ["-icount", "shift=0,sleep=off"]
        # The VM ends with this program, however that ends.
        memory = (size_of(self.needs.get("mem", "1G")) >> 20) + (DEBUG_MEMORY_MIB if BOOT else 0)
        # Where its disks are in memory it takes much: should that run out, others are not to suffer.
        greedy = ["choom", "-n", "500", "--"] if "memory=" in self.needs.get("disks", "") else []
        argv = [*greedy, "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", a, "-M", "q35,sata=off",
                "-cpu", cpu, *icount, "-smp", self.needs.get("cpus", "2"), "-m", f"{memory}M",
                "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none",
                "-kernel", f"{BOOT or STATE}/vmlinuz", "-initrd", f"{BOOT or STATE}/initrd.img",
                "-append", f"console=ttyS0 panic=-1 oops=panic loglevel=7 printk.time=1 dbd_slow={max(SLOW, 1):.0f} "
                + self.needs.get("append", "").replace("+", " ") + " " + self.append,
                "-serial", f"file:{self.work}/console.txt",
                "-serial", f"file:{self.work}/out.txt",
                "-device", "virtio-rng-pci"]
        n = 0

        def drive(path, device, snapshot="off", extra="", how="raw,detect-zeroes=off"):
            nonlocal n
            argv.extend(["-drive", f"if=none,id=d{n},file={path},format={how},cache=unsafe,"
                         f"discard=unmap,snapshot={snapshot}" + extra,
                         "-device", f"virtio-blk-pci,drive=d{n}{device}"])
            n += 1

        for path, snapshot, device, how in self._disks():
            drive(path, "," + device, snapshot, how=how)
        drive(f"{STATE}/root.img", ",serial=dbdroot", "off", ",readonly=on")
        drive(self._input(), ",serial=dbdin", "off", ",readonly=on")
        out = os.path.join(self.work, "out.tar")
        with open(out, "wb") as f:
            f.truncate(512 << 20)
        drive(out, ",serial=dbdout")
        return argv

    def run(self, show):
        """Runs it; the exit code of the command, or a text that says why there is none. `show` gets
        each line that the command prints."""
        out_path = os.path.join(self.work, "out.txt")
        open(out_path, "wb").close()
        started = lively = time.monotonic()
        end = started + self.timeout
        status = None
        with subprocess.Popen(self.argv(), stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as qemu:
            with open(out_path, "r", encoding="utf-8", errors="replace") as out:
                rest = ""
                while True:
                    chunk = out.read()
                    rest += chunk.replace("\r\n", "\n")
                    *lines, rest = rest.split("\n")
                    self.booted = self.booted or bool(lines)
                    if self.booted and self.memory:
                        # QEMU has its disks open: they go when it goes, however this program ends.
                        shutil.rmtree(self.memory, ignore_errors=True)
                        self.memory = None
                    for line in lines:
                        m = re.fullmatch(r"dattobd-vm-exit (\d+)", line.strip("\r"))
                        if m:
                            status = int(m[1])
                        else:
                            show(line)
                            if RESULT.match(line):
                                lively = time.monotonic()
                    if qemu.poll() is not None and not chunk:
                        break
                    if time.monotonic() > end:
                        qemu.kill()
                        return f"no end within {self.timeout:.0f} s" + self.console_tail()
                    if not self.booted and time.monotonic() > started + BOOT_SECONDS:
                        qemu.kill()
                        return f"not booted within {BOOT_SECONDS:.0f} s" + self.console_tail()
                    if self.stall and time.monotonic() > lively + self.stall():
                        qemu.kill()
                        return f"no result for {self.stall():.0f} s: it hangs" + self.console_tail()
                    if not chunk:
                        time.sleep(0.1)
            errors = qemu.stderr.read().decode(errors="replace")
            # Ended by a signal: QEMU itself has crashed (a guest's panic ends it with 0).
            self.crashed = qemu.returncode < 0
        if status is None:
            return "the VM ended without a result" + (": " + errors if errors.strip() else "") \
                + self.console_tail()
        try:
            with tarfile.open(os.path.join(self.work, "out.tar")) as tar:
                tar.extractall(self.results, filter="data")
        except (tarfile.TarError, OSError):
            pass
        return status

    def console_tail(self, lines=60):
        try:
            with open(os.path.join(self.work, "console.txt"), encoding="utf-8",
                      errors="replace") as f:
                return "\n--- end of the VM's console ---\n" + "".join(f.readlines()[-lines:])
        except OSError:
            return ""

    def clean(self, keep_to=None):
        if keep_to:
            os.makedirs(keep_to, exist_ok=True)
            for name in ("console.txt", "out.txt"):
                src = os.path.join(self.work, name)
                if os.path.exists(src):
                    shutil.copy(src, keep_to)
            shutil.copytree(self.results, os.path.join(keep_to, "results"), dirs_exist_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)
        if self.memory:
            shutil.rmtree(self.memory, ignore_errors=True)


def headers_of(path):
    """The `# key: value` lines at the top of a case."""
    found = {}
    with open(path, encoding="utf-8") as f:
        for line in list(f)[:40]:
            m = re.match(r"# (vm|params|fault|timeout): *(.*)", line)
            if m:
                found[m[1]] = m[2].strip()
    return found


def limit_of(name):
    """Seconds that a case may take: `# timeout: SECONDS [SECONDS WITH LONG=1]`."""
    found = headers_of(f"{TOP}/tests/vm/cases/{name}").get("timeout", "").split()
    short = float(found[0]) if found else CASE_SECONDS
    return (max(float(found[1]) if len(found) > 1 else CASE_SECONDS_LONG, short) if LONG else short) * SLOW


def cases(names):
    folder = f"{TOP}/tests/vm/cases"
    every = sorted(n for n in os.listdir(folder) if os.access(os.path.join(folder, n), os.X_OK))
    for name in names:
        if not any(name in n for n in every):
            sys.exit(f"error: no case matches {name!r}")
    return [n for n in every if not names or any(name in n for name in names)]


def run_tests(options):
    groups = {}
    for name in cases(options.names):
        h = headers_of(f"{TOP}/tests/vm/cases/{name}")
        groups.setdefault(h.get("vm", DEFAULT_NEEDS), []).append(name)
    # Groups that take long go first, so that two VMs side by side end at about the same time.
    queue = sorted(groups.items(), key=lambda g: -len(g[1]))
    # One VM must not run for ever: split large groups so that both lanes stay busy.
    split = []
    for needs, names in queue:
        step = max(4, (len(names) + options.jobs - 1) // options.jobs)
        for i in range(0, len(names), step):
            split.append((needs, names[i:i + step]))
    passed, failed, skipped, repeated = [], [], [], set()
    lock = threading.Lock()
    logs = f"{TOP}/target/vm-logs/{TARGET}"
    shutil.rmtree(logs, ignore_errors=True)
    started = time.monotonic()

    def work():
        while True:
            with place():
                with lock:
                    if not split:
                        return
                    needs, names = split.pop(0)
                one_vm(needs, names)

    def one_vm(needs, names):
        limits = {name: limit_of(name) for name in names}
        budget = 60 + sum(limit + CASE_SLACK for limit in limits.values())
        todo = list(names)
        crashes = 0
        while todo:
            done = []

            def stall(todo=tuple(todo), done=done):
                return CASE_SLACK + next((limits[n] for n in todo if n not in done), 0)

            told = shlex.quote(" ".join(f"{n}={limits[n]:.0f}" for n in todo))
            vm = Vm(needs, f"LONG={int(LONG)} SLOW={max(SLOW, 1):.0f} LIMITS={told} exec /t/harness/run-cases " + " ".join(todo),
                    options.bin, timeout=budget, stall=stall)

            def show(line):
                m = RESULT.match(line)
                with lock:
                    say(line)
                    if m and m[2] in todo:
                        done.append(m[2])
                        if m[1] == "FAIL" and LOAD.search(line) and m[2] not in repeated:
                            # Says as much about a busy machine as about the case: once more, by
                            # itself. A check that fails is never repeated.
                            repeated.add(m[2])
                            split.append((needs, [m[2]]))
                            say(f"note: {m[2]} will be run once more")
                            return
                        {"PASS": passed, "FAIL": failed, "SKIP": skipped}[m[1]].append(m[2])

            status = vm.run(show)
            first = todo[0]
            todo = [n for n in todo if n not in done]
            vm.clean(f"{logs}/{first}")
            if todo and (vm.crashed or not vm.booted) and crashes < 2:
                # TCG with several threads asserts now and then while PCI is set up, or trips over
                # the kernel's code patching at boot. Nothing of ours was loaded by then, so that
                # says nothing about the case: once more, and say so.
                crashes += 1
                with lock:
                    say(f"note: the VM for {todo[0]} never got as far as our first program, or QEMU "
                        f"itself crashed; starting it again: {status}")
                continue
            if todo:
                # The VM died in the middle: the case that ran is the culprit, go on behind it.
                with lock:
                    say(f"FAIL {todo[0]}: {status if isinstance(status, str) else 'the runner stopped'}")
                    failed.append(todo.pop(0))

    lanes = [threading.Thread(target=work) for _ in range(options.jobs)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    say(f"VM tests on {kernel()}: {time.monotonic() - started:.0f} s, logs in target/vm-logs/{TARGET}")
    for name in failed:
        say(f"failed: {name}")
    say(f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed or not passed else 0


def run_command(options):
    needs = f"mem={options.mem} cpus={options.cpus} disks=" + ",".join(options.disk)
    if options.icount:
        needs += " icount=1"
    vm = Vm(needs, " ".join(options.command), options.bin, options.append, options.timeout)
    status = vm.run(say)
    if isinstance(status, str):
        say("error: " + status)
        status = 1
    if options.keep:
        vm.clean(options.keep)
    else:
        vm.clean()
    return status


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default=f"{TOP}/target/vm-bin", help="folder that becomes /t/bin")
    sub = p.add_subparsers(dest="what", required=True)
    run = sub.add_parser("run")
    run.add_argument("--mem", default="1G")
    run.add_argument("--cpus", default="2")
    run.add_argument("--disk", action="append", default=[])
    run.add_argument("--append", default="")
    run.add_argument("--icount", action="store_true", help="one CPU that executes an instruction each nanosecond")
    run.add_argument("--timeout", type=float, default=600)
    run.add_argument("--keep", help="folder for console.txt, out.txt and /results")
    run.add_argument("command", nargs=argparse.REMAINDER)
    test = sub.add_parser("test")
    test.add_argument("--jobs", type=int, default=2)
    test.add_argument("names", nargs="*")
    options = p.parse_args()
    sweep()
    sys.exit(run_tests(options) if options.what == "test" else run_command(options))


if __name__ == "__main__":
    main()
