# SPDX-License-Identifier: Apache-2.0
"""The program counters of all stacks of a core, as gdb has them: inlined frames and those of tail calls left out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

_SCRIPT = """
import json
stacks = {}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frame, found = gdb.newest_frame(), []
    while frame is not None and len(found) < FRAMES_MAX:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            found.append(frame.pc())
        try:
            frame = frame.older()
        except gdb.error:
            break
    stacks[thread.ptid[1] or thread.ptid[0]] = found
print("stacks:" + json.dumps(stacks))
"""


def stacks(core: Path, exe: str | Path, *, frames_max: int = 2000) -> dict[int, list[int]]:
    """Return the program counters by thread, innermost first."""
    argv = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"]
    argv += ["-ex", "set backtrace past-main on", "-ex", "set backtrace limit unlimited"]
    script = "python exec(" + repr(_SCRIPT.replace("FRAMES_MAX", str(frames_max))) + ")"
    done = subprocess.run(
        [*argv, "-ex", script, str(exe), str(core)], capture_output=True, text=True, check=True, timeout=120
    )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("stacks:")]
    return {int(tid): found for tid, found in json.loads(line.removeprefix("stacks:")).items()}
