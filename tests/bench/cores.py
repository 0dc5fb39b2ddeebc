# SPDX-License-Identifier: Apache-2.0
"""The cores that are measured with, all of real crashes: a large one, mostly of untouched memory, and a small one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests import crash
from tests.bench.programs import Unmeasurable

#: What the crashing program takes for a core of 1.2 GB; it touches 44% of it.
_LARGE_MIB = 1144
_SMALL_THREADS = 4
_BLOCK_BYTES = 1 << 20
_PAGE_BYTES = 4096


def large(core: Path) -> None:
    """Have a program of one thread die, and leave its core of 1.2 GB in the file `core`. Raises Unmeasurable."""
    with held("null", "1", str(_LARGE_MIB)) as victim:
        victim.core.rename(core)


@contextmanager
def small() -> Iterator[crash.Crash]:
    """Have a small program of a few threads die, and hold it. Raises Unmeasurable."""
    with held("segv", str(_SMALL_THREADS)) as victim:
        yield victim


@contextmanager
def held(*arguments: str) -> Iterator[crash.Crash]:
    """Have the program die as these arguments of it say, and hold it. Raises Unmeasurable."""
    with ExitStack() as stack:
        try:
            victim = stack.enter_context(crash.crash([crash.build("crash"), *arguments]))
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            raise Unmeasurable(f"no core of a real crash: {error}") from error
        yield victim


def nonzero_page_bytes(core: Path) -> int:
    """Return the size of the pages of a file that are not all zeros."""
    zero_block, zero_page = bytes(_BLOCK_BYTES), bytes(_PAGE_BYTES)
    found_bytes = 0
    with core.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            if block != zero_block:
                pages = (block[at : at + _PAGE_BYTES] for at in range(0, len(block), _PAGE_BYTES))
                found_bytes += _PAGE_BYTES * sum(not zero_page.startswith(page) for page in pages)
    return found_bytes
