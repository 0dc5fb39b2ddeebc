# SPDX-License-Identifier: Apache-2.0
"""The results as lines for a terminal; kept in docs/benchmarks.json, and docs/benchmarks.md written from all that is kept."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.pairs import Figure
from tests.bench.spool import REPOSITORY

_KEPT, _PAGE = REPOSITORY / "docs/benchmarks.json", REPOSITORY / "docs/benchmarks.md"

_NOISY = "the peer's own runs lie more than 1.5 × apart: this machine is noisy, and so is the ratio"


_HEAD = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by `make bench` from docs/benchmarks.json. -->
# Benchmarks

Each figure is a ratio to a peer in the same run: one warm-up of both, then pairs in turns, ours and the peer's. A figure
is the median of the pairs' ratios, with the least and the greatest in brackets; a time is a median of milliseconds with
the same. Times are wall time of whole processes by the monotonic clock unless something else is said. A measure is taken by
`tests/bench/run.py --only NAME --keep`, or with all others by `make bench`, which takes hours.

| measure | bar | figure | result | taken |
|---|---|---|---|---|"""
_DETAILS = "\n## In detail"
_MACHINE = "\n## The machine"
_METHOD = """
## How the figures are taken
* Cores are of real crashes. The large one comes from the page cache through a pipe that `cat` feeds; both copies go to the
  same file system, and each is removed and synced away before the next run. `cat` writes zeros, archive leaves holes.
* "Drained" is the moment at which the reader closed the pipe, when a crashed process would be let go; what archive does
  afterwards (fsync, record, rename) is in its wall time. First read and close are seen from outside, by inotify on a
  FIFO: see `tests/bench/pipe.py`.
* Memory is wait4(2)'s ru_maxrss; Linux counts it from the size of the program that started the process, the benchmark.
* The store of the waiting snapshots is a process of its own that speaks HTTP without TLS (`tests/support/lying_store.py`, which
  does not lie then); curl is started by a shell for each file. The sender's deliveries bring an asset, and are synced one by one.
* gdb is run as `gdb -nx -batch`, with debuginfod and auto-load off, for `thread apply all bt`; it, eu-stack and
  coresnap-snapshot read the same core from the page cache, and look for debug files in the same places.
* systemd-coredump is measured where it may own core_pattern, in a virtual machine without KVM, as its package leaves it. Both
  collectors are at work there with all that is theirs; core_pattern and core_pipe_limit go to and fro between them, and are
  read back after each turn. A turn begins when the machine is at rest. "Held" is the time from the signal to the moment at
  which the parent hears of the end. See `tests/bench/guests.py` and `tests/bench/guest/crashes.py`.
"""


def lines(figures: Sequence[Figure]) -> list[str]:
    """Return the results, two or three lines each."""
    text = []
    for figure in figures:
        text.append(f"{figure.result:8}{figure.measure}: {figure.figure} (bar: {figure.bar})")
        text.extend(f"        {note}" for note in _notes(figure))
    return text


def keep(name: str, figures: Sequence[Figure], work: Path, order: Sequence[str]) -> None:
    """Put a measure's figures in the place of those that were kept of it, and write the page. Raises OSError, ValueError.

    A measure that could not be taken leaves what was kept of it.
    """
    kept: dict[str, Any] = json.loads(_KEPT.read_text()) if _KEPT.exists() else {}
    if name in kept and all(figure.result == "not-run" for figure in figures):
        return
    day = time.strftime("%Y-%m-%d", time.gmtime())
    kept[name] = {"taken": day, "machine": _machine(work), "figures": [asdict(figure) for figure in figures]}
    kept = {name: kept[name] for name in order if name in kept}
    _KEPT.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    _PAGE.write_text(page(kept))


def page(kept: dict[str, Any]) -> str:
    """Return docs/benchmarks.md, from each measure's name, the day, the machine and the figures."""
    taken = [(one["taken"], Figure(**figure)) for one in kept.values() for figure in one["figures"]]
    rows = [f"| {figure.measure} | {figure.bar} | {figure.figure} | {figure.result} | {day} |" for day, figure in taken]
    details = [f"* {figure.measure}: {'; '.join(_notes(figure))}." for _day, figure in taken if _notes(figure)]
    machines = dict.fromkeys(f"* {'; '.join(one['machine'])}" for one in kept.values())
    return "\n".join((_HEAD, *rows, _DETAILS, *details, _MACHINE, *machines, _METHOD))


def _notes(figure: Figure) -> list[str]:
    return [note for note in (figure.detail, _NOISY if figure.noisy else "") if note]


def _machine(work: Path) -> list[str]:
    memory_kib = _field(Path("/proc/meminfo"), "MemTotal").split()[0]
    return [
        f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}",
        f"{len(os.sched_getaffinity(0))} × {_field(Path('/proc/cpuinfo'), 'model name')}",
        f"{int(memory_kib) / 2**20:.0f} GB of memory, temporary files on {_file_system(work)}",
        f"Python {platform.python_version()}",
    ]


def _field(path: Path, name: str) -> str:
    """Return the first value of a field in a file of /proc, where lines are `name : value`."""
    for line in path.read_text().splitlines():
        key, _colon, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds `path`: the longest mount point above it, proc_pid_mountinfo(5)."""
    best = ("", "unknown")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _dash, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        if path.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]
