#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Boots a Debian VM again and again; each boot runs one stage of guest.sh and says how it wants to end.

Runs inside the build chroot (run.sh enters it). There is no boot loader: before each boot kernel and initramfs
are taken out of the root filesystem, as the boot loader would.

     install  the packages by apt, first snapshots of root and data, full copies, incremental mode
      reboot  both devices are there again, exact; the next snapshot and increment; snapshot mode
    snapshot  a clean reboot in snapshot mode has changed no snapshot; then load, and QEMU is killed
       crash  the chain goes on; then load, and the VM resets itself (sysrq b)
       reset  the chain goes on; then the list is damaged
       wrong  the machine boots all the same, the devices show why they have failed
         off  without us (dattobd=off), for the time that a boot takes

With KILLS=N, instead of all after `install`: QEMU is killed N times, at random moments (SEED=...), under load, in the
midst of transitions, and at boot. After each the chains go on, and the images follow the next snapshots. What has
passed is not run again with the same module, tools and test.

With BOOTS=N, instead: N clean boots with both devices tracked, then N without us, on a CPU whose clock counts
instructions (QEMU's icount), so that what else this machine does is not in the times.
"""

import glob
import hashlib
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts"))
import vm  # noqa: E402

TOP = "/dattobd"
TARGET = os.environ.get("DBD_TARGET", "trixie")
STATE = f"/cache/{TARGET}"
LOGS = f"{TOP}/target/debian-logs"
OFFSET = 1 << 20            # where the root partition begins
UUID = "6b1d4bd5-6f6c-4a40-9a5c-0d1de3f5a001"
KILLS = int(os.environ.get("KILLS") or 0)
BOOTS = int(os.environ.get("BOOTS") or 0)
SLOW = KILLS or BOOTS
SEED = os.environ.get("SEED", "1")
PASSED = f"{TOP}/target/powercut/kills.txt"
QUICK = os.environ.get("QUICK") == "1"
STAGES = ["install", "reboot", "snapshot", "crash", "reset", "wrong", "off"]
# Without the second crash, and without the boots on a damaged list and with the module left out.
FEW_STAGES = ["install", "reboot", "snapshot", "last-crash"]
# A boot that something of ours holds up takes longer than this, on the slowest machine.
BOOT_TIME = 600 if SLOW else 300
STAGE_TIME = 1500 if SLOW else 600
# TCG with several threads trips over the kernel's code patching now and then, long before it knows a disk.
EARLY_TIME, EARLY_TRIES = (150 if SLOW else 40), 4


class Failed(Exception):
    """The stage has failed; the text says why."""


def say(text):
    print(text, flush=True)


def partitioned(image, disk):
    """A disk with one partition, which holds the filesystem."""
    size = os.stat(image).st_size
    with open(disk, "wb") as out:
        out.truncate(OFFSET + size + (1 << 20))
    subprocess.run(["dd", f"if={image}", f"of={disk}", "bs=1M", f"seek={OFFSET >> 20}",
                    "conv=sparse,notrunc", "status=none"], check=True)
    entry = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0]) + (OFFSET // 512).to_bytes(4, "little") \
        + (size // 512).to_bytes(4, "little")
    with open(disk, "r+b") as out:
        out.seek(446)
        out.write(entry + bytes(48) + b"\x55\xaa")


class NotStarted(Exception):
    """The kernel never came as far as the initramfs: no disk was touched."""


class Machine:
    """The disks, which stay, and one QEMU after the other."""

    def __init__(self, work):
        self.work = work
        with open(f"{STATE}/kernel", encoding="utf-8") as f:
            self.kernel = f.read().strip()
        self.root = f"{work}/root.img"
        self.rng = random.Random(SEED)
        self.boot_time = 0
        self.killed = False
        partitioned(f"{STATE}/debian.img", self.root)
        for name, mib in (("data", 400), ("scratch", 1400)):
            with open(f"{work}/{name}.img", "wb") as f:
                f.truncate(mib << 20)
        self.make_repository()

    def make_repository(self):
        repo = f"{self.work}/repo"
        os.mkdir(repo)
        for name in ("tools", f"modules-{self.kernel}"):
            for deb in glob.glob(f"{TOP}/target/deb/dattobd-{name}_*.deb"):
                shutil.copy(deb, repo)
        with open(f"{repo}/Packages", "wb") as f:
            subprocess.run(["dpkg-scanpackages", "--multiversion", "."], cwd=repo, stdout=f,
                           stderr=subprocess.DEVNULL, check=True)

    def control(self, stage):
        path = f"{self.work}/control.tar"
        with open(f"{self.work}/stage", "w", encoding="utf-8") as f:
            f.write(stage + "\n")
        with tarfile.open(path, "w") as tar:
            tar.add(f"{TOP}/tests/debian/guest.sh", "guest.sh")
            tar.add(f"{TOP}/target/vm-bin/dbdtest", "dbdtest")
            tar.add(f"{self.work}/repo", "repo")
            tar.add(f"{self.work}/stage", "stage")
        with open(path, "ab") as f:
            f.truncate((f.tell() + 65535) // 65536 * 65536)
        return path

    def extract(self, name):
        out, new = f"{self.work}/{name}", f"{self.work}/{name}.new"
        if os.path.exists(new):
            os.remove(new)
        done = subprocess.run(["debugfs", "-R", f"dump /boot/{name}-{self.kernel} {new}",
                               f"{self.root}?offset={OFFSET}"], check=True, capture_output=True, text=True)
        if os.path.exists(new) and os.stat(new).st_size >= 1 << 20:
            os.rename(new, out)
        elif self.killed and os.path.exists(out):
            # Before the journal is replayed it may not be readable for debugfs. Nothing there has changed.
            say(f"note: debugfs: {done.stderr.strip()}")
        else:
            raise Failed(f"there is no /boot/{name}-{self.kernel} in the root filesystem: {done.stderr}")
        return out

    def argv(self, stage, log):
        how = ["-accel", "tcg,thread=multi", "-smp", "2"]
        if BOOTS and stage != "install":
            # A nanosecond for each instruction.
            how = ["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=on"]
        argv = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *how,
                "-M", "q35,sata=off", "-cpu", vm.EMULATED_CPU, "-m", "1G",
                "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none",
                "-kernel", self.extract("vmlinuz"), "-initrd", self.extract("initrd.img"),
                "-append", f"root=UUID={UUID} ro console=ttyS0 panic=-1 oops=panic printk.time=1 systemd.show_status=1 systemd.log_color=0"
                + (" dattobd=off" if stage == "off" else ""),
                "-serial", f"file:{log}/console.txt", "-serial", f"file:{log}/out.txt",
                "-device", "virtio-rng-pci"]
        disks = [(self.root, "root"), (f"{self.work}/data.img", "data"),
                 (f"{self.work}/scratch.img", "scratch"), (self.control(stage), "control")]
        for n, (path, serial) in enumerate(disks):
            argv += ["-drive", f"if=none,id=d{n},file={path},format=raw,cache=unsafe,discard=unmap",
                     "-device", f"virtio-blk-pci,drive=d{n},serial={serial}"]
        return argv

    def run(self, stage, log):
        for _ in range(EARLY_TRIES):
            try:
                return self.run_once(stage, log)
            except NotStarted:
                say(f"note: the kernel hung before its first program within {EARLY_TIME} s; starting it again")
        raise Failed("the kernel never started")

    def run_once(self, stage, log):
        """One boot. Returns what the guest has told in `key=value` lines."""
        shutil.rmtree(log, ignore_errors=True)
        os.makedirs(log)
        out_path = f"{log}/out.txt"
        open(out_path, "wb").close()
        told, passed, kill_at, early = {}, False, None, False
        start = time.monotonic()
        with subprocess.Popen(self.argv(stage, log), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE) as qemu, \
                open(out_path, encoding="utf-8", errors="replace") as out:
            try:
                rest = ""
                while True:
                    ended = qemu.poll() is not None
                    chunk = out.read()
                    *lines, rest = (rest + chunk.replace("\r", "")).split("\n")
                    for line in lines:
                        say(f"    {line}")
                        m = re.fullmatch(r"told (\w+)=(.*)", line)
                        if m:
                            told[m[1]] = m[2]
                        if line == "STAGE UP":
                            told["up"] = time.monotonic() - start
                            self.boot_time = told["up"]
                        elif line.startswith("STAGE FAILED"):
                            raise Failed(line)
                        elif line == "STAGE PASSED":
                            passed = True
                        elif line == "STAGE KILL-ME":
                            # In the midst of the load.
                            told["killed"] = self.rng.uniform(0.5, 15) if KILLS else 4
                            kill_at = time.monotonic() + told["killed"]
                    now = time.monotonic() - start
                    if kill_at and time.monotonic() > kill_at:
                        self.killed = True
                        qemu.kill()
                        qemu.wait()
                        break
                    if not early and (now > EARLY_TIME or ended or stage == "boot-kill"):
                        if os.path.exists(f"{log}/console.txt"):
                            with open(f"{log}/console.txt", "rb") as f:
                                early = b"Run /init as init process" in f.read()
                        if not early and (now > EARLY_TIME or ended):
                            raise NotStarted
                    if stage == "boot-kill" and early and kill_at is None:
                        # From the first program on to a little after the last one.
                        passed = True
                        told["killed"] = self.rng.uniform(0, self.boot_time * 1.1)
                        kill_at = time.monotonic() + told["killed"]
                    if ended:
                        break
                    if "up" not in told and now > BOOT_TIME:
                        raise Failed(f"no boot within {BOOT_TIME} s")
                    if now > STAGE_TIME:
                        raise Failed(f"no end within {STAGE_TIME} s")
                    if not chunk:
                        time.sleep(0.1)
                if not passed:
                    raise Failed("the VM ended without a result: " + qemu.stderr.read().decode(errors="replace"))
            finally:
                qemu.kill()
        with open(f"{log}/console.txt", encoding="utf-8", errors="replace") as f:
            bad = re.search(r".*(?:BUG:|WARNING: CPU|Oops|Kernel panic|possible circular|blocked for more).*", f.read())
        if bad:
            raise Failed("the kernel complains: " + bad[0])
        return told


def kills_digest():
    h = hashlib.sha256(f"{KILLS} {SEED}".encode())
    for path in (f"{TOP}/target/module/{TARGET}/dattobd.ko", f"{TOP}/target/{TARGET}/release/dbdctl",
                 f"{TOP}/target/{TARGET}/release/update-img", f"{TOP}/tests/debian/guest.sh", __file__):
        with open(path, "rb") as f:
            h.update(f.read())
    return h.hexdigest()


def passed_before():
    """What was printed when just this has passed."""
    try:
        with open(PASSED, encoding="utf-8") as f:
            digest, text = f.read().split("\n", 1)
            return text if digest == kills_digest() else None
    except (OSError, ValueError):
        return None


def stages():
    if BOOTS:
        # A boot without us ends the chains.
        return ["install", *["boot"] * BOOTS, *["off"] * BOOTS]
    if not KILLS:
        return FEW_STAGES if QUICK else STAGES
    # Each third one at boot. The last boot only looks.
    kills = ["boot-kill" if n % 3 == 2 else "kill" for n in range(KILLS)]
    return ["install", *kills, "after-kill"]


def main():
    if KILLS and (text := passed_before()):
        say(f"passed before:\n{text}".rstrip())
        return
    with vm.place():
        run_stages()


def run_stages():
    shutil.rmtree(LOGS, ignore_errors=True)
    started = time.monotonic()
    stage, log = "set-up", LOGS
    work = tempfile.mkdtemp(prefix="vm-debian-", dir="/cache")
    times = []
    try:
        machine = Machine(work)
        for n, stage in enumerate(stages()):
            log = f"{LOGS}/{n}-{stage}"
            say(f"== {stage}")
            begin = time.monotonic()
            told = machine.run(stage, log)
            times.append((stage, time.monotonic() - begin, told))
    except (Failed, OSError, subprocess.SubprocessError) as e:
        say(f"FAILED in stage {stage}: {e}")
        console = f"{log}/console.txt"
        if os.path.exists(console):
            with open(console, encoding="utf-8", errors="replace") as f:
                say("--- end of the console ---\n" + "".join(f.readlines()[-40:]))
        say(f"logs: {log.replace(TOP + '/', '')}")
        sys.exit(1)
    finally:
        if os.environ.get("KEEP") != "1":
            shutil.rmtree(work, ignore_errors=True)
    lines = [f"{'stage':>10} {'took':>7} {'up after':>9}   as systemd sees the boot"]
    for stage, took, told in times:
        killed = f"killed after {told['killed']:.1f} s of it; " if KILLS and "killed" in told else ""
        what = f"added by the crash before: {told['added']}" if "added" in told else told.get("boot", "")
        lines.append(f"{stage:>10} {took:6.0f}s {told.get('up', 0):8.0f}s   {killed}{what}")
    for what, name in (("boot", "with both devices tracked"), ("off", "without us")) if BOOTS else ():
        busy = [int(told["busy"]) for stage, _, told in times if stage == what]
        lines.append(f"{name}: {statistics.median(busy) / 1000:.2f} s of instructions until the last unit "
                     f"({min(busy) / 1000:.2f} to {max(busy) / 1000:.2f}, {len(busy)} boots)")
    lines.append(f"Debian VM on {machine.kernel}: all stages passed, {time.monotonic() - started:.0f} s"
                 + (f"; killed {KILLS} times, no block missed" if KILLS else ""))
    say("\n".join(lines))
    if KILLS:
        os.makedirs(os.path.dirname(PASSED), exist_ok=True)
        with open(PASSED, "w", encoding="utf-8") as f:
            f.write("\n".join([kills_digest(), *lines]) + "\n")


if __name__ == "__main__":
    main()
