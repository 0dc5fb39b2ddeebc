# SPDX-License-Identifier: Apache-2.0
"""How long a crashed process waits for archive's first read, evidence and all: against an interpreter's bare start."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import cores
from tests.bench.pairs import Figure, alternate, judge
from tests.bench.pipe import WatchedPipe
from tests.bench.programs import Unmeasurable, python, run, start
from tests.bench.spool import Spool
from tests.bench.watch import IN_ACCESS

MEASURE = "start of archive to its first byte read, one thread, 100 maps"
PEER = "`python3 -IS -c pass`"
BAR = f"≤ 4 × {PEER}"
_MAPS = 100
#: Neighbouring mappings of the same protection would be merged into one.
_VICTIM = f"""
import mmap, sys
kept = []
while sum(1 for _ in open("/proc/self/maps")) < {_MAPS}:
    protection = mmap.PROT_READ | len(kept) % 2 * mmap.PROT_WRITE
    kept.append(mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection))
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def _victim() -> Iterator[int]:
    """Give the number of a live process of one thread and `_MAPS` mappings, which stands for the held one."""
    stdin, keep_fd = os.pipe()
    ready_fd, stdout = os.pipe()
    victim = start(python("-IS", "-c", _VICTIM), stdin=stdin, stdout=stdout)
    os.close(stdin)
    os.close(stdout)
    try:
        os.read(ready_fd, 1)
        maps = Path(f"/proc/{victim.pid}/maps").read_bytes().count(b"\n")
        if maps != _MAPS:
            raise Unmeasurable(f"the victim has {maps} mappings, {_MAPS} expected")
        yield victim.pid
    finally:
        os.close(keep_fd)
        os.close(ready_fd)
        victim.wait()


def measure(work: Path, runs: int) -> list[Figure]:
    """Return the figure. Raises Unmeasurable."""
    spool = Spool.make(work / "first-read")
    with cores.small() as crashed, _victim() as pid:
        arguments = [str(pid), str(pid), str(os.getuid()), str(os.getgid()), "11", str(int(time.time()))]
        command = spool.archive(*arguments, "0", "1", "", sys.executable.replace("/", "!"))

        def first_read() -> int:
            with WatchedPipe(work, IN_ACCESS) as pipe:
                feeder = pipe.feed(crashed.core)  # as the kernel does: the core waits in the pipe before archive runs
                program = start(command, stdin=pipe.read_fd)
                pipe.let_go()
                read_usec = (pipe.event_nsec() - program.started_nsec) // 1000
            program.wait()
            feeder.wait()
            return read_usec

        pairs = alternate(runs, first_read, lambda: run(python("-IS", "-c", "pass")).wall_usec)
    return [judge(MEASURE, PEER, 4, pairs, pairs.detail("archive's first read", "the interpreter's whole life"))]
