# SPDX-License-Identifier: Apache-2.0
"""Run inside gdb by debugger.py: every thread's frames, as `thread apply all bt` walks them, as JSON in $CORESNAP_FRAMES.

The text of `bt` has no program counter where one begins a line of source, and shows functions that were compiled into others
as if they had frames of their own: the frames are asked for themselves, and what each is.
"""

from __future__ import annotations

import json
import os

import gdb  # type: ignore[import-untyped]  # gdb's own interpreter has it

_KINDS = {
    gdb.NORMAL_FRAME: "normal",
    gdb.SIGTRAMP_FRAME: "signal",
    gdb.INLINE_FRAME: "inline",
    gdb.TAILCALL_FRAME: "tail",
}


def frames() -> tuple[list[list[object]], str]:
    """Return the selected thread's frames: program counter, name, kind; and why there are no more."""
    found: list[list[object]] = []
    frame, end = None, ""
    try:
        frame = gdb.newest_frame()
        while frame is not None:
            name = frame.name()
            found.append([frame.pc(), name or "", _KINDS.get(frame.type(), "other")])
            end = gdb.frame_stop_reason_string(frame.unwind_stop_reason())
            frame = frame.older()
    except gdb.error as error:
        end = str(error)
    return found, end


def main() -> None:
    """Write them all."""
    threads = {}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        found, end = frames()
        threads[thread.ptid[1] or thread.ptid[0]] = {"frames": found, "end": end}
    with open(os.environ["CORESNAP_FRAMES"], "w", encoding="utf-8") as file:
        json.dump(threads, file)


main()
