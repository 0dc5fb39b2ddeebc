# SPDX-License-Identifier: Apache-2.0
"""The program counters and registers of all frames of a core, as gdb has them: inlined ones and tail calls are left out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

_SCRIPT = """
import json
stacks = {}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frame, found = gdb.newest_frame(), []
    while frame is not None and len(found) < FRAMES_MAX:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            found.append(WHAT)
        try:
            frame = frame.older()
        except gdb.error:
            break
    stacks[thread.ptid[1] or thread.ptid[0]] = found
print("stacks:" + json.dumps(stacks))
"""


_NAMES = "rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip"


def _known(text: str) -> int | None:
    return int(text, 0) & (1 << 64) - 1 if text.lstrip("-").isdigit() else None


def registers(core: Path, exe: str | Path) -> dict[int, list[dict[str, int]]]:
    """Return the registers that are known in each frame, by thread."""
    what = "{n: (lambda v: '' if v.is_optimized_out else str(v.cast(gdb.lookup_type('long'))))(frame.read_register(n)) "
    what += f"for n in {_NAMES!r}.split()}}"
    found = _asked(core, exe, what, 2000)
    return {
        tid: [{name: value for name, text in frame.items() if (value := _known(text)) is not None} for frame in frames]
        for tid, frames in found.items()
    }


def stacks(core: Path, exe: str | Path, *, frames_max: int = 2000) -> dict[int, list[int]]:
    """Return the program counters by thread, innermost first."""
    return _asked(core, exe, "frame.pc()", frames_max)


def _asked(core: Path, exe: str | Path, what: str, frames_max: int) -> dict[int, Any]:
    """Return what an expression gives of each frame, by thread."""
    argv = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"]
    argv += ["-ex", "set backtrace past-main on", "-ex", "set backtrace limit unlimited"]
    script = _SCRIPT.replace("FRAMES_MAX", str(frames_max)).replace("WHAT", what)
    argv += ["-ex", f"python exec({script!r})", str(exe), str(core)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("stacks:")]
    return {int(tid): found for tid, found in json.loads(line.removeprefix("stacks:")).items()}
