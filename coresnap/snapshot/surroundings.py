# SPDX-License-Identifier: Apache-2.0
"""What is around the crash: the memory at each thread's stack pointer, and the environment as far as it is allowed."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence

from coresnap.snapshot.core import Core
from coresnap.snapshot.notes import Thread

#: What a function may use below its stack pointer (System V ABI, x86-64: the red zone).
RED_ZONE_BYTES = 128
#: What all of it may take of the report.
MEMORY_MAX_BYTES = 8 << 20
_GUARD_BYTES = 64 << 10
_VARIABLES_MAX = 1000
_NAME_MAX, _VALUE_MAX = 256, 4096


def stack_memory(core: Core, threads: Iterable[Thread], size_bytes: int) -> Iterator[bytes]:
    """Yield an encoded region for each thread: its red zone, and the stack from its pointer up, `size_bytes` in all.

    Where a stack was full its pointer is in the guard below: what there is of the stack then begins a little further up.
    """
    for thread in threads:
        pointer = thread.stack_pointer
        start = max(0, pointer - min(RED_ZONE_BYTES, size_bytes // 2))
        data = core.memory.read(start, size_bytes)
        if not data:
            bottom = core.memory.next_after(start)
            start = bottom if bottom is not None and bottom - start <= _GUARD_BYTES else pointer
            data = core.memory.read(start, size_bytes)
        if data:
            text = base64.b64encode(data)
            yield b'{"start":"%d","size":%d,"data":"%b"}' % (start, len(data), text)


def environment(asset: dict[str, bytes], allowed: Sequence[str]) -> dict[str, str]:
    """Return the variables whose names are allowed; an asterisk at the end stands for any rest. proc(5): environ."""
    exact = {name for name in allowed if not name.endswith("*")}
    beginnings = tuple(name[:-1] for name in allowed if name.endswith("*"))
    result: dict[str, str] = {}
    for item in asset.get("proc/environ", b"").split(b"\0", _VARIABLES_MAX)[:_VARIABLES_MAX]:
        name, equals, value = item.decode("utf-8", "replace").partition("=")
        if equals and name and len(name) <= _NAME_MAX and (name in exact or name.startswith(beginnings)):
            result.setdefault(name, value[:_VALUE_MAX])
    return result
