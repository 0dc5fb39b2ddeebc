# SPDX-License-Identifier: Apache-2.0
"""The stacks of a core as gdb and eu-stack see them."""

from __future__ import annotations

import itertools
import json
import os
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
#: Nobody reads more of them.
FRAMES_MAX = 20000
_SECONDS = 300
_PT_LOAD, _PF_X = 1, 1
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
    """A thread's frames, innermost first, without those of functions that were compiled into others; why there are no more.

    `in_code`: as many of them as there are before the first return address that is not in code: what follows is no stack.
    `sound`: it goes to where the thread began, and all of it is in code.
    """

    frames: list[Frame]
    end: str
    in_code: int = 0
    sound: bool = True


def gdb(core: Path, program: Path) -> dict[int, Stack]:
    """Return the stacks by thread. Raises CalledProcessError."""
    words = [word for setting in _SETTINGS for word in ("-iex", setting)]
    with tempfile.NamedTemporaryFile(prefix="coresnap-frames-") as file:
        environment = {**os.environ, "CORESNAP_FRAMES": file.name}
        environment.pop("DEBUGINFOD_URLS", None)
        argv = ["gdb", "-nx", "-batch", *words, "-x", str(_HERE / "in_gdb.py"), str(program), str(core)]
        subprocess.run(argv, env=environment, capture_output=True, check=True, timeout=_SECONDS)
        threads = json.load(file)
    code = _executable(core)
    return {int(tid): _stack(one["frames"], one["end"], code) for tid, one in threads.items()}


def _stack(frames: list[tuple[int, str, str]], end: str, code: list[range]) -> Stack:
    """Sort out the frames that have no place of their own on the stack; judge the others."""
    physical = [frame for frame in frames if frame[2] in ("normal", "signal")]
    # Only what was stopped where it is, the innermost or what a signal came upon, may be where no code is.
    returns = [
        (at, frame[0]) for at, (before, frame) in enumerate(itertools.pairwise(physical), 1) if before[2] != "signal"
    ]
    in_code = next((at for at, pc in returns if not any(pc in one for one in code)), len(physical))
    sound = end == "outermost" and in_code == len(physical)
    return Stack([Frame(pc, name) for pc, name, _kind in physical], end, in_code, sound)


def _executable(core: Path) -> list[range]:
    """Return the executable segments: e_phoff at 32, e_phnum at 56, elf(5)."""
    with core.open("rb") as file:
        head = file.read(64)
        (at,), (count,) = struct.unpack_from("<Q", head, 32), struct.unpack_from("<H", head, 56)
        file.seek(at)
        rows = list(struct.iter_unpack("<IIQQQQQQ", file.read(56 * count)))
    return [range(row[3], row[3] + row[6]) for row in rows if row[0] == _PT_LOAD and row[1] & _PF_X]


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
