# SPDX-License-Identifier: GPL-2.0-only
"""The words of docs/benchmarks/README.md."""

# What bounds a figure that misses its target. Shown only where it does. The key may name the way of measuring.
MARKS = ("the look at every write: entering it in the map of changes, asking for its region's mark and for the COW file's "
         "place; how many instructions that is stands in the second table above")
READ = ("each write needs a read of the old data before it: a second request through the block layer, the hand-over from its "
        "completion to a work item and back to the writer, a place in the index, and its share of a large write of copies")
# Shares by single steps through 467 writes (every instruction of that VM logged), against the bare device's 477, when the
# worker had high priority: 18100 were added, 6000 of them for two switches. Now there are 1.3 switches (/proc/stat).
STEPS = ("some 15000 instructions are added to 13600. Some 3500 of them are switches between tasks and the work queue, 1.3 for each "
         "write: a write that waited can only be handed on by a task, and with disks that answer after ten microseconds most "
         "completions find one or two waiting. 2600 move data in this VM's memory, which a disk does by itself: the old "
         "data from the disk, and to the COW file. 4500 are the second request: the block layer, its interrupt, its timer. "
         "2600 are our own code. If that cost nothing, 0.52; if nobody were switched to either, 0.60. dm-snapshot gets there "
         "with chunks of 64 KiB because this load overwrites all sixteen blocks of each: one copy for sixteen writes. "
         "Waking the task for eight completions at a time was tried: there are not eight, and no figure changed")
# By fio: usr_cpu and sys_cpu of the nine samples each, 99 to 100 % and 97 to 99 %.
SUBMITTER = ("the program that writes keeps its CPU busy all the time, with the bare device too (99 %, by fio): what "
             "counts is what is added on that CPU. 0.75 leaves a third of a bare write for it. An estimate with the "
             "instructions counted in the other VM: the second request, which the read of the old data is, takes all "
             "of that third by its submission and interrupt (4500 of a bare write's 13600). Of our own 2600 the half "
             "before the read runs there, too: 0.70. Hand-over, index and copies are the other CPU's, which shares "
             "the host's two with the work of the disk")
BIO = ("each read is cloned, and the clone goes through the block layer once more: some 1600 instructions are added to 11700, as "
       "many as dm-snapshot adds (1730). 0.95 leaves 600 for the second way through submission and completion, for the clone, "
       "and for the look at the maps before and after")
BOUNDS = {
    ("randwrite-qd1", "incremental"): MARKS,
    ("randwrite-qd32", "incremental"): MARKS,
    ("seqwrite", "incremental"): MARKS,
    ("randwrite-qd1", "snapshot-rewrite"): MARKS + "; and whether the old data is preserved",
    ("randwrite-qd32", "snapshot-rewrite"): MARKS + "; and whether the old data is preserved",
    ("seqwrite", "snapshot-rewrite"): MARKS + "; and whether the old data is preserved",
    ("randwrite-qd1", "snapshot-first"): READ,
    ("randwrite-qd32", "snapshot-first"): READ,
    ("randwrite-qd32", "snapshot-first", "wall"): SUBMITTER,
    ("randwrite-qd32", "snapshot-first", "instructions"): STEPS,
    ("seqwrite", "snapshot-first"): "three times the data is moved: read, copied and written, all by one VM's CPUs",
    ("snapread-rand", "snapshot-first"): BIO,
    ("snapread-seq", "snapshot-first"): BIO,
    ("snapread-seq-half", "snapshot-first"): BIO,
}

