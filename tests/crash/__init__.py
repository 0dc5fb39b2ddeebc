# SPDX-License-Identifier: Apache-2.0
"""Real crashes for tests and the demo, without a change to any setting of the machine.

A process is run under a tracer (hold.py). Where the kernel writes cores to plain files, it writes this one, and the tracer
holds the process at the very end of its life, when its core is written and /proc still tells of it. Where the machine hands
its cores to a program, gdb writes the core of the process at the moment of its death instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
_PROGRAMS = REPOSITORY / "build" / "crash"


@dataclass(frozen=True)
class Crash:
    """A process that has crashed and is held. `said` is what it printed before; `origin` is kernel or gdb."""

    pid: int
    tid: int
    uid: int
    gid: int
    signal: int
    time: int
    exe: str
    core: Path
    origin: str
    said: dict[str, Any]

    def core_pattern(self) -> list[str]:
        """Return what a kernel would give archive for %P %I %u %g %s %t %c %d %F %E."""
        numbers = [self.pid, self.tid, self.uid, self.gid, self.signal, self.time, 2**64 - 1, 1]
        return [*map(str, numbers), "", self.exe.replace("/", "!")]


def build(name: str) -> Path:
    """Compile one of the crash programs, once."""
    source, program = HERE / "programs" / f"{name}.c", _PROGRAMS / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        _PROGRAMS.mkdir(parents=True, exist_ok=True)
        argv = ["gcc", "-g", "-O1", "-Wall", "-Werror", "-pthread", "-o", str(program), str(source)]
        subprocess.run(argv, check=True)
    return program


@contextmanager
def crash(argv: Sequence[str | Path], *, origin: str = "", seconds: float = 60) -> Iterator[Crash]:
    """Run a program until it dies of a signal that dumps core; hold it for as long as the context lasts.

    `origin` forces kernel or gdb. Raises RuntimeError where the program does not die, or not within `seconds`.
    """
    with tempfile.TemporaryDirectory(prefix="coresnap-crash-") as directory:
        tracer = [sys.executable, str(HERE / "hold.py"), origin or "auto", str(seconds), directory, *map(str, argv)]
        with subprocess.Popen(tracer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                told = json.loads(line) if line else {"error": "the tracer died"}
                if "error" in told:
                    raise RuntimeError(told["error"])
                output = (Path(directory) / "output").read_text()
                said = json.loads(output) if output.startswith("{") else {}
                yield Crash(**{**told, "core": Path(told["core"])}, said=said)
            finally:
                process.stdin.close()
                process.wait()
