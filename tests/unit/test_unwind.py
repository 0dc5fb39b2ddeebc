# SPDX-License-Identifier: Apache-2.0
"""Stacks of real crashes, held against gdb's, thread by thread and frame by frame."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coresnap.snapshot.core import Core, open_core
from coresnap.snapshot.images import Images
from coresnap.snapshot.modules import list_modules
from coresnap.snapshot.stacks import End, Found, Stack
from coresnap.snapshot.unwind.unwinder import Unwinder
from coresnap.snapshot.unwind.walk import Limits
from tests.crash import build, crash
from tests.support import gdb_stacks


@contextmanager
def opened(path: Path) -> Iterator[Core]:
    """Open a core."""
    with path.open("rb") as file:
        yield open_core(file.fileno())


def unwound(path: Path, limits: Limits | None = None) -> dict[int, Stack]:
    """Return the stacks of a core by thread."""
    with opened(path) as core:
        images = Images(core, {})
        unwinder = Unwinder(core, list_modules(core), images, limits)
        found = {thread.tid: unwinder.stack(thread) for thread in core.notes.threads}
        images.close()
    return found


def addresses(stacks: dict[int, Stack]) -> dict[int, list[int]]:
    """Return the program counters by thread."""
    return {tid: [frame.address for frame in stack.frames] for tid, stack in stacks.items()}


@pytest.mark.parametrize("mode", ["segv", "abort", "caught", "ill", "fpe"])
@pytest.mark.parametrize("origin", ["auto", "gdb"])
def test_stacks_are_gdbs(tmp_path: Path, mode: str, origin: str) -> None:
    core = tmp_path / "core"
    with crash([build("crash"), mode, "5"], origin=origin) as crashed:
        shutil.copyfile(crashed.core, core)
        theirs = gdb_stacks.stacks(core, crashed.exe)
    ours = unwound(core)
    assert addresses(ours) == theirs
    assert {stack.end for stack in ours.values()} == {End.BOTTOM}
    for stack in ours.values():
        assert stack.frames[0].found is Found.REGISTERS
        assert {frame.found for frame in stack.frames[1:]} == {Found.CFI}
