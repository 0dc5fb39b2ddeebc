# SPDX-License-Identifier: Apache-2.0
"""Imports run strictly downwards, and little is imported while a process is held."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).parents[2] / "coresnap"
_DOMAINS = ("capture", "snapshot", "store", "host")
_LEVELS = {"ground": 0, "spool": 1, **dict.fromkeys(_DOMAINS, 2)}
#: What archive may have loaded when it hands a crash over, beside what the interpreter itself loads.
_HANDED_OVER = {
    *("coresnap", "coresnap.capture", "coresnap.capture.handover", "coresnap.capture.source"),
    *("coresnap.ground", "coresnap.ground.errors", "time", "_socket"),
}
#: What it may have loaded when it begins to copy a core by itself.
_HELD = _HANDED_OVER | {
    *("coresnap.capture.capture", "coresnap.capture.copy", "coresnap.capture.evidence", "coresnap.capture.policy"),
    "coresnap.capture.members",
    *("coresnap.capture.victim", "coresnap.ground.durable", "coresnap.ground.elf"),
    *(
        "coresnap.ground.asterisk",
        "coresnap.ground.flat",
        "coresnap.spool",
        "coresnap.spool.limits",
        "coresnap.spool.quota",
        "coresnap.spool.stages",
    ),
    *("_blake2", "errno", "fcntl", "select", "struct", "_struct", "time"),
}


def _modules() -> list[Path]:
    return sorted(_PACKAGE.rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Yield the modules of coresnap that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("coresnap"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coresnap"):
            for name in node.names:
                yield f"{node.module}.{name.name}"


def _room(module: str) -> str:
    """Return the room of a module: a folder of the package, or the program that it is."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _level(room: str) -> int:
    return _LEVELS.get(room, 3)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(_PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    room = path.relative_to(_PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for module in _imports(path):
        other = _room(module)
        if other in (room, "", "__version__"):
            continue
        assert _level(other) < _level(room), f"{path.name} ({room}) imports {module}"


@pytest.mark.parametrize(
    ("imports", "allowed"),
    [
        ("coresnap.archive, _socket", _HANDED_OVER),
        ("coresnap.archive, coresnap.capture.capture, coresnap.capture.victim, coresnap.ground.flat", _HELD),
    ],
)
def test_little_is_imported_while_a_process_is_held(imports: str, allowed: set[str]) -> None:
    """The lists are exact: a new import on this path is a decision."""
    program = (
        f"import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import {imports};"
        "print(*sorted(set(sys.modules) - before))"
    )
    argv = [sys.executable, "-IS", "-c", f"import os; {program}", str(_PACKAGE.parent)]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) - {"coresnap.archive"} <= allowed, sorted(set(loaded) - allowed)


def test_the_snapshot_starts_without_what_is_slow_to_import() -> None:
    """A snapshot of most cores takes no longer than its imports do. Data are named tuples there: dataclasses imports inspect."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import coresnap.take_snapshot; print(*sys.modules)"
    argv = [sys.executable, "-IS", "-c", program, str(_PACKAGE.parent)]  # what a virtual environment adds is not ours
    loaded = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    slow = {
        "dataclasses",
        "inspect",
        "subprocess",
        "tempfile",
        "ctypes",
        "lzma",
        "logging",
        "pathlib",
        "asyncio",
        "urllib",
    }
    assert not slow & loaded


def test_modules_fit_in_the_head() -> None:
    long = {str(path): count for path in _modules() if (count := len(path.read_text().splitlines())) > 350}
    assert not long


def test_only_the_runner_runs_programs() -> None:
    """The command line's debugger replaces the process, which is no child; nothing else starts a program."""
    users = {
        str(path.relative_to(_PACKAGE))
        for path in _modules()
        if any(
            word in path.read_text() for word in ("import subprocess", "os.exec", "os.spawn", "os.system", "os.popen")
        )
    }
    assert users <= {"ground/runner.py", "cli/debug.py"}


def test_only_the_stages_rename_dumps() -> None:
    users = {str(path.relative_to(_PACKAGE)) for path in _modules() if "durable.rename(" in path.read_text()}
    assert users == {"spool/stages.py"}