README = """# Benchmarks

Made by `make bench`; do not edit. Figures as data: `latest.json`. A ratio is what the bare device takes, measured just
before and just after in the same VM, divided by what the subject takes: 1.00 is as fast as the bare device, 0.50 half as fast.

| | |
|---|---|
{facts}

## By instructions

![ratios](ratios.svg)

What the processor has to do for a request, all of it: submitter, work items, interrupts, copies until they are
drained. Repeatable to a few tenths of a percent, whatever else the host does.

{instructions}

In instructions for each request, what is added to the bare device's (those are in a table further down):

{more}

## By the clock of the VM that counts instructions

The time that the same measurements took there: one CPU that executes an instruction each nanosecond, disks that answer after ten
microseconds. Other than the wall time below it repeats itself.

{clock}

## By wall time

{wall}

Median of the repetitions, least and greatest in brackets where they differ. **Bold**: the target is missed. A `?`: in some repetition
the bare device differed by more than 15 % before and after, however often it was tried: the host was busy with something else.

## Targets that are missed

{misses}

## Latency of writes

p50 / p99 / p99.9 in microseconds, wall time, medians of the repetitions.

{latencies}
{extras}
## The bare device

| load | microseconds a request | instructions a request |
|---|---|---|
{bare}

## Method

* **Loads**, by fio, direct I/O, on a file of ext4 (4 KiB blocks) that was written once before: `randwrite-qd1` and
  `randwrite-qd32` (4 KiB), `seqwrite` (1 MiB, four under way), `randread` (4 KiB, 32 under way), all of which touch each block of
  the file once. Sequential ones have a file of 128 MiB, our writes by wall time one of 512 MiB (128 with `QUICK=1`), and buffers of
  zeros: as much as the other loads write takes them no longer than fio takes to start. `snapread-seq` (1 MiB, four under way) and `snapread-rand` (4 KiB, 32 under way) read the snapshot
  device where the file lies, with nothing changed; `snapread-seq-half` with every other MiB changed,
  `snapread-seq-every-other` with every other block changed. These are compared with reads of the same part of the bare device.
* **Subjects.** `incremental`: tracked, no snapshot. `snapshot-first`: first overwrites of a snapshot just taken; for
  reads, a snapshot with nothing (or what the load says) overwritten. `snapshot-rewrite`: blocks whose old data is preserved
  already. The crash-safe log is on. Regions are marked: each region of 4 MiB is touched before a load; the first touch is a row of its own.
  `dm-snapshot-4k`, `dm-snapshot-64k`: persistent, chunks of 4 and 64 KiB, copies on a second disk. `dm-thin`: a thin volume with a
  snapshot, blocks of 64 KiB, metadata on a second disk. `dm-era`: blocks of 4 KiB, metadata on a second disk. Writes to them are
  first ones: of a new snapshot, in a new era. A load touches every block of the file in the end, which suits large chunks: one
  copy of 64 KiB then serves sixteen random writes.
* **Bare device**: the same filesystem and file, the module not loaded, no device mapper. What was measured between two of
  its measurements that differ by more than 15 % is repeated, twice at most. By wall time each repetition measures `engine`'s and
  `reads`' loads three times, the bare device in between: one of them says little, as bare ones differ by 5 %, too.
* **Disks are in memory**, as first overwrites turn one write into a read and two writes: the ratios only mean something when a read
  costs no more than a write.
  *By wall time* they are virtio disks whose images lie in the host's memory, allocated beforehand, so that the disk's
  work is not the VM's. First overwrites by `seqwrite` are timed until the last copy is in the COW file.
  *By instructions* they are those of `tests/kmod/dbd_benchdisk.c`: a request completes by an interrupt, 10 microseconds (and 0.1 for
  each KiB) later. A real disk moves the data itself, so what that driver takes for moving data is taken off.
* **Instructions** are counted by QEMU (`-icount shift=0,sleep=off`): one CPU, one instruction each nanosecond. A process
  that runs only when nothing else wants to counts the time that nobody uses, exact to some ten instructions for each interruption
  (`tests/tools/src/clock.rs`). Everything else counts, until the last copy is in the COW file. fio's start and end do not.
* **One VM** has the bare device and the subjects side by side. Each repetition is a new boot.

Left out, as they have no meaning:

| load | subject | reason |
|---|---|---|
{left}
"""
