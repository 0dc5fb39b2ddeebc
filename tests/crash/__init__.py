# SPDX-License-Identifier: Apache-2.0
"""Real crashes for tests and the demo, without a change to any setting of the machine.

A process is run under a tracer (hold.py). Where the kernel writes cores to plain files, it writes this one, and the tracer
holds the process at the very end of its life, when its core is written and /proc still tells of it. Where the machine hands
its cores to a program, gdb writes the core of the process at the moment of its death instead (in_gdb.py).
"""

from __future__ import annotations

import hashlib
import json
import os
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
    rlimit_core: int
    time: int
    exe: str
    core: Path
    origin: str
    said: dict[str, Any]

    def core_pattern(self) -> list[str]:
        """Return what a kernel that gives no pidfd would give archive for %P %I %u %g %s %t %c %d %F %E."""
        numbers = [self.pid, self.tid, self.uid, self.gid, self.signal, self.time, self.rlimit_core, 1]
        return [*map(str, numbers), "", self.exe.replace("/", "!")]


def build(name: str, *flags: str, compiler: str = "gcc") -> Path:
    """Compile one of the crash programs, once for each set of flags. Raises FileNotFoundError where there is no compiler."""
    source = HERE / "programs" / f"{name}.c"
    # By content: times lie where a tree was copied.
    made_of = source.read_bytes() + "\0".join((compiler, *flags) if flags or compiler != "gcc" else ()).encode()
    program = _PROGRAMS / hashlib.sha256(made_of).hexdigest()[:12] / name
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as directory:
            made = Path(directory) / name
            argv = [compiler, "-g", "-O1", "-Wall", "-Werror", *flags, "-pthread", "-o", str(made), str(source)]
            subprocess.run(argv, check=True)
            made.replace(program)  # whole or not there, for whoever builds it at this moment as well
    return program


def victim() -> list[str]:
    """Return the start of a command that takes `null [THREADS]`: the program in C, or in Python without a compiler."""
    try:
        return [str(build("crash"))]
    except FileNotFoundError:
        return [sys.executable, str(HERE / "programs" / "crash.py")]


@contextmanager
def crash(argv: Sequence[str | Path], *, origin: str = "", seconds: float = 60) -> Iterator[Crash]:
    """Run a program, by its full path, until it dies of a signal that dumps core; hold it as long as the context lasts.

    `origin` forces kernel or gdb. Raises RuntimeError where the program does not die, or not within `seconds`; it has been
    killed then. The core and its directory go with the context.
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
                yield Crash(**{**told, "core": Path(told["core"])}, said=_said(os.path.join(directory, "output")))
            finally:
                process.stdin.close()
                process.wait()


def _said(output: str) -> dict[str, Any]:
    """Return the JSON object with which the program's output begins, if it does."""
    with open(output, encoding="utf-8", errors="replace") as file:
        line = file.readline()
    said = json.loads(line) if line.startswith("{") else {}
    assert isinstance(said, dict)
    return said
