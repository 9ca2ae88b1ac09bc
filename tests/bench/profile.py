#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Where the instructions go: stops a VM now and then while a load runs, and looks where it is.

    bench.sh profile LOAD SUBJECT [--size MIB] [--samples N]

For development. Runs inside the build chroot. A sample is the kernel's function that runs, and those that seem to be
on its stack (words that point behind a call: a few may be left from before).
"""

import argparse
import bisect
import collections
import os
import random
import re
import socket
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../../scripts")]
import vm  # noqa: E402

STACK = 1024


class Debugger:
    """As much of gdb's protocol as this needs."""

    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.buf = b""
        self.ask(b"?")

    def ask(self, packet):
        self.send(packet)
        return self.reply()

    def send(self, packet):
        self.s.sendall(b"$" + packet + b"#" + b"%02x" % (sum(packet) & 255))

    def reply(self):
        while True:
            m = re.search(rb"\$([^#]*)#..", self.buf)
            if m:
                self.buf = self.buf[m.end():]
                self.s.sendall(b"+")
                return m[1]
            more = self.s.recv(65536)
            if not more:
                raise EOFError
            self.buf += more

    def go(self):
        self.send(b"c")

    def stop(self):
        self.s.sendall(b"\x03")
        self.reply()

    def look(self):
        regs = bytes.fromhex(self.ask(b"g").decode().replace("x", "0"))
        rip, rsp = (int.from_bytes(regs[8 * n:8 * n + 8], "little") for n in (16, 7))
        words = []
        if rip >> 63:
            # Less where the stack ends before.
            for size in (STACK, STACK // 4, 8):
                text = self.ask(b"m%x,%x" % (rsp, size)).decode()
                if not text.startswith("E"):
                    data = bytes.fromhex(text)
                    words = [int.from_bytes(data[i:i + 8], "little") for i in range(0, len(data) - 7, 8)]
                    break
        return rip, words


class Symbols:
    def __init__(self, lines):
        found = []
        for line in lines:
            parts = line.split()
            if len(parts) >= 3 and parts[1] in "tTwW":
                found.append((int(parts[0], 16), parts[2] + (" " + parts[3] if len(parts) > 3 else "")))
        found.sort()
        self.at, self.names = [a for a, _ in found], [n for _, n in found]

    def name(self, address):
        i = bisect.bisect_right(self.at, address) - 1
        if i < 0 or address - self.at[i] > 65536:
            return None
        return self.names[i]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default=f"{vm.TOP}/target/vm-bin")
    p.add_argument("--size", type=int, default=32)
    p.add_argument("--samples", type=int, default=2000)
    p.add_argument("load")
    p.add_argument("subject")
    o = p.parse_args()
    where = os.path.join(tempfile.mkdtemp(), "gdb")
    needs = f"cpus=1 mem={700 + 3 * (o.size * 3 + 64)}M icount=1 append=tsc=reliable+nokaslr"
    command = f"BY=instructions FILE_MIB={o.size} bash /t/bench/profile {o.load} {o.subject}"
    machine = vm.Vm(needs, command, o.bin, timeout=3000)
    argv = machine.argv
    machine.argv = lambda: argv() + ["-gdb", f"unix:{where},server=on,wait=off"]
    state = {"on": False, "end": False}
    samples = []

    def sample():
        while not state["on"] and not state["end"]:
            time.sleep(0.005)
        try:
            d = Debugger(where)
            while state["on"] and len(samples) < o.samples:
                d.go()
                time.sleep(random.uniform(0.002, 0.02))
                d.stop()
                samples.append(d.look())
            d.send(b"D")
        except (EOFError, OSError) as e:
            vm.say(f"note: {e}")

    def show(line):
        vm.say(line)
        if line.startswith("profile-"):
            state["on"] = line == "profile-start"

    t = threading.Thread(target=sample)
    t.start()
    status = machine.run(show)
    state["on"], state["end"] = False, True
    t.join()
    with open(os.path.join(machine.results, "kallsyms"), encoding="utf-8") as f:
        symbols = Symbols(f)
    machine.clean()
    own, within = collections.Counter(), collections.Counter()
    busy = 0
    for rip, words in samples:
        if not rip >> 63:
            own["(user space: fio, and what counts idle time)"] += 1
            continue
        busy += 1
        me = symbols.name(rip) or hex(rip)
        own[me] += 1
        within.update({me} | {n for n in map(symbols.name, words) if n})
    vm.say(f"{len(samples)} samples, {busy} in the kernel")
    for title, counter in (("here", own), ("here or in what it calls", within)):
        vm.say(f"\n{title}:")
        for name, n in counter.most_common(70):
            vm.say(f"{100 * n / max(1, busy):6.1f} %  {name}")
    sys.exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    main()
