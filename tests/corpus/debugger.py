# SPDX-License-Identifier: Apache-2.0
"""The stacks of a core as gdb and eu-stack see them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
#: Nobody reads more of them.
FRAMES_MAX = 20000
_SECONDS = 300
#: What is asked of gdb before it opens anything: nothing from outside, and stacks to where threads begin.
_SETTINGS = (
    "set debuginfod enabled off",
    "set auto-load no",
    "set backtrace past-main on",
    f"set backtrace limit {FRAMES_MAX}",
)


@dataclass(frozen=True)
class Frame:
    """A frame: its program counter and the function's name, empty where none is known."""

    address: int
    name: str


@dataclass(frozen=True)
class Stack:
    """A thread's frames, innermost first, without those of functions that were compiled into others; why there are no more."""

    frames: list[Frame]
    end: str


def gdb(core: Path, program: Path, directories: str = "") -> dict[int, Stack]:
    """Return the stacks by thread. Raises CalledProcessError."""
    words = [word for setting in _SETTINGS for word in ("-iex", setting)]
    if directories:
        words += ["-iex", f"set debug-file-directory {directories}"]
    with tempfile.NamedTemporaryFile(prefix="coresnap-frames-") as file:
        environment = {**os.environ, "CORESNAP_FRAMES": file.name}
        environment.pop("DEBUGINFOD_URLS", None)
        argv = ["gdb", "-nx", "-batch", *words, "-x", str(_HERE / "in_gdb.py"), str(program), str(core)]
        subprocess.run(argv, env=environment, capture_output=True, check=True, timeout=_SECONDS)
        threads = json.load(file)
    return {
        int(tid): Stack(
            [Frame(pc, name) for pc, name, kind in one["frames"] if kind in ("normal", "signal")], one["end"]
        )
        for tid, one in threads.items()
    }


def eu_stack(core: Path, program: Path) -> dict[int, Stack]:
    """Return the stacks by thread, as far as eu-stack gets: `TID 77:`, then `#0  0x00007f... name` for each frame."""
    argv = ["eu-stack", "-n", str(FRAMES_MAX), "-e", str(program), "--core", str(core)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_SECONDS)
    stacks: dict[int, Stack] = {}
    for part in re.split(r"^TID ", done.stdout, flags=re.MULTILINE)[1:]:
        tid, _colon, rest = part.partition(":")
        frames = re.findall(r"^#\d+ +0x([0-9a-f]+)(?:[ ]+-[ ]\d+)?[ ]*(.*)$", rest, re.MULTILINE)
        stacks[int(tid)] = Stack([Frame(int(pc, 16), name.removeprefix("- 1").strip()) for pc, name in frames], "")
    return stacks
