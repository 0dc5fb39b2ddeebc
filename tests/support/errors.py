# SPDX-License-Identifier: Apache-2.0
"""Programs that die of errors that are told from one another, compiled as a test asks for, and the reports of their deaths."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.crash import HERE, crash
from tests.unit.test_snapshot import report_of

_C = ("-g", "-O1", "-w", "-pthread", "-fstack-protector-strong")
_COMPILERS = {
    ".c": ("gcc", *_C),
    ".cc": ("g++", *_C),
    ".go": ("go", "build"),
    ".rs": ("rustc", "--edition", "2021", "-g", "-C", "panic=abort"),
}


def compiled(
    directory: Path, source: str, *options: str, before: str = "", name: str = "errors", compiler: str = ""
) -> Path:
    """Compile a program of tests/crash/programs with further options, and with `before` in front of its text."""
    suffix = Path(source).suffix
    usual, *flags = _COMPILERS[suffix]
    compiler = compiler or usual
    path = shutil.which(compiler, path=os.pathsep.join((os.environ["PATH"], os.path.expanduser("~/.cargo/bin"))))
    if path is None:
        pytest.skip(f"{compiler} is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / f"{name}{suffix}"
    text.write_text(before + (HERE / "programs" / source).read_text())
    program = directory / name
    argv = [path, *flags, *options, "-o", str(program), str(text)]
    environment = {**os.environ, "GO111MODULE": "off", "GOFLAGS": "", "CGO_ENABLED": "0"}
    subprocess.run(argv, check=True, cwd=directory, env=environment)
    return program


def report(program: Path, *arguments: str) -> dict[str, Any]:
    """Return the report of a program's death. What it writes on standard error is not for whoever runs the tests."""
    silent = ("/bin/sh", "-c", 'exec "$@" 2> /dev/null', "sh")
    with crash([*silent, program, *arguments]) as crashed:
        return report_of(crashed.core)


def functions(found: dict[str, Any]) -> list[str]:
    """Return the names of the faulting thread's frames."""
    return [frame.get("funcName", "") for frame in found["threads"][found["mainThread"]]["stack"]]
