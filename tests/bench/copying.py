# SPDX-License-Identifier: Apache-2.0
"""A large core through a pipe, until it is drained: archive against `cat > file`. Archive's memory and blocks on disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import cores
from tests.bench.pairs import Figure, Pairs, Spread, alternate, judge, verdict
from tests.bench.pipe import WatchedPipe
from tests.bench.programs import Program, Unmeasurable, Usage, start
from tests.bench.spool import Spool
from tests.bench.watch import IN_CLOSE_NOWRITE

MEASURE = "archive, 1.2 GB core with 44% non-zero pages, until the pipe is drained"
BAR = "≤ 1.2 × `cat > file`"
_MEMORY_MAX_BYTES = 40 << 20
_BLOCKS_MAX = 1.01
_NEED_BYTES = 2500 << 20


@dataclass
class _Copying:
    work: Path
    core: Path
    spool: Spool
    ours: list[Usage] = field(default_factory=list)
    peer: list[Usage] = field(default_factory=list)
    blocks_bytes: list[int] = field(default_factory=list)

    def archive(self) -> int:
        """Have archive take the core; return the microseconds until it closed the pipe."""
        drained_usec, program = self._drain(self.spool.archive(), None)
        self.ours.append(program.wait())
        dump = self.spool.only_dump("pending")
        self.blocks_bytes.append((dump / "core").stat().st_blocks * 512)
        shutil.rmtree(dump)
        os.sync()
        return drained_usec

    def cat(self) -> int:
        """Have cat take the core; return the microseconds until it closed the pipe."""
        target = self.work / "copy"
        with target.open("wb") as file:
            drained_usec, program = self._drain(["/bin/cat"], file.fileno())
        self.peer.append(program.wait())
        target.unlink()
        os.sync()
        return drained_usec

    def _drain(self, argv: list[str], stdout: int | None) -> tuple[int, Program]:
        with WatchedPipe(self.work, IN_CLOSE_NOWRITE) as pipe:
            program = start(argv, stdin=pipe.read_fd, stdout=stdout)
            feeder = pipe.feed(self.core)
            pipe.let_go()
            drained_usec = (pipe.event_nsec() - program.started_nsec) // 1000
        feeder.wait()
        return drained_usec, program


def measure(work: Path, runs: int) -> list[Figure]:
    """Return the three figures. Raises Unmeasurable."""
    free_bytes = shutil.disk_usage(work).free
    if free_bytes < _NEED_BYTES:
        raise Unmeasurable(f"{work} has {free_bytes >> 20} MB free, {_NEED_BYTES >> 20} MB are needed: set TMPDIR")
    core = work / "core"
    cores.large(core)
    size_bytes, page_bytes = core.stat().st_size, cores.nonzero_page_bytes(core)
    os.sync()
    copying = _Copying(work, core, Spool.make(work / "copying"))
    pairs = alternate(runs, copying.archive, copying.cat)
    core.unlink()
    about = f"{size_bytes / 1e9:.2f} GB, {100 * page_bytes / size_bytes:.0f}% non-zero; "
    return [judge(MEASURE, "`cat > file`", 1.2, pairs, about + _detail(copying, pairs)), *_sizes(copying, page_bytes)]


def _detail(copying: _Copying, pairs: Pairs) -> str:
    def whole(name: str, usages: list[Usage]) -> str:
        wall, user, system = (
            Spread.of([getattr(usage, f"{kind}_usec") / 1000 for usage in usages[1:]]).median
            for kind in ("wall", "user", "system")
        )
        return f"{name} {wall:.0f} ms wall, {user:.0f} user, {system:.0f} system"

    drained = pairs.detail("archive", "cat")
    return f"{drained}; whole process: {whole('archive (with its fsync)', copying.ours)}; {whole('cat', copying.peer)}"


def _sizes(copying: _Copying, page_bytes: int) -> list[Figure]:
    memory = Spread.of([usage.maxrss_bytes / 2**20 for usage in copying.ours])
    blocks = Spread.of([taken_bytes / page_bytes for taken_bytes in copying.blocks_bytes])
    met = memory.high <= _MEMORY_MAX_BYTES / 2**20
    return [
        Figure("its memory", f"≤ {_MEMORY_MAX_BYTES >> 20} MB", verdict(met), f"{memory} MB", "largest resident set"),
        Figure(
            "its blocks on disk",
            "≤ non-zero pages + 1%",
            verdict(blocks.high <= _BLOCKS_MAX),
            f"{100 * (blocks.median - 1):+.2f}%",
            f"{copying.blocks_bytes[-1] / 1e6:.1f} MB of blocks for {page_bytes / 1e6:.1f} MB of non-zero pages",
        ),
    ]
