# SPDX-License-Identifier: Apache-2.0
"""coresnap-snapshot against gdb and eu-stack, on the same core and in turns: whole processes, their time and their memory.

gdb prints `thread apply all bt`, with debuginfod and auto-load off; all three look for debug files in the same places.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import crash
from tests.bench import cores
from tests.bench.pairs import Figure, Pairs, Spread, alternate, judge, verdict
from tests.bench.programs import Unmeasurable, Usage, python, run
from tests.bench.spool import REPOSITORY

LARGE = "coresnap-snapshot, 1 GB core, 21 threads"
THREADS = "coresnap-snapshot, 1,500 threads"
BAR = "≤ 0.35 × `gdb -batch`"
_LARGE = ("segv", "21", "1000")
_THREADS = ("segv", "1500")
_TIME_MOST, _MEMORY_MOST, _EU_MOST = 0.35, 0.5, 0.5
_NEED_BYTES = 1500 << 20
_SETTINGS = ("set debuginfod enabled off", "set auto-load off")


@dataclass(frozen=True)
class _Tools:
    """The commands that are measured, on one core."""

    ours: list[str]
    gdb: list[str]
    eu_stack: list[str]


def large(work: Path, runs: int) -> list[Figure]:
    """Return time and memory on a large core. Raises Unmeasurable."""
    if shutil.disk_usage(work).free < _NEED_BYTES:
        raise Unmeasurable(f"{work} has less than {_NEED_BYTES >> 20} MB free: set TMPDIR")
    tools = _tools(work, _LARGE)
    pairs, memory = _against(runs, tools.ours, tools.gdb, 0)
    time = judge(LARGE, "`gdb -batch`", _TIME_MOST, pairs, pairs.detail("coresnap-snapshot", "gdb"))
    ratio = Spread.of([ours / peer for ours, peer in memory])
    mib = [Spread.of([pair[side] / 2**20 for pair in memory]) for side in (0, 1)]
    kept = Figure(
        "its memory",
        f"≤ {_MEMORY_MOST:g} × gdb's",
        verdict(ratio.median <= _MEMORY_MOST),
        f"{ratio} ×",
        f"coresnap-snapshot {mib[0]} MB, gdb {mib[1]} MB: largest resident sets",
    )
    return [time, kept]


def threads(work: Path, runs: int) -> list[Figure]:
    """Return the time on a core of many threads, against both. Raises Unmeasurable."""
    tools = _tools(work, _THREADS)
    by_gdb, _memory = _against(runs, tools.ours, tools.gdb, 0)
    # eu-stack ends with 1 where one of the stacks could not be walked to its end.
    by_eu, _memory = _against(runs, tools.ours, tools.eu_stack, 0, 1)
    return [
        judge(THREADS, "`gdb -batch`", _TIME_MOST, by_gdb, by_gdb.detail("coresnap-snapshot", "gdb")),
        judge("the same", "`eu-stack`", _EU_MOST, by_eu, by_eu.detail("coresnap-snapshot", "eu-stack")),
    ]


def _tools(work: Path, arguments: tuple[str, ...]) -> _Tools:
    """Have the program die, and keep its core."""
    core = work / "core"
    with cores.held(*arguments) as victim:
        shutil.move(victim.core, core)
    program = str(crash.build("crash"))
    paths = {name: shutil.which(name) for name in ("gdb", "eu-stack")}
    gdb, eu_stack = paths["gdb"], paths["eu-stack"]
    if gdb is None or eu_stack is None:
        raise Unmeasurable(f"not installed: {', '.join(name for name, path in paths.items() if path is None)}")
    settings = [word for setting in _SETTINGS for word in ("-iex", setting)]
    return _Tools(
        python(
            "-I",
            str(REPOSITORY / "coresnap/take_snapshot.py"),
            "-o",
            str(work / "report"),
            "--core",
            str(core),
            program,
        ),
        [gdb, "-nx", "-batch", *settings, "-ex", "thread apply all bt", program, str(core)],
        [eu_stack, "-e", program, "--core", str(core)],
    )


def _against(runs: int, ours: list[str], peer: list[str], *statuses: int) -> tuple[Pairs, list[tuple[int, int]]]:
    """Measure both in turns; return their times, and pairs of their largest resident sets in bytes."""
    usages: dict[str, list[Usage]] = {"ours": [], "peer": []}

    def measured(side: str, argv: list[str], *statuses: int) -> Callable[[], int]:
        def once() -> int:
            usages[side].append(run(argv, *statuses))
            return usages[side][-1].wall_usec

        return once

    pairs = alternate(runs, measured("ours", ours, 0), measured("peer", peer, *statuses))
    memory = [(a.maxrss_bytes, b.maxrss_bytes) for a, b in zip(usages["ours"], usages["peer"], strict=True)]
    return pairs, memory[1:]
