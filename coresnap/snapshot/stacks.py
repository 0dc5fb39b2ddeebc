# SPDX-License-Identifier: Apache-2.0
"""The stacks of threads: what a frame is, how it was found, and why a stack ends."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Found(StrEnum):
    """How a frame was found."""

    REGISTERS = "registers"  #: it is the innermost one
    CFI = "cfi"  #: by the call frame information of the frame that it called
    SIGNAL = "signal"  #: by a signal frame: the signal came when the thread was here
    RETURN_ADDRESS = "return-address"  #: at the top of the stack, after a jump to where no code is
    FRAME_POINTER = "frame-pointer"  #: guessed
    SCAN = "scan"  #: guessed: a word of the stack that looks like a return address


#: What is no more than likely.
GUESSED = (Found.FRAME_POINTER, Found.SCAN)


class End(StrEnum):
    """Why a stack ends: the closed list."""

    BOTTOM = "bottom"  #: where the thread began
    NO_CALLER = "no caller found"  #: neither a table, nor a frame pointer, nor the stack tells of one
    NO_STACK = "the core does not have the stack"
    CYCLE = "cycle"  #: the next frame is no further up than this one
    FRAMES = "too many frames"
    TIME = "no time left"
    BAD_TABLE = "damaged unwind table"
    NOT_UNWOUND = "not unwound"


class Frame(NamedTuple):
    """A frame: its program counter, and the registers that are known in it.

    `lookup` is the address to be named: a return address may lie behind the function that called.
    """

    address: int
    lookup: int
    found: Found
    registers: dict[str, int]

    @property
    def guessed(self) -> bool:
        """Say whether it is no more than likely."""
        return self.found in GUESSED


class Stack(NamedTuple):
    """The frames of a thread, innermost first, at least one; and why there are no more, which `detail` may say closer.

    Of very many frames `omitted` are left out: those between the first `omitted_at` and the others.
    """

    frames: list[Frame]
    end: End = End.NOT_UNWOUND
    detail: str = ""
    omitted: int = 0
    omitted_at: int = 0
