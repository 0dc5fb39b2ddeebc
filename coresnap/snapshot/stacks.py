# SPDX-License-Identifier: Apache-2.0
"""The stacks of threads. Of each thread there is the innermost frame, where it stopped; nothing is unwound here yet."""

from __future__ import annotations

from dataclasses import dataclass

from coresnap.snapshot.core import Core
from coresnap.snapshot.notes import Thread


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame, innermost first: its program counter, and the registers where they are known."""

    address: int
    registers: dict[str, int]


def stack(core: Core, thread: Thread) -> list[Frame]:
    """Return the frames of a thread as far as they can be told, innermost first; at least one."""
    registers = thread.registers()
    return [Frame(registers[core.machine.program_counter], registers)]
